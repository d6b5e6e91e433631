//! What every reward implements.

use serde_json::{Map, Value};

/// A sampled completion that a reward judges.
#[derive(Clone, Copy, Debug)]
pub struct Completion<'a> {
    /// Its row of the data: the prompt and all other columns.
    pub row: &'a Map<String, Value>,
    /// The text, without its ending token.
    pub text: &'a str,
    /// Its tokens.
    pub tokens: usize,
}

/// Gives completions numbers: the larger, the better.
pub trait Reward {
    /// Its name in the log.
    fn name(&self) -> &str;

    /// Whether a row of the data has what it needs.
    ///
    /// # Errors
    /// Names the column that is missing or wrong.
    fn check(&self, _row: &Map<String, Value>) -> Result<(), String> {
        Ok(())
    }

    /// The reward of each completion; `None` where it says nothing.
    ///
    /// # Errors
    /// Where it cannot be computed.
    fn score(&mut self, completions: &[Completion<'_>]) -> Result<Vec<Option<f64>>, String>;
}

/// A reward of one completion at a time, which needs at most one column of its row.
pub(super) trait Rule {
    /// The column that it needs.
    fn column(&self) -> Option<&str> {
        None
    }

    /// Whether the value of its column is one that it can compare with.
    fn check_value(&self, _value: &Value) -> Result<(), String> {
        Ok(())
    }

    /// The reward, given the value of its column.
    fn score(&self, completion: &Completion<'_>, value: &Value) -> f64;
}

/// A rule with its name.
pub(super) struct Named<R>(pub String, pub R);

impl<R: Rule> Reward for Named<R> {
    fn name(&self) -> &str {
        &self.0
    }

    fn check(&self, row: &Map<String, Value>) -> Result<(), String> {
        let Some(column) = self.1.column() else { return Ok(()) };
        match row.get(column) {
            Some(value) => self.1.check_value(value).map_err(|what| format!("{column:?} {what}")),
            None => {
                let names: Vec<&str> = row.keys().map(String::as_str).collect();
                Err(format!("{column:?} is missing; there is {}", names.join(", ")))
            }
        }
    }

    fn score(&mut self, completions: &[Completion<'_>]) -> Result<Vec<Option<f64>>, String> {
        let score = |completion: &Completion<'_>| {
            self.check(completion.row)?;
            let value = self.1.column().and_then(|column| completion.row.get(column));
            Ok(Some(self.1.score(completion, value.unwrap_or(&Value::Null))))
        };
        completions.iter().map(score).collect()
    }
}

/// The texts of a value: itself, or each entry of a list.
pub(super) fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(list) => list.iter().flat_map(texts).collect(),
        Value::Null => Vec::new(),
        other => vec![other.to_string()],
    }
}
