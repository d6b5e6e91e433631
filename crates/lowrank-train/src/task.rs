//! What an adapter is trained for.

use serde::{Deserialize, Serialize};

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
    /// The classes of a text: any number of them, each by itself.
    MultiLabelClassification,
    /// The class of a pair of texts.
    PairClassification,
    /// A number for a text or a pair of texts, or several.
    Regression,
    /// A class for each word.
    TokenClassification,
    /// Hidden tokens (Devlin et al. 2018).
    Mlm,
    /// Sentence embeddings: texts that belong together are near to each other.
    Embedding,
    /// Of two completions of a prompt the chosen rather than the rejected: DPO and its kin.
    Preference,
    /// Desirable completions rather than undesirable ones (Ethayarajh et al. 2024).
    Kto,
    /// Completions that the model samples and that rewards prefer: GRPO (Shao et al. 2024) and its kin.
    Grpo,
    /// A number for a prompt and a completion that is larger for the chosen one: a reward model.
    Reward,
}

impl Task {
    const ALL: [Self; 12] = [
        Self::Lm,
        Self::Classification,
        Self::MultiLabelClassification,
        Self::PairClassification,
        Self::Regression,
        Self::TokenClassification,
        Self::Mlm,
        Self::Embedding,
        Self::Preference,
        Self::Kto,
        Self::Grpo,
        Self::Reward,
    ];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lm => "lm",
            Self::Classification => "classification",
            Self::MultiLabelClassification => "multi-label-classification",
            Self::PairClassification => "pair-classification",
            Self::Regression => "regression",
            Self::TokenClassification => "token-classification",
            Self::Mlm => "mlm",
            Self::Embedding => "embedding",
            Self::Preference => "preference",
            Self::Kto => "kto",
            Self::Grpo => "grpo",
            Self::Reward => "reward",
        }
    }

    /// PEFT's `task_type`. It has none for masked language models.
    pub fn peft_type(self) -> Option<&'static str> {
        match self {
            Self::Lm | Self::Preference | Self::Kto | Self::Grpo => Some("CAUSAL_LM"),
            Self::Classification
            | Self::MultiLabelClassification
            | Self::PairClassification
            | Self::Regression
            | Self::Reward => Some("SEQ_CLS"),
            Self::TokenClassification => Some("TOKEN_CLS"),
            Self::Mlm => None,
            Self::Embedding => Some("FEATURE_EXTRACTION"),
        }
    }

    /// transformers' `problem_type` of a sequence classifier for it.
    pub fn problem_type(self) -> Option<&'static str> {
        match self {
            Self::Classification | Self::PairClassification => Some("single_label_classification"),
            Self::MultiLabelClassification => Some("multi_label_classification"),
            Self::Regression | Self::Reward => Some("regression"),
            _ => None,
        }
    }

    /// Whether it tells classes apart, which have names.
    pub fn has_labels(self) -> bool {
        match self {
            Self::Classification
            | Self::MultiLabelClassification
            | Self::PairClassification
            | Self::TokenClassification => true,
            Self::Lm
            | Self::Regression
            | Self::Mlm
            | Self::Embedding
            | Self::Preference
            | Self::Kto
            | Self::Grpo
            | Self::Reward => false,
        }
    }

    /// Whether it gives a text numbers.
    pub fn is_number(self) -> bool {
        matches!(self, Self::Regression | Self::Reward)
    }

    /// Whether its adapter is one of a language model, which generates.
    pub fn is_language(self) -> bool {
        matches!(self, Self::Lm | Self::Preference | Self::Kto | Self::Grpo)
    }

    /// Whether it compares completions of prompts.
    pub fn compares(self) -> bool {
        matches!(self, Self::Preference | Self::Kto | Self::Reward)
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
