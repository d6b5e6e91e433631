//! The same losses as transformers for many configurations, and the same configurations refused.
//! `tools/reference/config_cases.py` made the fixtures.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::fixture;
use lowrank::Session;
use lowrank::adapters::AdapterSet;
use lowrank::engine::{Device, Grads, Label, Record, Scope, Segment, Tape};
use lowrank::files::LoadOptions;
use lowrank::models::{Head, TokenBatch};
use lowrank::train::Task;
use serde::Deserialize;
use serde_json::{Value, json};

/// A fixture.
#[derive(Deserialize)]
struct Fixture {
    ids: Vec<u32>,
    /// Names and shapes of the tensors of a file.
    tensors: Vec<BTreeMap<String, Vec<usize>>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    config: Value,
    /// Which of the tensors its file has.
    tensors: usize,
    /// Those that are left out of them.
    without: Vec<String>,
    /// Tensors with the values of others.
    same: BTreeMap<String, String>,
    /// What the loss is at every third token, from the third; absent where transformers refuses.
    losses: Option<Vec<f32>>,
    /// Of a classifier, the scores of its text.
    scores: Option<Vec<f32>>,
    /// The text, if another.
    ids: Option<Vec<u32>>,
    refuses: Option<String>,
}

/// A hash of the name and of each index, in [-0.5, 0.5); around 1 for the weight of a norm.
fn values(name: &str, count: usize) -> impl Iterator<Item = f32> {
    let seed =
        name.bytes().fold(0x811c_9dc5_u32, |seed, byte| (seed ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let lowered = name.to_lowercase();
    let norm = lowered.ends_with("weight") && (lowered.contains("norm") || lowered.contains(".ln_"));
    let middle = if norm { 1.0 } else { 0.0 };
    (0..count as u32).map(move |i| {
        let mut x = i.wrapping_mul(0x9e37_79b1) ^ seed;
        for (shift, factor) in [(16, 0x7feb_352d_u32), (15, 0x846c_a68b)] {
            x = (x ^ (x >> shift)).wrapping_mul(factor);
        }
        x ^= x >> 16;
        (x >> 8) as f32 / (1 << 24) as f32 - 0.5 + middle
    })
}

impl Case {
    fn write(&self, folder: &Path, tensors: &BTreeMap<String, Vec<usize>>) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, shape) in tensors.iter().filter(|(name, _)| !self.without.contains(name)) {
            let start = data.len();
            let source = self.same.get(name).unwrap_or(name);
            data.extend(values(source, shape.iter().product()).flat_map(f32::to_le_bytes));
            let info = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
            header.insert(name.clone(), info);
        }
        let header = Value::Object(header).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend(data);
        std::fs::write(folder.join("model.safetensors"), file).unwrap();
    }
}

fn open(model: &Path) -> lowrank::Result<Session> {
    let config: Value = serde_json::from_slice(&std::fs::read(model.join("config.json")).unwrap()).unwrap();
    if config.get("id2label").is_some() {
        return open_for(model, Task::Classification);
    }
    let encoder = ["bert", "roberta", "xlm-roberta", "distilbert", "deberta-v2"];
    let masked = encoder.iter().any(|kind| config["model_type"] == *kind);
    open_for(model, if masked { Task::Mlm } else { Task::Lm })
}

fn open_for(model: &Path, task: Task) -> lowrank::Result<Session> {
    Session::for_adapter(model.to_str().unwrap(), LoadOptions::default(), None, Some(task), None)
}

/// `-log p` of each token: of the next one, or in an encoder of the one that stands there. Of a classifier, its scores.
fn outputs(session: &Session, ids: &[u32]) -> Vec<f32> {
    let n = ids.len();
    let (positions, lengths): (Vec<u32>, _) = ((0..n as u32).collect(), vec![n as u32; n]);
    let segments = [Segment { q: 0..n, prefix: 0..0, own: 0..n }];
    let (device, adapters) = (Device::cpu(), AdapterSet::none());
    let scope = Scope::inference(&device, &adapters.params);
    let mut tape = Tape::new(scope, &adapters.active, Record::Nothing);
    let batch = TokenBatch {
        tokens: ids,
        positions: &positions,
        lengths: &lengths,
        token_types: &[],
        segments: &segments,
        output_rows: None,
        adapters: None,
    };
    let h = session.model.hidden(&mut tape, &batch);
    let mut grads = Grads::zeros(&adapters.params);
    let labels =
        |ids: &[u32]| -> Vec<Label> { (0..).zip(ids).map(|(row, &target)| Label { row, target }).collect() };
    let (head, h, labels) = match session.model.head() {
        Head::Classes(head) => {
            return head.scores(&mut tape, &h, &[head.reads.row(ids)]).tensor.to_vec();
        }
        Head::Language(head) => (head, h, labels(&ids[1..])),
        Head::Masked(head) => {
            let rows: Vec<usize> = (0..n).collect();
            (&head.decoder, head.states(&mut tape, &h, &rows), labels(ids))
        }
        other => panic!("{}", other.name()),
    };
    let weights = vec![1.0; labels.len()];
    tape.cross_entropy(head, &h, &labels, &weights, &mut grads).losses
}

/// Whether a case of this family with this name is known to differ.
type Differs = fn(family: &str, name: &str) -> bool;

/// Compares every case; those that are known to differ must.
fn check(name: &str, differs: &[Differs]) {
    let known = |case: &Case| {
        let (family, name) = case.name.split_once(": ").unwrap();
        differs.iter().any(|differs| differs(family, name))
    };
    check_by(name, known, true);
}

/// The same; `must` says whether those that are known to differ must.
fn check_by(name: &str, known: impl Fn(&Case) -> bool, must: bool) {
    let file = fixture("configs").join(format!("{name}.json"));
    let Fixture { ids, tensors, cases } = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let folder = folder.path().join(number.to_string());
        case.write(&folder, &tensors[case.tensors]);
        match (case.fault(&folder, &ids), known(case)) {
            (Some(fault), true) => println!("known: {}: {fault}", case.name),
            (Some(fault), false) => wrong.push(format!("{}: {fault}", case.name)),
            (None, true) if must => wrong.push(format!("{}: is known to differ, and does not", case.name)),
            (None, _) => {}
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

impl Case {
    /// What differs from transformers, if anything does.
    fn fault(&self, folder: &Path, ids: &[u32]) -> Option<String> {
        let ids = self.ids.as_deref().unwrap_or(ids);
        // A text that is too long is the text's fault; transformers finds it when it computes.
        let short =
            |session: &Session| session.model.info().position_limit.is_none_or(|most| ids.len() <= most);
        let opened = open(folder).map_err(|error| error.to_string());
        let opened =
            opened.and_then(|model| if short(&model) { Ok(model) } else { Err("too long".to_owned()) });
        match (opened, self.losses.as_ref().or(self.scores.as_ref())) {
            (Ok(session), Some(want)) => {
                let mut got = outputs(&session, ids);
                if self.losses.is_some() {
                    got = got.into_iter().skip(2).step_by(3).collect();
                }
                let near =
                    |(got, want): (&f32, &f32)| (got - want).abs() < 1e-4 * (want.abs() / 8.0).max(1.0);
                let same = got.len() == want.len() && got.iter().zip(want).all(near);
                (!same).then(|| format!("{got:?}, not {want:?}"))
            }
            (Ok(_), None) => Some(format!("loads; {}", self.refuses.as_deref().unwrap_or(""))),
            (Err(error), Some(_)) => Some(error),
            (Err(_), None) => None,
        }
    }
}

/// `tie_word_embeddings` against what the files hold.
#[test]
fn tied() {
    check("tied", &[]);
}

/// Ropes in old and new spellings, alone and against each other.
#[test]
fn rope() {
    check(
        "rope",
        &[
            // Phi-3's files were once written so, and mean longrope.
            |family, name| family == "phi3" && name == "own, su",
            // A head of which nothing is rotated.
            |family, name| family == "phi3" && name == "partial, none",
        ],
    );
}

/// Fields absent, null, and with values of every kind that matters.
#[test]
fn fields() {
    check(
        "fields",
        &[
            // transformers computes; a layer with a window sees one token at least.
            |family, name| {
                let used = ["mistral", "ministral", "gemma2", "gemma3_text", "phi3"].contains(&family);
                used && name == "window 0"
                    || !["llama", "gemma"].contains(&family) && name == "window 0 and used"
            },
            // With kinds of layers Mistral is Ministral, whose code lacks the usual width of a head.
            |family, name| {
                let refused = ["types too few", "types unknown"].contains(&name) || name.contains("head_dim");
                family == "mistral" && name.starts_with("types") && !refused
            },
            |family, name| family == "ministral" && ["no head_dim", "head_dim null"].contains(&name),
            // No text is padded here.
            |family, name| family == "phi3" && name == "no pad_token_id",
            // Fields that transformers does not check but reads as Python reads them.
            |family, name| family == "deberta-v2" && name == "norm_rel_ebd null",
            |family, name| {
                family == "deberta-v2" && ["share_att_key null", "share_att_key a word"].contains(&name)
            },
            // A match that transformers passes over is missing from the outputs.
            |family, name| family == "deberta-v2" && name == "unknown",
        ],
    );
}

/// Every activation of transformers, in every family.
#[test]
fn activations() {
    // It has no place in a model's layers.
    check("activations", &[|_, name| name.ends_with("sqrtsoftplus")]);
}

/// Scores of texts with padding tokens at their end and inside: decoders read the last that is none, and RoBERTa's
/// positions pass over them.
#[test]
fn classifiers() {
    check("classifiers", &[]);
}

/// Random configurations; `tools/reference/config_fuzz.py` wrote them. `LOWRANK_CONFIG_CASES` names another file of cases.
#[test]
fn random() {
    let file = std::env::var("LOWRANK_CONFIG_CASES").unwrap_or_else(|_| "random".to_owned());
    let known = |case: &Case| {
        let field = |name: &str| case.config.get(name);
        let is = |name: &str, what: fn(&Value) -> bool| field(name).is_some_and(what);
        let vocab = field("vocab_size").and_then(Value::as_i64).unwrap_or(i64::MAX);
        let loads = case.refuses.is_none();
        // A model without layers, widths or positions, and heads of one number: transformers computes what there is.
        let nothing =
            ["num_hidden_layers", "n_layer", "n_layers", "intermediate_size", "n_inner", "hidden_dim"]
                .into_iter()
                .any(|name| is(name, |size| size.as_i64().is_some_and(|size| size <= 0)))
                || is("max_position_embeddings", |size| size.as_i64().is_some_and(|size| size <= 1))
                || is("head_dim", |size| size == 1 || size == 0)
                || is("type_vocab_size", |size| size.as_i64().is_some_and(|size| size < 0))
                || is("share_att_key", |on| !on.is_boolean())
                || ["rope_scaling", "rope_parameters"]
                    .into_iter()
                    .any(|name| is(name, |rope| rope.get("factor").is_some_and(Value::is_string)))
                || field("head_dim").is_none() && is("num_attention_heads", |heads| heads == 16)
                || ["num_hidden_layers", "num_attention_heads", "head_dim"]
                    .into_iter()
                    .any(|name| is(name, Value::is_boolean))
                || is("sliding_window", |window| window.as_i64().is_some_and(|window| window <= 0))
                || is("sliding_window_pattern", Value::is_f64)
                || is("query_pre_attn_scalar", |by| by.as_f64().is_some_and(|by| by <= 0.0))
                || is("pad_token_id", |id| id == -1)
                || is("final_logit_softcapping", |cap| cap.as_f64() == Some(0.0));
        // BERT's kin as decoders, decoders as encoders, and relative positions, which transformers 5 passes over.
        let other = is("is_decoder", |on| on == true)
            || is("use_bidirectional_attention", |on| on == true)
            || is("position_embedding_type", |kind| kind != "absolute" && !kind.is_null());
        // transformers checks types that mean nothing here, and the padding token of texts that nobody pads.
        let strict = [
            "use_cache",
            "use_sliding_window",
            "max_window_layers",
            "reorder_and_upcast_attn",
            "attention_dropout",
            "sinusoidal_pos_embds",
            "sliding_window",
            "n_layer",
            "n_layers",
        ]
        .into_iter()
        .any(|name| is(name, |value| !value.is_boolean() && !value.is_u64() || value == 0))
            || ["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"]
                .into_iter()
                .any(|name| is(name, Value::is_u64))
            || field("pad_token_id").and_then(Value::as_i64).is_some_and(|id| id >= vocab)
            || case.name.starts_with("phi3") && field("pad_token_id").is_none();
        let kinds = case.name.starts_with("ministral")
            || case.name.starts_with("mistral") && field("layer_types").is_some();
        let ministral = kinds && field("head_dim").is_none_or(Value::is_null);
        if loads { nothing || other } else { strict || ministral }
    };
    check_by(&file, known, false);
}
