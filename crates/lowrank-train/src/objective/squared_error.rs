//! Squared error of the values of a text.

use lowrank_engine::{Grads, Tape, Var};
use lowrank_models::Head;

use super::contract::{Metrics, Objective, Scores, Tally};
use crate::data::Target;
use crate::pack::PackedBatch;
use crate::task::Task;
use crate::task_spec::TaskSpec;
use crate::{Example, Examples, metrics};

/// `l_i = mean_c (s_i,c - y_i,c)^2` for the scores `s_i: [C]` that the head gives text `i`, and its values `y_i: [C]`:
/// transformers' `MSELoss`.
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
        (_, head): (&TaskSpec, &'m Head),
        h: Var<'m>,
        batch: &PackedBatch,
        weights: &[f32],
        _: &mut Grads,
    ) -> Scores {
        let Head::Classes(head) = head else { panic!("squared error under {}", head.name()) };
        let device = tape.scope.device;
        let given = head.scores(tape, &h, &batch.rows_of_labels());
        let (n, c) = (given.tensor.rows(), given.tensor.cols());
        let mut scores = Scores { losses: vec![0.0; n], ..Scores::default() };
        let mut gradient = device.alloc(n, c);
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

    fn metrics(&self, spec: &TaskSpec, tally: &Tally, _: f64, examples: &Examples) -> Metrics {
        let wanted: Vec<Vec<f32>> = examples.iter().map(|e| values(e.target)).collect();
        // Of each output, and the mean of them.
        let mean = |of: fn(&[f64], &[f64]) -> f64| {
            let one = |c: usize| {
                let given: Vec<f64> = tally.predictions.iter().map(|p| f64::from(p.outputs[c])).collect();
                let wanted: Vec<f64> =
                    wanted.iter().map(|y| y.get(c).map_or(f64::NAN, |y| f64::from(*y))).collect();
                of(&given, &wanted)
            };
            (0..spec.outputs).map(one).sum::<f64>() / spec.outputs as f64
        };
        Metrics::from([("pearson", mean(metrics::pearson)), ("spearman", mean(metrics::spearman))])
    }
}

fn values(target: Target) -> Vec<f32> {
    match target {
        Target::Values { values, .. } => values,
        _ => Vec::new(),
    }
}
