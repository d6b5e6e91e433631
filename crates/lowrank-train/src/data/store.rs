//! Examples as they wait: one after the other in a few bytes.
//!
//! As values of their own, short ones take seven times the memory: a data set of a million rows would
//! weigh as much as a small model.

use std::sync::Arc;

use lowrank_engine::Label;

use super::contract::{Example, ExampleId, Target};

/// Examples in little memory. Each is made anew when it is asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Examples {
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
    files: Vec<Arc<str>>,
}

/// What an example has beside tokens, in the bits of its first number. Above them is the kind of its target.
const TYPES: u64 = 1;
const MASK: u64 = 2;
const SIMILARITY: u64 = 4;
const WEIGHT: u64 = 8;
const REFERENCE: u64 = 16;
const KIND: u32 = 5;

impl Examples {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// A checksum of all of them: of their tokens, targets and lines.
    pub fn checksum(&self) -> u32 {
        let ends: Vec<u8> = self.ends.iter().flat_map(|end| end.to_le_bytes()).collect();
        crc32c::crc32c_append(crc32c::crc32c(&self.bytes), &ends)
    }

    /// Adds one.
    pub fn push(&mut self, example: &Example) {
        let Example { tokens, token_types, loss_mask, prompt_len, target, .. } = example;
        let Example { similarity, weight, reference, id, .. } = example;
        let file = match self.files.last() {
            Some(last) if *last == id.file => self.files.len() - 1,
            _ => self.files.iter().position(|file| *file == id.file).unwrap_or_else(|| {
                self.files.push(id.file.clone());
                self.files.len() - 1
            }),
        };
        let kind = match target {
            Target::Next => 0,
            Target::Classes(_) => 1,
            Target::Values { .. } => 2,
            Target::Masked => 3,
            Target::Pair(_) => 4,
            Target::ClassSet { .. } => 5,
            Target::Completions { .. } => 6,
            Target::Rewards { .. } => 7,
            Target::Prompt(_) => 8,
        };
        let has = |there: bool, bit: u64| if there { bit } else { 0 };
        let mut to = Writer(&mut self.bytes);
        to.number(
            kind << KIND
                | has(!token_types.is_empty(), TYPES)
                | has(!loss_mask.is_empty(), MASK)
                | has(similarity.is_some(), SIMILARITY)
                | has(weight.is_some(), WEIGHT)
                | has(!reference.is_empty(), REFERENCE),
        );
        [file as u64, id.line, *prompt_len as u64].into_iter().for_each(|n| to.number(n));
        to.list(tokens.iter().map(|&token| token.into()));
        if !token_types.is_empty() {
            to.list(token_types.iter().map(|&kind| kind.into()));
        }
        if !loss_mask.is_empty() {
            // Lengths of runs; the first one is of unmarked tokens, and may be empty.
            let mut runs = vec![0];
            let mut marked = false;
            for &mark in loss_mask {
                if mark != marked {
                    runs.push(0);
                    marked = mark;
                }
                *runs.last_mut().expect("there is one from the start") += 1;
            }
            to.list(runs.into_iter());
        }
        if let Some(similarity) = similarity {
            to.float(*similarity);
        }
        if let Some(weight) = weight {
            to.float(*weight);
        }
        if !reference.is_empty() {
            to.number(reference.len() as u64);
            reference.iter().for_each(|logp| to.float(*logp));
        }
        match target {
            Target::Next | Target::Masked => {}
            Target::Completions { first, desirable } => {
                to.number(*first as u64);
                to.number(desirable.map_or(0, |yes| 1 + u64::from(yes)));
            }
            Target::Rewards { first, margin } => {
                to.number(*first as u64);
                to.float(*margin);
            }
            Target::Classes(labels) => {
                to.list(labels.iter().map(|label| u64::from(label.row) << 32 | u64::from(label.target)));
            }
            Target::ClassSet { row, classes } => {
                to.number((*row).into());
                to.list(classes.iter().map(|class| u64::from(*class)));
            }
            Target::Values { row, values } => {
                to.number((*row).into());
                to.number(values.len() as u64);
                values.iter().for_each(|value| to.float(*value));
            }
            Target::Pair(first) => to.number(*first as u64),
            Target::Prompt(row) => to.text(row),
        }
        self.ends.push(self.bytes.len());
    }

    /// The example `index`.
    ///
    /// # Panics
    /// Where `index` is not below [`Examples::len`].
    pub fn get(&self, index: usize) -> Example {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        let mut from = Reader(&self.bytes[start..self.ends[index]]);
        let first = from.number();
        let file = self.files[from.number() as usize].clone();
        let id = ExampleId { file, line: from.number() };
        let prompt_len = from.number() as usize;
        let tokens = from.list(|token| token as u32);
        let token_types = if first & TYPES != 0 { from.list(|kind| kind as u32) } else { Vec::new() };
        let runs = if first & MASK != 0 { from.list(|run| run as usize) } else { Vec::new() };
        let marks = |(i, run): (usize, usize)| std::iter::repeat_n(i % 2 == 1, run);
        let loss_mask = runs.into_iter().enumerate().flat_map(marks).collect();
        let similarity = (first & SIMILARITY != 0).then(|| from.float());
        let weight = (first & WEIGHT != 0).then(|| from.float());
        let reference = match first & REFERENCE {
            0 => Vec::new(),
            _ => (0..from.number()).map(|_| from.float()).collect(),
        };
        let target = match first >> KIND {
            0 => Target::Next,
            1 => Target::Classes(from.list(|n| Label { row: (n >> 32) as u32, target: n as u32 })),
            2 => {
                let (row, len) = (from.number() as u32, from.number());
                Target::Values { row, values: (0..len).map(|_| from.float()).collect() }
            }
            3 => Target::Masked,
            4 => Target::Pair(from.number() as usize),
            5 => Target::ClassSet { row: from.number() as u32, classes: from.list(|class| class as u32) },
            6 => {
                let (first, desirable) = (from.number() as usize, from.number());
                Target::Completions { first, desirable: desirable.checked_sub(1).map(|yes| yes == 1) }
            }
            7 => Target::Rewards { first: from.number() as usize, margin: from.float() },
            _ => Target::Prompt(from.text()),
        };
        Example {
            tokens,
            token_types,
            loss_mask,
            prompt_len,
            target,
            similarity,
            weight,
            reference,
            sample: None,
            id,
        }
    }

    /// Those of `indices`, to make a batch of.
    pub fn batch(&self, indices: impl IntoIterator<Item = usize>) -> Vec<Example> {
        indices.into_iter().map(|index| self.get(index)).collect()
    }

    /// All of them, in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Example> + '_ {
        (0..self.len()).map(|index| self.get(index))
    }

    /// All of them in batches of `size`; the last one may be smaller.
    pub fn batches(&self, size: usize) -> impl Iterator<Item = Vec<Example>> + '_ {
        let size = size.max(1);
        (0..self.len()).step_by(size).map(move |start| self.batch(start..self.len().min(start + size)))
    }
}

impl FromIterator<Example> for Examples {
    fn from_iter<I: IntoIterator<Item = Example>>(examples: I) -> Self {
        let mut all = Self::default();
        examples.into_iter().for_each(|example| all.push(&example));
        all
    }
}

impl From<Vec<Example>> for Examples {
    fn from(examples: Vec<Example>) -> Self {
        examples.into_iter().collect()
    }
}

/// Numbers in as few bytes as they need: seven bits in each, the eighth says that more follow.
struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn number(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    fn list(&mut self, numbers: impl ExactSizeIterator<Item = u64>) {
        self.number(numbers.len() as u64);
        numbers.for_each(|n| self.number(n));
    }

    fn float(&mut self, x: f32) {
        self.0.extend(x.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend(text.as_bytes());
    }
}

/// Reads what [`Writer`] wrote.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn number(&mut self) -> u64 {
        let mut n = 0;
        for shift in (0..).step_by(7) {
            let (byte, rest) = self.0.split_first().expect("a number ends");
            self.0 = rest;
            n |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        n
    }

    fn list<T>(&mut self, of: impl Fn(u64) -> T) -> Vec<T> {
        let len = self.number();
        (0..len).map(|_| of(self.number())).collect()
    }

    fn float(&mut self) -> f32 {
        let (bytes, rest) = self.0.split_first_chunk().expect("four bytes");
        self.0 = rest;
        f32::from_le_bytes(*bytes)
    }

    fn text(&mut self) -> String {
        let len = self.number() as usize;
        let (text, rest) = self.0.split_at(len);
        self.0 = rest;
        String::from_utf8(text.to_vec()).expect("it was a text")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_come_back_as_they_were() {
        let id = |file: &str, line| ExampleId { file: file.into(), line };
        let label = |row, target| Label { row, target };
        let all = vec![
            Example {
                tokens: vec![0, 127, 128, 49151, u32::MAX],
                loss_mask: vec![false, false, true, true, false],
                prompt_len: 2,
                id: id("a.jsonl", 1),
                ..Example::default()
            },
            Example {
                tokens: vec![7],
                loss_mask: vec![true],
                id: id("b.jsonl", u64::MAX),
                ..Example::default()
            },
            Example {
                tokens: vec![1, 2, 3],
                token_types: vec![0, 1, 1],
                target: Target::Classes(vec![label(2, 5), label(u32::MAX, u32::MAX)]),
                id: id("a.jsonl", 3),
                ..Example::default()
            },
            Example { target: Target::Classes(Vec::new()), ..Example::default() },
            Example {
                tokens: vec![9],
                target: Target::Values { row: 300, values: vec![-0.25, 7.5] },
                ..Example::default()
            },
            Example {
                tokens: vec![9, 8],
                loss_mask: vec![true, false],
                target: Target::Masked,
                ..Example::default()
            },
            Example {
                tokens: vec![4, 5],
                target: Target::Pair(1),
                similarity: Some(3.5),
                weight: Some(0.25),
                ..Example::default()
            },
            Example {
                tokens: vec![9],
                target: Target::ClassSet { row: 300, classes: vec![0, 127, 128] },
                ..Example::default()
            },
            Example { target: Target::ClassSet { row: 0, classes: Vec::new() }, ..Example::default() },
            Example {
                tokens: vec![1, 2, 3, 4],
                prompt_len: 1,
                target: Target::Completions { first: 2, desirable: None },
                reference: vec![-1.5, -2.0],
                ..Example::default()
            },
            Example {
                tokens: vec![1, 2, 3],
                target: Target::Completions { first: 1, desirable: Some(false) },
                ..Example::default()
            },
            Example {
                tokens: vec![1, 2],
                target: Target::Rewards { first: 1, margin: 0.5 },
                ..Example::default()
            },
        ];
        let stored = Examples::from(all.clone());
        assert_eq!(stored.len(), all.len());
        assert_eq!(stored.iter().collect::<Vec<_>>(), all);
        assert_eq!(stored.batch([6, 0]), [all[6].clone(), all[0].clone()]);
        assert_eq!(stored.batches(3).map(|batch| batch.len()).collect::<Vec<_>>(), [3, 3, 3, 3]);
        assert_eq!(stored.batches(3).flatten().collect::<Vec<_>>(), all);
        assert!(Examples::default().is_empty() && !stored.is_empty());
    }

    #[test]
    fn short_examples_take_few_bytes() {
        let example = Example {
            tokens: vec![2000; 12],
            target: Target::Classes(vec![Label { row: 0, target: 1 }]),
            id: ExampleId { file: "train.tsv".into(), line: 60_000 },
            ..Example::default()
        };
        let stored: Examples = std::iter::repeat_n(example, 1000).collect();
        assert!(stored.bytes.len() < 40 * stored.len(), "{} bytes", stored.bytes.len());
    }
}
