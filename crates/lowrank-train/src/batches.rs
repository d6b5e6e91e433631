//! Which examples each optimiser step sees.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{Error, Examples};

/// How examples are dealt into batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchOptions {
    /// Examples in a micro-batch.
    pub batch_size: usize,
    /// Micro-batches in an optimiser step.
    pub gradient_accumulation_steps: usize,
    /// A new order every epoch; otherwise the order of the file.
    pub shuffle: bool,
    /// Of the order.
    pub seed: u64,
    /// How many examples with the same prompt a shuffle keeps side by side, at most, so that they
    /// land in one batch and the prompt is computed once. 1 shuffles every example on its own.
    pub prompt_group: usize,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self { batch_size: 8, gradient_accumulation_steps: 1, shuffle: true, seed: 42, prompt_group: 1 }
    }
}

/// What one optimiser step sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Optimiser step since the beginning of training, from 0.
    pub step: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Optimiser step in this epoch, from 0.
    pub step_in_epoch: u64,
    /// Indices of examples, one list per micro-batch.
    pub micro_batches: Vec<Vec<usize>>,
}

/// The plan of all epochs: a pure function of the examples, the options and the step, so that a run
/// resumed at a step sees what the first run would have seen.
///
/// An epoch goes through every example once. Its last micro-batch and its last step may be smaller
/// than the others, as with Hugging Face's Trainer; nothing is dropped or carried into the next.
#[derive(Clone, Debug)]
pub struct Batches {
    options: BatchOptions,
    /// For every example, the number of its prompt; empty where prompts do not matter.
    prompts: Vec<u32>,
    examples: usize,
    /// Steps in a row that see the same examples.
    repeats: u64,
}

impl Batches {
    /// A plan over `examples`.
    ///
    /// # Errors
    /// Where there are no examples, or a size is 0.
    pub fn new(examples: &Examples, options: BatchOptions) -> Result<Self, Error> {
        let fail = |what: &str| Err(Error::Options(what.to_string()));
        if examples.is_empty() {
            return fail("there are no examples to make batches of");
        }
        if examples.len() > u32::MAX as usize {
            return fail("more than 4294967295 examples");
        }
        if options.batch_size == 0 {
            return fail("`batch_size` must be at least 1");
        }
        if options.gradient_accumulation_steps == 0 {
            return fail("`gradient_accumulation_steps` must be at least 1");
        }
        if options.prompt_group == 0 {
            return fail("`prompt_group` must be at least 1");
        }
        let prompts =
            if options.shuffle && options.prompt_group > 1 { prompts(examples) } else { Vec::new() };
        Ok(Self { options, prompts, examples: examples.len(), repeats: 1 })
    }

    /// The same with as many steps in a row for each batch.
    pub fn with_repeats(self, repeats: u64) -> Self {
        Self { repeats: repeats.max(1), ..self }
    }

    /// Optimiser steps in an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        let micro = self.examples.div_ceil(self.options.batch_size);
        micro.div_ceil(self.options.gradient_accumulation_steps) as u64 * self.repeats
    }

    /// The epochs done after `steps` optimiser steps, as a fraction.
    pub fn epochs_after(&self, steps: u64) -> f64 {
        steps as f64 / self.steps_per_epoch() as f64
    }

    /// All steps from `step` on, without end.
    pub fn starting_at(&self, step: u64) -> Steps<'_> {
        Steps { plan: self, next: step, order: (u64::MAX, Vec::new()) }
    }

    /// The order of the examples in an epoch.
    fn order(&self, epoch: u64) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.examples as u32).collect();
        if !self.options.shuffle {
            return order;
        }
        let mut random = Random::new(self.options.seed, epoch);
        shuffle(&mut order, &mut random);
        if self.prompts.is_empty() {
            return order;
        }
        // Examples gather, in their random order, into groups of one prompt; then the groups are
        // shuffled, or frequent prompts would come early.
        let mut groups: Vec<Vec<u32>> = Vec::new();
        let mut open: HashMap<u32, usize> = HashMap::new();
        for index in order {
            let prompt = self.prompts[index as usize];
            match open.get(&prompt) {
                Some(&group) if groups[group].len() < self.options.prompt_group => groups[group].push(index),
                _ => {
                    open.insert(prompt, groups.len());
                    groups.push(vec![index]);
                }
            }
        }
        shuffle(&mut groups, &mut random);
        groups.concat()
    }
}

/// The iterator of [`Batches::starting_at`].
#[derive(Clone, Debug)]
pub struct Steps<'a> {
    plan: &'a Batches,
    next: u64,
    /// The epoch it is in and its order.
    order: (u64, Vec<u32>),
}

impl Iterator for Steps<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let per_epoch = self.plan.steps_per_epoch();
        let step = self.next;
        self.next += 1;
        let (epoch, step_in_epoch) = (step / per_epoch, step % per_epoch);
        if self.order.0 != epoch {
            self.order = (epoch, self.plan.order(epoch));
        }
        let batch = (step_in_epoch / self.plan.repeats) as usize;
        let BatchOptions { batch_size, gradient_accumulation_steps: accumulation, .. } = self.plan.options;
        let micro_batches = self
            .order
            .1
            .chunks(batch_size)
            .skip(batch * accumulation)
            .take(accumulation)
            .map(|batch| batch.iter().map(|&i| i as usize).collect())
            .collect();
        Some(Step { step, epoch, step_in_epoch, micro_batches })
    }
}

/// Numbers the distinct prompts. Examples without one are each a prompt of their own.
fn prompts(examples: &Examples) -> Vec<u32> {
    let mut seen: HashMap<Vec<u32>, u32> = HashMap::new();
    let mut numbers = Vec::with_capacity(examples.len());
    for (fresh, mut example) in (0..).zip(examples.iter()) {
        example.tokens.truncate(example.prompt_len);
        let prompt = example.tokens;
        numbers.push(if prompt.is_empty() { fresh } else { *seen.entry(prompt).or_insert(fresh) });
    }
    numbers
}

/// Fisher and Yates.
pub(crate) fn shuffle<T>(items: &mut [T], random: &mut Random) {
    for i in (1..items.len()).rev() {
        items.swap(i, random.below(i as u64 + 1) as usize);
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014), seeded by a pair.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64, epoch: u64) -> Self {
        let mut random = Self(seed);
        let mixed = random.next();
        Self(mixed ^ epoch.wrapping_mul(0xd134_2543_de82_ef95))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, each value as likely as the others up to `n / 2^64`.
    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Example, ExampleId};

    /// `prompts[i]` is the prompt of example `i`.
    fn examples(prompts: &[u32]) -> Examples {
        let example = |(i, &prompt): (usize, &u32)| Example {
            tokens: vec![prompt, 7, 1000 + i as u32],
            loss_mask: vec![false, false, true],
            prompt_len: 2,
            id: ExampleId { file: "x".into(), line: i as u64 + 1 },
            ..Example::default()
        };
        prompts.iter().enumerate().map(example).collect()
    }

    fn options(batch_size: usize, accumulation: usize, shuffle: bool, prompt_group: usize) -> BatchOptions {
        BatchOptions { batch_size, gradient_accumulation_steps: accumulation, shuffle, seed: 5, prompt_group }
    }

    fn epoch(batches: &Batches, epoch: u64) -> Vec<Step> {
        let n = batches.steps_per_epoch();
        batches.starting_at(epoch * n).take(n as usize).collect()
    }

    fn flat(steps: &[Step]) -> Vec<usize> {
        steps.iter().flat_map(|s| s.micro_batches.concat()).collect()
    }

    #[test]
    fn keeps_file_order_and_the_remainder() {
        let batches = Batches::new(&examples(&[0; 11]), options(2, 2, false, 4)).unwrap();
        assert_eq!(batches.steps_per_epoch(), 3);
        let steps = epoch(&batches, 1);
        assert_eq!(flat(&steps), (0..11).collect::<Vec<_>>());
        assert_eq!(steps[0].micro_batches, [[0, 1], [2, 3]]);
        assert_eq!(steps[2].micro_batches, [vec![8, 9], vec![10]]);
        assert_eq!((steps[2].step, steps[2].epoch, steps[2].step_in_epoch), (5, 1, 2));
        assert_eq!(batches.epochs_after(3), 1.0);
    }

    #[test]
    fn batches_come_again() {
        let batches = Batches::new(&examples(&[0; 5]), options(2, 1, true, 1)).unwrap().with_repeats(3);
        assert_eq!(batches.steps_per_epoch(), 9);
        let steps = epoch(&batches, 0);
        assert_eq!(steps[0].micro_batches, steps[2].micro_batches);
        assert_ne!(steps[2].micro_batches, steps[3].micro_batches);
        assert_eq!(steps[8].micro_batches[0].len(), 1);
        assert_eq!(batches.starting_at(4).next().unwrap(), steps[4]);
    }

    #[test]
    fn an_epoch_shuffles_all_examples() {
        let data = examples(&(0..97).map(|i| i % 13).collect::<Vec<_>>());
        for group in [1, 4] {
            let batches = Batches::new(&data, options(8, 1, true, group)).unwrap();
            let (first, second) = (flat(&epoch(&batches, 0)), flat(&epoch(&batches, 1)));
            for order in [&first, &second] {
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..97).collect::<Vec<_>>());
                assert_ne!(*order, sorted);
            }
            assert_ne!(first, second);
            let other = Batches::new(&data, BatchOptions { seed: 6, ..options(8, 1, true, group) }).unwrap();
            assert_ne!(first, flat(&epoch(&other, 0)));
        }
    }

    #[test]
    fn resumes_where_it_was() {
        let data = examples(&(0..50).map(|i| i % 7).collect::<Vec<_>>());
        let batches = Batches::new(&data, options(4, 3, true, 3)).unwrap();
        let all: Vec<_> = batches.starting_at(0).take(17).collect();
        for step in 0..17 {
            assert_eq!(batches.starting_at(step).next().unwrap(), all[step as usize]);
        }
    }

    #[test]
    fn groups_prompts_up_to_the_limit() {
        let data = examples(&(0..60).map(|i| i % 6).collect::<Vec<_>>());
        let batches = Batches::new(&data, options(5, 1, true, 5)).unwrap();
        // Ten of each of six prompts, in fives: every batch has one prompt.
        for step in epoch(&batches, 0) {
            let prompts: Vec<_> = step.micro_batches[0].iter().map(|&i| i % 6).collect();
            assert!(prompts.iter().all(|&p| p == prompts[0]), "{prompts:?}");
        }
    }

    #[test]
    fn every_place_is_as_likely() {
        let data = examples(&[0, 1, 2, 3]);
        let batches = Batches::new(&data, options(1, 1, true, 1)).unwrap();
        let mut counts = [[0u32; 4]; 4];
        for e in 0..4000 {
            for (place, index) in flat(&epoch(&batches, e)).into_iter().enumerate() {
                counts[place][index] += 1;
            }
        }
        // Six standard deviations of a count with mean 1000.
        assert!(counts.iter().flatten().all(|&c| c.abs_diff(1000) < 165), "{counts:?}");
    }

    #[test]
    fn refuses_nothing_and_zero() {
        assert!(Batches::new(&Examples::default(), options(1, 1, true, 1)).is_err());
        let data = examples(&[0]);
        for bad in [options(0, 1, true, 1), options(1, 0, true, 1), options(1, 1, true, 0)] {
            assert!(Batches::new(&data, bad).unwrap_err().to_string().contains("at least 1"));
        }
    }
}
