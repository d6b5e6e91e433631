//! Rewards: what says how good a sampled completion is. `contract` says what a reward is; each is a file of its own and a line of
//! [`parse`].

mod command;
mod contract;
mod exact_match;
mod json_schema;
mod length;
mod numeric;
mod pattern;

use std::time::Duration;

pub use contract::{Completion, Reward};
use regex::Regex;

use contract::Named;

/// What the rewards here are called, with what stands behind the colon.
pub const REWARDS: [(&str, &str); 6] = [
    ("exact_match", "COLUMN"),
    ("numeric", "COLUMN"),
    ("regex", "PATTERN"),
    ("json_schema", "SCHEMA, FILE or COLUMN"),
    ("length", "TOKENS"),
    ("command", "PROGRAM"),
];

/// The reward that `given` names as `NAME:ARGUMENT`; `None` where the name is not one of [`REWARDS`]. In the log it is called `name`.
///
/// # Errors
/// Says what is wrong with the argument.
pub fn parse(
    given: &str,
    name: impl Fn(&str) -> String,
    timeout: Duration,
) -> Result<Option<Box<dyn Reward>>, String> {
    let Some((kind, argument)) = given.split_once(':') else { return Ok(None) };
    if let (true, Some((_, what))) = (argument.is_empty(), REWARDS.iter().find(|(known, _)| *known == kind)) {
        return Err(format!("{kind} needs {what} behind the colon"));
    }
    let (column, name) = (argument.to_owned(), name(kind));
    Ok(Some(match kind {
        "exact_match" => Box::new(Named(name, exact_match::ExactMatch { column })),
        "numeric" => Box::new(Named(name, numeric::Numeric { column })),
        "regex" => {
            let found =
                Regex::new(argument).map_err(|e| format!("{argument:?} is not a valid pattern: {e}"))?;
            Box::new(Named(name, pattern::Pattern(found)))
        }
        "json_schema" => Box::new(Named(name, json_schema::JsonSchema::parse(argument)?)),
        "length" => {
            let tokens = argument.parse().ok().filter(|tokens| *tokens > 0);
            let tokens = tokens.ok_or_else(|| format!("length:{argument} is no number of tokens"))?;
            Box::new(Named(name, length::Length(tokens)))
        }
        "command" => Box::new(command::Program::new(name, argument, timeout)),
        _ => return Ok(None),
    }))
}
