//! `generate --chat` with several adapters: who answers, on which conversation.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Ran, lowrank, lowrank_ok, ran, tiny_data, tiny_model};
use lowrank::models::{Message, Sampling};
use lowrank::{Limits, Session, TextGenerator};

struct Place {
    dir: tempfile::TempDir,
    model: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(dir.path());
        tiny_data(&dir.path().join("train.jsonl"), 24);
        let place = Self { dir, model };
        for (name, seed) in [("one", "1"), ("two", "2")] {
            let (data, out) = (place.path("train.jsonl"), place.path(name));
            let run = ["train", "--model", &place.model, "--data", &data, "--out", &out, "--seed", seed];
            lowrank_ok(
                &[&run[..], &["--max-steps", "6", "--learning-rate", "0.05", "--threads", "1"]].concat(),
            );
        }
        place
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// A chat of these lines.
    fn chat(&self, more: &[&str], lines: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lowrank"));
        command
            .args(["generate", "--model", &self.model, "--chat", "--max-new-tokens", "6", "--threads", "1"])
            .args(more);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(format!("{}\n", lines.join("\n")).as_bytes()).unwrap();
        ran(child.wait_with_output().unwrap())
    }

    /// The answer to `messages` of an adapter, computed at once.
    fn answer(&self, session: &Session, adapter: Option<&str>, messages: &[Message]) -> String {
        let set = session.adapter(adapter.map(|name| self.path(name)).as_deref().map(Path::new)).unwrap();
        let device = session.device();
        let limits = Limits { max_new_tokens: 6, ..Limits::default() };
        let tokens = session.chat_prompt(&messages.into()).unwrap();
        let mut generator = TextGenerator::new(session, &device, &set).unwrap();
        generator.generate(&tokens, &Sampling::default(), &limits, |_| {}).unwrap().text
    }
}

/// Each answer is that of the adapter chosen then, to the whole conversation, as if all of it were computed at once.
#[test]
fn adapters_are_switched_within_a_conversation() {
    let place = Place::new();
    let session = Session::open(&place.model).unwrap();
    let (one, two) = (format!("first={}", place.path("one")), place.path("two"));
    let switch = format!("/adapter {two}");
    let said = ["red", "/adapter none", "blue", &switch, "green", "/adapter first", "gold", "/reset", "grey"];
    let ran = place.chat(&["--adapter", &one], &said);
    assert_eq!(ran.code, 0, "{}", ran.err);

    let (mut messages, mut answers) = (Vec::new(), String::new());
    for (text, adapter) in
        [("red", Some("one")), ("blue", None), ("green", Some("two")), ("gold", Some("one"))]
    {
        messages.push(Message::new("user", text));
        let answer = place.answer(&session, adapter, &messages);
        answers += &format!("{answer}\n");
        messages.push(Message::new("assistant", answer));
    }
    answers += &format!("{}\n", place.answer(&session, Some("one"), &[Message::new("user", "grey")]));
    assert_eq!(ran.out, answers);
    let distinct: std::collections::BTreeSet<String> =
        [None, Some("one"), Some("two")].map(|a| place.answer(&session, a, &messages[..1])).into();
    assert_eq!(distinct.len(), 3, "the adapters answer differently");
    for part in ["(now with the base model)", "(now with the adapter two)", "(now with the adapter first)"] {
        assert!(ran.err.contains(part), "{}", ran.err);
    }
}

#[test]
fn adapters_without_names_answer_together() {
    let place = Place::new();
    let (one, two) = (place.path("one"), format!("{}:0.5", place.path("two")));
    let mixed = place.chat(
        &["--adapter", &one, "--adapter", &two],
        &["red", "/adapter", "/adapter none", "/adapter one+two"],
    );
    assert_eq!(mixed.code, 0, "{}", mixed.err);
    assert!(mixed.err.contains("(with the adapter one+two; /adapter takes none, one+two)"), "{}", mixed.err);
    let alone = place.chat(&["--adapter", &one], &["red"]);
    assert_ne!(mixed.out, alone.out);
    assert_eq!(
        place.chat(&[], &["red"]).out,
        place.chat(&["--adapter", &one], &["/adapter none", "red"]).out
    );
}

#[test]
fn commands_that_fail_leave_the_chat_as_it_is() {
    let place = Place::new();
    let one = format!("first={}", place.path("one"));
    let lines = ["/adapter frist", "/help", "/adapter none=x", "red", "/adapter first", "/exit", "blue"];
    let ran = place.chat(&["--adapter", &one], &lines);
    assert_eq!(ran.code, 0, "{}", ran.err);
    for part in
        ["no adapter is called frist", "did you mean first?", "/adapter NAME", "choose another", "/reset"]
    {
        assert!(ran.err.contains(part), "{part}: {}", ran.err);
    }
    assert_eq!(ran.out, place.chat(&["--adapter", &one], &["red"]).out, "what follows /exit is not answered");
    // What is no command is a message.
    assert_ne!(place.chat(&[], &["/red"]).out, "");

    let generate = ["generate", "--model", &place.model, "--prompt", "red", "--adapter", &one];
    let ran = lowrank(&generate);
    assert!(ran.code == 2 && ran.err.contains("names are for a chat"), "{}", ran.err);
    let ran = place.chat(&["--adapter", &one, "--adapter", &one], &["red"]);
    assert!(ran.code == 2 && ran.err.contains("the name first is given twice"), "{}", ran.err);
}

#[test]
fn an_adapter_with_another_chat_template_is_not_mixed_in() {
    let place = Place::new();
    let two = place.path("two");
    std::fs::write(Path::new(&two).join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    let ran = place.chat(&[], &["red", &format!("/adapter {two}"), "blue"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("has another chat template than this chat"), "{}", ran.err);
    let alone = place.chat(&["--adapter", &two], &["red", "/adapter", &format!("/adapter again={two}")]);
    assert!(alone.err.contains("(now with the adapter again)"), "{}", alone.err);
}

#[test]
fn answers_that_are_cut_say_so() {
    let place = Place::new();
    let session = Session::open(&place.model).unwrap();
    let (device, set) = (session.device(), session.adapter(None).unwrap());
    let mut generator = TextGenerator::new(&session, &device, &set).unwrap();
    let tokens = session.prompt("red").unwrap();
    let mut made = |max_new_tokens, stop: Vec<String>| {
        generator.generate(&tokens, &Sampling::default(), &Limits { max_new_tokens, stop }, |_| {}).unwrap()
    };
    let whole = made(4, Vec::new());
    assert!(whole.cut && whole.tokens.len() == 4);
    // A stop string that comes with the last token ends the answer by itself.
    let last = whole.text.chars().next_back().unwrap().to_string();
    let stopped = made(4, vec![last]);
    assert!(!stopped.cut && stopped.tokens.len() <= 4, "{stopped:?}");
    let ran = place.chat(&[], &["red"]);
    let talk = session.chat_prompt(&[Message::new("user", "red")][..].into()).unwrap();
    let limits = Limits { max_new_tokens: 6, ..Limits::default() };
    let cut = generator.generate(&talk, &Sampling::default(), &limits, |_| {}).unwrap().cut;
    assert_eq!(ran.err.contains("(cut at 6 tokens: --max-new-tokens takes more)"), cut, "{}", ran.err);
}
