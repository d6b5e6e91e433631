//! Completions into a checkpoint and back.

use super::Rollout;
use super::saved::{SavedRollout, SavedSample};
use crate::loop_options::LoopOptions;
use crate::step::Stepper;
use crate::{Error, Example, ExampleId, PackedSample, Sample};

impl SavedRollout {
    /// What is needed of `rollout`.
    pub(super) fn of(rollout: &Rollout) -> Self {
        let sample = |example: &Example| {
            let Sample { advantage, scale } = example.sample.unwrap_or_default();
            SavedSample {
                file: example.id.file.to_string(),
                line: example.id.line,
                prompt_len: example.prompt_len,
                tokens: example.tokens.clone(),
                advantage: advantage.to_bits(),
                scale: scale.to_bits(),
                weight: example.weight.map(f32::to_bits),
            }
        };
        let bits = |logps: fn(&PackedSample) -> &Vec<f32>| {
            let samples = rollout.shards.iter().flatten().flat_map(|batch| &batch.samples);
            samples.map(|sample| logps(sample).iter().map(|logp| logp.to_bits()).collect()).collect()
        };
        Self {
            batch: rollout.batch,
            micro_batches: rollout
                .micro_batches
                .iter()
                .map(|batch| batch.iter().map(sample).collect())
                .collect(),
            old_logps: bits(|sample| &sample.old_logps),
            ref_logps: bits(|sample| &sample.ref_logps),
            metrics: rollout.metrics.iter().map(|(name, value)| (name.clone(), value.to_bits())).collect(),
        }
    }

    /// The same completions, laid out as they were.
    pub(super) fn restore(
        self,
        stepper: &Stepper<'_>,
        how: &LoopOptions,
        step: u64,
    ) -> Result<Rollout, Error> {
        let example = |saved: SavedSample| {
            let mut loss_mask = vec![false; saved.prompt_len.min(saved.tokens.len())];
            loss_mask.resize(saved.tokens.len(), true);
            Example {
                loss_mask,
                prompt_len: saved.prompt_len.min(saved.tokens.len()),
                tokens: saved.tokens,
                weight: saved.weight.map(f32::from_bits),
                sample: Some(Sample {
                    advantage: f32::from_bits(saved.advantage),
                    scale: f32::from_bits(saved.scale),
                }),
                id: ExampleId { file: saved.file.into(), line: saved.line },
                ..Example::default()
            }
        };
        let micro_batches: Vec<Vec<Example>> =
            self.micro_batches.into_iter().map(|batch| batch.into_iter().map(example).collect()).collect();
        let mut shards = stepper.lay_out(&micro_batches, how.share_prefix, how.shards, step);
        let floats = |list: Vec<u32>| list.into_iter().map(f32::from_bits).collect::<Vec<f32>>();
        let mut logps = self.old_logps.into_iter().zip(self.ref_logps);
        for sample in shards.iter_mut().flatten().flat_map(|batch| &mut batch.samples) {
            let (old, reference) =
                logps.next().map(|(old, own)| (floats(old), floats(own))).unwrap_or_default();
            let fits = |list: &Vec<f32>| list.is_empty() || list.len() == sample.labels;
            if !fits(&old) || !fits(&reference) {
                let what = "the completions of the checkpoint are not those of its log-probabilities";
                return Err(Error::Options(format!("{what}: start the run again with `force`")));
            }
            (sample.old_logps, sample.ref_logps) = (old, reference);
        }
        let metrics = self.metrics.into_iter().map(|(name, bits)| (name, f64::from_bits(bits))).collect();
        Ok(Rollout { batch: self.batch, micro_batches, shards, metrics, records: Vec::new() })
    }
}
