//! The rewards of a run, as they are named: `NAME:ARGUMENT` each (`reward_funcs`).

use serde::{Deserialize, Serialize};
use toml::Value as Toml;

use crate::fields::{FieldKind, OptionValue};

/// One or several rewards.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "OneOrSeveral", into = "Vec<String>")]
pub struct RewardFuncs(Vec<String>);

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrSeveral {
    One(String),
    Several(Vec<String>),
}

impl From<OneOrSeveral> for RewardFuncs {
    fn from(given: OneOrSeveral) -> Self {
        match given {
            OneOrSeveral::One(name) => Self(vec![name]),
            OneOrSeveral::Several(names) => Self(names),
        }
    }
}

impl From<RewardFuncs> for Vec<String> {
    fn from(given: RewardFuncs) -> Self {
        given.0
    }
}

impl From<Vec<String>> for RewardFuncs {
    fn from(names: Vec<String>) -> Self {
        Self(names)
    }
}

impl From<&str> for RewardFuncs {
    fn from(name: &str) -> Self {
        Self(vec![name.to_owned()])
    }
}

impl RewardFuncs {
    /// The names.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

impl OptionValue for RewardFuncs {
    const KIND: FieldKind = FieldKind::Texts;

    fn parse(text: &str) -> Result<Toml, String> {
        Ok(Toml::String(text.to_owned()))
    }
}
