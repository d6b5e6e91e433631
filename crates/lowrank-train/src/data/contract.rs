//! What a data file gives: options, formats, examples, and what the readers need from a tokenizer.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use lowrank_engine::Label;
use lowrank_models::heads::Reads;
use lowrank_models::{Conversation, Texts};
use serde::{Deserialize, Serialize};

use super::glue::Glue;
use super::template::Template;
use crate::Error;
use crate::task::Task;

/// Why a text or a conversation has no tokens.
pub type EncodeError = Box<dyn std::error::Error + Send + Sync>;

/// What the readers need from a tokenizer and its chat template.
pub trait Encode: Sync {
    /// The tokens of a text that something may follow: with the begin token where the tokenizer adds one, and without
    /// an end token added behind.
    ///
    /// # Errors
    /// Where the tokenizer refuses it.
    fn encode(&self, text: &str) -> Result<Vec<u32>, EncodeError>;

    /// The tokens of a whole conversation and, for each, whether it is a training target.
    ///
    /// # Errors
    /// Where there is no chat template, or it refuses these messages.
    fn encode_chat(&self, talk: &Conversation) -> Result<(Vec<u32>, Vec<bool>), EncodeError>;

    /// The tokens of a conversation that the assistant is to answer.
    ///
    /// # Errors
    /// As [`Encode::encode_chat`].
    fn encode_chat_prompt(&self, talk: &Conversation) -> Result<Vec<u32>, EncodeError> {
        Ok(self.encode_chat(talk)?.0)
    }

    /// Whether conversations can be encoded.
    fn has_chat_template(&self) -> bool {
        true
    }

    /// The token that ends a text, where there is one.
    fn eos(&self) -> Option<u32>;

    /// The tokens of a text or a pair as a classifier reads them, at most `max`.
    ///
    /// # Errors
    /// Where the tokenizer refuses it.
    fn texts(&self, first: &str, second: Option<&str>, max: Option<usize>) -> Result<Texts, EncodeError>;

    /// The same of a text that is split into words.
    ///
    /// # Errors
    /// Where the tokenizer refuses it.
    fn words(&self, words: &[&str], max: Option<usize>) -> Result<Texts, EncodeError>;
}

/// Where an example came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ExampleId {
    /// The data file as it was named.
    pub file: Arc<str>,
    /// Its line, from 1; in a Parquet file its row, in a JSON file of WebNLG or DART the number of its entry.
    pub line: u64,
}

impl fmt::Display for ExampleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// One tokenised example.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// `T` tokens.
    pub tokens: Vec<u32>,
    /// Type of each token (BERT: which text of a pair it is of); empty where all are 0.
    pub token_types: Vec<u32>,
    /// [`Target::Next`]: token `i` is a training target. Never the first one: nothing predicts it.
    /// [`Target::Masked`]: token `i` may be hidden. Else empty.
    pub loss_mask: Vec<bool>,
    /// Leading tokens without loss that other examples may share; 0 for a text.
    pub prompt_len: usize,
    /// What is to be learned.
    pub target: Target,
    /// [`Target::Pair`]: how alike the two texts are, where the data say so. Read by evaluation only.
    pub similarity: Option<f32>,
    /// Weight of its losses; `None` is 1.
    pub weight: Option<f32>,
    /// [`Target::Completions`]: the log-probabilities of both under the reference; empty where there is none, or not yet.
    pub reference: Vec<f32>,
    /// What a sampled completion is worth; only of those that a run samples.
    pub sample: Option<Sample>,
    /// Where it came from.
    pub id: ExampleId,
}

/// What a sampled completion is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// By how much its reward is better than that of others.
    pub advantage: f32,
    /// What the sum of its tokens' losses is multiplied with.
    pub scale: f32,
}

/// What is to be learned of an example.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Target {
    /// The tokens that `loss_mask` marks, each from those before it.
    #[default]
    Next,
    /// Classes at tokens: one for a text, at the token that speaks for it, or those of its words.
    Classes(Vec<Label>),
    /// The classes of the text, each by itself, at the token that speaks for it.
    ClassSet {
        /// That token.
        row: u32,
        /// Those that it is of, in rising order.
        classes: Vec<u32>,
    },
    /// Numbers for the text, at the token that speaks for it.
    Values {
        /// That token.
        row: u32,
        /// As many as the head has outputs.
        values: Vec<f32>,
    },
    /// Tokens that will be hidden at random.
    Masked,
    /// That two texts belong together: the first has this many of the tokens, the second the others (none, where there
    /// is one text to embed).
    Pair(usize),
    /// Which of two completions of the prompt is better: `tokens` are prompt, first and second completion. The first is the
    /// chosen one and the second the rejected one; or, where `desirable` says something, the first is that, and the second is
    /// the completion of another prompt.
    Completions {
        /// Tokens of the first completion.
        first: usize,
        /// Whether the first is desirable.
        desirable: Option<bool>,
    },
    /// The same for a head that gives each completion a number, which is to be larger for the first by `margin`.
    Rewards {
        /// Tokens of the first completion.
        first: usize,
        /// By how much.
        margin: f32,
    },
    /// A prompt whose completions are sampled and rewarded: its row of the data, as JSON.
    Prompt(String),
}

impl Example {
    /// How many targets it has; for hidden tokens, how many it may have.
    pub fn labels(&self) -> usize {
        match &self.target {
            Target::Next | Target::Masked => self.loss_mask.iter().filter(|&&marked| marked).count(),
            Target::Completions { .. } => self.tokens.len() - self.prompt_len,
            Target::Rewards { .. } => 2,
            Target::Prompt(_) => 0,
            Target::Classes(labels) => labels.len(),
            Target::ClassSet { .. } | Target::Values { .. } | Target::Pair(_) => 1,
        }
    }
}

/// The format of a data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DataFormat {
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated, a header line, quotes as in RFC 4180.
    Csv,
    /// Tab-separated, a header line, no quoting.
    Tsv,
    /// A word and its tag a line, a blank line after each sentence.
    Conll,
    /// A file of the GLUE benchmark: tab-separated, its columns known.
    Glue(Glue),
    /// E2E NLG challenge: CSV of meaning representations and texts.
    E2e,
    /// WebNLG 2017 challenge: JSON of triples and texts.
    Webnlg,
    /// DART: JSON of triples and texts.
    Dart,
    /// Parquet: each row an object as in JSONL.
    Parquet,
}

impl DataFormat {
    /// The format that a file's extension tells.
    ///
    /// # Errors
    /// For an extension that tells none.
    pub fn of(path: &Path) -> Result<Self, Error> {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
        extension.parse().map_err(|_| Error::DataFile {
            path: path.into(),
            reason:
                "unknown file extension: use .jsonl, .csv, .tsv, .parquet or .conll, or give the format with \
                     `data_format`"
                    .into(),
        })
    }
}

impl std::str::FromStr for DataFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "jsonl" | "ndjson" | "json" => Ok(Self::Jsonl),
            "csv" => Ok(Self::Csv),
            "tsv" | "tab" => Ok(Self::Tsv),
            "e2e" => Ok(Self::E2e),
            "webnlg" => Ok(Self::Webnlg),
            "dart" => Ok(Self::Dart),
            "conll" => Ok(Self::Conll),
            "parquet" => Ok(Self::Parquet),
            _ => match name.strip_prefix("glue:") {
                Some(task) => Ok(Self::Glue(Glue::parse(task)?)),
                None => {
                    let known =
                        ["jsonl", "csv", "tsv", "parquet", "e2e", "webnlg", "dart", "conll", "glue:TASK"];
                    Err(Error::Options(lowrank_files::unknown("data format", name, known)))
                }
            },
        }
    }
}

impl fmt::Display for DataFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jsonl => f.write_str("jsonl"),
            Self::Csv => f.write_str("csv"),
            Self::Tsv => f.write_str("tsv"),
            Self::E2e => f.write_str("e2e"),
            Self::Webnlg => f.write_str("webnlg"),
            Self::Dart => f.write_str("dart"),
            Self::Conll => f.write_str("conll"),
            Self::Parquet => f.write_str("parquet"),
            Self::Glue(glue) => write!(f, "glue:{}", glue.name()),
        }
    }
}

impl TryFrom<String> for DataFormat {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

impl From<DataFormat> for String {
    fn from(format: DataFormat) -> Self {
        format.to_string()
    }
}

/// Which turns of the assistant are trained, of those that a row does not leave out itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainOnTurns {
    /// All.
    #[default]
    All,
    /// The last one of a conversation.
    Last,
}

impl std::str::FromStr for TrainOnTurns {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "all" => Ok(Self::All),
            "last" => Ok(Self::Last),
            _ => Err(Error::Options(lowrank_files::unknown("choice of turns", name, ["all", "last"]))),
        }
    }
}

/// How to read a data file.
#[derive(Clone, Debug, Default)]
pub struct DataOptions {
    /// The format, where the extension does not tell it.
    pub format: Option<DataFormat>,
    /// The column (or JSON key) of the prompt; `prompt` where unset.
    pub prompt_column: Option<String>,
    /// The column (or JSON key) of the completion; `completion` where unset.
    pub completion_column: Option<String>,
    /// The column (or JSON key) of a text without prompt.
    pub text_column: Option<String>,
    /// What the prompt is made of: `{prompt}` is the prompt column, `{name}` any other.
    pub prompt_template: Option<Template>,
    /// Loss on prompts and on all turns too.
    pub loss_on_prompt: bool,
    /// Which turns of the assistant have loss.
    pub train_on_turns: TrainOnTurns,
    /// Longer examples lose their tail.
    pub max_seq_len: Option<usize>,
    /// Count and report bad lines instead of stopping at the first.
    pub skip_bad_lines: bool,
    /// Longest row of the file, in bytes; 16 MB where unset.
    pub max_row_bytes: Option<usize>,
    /// What the examples are for. The fields above that speak of prompts are for language models, those below for
    /// the other tasks.
    pub task: Task,
    /// Names of the classes, in their order.
    pub labels: Vec<String>,
    /// Regression: how many numbers a text has; 0 is 1.
    pub outputs: usize,
    /// The column (or JSON key) of a pair's second text.
    pub pair_column: Option<String>,
    /// The column (or JSON key) of the label.
    pub label_column: Option<String>,
    /// The column (or JSON key) of the chosen completion; `chosen` where unset.
    pub chosen_column: Option<String>,
    /// The column (or JSON key) of the rejected completion; `rejected` where unset.
    pub rejected_column: Option<String>,
    /// The column (or JSON key) of the weight of a row's losses; 1 where unset.
    pub weight_column: Option<String>,
    /// Which row speaks for a text.
    pub reads: Reads,
    /// Labels may be missing: the examples are for prediction.
    pub unlabelled: bool,
}

impl DataOptions {
    /// Longest row in bytes.
    pub(super) fn row_limit(&self) -> usize {
        self.max_row_bytes.unwrap_or(16 << 20)
    }

    /// The task of GLUE that the file is of.
    pub(crate) fn glue(&self) -> Option<Glue> {
        match self.format {
            Some(DataFormat::Glue(glue)) => Some(glue),
            _ => None,
        }
    }

    /// Whether its fields go together.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.task == Task::Lm {
            if let Some(DataFormat::Glue(_) | DataFormat::Conll) = self.format {
                let what = "holds labels, not texts to continue: choose another `task`";
                return Err(Error::Options(format!(
                    "`data_format` {} {what}",
                    self.format.expect("is there")
                )));
            }
        } else if !self.task.compares()
            && self.task != Task::Grpo
            && (self.prompt_column.is_some()
                || self.completion_column.is_some()
                || self.prompt_template.is_some())
        {
            return Err(Error::Options(format!(
                "`task` {} reads texts: name them with `text_column` and `pair_column` in place of \
                 `prompt_column`, `completion_column` and `prompt_template`",
                self.task.name()
            )));
        }
        let pair = self.prompt_column.is_some() || self.completion_column.is_some();
        if self.text_column.is_some() && (pair || self.prompt_template.is_some()) {
            return Err(Error::Options(
                "`text_column` trains on a text without prompt: drop it, or drop `prompt_column`, \
                 `completion_column` and `prompt_template`"
                    .into(),
            ));
        }
        if let Some(template) = self.prompt_template.as_ref().filter(|t| t.columns().next().is_none()) {
            return Err(Error::Options(format!(
                "`prompt_template` {template} names no column, so every prompt would be the same: write {{prompt}} \
                 where the prompt goes"
            )));
        }
        match self.max_seq_len {
            Some(n) if n < 2 => {
                Err(Error::Options(format!("`max_seq_len` {n} leaves nothing to predict: at least 2")))
            }
            _ => Ok(()),
        }
    }
}
