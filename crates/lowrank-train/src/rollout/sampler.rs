//! Completions of prompts under the adapter as it is, in the batched decoder.

use lowrank_models::{Request, Sampling, Strategy};

use crate::samples::{decoder, gathered};
use crate::step::Stepper;
use crate::{Error, Example};

/// How completions are sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// Completions of each prompt.
    pub num_generations: usize,
    /// Tokens of a completion at most.
    pub max_completion_length: usize,
    /// Tokens that end a completion.
    pub stop_tokens: Vec<u32>,
    /// Temperature and filters.
    pub sampling: Sampling,
}

/// Texts that one decoder continues at once: whole groups, as many as fit. Which these are depends on the prompts alone, never on
/// the ranks that share them.
const TEXTS_AT_ONCE: usize = 64;

impl SamplingOptions {
    /// Prompts that are completed together.
    pub(super) fn prompts_at_once(&self) -> usize {
        (TEXTS_AT_ONCE / self.num_generations).max(1)
    }

    /// What is asked for the prompt that is number `index` of batch `batch`.
    pub(super) fn request(&self, prompt: &Example, seed: u64) -> Request {
        Request {
            prompt: prompt.tokens.clone(),
            max_new_tokens: self.max_completion_length,
            stop_tokens: self.stop_tokens.clone(),
            strategy: Strategy::Sample(Sampling { seed, ..self.sampling.clone() }),
            choices: self.num_generations,
            ..Request::default()
        }
    }

    /// The completions of each prompt, which the ranks share: all have the same.
    pub(super) fn complete(
        &self,
        stepper: &Stepper<'_>,
        prompts: &[Example],
        batch: u64,
    ) -> Result<Vec<Vec<Vec<u32>>>, Error> {
        let comm = stepper.communicator();
        let numbered: Vec<(u64, &Example)> = (0..).zip(prompts).collect();
        let chunks = numbered.chunks(self.prompts_at_once()).skip(comm.rank()).step_by(comm.size());
        let own: lowrank_models::Result<Vec<_>> =
            chunks.map(|chunk| self.chunk(stepper, chunk, batch)).collect();
        let chunks: Vec<Vec<Vec<Vec<u32>>>> = gathered(comm, own.map_err(|e| e.to_string()))?;
        Ok(chunks.into_iter().flatten().collect())
    }

    fn chunk(
        &self,
        stepper: &Stepper<'_>,
        prompts: &[(u64, &Example)],
        batch: u64,
    ) -> lowrank_models::Result<Vec<Vec<Vec<u32>>>> {
        let requests: Vec<Request> = prompts
            .iter()
            .map(|(index, prompt)| self.request(prompt, seed(self.sampling.seed, batch, *index)))
            .collect();
        let mut out = vec![Vec::new(); requests.len()];
        decoder(stepper)?.complete(&requests, requests.len(), |number, texts| {
            out[number] = texts.into_iter().map(|text| text.tokens).collect();
            Ok(())
        })?;
        Ok(out)
    }
}

/// The seed of a prompt's completions, which take it and those after it.
fn seed(run: u64, batch: u64, prompt: u64) -> u64 {
    let mut mixed = run;
    for word in [batch, prompt] {
        // The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
        mixed = (mixed ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
    }
    mixed
}

#[cfg(test)]
mod tests {
    use super::seed;

    #[test]
    fn prompts_have_seeds_of_their_own() {
        let mut all: Vec<u64> =
            (0..4).flat_map(|batch| (0..64).map(move |prompt| seed(42, batch, prompt))).collect();
        all.sort_unstable();
        // Each prompt has room for its completions.
        assert!(all.windows(2).all(|pair| pair[1] - pair[0] > 1 << 20));
        assert_ne!(seed(42, 0, 0), seed(43, 0, 0));
    }
}
