//! Rows of tasks other than the next token: a text, or two, or words, and what is to be learned of them.

use std::collections::BTreeSet;

use lowrank_engine::Label;

use super::contract::{DataOptions, Encode, Example, Target};
use super::encode::Encoded;
use super::fields::{Entry, Fields, Row, RowLabel, list_names};
use super::glue::Glue;
use crate::task::Task;

/// Names that columns have where nobody says which they are.
const FIRST: [&str; 8] =
    ["text", "sentence", "sentence1", "text1", "premise", "question1", "question", "anchor"];
const SECOND: [&str; 6] = ["text_pair", "sentence2", "text2", "hypothesis", "question2", "positive"];
const LABEL: [&str; 5] = ["label", "score", "gold_label", "is_duplicate", "labels"];
const LABELS: [&str; 2] = ["labels", "label"];
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
        let (first_names, label_names) = match options.task {
            Task::TokenClassification => (&WORDS[..], &TAGS[..]),
            Task::MultiLabelClassification => (&FIRST[..], &LABELS[..]),
            _ => (&FIRST[..], &LABEL[..]),
        };
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
            Task::Classification | Task::MultiLabelClassification => {
                second.filter(|_| options.pair_column.is_some() || layout.is_some())
            }
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
        example.similarity = match label {
            Some(RowLabel::One(label)) => number(&label).ok(),
            _ => None,
        };
        return Ok(Encoded::Kept { example, truncated, empty: false, form: "" });
    }
    let texts = texts(first, second)?;
    let row = options.reads.row(&texts.ids) as u32;
    let target = match (options.task, columns.label.as_deref()) {
        (Task::Mlm, _) => Target::Masked,
        (Task::Regression, Some(name)) => Target::Values { row, values: values(&fields, name, options)? },
        (Task::Regression, None) => Target::Values { row, values: vec![0.0; options.outputs.max(1)] },
        (Task::MultiLabelClassification, Some(name)) => {
            Target::ClassSet { row, classes: class_set(&fields.label_list(name)?, &options.labels)? }
        }
        (Task::MultiLabelClassification, None) => Target::ClassSet { row, classes: Vec::new() },
        (_, Some(name)) => {
            let target = class(&one(&fields, name)?, &options.labels)?;
            Target::Classes(vec![Label { row, target }])
        }
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
    Ok(Encoded::Kept { example, truncated: texts.truncated, empty: false, form: "" })
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
    Ok(Encoded::Kept { example, truncated: texts.truncated, empty: false, form: "" })
}

/// The labels of a row, as they are spelled; and how many entries they have, if they are a vector of 0 and 1.
pub(super) fn labels(row: &Row, options: &DataOptions) -> Result<(Vec<String>, Option<usize>), String> {
    let fields = Fields::of(&row.raw)?;
    let columns = Columns::find(options, &|name| fields.has(name))?;
    let Some(name) = columns.label.as_deref() else { return Ok((Vec::new(), None)) };
    Ok(match options.task {
        Task::TokenClassification => (fields.list(name)?, None),
        Task::MultiLabelClassification => {
            let entries = fields.label_list(name)?;
            let vector = entries.len() > 1 && entries.iter().all(|entry| entry.flag.is_some());
            let len = vector.then_some(entries.len());
            (entries.into_iter().map(|entry| entry.text).collect(), len)
        }
        _ => (vec![one(&fields, name)?], None),
    })
}

/// How many numbers the label of a row has.
pub(super) fn outputs(row: &Row, options: &DataOptions) -> Result<usize, String> {
    let fields = Fields::of(&row.raw)?;
    let columns = Columns::find(options, &|name| fields.has(name))?;
    columns.label.as_deref().map_or(Ok(1), |name| numbers(&fields, name).map(|numbers| numbers.len()))
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

/// The class of a label: its place among the names, or the number of a class where the names are not numbers.
///
/// # Errors
/// Where there is no such class.
pub fn class(label: &str, labels: &[String]) -> Result<u32, String> {
    if let Some(at) = labels.iter().position(|known| known == label) {
        return Ok(at as u32);
    }
    let is_number =
        |name: &String| name.contains(|c: char| c.is_ascii_digit()) && name.parse::<f64>().is_ok();
    match label.parse::<i64>() {
        Ok(at) if at.to_string() == label && !labels.iter().any(is_number) => {
            u32::try_from(at).ok().filter(|at| (*at as usize) < labels.len()).ok_or_else(|| {
                let (count, last) = (labels.len(), labels.len().saturating_sub(1));
                format!(
                    "label {label} is out of range: there are {count} classes, 0 to {last}: {}",
                    list_names(labels)
                )
            })
        }
        _ => Err(format!("label {label:?} is none of those trained for: {}", list_names(labels))),
    }
}

/// The classes of a text in rising order: those that a list names or numbers, or those with 1 in a vector that has 0 or 1
/// for each class.
fn class_set(entries: &[Entry], labels: &[String]) -> Result<Vec<u32>, String> {
    let flags: Option<Vec<bool>> = entries.iter().map(|entry| entry.flag).collect();
    if let Some(flags) = flags.filter(|flags| !flags.is_empty()) {
        if flags.len() == labels.len() {
            return Ok((0..).zip(flags).filter(|(_, yes)| *yes).map(|(class, _)| class).collect());
        }
        // Numbers of classes come once.
        let number = |entry: &Entry| entry.text == "0" || entry.text == "1";
        if flags.len() > 2 || flags == [flags[0]; 2] || !entries.iter().all(number) {
            let (got, count) = (flags.len(), labels.len());
            return Err(format!("a vector of {got} entries for {count} classes: {}", list_names(labels)));
        }
    }
    let mut classes =
        entries.iter().map(|entry| class(&entry.text, labels)).collect::<Result<Vec<u32>, _>>()?;
    classes.sort_unstable();
    classes.dedup();
    Ok(classes)
}

/// The only label of a row.
fn one(fields: &Fields<'_>, name: &str) -> Result<String, String> {
    match fields.label(name)? {
        RowLabel::One(text) if text.is_empty() => Err(format!("{name:?} is empty: the label is missing")),
        RowLabel::One(text) => Ok(text),
        RowLabel::List(_) => Err(format!(
            "{name:?} is a list, expected a label: `task` multi-label-classification is for texts with several"
        )),
    }
}

/// The numbers of a row, as they are spelled.
fn numbers(fields: &Fields<'_>, name: &str) -> Result<Vec<String>, String> {
    match fields.label(name)? {
        RowLabel::List(entries) if entries.is_empty() => Err(format!("{name:?} is an empty list")),
        RowLabel::List(entries) => Ok(entries.into_iter().map(|entry| entry.text).collect()),
        RowLabel::One(_) => Ok(vec![one(fields, name)?]),
    }
}

/// The numbers of a row, one for each output.
fn values(fields: &Fields<'_>, name: &str, options: &DataOptions) -> Result<Vec<f32>, String> {
    let numbers = numbers(fields, name)?;
    let (got, outputs) = (numbers.len(), options.outputs.max(1));
    if got != outputs {
        return Err(format!("{name:?} holds {got} numbers, and {outputs} are predicted of each text"));
    }
    numbers.iter().map(|label| number(label)).collect()
}

fn number(label: &str) -> Result<f32, String> {
    label.trim().parse().ok().filter(|value: &f32| value.is_finite()).ok_or_else(|| {
        format!(
            "label {label:?} is not a number: the task regression needs numbers (several as a list, [1, 2.5]), \
             classification takes names"
        )
    })
}
