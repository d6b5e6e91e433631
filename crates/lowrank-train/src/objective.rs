//! What a head is trained for: between a packed batch and the tape.

use lowrank_engine::{Grads, Label, Tape, Targets, Var};
use lowrank_models::{ClassHead, Head};

use crate::PackedBatch;

/// What the targets of a batch say of the model.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// The loss of each target: `-log p(target)` in nats, or a squared error.
    pub losses: Vec<f32>,
    /// Whether the likeliest class (token, text) is the target, for each; without gradient only.
    pub hits: Vec<bool>,
    /// Without gradient, what the head gave for each target: scores of classes, one value, or the cosines of a
    /// text with the texts of the batch. Empty for language models, whose logits never exist all at once.
    pub outputs: Vec<f32>,
}

/// Scores the targets of `batch` on the hidden states that it wants, `h`. While recording, seeds the backward pass with the
/// gradient of `scale * sum(losses)`; adapters of an output layer accumulate into `grads`.
///
/// # Panics
/// Where the model has no head.
pub(crate) fn score<'m>(
    tape: &mut Tape<'m>,
    head: &'m Head,
    h: Var<'m>,
    batch: &PackedBatch,
    scale: f32,
    grads: &mut Grads,
) -> Scores {
    let language = |scores: lowrank_engine::Scores| Scores {
        losses: scores.losses,
        hits: scores.hits,
        outputs: Vec::new(),
    };
    match head {
        Head::Language(head) => {
            let weights = vec![scale; batch.labels.len()];
            language(tape.cross_entropy(head, &h, &batch.labels_of_wanted(), &weights, grads))
        }
        Head::Masked(head) => {
            let x = head.states(tape, &h, &rows(batch));
            let at = |(row, label): (u32, &Label)| Label { row, target: label.target };
            let labels: Vec<Label> = (0..).zip(&batch.labels).map(at).collect();
            language(tape.cross_entropy(&head.decoder, &x, &labels, &vec![scale; labels.len()], grads))
        }
        Head::Classes(head) if batch.values.is_empty() => classes(tape, head, &h, batch, scale),
        Head::Classes(head) => values(tape, head, &h, batch, scale),
        Head::Embedding => contrast(tape, &h, batch, scale),
        Head::None => panic!("a model without head has nothing to train for"),
    }
}

fn rows(batch: &PackedBatch) -> Vec<usize> {
    batch.labels_of_wanted().iter().map(|label| label.row as usize).collect()
}

/// Cross-entropy over classes.
fn classes<'m>(
    tape: &mut Tape<'m>,
    head: &'m ClassHead,
    h: &Var<'m>,
    batch: &PackedBatch,
    scale: f32,
) -> Scores {
    let logits = head.scores(tape, h, &rows(batch));
    let targets: Vec<u32> = batch.labels.iter().map(|label| label.target).collect();
    cross_entropy(tape, &logits, &targets, scale)
}

/// `-log softmax(logits[i])[targets[i]]`.
fn cross_entropy<'m>(tape: &mut Tape<'m>, logits: &Var<'m>, targets: &[u32], scale: f32) -> Scores {
    let device = tape.scope.device;
    let (n, c) = (logits.tensor.rows(), logits.tensor.cols());
    let mut scores = Scores { losses: vec![0.0; n], ..Scores::default() };
    let mut gradient = device.alloc(n, c);
    let records = tape.records();
    if !records {
        scores.outputs = device.to_vec(&logits.tensor);
        scores.hits = device.argmax(&logits.tensor).iter().zip(targets).map(|(a, b)| a == b).collect();
    }
    device.copy(&mut gradient, &logits.tensor);
    let weights = vec![scale; n];
    let targets = Targets { classes: targets, weights: records.then_some(&weights), softcap: None };
    device.cross_entropy(&mut gradient, &mut scores.losses, targets);
    if records {
        tape.seed(logits, gradient);
    }
    scores
}

/// Squared error of one value for each text.
fn values<'m>(
    tape: &mut Tape<'m>,
    head: &'m ClassHead,
    h: &Var<'m>,
    batch: &PackedBatch,
    scale: f32,
) -> Scores {
    let device = tape.scope.device;
    let given = head.scores(tape, h, &rows(batch));
    let n = given.tensor.rows();
    let mut scores = Scores { losses: vec![0.0; n], ..Scores::default() };
    let mut gradient = device.alloc(n, 1);
    device.squared_error(&mut gradient, &mut scores.losses, &given.tensor, &batch.values, &vec![scale; n]);
    if tape.records() {
        tape.seed(&given, gradient);
    } else {
        scores.outputs = device.to_vec(&given.tensor);
    }
    scores
}

/// Factor of the cosines: sentence-transformers' `MultipleNegativesRankingLoss`.
const SIMILARITY_SCALE: f32 = 20.0;

/// In-batch negatives (Henderson et al. 2017): of the batch's second texts, the own one is to be nearest to a first
/// text. `-log softmax_j(20 cos(a_i, p_j))[i]`.
fn contrast<'m>(tape: &mut Tape<'m>, h: &Var<'m>, batch: &PackedBatch, scale: f32) -> Scores {
    let (scope, device) = (tape.scope, tape.scope.device);
    let of = |second: usize| batch.segments.iter().skip(second).step_by(2).map(|s| s.q.clone());
    let mut embed = |second: usize| {
        let x = tape.mean_rows(h, &of(second).collect::<Vec<_>>());
        tape.normalize(&x)
    };
    let (a, p) = (embed(0), embed(1));
    let n = a.tensor.rows();
    let mut cosines = device.alloc(n, n);
    scope.gemm(1.0, a.tensor.mat(), p.tensor.mat().t(), 0.0, cosines.mat_mut());
    let mut logits = device.alloc(n, n);
    device.copy(&mut logits, &cosines);
    device.scale(&mut logits, SIMILARITY_SCALE);
    let classes: Vec<u32> = (0..n as u32).collect();
    let mut losses = vec![0.0; n];
    if !tape.records() {
        let hits = device.argmax(&logits).iter().zip(&classes).map(|(a, b)| a == b).collect();
        let targets = Targets { classes: &classes, weights: None, softcap: None };
        device.cross_entropy(&mut logits, &mut losses, targets);
        return Scores { losses, hits, outputs: device.to_vec(&cosines) };
    }
    let weights = vec![scale; n];
    let targets = Targets { classes: &classes, weights: Some(&weights), softcap: None };
    device.cross_entropy(&mut logits, &mut losses, targets);
    let d = a.tensor.cols();
    let (mut da, mut dp) = (device.alloc(n, d), device.alloc(n, d));
    scope.gemm(SIMILARITY_SCALE, logits.mat(), p.tensor.mat(), 0.0, da.mat_mut());
    scope.gemm(SIMILARITY_SCALE, logits.mat().t(), a.tensor.mat(), 0.0, dp.mat_mut());
    tape.seed(&a, da);
    tape.seed(&p, dp);
    Scores { losses, ..Scores::default() }
}
