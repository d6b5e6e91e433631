//! The loss of a reward model (Bradley and Terry 1952).

use lowrank_engine::{Grads, Tape, Var};
use lowrank_models::Head;

use super::contract::{Metrics, Objective, Scores, Tally};
use super::dual::Dual;
use crate::pack::PackedBatch;
use crate::task::Task;
use crate::task_spec::TaskSpec;
use crate::{Example, Examples};

/// `l_i = -log s(r_c - r_r - margin_i) + center_rewards_coefficient (r_c + r_r)^2` for the rewards that the head gives the chosen and
/// the rejected text of pair `i`.
pub(crate) struct Reward;

impl Objective for Reward {
    fn matches(&self, head: &Head, batch: &PackedBatch) -> bool {
        matches!(head, Head::Classes(_)) && !batch.completions.is_empty()
    }

    fn tasks(&self) -> &'static [Task] {
        &[Task::Reward]
    }

    fn score<'m>(
        &self,
        tape: &mut Tape<'m>,
        (spec, head): (&TaskSpec, &'m Head),
        h: Var<'m>,
        batch: &PackedBatch,
        weights: &[f32],
        _: &mut Grads,
    ) -> Scores {
        let Head::Classes(head) = head else { panic!("a loss of rewards under {}", head.name()) };
        let given = head.scores(tape, &h, &batch.rows_of_labels());
        let device = tape.scope.device;
        let rewards = device.to_vec(&given.tensor);
        let mut scores = Scores::default();
        let mut gradient = vec![0.0; rewards.len()];
        let pairs = batch.completions.iter().zip(rewards.chunks_exact(2)).zip(gradient.chunks_exact_mut(2));
        for (((pair, rewards), gradient), weight) in pairs.zip(weights) {
            let [c, r] = [0, 1].map(|i| Dual::variable(rewards[i].into(), i));
            let loss = -(c - r - f64::from(pair.margin)).log_sigmoid()
                + (c + r).square() * spec.loss.center_rewards_coefficient;
            scores.losses.push(loss.value as f32);
            (0..2).for_each(|i| gradient[i] = weight * loss.slope[i] as f32);
            scores.metric("accuracy", f64::from(u8::from(c.value > r.value)));
            scores.metric("margin", c.value - r.value);
            scores.metric("mean_reward", (c.value + r.value) / 2.0);
        }
        if tape.records() {
            let (rows, cols) = (given.tensor.rows(), given.tensor.cols());
            tape.seed(&given, device.tensor(rows, cols, &gradient));
        }
        scores
    }

    fn tally(&self, tally: &mut Tally, chunk: &[Example], scores: &Scores) {
        // Of single texts, whose rewards are asked for.
        if !scores.outputs.is_empty() {
            tally.add_predictions(chunk, scores);
        }
    }

    fn metrics(&self, _: &TaskSpec, tally: &Tally, _: f64, _: &Examples) -> Metrics {
        tally.metrics.means()
    }
}
