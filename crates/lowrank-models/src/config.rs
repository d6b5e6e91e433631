//! The configuration of generation in a Hugging Face folder.

use std::collections::HashSet;

use serde_json::{Map, Value};

/// How to generate: which tokens begin and end a text, and the sampling that the model's authors
/// recommend (`generation_config.json`, completed by `config.json`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// First token of every text, where the model wants one.
    pub bos: Option<u32>,
    /// Every token that ends a text.
    pub eos: Vec<u32>,
    /// Padding token.
    pub pad: Option<u32>,
    /// Whether sampling is recommended.
    pub do_sample: Option<bool>,
    /// Sampling temperature.
    pub temperature: Option<f32>,
    /// Keep this many most likely tokens.
    pub top_k: Option<usize>,
    /// Keep the most likely tokens up to this probability.
    pub top_p: Option<f32>,
    /// Keep tokens at least this likely, relative to the most likely one.
    pub min_p: Option<f32>,
    /// Divide the scores of tokens already used.
    pub repetition_penalty: Option<f32>,
}

impl GenerationConfig {
    pub(crate) fn read(generation: Option<&Map<String, Value>>, config: &Map<String, Value>) -> Self {
        let field = |name: &str| {
            let own = generation.and_then(|g| g.get(name)).filter(|v| !v.is_null());
            own.or_else(|| config.get(name)).filter(|v| !v.is_null())
        };
        let float = |name: &str| field(name).and_then(Value::as_f64).map(|v| v as f32);
        let mut seen = HashSet::new();
        Self {
            bos: field("bos_token_id").and_then(|v| ids(v).first().copied()),
            eos: field("eos_token_id")
                .map(ids)
                .unwrap_or_default()
                .into_iter()
                .filter(|i| seen.insert(*i))
                .collect(),
            pad: field("pad_token_id").and_then(|v| ids(v).first().copied()),
            do_sample: field("do_sample").and_then(Value::as_bool),
            temperature: float("temperature"),
            top_k: field("top_k").and_then(Value::as_u64).and_then(|v| usize::try_from(v).ok()),
            top_p: float("top_p"),
            min_p: float("min_p"),
            repetition_penalty: float("repetition_penalty"),
        }
    }

    /// The same as a `generation_config.json`.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                map.insert(name.into(), value);
            }
        };
        put("bos_token_id", self.bos.map(Value::from));
        put(
            "eos_token_id",
            match self.eos.as_slice() {
                [] => None,
                [one] => Some(Value::from(*one)),
                many => Some(Value::from(many)),
            },
        );
        put("pad_token_id", self.pad.map(Value::from));
        put("do_sample", self.do_sample.map(Value::from));
        put("temperature", self.temperature.map(Value::from));
        put("top_k", self.top_k.map(Value::from));
        put("top_p", self.top_p.map(Value::from));
        put("min_p", self.min_p.map(Value::from));
        put("repetition_penalty", self.repetition_penalty.map(Value::from));
        Value::Object(map)
    }
}

fn ids(value: &Value) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
    match value {
        Value::Array(many) => many.iter().filter_map(one).collect(),
        single => one(single).into_iter().collect(),
    }
}
