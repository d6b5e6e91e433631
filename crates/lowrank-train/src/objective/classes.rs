//! Cross-entropy over classes of texts or words.

use lowrank_engine::{Grads, Tape, Targets, Var};
use lowrank_models::Head;

use super::contract::{Metrics, Objective, Scores, Tally};
use crate::data::Target;
use crate::pack::PackedBatch;
use crate::task::Task;
use crate::task_spec::TaskSpec;
use crate::{Example, Examples, metrics};

/// `l_i = -log softmax(s_i)[c_i]` for the scores `s_i: [C]` that the head gives row `i`, and its class `c_i`.
pub(crate) struct Classes;

impl Objective for Classes {
    fn matches(&self, head: &Head, batch: &PackedBatch) -> bool {
        let classes = batch.values.is_empty() && batch.class_sets.is_empty() && batch.completions.is_empty();
        matches!(head, Head::Classes(_)) && classes
    }

    fn tasks(&self) -> &'static [Task] {
        &[Task::Classification, Task::PairClassification, Task::TokenClassification]
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
        let Head::Classes(head) = head else { panic!("class loss under {}", head.name()) };
        let logits = head.scores(tape, &h, &batch.rows_of_labels());
        let targets: Vec<u32> = batch.labels.iter().map(|label| label.target).collect();
        let device = tape.scope.device;
        let (n, c) = (logits.tensor.rows(), logits.tensor.cols());
        let mut scores = Scores { losses: vec![0.0; n], ..Scores::default() };
        let mut gradient = device.alloc(n, c);
        let records = tape.records();
        if !records {
            scores.outputs = device.to_vec(&logits.tensor);
            scores.hits = device.argmax(&logits.tensor).iter().zip(&targets).map(|(a, b)| a == b).collect();
        }
        device.copy(&mut gradient, &logits.tensor);
        let targets = Targets { classes: &targets, weights: records.then_some(weights), softcap: None };
        device.cross_entropy(&mut gradient, &mut scores.losses, targets);
        if records {
            tape.seed(&logits, gradient);
        }
        scores
    }

    fn tally(&self, tally: &mut Tally, chunk: &[Example], scores: &Scores) {
        tally.add_predictions(chunk, scores);
    }

    fn metrics(&self, spec: &TaskSpec, tally: &Tally, _: f64, examples: &Examples) -> Metrics {
        let mut out = Metrics::new();
        let gold: Vec<Vec<u32>> = examples.iter().map(|example| classes(&example)).collect();
        let predicted: Vec<&Vec<u32>> = tally.predictions.iter().map(|p| &p.classes).collect();
        if spec.task == Task::TokenClassification {
            words(&mut out, &spec.labels, &predicted, &gold);
            return out;
        }
        let gold: Vec<u32> = gold.concat();
        let predicted: Vec<u32> = predicted.into_iter().flatten().copied().collect();
        out.insert("accuracy", metrics::accuracy(&predicted, &gold));
        out.insert("matthews_correlation", metrics::matthews(&predicted, &gold));
        match spec.labels.len() {
            2 => out.insert("f1", metrics::f1(&predicted, &gold, 1)),
            _ => out.insert("f1_macro", metrics::f1_macro(&predicted, &gold)),
        };
        out
    }
}

fn classes(example: &Example) -> Vec<u32> {
    match &example.target {
        Target::Classes(labels) => labels.iter().map(|label| label.target).collect(),
        _ => Vec::new(),
    }
}

/// Accuracy of tags and, where they are BIO tags, the scores of entities.
fn words(out: &mut Metrics, labels: &[String], predicted: &[&Vec<u32>], gold: &[Vec<u32>]) {
    let all: Vec<u32> = predicted.iter().flat_map(|tags| tags.iter().copied()).collect();
    out.insert("accuracy", metrics::accuracy(&all, &gold.concat()));
    let tag = |label: &String| label == "O" || label.split_once('-').is_some_and(|(p, _)| p.len() == 1);
    if !labels.iter().all(tag) {
        return;
    }
    let entities = |tags: &[u32]| {
        let names: Vec<&str> = tags.iter().map(|&tag| labels[tag as usize].as_str()).collect();
        metrics::entities(&names)
    };
    let predicted: Vec<_> = predicted.iter().map(|tags| entities(tags)).collect();
    let gold: Vec<_> = gold.iter().map(|tags| entities(tags)).collect();
    let (precision, recall, f1) = metrics::entity_scores(&predicted, &gold);
    out.extend([("precision", precision), ("recall", recall), ("f1", f1)]);
}
