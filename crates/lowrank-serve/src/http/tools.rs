//! Tool calls: found in answers, as the families of models write them.
//!
//! - `<tool_call>{"name": .., "arguments": ..}</tool_call>`, one or several, or a list in one (Hermes, Qwen, SmolLM)
//! - `[TOOL_CALLS][{..}, ..]` (Mistral)
//! - an object or a list and nothing else, perhaps after `<|python_tag|>` (Llama 3)

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::random;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const LIST: &str = "[TOOL_CALLS]";
const PYTHON: &str = "<|python_tag|>";
const MARKS: [&str; 3] = [OPEN, LIST, PYTHON];

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    name: String,
    /// JSON, as text.
    arguments: String,
}

impl Call {
    /// OpenAI's object; `index` in a stream.
    pub fn json(&self, index: Option<usize>) -> Value {
        let mut call = json!({
            "id": random::id("call"), "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        });
        if let Some(index) = index {
            call["index"] = index.into();
        }
        call
    }

    fn of(value: &Value) -> Option<Self> {
        let call = value.get("function").filter(|f| f.is_object()).unwrap_or(value);
        let name = call.get("name")?.as_str()?.to_owned();
        let arguments = match call.get("arguments").or_else(|| call.get("parameters")) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => "{}".to_owned(),
            Some(arguments) => arguments.to_string(),
        };
        Some(Self { name, arguments })
    }

    /// One call, or a list of nothing but calls.
    fn all(text: &str) -> Option<Vec<Self>> {
        match serde_json::from_str(text.trim()).ok()? {
            Value::Array(list) if !list.is_empty() => list.iter().map(Self::of).collect(),
            value => Some(vec![Self::of(&value)?]),
        }
    }
}

/// The calls of an answer and the text before them.
pub fn parse(text: &str) -> (String, Vec<Call>) {
    if let Some((before, calls)) = text.split_once(OPEN) {
        let mut found = Vec::new();
        for block in calls.split(OPEN) {
            let inner = block.split_once(CLOSE).map_or(block, |(inner, _)| inner);
            found.extend(Call::all(inner).unwrap_or_default());
        }
        if !found.is_empty() {
            return (before.trim_end().to_owned(), found);
        }
    }
    for (before, rest) in
        [text.split_once(LIST), text.split_once(PYTHON), Some(("", text))].into_iter().flatten()
    {
        if let Some(calls) = Call::all(rest) {
            return (before.trim_end().to_owned(), calls);
        }
    }
    (text.to_owned(), Vec::new())
}

/// Holds back what may be a call until it is certain.
#[derive(Default)]
pub struct ToolFilter {
    held: String,
    given: bool,
}

impl ToolFilter {
    /// Takes more text; gives what is certain to be none of a call.
    pub fn push(&mut self, text: &str) -> String {
        self.held.push_str(text);
        let start = self.held.trim_start();
        let may_be_all = start.is_empty() || start.starts_with(['{', '[']);
        if !self.given && may_be_all || MARKS.iter().any(|mark| self.held.starts_with(mark)) {
            return String::new();
        }
        let begins = |at: &usize| {
            MARKS.iter().any(|mark| {
                let rest = &self.held[*at..];
                rest.starts_with(mark) || mark.starts_with(rest)
            })
        };
        let keep = self.held.char_indices().map(|(at, _)| at).find(begins).unwrap_or(self.held.len());
        self.given |= keep > 0;
        self.held.drain(..keep).collect()
    }

    /// The rest of the text, and the calls in it.
    pub fn finish(&mut self) -> (String, Vec<Call>) {
        parse(&std::mem::take(&mut self.held))
    }
}

/// Which tools an answer must call.
pub enum Choice {
    /// Any or none.
    Auto,
    /// None.
    None,
    /// One of these, by an answer of this schema.
    Required(Value),
}

/// Reads `tool_choice`.
///
/// # Errors
/// Where it names no tool of the request.
pub fn choice(tools: Option<&Value>, choice: Option<&Value>) -> Result<Choice> {
    let wrong = |what: String| Error::field("tool_choice", what);
    let tools = tools.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let schema = |tool: &Value| {
        let function = tool.get("function").unwrap_or(tool);
        let parameters = function.get("parameters").filter(|p| p.is_object()).cloned();
        let parameters = parameters.unwrap_or_else(|| json!({"type": "object"}));
        let mut properties = Map::new();
        properties.insert("name".into(), json!({"const": function["name"]}));
        properties.insert("arguments".into(), parameters);
        json!({
            "type": "object", "properties": properties, "required": ["name", "arguments"],
            "additionalProperties": false,
        })
    };
    let named = |name: &str| tools.iter().find(|tool| tool.get("function").unwrap_or(tool)["name"] == name);
    match choice {
        None | Some(Value::Null) => Ok(Choice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Ok(Choice::Auto),
            "none" => Ok(Choice::None),
            "required" if tools.is_empty() => Err(wrong("is \"required\", and there are no tools".into())),
            "required" => {
                Ok(Choice::Required(json!({"anyOf": tools.iter().map(schema).collect::<Vec<_>>()})))
            }
            other => Err(wrong(format!("{other:?} is not \"auto\", \"none\" or \"required\""))),
        },
        Some(value) => {
            let name = value["function"]["name"].as_str().or_else(|| value["name"].as_str());
            let name = name.ok_or_else(|| wrong("names no function".into()))?;
            let tool = named(name).ok_or_else(|| wrong(format!("there is no tool {name:?}")))?;
            Ok(Choice::Required(schema(tool)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str, arguments: &str) -> Call {
        Call { name: name.into(), arguments: arguments.into() }
    }

    #[test]
    fn calls_of_every_family_are_found() {
        let one = vec![call("f", r#"{"x":1}"#)];
        for text in [
            r#"<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>"#,
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>",
            r#"<tool_call>[{"name": "f", "arguments": {"x": 1}}]"#,
            r#"[TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}]"#,
            r#"<|python_tag|>{"name": "f", "parameters": {"x": 1}}"#,
            r#" {"type": "function", "name": "f", "parameters": {"x": 1}} "#,
            r#"{"function": {"name": "f", "arguments": "{\"x\":1}"}}"#,
        ] {
            assert_eq!(parse(text), (String::new(), one.clone()), "{text}");
        }
        let two = "Let me see.\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n<tool_call>{\"name\": \"g\"}</tool_call>";
        assert_eq!(parse(two), ("Let me see.".into(), vec![call("f", "{}"), call("g", "{}")]));
        for text in ["no call", r#"{"x": 1}"#, "<tool_call>broken", "[1, 2]", "[]"] {
            assert_eq!(parse(text), (text.to_owned(), vec![]), "{text}");
        }
    }

    #[test]
    fn text_goes_on_while_calls_are_held() {
        let run = |pieces: &[&str]| {
            let mut filter = ToolFilter::default();
            let shown: Vec<String> = pieces.iter().map(|piece| filter.push(piece)).collect();
            (shown.concat(), filter.finish())
        };
        let (shown, rest) = run(&["Hel", "lo <to", "ol_call>{\"name\"", ": \"f\"}</tool_call>"]);
        assert_eq!((shown.as_str(), rest), ("Hello ", (String::new(), vec![call("f", "{}")])));
        let (shown, rest) = run(&["a < b", " and <b>"]);
        assert_eq!((shown + &rest.0, rest.1), ("a < b and <b>".into(), vec![]));
        let (shown, rest) = run(&["{\"name\": ", "\"f\"}"]);
        assert_eq!((shown.as_str(), rest), ("", (String::new(), vec![call("f", "{}")])));
        let (shown, rest) = run(&["{not", " json}"]);
        assert_eq!((shown.as_str(), rest), ("", ("{not json}".into(), vec![])));
    }

    #[test]
    fn choices_become_schemas() {
        let tools =
            json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
        assert!(matches!(choice(Some(&tools), None), Ok(Choice::Auto)));
        assert!(matches!(choice(Some(&tools), Some(&json!("none"))), Ok(Choice::None)));
        let named = json!({"type": "function", "function": {"name": "f"}});
        let Ok(Choice::Required(schema)) = choice(Some(&tools), Some(&named)) else { panic!() };
        assert_eq!(schema["properties"]["name"], json!({"const": "f"}));
        assert!(choice(Some(&tools), Some(&json!({"function": {"name": "g"}}))).is_err());
        assert!(choice(None, Some(&json!("required"))).is_err());
    }
}
