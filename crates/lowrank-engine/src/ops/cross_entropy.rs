//! Output layer and cross-entropy in one: the logits of all positions never exist at once.
//!
//! For labels `(row, target)`: `loss = sum over labels of -log softmax(z)[target]` with
//! `z = cap(h[row] W^T) / temperature` and `cap(x) = softcap tanh(x / softcap)` where the model has one, else `x`. Rows
//! without a label cost nothing. The product runs over chunks of labelled rows; while recording,
//! each chunk's gradient is taken at once, so that backward starts from `dloss/dh`.

use std::borrow::Cow;

use crate::accumulator::Accumulator;
use crate::backend::Targets;
use crate::device::Device;
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

/// Of which distribution the losses of tokens are, and against which.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLoss {
    /// What logits are divided by.
    pub temperature: f32,
    /// The share `e` of the target that is spread over all `V` tokens (Szegedy et al. 2016): the loss is `(1 - e)` times that of the
    /// target and `e` times the mean of those of all tokens.
    pub label_smoothing: f32,
}

impl Default for TokenLoss {
    /// The model's own distribution against the target alone.
    fn default() -> Self {
        Self { temperature: 1.0, label_smoothing: 0.0 }
    }
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
        let mut logits = self.linear(&head.linear, &Var::constant(h.tensor.clone()), None).tensor;
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
        self.cross_entropy_of(TokenLoss::default(), head, h, labels, weights, grads)
    }

    /// [`Tape::cross_entropy`] at a temperature, or with smoothed labels.
    pub fn cross_entropy_of(
        &mut self,
        loss: TokenLoss,
        head: &'m LmHead,
        h: &Var<'m>,
        labels: &[Label],
        weights: &[f32],
        grads: &mut Grads,
    ) -> Scores {
        self.score_tokens(loss, head, h, labels, Some(weights), grads)
    }

    /// The loss of each label with `head` on `h: [N,D]`, of which no gradient is taken: for a loss whose weights are made of the
    /// losses of all tokens. [`Tape::cross_entropy`] with those weights gives its gradient.
    pub fn token_losses(&mut self, head: &'m LmHead, h: &Var<'m>, labels: &[Label]) -> Vec<f32> {
        self.token_losses_of(TokenLoss::default(), head, h, labels)
    }

    /// [`Tape::token_losses`] at a temperature, or with smoothed labels.
    pub fn token_losses_of(
        &mut self,
        loss: TokenLoss,
        head: &'m LmHead,
        h: &Var<'m>,
        labels: &[Label],
    ) -> Vec<f32> {
        self.score_tokens(loss, head, h, labels, None, &mut Grads::default()).losses
    }

    /// Without `weights` no gradient is taken.
    fn score_tokens(
        &mut self,
        TokenLoss { temperature, label_smoothing }: TokenLoss,
        head: &'m LmHead,
        h: &Var<'m>,
        labels: &[Label],
        weights: Option<&[f32]>,
        grads: &mut Grads,
    ) -> Scores {
        let device = self.scope.device;
        // `cap(x) / t` is the cap `softcap / t` of `x / t`.
        let (softcap, head) = (head.softcap.map(|cap| cap / temperature), &head.linear);
        let scale = 1.0 / temperature;
        let (d, vocab) = (head.weight.cols(), head.weight.rows());
        let adapter = self.adapters.get(head.site);
        let wants = weights.is_some() && self.keeps(Some(0)) && (h.id.is_some() || adapter.is_some());
        let bf16 = head.weight.bf16_products() && device.saves_int16();
        let mut scores = Scores::default();
        let mut dh = wants.then(|| device.zeros(h.tensor.rows(), d));
        let most = chunk_rows(labels.len(), vocab, d, bf16);
        for (number, chunk) in labels.chunks(most).enumerate() {
            let weights = weights.filter(|_| wants).map(|weights| {
                let own = &weights[number * most..][..chunk.len()];
                match temperature == 1.0 {
                    true => Cow::Borrowed(own),
                    false => own.iter().map(|weight| weight * scale).collect(),
                }
            });
            let rows: Vec<u32> = chunk.iter().map(|label| label.row).collect();
            let n = chunk.len();
            let mut x = device.alloc(n, d);
            let mut logits = device.alloc(n, vocab);
            device.gather_rows(&mut x, &h.tensor, &rows);
            let saved = match adapter {
                Some(adapter) => Some(adapter.forward(&self.scope, head, &x, &mut logits, 0.0)),
                None => {
                    head.forward(&self.scope, &x, &mut logits, 0.0);
                    None
                }
            };
            if temperature != 1.0 {
                device.scale(&mut logits, scale);
            }
            let classes: Vec<u32> = chunk.iter().map(|label| label.target).collect();
            if !wants {
                let best = device.argmax(&logits);
                scores.hits.extend(best.iter().zip(&classes).map(|(a, b)| a == b));
            }
            let at = scores.losses.len();
            scores.losses.resize(at + n, 0.0);
            let smoothing = (label_smoothing > 0.0).then(|| {
                let cap = softcap.inspect(|cap| device.softcap(&mut logits, *cap));
                Smoothing::of(device, &logits, &classes, label_smoothing, cap)
            });
            let softcap = softcap.filter(|_| smoothing.is_none());
            let targets = Targets { classes: &classes, weights: weights.as_deref(), softcap };
            device.cross_entropy(&mut logits, &mut scores.losses[at..], targets);
            if let Some(smoothing) = smoothing {
                smoothing.finish(device, &mut logits, &mut scores.losses[at..], weights.as_deref());
            }
            let Some(dh) = &mut dh else { continue };
            // `x` is read by the head's adapter; the gradient needs memory of its own only then.
            let dx = match (adapter, saved) {
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
            device.scatter_add_rows(dh, &dx, &rows);
        }
        if let Some(dh) = dh {
            self.seed(h, dh);
        }
        scores
    }
}

/// What smoothed labels add to a cross-entropy over logits `z: [n,V]`: `e (z[t] - mean(z))` to each loss, and to its gradient `e` at the
/// target and `-e / V` everywhere.
struct Smoothing {
    share: f32,
    /// `z[t] - mean(z)` of each row.
    margins: Vec<f32>,
    /// The place of each target in all values.
    targets: Vec<u32>,
    /// Capped logits with their cap, where gradients go through it.
    capped: Option<(Tensor, f32)>,
}

impl Smoothing {
    fn of(device: &Device, z: &Tensor, classes: &[u32], share: f32, cap: Option<f32>) -> Self {
        let (n, vocab) = (z.rows(), z.cols());
        let targets: Vec<u32> =
            (0..).zip(classes).map(|(row, class): (u32, _)| row * vocab as u32 + class).collect();
        let mut at_target = device.alloc(n, 1);
        device.gather_rows(&mut at_target, &z.reshape(n * vocab, 1), &targets);
        let mut ones = device.alloc(vocab, 1);
        device.fill(&mut ones, 1.0 / vocab as f32);
        let mut mean = device.alloc(n, 1);
        device.gemm(1.0, z.mat(), ones.mat(), 0.0, mean.mat_mut());
        let values = device.to_vec(&at_target).into_iter().zip(device.to_vec(&mean));
        let margins = values.map(|(at_target, mean)| at_target - mean).collect();
        let capped = cap.map(|cap| {
            let mut kept = device.alloc(n, vocab);
            device.copy(&mut kept, z);
            (kept, cap)
        });
        Self { share, margins, targets, capped }
    }

    /// Adds to the losses of a cross-entropy without a cap, and to its gradient in `logits` where there are weights.
    fn finish(self, device: &Device, logits: &mut Tensor, losses: &mut [f32], weights: Option<&[f32]>) {
        losses.iter_mut().zip(&self.margins).for_each(|(loss, margin)| *loss += self.share * margin);
        let Some(weights) = weights else { return };
        let (n, vocab) = (logits.rows(), logits.cols());
        let shares: Vec<f32> = weights.iter().map(|weight| weight * self.share).collect();
        let shares = device.tensor(n, 1, &shares);
        let mut ones = device.alloc(1, vocab);
        device.fill(&mut ones, 1.0);
        device.gemm(-1.0 / vocab as f32, shares.mat(), ones.mat(), 1.0, logits.mat_mut());
        let taken = std::mem::replace(logits, Tensor::from_vec(0, 0, Vec::new()));
        let mut column = taken.into_shape(n * vocab, 1);
        device.scatter_add_rows(&mut column, &shares, &self.targets);
        *logits = column.into_shape(n, vocab);
        if let Some((mut z, cap)) = self.capped {
            // The slope of `cap tanh(x / cap)` at its value `z` is `1 - (z / cap)^2`.
            let mut squares = device.alloc(n, vocab);
            device.copy(&mut squares, &z);
            device.mul(&mut squares, &z);
            device.scale(&mut squares, -1.0 / (cap * cap));
            device.fill(&mut z, 1.0);
            device.add(&mut squares, &z);
            device.mul(logits, &squares);
        }
    }
}
