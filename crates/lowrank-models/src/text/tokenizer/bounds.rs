//! What is checked of a `tokenizer.json` before the library reads it: how much longer it may make a text, and in how long,
//! and parts in whose readers the library panics rather than fails.

use regex::Regex;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::normalizers::Precompiled;

/// How many times longer the normalizer, or the decoder, may make a text. The usual ones stay below 10.
const MOST_GROWTH: f64 = 64.0;

/// Characters of a word that a WordPiece model looks up piece by piece; its time is the square of it. BERT's has 100.
const MAX_WORD: u64 = 10_000;

/// The parts that change a text or look for patterns in it.
#[derive(Deserialize)]
pub(super) struct Bounds {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    model: Model,
}

#[derive(Default, Deserialize)]
struct Model {
    #[serde(default)]
    max_input_chars_per_word: Value,
}

impl Bounds {
    /// # Errors
    /// Where a chain of replacements makes a text many times longer, or a part is not what its type asks for.
    pub fn check(&self) -> Result<(), String> {
        let mut wrong = None;
        steps(&self.normalizer, &mut |step| {
            if step["type"] == "Precompiled"
                && step["precompiled_charsmap"].as_str().is_some_and(says_too_much)
            {
                let what = "normalizer: its precompiled_charsmap says that its table is longer than itself";
                wrong.get_or_insert(what.to_owned());
            } else if step["type"] == "Precompiled"
                && let Err(error) = Precompiled::deserialize(step)
            {
                wrong.get_or_insert(format!("normalizer: {error}"));
            }
        });
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        for (name, part) in [("normalizer", &self.normalizer), ("decoder", &self.decoder)] {
            let mut growth = 1.0;
            let mut replacements = 0;
            steps(part, &mut |step| {
                if step["type"] == "Replace" {
                    growth *= growth_of(step);
                    replacements += 1;
                }
            });
            if growth > MOST_GROWTH {
                return Err(format!(
                    "its {name} has {replacements} replacements that may make a text {growth:.0} times longer; at most \
                     {MOST_GROWTH} times is read"
                ));
            }
        }
        let word = self.model.max_input_chars_per_word.as_u64().unwrap_or(0);
        if word > MAX_WORD {
            return Err(format!("max_input_chars_per_word is {word}; it may be up to {MAX_WORD}"));
        }
        Ok(())
    }

    /// Whether it has a pattern whose time is not known to grow with the text's length alone.
    pub fn may_take_for_ever(&self) -> bool {
        let mut unknown = false;
        for part in [&self.normalizer, &self.pre_tokenizer, &self.decoder] {
            steps(part, &mut |step| {
                let pattern = step["pattern"]["Regex"].as_str();
                unknown |= pattern.is_some_and(|pattern| !is_linear(pattern));
            });
        }
        unknown
    }
}

/// Calls `look` with each step of a part, those of sequences too.
fn steps<'a>(part: &'a Value, look: &mut dyn FnMut(&'a Value)) {
    let mut waiting = vec![part];
    while let Some(step) = waiting.pop() {
        look(step);
        for list in ["normalizers", "pretokenizers", "decoders"] {
            waiting.extend(step[list].as_array().into_iter().flatten());
        }
    }
}

/// How many times longer a replacement makes a text, at most.
fn growth_of(step: &Value) -> f64 {
    let content = step["content"].as_str().unwrap_or_default().len() as f64;
    match step["pattern"]["String"].as_str() {
        Some(text) => (content / text.len().max(1) as f64).max(1.0),
        // It may match each character, and the empty text between two.
        None => 1.0 + content,
    }
}

/// Whether a pattern takes time that grows with the text alone: one that the `regex` crate knows, GPT-2's look at the
/// character after white space aside.
fn is_linear(pattern: &str) -> bool {
    Regex::new(&pattern.replace(r"(?!\S)", "")).is_ok()
}

/// Whether a `precompiled_charsmap` says that its table, for which room is made at once, is longer than the whole: it
/// begins with the table's bytes, 32 bits in base64.
fn says_too_much(map: &str) -> bool {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => u64::from(byte - b'A'),
        b'a'..=b'z' => u64::from(byte - b'a') + 26,
        b'0'..=b'9' => u64::from(byte - b'0') + 52,
        b'+' => 62,
        _ => 63,
    };
    let Some(first) = map.as_bytes().get(..6) else { return false };
    let bits = first.iter().fold(0, |bits, byte| bits << 6 | digit(*byte));
    // 36 bits, of which the first 32 are four bytes from the lowest on.
    let bytes = ((bits >> 4) as u32).swap_bytes();
    bytes as usize > map.len() / 4 * 3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(json: &str) -> Bounds {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn replacements_multiply() {
        let double = r#"{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}"#;
        let chain = |n: usize| {
            bounds(&format!(
                r#"{{"normalizer": {{"type": "Sequence", "normalizers": [{}]}}}}"#,
                vec![double; n].join(",")
            ))
        };
        chain(6).check().unwrap();
        let error = chain(7).check().unwrap_err();
        assert!(error.contains("normalizer has 7 replacements") && error.contains("128 times"), "{error}");
        let long = format!(
            r#"{{"decoder": {{"type": "Replace", "pattern": {{"Regex": "x*"}}, "content": "{}"}}}}"#,
            "b".repeat(64)
        );
        assert!(bounds(&long).check().unwrap_err().contains("decoder"));
        // Llama's.
        bounds(r#"{"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}}"#)
            .check()
            .unwrap();
        let word = bounds(r#"{"model": {"max_input_chars_per_word": 1000000000}}"#).check().unwrap_err();
        assert!(word.contains("max_input_chars_per_word is 1000000000"), "{word}");
    }

    #[test]
    fn patterns_that_are_not_known_are_watched() {
        let split = |pattern: &str| {
            let step = serde_json::json!({"type": "Split", "pattern": {"Regex": pattern}});
            bounds(
                &serde_json::json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [step]}})
                    .to_string(),
            )
        };
        let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        assert!(!split(llama3).may_take_for_ever());
        assert!(!split(r"\d").may_take_for_ever());
        for pattern in [r"(a+)+(?=b)", r"(.+)\1", r"(?<=a)b", "("] {
            assert!(split(pattern).may_take_for_ever(), "{pattern}");
        }
    }
}
