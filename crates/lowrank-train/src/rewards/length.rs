//! 1 for a completion of so many tokens, less by its distance from that in parts of it, and never below 0.

use serde_json::Value;

use super::contract::{Completion, Rule};

pub(super) struct Length(pub usize);

impl Rule for Length {
    fn score(&self, completion: &Completion<'_>, _: &Value) -> f64 {
        let (want, have) = (self.0 as f64, completion.tokens as f64);
        (1.0 - (have - want).abs() / want).max(0.0)
    }
}
