//! Losses of sampled completions: policy gradients with clipped ratios.

use std::ops::Range;

use lowrank_engine::{Grads, Tape, Var};
use lowrank_models::Head;

use super::completions::TokenLosses;
use super::contract::{Metrics, Objective, Scores, Tally};
use super::options::{ImportanceSamplingLevel, LossOptions, LossType};
use crate::Examples;
use crate::pack::{PackedBatch, PackedSample};
use crate::task::Task;
use crate::task_spec::TaskSpec;

/// `l_i = s_i sum_t (-min(r_t A_i, clip(r_t, 1 - epsilon, 1 + epsilon_high) A_i) + beta k_t)` over the tokens `t` of completion `i`
/// with advantage `A_i`, where `r_t = p_t / old_t` is the ratio of its probability to that of the model that sampled it, and
/// `k_t = (ref_t / p_t - log(ref_t / p_t) - 1) r_t` estimates the distance to the reference (without the factor `r_t` where
/// `use_bias_correction_kl` is off). At the level of sequences, `r_t` is the
/// geometric mean over the completion's tokens; in RLOO the loss is that of a single ratio, of the whole completion's probabilities,
/// and `beta` is part of the reward.
///
/// The factor `s_i` makes the losses: `1 / tokens of i` (grpo), `1 / max_completion_length` (dr_grpo), `completions / tokens` of the
/// step (dapo) or of each micro-batch (bnpo), 1 (rloo). Probabilities are those at the temperature of sampling.
pub(crate) struct Policy;

/// The loss of a completion and its slopes by the log-probabilities of its tokens, both without `s_i`.
#[derive(Default)]
struct Surrogate {
    loss: f64,
    slopes: Vec<f64>,
    /// Each ratio that was compared.
    ratios: Vec<f64>,
    /// Of each token.
    kl: Vec<f64>,
}

fn surrogate(options: &LossOptions, rloo: bool, sample: &PackedSample, logps: &[f64]) -> Surrogate {
    let advantage = f64::from(sample.sample.advantage);
    let (low, high) = (1.0 - options.epsilon, 1.0 + options.epsilon_high.unwrap_or(options.epsilon));
    // The loss of a ratio, and its slope by the ratio's logarithm.
    let clipped = |ratio: f64| {
        let (plain, bound) = (ratio * advantage, ratio.clamp(low, high) * advantage);
        if plain <= bound { (-plain, -plain) } else { (-bound, 0.0) }
    };
    let old = |t: usize| sample.old_logps.get(t).map_or(logps[t], |old| f64::from(*old));
    let log_ratios: Vec<f64> = logps.iter().enumerate().map(|(t, logp)| logp - old(t)).collect();
    let mut out = Surrogate::default();
    if rloo || options.importance_sampling_level == ImportanceSamplingLevel::Sequence {
        let tokens = if rloo { 1.0 } else { logps.len().max(1) as f64 };
        let ratio = (log_ratios.iter().sum::<f64>() / tokens).exp();
        let (loss, slope) = clipped(ratio);
        out.loss = loss * tokens;
        out.slopes = vec![slope; logps.len()];
        out.ratios = vec![ratio];
    } else {
        for ratio in log_ratios.iter().map(|log| log.exp()) {
            let (loss, slope) = clipped(ratio);
            out.loss += loss;
            out.slopes.push(slope);
            out.ratios.push(ratio);
        }
    }
    let (ratios, tokens) = (out.ratios.clone(), logps.len());
    for (t, (logp, reference)) in logps.iter().zip(&sample.ref_logps).enumerate() {
        let log = f64::from(*reference) - logp;
        let ratio = match options.use_bias_correction_kl {
            true => ratios[t.min(ratios.len() - 1)],
            false => 1.0,
        };
        let kl = (log.exp() - log - 1.0) * ratio;
        out.kl.push(kl);
        out.loss += options.beta * kl;
        out.slopes[t] += options.beta * ratio * (1.0 - log.exp());
        if options.use_bias_correction_kl {
            // The ratio's own slope: by this token, or by each token of the completion.
            let shared = if ratios.len() == tokens { t..t + 1 } else { 0..tokens };
            let share = options.beta * kl / shared.len() as f64;
            out.slopes[shared].iter_mut().for_each(|slope| *slope += share);
        }
    }
    out
}

/// The labels of each completion.
fn labels(batch: &PackedBatch) -> Vec<Range<usize>> {
    let mut at = 0;
    let of = |sample: &PackedSample| {
        at += sample.labels;
        at - sample.labels..at
    };
    batch.samples.iter().map(of).collect()
}

impl Objective for Policy {
    fn matches(&self, head: &Head, batch: &PackedBatch) -> bool {
        matches!(head, Head::Language(_)) && !batch.samples.is_empty()
    }

    fn tasks(&self) -> &'static [Task] {
        &[Task::Grpo]
    }

    fn score<'m>(
        &self,
        tape: &mut Tape<'m>,
        (spec, head): (&TaskSpec, &'m Head),
        h: Var<'m>,
        batch: &PackedBatch,
        weights: &[f32],
        grads: &mut Grads,
    ) -> Scores {
        let options = &spec.loss;
        let rloo = options.of(Task::Grpo).iter().any(|(kind, _)| *kind == LossType::Rloo);
        let temperature = options.temperature as f32;
        let ranges = labels(batch);
        let compares = batch.samples.iter().any(|s| !(s.old_logps.is_empty() && s.ref_logps.is_empty()));
        // Where nothing is compared all ratios are 1, whatever the probabilities are.
        let scored = compares.then(|| TokenLosses::at(temperature, tape, head, &h, batch));
        let mut scores = Scores::default();
        let mut token_weights = vec![0.0; batch.labels.len()];
        for ((sample, range), weight) in batch.samples.iter().zip(ranges).zip(weights) {
            let logps: Vec<f64> = match &scored {
                Some(scored) => scored.losses[range.clone()].iter().map(|loss| -f64::from(*loss)).collect(),
                None => vec![0.0; range.len()],
            };
            let found = surrogate(options, rloo, sample, &logps);
            let scale = f64::from(sample.sample.scale);
            scores.losses.push((scale * found.loss) as f32);
            for (token_weight, slope) in token_weights[range].iter_mut().zip(&found.slopes) {
                // A log-probability falls as its loss rises.
                *token_weight = -(f64::from(*weight) * scale * slope) as f32;
            }
            let advantage = sample.sample.advantage;
            let (low, high) = (1.0 - options.epsilon, 1.0 + options.epsilon_high.unwrap_or(options.epsilon));
            for ratio in found.ratios {
                let is_low = ratio < low && advantage < 0.0;
                let is_high = ratio > high && advantage > 0.0;
                for (name, is) in [
                    ("clip_ratio/low_mean", is_low),
                    ("clip_ratio/high_mean", is_high),
                    ("clip_ratio/region_mean", is_low || is_high),
                ] {
                    scores.metric(name, f64::from(u8::from(is)));
                }
            }
            for kl in found.kl {
                scores.metric("kl", kl);
            }
        }
        match scored {
            Some(scored) => scored.seed(tape, &h, &token_weights, grads),
            None => TokenLosses::unscored(temperature, head, batch).seed(tape, &h, &token_weights, grads),
        }
        scores
    }

    fn metrics(&self, _: &TaskSpec, tally: &Tally, _: f64, _: &Examples) -> Metrics {
        tally.metrics.means()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sample;

    /// Every slope against differences of the losses, on both sides of the clips.
    #[test]
    fn slopes_are_those_of_the_losses() {
        let level = |importance_sampling_level| LossOptions {
            beta: 0.3,
            epsilon_high: Some(0.3),
            importance_sampling_level,
            ..LossOptions::DEFAULT
        };
        let logps = [-1.0, -0.4, -2.5, -0.9];
        let plain_kl = LossOptions { use_bias_correction_kl: false, ..level(ImportanceSamplingLevel::Token) };
        for (options, rloo) in [
            (level(ImportanceSamplingLevel::Token), false),
            (plain_kl, false),
            (level(ImportanceSamplingLevel::Sequence), false),
            (level(ImportanceSamplingLevel::Token), true),
        ] {
            for (advantage, shift) in [(1.3, 0.02), (1.3, 0.4), (-0.7, 0.05), (-0.7, -0.4), (-0.7, 0.4)] {
                let sample = PackedSample {
                    labels: 4,
                    sample: Sample { advantage, scale: 1.0 },
                    old_logps: logps.map(|logp| (logp - shift) as f32).to_vec(),
                    // RLOO's reward has the distance.
                    ref_logps: if rloo { Vec::new() } else { vec![-1.2, -0.3, -2.0, -1.0] },
                };
                let slopes = surrogate(&options, rloo, &sample, &logps).slopes;
                for t in 0..4 {
                    let at = |by: f64| {
                        let mut moved = logps;
                        moved[t] += by;
                        surrogate(&options, rloo, &sample, &moved).loss
                    };
                    let want = (at(1e-6) - at(-1e-6)) / 2e-6;
                    assert!((slopes[t] - want).abs() < 1e-6, "{options:?} {rloo}: {} for {want}", slopes[t]);
                }
                let clipped = (advantage > 0.0 && shift > 0.3) || (advantage < 0.0 && shift < -0.3);
                assert_eq!(clipped && rloo, slopes.iter().all(|slope| *slope == 0.0));
            }
        }
    }

    #[test]
    fn the_sampling_model_has_the_ratio_one() {
        let sample = PackedSample {
            labels: 2,
            sample: Sample { advantage: 0.5, scale: 1.0 },
            ..PackedSample::default()
        };
        let found = surrogate(&LossOptions::DEFAULT, false, &sample, &[-1.0, -3.0]);
        assert_eq!((found.loss, found.slopes, found.ratios), (-1.0, vec![-0.5; 2], vec![1.0; 2]));
        assert!(found.kl.is_empty());
    }
}
