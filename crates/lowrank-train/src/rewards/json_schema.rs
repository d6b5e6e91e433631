//! 1 for a completion that is JSON and follows a schema, else 0.
//!
//! Of JSON Schema: `type`, `enum`, `const`, `properties`, `required`, `additionalProperties`, `items`, `minItems`, `maxItems`,
//! `minLength`, `maxLength`, `pattern`, `minimum`, `maximum`, `exclusiveMinimum`, `exclusiveMaximum`, `anyOf`, `oneOf`, `allOf`, `not`
//! and what only describes. Anything else is refused, so that no schema is taken for a weaker one.

use regex::Regex;
use serde_json::{Map, Value};

use super::contract::{Completion, Rule};

/// Where the schema is.
pub(super) enum JsonSchema {
    /// One for all.
    Fixed(Value),
    /// In a column, as an object or as text.
    Column(String),
}

impl JsonSchema {
    /// A schema itself, a file of one, or the name of a column.
    pub fn parse(given: &str) -> Result<Self, String> {
        let text = match given.trim_start().starts_with('{') {
            true => given.to_owned(),
            false if std::path::Path::new(given).is_file() => {
                std::fs::read_to_string(given).map_err(|e| format!("{given}: {e}"))?
            }
            false => return Ok(Self::Column(given.to_owned())),
        };
        let schema = serde_json::from_str(&text).map_err(|e| format!("the schema is not JSON: {e}"))?;
        check(&schema)?;
        Ok(Self::Fixed(schema))
    }
}

/// The schema in a column.
fn of_column(value: &Value) -> Result<Value, String> {
    match value {
        Value::String(text) => serde_json::from_str(text).map_err(|e| format!("is no schema: {e}")),
        other => Ok(other.clone()),
    }
}

impl Rule for JsonSchema {
    fn column(&self) -> Option<&str> {
        match self {
            Self::Fixed(_) => None,
            Self::Column(column) => Some(column),
        }
    }

    fn check_value(&self, value: &Value) -> Result<(), String> {
        check(&of_column(value)?)
    }

    fn score(&self, completion: &Completion<'_>, value: &Value) -> f64 {
        let column;
        let schema = match self {
            Self::Fixed(schema) => schema,
            Self::Column(_) => {
                column = of_column(value).unwrap_or_default();
                &column
            }
        };
        let follows = serde_json::from_str(completion.text.trim()).is_ok_and(|value| follows(&value, schema));
        f64::from(u8::from(follows))
    }
}

/// Keywords that ask for nothing.
const DESCRIBING: [&str; 8] =
    ["$schema", "$id", "$comment", "title", "description", "default", "examples", "format"];
const ASKING: [&str; 13] = [
    "type",
    "enum",
    "const",
    "required",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "pattern",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
];
const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];

/// Whether every keyword of a schema is known.
fn check(schema: &Value) -> Result<(), String> {
    let map = match schema {
        Value::Bool(_) => return Ok(()),
        Value::Object(map) => map,
        other => return Err(format!("has {other} where a schema is expected")),
    };
    for (key, value) in map {
        match (key.as_str(), value) {
            ("properties", Value::Object(properties)) => properties.values().try_for_each(check)?,
            ("items" | "additionalProperties" | "not", inner) => check(inner)?,
            ("anyOf" | "oneOf" | "allOf", Value::Array(list)) => list.iter().try_for_each(check)?,
            ("type", value) => {
                let known = |value: &Value| value.as_str().is_some_and(|name| TYPES.contains(&name));
                let all = value.as_array().map_or_else(|| known(value), |list| list.iter().all(known));
                if !all {
                    return Err(format!("has the type {value}; there is {}", TYPES.join(", ")));
                }
            }
            ("pattern", Value::String(pattern)) => {
                Regex::new(pattern).map_err(|e| format!("has a pattern that is not valid: {e}"))?;
            }
            ("enum" | "required", Value::Array(_)) | ("const", _) => {}
            ("enum" | "required" | "pattern" | "properties" | "anyOf" | "oneOf" | "allOf", other) => {
                return Err(format!("has {other} for {key:?}"));
            }
            (key, value) if ASKING.contains(&key) && value.is_number() => {}
            (key, _) if DESCRIBING.contains(&key) => {}
            (key, _) => return Err(format!("has the keyword {key:?}, which rewards do not know")),
        }
    }
    Ok(())
}

/// Whether a value follows a schema whose keywords are known.
fn follows(value: &Value, schema: &Value) -> bool {
    let Value::Object(schema) = schema else { return schema != &Value::Bool(false) };
    schema.iter().all(|(key, asked)| asks(value, schema, key, asked))
}

fn asks(value: &Value, schema: &Map<String, Value>, key: &str, asked: &Value) -> bool {
    let list = || asked.as_array().map(Vec::as_slice).unwrap_or_default();
    let limit = || asked.as_f64().unwrap_or_default();
    let number = |holds: &dyn Fn(f64) -> bool| value.as_f64().is_none_or(holds);
    let length = |of: Option<usize>, holds: &dyn Fn(f64) -> bool| of.is_none_or(|n| holds(n as f64));
    let (letters, entries) =
        (value.as_str().map(|text| text.chars().count()), value.as_array().map(Vec::len));
    match key {
        "type" => match asked {
            Value::Array(names) => names.iter().any(|name| is_of(value, name)),
            name => is_of(value, name),
        },
        "enum" => list().iter().any(|other| same(value, other)),
        "const" => same(value, asked),
        "required" => value
            .as_object()
            .is_none_or(|map| list().iter().filter_map(Value::as_str).all(|name| map.contains_key(name))),
        "properties" => value.as_object().is_none_or(|map| {
            let asked = asked.as_object().into_iter().flatten();
            asked
                .filter_map(|(name, inner)| Some((map.get(name)?, inner)))
                .all(|(v, inner)| follows(v, inner))
        }),
        "additionalProperties" => value.as_object().is_none_or(|map| {
            let known = |name: &str| schema.get("properties").is_some_and(|known| known.get(name).is_some());
            map.iter().filter(|(name, _)| !known(name)).all(|(_, inner)| follows(inner, asked))
        }),
        "items" => value.as_array().is_none_or(|list| list.iter().all(|inner| follows(inner, asked))),
        "anyOf" => list().iter().any(|inner| follows(value, inner)),
        "oneOf" => list().iter().filter(|inner| follows(value, inner)).count() == 1,
        "allOf" => list().iter().all(|inner| follows(value, inner)),
        "not" => !follows(value, asked),
        "pattern" => value.as_str().is_none_or(|text| {
            asked.as_str().and_then(|pattern| Regex::new(pattern).ok()).is_some_and(|re| re.is_match(text))
        }),
        "minimum" => number(&|n| n >= limit()),
        "maximum" => number(&|n| n <= limit()),
        "exclusiveMinimum" => number(&|n| n > limit()),
        "exclusiveMaximum" => number(&|n| n < limit()),
        "minLength" => length(letters, &|n| n >= limit()),
        "maxLength" => length(letters, &|n| n <= limit()),
        "minItems" => length(entries, &|n| n >= limit()),
        "maxItems" => length(entries, &|n| n <= limit()),
        _ => true,
    }
}

fn is_of(value: &Value, name: &Value) -> bool {
    match name.as_str().unwrap_or_default() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.as_f64().is_some_and(|n| n.fract() == 0.0),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}

/// Equal values; 1 and 1.0 are.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_follow_schemas() {
        let schema = r#"{"type": "object", "required": ["name", "age"], "additionalProperties": false, "title": "A person",
            "properties": {"name": {"type": "string", "minLength": 1, "pattern": "^[A-Z]"},
                           "age": {"type": "integer", "minimum": 0, "exclusiveMaximum": 150},
                           "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
                           "id": {"anyOf": [{"type": "null"}, {"const": 7}]}}}"#;
        let rule = JsonSchema::parse(schema).unwrap();
        let row = Map::new();
        let score = |text: &str| rule.score(&Completion { row: &row, text, tokens: 1 }, &Value::Null);
        for good in [
            r#"{"name": "Ann", "age": 3}"#,
            " {\"name\": \"Ann\", \"age\": 3.0, \"tags\": [\"a\"], \"id\": 7}\n",
            r#"{"name": "Ann", "age": 0, "id": null}"#,
        ] {
            assert_eq!(score(good), 1.0, "{good}");
        }
        for bad in [
            "Ann is 3",
            r#"{"name": "Ann"}"#,
            r#"{"name": "ann", "age": 3}"#,
            r#"{"name": "Ann", "age": 150}"#,
            r#"{"name": "Ann", "age": 2.5}"#,
            r#"{"name": "Ann", "age": 3, "other": 1}"#,
            r#"{"name": "Ann", "age": 3, "tags": ["a", "b", "a"]}"#,
            r#"{"name": "Ann", "age": 3, "tags": ["c"]}"#,
            r#"{"name": "Ann", "age": 3, "id": 8}"#,
            r#"{"name": "Ann", "age": 3} and more"#,
        ] {
            assert_eq!(score(bad), 0.0, "{bad}");
        }
    }

    #[test]
    fn unknown_keywords_are_refused() {
        for (schema, what) in [
            (r##"{"$ref": "#/x"}"##, "\"$ref\""),
            (r#"{"items": {"uniqueItems": true}}"#, "\"uniqueItems\""),
            (r#"{"type": "text"}"#, "the type"),
            (r#"{"pattern": "("}"#, "not valid"),
            (r#"{"anyOf": 3}"#, "\"anyOf\""),
            ("{", "not JSON"),
        ] {
            let error = JsonSchema::parse(schema).err().unwrap();
            assert!(error.contains(what), "{error}");
        }
        let column = JsonSchema::parse("schema").unwrap();
        assert_eq!(column.column(), Some("schema"));
        assert!(column.check_value(&"{\"type\": \"object\"}".into()).is_ok());
        assert!(column.check_value(&"text".into()).is_err());
    }
}
