//! Chat templates: messages to text, as transformers' `apply_chat_template` does it.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lowrank_files::shown_at_most;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind, State, Value, context};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use super::limits::{Stopped, bounded};
use crate::{Error, Result};

/// One turn of a conversation: `role`, `content`, and whatever else the chat template reads (`tool_calls`, `name`,
/// `reasoning_content`, ...).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Message {
    /// The fields in the order they were given in.
    pub fields: Map<String, Json>,
}

impl Message {
    /// A message of `role` that is a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let mut fields = Map::new();
        fields.insert("role".into(), Json::String(role.into()));
        fields.insert("content".into(), Json::String(content.into()));
        Self { fields }
    }

    /// `system`, `user`, `assistant`, `tool` or what else the template knows; empty where it is missing.
    pub fn role(&self) -> &str {
        self.fields.get("role").and_then(Json::as_str).unwrap_or("")
    }

    /// The parts of the message, where its content is a list.
    fn parts(&self) -> Option<&Vec<Json>> {
        self.fields.get("content").and_then(Json::as_array)
    }

    /// Makes one text of parts that are texts.
    fn join_parts(&mut self) {
        let text = |part: &Json| part.get("text").and_then(Json::as_str).map(str::to_owned);
        if let Some(text) = self.parts().and_then(|parts| parts.iter().map(text).collect::<Option<String>>())
        {
            self.fields.insert("content".into(), Json::String(text));
        }
    }

    /// The text of the message, where its content is one.
    pub fn content(&self) -> Option<&str> {
        self.fields.get("content").and_then(Json::as_str)
    }
}

/// What a chat template is given, as `apply_chat_template(messages, tools=..., **arguments)`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// The turns.
    pub messages: Vec<Message>,
    /// How many of them are the prompt: what the assistant says in these carries no loss.
    pub prompt_turns: usize,
    /// The turns of the assistant that carry no loss either, by number.
    pub untrained: Vec<usize>,
    /// Descriptions of the tools that the assistant may call (JSON schemas).
    pub tools: Option<Json>,
    /// Further variables of the template (`documents`, `enable_thinking`, ...).
    pub arguments: Map<String, Json>,
}

impl From<&[Message]> for Conversation {
    fn from(messages: &[Message]) -> Self {
        Self { messages: messages.to_vec(), ..Self::default() }
    }
}

/// A rendered conversation and the bytes of it that the assistant says, its end-of-turn tokens included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The whole text.
    pub text: String,
    /// Byte ranges of `text`, in order: what a loss on assistant turns covers.
    pub assistant: Vec<Range<usize>>,
}

/// Steps that a template may take for any conversation: a turn takes some hundred, so this serves thousands of turns.
const FUEL: u64 = 500_000;

/// Bytes of a conversation that need no further steps. Beyond, each byte is good for one step, which pays for 64 bytes of
/// what filters and operators make.
const FREE_BYTES: usize = 64 << 10;

/// Bytes of stack for each step that may be taken: a template that nests one list in another at every step ends with as
/// many levels, which are printed, compared and freed one inside the other.
const STACK_PER_STEP: usize = 512;

/// Bytes of stack to parse with: enough for [`MAX_OPERATORS`] and [`MAX_BRANCHES`], one inside the other.
const PARSING_STACK: usize = 64 << 20;

/// How long a template may take, whatever it does.
const TIME: Duration = Duration::from_secs(20);

/// Bytes of a rendered conversation: far more than any model's context.
const LONGEST: usize = 32 << 20;

/// Bytes of a template: the longest known have 30 thousand.
const LONGEST_SOURCE: usize = 256 << 10;

/// Operators in one tag: each may nest in the one before.
const MAX_OPERATORS: usize = 4000;

/// `elif` tags in a template: each is parsed inside the one before.
const MAX_BRANCHES: usize = 1000;

/// Digits of a width in `'{:10}'.format(..)`.
const MAX_WIDTH_DIGITS: usize = 4;

/// Marks around `{% generation %}` blocks: noncharacters, which no text contains.
const BEGIN: char = '\u{FDD0}';
const END: char = '\u{FDD1}';

/// A model's chat template (Jinja) with the special tokens it may name.
///
/// Templates come with model files, so what they do is bounded: steps, time, nesting and the length of what they write.
pub struct ChatTemplate {
    shared: Arc<Shared>,
}

struct Shared {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
    marks_generation: bool,
    /// The file it came from, for messages.
    path: Option<PathBuf>,
    /// Whether it reads lists of parts, asked once.
    takes_parts: OnceLock<bool>,
    /// A rendering took too long and may still go on: no other is started.
    stuck: AtomicBool,
}

impl ChatTemplate {
    /// Parses a template; `bos` and `eos` are the texts of those tokens, empty where there are none.
    ///
    /// # Errors
    /// Where the template does not parse; the message gives the line. Where it is too long or nests too deep.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        check_size(source).map_err(|what| Error::Template(format!("chat template: {what}")))?;
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(failed)?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(python_method);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        // Jinja has no `generation` tag, and neither has Python's; transformers adds it. A filter block
        // handles white space in just the same way.
        let text = rename_generation(source);
        environment.add_filter("__generation", |body: String| format!("{BEGIN}{body}{END}"));
        let marks_generation = text != source;
        let environment = bounded(PARSING_STACK, TIME, move || {
            environment.add_template_owned("chat", text).map_err(failed)?;
            Ok::<_, Error>(environment)
        });
        let environment = environment.map_err(|what| Error::Template(format!("chat template: {what}")))??;
        Ok(Self {
            shared: Arc::new(Shared {
                environment,
                source: source.to_owned(),
                bos: bos.into(),
                eos: eos.into(),
                marks_generation,
                path: None,
                takes_parts: OnceLock::new(),
                stuck: AtomicBool::new(false),
            }),
        })
    }

    /// The same, with the file that it came from named in messages.
    pub fn of_file(mut self, path: &Path) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.path = Some(path.to_owned());
        }
        self
    }

    /// Another template with the same special tokens.
    pub(crate) fn with_source(&self, source: &str) -> Result<Self> {
        Self::new(source, &self.shared.bos, &self.shared.eos)
    }

    /// The template's text as the model's files have it.
    pub fn source(&self) -> &str {
        &self.shared.source
    }

    /// What ends a turn of the assistant, if that is not the end token: `<|im_end|>` and the like.
    pub fn turn_end(&self) -> Option<String> {
        const ANSWER: &str = "lowrank";
        let talk = ["user", "assistant"].map(|role| Message::new(role, ANSWER));
        let text = self.render(&talk, false).ok()?;
        let mut after = &text[text.rfind(ANSWER)? + ANSWER.len()..];
        if !self.shared.eos.is_empty() {
            after = after.split(self.shared.eos.as_str()).next()?;
        }
        after.trim().lines().next().map(str::to_owned).filter(|end| !end.is_empty())
    }

    /// The conversation as text; `add_generation_prompt` also opens the assistant's next turn.
    ///
    /// # Errors
    /// Where the template fails or refuses the messages (its `raise_exception`).
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_conversation(&messages.into(), add_generation_prompt)
    }

    /// The same with tools and further variables.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_conversation(&self, talk: &Conversation, add_generation_prompt: bool) -> Result<String> {
        self.bounded(talk, move |shared, talk| {
            Ok(unmark(&shared.run(talk, &talk.messages, add_generation_prompt)?).text)
        })
    }

    /// The conversation as text, and where in it the assistant speaks.
    ///
    /// With `{% generation %}` in the template its blocks are the assistant's. Otherwise a turn is
    /// what rendering up to and with it has more than rendering up to it with the generation prompt.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`], and where the template rewrites earlier turns so that the
    /// assistant's cannot be found.
    pub fn render_with_spans(&self, talk: &Conversation) -> Result<Rendered> {
        self.bounded(talk, |shared, talk| shared.render_with_spans(talk))
    }

    /// Runs `work` within the limits.
    fn bounded<T: Send + 'static>(
        &self,
        talk: &Conversation,
        work: impl FnOnce(&Shared, &Conversation) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let named = |what: String| match &self.shared.path {
            Some(path) => Error::Template(format!("{}: {what}", path.display())),
            None => Error::Template(what),
        };
        if self.shared.stuck.load(Ordering::Relaxed) {
            return Err(named("chat template: an earlier rendering took too long".into()));
        }
        let (shared, mut talk) = (self.shared.clone(), talk.clone());
        let stack = (talk.fuel() as usize).saturating_mul(STACK_PER_STEP);
        let run = move || {
            // A template that knows texts alone gets the parts as one.
            if talk.messages.iter().any(|message| message.parts().is_some()) && !shared.takes_parts() {
                talk.messages.iter_mut().for_each(Message::join_parts);
            }
            work(&shared, &talk)
        };
        match bounded(stack, TIME, run) {
            Ok(Err(Error::Template(what))) => Err(named(what)),
            Ok(result) => result,
            Err(stopped) => {
                self.shared.stuck.fetch_or(matches!(stopped, Stopped::TimedOut(_)), Ordering::Relaxed);
                Err(named(format!("chat template: {stopped}")))
            }
        }
    }
}

impl Conversation {
    /// Steps that a template may take for it.
    fn fuel(&self) -> u64 {
        fn bytes(value: &Json) -> usize {
            match value {
                Json::String(text) => text.len(),
                Json::Array(items) => items.iter().map(|item| 8 + bytes(item)).sum(),
                Json::Object(map) => fields(map),
                _ => 8,
            }
        }
        fn fields(map: &Map<String, Json>) -> usize {
            map.iter().map(|(key, value)| 8 + key.len() + bytes(value)).sum()
        }
        let messages = self.messages.iter().map(|message| fields(&message.fields)).sum::<usize>();
        let all = messages + self.tools.as_ref().map_or(0, bytes) + fields(&self.arguments);
        FUEL + all.saturating_sub(FREE_BYTES) as u64
    }
}

impl Shared {
    /// Whether the template reads `content` that is a list of parts: it then writes their texts, and no list.
    fn takes_parts(&self) -> bool {
        *self.takes_parts.get_or_init(|| {
            const TEXT: &str = "lowrank";
            let mut message = Message::new("user", TEXT);
            message.fields.insert("content".into(), json!([{ "type": "text", "text": TEXT }]));
            let rendered = self.run(&Conversation::default(), &[message], false);
            let is_list = |text: &str| text.contains("'type'") || text.contains("\"type\"");
            rendered.is_ok_and(|text| text.contains(TEXT) && !is_list(&text))
        })
    }

    fn render_with_spans(&self, talk: &Conversation) -> Result<Rendered> {
        let messages = &talk.messages;
        let render = |messages, prompt| Ok::<_, Error>(unmark(&self.run(talk, messages, prompt)?).text);
        let rendered = unmark(&self.run(talk, messages, false)?);
        if self.marks_generation {
            return without_untrained(self.without_prompt(rendered, talk)?, talk);
        }
        let text = rendered.text;
        let mut assistant = Vec::new();
        for (at, message) in messages.iter().enumerate().skip(talk.prompt_turns) {
            if message.role() != "assistant" || talk.untrained.contains(&at) {
                continue;
            }
            let lost = || {
                Error::Template(format!(
                    "chat template: cannot tell which part of the text is message {at} (assistant): the template changes \
                 earlier turns when later ones follow; add {{% generation %}} blocks to it, or train on \
                 one assistant turn per example"
                ))
            };
            let before: String = render(&messages[..at], true)?;
            let with: String = render(&messages[..=at], false)?;
            if !text.starts_with(&before) {
                return Err(lost());
            }
            let start = before.len();
            // Some templates end the whole conversation, not a turn, with the end token (Phi-3's).
            let without_eos = with.strip_suffix(self.eos.as_str()).filter(|_| !self.eos.is_empty());
            let ends = |with: &str| text.starts_with(with) && with.len() >= start;
            let end = if ends(&with) {
                with.len()
            } else if let Some(with) = without_eos.filter(|with| ends(with)) {
                with.len()
            } else {
                // The turn reads differently once others follow (reasoning is dropped, say): its end is
                // then found by its content and what the template writes after it.
                let content = message.content().ok_or_else(lost)?.trim();
                let after =
                    with.rfind(content).map(|found| &with[found + content.len()..]).ok_or_else(lost)?;
                let found = text[start..].find(&format!("{content}{after}")).ok_or_else(lost)?;
                start + found + content.len() + after.len()
            };
            assistant.push(start..end);
        }
        Ok(Rendered { text, assistant })
    }

    /// Leaves out the marks in the turns of the prompt: those that begin in it, or else one for each of its answers.
    fn without_prompt(&self, rendered: Rendered, talk: &Conversation) -> Result<Rendered> {
        let Rendered { text, mut assistant } = rendered;
        let answers = |turns: &[Message]| turns.iter().filter(|m| m.role() == "assistant").count();
        let prompt = &talk.messages[..talk.prompt_turns.min(talk.messages.len())];
        let skipped = answers(prompt);
        if skipped > 0 {
            let before = unmark(&self.run(talk, prompt, false)?).text;
            if text.starts_with(&before) {
                assistant.retain(|span| span.start >= before.len());
            } else if assistant.len() == answers(&talk.messages) {
                assistant.drain(..skipped);
            } else {
                return Err(Error::Template(
                    "chat template: cannot tell which part of the text is the prompt: the template changes earlier turns \
                     when later ones follow"
                        .into(),
                ));
            }
        }
        Ok(Rendered { text, assistant })
    }

    fn run(&self, talk: &Conversation, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let (fuel, larger);
        fuel = talk.fuel();
        let environment = match fuel {
            FUEL => &self.environment,
            _ => {
                let mut own = self.environment.clone();
                own.set_fuel(Some(fuel));
                larger = own;
                &larger
            }
        };
        let template = environment.get_template("chat").map_err(failed)?;
        let values = context! {
            messages => Value::from(Serde(messages)),
            tools => Value::from(Serde(&talk.tools)),
            add_generation_prompt => add_generation_prompt,
            bos_token => &self.bos,
            eos_token => &self.eos,
            ..Value::from(Serde(&talk.arguments))
        };
        let mut text = Limited(Vec::new());
        template.render_captured_to(values, &mut text).map_err(|error| match error.kind() {
            ErrorKind::OutOfFuel => Error::Template(format!(
                "chat template: takes more than {fuel} steps for this conversation: it loops, or makes texts too long"
            )),
            _ => failed(error),
        })?;
        String::from_utf8(text.0).map_err(|e| Error::Template(format!("chat template: {e}")))
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatTemplate({} bytes)", self.shared.source.len())
    }
}

/// What a template writes, up to [`LONGEST`].
struct Limited(Vec<u8>);

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > LONGEST {
            return Err(std::io::Error::other(format!("the text is longer than {} MB", LONGEST >> 20)));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn failed(error: minijinja::Error) -> Error {
    // The chain below the first error says what a called function objected to.
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        let _ = write!(text, ": {inner}");
        cause = inner.source();
    }
    Error::Template(format!("chat template: {}", shown_at_most(&text, LONGEST_MESSAGE)))
}

/// Characters of a template's own message, such as that of `raise_exception`.
const LONGEST_MESSAGE: usize = 500;

/// Checks what the parser does not: it and the templates' other readers recurse for each operator.
fn check_size(source: &str) -> std::result::Result<(), String> {
    if source.len() > LONGEST_SOURCE {
        return Err(format!("has {} bytes; a template may have {LONGEST_SOURCE}", source.len()));
    }
    let mut branches = 0;
    let mut rest = source;
    while let Some(open) = rest.find("{{").into_iter().chain(rest.find("{%")).min() {
        let close = if rest[open..].starts_with("{{") { "}}" } else { "%}" };
        let line = 1 + source[..source.len() - rest.len() + open].matches('\n').count();
        let (operators, first, length) = operators(&rest[open + 2..], close);
        if operators > MAX_OPERATORS {
            return Err(format!("line {line}: a tag has more than {MAX_OPERATORS} operators"));
        }
        branches += usize::from(first == "elif");
        if branches > MAX_BRANCHES {
            return Err(format!("line {line}: there are more than {MAX_BRANCHES} elif tags"));
        }
        rest = &rest[open + 2 + length..];
    }
    Ok(())
}

/// Of the tag that begins here and ends with `close`: how many operators it has, its first word, and its length.
fn operators<'a>(tag: &'a str, close: &str) -> (usize, &'a str, usize) {
    let (mut count, mut first, mut at) = (0, "", 0);
    let mut quote = None;
    while let Some(c) = tag[at..].chars().next() {
        if let Some(open) = quote {
            at += if c == '\\' {
                1 + tag[at + 1..].chars().next().map_or(0, char::len_utf8)
            } else {
                c.len_utf8()
            };
            if c == open {
                quote = None;
            }
            continue;
        }
        if tag[at..].starts_with(close) {
            return (count, first, at + close.len());
        }
        let word = tag[at..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(tag.len() - at);
        match &tag[at..at + word] {
            "" => {
                match c {
                    '"' | '\'' => quote = Some(c),
                    '-' | '+' | '*' | '/' | '%' | '~' | '<' | '>' | '=' | '!' | '|' | '.' | '[' | '('
                    | '{' => count += 1,
                    _ => {}
                }
                at += c.len_utf8();
            }
            word => {
                count +=
                    usize::from(matches!(word, "not" | "and" | "or" | "if" | "else" | "elif" | "is" | "in"));
                if first.is_empty() {
                    first = word;
                }
                at += word.len();
            }
        }
    }
    (count, first, at)
}

/// A method of Python's strings, lists and dictionaries. Widths, which would be padded before anything is counted, are
/// checked first.
fn python_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, minijinja::Error> {
    if let ("format", Some(format)) = (method, value.as_str()) {
        for field in format.split('{').skip(1) {
            let width =
                field.split('}').next().unwrap_or_default().split_once(':').map_or("", |(_, width)| width);
            if width.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > MAX_WIDTH_DIGITS) {
                let what = format!("format: a width may have {MAX_WIDTH_DIGITS} digits");
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, what));
            }
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(format)).map_err(|_| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: bad format {format:?}"))
    })?;
    Ok(text)
}

/// `json.dumps(value, ensure_ascii=False)` as transformers' filter: `", "` and `": "` between parts, or
/// lines with an indent; nothing escaped for HTML.
fn tojson(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        options.get::<Option<Value>>(ignored)?;
    }
    options.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = vec![b' '; width.min(16)];
            let formatter = serde_json::ser::PrettyFormatter::with_indent(&indent);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonJson)),
    };
    written.map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    String::from_utf8(out).map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))
}

/// Python's default separators.
struct PythonJson;

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

/// `{% generation %}` as a filter block, whatever dashes and spaces stand in the tag.
fn rename_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%")
        && let Some(length) = rest[open + 2..].find("%}")
    {
        let inside = &rest[open + 2..][..length];
        let word = inside.trim_matches(['-', '+']).trim();
        let renamed = match word {
            "generation" => inside.replacen(word, "filter __generation", 1),
            "endgeneration" => inside.replacen(word, "endfilter", 1),
            _ => inside.to_owned(),
        };
        let _ = write!(out, "{}{{%{renamed}%}}", &rest[..open]);
        rest = &rest[open + 2 + length + 2..];
    }
    out + rest
}

/// Takes the marks out of a rendered text and says where they were.
fn unmark(marked: &str) -> Rendered {
    let mut text = String::with_capacity(marked.len());
    let mut assistant = Vec::new();
    let mut start = 0;
    for c in marked.chars() {
        match c {
            BEGIN => start = text.len(),
            END => assistant.push(start..text.len()),
            c => text.push(c),
        }
    }
    Rendered { text, assistant }
}

/// Leaves out the marks of turns that are not trained: there is one for each answer then.
fn without_untrained(rendered: Rendered, talk: &Conversation) -> Result<Rendered> {
    if talk.untrained.is_empty() {
        return Ok(rendered);
    }
    let answers = |(_, message): &(usize, &Message)| message.role() == "assistant";
    let answers: Vec<usize> =
        talk.messages.iter().enumerate().skip(talk.prompt_turns).filter(answers).map(|(at, _)| at).collect();
    let Rendered { text, assistant } = rendered;
    if assistant.len() != answers.len() {
        let (marks, turns) = (assistant.len(), answers.len());
        return Err(Error::Template(format!(
            "chat template: marks {marks} parts for {turns} turns of the assistant, so it is not known which are not to be \
             trained"
        )));
    }
    let trained = |(_, at): &(Range<usize>, usize)| !talk.untrained.contains(at);
    Ok(Rendered {
        text,
        assistant: assistant.into_iter().zip(answers).filter(trained).map(|(span, _)| span).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOLLM: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}\
        {% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
        {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    fn talk() -> Vec<Message> {
        vec![
            Message::new("user", "Hi"),
            Message::new("assistant", "Hello."),
            Message::new("user", "2+2?"),
            Message::new("assistant", "4"),
        ]
    }

    fn spoken(rendered: &Rendered) -> Vec<&str> {
        rendered.assistant.iter().map(|r| &rendered.text[r.clone()]).collect()
    }

    #[test]
    fn assistant_turns_are_found_by_rendering_prefixes() {
        let template = ChatTemplate::new(SMOLLM, "", "<|im_end|>").unwrap();
        let rendered = template.render_with_spans(&talk()[..].into()).unwrap();
        assert!(rendered.text.starts_with("<|im_start|>system\nYou are"));
        assert_eq!(spoken(&rendered), ["Hello.<|im_end|>\n", "4<|im_end|>\n"]);
        let prompt = template.render(&talk()[..1], true).unwrap();
        assert!(prompt.ends_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"), "{prompt}");
    }

    #[test]
    fn generation_blocks_are_the_assistants() {
        let source = "{%- for m in messages %}\n    {%- if m.role == 'assistant' %}\n[{%- generation -%} {{ m.content }}</s>\n\
            {%- endgeneration -%}]{% else %}<{{ m.content }}>{% endif %}{%- endfor %}";
        let template = ChatTemplate::new(source, "", "").unwrap();
        let rendered = template.render_with_spans(&talk()[..].into()).unwrap();
        assert_eq!(rendered.text, "<Hi>[Hello.</s>]<2+2?>[4</s>]");
        assert_eq!(spoken(&rendered), ["Hello.</s>", "4</s>"]);
        assert_eq!(template.source(), source);
    }

    #[test]
    fn turns_of_the_prompt_are_left_out() {
        let of = |source: &str| {
            let template = ChatTemplate::new(source, "", "<|im_end|>").unwrap();
            let talk = Conversation { prompt_turns: 3, ..Conversation::from(&talk()[..]) };
            let rendered = template.render_with_spans(&talk).unwrap();
            spoken(&rendered).join("|")
        };
        assert_eq!(of(SMOLLM), "4<|im_end|>\n");
        let marked = "{% for m in messages %}{% if m.role == 'assistant' %}[{% generation %}{{ m.content }}\
            {% endgeneration %}]{% else %}<{{ m.content }}>{% endif %}{% endfor %}";
        assert_eq!(of(marked), "4");
        // The end of the whole is no part of a turn: the prompt does not begin the text.
        assert_eq!(of(&format!("{marked}!{{{{ messages | length }}}}")), "4");
    }

    #[test]
    fn turns_may_be_left_out() {
        let marked = "{% for m in messages %}{% if m.role == 'assistant' %}[{% generation %}{{ m.content }}\
            {% endgeneration %}]{% else %}<{{ m.content }}>{% endif %}{% endfor %}";
        for (source, want) in [(SMOLLM, "4<|im_end|>\n"), (marked, "4")] {
            let template = ChatTemplate::new(source, "", "<|im_end|>").unwrap();
            let of = |untrained: Vec<usize>| {
                let talk = Conversation { untrained, ..Conversation::from(&talk()[..]) };
                spoken(&template.render_with_spans(&talk).unwrap()).join("|")
            };
            assert_eq!(of(vec![1]), want);
            assert_eq!(of(vec![1, 3]), "");
        }
        let once =
            ChatTemplate::new("{% generation %}{{ messages | length }}{% endgeneration %}", "", "").unwrap();
        let talk = Conversation { untrained: vec![1], ..Conversation::from(&talk()[..]) };
        let error = once.render_with_spans(&talk).unwrap_err().to_string();
        assert!(error.contains("1 parts for 2 turns"), "{error}");
    }

    #[test]
    fn parts_are_a_text_for_a_template_that_knows_no_lists() {
        let parts = json!([{ "type": "text", "text": "2+" }, { "type": "text", "text": "2?" }]);
        let mut talk = talk();
        talk[2].fields.insert("content".into(), parts);
        let rendered = |source: &str| {
            let rendered = ChatTemplate::new(source, "", "</s>").unwrap().render_with_spans(&talk[..].into());
            let rendered = rendered.unwrap();
            (rendered.text.clone(), spoken(&rendered).join("|"))
        };
        let plain = "{% for m in messages %}<{{ m.content }}>{% endfor %}";
        assert_eq!(rendered(plain).0, "<Hi><Hello.><2+2?><4>");
        let strict = "{% for m in messages %}{{ '<' + m.content + '>' }}{% endfor %}";
        assert_eq!(rendered(strict), ("<Hi><Hello.><2+2?><4>".into(), "<Hello.>|<4>".into()));
        let lists = "{% for m in messages %}<{% if m.content is string %}{{ m.content }}{% else %}\
            {% for part in m.content %}{{ part.text }}/{% endfor %}{% endif %}>{% endfor %}";
        assert_eq!(rendered(lists).0, "<Hi><Hello.><2+/2?/><4>");
    }

    /// Qwen3's template drops the reasoning of earlier turns: their text is not a prefix of the whole.
    #[test]
    fn turns_that_change_when_others_follow_are_found_by_their_content() {
        let source = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and loop.last %}(thought)\
            {% endif %}{{ m.content }};{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let template = ChatTemplate::new(source, "", "").unwrap();
        let rendered = template.render_with_spans(&talk()[..].into()).unwrap();
        assert_eq!(rendered.text, "<user>Hi;<assistant>Hello.;<user>2+2?;<assistant>(thought)4;");
        assert_eq!(spoken(&rendered), ["Hello.;", "(thought)4;"]);
    }

    #[test]
    fn a_template_that_hides_the_turns_is_refused() {
        let source = "{{ messages | length }}";
        let error =
            ChatTemplate::new(source, "", "").unwrap().render_with_spans(&talk()[..].into()).unwrap_err();
        assert!(error.to_string().contains("message 1 (assistant)"), "{error}");
    }

    /// Expected texts: what jinja2 with transformers' filters gives.
    #[test]
    fn templates_have_pythons_methods_and_transformers_functions() {
        let render = |source: &str| {
            let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
            template.render(&[Message::new("user", " a < b \n")], false)
        };
        assert_eq!(
            render("{{ bos_token }}{{ messages[0].content.strip() }}{{ eos_token }}").unwrap(),
            "<s>a < b</s>"
        );
        assert_eq!(
            render("{{ messages | tojson }}").unwrap(),
            r#"[{"role": "user", "content": " a < b \n"}]"#
        );
        assert_eq!(
            render("{{ messages | tojson(indent=2) }}").unwrap(),
            "[\n  {\n    \"role\": \"user\",\n    \"content\": \" a < b \\n\"\n  }\n]"
        );
        assert_eq!(render("{{ 'a,b'.split(',')[-1] }}{{ messages[0].get('x', 'y') }}").unwrap(), "by");
        assert_eq!(
            render("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}")
                .unwrap(),
            "1"
        );
        assert_eq!(render("{{ strftime_now('%Y') | length }}").unwrap(), "4");
        let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err().to_string();
        assert!(error.contains("roles must alternate"), "{error}");
        let error = render("{{ strftime_now('%!') }}").unwrap_err().to_string();
        assert!(error.contains("bad format"), "{error}");
        assert!(ChatTemplate::new("{% if %}", "", "").is_err());
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        let nested = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        let error = ChatTemplate::new(nested, "", "").unwrap().render(&[], false).unwrap_err();
        assert!(error.to_string().contains("takes more than 500000 steps"), "{error}");
        let endless = "{{ 'a' * 90000000 }}";
        let error = ChatTemplate::new(endless, "", "").unwrap().render(&[], false).unwrap_err();
        assert!(error.to_string().contains("takes more than 500000 steps"), "{error}");
    }
}
