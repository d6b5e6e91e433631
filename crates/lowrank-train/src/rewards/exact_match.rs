//! 1 for a completion that is the text of a column, or one of its texts.

use serde_json::Value;

use super::contract::{Completion, Rule, texts};

pub(super) struct ExactMatch {
    pub column: String,
}

impl Rule for ExactMatch {
    fn column(&self) -> Option<&str> {
        Some(&self.column)
    }

    fn score(&self, completion: &Completion<'_>, value: &Value) -> f64 {
        let same = texts(value).iter().any(|text| text.trim() == completion.text.trim());
        f64::from(u8::from(same))
    }
}
