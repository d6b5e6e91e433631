//! Rows to tokens.

use std::borrow::Cow;

use lowrank_models::{Conversation, Message};
use serde_json::Value;

use super::alpaca::Alpaca;
use super::contract::{DataOptions, Encode, EncodeError, Example, TrainOnTurns};
use super::fields::{Fields, Roles, Row};
use super::turns::is_trained;

// It lives for one row.
#[allow(clippy::large_enum_variant)]
pub(super) enum Encoded {
    Kept {
        example: Example,
        truncated: bool,
        /// The answer to learn is blank: there is its end alone.
        empty: bool,
        /// What the row was read as; empty where there is no choice.
        form: &'static str,
    },
    /// Cut so short that no token with loss is left.
    Dropped,
}

impl Encoded {
    /// Gives the losses of the example a weight.
    pub fn set_weight(&mut self, weight: f32) {
        if let Self::Kept { example, .. } = self {
            example.weight = Some(weight);
        }
    }
}

/// Tokens, which of them carry loss, and how many lead without.
type Marked = (Vec<u32>, Vec<bool>, usize);

/// The tokens of a row and which of them carry loss, cut to `max_seq_len`; or why there are none.
pub(super) fn encode(row: &Row, options: &DataOptions, encoder: &dyn Encode) -> Result<Encoded, String> {
    let fields = Fields::of(&row.raw)?;
    let roles = fields.roles(options)?;
    encode_as(roles, &fields, options, encoder)
        .map_err(|reason| format!("{reason}; the row is read as {}", roles.describe()))
}

fn encode_as(
    roles: Roles<'_>,
    fields: &Fields<'_>,
    options: &DataOptions,
    encoder: &dyn Encode,
) -> Result<Encoded, String> {
    let (empty, form, marked) = match roles {
        Roles::Pair { prompt, completion }
            if options.prompt_template.is_none()
                && (fields.is_list(prompt) || fields.is_list(completion)) =>
        {
            let mut talk = fields.conversation_pair(prompt, completion)?;
            talk.untrained = untrained(&talk, options.train_on_turns)?;
            let empty = talk.messages[talk.prompt_turns..].iter().any(is_blank_answer);
            (empty, "prompts and completions of turns", chat(&talk, "the completion", options, encoder)?)
        }
        Roles::Pair { prompt, completion } => {
            let (prompt, completion) = pair_texts(fields, options, prompt, completion)?;
            let marked = pair(&prompt, completion, encoder).map_err(|e| e.to_string())?;
            (completion.trim().is_empty(), "prompts and completions", marked)
        }
        Roles::Alpaca => {
            let alpaca = Alpaca::of(fields)?;
            let empty = alpaca.output.trim().is_empty();
            if encoder.has_chat_template() {
                let talk = fields.talk(alpaca.messages(), 0)?;
                (empty, "Alpaca's rows, as turns of the chat template", chat(&talk, "it", options, encoder)?)
            } else {
                let marked = pair(&alpaca.prompt(), alpaca.output, encoder).map_err(|e| e.to_string())?;
                (empty, "Alpaca's rows, in Alpaca's template", marked)
            }
        }
        Roles::Text(name) => {
            let text = fields.text(name)?;
            let mut tokens = encoder.encode(text).map_err(|e| e.to_string())?;
            if text.is_empty() {
                return Err("nothing to learn: the text is empty".into());
            }
            end(&mut tokens, encoder)?;
            let loss_mask = vec![true; tokens.len()];
            (false, "texts", (tokens, loss_mask, 0))
        }
        Roles::Messages(name) => {
            let mut talk = fields.conversation(name)?;
            talk.untrained = untrained(&talk, options.train_on_turns)?;
            let empty = talk.messages.iter().any(is_blank_answer);
            (empty, "conversations", chat(&talk, &format!("{name:?}"), options, encoder)?)
        }
    };
    let (mut tokens, mut loss_mask, mut prompt_len) = marked;
    if options.loss_on_prompt {
        loss_mask.fill(true);
        prompt_len = 0;
    }
    // Nothing stands before the first token that could predict it.
    if let Some(first) = loss_mask.first_mut() {
        *first = false;
    }
    if !loss_mask.contains(&true) {
        return Err(match roles {
            Roles::Pair { .. } => "nothing to learn: the completion adds no token to the prompt".into(),
            Roles::Alpaca => "nothing to learn: the output adds no token to the prompt".into(),
            Roles::Text(_) => "nothing to learn: the text is empty".into(),
            Roles::Messages(name) => {
                format!("nothing to learn: {name:?} has no token of the assistant after the first")
            }
        });
    }
    let full = tokens.len();
    if let Some(max) = options.max_seq_len {
        tokens.truncate(max);
        loss_mask.truncate(max);
        prompt_len = prompt_len.min(max);
        if !loss_mask.contains(&true) {
            return Ok(Encoded::Dropped);
        }
    }
    let truncated = tokens.len() < full;
    tokens.shrink_to_fit();
    loss_mask.shrink_to_fit();
    let example = Example { tokens, loss_mask, prompt_len, ..Example::default() };
    Ok(Encoded::Kept { example, truncated, empty, form })
}

/// A conversation in the chat template. `name` holds its turns.
fn chat(
    talk: &Conversation,
    name: &str,
    options: &DataOptions,
    encoder: &dyn Encode,
) -> Result<Marked, String> {
    let (tokens, loss_mask) = encoder.encode_chat(talk).map_err(|e| e.to_string())?;
    if tokens.len() != loss_mask.len() {
        let (tokens, marks) = (tokens.len(), loss_mask.len());
        return Err(format!("the chat encoder gave {tokens} tokens and {marks} marks"));
    }
    match loss_mask.iter().position(|&marked| marked) {
        Some(prompt_len) => Ok((tokens, loss_mask, prompt_len)),
        None if options.loss_on_prompt => Ok((tokens, loss_mask, 0)),
        None => Err(format!("{name} has no turn of the assistant to learn")),
    }
}

/// The turns of the assistant that are not to be learned.
fn untrained(talk: &Conversation, which: TrainOnTurns) -> Result<Vec<usize>, String> {
    let mut trained = Vec::new();
    let mut left_out = Vec::new();
    for (at, message) in talk.messages.iter().enumerate() {
        let wanted = is_trained(at, message)?;
        if message.role() == "assistant" && at >= talk.prompt_turns {
            if wanted { trained.push(at) } else { left_out.push(at) }
        }
    }
    if which == TrainOnTurns::Last {
        trained.pop();
        left_out.append(&mut trained);
    }
    Ok(left_out)
}

/// Whether a turn is the assistant's and says nothing.
fn is_blank_answer(message: &Message) -> bool {
    let blank = match message.fields.get("content") {
        Some(Value::String(text)) => text.trim().is_empty(),
        Some(Value::Array(parts)) => parts.is_empty(),
        _ => true,
    };
    message.role() == "assistant" && blank && !message.fields.contains_key("tool_calls")
}

/// The prompt as the model sees it, and the completion.
pub(super) fn pair_texts<'a>(
    fields: &'a Fields<'_>,
    options: &DataOptions,
    prompt: &str,
    completion: &str,
) -> Result<(Cow<'a, str>, &'a str), String> {
    let prompt = match &options.prompt_template {
        Some(template) => {
            template.fill(|name| fields.text(if name == "prompt" { prompt } else { name }))?.into()
        }
        None => fields.text(prompt)?.into(),
    };
    Ok((prompt, fields.text(completion)?))
}

/// Prompt and completion are encoded as one text, as TRL does: what the prompt alone takes has no loss.
fn pair(prompt: &str, completion: &str, encoder: &dyn Encode) -> Result<Marked, EncodeError> {
    let prompt_len = encoder.encode(prompt)?.len();
    let mut tokens = encoder.encode(&[prompt, completion].concat())?;
    end(&mut tokens, encoder)?;
    let prompt_len = prompt_len.min(tokens.len());
    let mut loss_mask = vec![false; prompt_len];
    loss_mask.resize(tokens.len(), true);
    Ok((tokens, loss_mask, prompt_len))
}

/// Ends a text with the end token, unless it ends with it already.
pub(super) fn end(tokens: &mut Vec<u32>, encoder: &dyn Encode) -> Result<(), String> {
    let eos = encoder.eos().ok_or("the tokenizer names no eos_token, which ends every text")?;
    if tokens.last() != Some(&eos) {
        tokens.push(eos);
    }
    Ok(())
}
