//! What sampling and learning take at most: every completion as long as it may be.

use std::cell::RefCell;
use std::ops::Range;

use lowrank_engine::{KvCache, Scope, Segment, Tape};
use lowrank_models::TokenBatch;

use super::{Rollouts, completed};
use crate::loop_options::LoopOptions;
use crate::shards::Shard;
use crate::step::Stepper;
use crate::{Example, Examples, Sample};

/// What sampling the completions of a step takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingPlan {
    /// Bytes that are not the device's.
    pub bytes: usize,
    /// Floating-point operations of a prompt with its completions.
    pub flops_per_prompt: usize,
}

impl Rollouts<'_> {
    /// The shards of a step over `prompts` whose completions are as long as they may be.
    pub fn plan_shards(&self, stepper: &Stepper<'_>, prompts: &[Example], how: &LoopOptions) -> Vec<Shard> {
        let sampling = &self.options.sampling;
        let completions = prompts.iter().flat_map(|prompt| {
            let length = self.longest(stepper, prompt.tokens.len());
            let one = move || {
                let example = completed(prompt, &vec![0; length], true);
                Example { sample: Some(Sample { advantage: 1.0, scale: 1.0 }), ..example }
            };
            std::iter::repeat_with(one).take(sampling.num_generations)
        });
        let all: Vec<Example> = completions.collect();
        let micro_batches: Vec<Vec<Example>> =
            all.chunks(self.options.batch_size).map(<[Example]>::to_vec).collect();
        let mut shards = stepper.lay_out(&micro_batches, how.share_prefix, how.shards, 0);
        if self.options.num_iterations > 1 || self.reference.is_some() {
            for sample in shards.iter_mut().flatten().flat_map(|batch| &mut batch.samples) {
                sample.old_logps = vec![0.0; sample.labels];
            }
        }
        shards
    }

    /// Tokens of a completion at most.
    fn longest(&self, stepper: &Stepper<'_>, prompt: usize) -> usize {
        let positions = stepper.model().info().position_limit.unwrap_or(usize::MAX);
        let left =
            positions.saturating_add(1).saturating_sub(prompt + stepper.adapters.active.virtual_tokens);
        self.options.sampling.max_completion_length.min(left).max(1)
    }

    /// Computes, on a device that only counts, what sampling takes for the longest prompts.
    pub fn plan_sampling(&self, stepper: &Stepper<'_>, examples: &Examples, prompts: usize) -> SamplingPlan {
        let (model, device, adapters) = (stepper.model(), stepper.device(), &stepper.adapters);
        let Some(head) = model.lm_head() else { return SamplingPlan::default() };
        let longest = examples.iter().map(|example| example.tokens.len()).max().unwrap_or(1);
        let virtual_tokens = adapters.active.virtual_tokens;
        let first_virtual = model.info().vocab as u32;
        let prompt: Vec<u32> = (first_virtual..).take(virtual_tokens).chain(vec![0; longest]).collect();
        let sampling = &self.options.sampling;
        let count = sampling.prompts_at_once().min(prompts.max(1));
        let own = self.longest(stepper, longest) - 1;
        let rows = count * (prompt.len() + sampling.num_generations * own);
        let cache = RefCell::new(KvCache::new(device, rows.max(1), &model.info().kv_widths));
        let before = device.flops();
        let pass = |ids: &[u32], targets: Vec<usize>, segments: &[Segment], outputs: &[usize]| {
            cache.borrow_mut().targets = targets;
            let lengths = vec![prompt.len() as u32; ids.len()];
            let positions = vec![0; ids.len()];
            let batch = TokenBatch {
                tokens: ids,
                positions: &positions,
                lengths: &lengths,
                token_types: &[],
                segments,
                output_rows: Some(outputs),
                adapters: None,
            };
            let scope = Scope::inference(device, &adapters.params);
            let mut tape = Tape::with_cache(scope, &adapters.active, &cache);
            let h = model.hidden(&mut tape, &batch);
            tape.logits(head, &h);
        };
        let mut begin = 0;
        for chunk in prompt.chunks(512) {
            let end = begin + chunk.len();
            let segments = [Segment { q: 0..chunk.len(), prefix: 0..0, own: 0..end }];
            pass(chunk, (begin..end).collect(), &segments, &[chunk.len() - 1]);
            begin = end;
        }
        let prefill = (device.flops() - before) as usize;
        let texts = count * sampling.num_generations;
        let mut step = 0;
        if own > 0 {
            let start = device.flops();
            let first = count * prompt.len();
            let text = |i: usize| -> Range<usize> { first + i * own..first + (i + 1) * own };
            let segments: Vec<Segment> =
                (0..texts).map(|i| Segment { q: i..i + 1, prefix: 0..prompt.len(), own: text(i) }).collect();
            let outputs: Vec<usize> = (0..texts).collect();
            pass(&vec![0; texts], (0..texts).map(|i| text(i).end - 1).collect(), &segments, &outputs);
            step = (device.flops() - start) as usize;
        }
        // Logits are read from the device; each thread sorts those of a text.
        let threads = rayon::current_num_threads().min(count);
        let bytes = size_of::<f32>() * model.info().vocab * (2 * texts + 4 * threads);
        SamplingPlan { bytes, flops_per_prompt: prefill + step * own / count }
    }
}
