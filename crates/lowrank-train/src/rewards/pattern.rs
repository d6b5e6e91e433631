//! 1 for a completion in which a regular expression is found.

use regex::Regex;
use serde_json::Value;

use super::contract::{Completion, Rule};

pub(super) struct Pattern(pub Regex);

impl Rule for Pattern {
    fn score(&self, completion: &Completion<'_>, _: &Value) -> f64 {
        f64::from(u8::from(self.0.is_match(completion.text)))
    }
}
