//! Losses of single completions that are desirable or not.

use lowrank_engine::{Grads, Tape, Var};
use lowrank_models::Head;

use super::completions::{TokenLosses, completions, tokens};
use super::contract::{Metrics, Objective, Scores, Tally};
use super::dual::Dual;
use super::options::LossType;
use crate::Examples;
use crate::pack::PackedBatch;
use crate::task::Task;
use crate::task_spec::TaskSpec;

/// `l_i = w (1 - s(beta (c_i - z)))` for a desirable completion, `w (1 - s(beta (z - c_i)))` for an undesirable one: `c_i` is its
/// log-probability less that of the reference, `w` is `desirable_weight` or `undesirable_weight`, and `z = max(0, mean_j c'_j)` over
/// the batch, where `c'_j` is the same of another prompt's completion: an estimate of the distance to the reference, of which no
/// gradient is taken. `apo_zero_unpaired` has `z = 0`.
pub(crate) struct Kto;

impl Objective for Kto {
    fn matches(&self, head: &Head, batch: &PackedBatch) -> bool {
        matches!(head, Head::Language(_))
            && batch.completions.first().is_some_and(|pair| pair.desirable.is_some())
    }

    fn tasks(&self) -> &'static [Task] {
        &[Task::Kto]
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
        let scored = TokenLosses::of(tape, head, &h, batch);
        let (options, pairs) = (&spec.loss, tokens(batch));
        let both: Vec<_> = batch
            .completions
            .iter()
            .zip(&pairs)
            .map(|(pair, tokens)| completions(tokens, &scored.losses, pair.reference))
            .collect();
        let kinds = spec.loss.of(Task::Kto);
        let distance = both.iter().map(|[_, other]| other.logp - other.reference).sum::<f64>();
        let distance = match kinds.iter().any(|(kind, _)| *kind == LossType::Kto) {
            true => (distance / both.len().max(1) as f64).max(0.0),
            false => 0.0,
        };

        let mut scores = Scores::default();
        scores.metric("kl", distance);
        let mut token_weights = vec![0.0; scored.losses.len()];
        for (i, ((pair, tokens), [own, _])) in batch.completions.iter().zip(&pairs).zip(&both).enumerate() {
            let desirable = pair.desirable.unwrap_or_default();
            let ratio = Dual::variable(own.logp, 0) - own.reference;
            let of = |(kind, w): &(LossType, f64)| {
                let z = if *kind == LossType::Kto { distance } else { 0.0 };
                let gain = (ratio - z) * options.beta;
                (-if desirable { gain } else { -gain }.sigmoid() + 1.0) * *w
            };
            let factor = if desirable { options.desirable_weight } else { options.undesirable_weight };
            let total = kinds.iter().map(of).fold(Dual::default(), |a, b| a + b) * factor;
            scores.losses.push(total.value as f32);
            let slope = weights[i] * total.slope[0] as f32;
            token_weights[tokens.completions[0].clone()].iter_mut().for_each(|w| *w -= slope);
            let (rewards, logps) = match desirable {
                true => ("rewards/chosen", "logps/chosen"),
                false => ("rewards/rejected", "logps/rejected"),
            };
            scores.metric(rewards, options.beta * ratio.value);
            scores.metric(logps, own.logp);
        }
        scored.seed(tape, &h, &token_weights, grads);
        scores
    }

    fn metrics(&self, _: &TaskSpec, tally: &Tally, _: f64, _: &Examples) -> Metrics {
        let mut metrics = tally.metrics.means();
        if let (Some(chosen), Some(rejected)) =
            (metrics.get("rewards/chosen"), metrics.get("rewards/rejected"))
        {
            metrics.insert("rewards/margins", chosen - rejected);
        }
        metrics
    }
}
