//! Data files to examples.
//!
//! | format | what a line or row gives |
//! |---|---|
//! | JSONL (`.jsonl`, `.ndjson`, `.json`) | `{"prompt", "completion"}`, `{"messages": [{"role", "content"}, …]}` or `{"text"}`; other keys are ignored |
//! | CoNLL (`.conll`) | a word and its tag a line, for `token-classification` |
//! | `glue:TASK` | the columns of that GLUE file; recognised by its header |
//! | CSV (`.csv`), TSV (`.tsv`) | the columns `prompt` and `completion`, or `text`, or those that [`DataOptions`] names |
//! | E2E, WebNLG, DART | the original files, known by how they begin: the input in one line and a text for it |
//!
//! A prompt and a completion become `encode(prompt) + encode(completion) + eos`, with loss on the
//! completion and eos. A text becomes `encode(text) + eos`, with loss on every token but the first,
//! which nothing predicts. A conversation goes through the chat template, with loss on the
//! assistant's turns. For the other tasks a row is a text (`text`, `sentence`, ...), or two, with a `label`; or words and
//! tags. A TSV file has no quoting: a quote in it is a character like any other.

mod conll;
mod encode;
mod fields;
mod glue;
mod groups;
mod jsonl;
mod labelled;
mod nlg;
mod store;
mod table;
mod template;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use lowrank_engine::Label;
pub use lowrank_models::{Conversation, Message, Texts};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::task::Task;
use encode::Encoded;
use fields::Row;
pub use glue::Glue;
pub use groups::{PromptGroup, read_groups};
pub use store::Examples;
pub use template::Template;

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
    /// Its line, from 1; in a JSON file of WebNLG or DART the number of its entry.
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
    /// Where it came from.
    pub id: ExampleId,
}

/// What is to be learned of an example.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Target {
    /// The tokens that `loss_mask` marks, each from those before it.
    #[default]
    Next,
    /// Classes at tokens: one for a text, at the token that speaks for it, or those of its words.
    Classes(Vec<Label>),
    /// A number for the text, at the token that speaks for it.
    Value {
        /// That token.
        row: u32,
        /// The number.
        value: f32,
    },
    /// Tokens that will be hidden at random.
    Masked,
    /// That two texts belong together: the first has this many of the tokens, the second the others (none, where there
    /// is one text to embed).
    Pair(usize),
}

impl Example {
    /// How many targets it has; for hidden tokens, how many it may have.
    pub fn labels(&self) -> usize {
        match &self.target {
            Target::Next | Target::Masked => self.loss_mask.iter().filter(|&&marked| marked).count(),
            Target::Classes(labels) => labels.len(),
            Target::Value { .. } | Target::Pair(_) => 1,
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
            reason: "unknown file extension: use .jsonl, .csv, .tsv or .conll, or give the format with \
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
            _ => match name.strip_prefix("glue:") {
                Some(task) => Ok(Self::Glue(Glue::parse(task)?)),
                None => {
                    let known = ["jsonl", "csv", "tsv", "e2e", "webnlg", "dart", "conll", "glue:TASK"];
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
    /// Longer examples lose their tail.
    pub max_seq_len: Option<usize>,
    /// Count and report bad lines instead of stopping at the first.
    pub skip_bad_lines: bool,
    /// What the examples are for. The fields above that speak of prompts are for language models, those below for
    /// the other tasks.
    pub task: Task,
    /// Names of the classes, in their order.
    pub labels: Vec<String>,
    /// The column (or JSON key) of a pair's second text.
    pub pair_column: Option<String>,
    /// The column (or JSON key) of the label.
    pub label_column: Option<String>,
    /// Whether a text's last token speaks for it, not the first.
    pub reads_last: bool,
    /// Labels may be missing: the examples are for prediction.
    pub unlabelled: bool,
}

impl DataOptions {
    /// The task of GLUE that the file is of.
    pub(crate) fn glue(&self) -> Option<Glue> {
        match self.format {
            Some(DataFormat::Glue(glue)) => Some(glue),
            _ => None,
        }
    }

    /// The same with the format known.
    fn resolved(&self, path: &Path) -> Result<Self, Error> {
        let format = match self.format {
            Some(format) => format,
            None => self.detected(path)?,
        };
        let mut options = Self { format: Some(format), ..self.clone() };
        if let DataFormat::E2e | DataFormat::Webnlg | DataFormat::Dart = format {
            return nlg::options(&options);
        }
        if format == DataFormat::Tsv && self.task != Task::Lm && self.text_column.is_none() {
            let mut line = Vec::new();
            open(path)?.take(1 << 16).read_until(b'\n', &mut line).map_err(Error::io(path))?;
            let line = String::from_utf8_lossy(&line);
            let columns: Vec<String> = line.trim_end().split('\t').map(|c| c.trim().to_owned()).collect();
            options.format = Some(Glue::detect(&columns).map_or(format, DataFormat::Glue));
        }
        Ok(options)
    }

    /// The format that a file begins as, or that its name tells. Columns that are named are those of a table.
    fn detected(&self, path: &Path) -> Result<DataFormat, Error> {
        let named = [&self.prompt_column, &self.completion_column, &self.text_column];
        if self.task == Task::Lm
            && named.iter().all(|name| name.is_none())
            && let Some(format) = nlg::detect(&mut open(path)?, path)?
        {
            return Ok(format);
        }
        DataFormat::of(path)
    }

    fn check(&self) -> Result<(), Error> {
        if self.task == Task::Lm {
            if let Some(DataFormat::Glue(_) | DataFormat::Conll) = self.format {
                let what = "holds labels, not texts to continue: choose another `task`";
                return Err(Error::Options(format!(
                    "`data_format` {} {what}",
                    self.format.expect("is there")
                )));
            }
        } else if self.prompt_column.is_some()
            || self.completion_column.is_some()
            || self.prompt_template.is_some()
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
        match self.max_seq_len {
            Some(n) if n < 2 => {
                Err(Error::Options(format!("`max_seq_len` {n} leaves nothing to predict: at least 2")))
            }
            _ => Ok(()),
        }
    }
}

/// A line that made no example, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Its number, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// What reading a file came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataReport {
    /// Examples kept.
    pub examples: usize,
    /// Tokens they have.
    pub tokens: usize,
    /// Tokens that carry loss.
    pub labels: usize,
    /// Tokens in the longest.
    pub longest: usize,
    /// Examples that lost their tail to `max_seq_len`, the dropped ones not counted.
    pub truncated: usize,
    /// Examples left out, because `max_seq_len` cut away every token with loss.
    pub dropped: usize,
    /// Lines left out, because they make no example.
    pub bad_lines: usize,
    /// The first few of them.
    pub first_bad: Vec<BadLine>,
}

impl DataReport {
    /// How many bad lines are kept word for word.
    pub const BAD_LINES_SHOWN: usize = 5;

    /// What the user should know, one sentence each; empty where all went well.
    pub fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        if self.truncated > 0 {
            out.push(format!("{} examples cut to `max_seq_len`", self.truncated));
        }
        if self.dropped > 0 {
            out.push(format!("{} examples dropped: `max_seq_len` leaves no token with loss", self.dropped));
        }
        if self.bad_lines > 0 {
            out.push(format!("{} bad lines skipped", self.bad_lines));
            out.extend(self.first_bad.iter().map(|bad| format!("line {}: {}", bad.line, bad.reason)));
        }
        out
    }
}

impl fmt::Display for DataReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { examples, tokens, labels, longest, .. } = self;
        write!(f, "{examples} examples, {tokens} tokens, {labels} with loss, the longest {longest}")
    }
}

/// The examples of a file, in its order.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The examples.
    pub examples: Examples,
    /// Counts and warnings.
    pub report: DataReport,
}

/// Lines tokenised at a time: enough to share among threads, few enough to be no burden.
const CHUNK_LINES: usize = 2048;
/// The same in bytes, for files with very long lines.
const CHUNK_BYTES: usize = 8 << 20;

/// Reads and tokenises a data file, lines in parallel, order kept.
///
/// # Errors
/// A file that cannot be read, whose format is unknown, that lacks a column, or that holds no
/// example; a bad line, unless [`DataOptions::skip_bad_lines`]; options that contradict each other.
pub fn read(path: &Path, options: &DataOptions, encoder: &dyn Encode) -> Result<Dataset, Error> {
    let options = &options.resolved(path)?;
    options.check()?;
    let mut rows = rows(path, options)?;
    let file: Arc<str> = path.display().to_string().into();
    let mut data = Dataset { examples: Examples::default(), report: DataReport::default() };
    loop {
        let mut chunk = Vec::new();
        let mut bytes = 0;
        while chunk.len() < CHUNK_LINES && bytes < CHUNK_BYTES {
            match rows.next() {
                Some(row) => {
                    let row = row?;
                    bytes += row.len();
                    chunk.push(row);
                }
                None => break,
            }
        }
        if chunk.is_empty() {
            break;
        }
        let encode = if options.task == Task::Lm { encode::encode } else { labelled::encode };
        let encoded: Vec<_> = chunk.par_iter().map(|row| encode(row, options, encoder)).collect();
        for (row, encoded) in chunk.iter().zip(encoded) {
            data.add(path, &file, row.line, encoded, options.skip_bad_lines)?;
        }
    }
    if data.examples.is_empty() {
        let report = &data.report;
        let reason = match (report.dropped, report.bad_lines) {
            (0, 0) => "it holds no example: the file is empty".to_string(),
            (dropped, 0) => {
                format!("none of its {dropped} examples keeps a token with loss: raise `max_seq_len`")
            }
            (_, bad) => {
                format!("it holds no example: {bad} bad lines, the first: {}", report.first_bad[0].reason)
            }
        };
        return Err(Error::DataFile { path: path.into(), reason });
    }
    Ok(data)
}

type Rows = Box<dyn Iterator<Item = Result<Row, Error>>>;

fn rows(path: &Path, options: &DataOptions) -> Result<Rows, Error> {
    let input = open(path)?;
    Ok(match options.format {
        Some(DataFormat::Csv) => Box::new(table::Rows::new(path, input, b',', options)?),
        Some(DataFormat::Tsv | DataFormat::Glue(_)) => {
            Box::new(table::Rows::new(path, input, b'\t', options)?)
        }
        Some(format @ (DataFormat::E2e | DataFormat::Webnlg | DataFormat::Dart)) => {
            nlg::rows(path, input, format)?
        }
        Some(DataFormat::Conll) => Box::new(conll::Sentences::new(path, input)),
        Some(DataFormat::Jsonl) | None => Box::new(jsonl::Lines::new(path, input)?),
    })
}

/// The names of the classes in a data file: in GLUE's order, numbers by value, else by the alphabet. Lines that make
/// no example are passed over.
///
/// # Errors
/// A file that cannot be read or lacks a column, or in which there are no two classes.
pub fn labels(path: &Path, options: &DataOptions) -> Result<Vec<String>, Error> {
    let options = &options.resolved(path)?;
    options.check()?;
    let mut found = BTreeSet::new();
    let mut first_bad = None;
    for row in rows(path, options)? {
        let row = row?;
        match labelled::labels(&row, options) {
            Ok(labels) => found.extend(labels),
            Err(reason) => first_bad = first_bad.or(Some((row.line, reason))),
        }
        if options.task != Task::TokenClassification && found.len() > MOST_LABELS {
            let reason = format!(
                "has more than {MOST_LABELS} different labels: `task` regression is for numbers, and \
                 `label_column` names the column of the labels"
            );
            return Err(Error::DataFile { path: path.into(), reason });
        }
    }
    if let (true, Some((line, reason))) = (found.is_empty(), first_bad) {
        return Err(Error::Line { path: path.into(), line, reason });
    }
    let fixed = options.glue().map(|glue| glue.layout().labels).unwrap_or_default();
    if !fixed.is_empty() && found.iter().all(|label| fixed.contains(&label.as_str())) {
        return Ok(fixed.iter().map(ToString::to_string).collect());
    }
    if found.len() < 2 {
        let reason = match found.first() {
            Some(only) => format!("has one label only, {only:?}: there is nothing to tell apart"),
            None => "has no labels".to_owned(),
        };
        return Err(Error::DataFile { path: path.into(), reason });
    }
    Ok(labelled::ordered(found))
}

/// More classes than any head was made for, and what a column of numbers or texts soon has.
const MOST_LABELS: usize = 10_000;

impl Dataset {
    fn add(
        &mut self,
        path: &Path,
        file: &Arc<str>,
        line: u64,
        encoded: Result<Encoded, String>,
        skip_bad_lines: bool,
    ) -> Result<(), Error> {
        let report = &mut self.report;
        match encoded {
            Ok(Encoded::Kept { mut example, truncated }) => {
                report.examples += 1;
                report.tokens += example.tokens.len();
                report.labels += example.labels();
                report.longest = report.longest.max(example.tokens.len());
                report.truncated += usize::from(truncated);
                example.id = ExampleId { file: file.clone(), line };
                self.examples.push(&example);
            }
            Ok(Encoded::Dropped) => report.dropped += 1,
            Err(reason) if skip_bad_lines => {
                report.bad_lines += 1;
                if report.first_bad.len() < DataReport::BAD_LINES_SHOWN {
                    report.first_bad.push(BadLine { line, reason });
                }
            }
            Err(reason) => return Err(Error::Line { path: path.into(), line, reason }),
        }
        Ok(())
    }
}

/// Opens a file past its byte order mark.
fn open(path: &Path) -> Result<BufReader<File>, Error> {
    let file = File::open(path).map_err(Error::io(path))?;
    let mut input = BufReader::with_capacity(1 << 16, file);
    let start = input.fill_buf().map_err(Error::io(path))?;
    if start.starts_with(&[0xff, 0xfe]) || start.starts_with(&[0xfe, 0xff]) {
        let reason = "it is UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`".into();
        return Err(Error::DataFile { path: path.into(), reason });
    }
    if start.starts_with(b"\xef\xbb\xbf") {
        input.consume(3);
    }
    Ok(input)
}
