//! Counts of tokens, as OpenAI has them.

use serde::Deserialize;
use serde_json::{Value, json};

/// OpenAI's options of a stream.
#[derive(Deserialize)]
pub struct StreamOptions {
    #[serde(default)]
    /// Whether the last event has the counts.
    pub include_usage: bool,
}

/// OpenAI's counts.
pub fn usage(prompt: usize, cached: usize, generated: usize) -> Value {
    json!({
        "prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    })
}
