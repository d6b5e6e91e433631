//! 1 for a completion whose last number is the last number of a column, as answers to problems of arithmetic are compared.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::contract::{Completion, Rule, texts};

pub(super) struct Numeric {
    pub column: String,
}

impl Rule for Numeric {
    fn column(&self) -> Option<&str> {
        Some(&self.column)
    }

    fn check_value(&self, value: &Value) -> Result<(), String> {
        match texts(value).iter().any(|text| last_number(text).is_some()) {
            true => Ok(()),
            false => Err(format!("is {value}, which has no number")),
        }
    }

    fn score(&self, completion: &Completion<'_>, value: &Value) -> f64 {
        let Some(have) = last_number(completion.text) else { return 0.0 };
        let same = |want: f64| (have - want).abs() <= 1e-6 * want.abs().max(1.0);
        let found = texts(value).iter().filter_map(|text| last_number(text)).any(same);
        f64::from(u8::from(found))
    }
}

/// The last number in a text: with a sign, a point, an exponent, and commas between thousands.
fn last_number(text: &str) -> Option<f64> {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
        let number = r"[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?";
        Regex::new(number).expect("a valid pattern")
    });
    let found = NUMBER.find_iter(text).last()?;
    // Behind a word or a number, a sign is an operator or a hyphen.
    let behind = text[..found.start()].ends_with(|c: char| c.is_alphanumeric() || c == ')');
    let number = found.as_str().replace(',', "");
    if behind { number.trim_start_matches(['-', '+']).parse().ok() } else { number.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_end_texts() {
        for (text, want) in [
            ("The answer is 42.", Some(42.0)),
            ("so 1,234.50 in all", Some(1234.5)),
            ("3 + 4 = -7", Some(-7.0)),
            ("10-7", Some(7.0)),
            ("#### 72", Some(72.0)),
            ("about 2.5e-3", Some(0.0025)),
            ("1e5", Some(100_000.0)),
            ("(1+2)-3", Some(3.0)),
            ("1, 2, 345", Some(345.0)),
            ("1,2", Some(2.0)),
            ("é -0.5%", Some(-0.5)),
            (".5", Some(0.5)),
            ("none", None),
            ("", None),
        ] {
            assert_eq!(last_number(text), want, "{text:?}");
        }
    }

    #[test]
    fn the_last_number_counts() {
        let rule = Numeric { column: "answer".into() };
        let row = serde_json::Map::new();
        let score = |text: &str, value: Value| rule.score(&Completion { row: &row, text, tokens: 1 }, &value);
        assert_eq!(score("2 + 2 = 4", 4.into()), 1.0);
        assert_eq!(score("4 or 5", 4.into()), 0.0);
        assert_eq!(score("it is 72.0", "Half of it. #### 72".into()), 1.0);
        assert_eq!(score("no idea", 4.into()), 0.0);
        assert!(rule.check_value(&"x".into()).is_err());
    }
}
