//! Examples to a batch without padding.

mod pairs;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use lowrank_engine::Label;
use lowrank_kernels::Segment;
use lowrank_models::TokenBatch;

use crate::{Example, ExampleId, Sample, Target};

/// A batch as one run of `N` tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedBatch {
    /// `[N]` inputs.
    pub tokens: Vec<u32>,
    /// `[N]` position of each token in its example, from 0.
    pub positions: Vec<u32>,
    /// `[N]` type of each token; empty where all are 0.
    pub token_types: Vec<u32>,
    /// `[N]` tokens of the whole example that a row belongs to (of the longest, for a shared prompt).
    pub lengths: Vec<u32>,
    /// What each row attends to. The rows of the segments are disjoint and cover the batch.
    pub segments: Vec<Segment>,
    /// In the order of the examples. The completions of a shared prompt all begin after its last row,
    /// so several labels may name that row.
    pub labels: Vec<Label>,
    /// The rows that labels name, in rising order: the only ones whose hidden states are computed. `None`: all are.
    pub output_rows: Option<Vec<usize>>,
    /// The numbers that each label asks for, in place of a class: `[labels, C]`; empty where classes are asked for.
    pub values: Vec<f32>,
    /// The set of classes that each label asks for, in place of one; empty where one class or numbers are asked for.
    pub class_sets: Vec<Vec<u32>>,
    /// The weight of each label, or of each pair or sample: 1 where the example says nothing.
    pub weights: Vec<f32>,
    /// Pairs of texts that belong together: segments `2i` and `2i + 1`.
    pub pairs: usize,
    /// Prompts with two completions each, in the order of their labels.
    pub completions: Vec<PackedPair>,
    /// Sampled completions, in the order of their labels.
    pub samples: Vec<PackedSample>,
    /// Number of examples.
    pub examples: usize,
    /// Tokens in the examples, each counted whole and on its own.
    pub real_tokens: usize,
    /// The examples, in the order given.
    pub ids: Vec<ExampleId>,
    /// The largest of `positions`; 0 where there are none.
    pub max_position: u32,
}

/// A prompt with two completions in a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PackedPair {
    /// Labels of tokens of the prompt, before those of the completions.
    pub prompt_labels: usize,
    /// Labels of each completion.
    pub labels: [usize; 2],
    /// The log-probability of each completion under the reference.
    pub reference: [f32; 2],
    /// Whether the first is desirable; `None` where it is the chosen one, and the second the rejected one.
    pub desirable: Option<bool>,
    /// By how much the reward of the first is to be larger.
    pub margin: f32,
}

/// A sampled completion in a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedSample {
    /// Its labels: the tokens that are learned from.
    pub labels: usize,
    /// What it is worth.
    pub sample: Sample,
    /// The log-probability of each token under the model that it was sampled from; empty where that is the model as it is.
    pub old_logps: Vec<f32>,
    /// The log-probability of each token under the reference; empty where there is none.
    pub ref_logps: Vec<f32>,
}

/// Lays out examples one after the other.
///
/// For [`Target::Next`], row `i` of an example predicts its token `i + 1`; rows after the last that a label reads
/// are not there at all (the last token of an example is never an input). With `share_prefix`, examples
/// whose prompts `tokens[..prompt_len]` are equal read one copy of it: a segment for the prompt,
/// then one for each completion, which has the prompt as its prefix and positions from `prompt_len`
/// on. Losses and gradients are those of the batch without sharing. Examples with other targets are there whole,
/// and stand alone.
///
/// # Panics
/// Where a prompt is longer than its example, tokens are still to be hidden, or the batch has more than `u32::MAX`
/// rows.
pub fn pack(examples: &[&Example], share_prefix: bool) -> PackedBatch {
    let mut batch = PackedBatch {
        tokens: Vec::new(),
        positions: Vec::new(),
        token_types: Vec::new(),
        lengths: Vec::new(),
        segments: Vec::new(),
        labels: Vec::new(),
        output_rows: None,
        values: Vec::new(),
        class_sets: Vec::new(),
        weights: Vec::new(),
        pairs: 0,
        completions: Vec::new(),
        samples: Vec::new(),
        examples: examples.len(),
        real_tokens: examples.iter().map(|e| e.tokens.len()).sum(),
        ids: examples.iter().map(|e| e.id.clone()).collect(),
        max_position: 0,
    };
    // For each example, the rows of its prompt part and of the rest.
    let mut rows = vec![(0..0, 0..0); examples.len()];
    for group in groups(examples, share_prefix) {
        let first = examples[group[0]];
        if let [only] = group[..] {
            match first.target {
                Target::Next => {}
                Target::Completions { .. } | Target::Rewards { .. } => {
                    batch.completions(first, share_prefix);
                    continue;
                }
                _ => {
                    batch.whole(first);
                    continue;
                }
            }
            rows[only].1 = batch.segment(&first.tokens[..inputs(first)], 0, 0..0, first.tokens.len());
            continue;
        }
        let shared = first.prompt_len;
        let longest = group.iter().map(|&member| examples[member].tokens.len()).max().unwrap_or(0);
        let prompt = batch.segment(&first.tokens[..shared], 0, 0..0, longest);
        for member in group {
            let example = examples[member];
            let own = batch.segment(
                &example.tokens[shared..inputs(example)],
                shared,
                prompt.clone(),
                example.tokens.len(),
            );
            rows[member] = (prompt.clone(), own);
        }
    }
    for (example, (prompt, own)) in examples.iter().zip(rows).filter(|(e, _)| e.target == Target::Next) {
        let before = batch.labels.len();
        for target in targets(example) {
            let input = target - 1;
            let row = match input.checked_sub(prompt.len()) {
                Some(at) => own.start + at,
                None => prompt.start + input,
            };
            let row = u32::try_from(row).expect("a batch has fewer than 2^32 rows");
            batch.labels.push(Label { row, target: example.tokens[target] });
        }
        let labels = batch.labels.len() - before;
        let targets = match example.sample {
            Some(sample) => {
                batch.samples.push(PackedSample { labels, sample, ..PackedSample::default() });
                1
            }
            None => labels,
        };
        batch.weights.resize(batch.weights.len() + targets, example.weight.unwrap_or(1.0));
    }
    batch.output_rows = batch.labelled_rows();
    batch.max_position = batch.positions.iter().copied().max().unwrap_or(0);
    batch
}

impl PackedBatch {
    /// `N`.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Losses that the batch gives: the loss of a step is the weighted mean over those of its batches.
    pub fn targets(&self) -> usize {
        match self.completions.len() + self.samples.len() {
            0 => self.labels.len() + self.pairs,
            completions => completions,
        }
    }

    /// The rows that labels name; `None` where that is all of them, or where there are no labels to go by.
    fn labelled_rows(&self) -> Option<Vec<usize>> {
        let mut rows: Vec<usize> = self.labels.iter().map(|label| label.row as usize).collect();
        rows.sort_unstable();
        rows.dedup();
        (self.pairs == 0 && !rows.is_empty() && rows.len() < self.rows()).then_some(rows)
    }

    /// The labels, with rows of the computed hidden states in place of the batch's.
    pub fn labels_of_wanted(&self) -> Cow<'_, [Label]> {
        let Some(output_rows) = &self.output_rows else { return Cow::Borrowed(&self.labels) };
        let place =
            |row: u32| output_rows.binary_search(&(row as usize)).expect("a label names an output row");
        self.labels.iter().map(|l| Label { row: place(l.row) as u32, target: l.target }).collect()
    }

    /// The row of the computed hidden states that each label reads.
    pub(crate) fn rows_of_labels(&self) -> Vec<usize> {
        self.labels_of_wanted().iter().map(|label| label.row as usize).collect()
    }

    /// What a model reads of it.
    pub(crate) fn token_batch(&self) -> TokenBatch<'_> {
        let Self { tokens, positions, lengths, token_types, segments, output_rows, .. } = self;
        TokenBatch {
            tokens,
            positions,
            lengths,
            token_types,
            segments,
            output_rows: output_rows.as_deref(),
            adapters: None,
        }
    }

    /// Appends an example that is not for next-token prediction.
    fn whole(&mut self, example: &Example) {
        let start = self.tokens.len();
        let (tokens, length) = (&example.tokens, example.tokens.len());
        match &example.target {
            Target::Pair(first) => {
                self.segment(&tokens[..*first], 0, 0..0, *first);
                self.segment(&tokens[*first..], 0, 0..0, length - first);
                self.pairs += 1;
            }
            _ => {
                self.segment(tokens, 0, 0..0, length);
            }
        }
        if !example.token_types.is_empty() {
            self.token_types.resize(start, 0);
            self.token_types.extend(&example.token_types);
        } else if !self.token_types.is_empty() {
            self.token_types.resize(start + length, 0);
        }
        let row = |at: u32| u32::try_from(start).expect("a batch has fewer than 2^32 rows") + at;
        match &example.target {
            Target::Classes(labels) => {
                self.labels.extend(labels.iter().map(|l| Label { row: row(l.row), target: l.target }));
            }
            Target::ClassSet { row: at, classes } => {
                self.labels.push(Label { row: row(*at), target: 0 });
                self.class_sets.push(classes.clone());
            }
            Target::Values { row: at, values } => {
                self.labels.push(Label { row: row(*at), target: 0 });
                self.values.extend(values);
            }
            Target::Masked => panic!("tokens are hidden before a batch is packed"),
            Target::Prompt(_) => panic!("completions are sampled before a batch is packed"),
            Target::Next | Target::Pair(_) | Target::Completions { .. } | Target::Rewards { .. } => {}
        }
        self.weights.resize(self.targets(), example.weight.unwrap_or(1.0));
    }

    /// Appends a segment and gives its rows. One without tokens leaves no trace.
    fn segment(
        &mut self,
        tokens: &[u32],
        position: usize,
        prefix: Range<usize>,
        length: usize,
    ) -> Range<usize> {
        let start = self.tokens.len();
        self.tokens.extend(tokens);
        self.positions.extend((position..position + tokens.len()).map(|p| p as u32));
        let rows = start..self.tokens.len();
        self.lengths.resize(rows.end, length as u32);
        if !rows.is_empty() {
            self.segments.push(Segment { q: rows.clone(), prefix, own: rows.clone() });
        }
        rows
    }
}

/// The indices of the tokens that an example wants predicted. Nothing predicts the first.
fn targets(example: &Example) -> impl DoubleEndedIterator<Item = usize> {
    (1..example.tokens.len()).filter(|&i| example.loss_mask[i])
}

/// How many leading tokens of an example some label depends on.
fn inputs(example: &Example) -> usize {
    targets(example).next_back().unwrap_or(0)
}

/// The examples by shared prompt, in the order of their first member. An example without labels or
/// without prompt stands alone.
fn groups(examples: &[&Example], share_prefix: bool) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut seen: HashMap<&[u32], usize> = HashMap::new();
    for (i, example) in examples.iter().enumerate() {
        let prompt = &example.tokens[..example.prompt_len];
        if !share_prefix
            || example.target != Target::Next
            || prompt.is_empty()
            || inputs(example) < prompt.len()
        {
            groups.push(vec![i]);
            continue;
        }
        let group = *seen.entry(prompt).or_insert(groups.len());
        match groups.get_mut(group) {
            Some(members) => members.push(i),
            None => groups.push(vec![i]),
        }
    }
    groups
}
