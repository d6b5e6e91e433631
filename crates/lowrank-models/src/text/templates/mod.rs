//! Chat templates by name, for base models that have none. Each renders what transformers' template of that family does.

use std::path::Path;

use lowrank_files::{read_limited, read_optional_object, unknown};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// The file of a chat template in a folder, as transformers 5 writes it.
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";

/// Longest template that is read, in bytes.
const LONGEST: u64 = 4 << 20;

/// Names and texts of the templates: ChatML (Qwen, SmolLM), Gemma 3, Llama 2 and 3, Mistral 7B, Phi-3, Zephyr, and
/// Stanford Alpaca's prompts.
pub(crate) const NAMED: [(&str, &str); 8] = [
    ("alpaca", include_str!("alpaca.jinja")),
    ("chatml", include_str!("chatml.jinja")),
    ("gemma", include_str!("gemma.jinja")),
    ("llama2", include_str!("llama2.jinja")),
    ("llama3", include_str!("llama3.jinja")),
    ("mistral", include_str!("mistral.jinja")),
    ("phi3", include_str!("phi3.jinja")),
    ("zephyr", include_str!("zephyr.jinja")),
];

/// The text of a chat template: one of the names, or a file.
///
/// # Errors
/// Where it is no name and no file (lists the names), or the file cannot be read.
pub fn named_or_file(name: &str) -> Result<String> {
    if let Some((_, text)) = NAMED.iter().find(|(known, _)| *known == name) {
        return Ok((*text).to_owned());
    }
    let path = Path::new(name);
    match path.is_file() {
        true => read_text(path),
        false => {
            let what = unknown("chat template", name, NAMED.map(|(name, _)| name));
            Err(Error::Template(format!("{what} (and there is no file of this name)")))
        }
    }
}

/// The chat template that a folder of a model or an adapter holds: `chat_template.jinja`, else `chat_template` of
/// `tokenizer_config.json`.
///
/// # Errors
/// Where a file cannot be read.
pub fn of_folder(folder: &Path) -> Result<Option<String>> {
    let words = read_optional_object(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    source(folder, &words)
}

/// The same, where `tokenizer_config.json` was read: a text, or a list of named ones of which `default` counts.
pub(crate) fn source(folder: &Path, words: &Map<String, Value>) -> Result<Option<String>> {
    let file = folder.join(CHAT_TEMPLATE_FILE);
    if file.is_file() {
        return read_text(&file).map(Some);
    }
    let named =
        |entry: &Value| Some((entry["name"].as_str()?.to_owned(), entry["template"].as_str()?.to_owned()));
    Ok(match words.get("chat_template") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(list)) => {
            let list: Vec<(String, String)> = list.iter().filter_map(named).collect();
            let default = list.iter().find(|(name, _)| name == "default").or(list.first());
            default.map(|(_, text)| text.clone())
        }
        _ => None,
    })
}

fn read_text(path: &Path) -> Result<String> {
    let text = read_limited(path, LONGEST)?;
    String::from_utf8(text).map_err(|e| Error::file(path, format!("is not UTF-8: {e}")))
}

#[cfg(test)]
mod tests {
    use crate::text::chat::{ChatTemplate, Message};

    fn talk(turns: &[(&str, &str)]) -> Vec<Message> {
        turns.iter().map(|(role, content)| Message::new(*role, *content)).collect()
    }

    fn template(name: &str) -> ChatTemplate {
        ChatTemplate::new(&super::named_or_file(name).unwrap(), "<s>", "</s>").unwrap()
    }

    /// What transformers renders with the templates of Qwen, Gemma 3, Llama 2 and 3, Mistral 7B v0.2, Phi-3 and Zephyr;
    /// the parts that the assistant says are between `[` and `]`, those of the others' turns have none.
    #[test]
    fn render_as_published() {
        let two = [
            ("system", "Be brief."),
            ("user", "Hi"),
            ("assistant", " Yo "),
            ("user", "2+2?"),
            ("assistant", "4"),
        ];
        let alpaca = "Below is an instruction that describes a task. Write a response that appropriately completes the \
                      request.\n\n";
        let cases = [
            (
                "chatml",
                "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n\
                 { Yo <|im_end|>\n}<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n{4<|im_end|>\n}",
                "<|im_start|>user\none <|im_end|>\n<|im_start|>assistant\n".to_owned(),
                Some("<|im_end|>"),
            ),
            (
                "zephyr",
                "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\n{ Yo </s>\n}<|user|>\n2+2?</s>\n\
                 <|assistant|>\n{4</s>\n}",
                "<|user|>\none </s>\n<|assistant|>\n".to_owned(),
                None,
            ),
            (
                "phi3",
                "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n{ Yo <|end|>\n}<|user|>\n2+2?<|end|>\n\
                 <|assistant|>\n{4<|end|>\n</s>}",
                "<|user|>\none <|end|>\n<|assistant|>\n".to_owned(),
                Some("<|end|>"),
            ),
            (
                "llama3",
                "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user\
                 <|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n{Yo<|eot_id|>}\
                 <|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n\
                 {4<|eot_id|>}",
                "<s><|start_header_id|>user<|end_header_id|>\n\none<|eot_id|><|start_header_id|>assistant\
                 <|end_header_id|>\n\n"
                    .to_owned(),
                Some("<|eot_id|>"),
            ),
            (
                "llama2",
                "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]{ Yo </s>}<s>[INST] 2+2? [/INST]{ 4 </s>}",
                "<s>[INST] one [/INST]".to_owned(),
                None,
            ),
            (
                "mistral",
                "<s> [INST] Be brief.\n\nHi [/INST]{  Yo </s>} [INST] 2+2? [/INST]{ 4</s>}",
                "<s> [INST] one  [/INST]".to_owned(),
                None,
            ),
            (
                "gemma",
                "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n{Yo<end_of_turn>\n}\
                 <start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n{4<end_of_turn>\n}",
                "<s><start_of_turn>user\none<end_of_turn>\n<start_of_turn>model\n".to_owned(),
                Some("<end_of_turn>"),
            ),
            (
                "alpaca",
                "<s>Be brief.\n\n### Instruction:\nHi\n\n### Response:\n{ Yo </s>\n\n}### Instruction:\n2+2?\n\n\
                 ### Response:\n{4</s>\n\n}",
                format!("<s>{alpaca}### Instruction:\none \n\n### Response:\n"),
                None,
            ),
        ];
        assert_eq!(cases.len(), super::NAMED.len());
        for (name, marked, prompt, turn_end) in cases {
            let template = template(name);
            let rendered = template.render_with_spans(&talk(&two)[..].into()).unwrap();
            let want: String = marked.chars().filter(|c| !"{}".contains(*c)).collect();
            assert_eq!(rendered.text, want, "{name}");
            let spoken: Vec<&str> =
                rendered.assistant.iter().map(|span| &rendered.text[span.clone()]).collect();
            let want: Vec<&str> =
                marked.split('{').skip(1).map(|part| part.split('}').next().unwrap()).collect();
            assert_eq!(spoken, want, "{name}");
            assert_eq!(template.render(&talk(&[("user", "one ")]), true).unwrap(), prompt, "{name}");
            assert_eq!(template.turn_end().as_deref(), turn_end, "{name}");
        }
    }

    #[test]
    fn roles_are_checked() {
        for name in ["gemma", "llama2", "mistral"] {
            let twice = talk(&[("user", "a"), ("user", "b")]);
            let error = template(name).render(&twice, false).unwrap_err().to_string();
            assert!(error.contains("roles must alternate"), "{name}: {error}");
        }
        for name in ["alpaca", "mistral", "phi3", "zephyr"] {
            let tool = talk(&[("user", "a"), ("tool", "b")]);
            assert!(template(name).render(&tool, false).is_err(), "{name}");
        }
    }

    #[test]
    fn a_file_or_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("own.jinja");
        std::fs::write(&file, "{{ messages[0].content }}").unwrap();
        let file = file.to_str().unwrap();
        assert_eq!(super::named_or_file(file).unwrap(), "{{ messages[0].content }}");
        let error = super::named_or_file("chatlm").unwrap_err().to_string();
        assert!(error.contains("did you mean chatml?") && error.contains("no file"), "{error}");
        std::fs::write(file, b"\xff").unwrap();
        assert!(super::named_or_file(file).unwrap_err().to_string().contains("not UTF-8"));
    }
}
