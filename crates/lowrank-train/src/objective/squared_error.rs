//! Squared error of one value a text.

use lowrank_engine::{Grads, Tape, Var};
use lowrank_models::Head;

use super::contract::{Metrics, Objective, Scores, Tally};
use crate::data::Target;
use crate::pack::PackedBatch;
use crate::task::{Task, TaskSpec};
use crate::{Example, Examples, metrics};

/// `l_i = (s_i - y_i)^2` for the one score `s_i` that the head gives text `i`, and its value `y_i`.
pub(crate) struct SquaredError;

impl Objective for SquaredError {
    fn matches(&self, head: &Head, batch: &PackedBatch) -> bool {
        matches!(head, Head::Classes(_)) && !batch.values.is_empty()
    }

    fn tasks(&self) -> &'static [Task] {
        &[Task::Regression]
    }

    fn score<'m>(
        &self,
        tape: &mut Tape<'m>,
        head: &'m Head,
        h: Var<'m>,
        batch: &PackedBatch,
        weights: &[f32],
        _: &mut Grads,
    ) -> Scores {
        let Head::Classes(head) = head else { panic!("squared error under {}", head.name()) };
        let device = tape.scope.device;
        let given = head.scores(tape, &h, &batch.rows_of_labels());
        let n = given.tensor.rows();
        let mut scores = Scores { losses: vec![0.0; n], ..Scores::default() };
        let mut gradient = device.alloc(n, 1);
        device.squared_error(&mut gradient, &mut scores.losses, &given.tensor, &batch.values, weights);
        if tape.records() {
            tape.seed(&given, gradient);
        } else {
            scores.outputs = device.to_vec(&given.tensor);
        }
        scores
    }

    fn tally(&self, tally: &mut Tally, chunk: &[Example], scores: &Scores) {
        tally.add_predictions(chunk, scores);
    }

    fn metrics(&self, _: &TaskSpec, tally: &Tally, _: f64, examples: &Examples) -> Metrics {
        let wanted = examples.iter().map(|e| match e.target {
            Target::Value { value, .. } => f64::from(value),
            _ => f64::NAN,
        });
        let given = tally.predictions.iter().map(|p| f64::from(p.outputs[0]));
        let (wanted, given): (Vec<f64>, Vec<f64>) = (wanted.collect(), given.collect());
        Metrics::from([
            ("pearson", metrics::pearson(&given, &wanted)),
            ("spearman", metrics::spearman(&given, &wanted)),
        ])
    }
}
