//! Chat templates against jinja2 with transformers' additions (`tools/reference/tokenizer.py`).

mod common;

use common::fixture_json;
use lowrank_models::{Base, ChatTemplate, Message};

#[test]
fn templates_render_as_in_transformers() {
    for case in fixture_json("chat.json").as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let template = ChatTemplate::new(case["template"].as_str().unwrap(), "<s>", "</s>").unwrap();
        for talk in case["rendered"].as_array().unwrap() {
            let messages: Vec<Message> = serde_json::from_value(talk["messages"].clone()).unwrap();
            let prompt = talk["add_generation_prompt"].as_bool().unwrap();
            let rendered = template.render(&messages, prompt);
            if let Some(error) = talk["error"].as_str() {
                let got = rendered.unwrap_err().to_string();
                assert!(got.contains(error), "{name}: {got}");
                continue;
            }
            let text = rendered.unwrap();
            assert_eq!(text, talk["text"].as_str().unwrap(), "{name} {messages:?}");
            if prompt || talk["assistant"].is_null() {
                continue;
            }
            // Python counts characters.
            let at = |c: &serde_json::Value| {
                let count = c.as_u64().unwrap() as usize;
                text.char_indices().map(|(at, _)| at).nth(count).unwrap_or(text.len())
            };
            let want: Vec<_> =
                talk["assistant"].as_array().unwrap().iter().map(|s| at(&s[0])..at(&s[1])).collect();
            assert_eq!(template.render_with_spans(&messages[..].into()).unwrap().assistant, want, "{name}");
        }
    }
}

#[test]
fn the_template_inside_the_real_gguf() {
    let Some(path) = lowrank_testing::smollm2() else { return };
    let base = Base::open_path(&path).unwrap();
    let talk = [Message::new("user", "Hi"), Message::new("assistant", "Hello.")];
    let rendered = base.chat().unwrap().render_with_spans(&talk[..].into()).unwrap();
    let system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n";
    assert_eq!(
        rendered.text,
        format!("{system}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n")
    );
    assert_eq!(&rendered.text[rendered.assistant[0].clone()], "Hello.<|im_end|>\n");
}
