//! Rows of preferences, in TRL's forms: a prompt with a chosen and a rejected completion, or with one completion that is desirable or
//! not. Each is a text or a list of turns.

use lowrank_models::Conversation;

use super::contract::{DataOptions, Encode, Example, Target};
use super::encode::{Encoded, end, pair_texts};
use super::fields::{Fields, Row, RowLabel};
use super::store::Examples;
use crate::task::Task;

/// What the better answer is called in OpenAI's preferences.
const OPENAI: &str = "preferred_output";

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

    /// Whether what the task needs is there.
    fn check(&self, fields: &Fields<'_>, options: &DataOptions) -> Result<(), String> {
        let single = [(self.completion, "completion_column"), (self.label, "label_column")];
        let pair = [(self.chosen, "chosen_column"), (self.rejected, "rejected_column")];
        let has = |columns: &[(&str, &str)]| columns.iter().all(|(name, _)| fields.has(name));
        if fields.has(OPENAI) {
            return Ok(());
        }
        let needed = match options.task {
            Task::Reward if options.unlabelled => return Ok(()),
            Task::Kto if has(&pair) => return Ok(()),
            Task::Kto => single,
            _ => pair,
        };
        match needed.iter().find(|(name, _)| !fields.has(name)) {
            Some((name, option)) => {
                Err(format!("{name:?} is missing: name it with `{option}`; {}", fields.keys()))
            }
            None => Ok(()),
        }
    }
}

/// The examples of a row: one, or for KTO two of a pair.
pub(super) fn encode(row: &Row, options: &DataOptions, encoder: &dyn Encode) -> Vec<Result<Encoded, String>> {
    let columns = Columns::of(options);
    let read = || {
        let fields = Fields::of(&row.raw)?;
        columns.check(&fields, options)?;
        if options.task == Task::Reward && options.unlabelled {
            return Ok(vec![Ok(single(&fields, &columns, options, encoder)?)]);
        }
        if options.task != Task::Kto {
            return Ok(vec![pair(&fields, &columns, options, encoder)]);
        }
        let paired = fields.has(columns.chosen) && fields.has(columns.rejected);
        if fields.has(OPENAI) || (paired && !fields.has(columns.completion)) {
            let pair = Pair::read(&fields, &columns, options, encoder)?;
            return Ok(vec![pair.single(0, true, options), pair.single(1, false, options)]);
        }
        let text = Text::read(&fields, columns.prompt, columns.completion, options, encoder)?;
        let desirable = flag(&fields, columns.label)?;
        Ok(vec![Pair { texts: [text.clone(), text] }.single(0, desirable, options)])
    };
    read().unwrap_or_else(|reason: String| vec![Err(reason)])
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
        Self::plain(&prompt, completion, encoder)
    }

    /// Encoded as one text: what the prompt alone has in common with it is the prompt.
    fn plain(prompt: &str, completion: &str, encoder: &dyn Encode) -> Result<Self, String> {
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
        let texts = if fields.has(OPENAI) {
            [OPENAI, "non_preferred_output"]
                .map(|name| Text::talk(&fields.openai_pair("input", name)?, encoder))
        } else if fields.has(prompt) || options.prompt_template.is_some() {
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
            [a, b].map(|text| Text::plain(prompt, &text[prompt.len()..], encoder))
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
        name => Text::plain("", fields.text(name.unwrap_or("text"))?, encoder)?,
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
    use super::super::tests::case;
    use super::*;

    /// Prompt, first and second completion of each example, and what is said of them.
    fn shown(task: Task, rows: &str) -> Vec<(String, String, String, Target)> {
        let text = |tokens: &[u32]| -> String {
            tokens.iter().map(|&token| if token == 0 { '$' } else { token as u8 as char }).collect()
        };
        let show = |example: Example| {
            let (prompt, rest) = example.tokens.split_at(example.prompt_len);
            let (Target::Completions { first, .. } | Target::Rewards { first, .. }) = example.target else {
                panic!("{:?}", example.target)
            };
            (text(prompt), text(&rest[..first]), text(&rest[first..]), example.target)
        };
        case("a.jsonl", rows).with(|o| o.task = task).load().unwrap().examples.iter().map(show).collect()
    }

    fn pair(prompt: &str, first: &str, second: &str) -> (String, String, String, Target) {
        let target = Target::Completions { first: first.len(), desirable: None };
        (prompt.into(), first.into(), second.into(), target)
    }

    #[test]
    fn pairs_of_texts_and_of_turns() {
        let rows = r#"{"prompt":"ab","chosen":"cd","rejected":"ce"}
{"chosen":"The sky is blue","rejected":"The sky is green"}
{"prompt":[{"role":"user","content":"q"}],"chosen":[{"role":"assistant","content":"y"}],"rejected":[{"role":"assistant","content":"no"}]}
{"chosen":[{"role":"user","content":"q"},{"role":"assistant","content":"y"}],"rejected":[{"role":"user","content":"q"},{"role":"assistant","content":"n"}]}"#;
        let openai = r#"{"input":{"messages":[{"role":"user","content":"q"}]},"preferred_output":[{"role":"assistant","content":"y"}],"non_preferred_output":[{"role":"assistant","content":"n"}]}"#;
        assert_eq!(shown(Task::Preference, openai), [pair("q", "y", "n")]);
        let want = [
            pair("ab", "cd$", "ce$"),
            pair("The sky is", " blue$", " green$"),
            pair("q", "y", "no"),
            pair("q", "y", "n"),
        ];
        assert_eq!(shown(Task::Preference, rows), want);
    }

    #[test]
    fn desirable_completions_come_with_another_prompts() {
        let rows = r#"{"prompt":"a","completion":"bc","label":true}
{"prompt":"d","completion":"e","label":"False"}
{"prompt":"f","chosen":"g","rejected":"h"}"#;
        let of = |prompt: &str, own: &str, other: &str, desirable| {
            let target = Target::Completions { first: own.len(), desirable: Some(desirable) };
            (prompt.to_owned(), own.to_owned(), other.to_owned(), target)
        };
        let want = [
            of("a", "bc$", "h$", true),
            of("d", "e$", "bc$", false),
            of("f", "g$", "e$", true),
            of("f", "h$", "g$", false),
        ];
        assert_eq!(shown(Task::Kto, rows), want);
        case("a.jsonl", r#"{"prompt":"a","completion":"b","label":1}"#)
            .with(|o| o.task = Task::Kto)
            .fails(0, &["one example only"]);
        case("a.jsonl", r#"{"prompt":"a","completion":"b","label":"good"}"#)
            .with(|o| o.task = Task::Kto)
            .fails(1, &["\"label\" is \"good\", expected true or false"]);
    }

    #[test]
    fn rewards_share_what_both_texts_begin_with() {
        let rows = r#"{"prompt":"ab","chosen":"cd","rejected":"ce","margin":0.5}
{"chosen":"ab","rejected":"abc"}"#;
        let of = |prompt: &str, first: &str, second: &str, margin| {
            (
                prompt.to_owned(),
                first.to_owned(),
                second.to_owned(),
                Target::Rewards { first: first.len(), margin },
            )
        };
        assert_eq!(shown(Task::Reward, rows), [of("abc", "d$", "e$", 0.5), of("ab", "$", "c$", 0.0)]);
    }

    #[test]
    fn long_and_wrong_rows() {
        let with = |rows: &str, max| {
            case("a.jsonl", rows).with(|o| (o.task, o.max_seq_len) = (Task::Preference, max))
        };
        let cut = with(r#"{"prompt":"ab","chosen":"cdef","rejected":"g"}"#, Some(4)).load().unwrap();
        assert_eq!((cut.examples.get(0).tokens.len(), cut.report.truncated), (6, 1));
        let rows = r#"{"prompt":"abcd","chosen":"c","rejected":"g"}"#;
        with(rows, Some(4)).fails(0, &["1 examples keeps a token"]);
        with(r#"{"prompt":"a","chosen":"c"}"#, None)
            .fails(1, &["\"rejected\" is missing", "`rejected_column`"]);
        with(r#"{"chosen":"x","rejected":"y"}"#, None).fails(1, &["common beginning"]);
        let named = case("a.jsonl", r#"{"q":"a","good":"b","bad":"c"}"#).with(|o| {
            o.task = Task::Preference;
            (o.prompt_column, o.chosen_column, o.rejected_column) =
                (Some("q".into()), Some("good".into()), Some("bad".into()));
        });
        assert_eq!(named.load().unwrap().examples.len(), 1);
        let table = case("a.csv", "prompt,chosen,rejected\na,b,c\n").with(|o| o.task = Task::Preference);
        assert_eq!(table.load().unwrap().examples.get(0).tokens.len(), 5);
    }

    #[test]
    fn beginnings_end_before_the_space() {
        assert_eq!(shared_beginning("The sky is blue.", "The sky is green."), "The sky is");
        assert_eq!(shared_beginning("größe", "grün"), "gr");
        assert_eq!(shared_beginning("a", "b"), "");
        assert_eq!(shared_beginning("same", "same"), "same");
    }
}
