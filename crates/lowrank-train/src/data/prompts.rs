//! Rows of prompts whose completions are sampled: a text, or turns that the assistant is to answer. The whole row is kept for the
//! rewards.

use lowrank_models::Conversation;
use serde_json::{Map, Value};

use super::contract::{DataOptions, Encode, Example, Target};
use super::encode::Encoded;
use super::fields::{Fields, Row};

/// The column of a conversation.
const MESSAGES: &str = "messages";

/// The prompt of a row; a longer one than `max_seq_len` is dropped.
pub(super) fn encode(row: &Row, options: &DataOptions, encoder: &dyn Encode) -> Result<Encoded, String> {
    let fields = Fields::of(&row.raw)?;
    let name = options.prompt_column.as_deref().unwrap_or("prompt");
    let failed = |e: super::EncodeError| e.to_string();
    let (tokens, form) = if let Some(template) = &options.prompt_template {
        let text = template.fill(|column| fields.text(if column == "prompt" { name } else { column }))?;
        (encoder.encode(&text).map_err(failed)?, "prompts")
    } else if fields.is_list(name) {
        (
            encoder.encode_chat_prompt(&fields.conversation(name)?).map_err(failed)?,
            "prompts that are conversations",
        )
    } else if fields.has(name) {
        (encoder.encode(fields.text(name)?).map_err(failed)?, "prompts")
    } else if fields.is_list(MESSAGES) {
        let mut talk = fields.conversation(MESSAGES)?;
        unanswered(&mut talk)?;
        (encoder.encode_chat_prompt(&talk).map_err(failed)?, "conversations up to the last answer")
    } else {
        return Err(format!("{name:?} is missing: name it with `prompt_column`; {}", fields.keys()));
    };
    if tokens.is_empty() {
        return Err(format!("{name:?} has no token: nothing can follow it"));
    }
    if tokens.len() > options.max_seq_len.unwrap_or(usize::MAX) {
        return Ok(Encoded::Dropped);
    }
    let target = Target::Prompt(json(&fields));
    let example = Example { prompt_len: tokens.len(), tokens, target, ..Example::default() };
    Ok(Encoded::Kept { example, truncated: false, empty: false, form })
}

/// Takes off what the assistant says at the end.
fn unanswered(talk: &mut Conversation) -> Result<(), String> {
    while talk.messages.last().is_some_and(|last| last.role() == "assistant") {
        talk.messages.pop();
    }
    match talk.messages.is_empty() {
        true => Err(format!("{MESSAGES:?} has no turn to answer")),
        false => Ok(()),
    }
}

/// The row as a JSON object.
fn json(fields: &Fields<'_>) -> String {
    match fields {
        Fields::Json(map) => Value::Object(map.clone()).to_string(),
        Fields::Table(names, values) => {
            let cell = |(name, value): (&String, &&str)| (name.clone(), Value::from(*value));
            Value::Object(names.iter().zip(values).map(cell).collect::<Map<_, _>>()).to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::case;
    use super::*;
    use crate::task::Task;

    fn read(name: &str, rows: &str) -> Result<Vec<(String, Value)>, String> {
        let data = case(name, rows).with(|o| o.task = Task::Grpo).load().map_err(|e| e.to_string())?;
        let show = |example: Example| {
            let Target::Prompt(row) = &example.target else { panic!("{:?}", example.target) };
            assert_eq!(example.prompt_len, example.tokens.len());
            let text = example.tokens.iter().map(|&token| token as u8 as char).collect();
            (text, serde_json::from_str(row).unwrap())
        };
        Ok(data.examples.iter().map(show).collect())
    }

    #[test]
    fn texts_turns_and_tables() {
        let rows = r#"{"prompt":"ab","answer":3}
{"prompt":[{"role":"user","content":"q"}],"answer":["x"]}
{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"y"}]}"#;
        let read_rows = read("a.jsonl", rows).unwrap();
        let texts: Vec<&str> = read_rows.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(texts, ["ab", "q", "q"]);
        assert_eq!(read_rows[0].1["answer"], 3);
        assert_eq!(read_rows[1].1["answer"][0], "x");
        assert_eq!(read_rows[2].1["messages"][1]["content"], "y");
        let table = read("a.csv", "prompt,answer\nab,3\n").unwrap();
        assert_eq!((table[0].0.as_str(), &table[0].1["answer"]), ("ab", &Value::from("3")));
    }

    #[test]
    fn rows_without_a_prompt_are_named() {
        for (rows, what) in [
            (r#"{"text":"a"}"#, "\"prompt\" is missing"),
            (r#"{"prompt":""}"#, "has no token"),
            (r#"{"prompt":3}"#, "expected a string"),
            (r#"{"messages":[{"role":"assistant","content":"y"}]}"#, "no turn to answer"),
        ] {
            let error = read("a.jsonl", rows).unwrap_err();
            assert!(error.contains("a.jsonl:1") && error.contains(what), "{error}");
        }
    }
}
