//! Prompt templates: text with `{column}` in it.

use crate::Error;

/// A text with places for columns: `{name}` is a column's value, `{{` and `}}` are braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Column(String),
}

impl Template {
    /// Parses a template as it stands: for the command line's `\n` see [`unescape`].
    ///
    /// # Errors
    /// Where a brace stands alone or holds no name.
    pub fn parse(source: &str) -> Result<Self, Error> {
        let fail = |why: &str| Err(Error::Options(format!("template {source:?}: {why}")));
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = source;
        while let Some(at) = rest.find(['{', '}']) {
            text.push_str(&rest[..at]);
            let brace = &rest[at..at + 1];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                text.push_str(brace);
                rest = after;
            } else if brace == "}" {
                return fail("a `}` closes nothing; write `}}` for the character");
            } else {
                let Some(end) = rest.find('}') else {
                    return fail("a `{` is never closed; write `{{` for the character");
                };
                let name = rest[..end].trim();
                if name.is_empty() || name.contains('{') {
                    return fail(
                        "braces hold the name of a column, like {prompt}; write `{{` for the character",
                    );
                }
                if !text.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut text)));
                }
                parts.push(Part::Column(name.to_string()));
                rest = &rest[end + 1..];
            }
        }
        text.push_str(rest);
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        Ok(Self(parts))
    }

    /// The names in braces.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Column(name) => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    /// The text with every column filled in by `value`.
    ///
    /// # Errors
    /// The first that `value` gives.
    pub fn fill<'a, E>(&self, mut value: impl FnMut(&str) -> Result<&'a str, E>) -> Result<String, E> {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Column(name) => out.push_str(value(name)?),
            }
        }
        Ok(out)
    }
}

/// Turns `\n`, `\t`, `\r` and `\\` of a command line into the characters they mean.
///
/// # Errors
/// For any other escape.
pub fn unescape(source: &str) -> Result<String, Error> {
    let mut out = String::with_capacity(source.len());
    let mut chars = source.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next() {
            Some('n') => '\n',
            Some('t') => '\t',
            Some('r') => '\r',
            Some('\\') => '\\',
            other => {
                let what = other.map(String::from).unwrap_or_default();
                return Err(Error::Options(format!(
                    "{source:?}: no escape \\{what}: there are \\n, \\t, \\r and \\\\ for a backslash"
                )));
            }
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(template: &str) -> String {
        let template = Template::parse(template).unwrap();
        template.fill(|name| Ok::<_, ()>(if name == "a" { "1{b}" } else { "2" })).unwrap()
    }

    #[test]
    fn fills_columns_once() {
        assert_eq!(fill("{a}\n"), "1{b}\n");
        assert_eq!(fill("x {a}{ b }y"), "x 1{b}2y");
        assert_eq!(fill("{{a}} {{{a}}} é"), "{a} {1{b}} é");
        assert_eq!(fill(""), "");
    }

    #[test]
    fn rejects_loose_braces() {
        for bad in ["{a", "a}", "{}", "{a{b}}", "}{"] {
            let error = Template::parse(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn names_its_columns() {
        let template = Template::parse("{q}: {{x}} {ctx}").unwrap();
        assert_eq!(template.columns().collect::<Vec<_>>(), ["q", "ctx"]);
    }

    #[test]
    fn unescapes() {
        assert_eq!(unescape(r"a\n\t\\n\r").unwrap(), "a\n\t\\n\r");
        assert!(unescape(r"a\q").unwrap_err().to_string().contains(r"\q"));
        assert!(unescape("a\\").is_err());
    }
}
