//! Chat templates of bases that have none: given by name or file, kept with the adapter, used without being given again,
//! and written into merged models.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Ran, lowrank, lowrank_ok, overriding, tiny_model};
use lowrank::Session;
use lowrank::models::{Base, Message};
use serde_json::Value;

struct Place {
    dir: tempfile::TempDir,
    model: String,
}

impl Place {
    /// A base without a chat template, and conversations.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(dir.path());
        let file = Path::new(&model).join("tokenizer_config.json");
        let mut words: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        words.as_object_mut().unwrap().remove("chat_template");
        fs::write(&file, words.to_string()).unwrap();
        let line = r#"{"messages":[{"role":"user","content":"red"},{"role":"assistant","content":"blue"}]}"#;
        fs::write(dir.path().join("chat.jsonl"), format!("{line}\n").repeat(8)).unwrap();
        Self { dir, model }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn train(&self, out: &str, more: &[&str]) -> Ran {
        let (data, out) = (self.path("chat.jsonl"), self.path(out));
        let args = ["train", "--model", &self.model, "--data", &data, "--out", &out, "--max-steps", "2"];
        lowrank(&overriding(&args, more))
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn opened(session: &Session) -> String {
    let talk = [Message::new("user", "hi")];
    session.base.chat().unwrap().render(&talk, true).unwrap()
}

#[test]
fn a_template_is_given_kept_and_used() {
    let place = Place::new();
    let (model, data) = (&place.model[..], place.path("chat.jsonl"));
    let ran = place.train("a", &[]);
    assert!(
        ran.code == 2 && ran.err.contains("chat.jsonl:1") && ran.err.contains("--chat-template"),
        "{}",
        ran.err
    );
    let ran = place.train("a", &["--chat-template", "zephyr"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    // Both turns and their marks are tokens; the answer and its end are learned.
    assert!(ran.err.contains("8 examples"), "{}", ran.err);
    for folder in ["a", "a/checkpoints/last"] {
        let kept = fs::read_to_string(Path::new(&place.path(folder)).join("chat_template.jinja")).unwrap();
        assert!(kept.contains("eos_token"), "{kept}");
    }

    // Without a flag, the adapter's own is used by every command.
    let adapter = place.path("a");
    let eval = ["eval", "--model", model, "--data", &data, "--json", "--adapter", &adapter];
    let own = json(&lowrank_ok(&eval).out);
    let given = json(&lowrank_ok(&[&eval[..], &["--chat-template", "zephyr"]].concat()).out);
    assert_eq!((&own["loss"], &own["labels"]), (&given["loss"], &given["labels"]));
    let other = json(&lowrank_ok(&[&eval[..], &["--chat-template", "chatml"]].concat()).out);
    assert_ne!(own["labels"], other["labels"]);
    let chat = ["generate", "--model", model, "--chat", "--prompt", "red", "--max-new-tokens", "3"];
    lowrank_ok(&[&chat[..], &["--adapter", &adapter]].concat());
    lowrank_ok(&[&chat[..], &["--chat-template", "alpaca"]].concat());
    let ran = lowrank(&chat);
    assert!(ran.code == 2 && ran.err.contains("--chat-template"), "{}", ran.err);
    let plan =
        ["plan", "--model", model, "--data", &data, "--out", "x", "--chat-template", "zephyr", "--json"];
    assert!(json(&lowrank_ok(&plan).out)["tokens_per_epoch"].as_u64() > Some(0));

    // So it is where training goes on from it, and with a run that is resumed.
    assert_eq!(place.train("b", &["--init-adapter", &adapter]).code, 0);
    assert!(Path::new(&place.path("b/chat_template.jinja")).exists());
    assert_eq!(place.train("a", &["--chat-template", "zephyr", "--resume"]).code, 0);
    let ran = place.train("a", &["--chat-template", "chatml", "--resume"]);
    assert!(ran.code == 2 && ran.err.contains("--chat-template was \"zephyr\""), "{}", ran.err);

    let wrong = |args: &[&str], word: &str| {
        let ran = place.train("x", args);
        assert!(ran.code == 2 && ran.err.contains(word), "{}", ran.err);
    };
    wrong(&["--chat-template", "zefyr"], "did you mean zephyr?");
    wrong(&["--chat-template", &place.path("none.jinja")], "there is no file of this name");
    let broken = place.path("broken.jinja");
    fs::write(&broken, "{% for %}").unwrap();
    wrong(&["--chat-template", &broken], "chat template: syntax error");
    fs::write(&broken, "{{ messages[0].content }}").unwrap();
    wrong(&["--chat-template", &broken], "chat.jsonl:1");

    // Two adapters with two templates.
    assert_eq!(place.train("c", &["--chat-template", "chatml"]).code, 0);
    let two = ["--adapter", &adapter, "--adapter", &place.path("c")];
    let ran = lowrank(&[&chat[..], &two].concat());
    assert!(ran.code == 2 && ran.err.contains("two chat templates"), "{}", ran.err);
    lowrank_ok(&[&chat[..], &two, &["--chat-template", "chatml"]].concat());
}

#[test]
fn merged_models_have_the_template() {
    let place = Place::new();
    assert_eq!(place.train("a", &["--chat-template", "gemma"]).code, 0);
    let (adapter, merged, other) = (place.path("a"), place.path("merged"), place.path("other"));
    let merge = ["merge", "--model", &place.model, "--adapter", &adapter, "--dtype", "f32", "--out"];
    lowrank_ok(&[&merge[..], &[&merged]].concat());
    let want = "<s><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n";
    assert_eq!(opened(&Session::open(&merged).unwrap()), want);
    let chat = ["generate", "--model", &merged, "--chat", "--prompt", "red", "--max-new-tokens", "3"];
    lowrank_ok(&chat);
    lowrank_ok(&[&merge[..], &[&other, "--chat-template", "chatml"]].concat());
    assert_eq!(
        opened(&Session::open(&other).unwrap()),
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    );
}

/// Into GGUF and out of it again, on the real model, which has a template of its own.
#[test]
fn gguf_has_the_template() {
    let Some(real) = common::real_model() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let line = r#"{"messages":[{"role":"user","content":"red"},{"role":"assistant","content":"blue"}]}"#;
    fs::write(path("chat.jsonl"), line).unwrap();
    let (data, adapter) = (path("chat.jsonl"), path("a"));
    let train = ["train", "--model", &real, "--data", &data, "--out", &adapter, "--max-steps", "1"];
    lowrank_ok(&[&train[..], &["--chat-template", "phi3", "--target-modules", "q_proj"]].concat());
    for out in ["m.gguf", "folder"] {
        let out = path(out);
        lowrank_ok(&[
            "merge",
            "--model",
            &real,
            "--adapter",
            &adapter,
            "--out",
            &out,
            "--no-verify",
            "--dtype",
            "f16",
        ]);
        let base = Base::open_path(&PathBuf::from(&out)).unwrap();
        let text = base.chat().unwrap().render(&[Message::new("user", "hi")], true).unwrap();
        assert_eq!(text, "<|user|>\nhi<|end|>\n<|assistant|>\n", "{out}");
    }
    let own = Base::open_path(&PathBuf::from(&real)).unwrap();
    assert!(own.chat().unwrap().source().contains("im_start"));
}

/// An answer stops where the template ends the assistant's turn.
#[test]
fn a_turn_ends_where_the_template_says() {
    let place = Place::new();
    let session =
        |name: &str| Session::open(&place.model).unwrap().with_chat_template(Some(name), []).unwrap();
    assert_eq!(session("chatml").stops().unwrap(), ["<|im_end|>"]);
    assert_eq!(session("zephyr").stops().unwrap(), [""; 0]);
    assert_eq!(Session::open(&place.model).unwrap().stops().unwrap(), [""; 0]);
    // As a token, where there is one.
    let file = Path::new(&place.model).join("tokenizer.json");
    let text = fs::read_to_string(&file).unwrap();
    let token = r#"{"id":95,"content":"<|im_end|>","special":true,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false}"#;
    let mut tokenizer = json(&text);
    tokenizer["added_tokens"].as_array_mut().unwrap().push(json(token));
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    vocab.retain(|_, id| *id != 95);
    fs::write(&file, tokenizer.to_string()).unwrap();
    let session = session("chatml");
    assert_eq!(session.stops().unwrap(), [""; 0]);
    assert!(session.ends().unwrap().contains(&95));
}
