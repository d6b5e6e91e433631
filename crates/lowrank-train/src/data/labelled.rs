//! Rows of tasks other than the next token: a text, or two, or words, and what is to be learned of them.

use std::collections::BTreeSet;

use lowrank_engine::Label;

use super::contract::{DataOptions, Encode, Example, Target};
use super::encode::Encoded;
use super::fields::{Fields, Row, list_names};
use super::glue::Glue;
use crate::task::Task;

/// Names that columns have where nobody says which they are.
const FIRST: [&str; 8] =
    ["text", "sentence", "sentence1", "text1", "premise", "question1", "question", "anchor"];
const SECOND: [&str; 6] = ["text_pair", "sentence2", "text2", "hypothesis", "question2", "positive"];
const LABEL: [&str; 4] = ["label", "score", "gold_label", "is_duplicate"];
const WORDS: [&str; 2] = ["tokens", "words"];
const TAGS: [&str; 4] = ["tags", "ner_tags", "pos_tags", "labels"];

/// What the columns of a file are for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Columns {
    pub first: String,
    pub second: Option<String>,
    pub label: Option<String>,
}

impl Columns {
    /// What the options name, or else what `has` finds.
    pub fn find(options: &DataOptions, has: &dyn Fn(&str) -> bool) -> Result<Self, String> {
        let layout = options.glue().map(Glue::layout);
        let first_known = |names: &[&str]| names.iter().find(|name| has(name)).map(ToString::to_string);
        let words = options.task == Task::TokenClassification;
        let (first_names, label_names) =
            if words { (&WORDS[..], &TAGS[..]) } else { (&FIRST[..], &LABEL[..]) };
        let first = options
            .text_column
            .clone()
            .or_else(|| layout.as_ref().map(|l| l.first.to_owned()))
            .or_else(|| first_known(first_names))
            .ok_or_else(|| {
                let known = list_names(first_names);
                format!("found no column for the text (one of {known}): name it with `text_column`")
            })?;
        let second = options
            .pair_column
            .clone()
            .or_else(|| layout.as_ref().and_then(|l| l.second.map(str::to_owned)))
            .or_else(|| first_known(&SECOND).filter(|name| *name != first));
        let second = match options.task {
            Task::Embedding if options.unlabelled => second,
            Task::PairClassification | Task::Embedding => Some(second.ok_or_else(|| {
                let known = list_names(&SECOND);
                format!("found no column for the second text (one of {known}): name it with `pair_column`")
            })?),
            Task::Regression => second,
            // A single text is meant, unless someone says otherwise.
            Task::Classification => second.filter(|_| options.pair_column.is_some() || layout.is_some()),
            _ => None,
        };
        let label = options
            .label_column
            .clone()
            .or_else(|| layout.as_ref().map(|l| l.label.to_owned()))
            .or_else(|| first_known(label_names));
        let labelled = options.task.has_labels() || options.task == Task::Regression;
        // How alike two texts are said to be is read where it is there.
        let scored = options.task == Task::Embedding && label.as_ref().is_some_and(|name| has(name));
        let label = match label.filter(|_| labelled || scored) {
            Some(label) if options.unlabelled && !has(&label) => None,
            None if labelled && !options.unlabelled => {
                let known = list_names(label_names);
                return Err(format!(
                    "found no column for the label (one of {known}): name it with `label_column`"
                ));
            }
            label => label,
        };
        Ok(Self { first, second, label })
    }

    /// Every column that will be read.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        [Some(&self.first), self.second.as_ref(), self.label.as_ref()]
            .into_iter()
            .flatten()
            .map(String::as_str)
    }
}

/// The example of a row, or why there is none.
pub(super) fn encode(row: &Row, options: &DataOptions, encoder: &dyn Encode) -> Result<Encoded, String> {
    let fields = Fields::of(&row.raw)?;
    let columns = Columns::find(options, &|name| fields.has(name))?;
    let max = options.max_seq_len;
    if options.task == Task::TokenClassification {
        return words(&fields, &columns, options, encoder);
    }
    let first = fields.text(&columns.first)?;
    let second = columns.second.as_deref().map(|name| fields.text(name)).transpose()?;
    let texts = |first: &str, second: Option<&str>| {
        encoder.texts(first, second, max).map_err(|e| e.to_string()).and_then(|texts| match texts.ids.len() {
            0 => Err("there is nothing to read: the text is empty".to_owned()),
            _ => Ok(texts),
        })
    };
    if options.task == Task::Embedding {
        let a = texts(first, None)?;
        let (mut example, mut truncated) =
            (Example { target: Target::Pair(a.ids.len()), ..Example::default() }, a.truncated);
        (example.tokens, example.token_types) = (a.ids, a.types);
        if let Some(second) = second {
            let b = texts(second, None)?;
            truncated |= b.truncated;
            example.tokens.extend(b.ids);
            example.token_types.extend(b.types);
        }
        example.token_types = kinds(example.token_types);
        let label = columns.label.as_deref().and_then(|name| fields.label(name).ok());
        example.similarity = label.and_then(|label| number(&label).ok());
        return Ok(Encoded::Kept { example, truncated, empty: false });
    }
    let texts = texts(first, second)?;
    let row = options.reads.row(&texts.ids) as u32;
    let label = columns.label.as_deref().map(|name| fields.label(name)).transpose()?;
    let target = match (options.task, label) {
        (Task::Mlm, _) => Target::Masked,
        (Task::Regression, Some(label)) => Target::Value { row, value: number(&label)? },
        (Task::Regression, None) => Target::Value { row, value: f32::NAN },
        (_, Some(label)) => Target::Classes(vec![Label { row, target: class(&label, &options.labels)? }]),
        (_, None) => Target::Classes(vec![Label { row, target: 0 }]),
    };
    let loss_mask = match target {
        Target::Masked => texts.special.iter().map(|special| !special).collect(),
        _ => Vec::new(),
    };
    let example = Example {
        tokens: texts.ids,
        token_types: kinds(texts.types),
        loss_mask,
        target,
        ..Example::default()
    };
    if example.labels() == 0 {
        return Err("there is nothing to hide: the text is empty".to_owned());
    }
    Ok(Encoded::Kept { example, truncated: texts.truncated, empty: false })
}

/// A sentence of words, with the tag of each at its first token.
fn words(
    fields: &Fields<'_>,
    columns: &Columns,
    options: &DataOptions,
    encoder: &dyn Encode,
) -> Result<Encoded, String> {
    let words = fields.list(&columns.first)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let tags = columns.label.as_deref().map(|name| fields.list(name)).transpose()?;
    if let Some(tags) = tags.as_ref().filter(|tags| tags.len() != words.len()) {
        return Err(format!("{} words and {} tags", words.len(), tags.len()));
    }
    let texts = encoder.words(&words, options.max_seq_len).map_err(|e| e.to_string())?;
    let mut labels = Vec::new();
    let mut before = None;
    for (row, word) in (0..).zip(&texts.words) {
        if let Some(at) = word.filter(|_| *word != before) {
            let target = match &tags {
                Some(tags) => class(&tags[at as usize], &options.labels)?,
                None => 0,
            };
            labels.push(Label { row, target });
        }
        before = *word;
    }
    if labels.is_empty() {
        return Err("there is no word to tag".to_owned());
    }
    let (tokens, target) = (texts.ids, Target::Classes(labels));
    let example = Example { tokens, token_types: kinds(texts.types), target, ..Example::default() };
    Ok(Encoded::Kept { example, truncated: texts.truncated, empty: false })
}

/// The labels of a row, as they are spelled.
pub(super) fn labels(row: &Row, options: &DataOptions) -> Result<Vec<String>, String> {
    let fields = Fields::of(&row.raw)?;
    let columns = Columns::find(options, &|name| fields.has(name))?;
    match columns.label.as_deref() {
        None => Ok(Vec::new()),
        Some(name) if options.task == Task::TokenClassification => fields.list(name),
        Some(name) => Ok(vec![fields.label(name)?]),
    }
}

/// Labels in a fixed order: numbers by value, other names by the alphabet.
pub(super) fn ordered(labels: BTreeSet<String>) -> Vec<String> {
    let mut labels: Vec<String> = labels.into_iter().collect();
    if labels.iter().all(|label| label.parse::<i64>().is_ok()) {
        labels.sort_by_key(|label| label.parse::<i64>().unwrap_or_default());
    }
    labels
}

/// Types that are all 0 need not be kept.
fn kinds(types: Vec<u32>) -> Vec<u32> {
    if types.iter().all(|&kind| kind == 0) { Vec::new() } else { types }
}

fn class(label: &str, labels: &[String]) -> Result<u32, String> {
    match labels.iter().position(|known| known == label) {
        Some(at) => Ok(at as u32),
        None => Err(format!("label {label:?} is none of those trained for: {}", list_names(labels))),
    }
}

fn number(label: &str) -> Result<f32, String> {
    label.trim().parse().ok().filter(|value: &f32| value.is_finite()).ok_or_else(|| {
        format!(
            "label {label:?} is not a number: the task regression needs numbers, classification takes names"
        )
    })
}
