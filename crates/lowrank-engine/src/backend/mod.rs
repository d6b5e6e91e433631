//! What a device can do: one trait of coarse operations on tensors. [`Cpu`] computes them with the kernels, [`Plan`] only
//! counts; a GPU is one more implementation. Nothing else of the engine, and no other crate, sees the bytes of a tensor.
//!
//! Axes: `N` rows (tokens of a packed batch), `D` model width, `K` input features, `O` output features, `H` heads, `V`
//! vocabulary, `R` rank. "Adds" means `+=`. The number in brackets behind each operation is its count of floating-point
//! operations: products and attention count, a multiply-add as two; what only moves or scales values counts as nothing.

mod cpu;
pub mod flops;
mod plan;

use std::ops::Range;

use lowrank_kernels::{self as kernels, Activation, AttentionShape, DisentangledShape, Segment};

use crate::tensor::{Mat, MatMut, Saved, Tensor};
use crate::weight::FrozenWeight;

pub use cpu::Cpu;
pub use plan::Plan;

/// How long a tensor lives, which decides where it is placed: what a backward pass will read lies apart from what comes and
/// goes, so that neither leaves holes among the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Freed again soon.
    Temporary,
    /// Kept for the backward pass.
    Saved,
    /// Outlives the step: what belongs to parameters. It is not in the peak of a step.
    Persistent,
}

/// A frozen layer as products read it: `W: [O,K]`, or `[K,O]` where it is stored transposed, and `b: [O]`.
#[derive(Clone, Copy)]
pub struct WeightView<'a> {
    /// `W`.
    pub weight: &'a FrozenWeight,
    /// `b`.
    pub bias: Option<&'a Tensor>,
    /// Whether it is stored transposed.
    pub transposed: bool,
}

/// What a norm multiplies and adds after dividing.
#[derive(Clone, Copy)]
pub struct NormWeights<'a> {
    /// `w: [D]`.
    pub weight: &'a Tensor,
    /// `b: [D]`.
    pub bias: Option<&'a Tensor>,
    /// Added to the mean square or the variance.
    pub eps: f32,
    /// Added to the weight: 0, or 1 for Gemma and Nemotron.
    pub offset: f32,
}

/// Queries, keys and values.
#[derive(Clone, Copy)]
pub struct AttentionInputs<'a> {
    /// `q: [N, H d]`.
    pub q: &'a Tensor,
    /// `k: [M, K d]`.
    pub k: &'a Tensor,
    /// `v: [M, K d]`.
    pub v: &'a Tensor,
}

/// The gradients of [`AttentionInputs`], which are written.
pub struct AttentionGradients<'a> {
    /// Of the queries.
    pub dq: &'a mut Tensor,
    /// Of the keys.
    pub dk: &'a mut Tensor,
    /// Of the values.
    pub dv: &'a mut Tensor,
}

/// What DeBERTa's attention reads beside its contents: keys and queries of distances, `[P, H d]`, where there are any.
#[derive(Clone, Copy)]
pub struct Distances<'a> {
    /// Matched with queries (`c2p`).
    pub pos_key: Option<&'a Tensor>,
    /// Matched with keys (`p2c`).
    pub pos_query: Option<&'a Tensor>,
}

impl Distances<'_> {
    /// How many tables there are.
    pub fn count(&self) -> usize {
        usize::from(self.pos_key.is_some()) + usize::from(self.pos_query.is_some())
    }
}

/// The gradients of [`Distances`], which are written.
pub struct DistanceGradients<'a> {
    /// Of the keys of distances.
    pub dpos_key: Option<&'a mut Tensor>,
    /// Of the queries of distances.
    pub dpos_query: Option<&'a mut Tensor>,
}

/// A low-rank change, `s B A` for `A: [R,K]`, `B: [O,R]`.
#[derive(Clone, Copy)]
pub struct LowRankFactors<'a> {
    /// `A`.
    pub a: Mat<'a>,
    /// `B`.
    pub b: Mat<'a>,
    /// `s`.
    pub scaling: f32,
}

/// Rows of a batch, all different, and the low-rank changes that are theirs.
pub struct LowRankRows<'a> {
    /// The rows.
    pub rows: Vec<u32>,
    /// What is added, in this order.
    pub factors: Vec<LowRankFactors<'a>>,
}

impl LowRankRows<'_> {
    /// Floating-point operations.
    pub fn flops(&self) -> usize {
        let of = |f: &LowRankFactors<'_>| 2 * (f.a.shape().0 * f.a.shape().1 + f.b.shape().0 * f.b.shape().1);
        self.rows.len() * self.factors.iter().map(of).sum::<usize>()
    }
}

/// Targets of a cross-entropy.
#[derive(Clone, Copy)]
pub struct Targets<'a> {
    /// The right class of each row, `[N]`.
    pub classes: &'a [u32],
    /// What the gradient of each row's loss is multiplied with, `[N]`; `None`: no gradient is wanted.
    pub weights: Option<&'a [f32]>,
    /// Logits become `softcap tanh(logits / softcap)` first (Gemma 2).
    pub softcap: Option<f32>,
}

/// Which values a dropout zeroes: those of a counter-based random stream.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// Probability.
    pub p: f32,
    /// The run's seed.
    pub seed: u64,
    /// The stream.
    pub stream: u64,
}

/// Hands every operation to the macro `$callback`, as `#[doc] fn name(arguments) -> result [flops];`. So the trait, the
/// device's methods and the Plan backend are made from one list, and so can a backend that wraps another be.
#[macro_export]
macro_rules! for_each_operation {
    ($callback:ident) => { $callback! {
        /// `x = value`.
        fn fill(x: &mut Tensor, value: f32) -> () [0];
        /// `y = x`.
        fn copy(y: &mut Tensor, x: &Tensor) -> () [0];
        /// `y += x`.
        fn add(y: &mut Tensor, x: &Tensor) -> () [0];
        /// `y -= x`.
        fn sub(y: &mut Tensor, x: &Tensor) -> () [0];
        /// `y *= x`, element by element.
        fn mul(y: &mut Tensor, x: &Tensor) -> () [0];
        /// `y /= x`, element by element.
        fn div(y: &mut Tensor, x: &Tensor) -> () [0];
        /// `y = 1 / x`, element by element.
        fn reciprocal(y: &mut Tensor, x: &Tensor) -> () [0];
        /// `x *= factor`.
        fn scale(x: &mut Tensor, factor: f32) -> () [0];
        /// `y += factor (a - b)`.
        fn add_scaled_difference(y: &mut Tensor, a: &Tensor, b: &Tensor, factor: f32) -> () [0];
        /// The sum of the squares of all values, in f64.
        fn sum_squares(x: &Tensor) -> f64 [0];

        /// `y[:, y_at..y_at+width] = x[:, x_at..x_at+width]`.
        fn copy_columns(y: &mut Tensor, x: &Tensor, y_at: usize, x_at: usize, width: usize) -> () [0];
        /// `y[:, at..at+width] = value`.
        fn fill_columns(y: &mut Tensor, at: usize, width: usize, value: f32) -> () [0];
        /// `y[i,j] += bias[j]` for `y: [N,D]`, `bias: [D]`.
        fn add_bias(y: &mut Tensor, bias: &Tensor) -> () [0];
        /// Backward of `add_bias`: `dbias[j] += sum_i dy[i,j]`.
        fn bias_backward(dbias: &mut Tensor, dy: &Tensor) -> () [0];
        /// `y[i,j] = beta y[i,j] + factors[j] x[i,j]` for `x, y: [N,D]`, `factors: [D]`; with `beta` 0, `y` is only written.
        fn scale_columns(y: &mut Tensor, x: &Tensor, factors: &Tensor, beta: f32) -> () [0];
        /// Backward of `scale_columns` with respect to the factors: `dfactors[j] += sum_i dy[i,j] x[i,j]`.
        fn scale_columns_backward(dfactors: &mut Tensor, dy: &Tensor, x: &Tensor) -> () [0];
        /// `x[i,j] *= factors[i]` for `x: [N,D]`, `factors: [N]`.
        fn scale_rows(x: &mut Tensor, factors: &Tensor) -> () [0];
        /// Each row `i` of `x: [N,D]` keeps the columns `kept[i]`; the others become 0.
        fn keep_columns(x: &mut Tensor, kept: &[Range<usize>]) -> () [0];
        /// `y[b,a,:] = x[a,b,:]` for `x: [A,B,C]`, `sizes = [A,B,C]`. It is its own backward, with `A` and `B` swapped.
        fn swap_axes(y: &mut Tensor, x: &Tensor, sizes: [usize; 3]) -> () [0];

        /// `y[i,:] = x[rows[i],:]`. A row may come more than once.
        fn gather_rows(y: &mut Tensor, x: &Tensor, rows: &[u32]) -> () [0];
        /// Backward of `gather_rows`: `dx[rows[i],:] += dy[i,:]`, in the order of `i`.
        fn scatter_add_rows(dx: &mut Tensor, dy: &Tensor, rows: &[u32]) -> () [0];
        /// `y[rows[i],:] = x[i,:]`; the rows are all different.
        fn scatter_rows(y: &mut Tensor, x: &Tensor, rows: &[u32]) -> () [0];
        /// Rows `from` of `x` are copied to those from `to` on. The two may overlap.
        fn move_rows(x: &mut Tensor, from: Range<usize>, to: usize) -> () [0];
        /// `y[i,j] = x[i, columns[j]]` for `x: [N,D]`, `y: [N,J]`.
        fn gather_columns(y: &mut Tensor, x: &Tensor, columns: &[u32]) -> () [0];
        /// `y[i, columns[j]] = x[i,j] + bias[columns[j]]` for `x: [N,J]`, `y: [N,D]`.
        fn replace_columns(y: &mut Tensor, x: &Tensor, bias: Option<&Tensor>, columns: &[u32]) -> () [0];
        /// `y[i,j] = x[j, ids[i]]` for `x: [R,V]`, `y: [N,R]`: columns of a matrix as rows.
        fn gather_transposed(y: &mut Tensor, x: &Tensor, ids: &[u32]) -> () [0];
        /// Backward of `gather_transposed`: `dx[j, ids[i]] += dy[i,j]`.
        fn gather_transposed_backward(dx: &mut Tensor, dy: &Tensor, ids: &[u32]) -> () [0];
        /// `y[i,:]` is the mean of the rows `ranges[i]` of `x`, none of which is empty.
        fn mean_rows(y: &mut Tensor, x: &Tensor, ranges: &[Range<usize>]) -> () [0];
        /// Backward of `mean_rows`: `dx[t,:] += dy[i,:] / len(ranges[i])` for every row `t` of `ranges[i]`.
        fn mean_rows_backward(dx: &mut Tensor, dy: &Tensor, ranges: &[Range<usize>]) -> () [0];
        /// `y[i,:] = x[i,:] / norms[i]` with `norms[i] = max(|x[i,:]|, 1e-12)`, which is written.
        fn normalize_rows(y: &mut Tensor, norms: &mut Tensor, x: &Tensor) -> () [0];
        /// Backward of `normalize_rows`: `dx = (dy - y (y . dy)) / norms`, row by row.
        fn normalize_rows_backward(dx: &mut Tensor, dy: &Tensor, y: &Tensor, norms: &Tensor) -> () [0];
        /// `x[row,:] = table[token, columns]` for each `(row, token)`.
        fn replace_rows(x: &mut Tensor, table: &Tensor, columns: Range<usize>, rows: &[(usize, usize)]) -> () [0];
        /// Backward of `replace_rows`: `dtable[token, columns] += dx[row,:]`, and then `dx[row,:] = 0`.
        fn replace_rows_backward(
            dtable: &mut Tensor, dx: &mut Tensor, columns: Range<usize>, rows: &[(usize, usize)]
        ) -> () [0];

        /// `y[i,:] = W[ids[i],:]` for `W: [V,D]` in any format, `y: [N,D]`.
        fn embedding(y: &mut Tensor, w: &FrozenWeight, ids: &[u32]) -> () [0];
        /// `y[i,:] = scale T[rows[i],:]` where `rows[i]` names a row of `T: [M,D]`, else `y[i,:]` stays.
        fn table_lookup(y: &mut Tensor, table: &Tensor, rows: &[Option<u32>], scale: f32) -> () [0];
        /// Backward of `table_lookup`: `dT[rows[i],:] += scale dy[i,:]`.
        fn table_lookup_backward(dtable: &mut Tensor, dy: &Tensor, rows: &[Option<u32>], scale: f32) -> () [0];
        /// `y[j,:] = T[j,:] - W[rows[j],:]` for `T, y: [M,D]`, `W: [V,D]`: what trained rows change in a table.
        fn table_change(y: &mut Tensor, table: &Tensor, w: &FrozenWeight, rows: &[u32]) -> () [0];

        /// `y[i,:] += s B (A x[i,:])` for the rows of each group, which no other group has, and each of its changes.
        fn add_low_rank_rows(y: &mut Tensor, x: &Tensor, groups: &[LowRankRows<'_>]) -> ()
            [groups.iter().map(LowRankRows::flops).sum::<usize>()];
        /// `c = alpha a b + beta c`; with `beta` 0, `c` is only written.
        fn gemm(alpha: f32, a: Mat<'_>, b: Mat<'_>, beta: f32, c: MatMut<'_>) -> ()
            [2 * c.shape().0 * c.shape().1 * a.shape().1];
        /// `y = beta y + x W^T` for `x: [N,K]`, `y: [N,O]`, without the bias; `beta` is 0, with which `y` is only written, or 1.
        fn linear(y: &mut Tensor, x: &Tensor, w: WeightView<'_>, beta: f32) -> () [2 * x.len() * y.cols()];
        /// `y = residual + x W^T + b`, the residual `[N,O]` only where there is one.
        fn linear_add(y: &mut Tensor, x: &Tensor, w: WeightView<'_>, residual: Option<&Tensor>) -> ()
            [2 * x.len() * y.cols()];
        /// `dx = beta dx + dy W` for `dy: [N,O]`, `dx: [N,K]`.
        fn linear_backward(dx: &mut Tensor, dy: &Tensor, w: WeightView<'_>, beta: f32) -> () [2 * dy.len() * dx.cols()];

        /// Root-mean-square norm of each run of `D` values: `y = x / sqrt(mean(x^2) + eps) (offset + w)`. `rstd` gets the
        /// factor of each run where it has room for them (one row a run), else it is empty.
        fn rms_norm(y: &mut Tensor, rstd: &mut Tensor, x: &Tensor, norm: NormWeights<'_>) -> () [0];
        /// Backward of `rms_norm`: writes `dx`, or adds to it where `accumulate`, and adds to `dw` where it is given.
        fn rms_norm_backward(
            dx: &mut Tensor, dw: Option<&mut Tensor>, dy: &Tensor, x: &Tensor, rstd: &Tensor, norm: NormWeights<'_>,
            accumulate: bool
        ) -> () [0];
        /// `y = (x - mean(x)) / sqrt(var(x) + eps) (offset + w) + b`, row by row. `stats`: mean and `1 / sqrt(var + eps)` of each row, to
        /// be written.
        fn layer_norm(
            y: &mut Tensor, stats: Option<[&mut Tensor; 2]>, x: &Tensor, norm: NormWeights<'_>
        ) -> () [0];
        /// Backward of `layer_norm` in place: `dx` holds the gradient so far and gets what `dy` gives added; without `dy`, it
        /// holds `dy` itself. Adds to the gradients of weight and bias where they are given.
        fn layer_norm_backward(
            dx: &mut Tensor, dweights: [Option<&mut Tensor>; 2], dy: Option<&Tensor>, x: &Tensor, stats: [&Tensor; 2],
            norm: NormWeights<'_>
        ) -> () [0];
        /// `y = act(x)`, element by element.
        fn activate(y: &mut Tensor, x: &Tensor, activation: Activation) -> () [0];
        /// `x = act(x)`.
        fn activate_in_place(x: &mut Tensor, activation: Activation) -> () [0];
        /// Backward of `activate`, in place: `dy *= act'(x)`.
        fn activate_backward(dy: &mut Tensor, x: &Saved, activation: Activation) -> () [0];
        /// `h = act(gate) * up`, element by element.
        fn gated(h: &mut Tensor, gate: &Tensor, up: &Tensor, activation: Activation) -> () [0];
        /// `gate = act(gate) * up`.
        fn gated_in_place(gate: &mut Tensor, up: &Tensor, activation: Activation) -> () [0];
        /// Backward of `gated`: `dh` becomes the gradient of `gate`, and `dup` is written.
        fn gated_backward(dh: &mut Tensor, dup: &mut Tensor, gate: &Saved, up: &Saved, activation: Activation) -> () [0];
        /// The same in the place of the inputs: `gate` and `up` become their gradients.
        fn gated_backward_in_place(gate: &mut Tensor, up: &mut Tensor, dh: &Tensor, activation: Activation) -> () [0];
        /// `y = x m / (1 - p)` with a random mask `m` that is 0 with probability `p`, else 1.
        fn dropout(y: &mut Tensor, x: &Tensor, mask: Mask) -> () [0];
        /// Backward of `dropout`: `dx = m dy / (1 - p)`, added to `dx` where `accumulate`.
        fn dropout_backward(dx: &mut Tensor, dy: &Tensor, mask: Mask, accumulate: bool) -> () [0];
        /// Dropout of whole features: `factors[o]` is 0 with probability `p`, else 1 or, with `rescale`, `O` divided by the
        /// number of features that stay; all are 0 with probability `p_all`.
        fn feature_dropout(factors: &mut Tensor, p: f32, p_all: f32, rescale: bool, seed: u64, streams: [u64; 2]) -> () [0];

        /// Cosines and sines of rotary positions (Su et al. 2021): `cos, sin: [N,P]` of `positions[i] frequencies[set[i], :]`,
        /// times `scale`.
        fn rope_table(
            cos: &mut Tensor, sin: &mut Tensor, positions: &[u32], sets: &[u32], frequencies: &[f32], scale: f32
        ) -> () [0];
        /// Rotates each head of `x: [N, H d]` in place: pairs `(a, b)` of its first `2 P` values, `P` apart, become
        /// `(a cos - b sin, b cos + a sin)`.
        fn rope(x: &mut Tensor, cos: &Tensor, sin: &Tensor, heads: usize, head_dim: usize) -> () [0];
        /// Backward of `rope`, in place: the transposed rotation.
        fn rope_backward(dx: &mut Tensor, cos: &Tensor, sin: &Tensor, heads: usize, head_dim: usize) -> () [0];
        /// `o[i] = sum_j softmax_j(scale q_i k_j) v_j` for each head, over the keys that row `i` sees; `o: [N, H d]`, and
        /// `lse: [N,H]` gets the logarithm of the softmax's sum.
        fn attention(
            o: &mut Tensor, lse: &mut Tensor, inputs: AttentionInputs<'_>, shape: &AttentionShape, segments: &[Segment]
        ) -> () [4 * $crate::flops::attention_multiply_adds(shape, segments)];
        /// Backward of `attention`, with the probabilities computed again.
        fn attention_backward(
            gradients: AttentionGradients<'_>, dy: &Tensor, inputs: AttentionInputs<'_>, o: &Tensor, lse: &Tensor,
            shape: &AttentionShape, segments: &[Segment]
        ) -> () [10 * $crate::flops::attention_multiply_adds(shape, segments)];
        /// DeBERTa's attention: scores of contents with contents and with distances, over the rows of a segment.
        fn disentangled_attention(
            o: &mut Tensor, lse: &mut Tensor, inputs: AttentionInputs<'_>, distances: Distances<'_>,
            shape: &DisentangledShape<'_>, segments: &[Segment]
        ) -> () [2 * ($crate::flops::disentangled_multiply_adds(shape, segments, 0)
            + $crate::flops::disentangled_multiply_adds(shape, segments, distances.count()))];
        /// Backward of `disentangled_attention`: the scores again, their gradients, and two products for each of them.
        /// `outputs` are `o` and `lse` of the forward pass.
        fn disentangled_attention_backward(
            gradients: (AttentionGradients<'_>, DistanceGradients<'_>), dy: &Tensor, inputs: AttentionInputs<'_>,
            distances: Distances<'_>, outputs: [&Tensor; 2], shape: &DisentangledShape<'_>, segments: &[Segment]
        ) -> () [2 * (2 * $crate::flops::disentangled_multiply_adds(shape, segments, 0)
            + 3 * $crate::flops::disentangled_multiply_adds(shape, segments, distances.count()))];
        /// Neighbours side by side: `y[t, i K + k] = x[t + k - (K - 1) / 2, i]` within a segment, 0 beyond its ends.
        fn unfold(y: &mut Tensor, x: &Tensor, kernel: usize, segments: &[Segment]) -> () [0];
        /// Backward of `unfold`; `dx` is written.
        fn unfold_backward(dx: &mut Tensor, dy: &Tensor, kernel: usize, segments: &[Segment]) -> () [0];

        /// `losses[i] = -log softmax(logits[i,:])[classes[i]]`; with weights, `logits` become `weights[i]` times the gradient
        /// of `losses[i]`.
        fn cross_entropy(logits: &mut Tensor, losses: &mut [f32], targets: Targets<'_>) -> () [0];
        /// `losses[i] = mean_c (x[i,c] - targets[i,c])^2`, and `dx[i,c] = 2 weights[i] / C (x[i,c] - targets[i,c])`, for
        /// `x, dx, targets: [N,C]`.
        fn squared_error(dx: &mut Tensor, losses: &mut [f32], x: &Tensor, targets: &[f32], weights: &[f32]) -> () [0];
        /// `losses[i] = mean_c (max(x, 0) - x y + log(1 + exp(-|x|)))`, and `dx[i,c] = weights[i] / C (sigmoid(x) - y)`, for
        /// `x = x[i,c]`, `y = targets[i,c]` and `x, dx, targets: [N,C]`.
        fn binary_cross_entropy(
            dx: &mut Tensor, losses: &mut [f32], x: &Tensor, targets: &[f32], weights: &[f32]
        ) -> () [0];
        /// `x = cap tanh(x / cap)`.
        fn softcap(x: &mut Tensor, cap: f32) -> () [0];
        /// `x[i,:] = log softmax(x[i,:])`.
        fn log_softmax(x: &mut Tensor) -> () [0];
        /// The column of the largest value of each row, the first of several.
        fn argmax(x: &Tensor) -> Vec<u32> [0];

        /// Rounds `x` to int16 with one scale for each 128 values.
        fn quantize_i16(values: &mut Tensor, x: &Tensor) -> () [0];
        /// What `quantize_i16` rounded, as f32.
        fn dequantize_i16(x: &mut Tensor, values: &Tensor) -> () [0];

        /// `P[o, i R + j] = a[o,i] b[o,j]` for `a, b: [O,R]` (LoHa).
        fn loha_left(p: &mut Tensor, a: &Tensor, b: &Tensor) -> () [0];
        /// Backward of `loha_left`: adds to `da` and `db`, each where it is given.
        fn loha_left_backward(
            da: Option<&mut Tensor>, db: Option<&mut Tensor>, dp: &Tensor, a: &Tensor, b: &Tensor
        ) -> () [0];
        /// `Q[i R + j, k] = a[i,k] b[j,k]` for `a, b: [R,K]` (LoHa).
        fn loha_right(q: &mut Tensor, a: &Tensor, b: &Tensor) -> () [0];
        /// Backward of `loha_right`: adds to `da` and `db`, each where it is given.
        fn loha_right_backward(
            da: Option<&mut Tensor>, db: Option<&mut Tensor>, dq: &Tensor, a: &Tensor, b: &Tensor
        ) -> () [0];
        /// The squared norms of the weights of every output feature of a frozen layer, `[O]`.
        fn weight_squares(w: WeightView<'_>) -> Vec<f64> [0];
        /// `norms[o]`: the norm of row `o` of `W0 + s B A`, from `squares` of `W0`, `b: [O,R]`, `p = A W0^T: [R,O]` and
        /// `aa = A A^T: [R,R]` (DoRA).
        fn dora_norms(
            norms: &mut Tensor, squares: &[f64], b: &Tensor, p: &Tensor, aa: &Tensor, scaling: f32
        ) -> () [0];
        /// `dm[j] += sum_i dy[i,j] z[i,j] / norms[j]`: the gradient of DoRA's magnitude.
        fn dora_magnitude_backward(dm: &mut Tensor, dy: &Tensor, z: &Tensor, norms: &Tensor) -> () [0];
        /// With `s = |p g|`: `mean = beta1 mean + (1 - beta1) s`, `deviation = beta2 deviation + (1 - beta2) |s - mean|`: how
        /// sensitive the loss is to each value of a parameter (AdaLoRA).
        fn adalora_sensitivity(
            mean: &mut Tensor, deviation: &mut Tensor, p: &Tensor, g: &Tensor, beta1: f32, beta2: f32
        ) -> () [0];
        /// `scores[r]`: the importance of each rank from `[mean, deviation]` of `a: [R,K]`, `b: [O,R]` and `e: [R]` (AdaLoRA).
        fn adalora_importance(scores: &mut Tensor, a: [&Tensor; 2], b: [&Tensor; 2], e: [&Tensor; 2]) -> () [0];

        /// One step of AdamW (Loshchilov & Hutter 2019) on a parameter, with its moments `m` and `v`; `step` counts from 1.
        fn adamw(
            param: &mut Tensor, grad: &Tensor, m: &mut Tensor, v: &mut Tensor, settings: &kernels::AdamW, step: u64
        ) -> () [0];
    } };
}

macro_rules! backend {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty [$flops:expr];)*) => {
        /// A device. Every operation must give the same bits for the same inputs, and overwrites what it writes unless it
        /// says that it adds.
        #[allow(clippy::too_many_arguments)]
        pub trait Backend: Send + Sync {
            /// Its name, e.g. `cpu`.
            fn name(&self) -> &str;

            /// A tensor with undefined values.
            fn alloc(&self, rows: usize, cols: usize, lifetime: Lifetime) -> Tensor;

            /// Writes `values` to `x`.
            fn upload(&self, x: &mut Tensor, values: &[f32]);

            /// Reads the values of `x`; none where there are none.
            fn download(&self, x: &Tensor) -> Vec<f32>;

            /// Whether it counts sizes and computes nothing.
            fn is_plan(&self) -> bool {
                false
            }

            /// Most bytes of [`Backend::alloc`] in use at once since the last [`Backend::reset_peak`].
            fn peak_bytes(&self) -> usize;

            /// The same in whole pages: what it takes of the process's memory.
            fn peak_page_bytes(&self) -> usize {
                self.peak_bytes()
            }

            /// Starts counting the peak anew from what is in use now.
            fn reset_peak(&self);

            /// Gives memory that no tensor holds back to the system.
            fn trim(&self) {}

            $($(#[$doc])* fn $name(&self, $($arg: $ty),*) -> $ret;)*
        }
    };
}
for_each_operation!(backend);
