//! The regular expressions of PEFT's configurations: Python's `re`, with look-around and backreferences.

use fancy_regex::{Regex, RegexBuilder};

use crate::error::Error;

/// Steps that matching one path may take. A pattern that needs more is refused, not waited for.
const BACKTRACK_LIMIT: usize = 1_000_000;

/// A regular expression on module paths.
#[derive(Clone, Debug)]
pub struct Pattern {
    regex: Regex,
    text: String,
}

impl Pattern {
    /// Matches whole paths, as `re.fullmatch` does: `target_modules`, `exclude_modules`.
    ///
    /// # Errors
    /// If it is not a valid regular expression.
    pub fn whole(text: &str) -> Result<Self, Error> {
        Self::new(&format!("^(?:{text})$"), text)
    }

    /// Matches ends of paths that begin behind a dot: the keys of `rank_pattern` and `alpha_pattern`. Groups of the user's
    /// are counted from 3, as in PEFT.
    ///
    /// # Errors
    /// If it is not a valid regular expression.
    pub fn end(text: &str) -> Result<Self, Error> {
        Self::new(&format!(r"^(.*\.)?({text})$"), text)
    }

    /// Finds the first numbered part of a path: behind `name`, or behind any.
    ///
    /// # Errors
    /// If `name` is not a valid regular expression.
    pub fn layer(name: Option<&str>) -> Result<Self, Error> {
        match name {
            Some(name) => Self::new(&format!(r"^(?:^|.*?\.){name}\.(?P<idx>\d+)\."), name),
            None => Self::new(r"^.*?\.[^.]*\.(?P<idx>\d+)\.", "layers_pattern"),
        }
    }

    fn new(full: &str, text: &str) -> Result<Self, Error> {
        let regex = RegexBuilder::new(full).backtrack_limit(BACKTRACK_LIMIT).build();
        let wrong = |e| Error::Config(format!("{text:?} is not a valid regular expression: {e}"));
        Ok(Self { regex: regex.map_err(wrong)?, text: text.to_owned() })
    }

    /// Whether `path` matches.
    ///
    /// # Errors
    /// If that takes too many steps.
    pub fn is_match(&self, path: &str) -> Result<bool, Error> {
        self.regex.is_match(path).map_err(|e| self.too_long(path, &e))
    }

    /// The number that [`Pattern::layer`] finds in `path`.
    ///
    /// # Errors
    /// If that takes too many steps.
    pub fn number(&self, path: &str) -> Result<Option<usize>, Error> {
        let found = self.regex.captures(path).map_err(|e| self.too_long(path, &e))?;
        Ok(found.and_then(|found| found.name("idx")?.as_str().parse().ok()))
    }

    fn too_long(&self, path: &str, error: &fancy_regex::Error) -> Error {
        Error::Config(format!("the regular expression {:?} on {path:?}: {error}; simplify it", self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_pythons() {
        let path = "model.layers.1.self_attn.q_proj";
        for (pattern, matches) in [
            (r".*layers\.(?!0\.)\d+\..*q_proj", true),
            (r".*layers\.(?!1\.)\d+\..*q_proj", false),
            (r".*(?<=self_attn\.)q_proj", true),
            (r".*(?<!self_attn\.)q_proj", false),
            (r"model\.layers\.1\.self_a(t)\1n\.q_proj", true),
            (r"model\.layers\.1\.self_a(?P<x>t)(?P=x)n\.q_proj", true),
            (r"(?i).*Q_PROJ", true),
            (r"q_proj", false),
            (r".*q_proj|lm_head", true),
            (r".*q_pro", false),
        ] {
            assert_eq!(Pattern::whole(pattern).unwrap().is_match(path).unwrap(), matches, "{pattern}");
        }
        for (pattern, matches) in
            [("q_proj", true), ("roj", false), (r"self_a(t)\3n\.q_proj", true), ("(?<=x)q_proj", false)]
        {
            assert_eq!(Pattern::end(pattern).unwrap().is_match(path).unwrap(), matches, "{pattern}");
        }
        assert!(Pattern::whole("(").is_err());
    }

    #[test]
    fn endless_patterns_are_refused() {
        let pattern = Pattern::whole(r"(?=m)(.*\w+)+\1\1!").unwrap();
        let error = pattern.is_match(&"model.layers".repeat(20)).unwrap_err().to_string();
        assert!(error.contains("simplify") && error.contains("model.layers"), "{error}");
    }

    #[test]
    fn a_layer_is_the_first_number() {
        let number = |name, path| Pattern::layer(name).unwrap().number(path).unwrap();
        assert_eq!(number(None, "model.layers.1.experts.3.up_proj"), Some(1));
        assert_eq!(number(Some("experts"), "model.layers.1.experts.3.up_proj"), Some(3));
        assert_eq!(number(Some("layers"), "layers.2.up_proj"), Some(2));
        assert_eq!(number(None, "lm_head"), None);
    }
}
