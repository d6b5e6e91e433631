//! Conversations as the data sets of TRL, axolotl, unsloth and mlx-lm write them: turns with `role` and `content`, or
//! ShareGPT's with `from` and `value`.

use lowrank_models::Message;
use serde_json::{Map, Value, json};

/// Keys that hold the turns of a conversation.
pub(super) const CONVERSATIONS: [&str; 5] = ["messages", "conversations", "conversation", "dialogue", "chat"];

/// The turns in the list `name`.
///
/// # Errors
/// Names the turn that is none.
pub(super) fn messages(name: &str, list: &Value) -> Result<Vec<Message>, String> {
    match list {
        Value::Array(list) if !list.is_empty() => {
            list.iter().enumerate().map(|(i, turn)| message(&format!("{name}[{i}]"), turn)).collect()
        }
        Value::Array(_) => Err(format!("{name:?} is empty")),
        other => Err(format!(
            "{name:?} is {}, expected a list of {{\"role\", \"content\"}} or {{\"from\", \"value\"}}",
            kind(other)
        )),
    }
}

/// One turn, called `name` in errors.
fn message(name: &str, turn: &Value) -> Result<Message, String> {
    let Value::Object(turn) = turn else {
        return Err(format!("{name} is {}, expected {{\"role\", \"content\"}}", kind(turn)));
    };
    match (turn.get("role"), turn.get("from")) {
        (Some(Value::String(_)), _) => {}
        (None | Some(Value::Null), Some(Value::String(from))) => return sharegpt(name, turn, from),
        (Some(other), _) => return Err(format!("{name}.role is {}, expected a string", kind(other))),
        (None, Some(other)) => return Err(format!("{name}.from is {}, expected a string", kind(other))),
        (None, None) => return Err(format!("{name} has no \"role\"")),
    }
    match turn.get("content") {
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => {
            parts.iter().enumerate().try_for_each(|(i, p)| part(&format!("{name}.content[{i}]"), p))?;
        }
        None | Some(Value::Null) if turn.contains_key("tool_calls") => {}
        Some(other) => {
            return Err(format!("{name}.content is {}, expected a string or a list of parts", kind(other)));
        }
        None => return Err(format!("{name} has no \"content\"")),
    }
    Ok(Message { fields: turn.clone() })
}

/// Checks a part of a content: texts alone are trained.
fn part(name: &str, part: &Value) -> Result<(), String> {
    let Some(what) = part.get("type").and_then(Value::as_str) else {
        return Err(format!("{name} has no \"type\", expected {{\"type\": \"text\", \"text\"}}"));
    };
    match (what, part.get("text")) {
        ("text", Some(Value::String(_))) => Ok(()),
        ("text", _) => Err(format!("{name} has no string \"text\"")),
        _ if what.contains("image") => Err(format!("{name} is an image, and images are not trained")),
        _ => Err(format!("{name} is of the type {what:?}, and texts alone are trained")),
    }
}

/// A turn of ShareGPT.
fn sharegpt(name: &str, turn: &Map<String, Value>, from: &str) -> Result<Message, String> {
    let value = match turn.get("value") {
        Some(Value::String(value)) => value,
        Some(other) => return Err(format!("{name}.value is {}, expected a string", kind(other))),
        None => return Err(format!("{name} has no \"value\"")),
    };
    let role = match from {
        "human" | "user" => "user",
        "gpt" | "assistant" => "assistant",
        "system" => "system",
        "tool" | "observation" => "tool",
        "function_call" => {
            let mut message = Message::new("assistant", "");
            match tool_calls(value) {
                Some(calls) => message.fields.insert("tool_calls".into(), calls),
                None => message.fields.insert("content".into(), value.clone().into()),
            };
            return Ok(message);
        }
        other => {
            let known =
                ["human", "gpt", "system", "user", "assistant", "tool", "function_call", "observation"];
            return Err(format!("{name}.from: {}", lowrank_files::unknown("role", other, known)));
        }
    };
    let mut message = Message::new(role, value.clone());
    for key in TRAINED {
        message.fields.extend(turn.get(key).map(|said| (key.to_owned(), said.clone())));
    }
    Ok(message)
}

/// A call, or a list of calls, `{"name", "arguments"}` as `tool_calls` of transformers' chat templates.
fn tool_calls(text: &str) -> Option<Value> {
    let call = |call: Value| {
        let arguments = match call.get("arguments").or_else(|| call.get("parameters"))? {
            Value::String(text) => serde_json::from_str(text).unwrap_or_else(|_| text.clone().into()),
            other => other.clone(),
        };
        let function = json!({ "name": call.get("name")?.as_str()?, "arguments": arguments });
        Some(json!({ "type": "function", "function": function }))
    };
    match serde_json::from_str(text).ok()? {
        Value::Array(calls) if !calls.is_empty() => {
            calls.into_iter().map(call).collect::<Option<Vec<_>>>().map(Value::Array)
        }
        one => call(one).map(|call| json!([call])),
    }
}

/// What turns say of whether they are trained: OpenAI's `weight`, 0 or 1, and axolotl's `train` or `training`.
const TRAINED: [&str; 3] = ["weight", "train", "training"];

/// Whether turn `at` is trained, as far as it says so itself.
pub(super) fn is_trained(at: usize, message: &Message) -> Result<bool, String> {
    for key in TRAINED {
        let trained = match message.fields.get(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Bool(yes)) => *yes,
            Some(Value::Number(number)) if number.as_f64() == Some(0.0) => false,
            Some(Value::Number(number)) if number.as_f64() == Some(1.0) => true,
            Some(other) => return Err(format!("{key:?} of turn {} is {other}, expected 0 or 1", at + 1)),
        };
        if trained && message.role() != "assistant" && key != TRAINED[0] {
            let role = message.role();
            return Err(format!(
                "{key:?} of turn {} is true, and turns of the role {role:?} are trained with `loss_on_prompt` only",
                at + 1
            ));
        }
        return Ok(trained);
    }
    Ok(true)
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
