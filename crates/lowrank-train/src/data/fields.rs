//! A row of a data file, whatever its format, and what its fields are for.

use std::io::{BufRead, Read};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use lowrank_models::{Conversation, Message};

use super::contract::DataOptions;
use super::turns::{self, CONVERSATIONS, kind};
use crate::Error;

/// How to say which columns are what.
pub(super) const NAME_COLUMNS: &str =
    "name the columns with `prompt_column` and `completion_column`, or with `text_column`";

/// One row as it was read, not yet looked into: that happens in parallel.
pub(super) struct Row {
    /// Line of its first byte, from 1.
    pub line: u64,
    pub raw: Raw,
}

pub(super) enum Raw {
    Json(Vec<u8>),
    Table(Arc<[String]>, csv::ByteRecord),
    /// Already known to be bad.
    Bad(String),
}

impl Row {
    pub fn len(&self) -> usize {
        match &self.raw {
            Raw::Json(bytes) => bytes.len(),
            Raw::Table(_, record) => record.as_slice().len(),
            Raw::Bad(_) => 0,
        }
    }
}

/// What the fields of a row are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Roles<'a> {
    Pair {
        prompt: &'a str,
        completion: &'a str,
    },
    /// The key of the turns.
    Messages(&'a str),
    Text(&'a str),
    /// `instruction`, `input`, `output`.
    Alpaca,
}

impl<'a> Roles<'a> {
    /// What the options name, or else what `has` finds. `messages`: whether a conversation can be.
    pub fn find(
        options: &'a DataOptions,
        messages: bool,
        has: impl Fn(&str) -> bool,
    ) -> Result<Self, String> {
        if let Some(text) = &options.text_column {
            return Ok(Self::Text(text));
        }
        let pair = Self::Pair {
            prompt: options.prompt_column.as_deref().unwrap_or("prompt"),
            completion: options.completion_column.as_deref().unwrap_or("completion"),
        };
        if options.prompt_column.is_some()
            || options.completion_column.is_some()
            || options.prompt_template.is_some()
        {
            return Ok(pair);
        }
        let alpaca = has("instruction") && has("output");
        let talk = CONVERSATIONS.iter().find(|name| messages && has(name));
        // Many sets repeat a row's prompt, or all of it as a text, beside its other columns.
        let prompt = has("completion") || (has("prompt") && !alpaca && talk.is_none());
        match (prompt, talk, alpaca, has("text") && !alpaca) {
            (true, None, false, false) => Ok(pair),
            (false, Some(name), false, false) => Ok(Self::Messages(name)),
            (false, None, true, false) => Ok(Self::Alpaca),
            (false, None, false, true) => Ok(Self::Text("text")),
            (false, None, false, false) => {
                let chat = if messages { ", \"messages\", \"conversations\"" } else { "" };
                Err(format!(
                    "found neither \"prompt\" and \"completion\"{chat}, \"instruction\" and \"output\" nor \"text\""
                ))
            }
            _ => Err(
                "found more than one of \"prompt\"/\"completion\", \"messages\", \"instruction\"/\"output\" \
                      and \"text\""
                    .into(),
            ),
        }
    }

    /// What such a row is called, and the options that name its columns.
    pub fn describe(&self) -> String {
        match self {
            Self::Pair { prompt, completion } => {
                format!(
                    "prompt {prompt:?} (`prompt_column`) and completion {completion:?} (`completion_column`)"
                )
            }
            Self::Messages(name) => format!("conversation {name:?}"),
            Self::Text(name) => format!("text {name:?} (`text_column`)"),
            Self::Alpaca => {
                "Alpaca's instruction, input and output (`prompt_column` and `completion_column` name \
                             others)"
                    .into()
            }
        }
    }
}

/// A row whose fields can be looked up.
pub(super) enum Fields<'a> {
    Json(Map<String, Value>),
    Table(&'a [String], Vec<&'a str>),
}

impl<'a> Fields<'a> {
    pub fn of(raw: &'a Raw) -> Result<Self, String> {
        match raw {
            Raw::Bad(reason) => Err(reason.clone()),
            Raw::Json(bytes) => parse_object(bytes).map(Self::Json),
            Raw::Table(names, record) => {
                let values = record.iter().zip(names.iter()).map(|(value, name)| {
                    std::str::from_utf8(value).map_err(|e| format!("column {name:?}: {}", not_utf8(&e)))
                });
                Ok(Self::Table(names, values.collect::<Result<_, _>>()?))
            }
        }
    }

    pub fn roles<'o>(&self, options: &'o DataOptions) -> Result<Roles<'o>, String> {
        match self {
            Self::Json(map) => Roles::find(options, true, |name| map.contains_key(name))
                .map_err(|reason| format!("{reason}; {}: {NAME_COLUMNS}", self.keys())),
            Self::Table(names, _) => Roles::find(options, false, |name| names.iter().any(|n| n == name)),
        }
    }

    /// The text in a field.
    pub fn text(&self, name: &str) -> Result<&str, String> {
        match self {
            Self::Json(map) => match map.get(name) {
                Some(Value::String(text)) => Ok(text),
                Some(other) => Err(format!("{name:?} is {}, expected a string", kind(other))),
                None => Err(format!("{name:?} is missing; {}", self.keys())),
            },
            Self::Table(names, values) => names
                .iter()
                .position(|n| n == name)
                .and_then(|at| values.get(at).copied())
                .ok_or_else(|| missing_column(name, names)),
        }
    }

    /// The text in a field that may be missing, null or empty.
    pub fn optional_text(&self, name: &str) -> Result<Option<&str>, String> {
        let null = matches!(self, Self::Json(map) if map.get(name) == Some(&Value::Null));
        if null || !self.has(name) {
            return Ok(None);
        }
        Ok(Some(self.text(name)?).filter(|text| !text.trim().is_empty()))
    }

    /// The number in a field that may be missing, null or empty.
    pub fn optional_number(&self, name: &str) -> Result<Option<f64>, String> {
        let text = match self {
            Self::Json(map) => match map.get(name) {
                None | Some(Value::Null) => return Ok(None),
                Some(Value::Number(number)) => number.to_string(),
                Some(other) => return Err(format!("{name:?} is {}, expected a number", kind(other))),
            },
            Self::Table(..) => match self.optional_text(name)? {
                None => return Ok(None),
                Some(text) => text.trim().to_owned(),
            },
        };
        let number = text.parse().ok().filter(|number: &f64| number.is_finite());
        number.map(Some).ok_or_else(|| format!("{name:?} is {text:?}, expected a number"))
    }

    /// Whether a field holds a list.
    pub fn is_list(&self, name: &str) -> bool {
        matches!(self, Self::Json(map) if matches!(map.get(name), Some(Value::Array(_))))
    }

    /// Whether there is such a field.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Json(map) => map.contains_key(name),
            Self::Table(names, _) => names.iter().any(|n| n == name),
        }
    }

    /// A label, or a list of them; in a cell of a table, as JSON.
    pub fn label(&self, name: &str) -> Result<RowLabel, String> {
        let list = |list: &[Value]| {
            let entry = |value: &Value| {
                Entry::of(value)
                    .ok_or_else(|| format!("{name:?} holds {}, expected names or numbers", kind(value)))
            };
            list.iter().map(entry).collect::<Result<_, _>>().map(RowLabel::List)
        };
        let text = match self {
            Self::Json(map) if !matches!(map.get(name), None | Some(Value::String(_))) => match &map[name] {
                Value::Array(values) => return list(values),
                value => label_text(value)
                    .ok_or_else(|| format!("{name:?} is {}, expected a label", kind(value)))?,
            },
            _ => self.text(name)?.trim().to_owned(),
        };
        if let (Self::Table(..), true) = (self, text.starts_with('['))
            && let Ok(values) = serde_json::from_str::<Vec<Value>>(&text)
        {
            return list(&values);
        }
        Ok(RowLabel::One(text))
    }

    /// The labels of a row that may have several: a list; in a cell of a table, also names joined by commas.
    pub fn label_list(&self, name: &str) -> Result<Vec<Entry>, String> {
        match (self.label(name)?, self) {
            (RowLabel::List(entries), _) => Ok(entries),
            (RowLabel::One(_), Self::Json(map)) => {
                Err(format!("{name:?} is {}, expected a list of labels", kind(&map[name])))
            }
            (RowLabel::One(text), _) if text.starts_with('[') => {
                Err(format!("{name:?} is {text}, which is not a JSON list of names or numbers"))
            }
            (RowLabel::One(text), _) if text.is_empty() => Ok(Vec::new()),
            (RowLabel::One(text), _) => text
                .split(',')
                .map(|part| match part.trim() {
                    "" => Err(format!("{name:?} is {text:?}, in which a name is empty")),
                    part => Ok(Entry { text: part.to_owned(), flag: flag(part) }),
                })
                .collect(),
        }
    }

    /// A list of words or tags.
    pub fn list(&self, name: &str) -> Result<Vec<String>, String> {
        let Self::Json(map) = self else {
            return Err("a table holds no lists of words: use JSONL or CoNLL's form".into());
        };
        match map.get(name) {
            Some(Value::Array(list)) => list
                .iter()
                .map(|value| {
                    label_text(value)
                        .ok_or_else(|| format!("{name:?} holds {}, expected words or numbers", kind(value)))
                })
                .collect(),
            Some(other) => Err(format!("{name:?} is {}, expected a list", kind(other))),
            None => Err(format!("{name:?} is missing; {}", self.keys())),
        }
    }

    /// The conversation under `name`: its turns, the `tools` it may use and the variables of `chat_template_kwargs`.
    pub fn conversation(&self, name: &str) -> Result<Conversation, String> {
        let Self::Json(map) = self else {
            return Err("a table holds no conversations: use JSONL".into());
        };
        let Some(list) = map.get(name) else {
            return Err(format!("{name:?} is missing; {}", self.keys()));
        };
        let mut messages = turns::messages(name, list)?;
        // Beside ShareGPT's turns.
        if name != "messages"
            && messages[0].role() != "system"
            && let Some(system) = self.optional_text("system")?
        {
            messages.insert(0, Message::new("system", system));
        }
        self.talk(messages, 0)
    }

    /// A prompt and a completion that are lists of turns.
    pub fn conversation_pair(&self, prompt: &str, completion: &str) -> Result<Conversation, String> {
        let Self::Json(map) = self else {
            return Err("a table holds no conversations: use JSONL".into());
        };
        let turns = |name: &str| match map.get(name) {
            Some(list @ Value::Array(_)) => turns::messages(name, list),
            Some(other) => {
                Err(format!("{name:?} is {}, expected a list of turns as the other is", kind(other)))
            }
            None => Err(format!("{name:?} is missing; {}", self.keys())),
        };
        let mut messages = turns(prompt)?;
        let prompt_turns = messages.len();
        messages.extend(turns(completion)?);
        self.talk(messages, prompt_turns)
    }

    /// An answer under `output` to the turns in `messages` of `input`, with the `tools` beside them: a row of OpenAI's preferences.
    pub fn openai_pair(&self, input: &str, output: &str) -> Result<Conversation, String> {
        let Self::Json(map) = self else {
            return Err("a table holds no conversations: use JSONL".into());
        };
        let given = map.get(input).and_then(Value::as_object).ok_or_else(|| {
            format!("{input:?} is missing, or no object with the \"messages\" to answer; {}", self.keys())
        })?;
        let name = format!("{input}.messages");
        let mut messages = turns::messages(&name, given.get("messages").unwrap_or(&Value::Null))?;
        let prompt_turns = messages.len();
        let answer = map.get(output).ok_or_else(|| format!("{output:?} is missing; {}", self.keys()))?;
        messages.extend(turns::messages(output, answer)?);
        Self::Json(given.clone()).talk(messages, prompt_turns)
    }

    /// The turns with the `tools` and `chat_template_kwargs` of the row.
    pub fn talk(&self, messages: Vec<Message>, prompt_turns: usize) -> Result<Conversation, String> {
        let Self::Json(map) = self else {
            return Ok(Conversation { messages, prompt_turns, ..Conversation::default() });
        };
        let tools = match map.get("tools") {
            None | Some(Value::Null) => None,
            // Columns of tables hold them as JSON in a string.
            Some(Value::String(text)) => Some(
                serde_json::from_str(text)
                    .map_err(|e| format!("\"tools\" is a string, but not JSON: {e}"))?,
            ),
            Some(tools @ Value::Array(_)) => Some(tools.clone()),
            Some(other) => return Err(format!("\"tools\" is {}, expected a list of tools", kind(other))),
        };
        if tools.as_ref().is_some_and(|tools: &Value| !tools.is_array()) {
            return Err("\"tools\" holds no list of tools".into());
        }
        let arguments = match map.get("chat_template_kwargs") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(arguments)) => arguments.clone(),
            Some(other) => {
                return Err(format!("\"chat_template_kwargs\" is {}, expected an object", kind(other)));
            }
        };
        Ok(Conversation { messages, prompt_turns, untrained: Vec::new(), tools, arguments })
    }

    /// The names of the fields, for people.
    pub fn keys(&self) -> String {
        let names: Vec<&str> = match self {
            Self::Json(map) => map.keys().map(String::as_str).collect(),
            Self::Table(names, _) => names.iter().map(String::as_str).collect(),
        };
        if names.is_empty() { "there is nothing".into() } else { format!("there is {}", list_names(&names)) }
    }
}

/// The weight of a row in the column `name`.
pub(super) fn weight(row: &Row, name: &str) -> Result<f32, String> {
    let fields = Fields::of(&row.raw)?;
    let weight = fields
        .optional_number(name)?
        .ok_or_else(|| format!("{name:?} is missing, which `weight_column` names; {}", fields.keys()))?;
    match (0.0..=1e6).contains(&weight) {
        true => Ok(weight as f32),
        false => Err(format!("{name:?} is {weight}, expected a weight from 0 to 1000000")),
    }
}

fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| not_utf8(&e))?;
    match serde_json::from_str(text.trim_end()) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(format!(
            "{} stands here, expected an object such as {{\"prompt\": …, \"completion\": …}}",
            kind(&other)
        )),
        Err(error) => {
            // Each row is parsed on its own: "line 1" would only confuse.
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            let line = match error.line() {
                0 | 1 => String::new(),
                line => format!(" of line {line} of the object"),
            };
            Err(format!("not JSON: {message} at column {}{line}", error.column()))
        }
    }
}

pub(super) fn not_utf8(error: &std::str::Utf8Error) -> String {
    format!("not UTF-8 from byte {}: save the file as UTF-8", error.valid_up_to() + 1)
}

pub(super) fn missing_column(name: &str, names: &[impl AsRef<str>]) -> String {
    if names.is_empty() {
        return format!("no column {name:?}: there is no header line");
    }
    format!("no column {name:?}: there is {}", list_names(names))
}

pub(super) fn list_names(names: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 30;
    let mut out =
        names.iter().take(SHOWN).map(|n| format!("{:?}", n.as_ref())).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        out.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    out
}

/// What a row has for its label.
pub(super) enum RowLabel {
    /// A name or a number.
    One(String),
    /// Several.
    List(Vec<Entry>),
}

/// An entry of a list of labels.
pub(super) struct Entry {
    /// A name or a number.
    pub text: String,
    /// Where it is 0 or 1, or true or false: an entry of a vector of 0 and 1, maybe.
    pub flag: Option<bool>,
}

impl Entry {
    fn of(value: &Value) -> Option<Self> {
        let text = label_text(value)?;
        let flag = match value {
            Value::Bool(yes) => Some(*yes),
            Value::Number(_) => flag(&text),
            _ => None,
        };
        Some(Self { text, flag })
    }
}

/// Whether a number is 0 or 1.
fn flag(number: &str) -> Option<bool> {
    match number {
        "0" | "0.0" => Some(false),
        "1" | "1.0" => Some(true),
        _ => None,
    }
}

/// A label in JSON: a name, a number, or true and false.
pub(super) fn label_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(yes) => Some(yes.to_string()),
        _ => None,
    }
}

/// Reads a line with its end, of at most `most` bytes: its length, 0 at the end of the file.
///
/// # Errors
/// [`std::io::ErrorKind::FileTooLarge`] for a longer line.
pub(super) fn read_line(input: &mut impl BufRead, most: usize, line: &mut Vec<u8>) -> std::io::Result<usize> {
    let read = input.by_ref().take(most as u64 + 1).read_until(b'\n', line)?;
    if read > most {
        return Err(too_long(most));
    }
    Ok(read)
}

/// The error of a row that is longer than `most` bytes.
pub(super) fn too_long(most: usize) -> std::io::Error {
    let what = format!("longer than {most} bytes: raise `max_row_bytes`");
    std::io::Error::new(std::io::ErrorKind::FileTooLarge, what)
}

/// An error of reading the row that begins at `line`.
pub(super) fn row_error(path: &Path, line: u64, error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::FileTooLarge => {
            Error::RowTooLong { path: path.into(), line, what: error.to_string() }
        }
        _ => Error::io(path)(error),
    }
}

/// The rows of a file, one after the other.
pub(super) type Rows = Box<dyn Iterator<Item = Result<Row, Error>>>;
