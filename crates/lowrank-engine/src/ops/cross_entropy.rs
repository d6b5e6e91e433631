//! Output layer and cross-entropy in one: the logits of all positions never exist at once.
//!
//! For labels `(row, target)`: `loss = sum over labels of -log softmax(z)[target]` with
//! `z = cap(scale h[row] W^T)` and `cap(x) = softcap tanh(x / softcap)` where the model has one, else `x`. Rows
//! without a label cost nothing. The product runs over chunks of labelled rows; while recording,
//! each chunk's gradient is taken at once, so that backward starts from `dloss/dh`.

use crate::accumulator::Accumulator;
use crate::backend::Targets;
use crate::layer::Linear;
use crate::params::Grads;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// The output layer of a language model.
pub struct LmHead {
    /// `W: [V,D]`, where adapters attach.
    pub linear: Linear,
    /// Logits become `softcap tanh(logits / softcap)` (Gemma 2).
    pub softcap: Option<f32>,
    /// Multiplies logits, before the cap (Granite, Cohere).
    pub scale: f32,
}

impl LmHead {
    /// `V`.
    pub fn vocab(&self) -> usize {
        self.linear.out_features()
    }
}

/// One prediction to be scored: the row that predicts, and the right token. Several labels may name
/// the same row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Row of the packed batch.
    pub row: u32,
    /// The token that follows.
    pub target: u32,
}

/// What the labels of a batch say of the model.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// `-log p(target)` for each label, in nats.
    pub losses: Vec<f32>,
    /// Whether the most likely token is the target, for each label; only without gradient.
    pub hits: Vec<bool>,
}

/// Logits that exist at once, in values: with 36 MB the peak stays near that of the blocks of a small model.
const CHUNK_VALUES: usize = 17 << 19;

/// Rows of a chunk from which packing the head is a small part of its product.
const PACKING_ROWS: usize = 256;

/// Rows of one chunk: the labels in equal parts, each with [`CHUNK_VALUES`] values or with rows a third of the model's width, a
/// third of the head in f32, up to [`PACKING_ROWS`]. Half as many values again where BF16 products take half as long, which
/// packing does not.
fn chunk_rows(labels: usize, vocab: usize, width: usize, bf16: bool) -> usize {
    let values = if bf16 { CHUNK_VALUES + CHUNK_VALUES / 2 } else { CHUNK_VALUES };
    let most = (values / vocab.max(1)).max(PACKING_ROWS.min(width / 3)).clamp(32, 1024);
    labels.div_ceil(labels.div_ceil(most).max(1)).max(1)
}

impl<'m> Tape<'m> {
    /// Logits of the rows of `h: [N,D]`, `[N,V]`, for reading: no gradient goes through them.
    pub fn logits(&mut self, head: &'m LmHead, h: &Var<'m>) -> Tensor {
        let mut h = Var::constant(h.tensor.clone());
        if head.scale != 1.0 {
            h = self.scale(h, head.scale);
        }
        let mut logits = self.linear(&head.linear, &h, None).tensor;
        if let Some(cap) = head.softcap {
            self.scope.device.softcap(&mut logits, cap);
        }
        logits
    }

    /// Scores `labels` with `head` on `h: [N,D]`. While recording, seeds the backward pass with the gradient of
    /// `sum_i weights[i] losses[i]`; the head's own adapter accumulates into `grads`.
    pub fn cross_entropy(
        &mut self,
        head: &'m LmHead,
        h: &Var<'m>,
        labels: &[Label],
        weights: &[f32],
        grads: &mut Grads,
    ) -> Scores {
        self.score_tokens(head, h, labels, Some(weights), grads)
    }

    /// The loss of each label with `head` on `h: [N,D]`, of which no gradient is taken: for a loss whose weights are made of the
    /// losses of all tokens. [`Tape::cross_entropy`] with those weights gives its gradient.
    pub fn token_losses(&mut self, head: &'m LmHead, h: &Var<'m>, labels: &[Label]) -> Vec<f32> {
        self.score_tokens(head, h, labels, None, &mut Grads::default()).losses
    }

    /// Without `weights` no gradient is taken.
    fn score_tokens(
        &mut self,
        head: &'m LmHead,
        h: &Var<'m>,
        labels: &[Label],
        weights: Option<&[f32]>,
        grads: &mut Grads,
    ) -> Scores {
        let device = self.scope.device;
        let (softcap, scale, head) = (head.softcap, head.scale, &head.linear);
        let (d, vocab) = (head.weight.cols(), head.weight.rows());
        let adapter = self.adapters.get(head.site);
        let wants = weights.is_some() && self.keeps(Some(0)) && (h.id.is_some() || adapter.is_some());
        let bf16 = head.weight.bf16_products() && device.saves_int16();
        let mut scores = Scores::default();
        let mut dh = wants.then(|| device.zeros(h.tensor.rows(), d));
        let most = chunk_rows(labels.len(), vocab, d, bf16);
        for (number, chunk) in labels.chunks(most).enumerate() {
            let weights = weights.filter(|_| wants).map(|weights| &weights[number * most..][..chunk.len()]);
            let rows: Vec<u32> = chunk.iter().map(|label| label.row).collect();
            let n = chunk.len();
            let mut x = device.alloc(n, d);
            let mut logits = device.alloc(n, vocab);
            device.gather_rows(&mut x, &h.tensor, &rows);
            if scale != 1.0 {
                device.scale(&mut x, scale);
            }
            let saved = match adapter {
                Some(adapter) => Some(adapter.forward(&self.scope, head, &x, &mut logits, 0.0)),
                None => {
                    head.forward(&self.scope, &x, &mut logits, 0.0);
                    None
                }
            };
            let classes: Vec<u32> = chunk.iter().map(|label| label.target).collect();
            if !wants {
                let best = device.argmax(&logits);
                scores.hits.extend(best.iter().zip(&classes).map(|(a, b)| a == b));
            }
            let at = scores.losses.len();
            scores.losses.resize(at + n, 0.0);
            let targets = Targets { classes: &classes, weights, softcap };
            device.cross_entropy(&mut logits, &mut scores.losses[at..], targets);
            let Some(dh) = &mut dh else { continue };
            // `x` is read by the head's adapter; the gradient needs memory of its own only then.
            let mut dx = match (adapter, saved) {
                (Some(adapter), Some(saved)) => {
                    let mut dx = Accumulator::fresh(device.alloc(n, d));
                    adapter.backward(&self.scope, head, grads, &x, &logits, saved, Some(&mut dx));
                    dx.tensor
                }
                _ => {
                    let mut dx = Accumulator::fresh(x);
                    head.backward(&self.scope, &logits, &mut dx);
                    dx.tensor
                }
            };
            if scale != 1.0 {
                device.scale(&mut dx, scale);
            }
            device.scatter_add_rows(dh, &dx, &rows);
        }
        if let Some(dh) = dh {
            self.seed(h, dh);
        }
        scores
    }
}
