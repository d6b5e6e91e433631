//! Cross-entropy over hidden tokens (Devlin et al. 2018).

use lowrank_engine::{Grads, Label, Tape, Var};
use lowrank_models::Head;

use super::contract::{Metrics, Objective, Scores, Tally};
use crate::Examples;
use crate::pack::PackedBatch;
use crate::task::Task;
use crate::task_spec::TaskSpec;

/// `l_i = -log softmax(decoder(norm(act(dense(h_r)))))[t]` for each hidden token `t` at row `r`.
pub(crate) struct Masked;

impl Objective for Masked {
    fn matches(&self, head: &Head, _: &PackedBatch) -> bool {
        matches!(head, Head::Masked(_))
    }

    fn tasks(&self) -> &'static [Task] {
        &[Task::Mlm]
    }

    fn score<'m>(
        &self,
        tape: &mut Tape<'m>,
        (_, head): (&TaskSpec, &'m Head),
        h: Var<'m>,
        batch: &PackedBatch,
        weights: &[f32],
        grads: &mut Grads,
    ) -> Scores {
        let Head::Masked(head) = head else { panic!("masked-token loss under {}", head.name()) };
        let x = head.states(tape, &h, &batch.rows_of_labels());
        let at = |(row, label): (u32, &Label)| Label { row, target: label.target };
        let labels: Vec<Label> = (0..).zip(&batch.labels).map(at).collect();
        tape.cross_entropy(&head.decoder, &x, &labels, weights, grads).into()
    }

    fn metrics(&self, _: &TaskSpec, tally: &Tally, loss: f64, _: &Examples) -> Metrics {
        Metrics::from([("perplexity", loss.exp()), ("accuracy", tally.hit_rate())])
    }
}
