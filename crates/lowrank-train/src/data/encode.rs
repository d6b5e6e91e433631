//! Rows to tokens.

use std::borrow::Cow;

use lowrank_models::Message;
use serde_json::Value;

use super::contract::{DataOptions, Encode, EncodeError, Example};
use super::fields::{Fields, Roles, Row};

pub(super) enum Encoded {
    Kept {
        example: Example,
        truncated: bool,
        /// The answer to learn is blank: there is its end alone.
        empty: bool,
    },
    /// Cut so short that no token with loss is left.
    Dropped,
}

/// The tokens of a row and which of them carry loss, cut to `max_seq_len`; or why there are none.
pub(super) fn encode(row: &Row, options: &DataOptions, encoder: &dyn Encode) -> Result<Encoded, String> {
    let fields = Fields::of(&row.raw)?;
    let roles = fields.roles(options)?;
    let mut empty = false;
    let (mut tokens, mut loss_mask, mut prompt_len) = match roles {
        Roles::Pair { prompt, completion } => {
            let (prompt, completion) = pair_texts(&fields, options, prompt, completion)?;
            empty = completion.trim().is_empty();
            pair(&prompt, completion, encoder).map_err(|e| e.to_string())?
        }
        Roles::Text(name) => {
            let text = fields.text(name)?;
            let mut tokens = encoder.encode(text).map_err(|e| e.to_string())?;
            if text.is_empty() {
                return Err("nothing to learn: the text is empty".into());
            }
            end(&mut tokens, encoder)?;
            let loss_mask = vec![true; tokens.len()];
            (tokens, loss_mask, 0)
        }
        Roles::Messages => {
            let talk = fields.conversation()?;
            empty = talk.messages.iter().any(is_blank_answer);
            let (tokens, loss_mask) = encoder.encode_chat(&talk).map_err(|e| e.to_string())?;
            if tokens.len() != loss_mask.len() {
                return Err(format!(
                    "the chat encoder gave {} tokens and {} marks",
                    tokens.len(),
                    loss_mask.len()
                ));
            }
            let Some(prompt_len) = loss_mask.iter().position(|&m| m) else {
                return Err("\"messages\" has no turn of the assistant to learn".into());
            };
            (tokens, loss_mask, prompt_len)
        }
    };
    // Nothing stands before the first token that could predict it.
    if let Some(first) = loss_mask.first_mut() {
        *first = false;
    }
    if !loss_mask.contains(&true) {
        return Err(match roles {
            Roles::Pair { .. } => "nothing to learn: the completion adds no token to the prompt".into(),
            Roles::Text(_) => "nothing to learn: the text is empty".into(),
            Roles::Messages => {
                "nothing to learn: \"messages\" has no token of the assistant after the first".into()
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
    Ok(Encoded::Kept { example, truncated, empty })
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
fn pair(
    prompt: &str,
    completion: &str,
    encoder: &dyn Encode,
) -> Result<(Vec<u32>, Vec<bool>, usize), EncodeError> {
    let prompt_len = encoder.encode(prompt)?.len();
    let mut tokens = encoder.encode(&[prompt, completion].concat())?;
    end(&mut tokens, encoder)?;
    let prompt_len = prompt_len.min(tokens.len());
    let mut loss_mask = vec![false; prompt_len];
    loss_mask.resize(tokens.len(), true);
    Ok((tokens, loss_mask, prompt_len))
}

/// Ends a text with the end token, unless it ends with it already.
fn end(tokens: &mut Vec<u32>, encoder: &dyn Encode) -> Result<(), String> {
    let eos = encoder.eos().ok_or("the tokenizer names no eos_token, which ends every text")?;
    if tokens.last() != Some(&eos) {
        tokens.push(eos);
    }
    Ok(())
}
