//! Binary cross-entropy over the classes of a text, each by itself.

use lowrank_engine::{Grads, Tape, Var};
use lowrank_models::Head;

use super::contract::{Metrics, Objective, Prediction, Scores, Tally};
use crate::data::Target;
use crate::pack::PackedBatch;
use crate::task::Task;
use crate::task_spec::TaskSpec;
use crate::{Example, Examples, metrics};

/// `l_i = mean_c (-y_i,c log sigmoid(s_i,c) - (1 - y_i,c) log(1 - sigmoid(s_i,c)))` for the scores `s_i: [C]` that the
/// head gives text `i`, with `y_i,c` 1 for its classes and 0 for the others: transformers' `BCEWithLogitsLoss`.
pub(crate) struct MultiLabel;

impl Objective for MultiLabel {
    fn matches(&self, head: &Head, batch: &PackedBatch) -> bool {
        matches!(head, Head::Classes(_)) && !batch.class_sets.is_empty()
    }

    fn tasks(&self) -> &'static [Task] {
        &[Task::MultiLabelClassification]
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
        let Head::Classes(head) = head else { panic!("multi-label loss under {}", head.name()) };
        let device = tape.scope.device;
        let logits = head.scores(tape, &h, &batch.rows_of_labels());
        let (n, c) = (logits.tensor.rows(), logits.tensor.cols());
        let mut targets = vec![0.0; n * c];
        for (row, classes) in targets.chunks_exact_mut(c).zip(&batch.class_sets) {
            classes.iter().for_each(|class| row[*class as usize] = 1.0);
        }
        let mut scores = Scores { losses: vec![0.0; n], ..Scores::default() };
        let mut gradient = device.alloc(n, c);
        device.binary_cross_entropy(&mut gradient, &mut scores.losses, &logits.tensor, &targets, weights);
        if tape.records() {
            tape.seed(&logits, gradient);
        } else {
            scores.outputs = device.to_vec(&logits.tensor);
        }
        scores
    }

    fn tally(&self, tally: &mut Tally, _: &[Example], scores: &Scores) {
        let classes = scores.outputs.len() / scores.losses.len().max(1);
        for logits in scores.outputs.chunks_exact(classes.max(1)) {
            // The probability is above 0.5 where the logit is above 0.
            let likely = (0..).zip(logits).filter(|(_, logit)| **logit > 0.0).map(|(class, _)| class);
            tally.predictions.push(Prediction { classes: likely.collect(), outputs: logits.to_vec() });
        }
    }

    fn metrics(&self, spec: &TaskSpec, tally: &Tally, _: f64, examples: &Examples) -> Metrics {
        let gold: Vec<Vec<u32>> = examples.iter().map(|example| classes(example.target)).collect();
        let predicted: Vec<Vec<u32>> = tally.predictions.iter().map(|p| p.classes.clone()).collect();
        let (f1_micro, f1_macro) = metrics::f1_of_sets(&predicted, &gold, spec.labels.len());
        Metrics::from([
            ("accuracy", metrics::accuracy(&predicted, &gold)),
            ("f1_micro", f1_micro),
            ("f1_macro", f1_macro),
        ])
    }
}

fn classes(target: Target) -> Vec<u32> {
    match target {
        Target::ClassSet { classes, .. } => classes,
        _ => Vec::new(),
    }
}
