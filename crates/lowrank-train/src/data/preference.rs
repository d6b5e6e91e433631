//! Rows of preferences, in TRL's forms: a prompt with a chosen and a rejected completion, or with one completion that is desirable or
//! not. Each is a text or a list of turns.

use lowrank_models::Conversation;

use super::contract::{DataOptions, Encode, Example, Target};
use super::encode::{Encoded, end, pair_texts};
use super::fields::{Fields, Row, RowLabel};
use super::store::Examples;
use crate::task::Task;

/// The columns of a row.
struct Columns<'a> {
    prompt: &'a str,
    completion: &'a str,
    chosen: &'a str,
    rejected: &'a str,
    label: &'a str,
}

impl<'a> Columns<'a> {
    fn of(options: &'a DataOptions) -> Self {
        fn name<'a>(named: &'a Option<String>, usual: &'a str) -> &'a str {
            named.as_deref().unwrap_or(usual)
        }
        Self {
            prompt: name(&options.prompt_column, "prompt"),
            completion: name(&options.completion_column, "completion"),
            chosen: name(&options.chosen_column, "chosen"),
            rejected: name(&options.rejected_column, "rejected"),
            label: name(&options.label_column, "label"),
        }
    }
}

/// The examples of a row: one, or for KTO two of a pair.
pub(super) fn encode(row: &Row, options: &DataOptions, encoder: &dyn Encode) -> Vec<Result<Encoded, String>> {
    let columns = Columns::of(options);
    let read = || {
        let fields = Fields::of(&row.raw)?;
        if options.task == Task::Reward && options.unlabelled {
            return Ok(vec![Ok(single(&fields, &columns, options, encoder)?)]);
        }
        if options.task != Task::Kto {
            return Ok(vec![pair(&fields, &columns, options, encoder)]);
        }
        if fields.has(columns.chosen) && fields.has(columns.rejected) && !fields.has(columns.completion) {
            let pair = Pair::read(&fields, &columns, options, encoder)?;
            return Ok(vec![pair.single(0, true, options), pair.single(1, false, options)]);
        }
        let text = Text::read(&fields, columns.prompt, columns.completion, options, encoder)?;
        let desirable = flag(&fields, columns.label)?;
        Ok(vec![Pair { texts: [text.clone(), text] }.single(0, desirable, options)])
    };
    read().unwrap_or_else(|reason: String| {
        vec![Err(format!(
            "{reason}; the columns are named with `prompt_column`, `completion_column`, `chosen_column`, \
             `rejected_column` and `label_column`"
        ))]
    })
}

/// A prompt with a completion, and how many of the tokens the prompt has.
#[derive(Clone)]
struct Text {
    tokens: Vec<u32>,
    prompt_len: usize,
}

impl Text {
    fn read(
        fields: &Fields<'_>,
        prompt: &str,
        completion: &str,
        options: &DataOptions,
        encoder: &dyn Encode,
    ) -> Result<Self, String> {
        if options.prompt_template.is_none() && (fields.is_list(prompt) || fields.is_list(completion)) {
            return Self::talk(&fields.conversation_pair(prompt, completion)?, encoder);
        }
        let (prompt, completion) = pair_texts(fields, options, prompt, completion)?;
        Self::text(&prompt, completion, encoder)
    }

    /// Encoded as one text: what the prompt alone has in common with it is the prompt.
    fn text(prompt: &str, completion: &str, encoder: &dyn Encode) -> Result<Self, String> {
        let failed = |e: super::EncodeError| e.to_string();
        let mut tokens = encoder.encode(&[prompt, completion].concat()).map_err(failed)?;
        end(&mut tokens, encoder)?;
        let alone = encoder.encode(prompt).map_err(failed)?;
        Ok(Self { prompt_len: common(&alone, &tokens), tokens })
    }

    /// In the chat template: the completion begins where the assistant first speaks.
    fn talk(talk: &Conversation, encoder: &dyn Encode) -> Result<Self, String> {
        let (tokens, marks) = encoder.encode_chat(talk).map_err(|e| e.to_string())?;
        let prompt_len = marks.iter().position(|&marked| marked);
        let prompt_len = prompt_len.ok_or("the completion has no turn of the assistant")?;
        Ok(Self { tokens, prompt_len })
    }
}

/// Two completions of one prompt.
struct Pair {
    texts: [Text; 2],
}

impl Pair {
    fn read(
        fields: &Fields<'_>,
        columns: &Columns<'_>,
        options: &DataOptions,
        encoder: &dyn Encode,
    ) -> Result<Self, String> {
        let Columns { prompt, chosen, rejected, .. } = *columns;
        let texts = if fields.has(prompt) || options.prompt_template.is_some() {
            [chosen, rejected].map(|name| Text::read(fields, prompt, name, options, encoder))
        } else if fields.is_list(chosen) {
            // The turns that both begin with are the prompt.
            let mut talks = [fields.conversation(chosen)?, fields.conversation(rejected)?];
            let turns = talks[0].messages.iter().zip(&talks[1].messages);
            let shared = turns.take_while(|(a, b)| a == b).count();
            talks.iter_mut().for_each(|talk| talk.prompt_turns = shared);
            [Text::talk(&talks[0], encoder), Text::talk(&talks[1], encoder)]
        } else {
            let (a, b) = (fields.text(chosen)?, fields.text(rejected)?);
            let prompt = shared_beginning(a, b);
            [a, b].map(|text| Text::text(prompt, &text[prompt.len()..], encoder))
        };
        let [a, b] = texts;
        Ok(Self { texts: [a?, b?] })
    }

    /// Prompt, first and second completion, cut to `max_seq_len`.
    fn example(&self, prompt_len: usize, options: &DataOptions) -> Option<(Example, usize, bool)> {
        let max = options.max_seq_len.unwrap_or(usize::MAX);
        let cut = |text: &Text| text.tokens[prompt_len..text.tokens.len().min(max).max(prompt_len)].to_vec();
        let [first, second] = [cut(&self.texts[0]), cut(&self.texts[1])];
        if prompt_len >= max {
            return None;
        }
        let truncated = self.texts.iter().any(|text| text.tokens.len() > max);
        let len = first.len();
        let tokens = [&self.texts[0].tokens[..prompt_len], &first, &second].concat();
        // What a loss may read of the prompt.
        let loss_mask = if options.loss_on_prompt { vec![true; tokens.len()] } else { Vec::new() };
        Some((Example { tokens, loss_mask, prompt_len, ..Example::default() }, len, truncated))
    }

    /// The example of one of the two alone; the other completion comes with [`mismatched`].
    fn single(&self, which: usize, desirable: bool, options: &DataOptions) -> Result<Encoded, String> {
        let text = self.texts[which].clone();
        check_prompt(text.prompt_len)?;
        let alone = Text { tokens: text.tokens[..text.prompt_len].to_vec(), prompt_len: text.prompt_len };
        let pair = Pair { texts: [text, alone] };
        let Some((mut example, first, truncated)) = pair.example(pair.texts[0].prompt_len, options) else {
            return Ok(Encoded::Dropped);
        };
        example.target = Target::Completions { first, desirable: Some(desirable) };
        Ok(Encoded::Kept { example, truncated, empty: false, form: "completions that are desirable or not" })
    }
}

/// The example of a pair.
fn pair(
    fields: &Fields<'_>,
    columns: &Columns<'_>,
    options: &DataOptions,
    encoder: &dyn Encode,
) -> Result<Encoded, String> {
    let pair = Pair::read(fields, columns, options, encoder)?;
    let [a, b] = &pair.texts;
    if options.task == Task::Reward {
        // A text that is cut has another last token.
        let max = options.max_seq_len.unwrap_or(usize::MAX);
        if a.tokens.len().max(b.tokens.len()) > max {
            return Ok(Encoded::Dropped);
        }
        let shortest = a.tokens.len().min(b.tokens.len());
        let prompt_len = common(&a.tokens, &b.tokens).min(shortest.saturating_sub(1));
        let (mut example, first, truncated) =
            pair.example(prompt_len, options).ok_or("the text has no tokens")?;
        let margin = fields.optional_number("margin")?.unwrap_or(0.0) as f32;
        example.target = Target::Rewards { first, margin };
        return Ok(Encoded::Kept { example, truncated, empty: false, form: "pairs of texts" });
    }
    let prompt_len = common(&a.tokens[..a.prompt_len], &b.tokens[..b.prompt_len]);
    check_prompt(prompt_len)?;
    let Some((mut example, first, truncated)) = pair.example(prompt_len, options) else {
        return Ok(Encoded::Dropped);
    };
    example.target = Target::Completions { first, desirable: None };
    Ok(Encoded::Kept { example, truncated, empty: false, form: "pairs of completions" })
}

/// A text whose reward is asked for: a prompt with its completion, a conversation, or a text.
fn single(
    fields: &Fields<'_>,
    columns: &Columns<'_>,
    options: &DataOptions,
    encoder: &dyn Encode,
) -> Result<Encoded, String> {
    let text = match options.text_column.as_deref() {
        None if fields.has(columns.completion) => {
            Text::read(fields, columns.prompt, columns.completion, options, encoder)?
        }
        None if fields.has("messages") => Text::talk(&fields.conversation("messages")?, encoder)?,
        name => Text::text("", fields.text(name.unwrap_or("text"))?, encoder)?,
    };
    let (tokens, max) = (text.tokens, options.max_seq_len.unwrap_or(usize::MAX));
    if tokens.len() > max {
        return Err(format!("it has {} tokens, more than `max_seq_len` {max}", tokens.len()));
    }
    let target = Target::Values { row: tokens.len().saturating_sub(1) as u32, values: vec![0.0] };
    let example = Example { tokens, target, ..Example::default() };
    Ok(Encoded::Kept { example, truncated: false, empty: false, form: "texts" })
}

fn check_prompt(tokens: usize) -> Result<(), String> {
    match tokens {
        0 => Err("the prompt has no token: chosen and rejected completions need a common beginning".into()),
        _ => Ok(()),
    }
}

/// The examples of KTO with the completion of the example before as their second one, the first with that of the last, as TRL pairs
/// them. `None` for a single one.
pub(super) fn mismatched(examples: &Examples) -> Option<Examples> {
    let count = examples.len();
    let with_other = |at: usize| {
        let (mut example, other) = (examples.get(at), examples.get((at + count - 1) % count));
        if let Target::Completions { first, .. } = other.target {
            let completion = &other.tokens[other.prompt_len..][..first];
            example.tokens.extend(completion);
        }
        example
    };
    (count > 1).then(|| (0..count).map(with_other).collect())
}

/// How many tokens two lists begin with.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The text that both begin with, up to the space before the first difference, as in TRL.
fn shared_beginning<'a>(a: &'a str, b: &str) -> &'a str {
    let same = a.char_indices().zip(b.chars()).take_while(|((_, a), b)| a == b);
    let end = same.last().map_or(0, |((at, c), _)| at + c.len_utf8());
    let shared = &a[..end];
    shared.strip_suffix(' ').unwrap_or(shared)
}

/// Whether a completion is desirable.
fn flag(fields: &Fields<'_>, name: &str) -> Result<bool, String> {
    let text = match fields.label(name)? {
        RowLabel::One(text) => text.to_ascii_lowercase(),
        RowLabel::List(_) => return Err(format!("{name:?} is a list, expected true or false")),
    };
    match text.as_str() {
        "true" | "1" | "1.0" => Ok(true),
        "false" | "0" | "0.0" => Ok(false),
        _ => Err(format!("{name:?} is {text:?}, expected true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_end_before_the_space() {
        assert_eq!(shared_beginning("The sky is blue.", "The sky is green."), "The sky is");
        assert_eq!(shared_beginning("größe", "grün"), "gr");
        assert_eq!(shared_beginning("a", "b"), "");
        assert_eq!(shared_beginning("same", "same"), "same");
    }
}
