//! Losses of pairs: a chosen and a rejected completion of one prompt.

use lowrank_engine::{Grads, Tape, Var};
use lowrank_models::Head;

use super::completions::{TokenLosses, completions, tokens};
use super::contract::{Metrics, Objective, Scores, Tally};
use super::dual::Dual;
use super::options::LossType;
use super::pair_losses::{cross_entropy, loss};
use crate::Examples;
use crate::pack::PackedBatch;
use crate::task::Task;
use crate::task_spec::TaskSpec;

/// `l_i = sum_k w_k l_k(p_c, p_r)` over the losses of the run (`loss_type`, `loss_weights`) for the log-probabilities of the two
/// completions of pair `i`, plus the mean cross-entropy of the batch's chosen completions where a loss has it.
pub(crate) struct Preference;

impl Objective for Preference {
    fn matches(&self, head: &Head, batch: &PackedBatch) -> bool {
        matches!(head, Head::Language(_))
            && batch.completions.first().is_some_and(|pair| pair.desirable.is_none())
    }

    fn tasks(&self) -> &'static [Task] {
        &[Task::Preference]
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
        let (options, kinds, pairs) = (&spec.loss, spec.loss.of(Task::Preference), tokens(batch));
        // The cross-entropy is a mean over the tokens of all chosen completions of the batch.
        let entropy_weight: f64 = kinds.iter().map(|(kind, w)| w * cross_entropy(*kind, options)).sum();
        let chosen =
            || pairs.iter().flat_map(|pair| [pair.prompt.clone(), pair.completions[0].clone()]).flatten();
        let chosen_tokens = chosen().count().max(1) as f64;
        let entropy = chosen().map(|i| f64::from(scored.losses[i])).sum::<f64>() / chosen_tokens;

        let means = kinds.iter().all(|(kind, _)| matches!(kind, LossType::Orpo | LossType::Simpo));
        let mut scores = Scores::default();
        let mut token_weights = vec![0.0; scored.losses.len()];
        for ((pair, tokens), weight) in batch.completions.iter().zip(&pairs).zip(weights) {
            let [c, r] = completions(tokens, &scored.losses, pair.reference);
            let of = |(kind, w): &(_, f64)| loss(*kind, options, c, r) * *w;
            let total = kinds.iter().map(of).fold(Dual::default(), |a, b| a + b);
            scores.losses.push((total.value + entropy_weight * entropy) as f32);
            for (range, slope) in tokens.completions.iter().zip(total.slope) {
                // A log-probability falls as its losses rise.
                token_weights[range.clone()].iter_mut().for_each(|w| *w -= weight * slope as f32);
            }
            // Where a loss is made of means over tokens, so is what is logged.
            let logps = [c, r].map(|y| if means { y.logp / y.tokens.max(1) as f64 } else { y.logp });
            let rewards = [0, 1].map(|i| options.beta * (logps[i] - [c, r][i].reference));
            scores.metric("rewards/chosen", rewards[0]);
            scores.metric("rewards/rejected", rewards[1]);
            scores.metric("rewards/margins", rewards[0] - rewards[1]);
            scores.metric("rewards/accuracies", f64::from(u8::from(rewards[0] > rewards[1])));
            scores.metric("logps/chosen", logps[0]);
            scores.metric("logps/rejected", logps[1]);
        }
        if entropy_weight > 0.0 {
            let all = weights.iter().map(|w| f64::from(*w)).sum::<f64>() * entropy_weight / chosen_tokens;
            chosen().for_each(|i| token_weights[i] += all as f32);
            scores.metric("nll_loss", entropy);
        }
        scored.seed(tape, &h, &token_weights, grads);
        scores
    }

    fn metrics(&self, _: &TaskSpec, tally: &Tally, _: f64, _: &Examples) -> Metrics {
        tally.metrics.means()
    }
}
