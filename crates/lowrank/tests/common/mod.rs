//! Shared by the integration tests.
#![allow(dead_code)]

pub mod kinds;

use std::path::{Path, PathBuf};

use lowrank::Session;
use lowrank::adapters::AdapterSet;
use lowrank::engine::{Device, Record, Scope, Segment, Tape};
use lowrank::models::TokenBatch;
use lowrank::train::{Example, ExampleId};
use safetensors::SafeTensors;

/// A folder of `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The real SmolLM2 file; `None`, said aloud, where it is absent.
pub fn real_model() -> Option<String> {
    Some(lowrank_testing::smollm2()?.to_str().unwrap().to_owned())
}

/// `expected.safetensors` of a fixture.
pub struct Expected(Vec<u8>);

impl Expected {
    pub fn open(dir: &Path) -> Self {
        Self::file(&dir.join("expected.safetensors"))
    }

    /// Any safetensors file.
    pub fn file(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap())
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().shape().to_vec()
    }

    pub fn names(&self) -> Vec<String> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.names().into_iter().map(str::to_owned).collect()
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn doubles(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let data = file.tensor(name).unwrap().data();
        data.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    pub fn ints(&self, name: &str) -> Vec<i64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// Adds `by` to one value of a parameter.
pub fn nudge(params: &mut lowrank::engine::Params, id: lowrank::engine::ParamId, at: usize, by: f32) {
    let mut values = params.values(id).to_vec();
    values[at] += by;
    params.set(id, values);
}

/// Largest difference, as a share of the largest expected number, at most `tolerance`.
pub fn close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}: how many");
    let largest = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let mut worst = 0.0f32;
    for (g, w) in got.iter().zip(want) {
        assert!(g.is_finite(), "{what}: {g}");
        worst = worst.max((g - w).abs());
    }
    assert!(worst <= tolerance * largest, "{what}: differs by {worst:e}, the largest is {largest:e}");
}

/// Norm of the difference as a share of the norm expected, at most `tolerance`.
pub fn close_norm(what: &str, got: &[f32], want: &[f32], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: how many");
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(want).map(|(g, w)| g - w));
    let largest = norm(&mut want.iter().copied());
    assert!(difference <= tolerance * largest, "{what}: differs by {:e} of its norm", difference / largest);
}

/// Logits of every position of one sequence.
pub fn logits(session: &Session, adapters: &AdapterSet, tokens: &[u32]) -> Vec<f32> {
    let n = tokens.len();
    let positions: Vec<u32> = (0..n as u32).collect();
    let lengths = vec![n as u32; n];
    let segments = [Segment { q: 0..n, prefix: 0..0, own: 0..n }];
    let device = Device::cpu();
    let scope = Scope::inference(&device, &adapters.params);
    let mut tape = Tape::new(scope, &adapters.active, Record::Nothing);
    let batch = TokenBatch {
        tokens,
        positions: &positions,
        lengths: &lengths,
        token_types: &[],
        segments: &segments,
        output_rows: None,
        adapters: None,
    };
    let h = session.model.hidden(&mut tape, &batch);
    tape.logits(session.model.lm_head().unwrap(), &h).to_vec()
}

/// An example from Hugging Face's ids and labels (-100: no loss).
pub fn example(ids: &[i64], labels: &[i64]) -> Example {
    let loss_mask: Vec<bool> = labels.iter().enumerate().map(|(i, l)| i > 0 && *l >= 0).collect();
    let prompt_len = loss_mask.iter().position(|m| *m).unwrap_or(0);
    // A sequence without a prompt has nothing to share.
    let prompt_len = if prompt_len <= 1 { 0 } else { prompt_len };
    Example {
        tokens: ids.iter().map(|t| *t as u32).collect(),
        loss_mask,
        prompt_len,
        id: ExampleId { file: "fixture".into(), line: 1 },
        ..Example::default()
    }
}

/// A tiny model with a tokenizer of single characters, in `dir`: what the command-line tests run on.
pub fn tiny_model(dir: &Path) -> String {
    let model = dir.join("model");
    std::fs::create_dir_all(&model).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("llama_gqa_tied").join(name), model.join(name)).unwrap();
    }
    character_tokenizer(&model);
    let template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}\
                    {% if add_generation_prompt %}[assistant]{% endif %}";
    let words = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": template});
    std::fs::write(model.join("tokenizer_config.json"), words.to_string()).unwrap();
    model.to_str().unwrap().to_owned()
}

/// The model of [`tiny_model`] as a GGUF file in `dir`, of the given file type.
pub fn tiny_gguf(dir: &Path, file_type: lowrank::models::FileType) -> String {
    let model = tiny_model(dir);
    // The characters as GGUF's byte-level tokenizers spell them.
    let path = Path::new(&model).join("tokenizer.json");
    let text = std::fs::read_to_string(&path)
        .unwrap()
        .replace("\" \":", "\"\u{120}\":")
        .replace("\"\\n\":", "\"\u{10a}\":");
    let mut tokenizer: serde_json::Value = serde_json::from_str(&text).unwrap();
    let level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    (tokenizer["pre_tokenizer"], tokenizer["decoder"]) = (level.clone(), level);
    std::fs::write(path, tokenizer.to_string()).unwrap();
    let (session, out) = (Session::open(&model).unwrap(), dir.join("model.gguf"));
    lowrank::merge(&session, &AdapterSet::none(), &out, lowrank::MergeTarget::Gguf(Some(file_type))).unwrap();
    out.to_str().unwrap().to_owned()
}

/// Writes a `tokenizer.json` of 96 single characters into the folder `model`.
pub fn character_tokenizer(model: &Path) {
    let mut vocab = serde_json::Map::new();
    for token in ["<unk>", "<s>", "</s>", "\n"] {
        vocab.insert(token.into(), vocab.len().into());
    }
    for byte in b' '..=b'{' {
        vocab.insert((byte as char).to_string(), vocab.len().into());
    }
    assert_eq!(vocab.len(), 96);
    let added = |id: usize, content: &str| {
        serde_json::json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false})
    };
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": vocab, "merges": []},
    });
    std::fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// What [`tiny_bert`] reads.
pub const WORDS: [&str; 16] = [
    "good", "fine", "great", "bad", "poor", "awful", "film", "plot", "the", "a", "was", "is", "very",
    "actor", "and", "story",
];

/// A tiny BERT with a tokenizer of [`WORDS`], in `dir`.
pub fn tiny_bert(dir: &Path) -> String {
    let model = dir.join("bert");
    std::fs::create_dir_all(&model).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("heads/bert").join(name), model.join(name)).unwrap();
    }
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let mut vocab = serde_json::Map::new();
    for word in special.iter().chain(&WORDS) {
        vocab.insert((*word).into(), vocab.len().into());
    }
    let added: Vec<serde_json::Value> = (0..)
        .zip(special)
        .map(|(id, content): (usize, _)| {
            serde_json::json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false})
        })
        .collect();
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": vocab},
    });
    std::fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    model.to_str().unwrap().to_owned()
}

/// Lines of prompts and completions, several completions to a prompt.
pub fn tiny_data(path: &Path, lines: usize) {
    let words = ["red", "blue", "green", "gold", "grey"];
    let mut text = String::new();
    for i in 0..lines {
        let (a, b) = (words[i / 3 % 5], words[i * 2 % 5]);
        let line = serde_json::json!({"prompt": format!("{a} and"), "completion": format!(" {b} {a}.")});
        text.push_str(&format!("{line}\n"));
    }
    std::fs::write(path, text).unwrap();
}

/// Words of a command line; double quotes hold a word together.
pub fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words
}

/// The arguments `base`, with `more` in place of the flags that both have.
pub fn overriding<'a>(base: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    let is_flag = |arg: &str| arg.starts_with("--");
    let mut replaced = false;
    let kept = base.iter().filter(|arg| {
        replaced = if is_flag(arg) { more.contains(arg) } else { replaced };
        !replaced
    });
    kept.chain(more).copied().collect()
}

/// What a command printed and its exit code.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs the `lowrank` command.
pub fn lowrank(args: &[&str]) -> Ran {
    ran(std::process::Command::new(env!("CARGO_BIN_EXE_lowrank")).args(args).output().unwrap())
}

/// What a process printed and its exit code.
pub fn ran(output: std::process::Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The same; fails the test where the command failed.
pub fn lowrank_ok(args: &[&str]) -> Ran {
    let ran = lowrank(args);
    assert_eq!(ran.code, 0, "lowrank {}: {}", args.join(" "), ran.err);
    ran
}
