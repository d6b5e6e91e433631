//! What an adapter is trained for, and the labels it tells apart.

use lowrank_models::HeadKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Error;

/// What an adapter is trained for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// The next token.
    #[default]
    Lm,
    /// The class of a text.
    Classification,
    /// The class of a pair of texts.
    PairClassification,
    /// A number for a text or a pair of texts.
    Regression,
    /// A class for each word.
    TokenClassification,
    /// Hidden tokens (Devlin et al. 2018).
    Mlm,
    /// Sentence embeddings: texts that belong together are near to each other.
    Embedding,
}

impl Task {
    const ALL: [Self; 7] = [
        Self::Lm,
        Self::Classification,
        Self::PairClassification,
        Self::Regression,
        Self::TokenClassification,
        Self::Mlm,
        Self::Embedding,
    ];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lm => "lm",
            Self::Classification => "classification",
            Self::PairClassification => "pair-classification",
            Self::Regression => "regression",
            Self::TokenClassification => "token-classification",
            Self::Mlm => "mlm",
            Self::Embedding => "embedding",
        }
    }

    /// PEFT's `task_type`. It has none for masked language models.
    pub fn peft_type(self) -> Option<&'static str> {
        match self {
            Self::Lm => Some("CAUSAL_LM"),
            Self::Classification | Self::PairClassification | Self::Regression => Some("SEQ_CLS"),
            Self::TokenClassification => Some("TOKEN_CLS"),
            Self::Mlm => None,
            Self::Embedding => Some("FEATURE_EXTRACTION"),
        }
    }

    /// Whether it tells classes apart, which have names.
    pub fn has_labels(self) -> bool {
        matches!(self, Self::Classification | Self::PairClassification | Self::TokenClassification)
    }
}

impl std::str::FromStr for Task {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|task| task.name() == name)
            .ok_or_else(|| Error::Options(lowrank_files::unknown("task", name, Self::ALL.map(Self::name))))
    }
}

/// A task with its labels: what `task.json` of an adapter folder says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// The task.
    pub task: Task,
    /// Names of the classes, in the order of their scores.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

impl TaskSpec {
    /// The head it needs.
    pub fn head(&self) -> HeadKind {
        match self.task {
            Task::Lm => HeadKind::Language,
            Task::Mlm => HeadKind::Masked,
            Task::Classification | Task::PairClassification => HeadKind::Sequence(self.labels.len()),
            Task::Regression => HeadKind::Sequence(1),
            Task::TokenClassification => HeadKind::Token(self.labels.len()),
            Task::Embedding => HeadKind::Embedding,
        }
    }

    /// For `task.json`; nothing for language models, which are PEFT's plain case.
    pub fn to_json(&self) -> Option<Value> {
        (self.task != Task::Lm).then(|| serde_json::to_value(self).expect("plain data"))
    }
}
