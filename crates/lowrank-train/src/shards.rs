//! How the batch of a step is split, so that several ranks can share it.
//!
//! The split depends on the batch alone, never on the number of ranks; the gradients of the shards are added in a fixed tree
//! ([`lowrank_comm::SumTree`]). So a step has the same bits whoever computes which shard.

use std::collections::HashMap;

use crate::{Example, PackedBatch, Target};

/// A part of a step's batch: a pack for each micro-batch that it has examples of.
pub type Shard = Vec<PackedBatch>;

/// Tokens of a shard at least, where a batch is split at all: products with fewer rows are slower.
pub const SHARD_TOKENS: usize = 256;

/// The micro-batch and place of an example.
pub type At = (usize, usize);

/// The examples of each shard, in parts of one micro-batch each: `[shard][part][example]`. There are at most `most` shards, of about
/// as many tokens each, and examples that share a prompt stay together. The examples of a micro-batch whose loss compares them
/// with each other stay together too.
pub fn split(micro_batches: &[Vec<Example>], share_prefix: bool, most: usize) -> Vec<Vec<Vec<At>>> {
    let units: Vec<Unit> = micro_batches
        .iter()
        .enumerate()
        .flat_map(|(micro_batch, examples)| units(micro_batch, examples, share_prefix))
        .collect();
    let all: usize = units.iter().map(|unit| unit.tokens).sum();
    let count = (all / SHARD_TOKENS).clamp(1, most.max(1));
    let mut shards = vec![vec![Vec::new(); micro_batches.len()]; count];
    let mut before = 0;
    for unit in units {
        // The shard in which the middle of the unit lies.
        let shard = ((2 * before + unit.tokens) * count / (2 * all).max(1)).min(count - 1);
        before += unit.tokens;
        shards[shard][unit.micro_batch].extend(unit.examples.into_iter().map(|i| (unit.micro_batch, i)));
    }
    for shard in &mut shards {
        shard.retain(|examples| !examples.is_empty());
        shard.iter_mut().for_each(|examples| examples.sort_unstable());
    }
    shards.retain(|shard| !shard.is_empty());
    shards
}

/// Examples that stay together.
struct Unit {
    micro_batch: usize,
    examples: Vec<usize>,
    tokens: usize,
}

fn units(micro_batch: usize, examples: &[Example], share_prefix: bool) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    let mut seen: HashMap<&[u32], usize> = HashMap::new();
    let compares =
        |target: &Target| matches!(target, Target::Pair(_) | Target::Completions { desirable: Some(_), .. });
    let compared = examples.iter().any(|example| compares(&example.target));
    for (i, example) in examples.iter().enumerate() {
        let prompt = &example.tokens[..example.prompt_len];
        let shares = share_prefix && example.target == Target::Next && !prompt.is_empty();
        let next = units.len();
        let (unit, known) = match (compared, shares) {
            (true, _) => (0, 0),
            (_, true) => match *seen.entry(prompt).or_insert(next) {
                unit if unit < next => (unit, prompt.len()),
                unit => (unit, 0),
            },
            _ => (next, 0),
        };
        if unit == next {
            units.push(Unit { micro_batch, examples: Vec::new(), tokens: 0 });
        }
        units[unit].examples.push(i);
        units[unit].tokens += example.tokens.len() - known;
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(prompt: u32, prompt_len: usize, length: usize) -> Example {
        let tokens = (0..length).map(|i| if i < prompt_len { prompt } else { 1000 + i as u32 }).collect();
        Example { tokens, loss_mask: vec![true; length], prompt_len, ..Example::default() }
    }

    /// The examples of each part, for a single micro-batch without their micro-batch.
    fn places(shards: Vec<Vec<Vec<At>>>) -> Vec<Vec<Vec<usize>>> {
        let part = |part: Vec<At>| part.into_iter().map(|(_, i)| i).collect();
        shards.into_iter().map(|shard| shard.into_iter().map(part).collect()).collect()
    }

    #[test]
    fn small_batches_stay_whole() {
        let batch = vec![(0..8).map(|i| example(i, 10, 60)).collect::<Vec<_>>()];
        assert_eq!(places(split(&batch, true, 8)), [[(0..8).collect::<Vec<_>>()]]);
        assert_eq!(split(&batch, true, 1).len(), 1);
    }

    #[test]
    fn shards_have_as_many_tokens() {
        let lengths = [500, 20, 30, 450, 100, 380, 90, 410, 60, 10, 500, 250];
        let batch = vec![lengths.iter().map(|&length| example(0, 0, length)).collect::<Vec<_>>()];
        let shards = split(&batch, true, 4);
        assert_eq!(shards.len(), 4);
        let shards = places(shards);
        let tokens = |shard: &Vec<Vec<usize>>| shard.iter().flatten().map(|&i| lengths[i]).sum();
        let sizes: Vec<usize> = shards.iter().map(tokens).collect();
        assert!(sizes.iter().all(|size| (500..950).contains(size)), "{sizes:?}");
        let all: Vec<usize> = shards.into_iter().flatten().flatten().collect();
        assert_eq!(all, (0..12).collect::<Vec<_>>());
    }

    #[test]
    fn a_prompt_stays_in_one_shard() {
        // Two prompts take turns; each has 300 tokens and completions of 20.
        let batch = vec![(0..8).map(|i| example(i % 2, 300, 320)).collect::<Vec<_>>()];
        assert_eq!(places(split(&batch, true, 8)), [vec![vec![0, 2, 4, 6]], vec![vec![1, 3, 5, 7]]]);
        assert_eq!(split(&batch, false, 8).len(), 8);
    }

    #[test]
    fn compared_examples_stay_together() {
        let pair = |i| Example { target: Target::Pair(200), ..example(i, 0, 400) };
        let batch = vec![(0..4).map(pair).collect::<Vec<_>>(), (4..8).map(pair).collect()];
        let whole: Vec<usize> = (0..4).collect();
        assert_eq!(places(split(&batch, true, 8)), [[whole.clone()], [whole]]);
    }
}
