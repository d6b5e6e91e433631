//! Data files to examples.
//!
//! | format | what a line or row gives |
//! |---|---|
//! | JSONL (`.jsonl`, `.ndjson`, `.json`), or one JSON list | `{"prompt", "completion"}`, `{"messages": [{"role", "content"}, …]}`, `{"conversations": [{"from", "value"}, …]}` (ShareGPT), `{"instruction", "input", "output"}` (Alpaca) or `{"text"}`; other keys are ignored |
//! | the same, for preferences and rewards | `{"prompt", "chosen", "rejected"}`, for KTO `{"prompt", "completion", "label"}`: texts, or lists of turns |
//! | Parquet (`.parquet`; feature `parquet`) | a row is such an object |
//! | CoNLL (`.conll`) | a word and its tag a line, for `token-classification` |
//! | `glue:TASK` | the columns of that GLUE file; recognised by its header |
//! | CSV (`.csv`), TSV (`.tsv`) | the columns `prompt` and `completion`, or `text`, or those that [`DataOptions`] names |
//! | E2E, WebNLG, DART | the original files, known by how they begin: the input in one line and a text for it |
//!
//! A prompt and a completion become `encode(prompt) + encode(completion) + eos`, with loss on the
//! completion and eos. A text becomes `encode(text) + eos`, with loss on every token but the first,
//! which nothing predicts. A conversation goes through the chat template, with loss on the
//! assistant's turns; so do a prompt and a completion that are lists of turns, with loss on the completion's. Alpaca's rows are
//! turns where the model has a chat template, and else a prompt in Alpaca's own template. A row that has no token with loss is an error with its line; one that `max_seq_len` cuts so short is
//! dropped, counted and named in a warning. For the other tasks a row is a text (`text`, `sentence`, ...), or two, with a `label`, a list of
//! labels or numbers; or words and tags. A TSV file has no quoting: a quote in it is a character like any other.

mod alpaca;
mod conll;
mod contract;
mod encode;
mod fields;
mod glue;
mod groups;
mod jsonl;
mod labelled;
mod nlg;
#[cfg(feature = "parquet")]
mod parquet;
mod preference;
mod prompts;
mod store;
mod table;
mod template;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use lowrank_models::{Conversation, Message, Texts};
use rayon::prelude::*;

use crate::Error;
use crate::batches::{Random, shuffle};
use crate::task::Task;
pub use contract::{
    DataFormat, DataOptions, Encode, EncodeError, Example, ExampleId, Sample, Target, TrainOnTurns,
};
use encode::Encoded;
use fields::Rows;
pub use glue::Glue;
pub use groups::{PromptGroup, read_groups, read_groups_of};
pub use labelled::class;
pub use store::Examples;
pub use template::Template;

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
    /// Lines of the first few of them.
    pub first_dropped: Vec<u64>,
    /// Examples with a blank answer, of which the end of the text alone is learned.
    pub empty: usize,
    /// Lines of the first few of them.
    pub first_empty: Vec<u64>,
    /// What the rows were read as, where a file may hold several kinds.
    pub forms: Vec<&'static str>,
    /// Where there are several files or weights: each file, how many examples it gave, and its own counts.
    pub files: Vec<(String, usize, DataReport)>,
    /// Lines left out, because they make no example.
    pub bad_lines: usize,
    /// The first few of them.
    pub first_bad: Vec<BadLine>,
}

impl DataReport {
    /// How many lines are named of each kind.
    pub const LINES_SHOWN: usize = 5;

    fn count_example(&mut self, example: &Example) {
        self.examples += 1;
        self.tokens += example.tokens.len();
        self.labels += example.labels();
        self.longest = self.longest.max(example.tokens.len());
    }

    /// What the user should know, one sentence each; empty where all went well.
    pub fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        for (file, taken, report) in &self.files {
            out.push(format!("{file}: {taken} of {} examples", report.examples));
            out.extend(report.warnings().iter().map(|warning| format!("  {warning}")));
        }
        if self.truncated > 0 {
            out.push(format!("{} examples cut to `max_seq_len`", self.truncated));
        }
        if self.dropped > 0 {
            let lines = listed(self.dropped, &self.first_dropped);
            let what = "dropped: `max_seq_len` leaves no token with loss";
            out.push(format!("{} examples {what} ({lines})", self.dropped));
        }
        if self.empty > 0 {
            let lines = listed(self.empty, &self.first_empty);
            let what = "have an empty answer, and teach that the text ends";
            out.push(format!("{} examples {what} ({lines})", self.empty));
        }
        if self.bad_lines > 0 {
            out.push(format!("{} bad lines skipped", self.bad_lines));
            out.extend(self.first_bad.iter().map(|bad| format!("line {}: {}", bad.line, bad.reason)));
        }
        out
    }
}

/// `line 3` or `lines 3, 5, ...`.
fn listed(count: usize, first: &[u64]) -> String {
    let numbers: Vec<String> = first.iter().map(ToString::to_string).collect();
    let (plural, more) = (if count > 1 { "s" } else { "" }, if count > first.len() { ", ..." } else { "" });
    format!("line{plural} {}{more}", numbers.join(", "))
}

/// Counts a line, and keeps its number if it is one of the first few.
fn count(line: u64, count: &mut usize, first: &mut Vec<u64>) {
    *count += 1;
    if first.len() < DataReport::LINES_SHOWN {
        first.push(line);
    }
}

impl fmt::Display for DataReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { examples, tokens, labels, longest, .. } = self;
        write!(f, "{examples} examples, {tokens} tokens, {labels} with loss, the longest {longest}")?;
        match self.forms.is_empty() {
            true => Ok(()),
            false => write!(f, "; read as {}", self.forms.join("; ")),
        }
    }
}

/// The examples of a file, in its order.
#[derive(Clone, Debug, Default)]
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
    let guessed = options.format.is_none();
    let options = &options.resolved(path)?;
    options.check()?;
    // Where nobody said what the file is, an error says as what it was read.
    let told = |error| match (guessed, error) {
        (true, Error::Line { path, line, reason }) => {
            Error::Line { path, line, reason: format!("{reason}; {}", read_as(options)) }
        }
        (_, error) => error,
    };
    let mut rows = rows(path, options).map_err(|error| match (guessed, error) {
        (true, Error::DataFile { path, reason }) => {
            Error::DataFile { path, reason: format!("{reason}; {}", read_as(options)) }
        }
        (_, error) => error,
    })?;
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
        let encode = |row: &fields::Row| {
            let mut encoded = match options.task {
                Task::Lm => vec![encode::encode(row, options, encoder)],
                task if task.compares() => preference::encode(row, options, encoder),
                Task::Grpo => vec![prompts::encode(row, options, encoder)],
                _ => vec![labelled::encode(row, options, encoder)],
            };
            if let Some(name) = &options.weight_column {
                match fields::weight(row, name) {
                    Ok(weight) => encoded.iter_mut().flatten().for_each(|one| one.set_weight(weight)),
                    Err(reason) => encoded = vec![Err(reason)],
                }
            }
            encoded
        };
        let encoded: Vec<_> = chunk.par_iter().map(encode).collect();
        for (row, encoded) in chunk.iter().zip(encoded) {
            for encoded in encoded {
                data.add(path, &file, row.line, encoded, options.skip_bad_lines).map_err(told)?;
            }
        }
    }
    if data.examples.is_empty() {
        let report = &data.report;
        let reason = match (report.dropped, report.bad_lines) {
            (0, 0) => "it holds no example: the file is empty".to_string(),
            (dropped, 0) => {
                let what = if options.task == Task::Grpo { "fits" } else { "keeps a token with loss" };
                format!("none of its {dropped} examples {what}: raise `max_seq_len`")
            }
            (_, bad) => {
                format!("it holds no example: {bad} bad lines, the first: {}", report.first_bad[0].reason)
            }
        };
        return Err(Error::DataFile { path: path.into(), reason });
    }
    if options.task == Task::Kto {
        data.examples = preference::mismatched(&data.examples).ok_or_else(|| {
            let reason = "holds one example only: KTO compares with the completions of other prompts".into();
            Error::DataFile { path: path.into(), reason }
        })?;
    }
    Ok(data)
}

/// The example of one row, a JSON object, of which `options` say what it is for.
///
/// # Errors
/// Says what is wrong with the row.
pub fn encode_row(json: &str, options: &DataOptions, encoder: &dyn Encode) -> Result<Example, String> {
    let row = fields::Row { line: 1, raw: fields::Raw::Json(json.as_bytes().to_vec()) };
    let encoded = match options.task {
        Task::Lm => encode::encode(&row, options, encoder),
        Task::Grpo => prompts::encode(&row, options, encoder),
        task if task.compares() => preference::encode(&row, options, encoder).swap_remove(0),
        _ => labelled::encode(&row, options, encoder),
    };
    match encoded? {
        Encoded::Kept { example, .. } => Ok(example),
        Encoded::Dropped => Err("`max_seq_len` leaves nothing of it".into()),
    }
}

/// As what a file is read whose format nobody named.
fn read_as(options: &DataOptions) -> String {
    format!(
        "the file is read as {} (`data_format` names another)",
        options.format.unwrap_or(DataFormat::Jsonl)
    )
}

/// Reads several files, each with its weight: 0.5 keeps half of its examples, chosen by `seed`, 2 has each twice.
///
/// # Errors
/// As [`read`], and where the weights leave no example.
pub fn read_files(
    files: &[(PathBuf, f64)],
    seed: u64,
    options: &DataOptions,
    encoder: &dyn Encode,
) -> Result<Dataset, Error> {
    if let [(path, 1.0)] = files {
        return read(path, options, encoder);
    }
    let mut all = Dataset::default();
    for (number, (path, weight)) in (1..).zip(files) {
        let data = read(path, options, encoder)?;
        let mut order: Vec<usize> = (0..data.examples.len()).collect();
        // No epoch of training has this number, and no other file.
        shuffle(&mut order, &mut Random::new(seed, u64::MAX - number));
        order.truncate((weight.fract() * order.len() as f64).round() as usize);
        order.sort_unstable();
        let copies = (0..weight.trunc() as usize).flat_map(|_| 0..data.examples.len());
        let before = all.examples.len();
        for example in copies.chain(order).map(|index| data.examples.get(index)) {
            all.report.count_example(&example);
            all.examples.push(&example);
        }
        let taken = all.examples.len() - before;
        for form in &data.report.forms {
            if !all.report.forms.contains(form) {
                all.report.forms.push(form);
            }
        }
        all.report.files.push((path.display().to_string(), taken, data.report));
    }
    match all.examples.is_empty() {
        true => Err(Error::Options("the weights of the data files leave no example".into())),
        false => Ok(all),
    }
}

fn rows(path: &Path, options: &DataOptions) -> Result<Rows, Error> {
    if options.format == Some(DataFormat::Parquet) {
        return parquet_rows(path, options);
    }
    let input = open(path)?;
    Ok(match options.format {
        Some(DataFormat::Csv) => Box::new(table::Rows::new(path, input, b',', options)?),
        Some(DataFormat::Tsv | DataFormat::Glue(_)) => {
            Box::new(table::Rows::new(path, input, b'\t', options)?)
        }
        Some(format @ (DataFormat::E2e | DataFormat::Webnlg | DataFormat::Dart)) => {
            nlg::rows(path, input, format)?
        }
        Some(DataFormat::Conll) => Box::new(conll::Sentences::new(path, input, options.row_limit())),
        Some(DataFormat::Jsonl | DataFormat::Parquet) | None => {
            jsonl::rows(path, input, options.row_limit())?
        }
    })
}

#[cfg(feature = "parquet")]
fn parquet_rows(path: &Path, options: &DataOptions) -> Result<Rows, Error> {
    if !path.is_file() {
        // The footer is at the end: a pipe has none.
        std::fs::metadata(path).map_err(Error::io(path))?;
        return Err(Error::DataFile { path: path.into(), reason: "a Parquet file is a regular file".into() });
    }
    parquet::rows(path, options.row_limit())
}

#[cfg(not(feature = "parquet"))]
fn parquet_rows(path: &Path, _: &DataOptions) -> Result<Rows, Error> {
    let reason =
        "this build reads no Parquet: build with the feature `parquet`, or convert the file to .jsonl";
    Err(Error::DataFile { path: path.into(), reason: reason.into() })
}

/// The names of the classes in a data file: `known`, where all labels are of those; else in GLUE's order, numbers by
/// value, or by the alphabet. Where every label is a vector of 0 and 1 for as many classes, these are `LABEL_0` and so on,
/// as in transformers. Lines that make no example are passed over.
///
/// # Errors
/// A file that cannot be read or lacks a column, or in which there are no two classes.
pub fn labels(path: &Path, options: &DataOptions, known: &[String]) -> Result<Vec<String>, Error> {
    labels_of(&[path.to_owned()], options, known)
}

/// The same of several files.
///
/// # Errors
/// As [`labels`].
pub fn labels_of(paths: &[PathBuf], options: &DataOptions, known: &[String]) -> Result<Vec<String>, Error> {
    let mut found = BTreeSet::new();
    let mut first_bad = None;
    // The lengths of vectors; `None` for other labels.
    let mut vectors = BTreeSet::new();
    let mut glue = None;
    for path in paths {
        let options = &options.resolved(path)?;
        options.check()?;
        glue = glue.or(options.glue());
        for row in rows(path, options)? {
            let row = row?;
            match labelled::labels(&row, options) {
                Ok((labels, vector)) => {
                    found.extend(labels);
                    vectors.insert(vector);
                }
                Err(reason) => first_bad = first_bad.or(Some((path, row.line, reason))),
            }
            let entries = vectors.last().copied().flatten().unwrap_or(0);
            if options.task != Task::TokenClassification && found.len().max(entries) > MOST_LABELS {
                let reason = format!(
                    "has more than {MOST_LABELS} different labels: `task` regression is for numbers, and \
                     `label_column` names the column of the labels"
                );
                return Err(Error::DataFile { path: path.into(), reason });
            }
        }
    }
    if let (true, Some((path, line, reason))) = (found.is_empty(), first_bad) {
        return Err(Error::Line { path: path.into(), line, reason });
    }
    if let (1, Some(Some(classes))) = (vectors.len(), vectors.first()) {
        return Ok(match known.len() == *classes {
            true => known.to_vec(),
            false => (0..*classes).map(|i| format!("LABEL_{i}")).collect(),
        });
    }
    let enough = found.len() > 1 || (options.task == Task::MultiLabelClassification && !found.is_empty());
    // Names that nobody gave say nothing of fewer classes.
    let unnamed = known.iter().enumerate().all(|(i, name)| *name == format!("LABEL_{i}"));
    let covers = !unnamed || found.len() == known.len() || found.iter().all(|label| known.contains(label));
    // A head that knows these classes keeps its order.
    if enough && covers && found.iter().all(|label| class(label, known).is_ok()) {
        return Ok(known.to_vec());
    }
    let fixed = glue.map(|glue| glue.layout().labels).unwrap_or_default();
    if !fixed.is_empty() && found.iter().all(|label| fixed.contains(&label.as_str())) {
        return Ok(fixed.iter().map(ToString::to_string).collect());
    }
    if found.len() < 2 {
        let reason = match found.first() {
            Some(only) => format!("has one label only, {only:?}: there is nothing to tell apart"),
            None => "has no labels".to_owned(),
        };
        return Err(Error::DataFile { path: paths.first().cloned().unwrap_or_default(), reason });
    }
    Ok(labelled::ordered(found))
}

/// How many numbers the labels of a data file have: as many as that of its first row that has any.
///
/// # Errors
/// A file that cannot be read or lacks a column.
pub fn outputs_of(paths: &[PathBuf], options: &DataOptions) -> Result<usize, Error> {
    paths.first().map_or(Ok(1), |path| outputs(path, options))
}

/// The same of one file.
///
/// # Errors
/// A file that cannot be read or lacks a column.
pub fn outputs(path: &Path, options: &DataOptions) -> Result<usize, Error> {
    // A pipe is read once.
    if !path.is_file() {
        return Ok(1);
    }
    let options = &options.resolved(path)?;
    options.check()?;
    for row in rows(path, options)? {
        if let Ok(outputs) = labelled::outputs(&row?, options) {
            return match outputs {
                0..=MOST_LABELS => Ok(outputs),
                _ => Err(Error::DataFile {
                    path: path.into(),
                    reason: format!("has {outputs} numbers a text, more than {MOST_LABELS}"),
                }),
            };
        }
    }
    Ok(1)
}

/// More classes than any head was made for, and what a column of numbers or texts soon has.
pub const MOST_LABELS: usize = 10_000;

impl Dataset {
    /// Splits off a share of the examples, chosen by `seed`: what is left, and what is held out. Examples of one prompt, and
    /// equal texts, stay together.
    ///
    /// # Errors
    /// Where one of the two would be empty.
    pub fn split(self, share: f64, seed: u64) -> Result<(Self, Self), Error> {
        let key = |example: &Example| match example.prompt_len {
            0 => example.tokens.clone(),
            n => example.tokens[..n].to_vec(),
        };
        let keys: Vec<Vec<u32>> = self.examples.iter().map(|example| key(&example)).collect();
        let mut groups: Vec<&Vec<u32>> = keys.iter().collect();
        groups.sort_unstable();
        groups.dedup();
        // No epoch of training has this number.
        shuffle(&mut groups, &mut Random::new(seed, u64::MAX));
        let wanted = (share * keys.len() as f64).round().max(1.0) as usize;
        let mut count: HashMap<&Vec<u32>, usize> = HashMap::new();
        keys.iter().for_each(|key| *count.entry(key).or_default() += 1);
        let mut held = HashSet::new();
        let mut rows = 0;
        for group in groups {
            if rows >= wanted {
                break;
            }
            rows += count[group];
            held.insert(group);
        }
        let (mut train, mut eval) = (Self::default(), Self::default());
        for (example, key) in self.examples.iter().zip(&keys) {
            let part = if held.contains(key) { &mut eval } else { &mut train };
            part.report.count_example(&example);
            part.examples.push(&example);
        }
        if train.examples.is_empty() || eval.examples.is_empty() {
            let (rows, share) = (keys.len(), 100.0 * share);
            return Err(Error::Options(format!(
                "`eval_split` of {share} % of {rows} examples leaves none to train on or none to evaluate: give \
                 `eval_data`, or another share (examples of one prompt stay together)"
            )));
        }
        let seen = DataReport { examples: 0, tokens: 0, labels: 0, longest: 0, ..self.report };
        let DataReport { examples, tokens, labels, longest, .. } = train.report;
        train.report = DataReport { examples, tokens, labels, longest, ..seen };
        Ok((train, eval))
    }

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
            Ok(Encoded::Kept { mut example, truncated, empty, form }) => {
                report.count_example(&example);
                if !form.is_empty() && !report.forms.contains(&form) {
                    report.forms.push(form);
                }
                report.truncated += usize::from(truncated);
                if empty {
                    count(line, &mut report.empty, &mut report.first_empty);
                }
                example.id = ExampleId { file: file.clone(), line };
                self.examples.push(&example);
            }
            Ok(Encoded::Dropped) => count(line, &mut report.dropped, &mut report.first_dropped),
            Err(reason) if skip_bad_lines => {
                report.bad_lines += 1;
                if report.first_bad.len() < DataReport::LINES_SHOWN {
                    report.first_bad.push(BadLine { line, reason });
                }
            }
            Err(reason) => return Err(Error::Line { path: path.into(), line, reason }),
        }
        Ok(())
    }
}

impl DataOptions {
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
        // A pipe is read once.
        if format == DataFormat::Tsv && self.task != Task::Lm && self.text_column.is_none() && path.is_file()
        {
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
            && path.is_file()
            && let Some(format) = nlg::detect(&mut open(path)?, path)?
        {
            return Ok(format);
        }
        if path != Path::new("-") {
            std::fs::metadata(path).map_err(Error::io(path))?;
        }
        DataFormat::of(path)
    }
}

/// Opens a file past its byte order mark. `-` is standard input.
fn open(path: &Path) -> Result<BufReader<File>, Error> {
    let file = File::open(if path == Path::new("-") { Path::new("/dev/stdin") } else { path });
    let file = file.map_err(Error::io(path))?;
    if file.metadata().is_ok_and(|kind| kind.is_dir()) {
        return Err(Error::io(path)(std::io::ErrorKind::IsADirectory.into()));
    }
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
