//! Prompt templates: text with `{column}` in it.

use std::fmt;

use crate::Error;

/// A text with places for columns.
///
/// | written | means |
/// |---|---|
/// | `{name}` | the value of column `name` |
/// | `{{`, `}}` | a brace |
/// | `\n`, `\t`, `\r`, `\\` | line end, tab, carriage return, backslash: command lines cannot hold the first three |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Column(String),
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Column(name) => format!("{{{name}}}"),
        };
        write!(f, "{:?}", self.0.iter().map(text).collect::<String>())
    }
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// Where a brace stands alone or holds no name, or an escape is unknown.
    pub fn parse(source: &str) -> Result<Self, Error> {
        let fail = |why: &str| Err(Error::Options(format!("template {source:?}: {why}")));
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = source;
        while let Some(at) = rest.find(['{', '}', '\\']) {
            text.push_str(&rest[..at]);
            let (special, after) = rest[at..].split_at(1);
            rest = after;
            if special == "\\" {
                let meant = match rest.bytes().next() {
                    Some(b'n') => '\n',
                    Some(b't') => '\t',
                    Some(b'r') => '\r',
                    Some(b'\\') => '\\',
                    _ => return fail("unknown escape: there are \\n, \\t, \\r, and \\\\ for a backslash"),
                };
                text.push(meant);
                rest = &rest[1..];
            } else if let Some(after) = rest.strip_prefix(special) {
                text.push_str(special);
                rest = after;
            } else if special == "}" {
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
    fn knows_escapes() {
        assert_eq!(fill(r"{a}\n\t\\n\r{b}"), "1{b}\n\t\\n\r2");
        assert_eq!(fill("{a}\n"), fill(r"{a}\n"));
        for bad in [r"a\q", "a\\", r"\é"] {
            let error = Template::parse(bad).unwrap_err().to_string();
            assert!(error.contains("unknown escape"), "{error}");
        }
    }
}
