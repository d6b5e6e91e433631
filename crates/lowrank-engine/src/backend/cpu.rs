//! The processor: every operation is a kernel over host memory.

use std::ops::Range;

use lowrank_kernels::{
    self as kernels, Activation, AttentionShape, DisentangledGradients, DisentangledInputs,
    DisentangledShape, LinearRef, SavedValues, Segment, WeightRef,
};

use super::{
    AttentionGradients, AttentionInputs, Backend, DistanceGradients, Distances, Lifetime, LowRankFactors,
    LowRankRows, Mask, NormWeights, Targets, WeightView,
};
use crate::arena::Arena;
use crate::buffer::{Buffer, HostMemory};
use crate::tensor::{Mat, MatMut, Saved, Tensor};
use crate::weight::FrozenWeight;

/// The processor this program runs on, with its arena.
pub struct Cpu {
    arena: Arena,
}

impl Cpu {
    /// Reserves the arena's address space.
    pub fn new() -> Self {
        Self { arena: Arena::reserve() }
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

/// A saved value as the kernels read it.
fn saved(x: &Saved) -> SavedValues<'_> {
    match x {
        Saved::F32(x) => SavedValues::F32(x.host()),
        Saved::I16 { values, .. } => SavedValues::I16(values.host()),
    }
}

type Product = fn(&mut [f32], &[f32], &WeightRef<'_>, usize, f32);

/// The product with the stored matrix, or with its transpose.
fn product(w: &FrozenWeight, backward: bool) -> Product {
    match (backward, w.bf16_products()) {
        (false, false) => kernels::linear,
        (true, false) => kernels::linear_backward,
        (false, true) => kernels::linear_bf16,
        (true, true) => kernels::linear_backward_bf16,
    }
}

fn operand<'a>(x: &Mat<'a>) -> kernels::MatRef<'a> {
    let (rs, cs) = x.strides();
    kernels::MatRef { data: x.tensor.host(), rs, cs }
}

fn factors<'a>(of: &LowRankFactors<'a>) -> kernels::LowRankFactors<'a> {
    kernels::LowRankFactors { a: whole(&of.a), b: whole(&of.b), r: of.a.shape().0, scaling: of.scaling }
}

/// The values of a matrix that is stored row after row.
fn whole<'a>(x: &Mat<'a>) -> &'a [f32] {
    let (rows, cols) = x.shape();
    assert_eq!(x.strides(), (cols, 1), "a matrix stored row after row");
    &x.tensor.host()[..rows * cols]
}

fn contents<'a>(inputs: AttentionInputs<'a>, distances: Distances<'a>) -> DisentangledInputs<'a> {
    DisentangledInputs {
        q: inputs.q.host(),
        k: inputs.k.host(),
        v: inputs.v.host(),
        pos_key: distances.pos_key.map(Tensor::host),
        pos_query: distances.pos_query.map(Tensor::host),
    }
}

impl Backend for Cpu {
    fn name(&self) -> &str {
        "cpu"
    }

    fn alloc(&self, rows: usize, cols: usize, lifetime: Lifetime) -> Tensor {
        if lifetime == Lifetime::Persistent {
            return Tensor::from_vec(rows, cols, vec![0.0; rows * cols]);
        }
        let block = self.arena.take(rows * cols, lifetime == Lifetime::Saved);
        Tensor::over(Buffer::Host(HostMemory::Arena(block)), rows, cols)
    }

    fn upload(&self, x: &mut Tensor, values: &[f32]) {
        x.host_mut().copy_from_slice(values);
    }

    fn download(&self, x: &Tensor) -> Vec<f32> {
        x.host().to_vec()
    }

    fn peak_bytes(&self) -> usize {
        self.arena.peak_bytes()
    }

    fn peak_page_bytes(&self) -> usize {
        self.arena.peak_page_bytes()
    }

    fn reset_peak(&self) {
        self.arena.reset_peak();
    }

    fn trim(&self) {
        self.arena.trim();
    }

    fn fill(&self, x: &mut Tensor, value: f32) {
        x.host_mut().fill(value);
    }

    fn copy(&self, y: &mut Tensor, x: &Tensor) {
        kernels::copy(y.host_mut(), x.host());
    }

    fn add(&self, y: &mut Tensor, x: &Tensor) {
        kernels::add(y.host_mut(), x.host());
    }

    fn sub(&self, y: &mut Tensor, x: &Tensor) {
        kernels::sub(y.host_mut(), x.host());
    }

    fn mul(&self, y: &mut Tensor, x: &Tensor) {
        kernels::mul(y.host_mut(), x.host());
    }

    fn div(&self, y: &mut Tensor, x: &Tensor) {
        kernels::div(y.host_mut(), x.host());
    }

    fn reciprocal(&self, y: &mut Tensor, x: &Tensor) {
        kernels::reciprocal(y.host_mut(), x.host());
    }

    fn scale(&self, x: &mut Tensor, factor: f32) {
        kernels::scale(x.host_mut(), factor);
    }

    fn add_scaled_difference(&self, y: &mut Tensor, a: &Tensor, b: &Tensor, factor: f32) {
        kernels::add_scaled_difference(y.host_mut(), a.host(), b.host(), factor);
    }

    fn sum_squares(&self, x: &Tensor) -> f64 {
        kernels::sum_squares(x.host())
    }

    fn copy_columns(&self, y: &mut Tensor, x: &Tensor, y_at: usize, x_at: usize, width: usize) {
        let n = y.rows();
        kernels::copy_columns(y.host_mut(), x.host(), n, y_at, x_at, width);
    }

    fn fill_columns(&self, y: &mut Tensor, at: usize, width: usize, value: f32) {
        let n = y.rows();
        kernels::fill_columns(y.host_mut(), n, at, width, value);
    }

    fn add_bias(&self, y: &mut Tensor, bias: &Tensor) {
        let (n, d) = (y.rows(), y.cols());
        kernels::add_bias(y.host_mut(), bias.host(), n, d);
    }

    fn bias_backward(&self, dbias: &mut Tensor, dy: &Tensor) {
        kernels::bias_backward(dbias.host_mut(), dy.host(), dy.rows(), dy.cols());
    }

    fn scale_columns(&self, y: &mut Tensor, x: &Tensor, factors: &Tensor, beta: f32) {
        let n = y.rows();
        kernels::scale_columns(y.host_mut(), x.host(), factors.host(), n, beta);
    }

    fn scale_columns_backward(&self, dfactors: &mut Tensor, dy: &Tensor, x: &Tensor) {
        kernels::scale_columns_backward(dfactors.host_mut(), dy.host(), x.host(), dy.rows());
    }

    fn scale_rows(&self, x: &mut Tensor, factors: &Tensor) {
        kernels::scale_rows_in_place(x.host_mut(), factors.host());
    }

    fn keep_columns(&self, x: &mut Tensor, kept: &[Range<usize>]) {
        kernels::keep_columns(x.host_mut(), kept);
    }

    fn swap_axes(&self, y: &mut Tensor, x: &Tensor, sizes: [usize; 3]) {
        kernels::swap_axes(y.host_mut(), x.host(), sizes);
    }

    fn gather_rows(&self, y: &mut Tensor, x: &Tensor, rows: &[u32]) {
        kernels::gather_rows(y.host_mut(), x.host(), rows, x.cols());
    }

    fn scatter_add_rows(&self, dx: &mut Tensor, dy: &Tensor, rows: &[u32]) {
        kernels::scatter_add_rows(dx.host_mut(), dy.host(), rows, dy.cols());
    }

    fn scatter_rows(&self, y: &mut Tensor, x: &Tensor, rows: &[u32]) {
        kernels::scatter_rows(y.host_mut(), x.host(), rows, x.cols());
    }

    fn move_rows(&self, x: &mut Tensor, from: Range<usize>, to: usize) {
        let d = x.cols();
        x.host_mut().copy_within(from.start * d..from.end * d, to * d);
    }

    fn gather_columns(&self, y: &mut Tensor, x: &Tensor, columns: &[u32]) {
        kernels::gather_columns(y.host_mut(), x.host(), columns, x.rows());
    }

    fn replace_columns(&self, y: &mut Tensor, x: &Tensor, bias: Option<&Tensor>, columns: &[u32]) {
        kernels::replace_columns(y.host_mut(), x.host(), bias.map(Tensor::host), columns, x.rows());
    }

    fn gather_transposed(&self, y: &mut Tensor, x: &Tensor, ids: &[u32]) {
        let r = y.cols();
        kernels::gather_transposed(y.host_mut(), x.host(), ids, r);
    }

    fn gather_transposed_backward(&self, dx: &mut Tensor, dy: &Tensor, ids: &[u32]) {
        kernels::gather_transposed_backward(dx.host_mut(), dy.host(), ids, dy.cols());
    }

    fn mean_rows(&self, y: &mut Tensor, x: &Tensor, ranges: &[Range<usize>]) {
        kernels::mean_rows(y.host_mut(), x.host(), ranges, x.cols());
    }

    fn mean_rows_backward(&self, dx: &mut Tensor, dy: &Tensor, ranges: &[Range<usize>]) {
        kernels::mean_rows_backward(dx.host_mut(), dy.host(), ranges, dy.cols());
    }

    fn normalize_rows(&self, y: &mut Tensor, norms: &mut Tensor, x: &Tensor) {
        kernels::normalize_rows(y.host_mut(), norms.host_mut(), x.host(), x.cols());
    }

    fn normalize_rows_backward(&self, dx: &mut Tensor, dy: &Tensor, y: &Tensor, norms: &Tensor) {
        kernels::normalize_rows_backward(dx.host_mut(), dy.host(), y.host(), norms.host(), dy.cols());
    }

    fn replace_rows(&self, x: &mut Tensor, table: &Tensor, columns: Range<usize>, rows: &[(usize, usize)]) {
        kernels::replace_rows(x.host_mut(), table.host(), table.cols(), columns, rows);
    }

    fn replace_rows_backward(
        &self,
        dtable: &mut Tensor,
        dx: &mut Tensor,
        columns: Range<usize>,
        rows: &[(usize, usize)],
    ) {
        let cols = dtable.cols();
        kernels::replace_rows_backward(dtable.host_mut(), dx.host_mut(), cols, columns, rows);
    }

    fn embedding(&self, y: &mut Tensor, w: &FrozenWeight, ids: &[u32]) {
        w.rows_of(ids, y.host_mut());
    }

    fn table_lookup(&self, y: &mut Tensor, table: &Tensor, rows: &[Option<u32>], scale: f32) {
        kernels::table_lookup(y.host_mut(), table.host(), rows, scale, table.cols());
    }

    fn table_lookup_backward(&self, dtable: &mut Tensor, dy: &Tensor, rows: &[Option<u32>], scale: f32) {
        kernels::table_lookup_backward(dtable.host_mut(), dy.host(), rows, scale, dy.cols());
    }

    fn table_change(&self, y: &mut Tensor, table: &Tensor, w: &FrozenWeight, rows: &[u32]) {
        kernels::table_change(y.host_mut(), table.host(), &w.view(), rows);
    }

    fn gemm(&self, alpha: f32, a: Mat<'_>, b: Mat<'_>, beta: f32, c: MatMut<'_>) {
        let ((m, k), (kb, n)) = (a.shape(), b.shape());
        assert_eq!(k, kb, "inner sizes of a product");
        assert_eq!((m, n), c.shape(), "result of a product");
        let c = kernels::MatMut { data: c.tensor.host_mut(), rs: n, cs: 1 };
        kernels::gemm(m, n, k, alpha, operand(&a), operand(&b), beta, c);
    }

    fn add_low_rank_rows(&self, y: &mut Tensor, x: &Tensor, groups: &[LowRankRows<'_>]) {
        let all: Vec<Vec<_>> =
            groups.iter().map(|group| group.factors.iter().map(factors).collect()).collect();
        let rows = groups
            .iter()
            .zip(&all)
            .map(|(group, factors)| kernels::LowRankRows { rows: &group.rows, factors });
        let groups: Vec<_> = rows.collect();
        let (k, o) = (x.cols(), y.cols());
        kernels::add_low_rank_rows(y.host_mut(), x.host(), k, o, &groups);
    }

    fn linear(&self, y: &mut Tensor, x: &Tensor, w: WeightView<'_>, beta: f32) {
        product(w.weight, w.transposed)(y.host_mut(), x.host(), &w.weight.view(), x.rows(), beta);
    }

    fn linear_add(&self, y: &mut Tensor, x: &Tensor, w: WeightView<'_>, residual: Option<&Tensor>) {
        let layer = LinearRef {
            weight: w.weight.view(),
            bias: w.bias.map(Tensor::host),
            transposed: w.transposed,
            rounded: w.weight.bf16_products(),
        };
        kernels::linear_add(y.host_mut(), x.host(), &layer, x.rows(), residual.map(Tensor::host));
    }

    fn linear_backward(&self, dx: &mut Tensor, dy: &Tensor, w: WeightView<'_>, beta: f32) {
        product(w.weight, !w.transposed)(dx.host_mut(), dy.host(), &w.weight.view(), dy.rows(), beta);
    }

    fn rms_norm(&self, y: &mut Tensor, rstd: &mut Tensor, x: &Tensor, norm: NormWeights<'_>) {
        let (d, rstd) = (norm.weight.len(), rstd.host_mut());
        let weight = norm.weight.host();
        kernels::rms_norm(y.host_mut(), rstd, x.host(), weight, norm.eps, x.len() / d, d, norm.offset);
    }

    fn rms_norm_backward(
        &self,
        dx: &mut Tensor,
        dw: Option<&mut Tensor>,
        dy: &Tensor,
        x: &Tensor,
        rstd: &Tensor,
        norm: NormWeights<'_>,
        accumulate: bool,
    ) {
        let d = norm.weight.len();
        kernels::rms_norm_backward(
            dx.host_mut(),
            dy.host(),
            x.host(),
            norm.weight.host(),
            rstd.host(),
            x.len() / d,
            d,
            norm.offset,
            accumulate,
            dw.map(Tensor::host_mut),
        );
    }

    fn layer_norm(&self, y: &mut Tensor, stats: Option<[&mut Tensor; 2]>, x: &Tensor, norm: NormWeights<'_>) {
        let [mean, rstd] = stats.map_or_else(Default::default, |stats| stats.map(Tensor::host_mut));
        let (weight, bias) = (norm.weight.host(), norm.bias.map(Tensor::host));
        kernels::layer_norm(
            y.host_mut(),
            mean,
            rstd,
            x.host(),
            weight,
            bias,
            norm.eps,
            x.rows(),
            x.cols(),
            norm.offset,
        );
    }

    fn layer_norm_backward(
        &self,
        dx: &mut Tensor,
        dweights: [Option<&mut Tensor>; 2],
        dy: Option<&Tensor>,
        x: &Tensor,
        stats: [&Tensor; 2],
        norm: NormWeights<'_>,
    ) {
        let [dweight, dbias] = dweights.map(|gradient| gradient.map(Tensor::host_mut));
        let [mean, rstd] = stats.map(Tensor::host);
        kernels::layer_norm_backward(
            dx.host_mut(),
            dy.map(Tensor::host),
            x.host(),
            norm.weight.host(),
            mean,
            rstd,
            x.rows(),
            x.cols(),
            norm.offset,
            dweight,
            dbias,
        );
    }

    fn activate(&self, y: &mut Tensor, x: &Tensor, activation: Activation) {
        kernels::activate(y.host_mut(), x.host(), activation);
    }

    fn activate_in_place(&self, x: &mut Tensor, activation: Activation) {
        kernels::activate_in_place(x.host_mut(), activation);
    }

    fn activate_backward(&self, dy: &mut Tensor, x: &Saved, activation: Activation) {
        kernels::activate_backward(dy.host_mut(), saved(x), activation);
    }

    fn gated(&self, h: &mut Tensor, gate: &Tensor, up: &Tensor, activation: Activation) {
        kernels::gated(h.host_mut(), gate.host(), up.host(), activation);
    }

    fn gated_in_place(&self, gate: &mut Tensor, up: &Tensor, activation: Activation) {
        kernels::gated_in_place(gate.host_mut(), up.host(), activation);
    }

    fn gated_backward(
        &self,
        dh: &mut Tensor,
        dup: &mut Tensor,
        gate: &Saved,
        up: &Saved,
        activation: Activation,
    ) {
        kernels::gated_backward(dh.host_mut(), dup.host_mut(), saved(gate), saved(up), activation);
    }

    fn gated_backward_in_place(
        &self,
        gate: &mut Tensor,
        up: &mut Tensor,
        dh: &Tensor,
        activation: Activation,
    ) {
        kernels::gated_backward_in_place(gate.host_mut(), up.host_mut(), dh.host(), activation);
    }

    fn dropout(&self, y: &mut Tensor, x: &Tensor, mask: Mask) {
        kernels::dropout(y.host_mut(), x.host(), mask.p, mask.seed, mask.stream);
    }

    fn dropout_backward(&self, dx: &mut Tensor, dy: &Tensor, mask: Mask, accumulate: bool) {
        kernels::dropout_backward(dx.host_mut(), dy.host(), mask.p, mask.seed, mask.stream, accumulate);
    }

    fn feature_dropout(
        &self,
        factors: &mut Tensor,
        p: f32,
        p_all: f32,
        rescale: bool,
        seed: u64,
        streams: [u64; 2],
    ) {
        kernels::feature_dropout(factors.host_mut(), p, p_all, rescale, seed, streams);
    }

    fn rope_table(
        &self,
        cos: &mut Tensor,
        sin: &mut Tensor,
        positions: &[u32],
        sets: &[u32],
        frequencies: &[f32],
        scale: f32,
    ) {
        let pairs = cos.cols();
        kernels::rope_table(cos.host_mut(), sin.host_mut(), positions, sets, frequencies, pairs, scale);
    }

    fn rope(&self, x: &mut Tensor, cos: &Tensor, sin: &Tensor, heads: usize, head_dim: usize) {
        let n = x.rows();
        kernels::rope(x.host_mut(), cos.host(), sin.host(), n, heads, head_dim, 2 * cos.cols());
    }

    fn rope_backward(&self, dx: &mut Tensor, cos: &Tensor, sin: &Tensor, heads: usize, head_dim: usize) {
        let n = dx.rows();
        kernels::rope_backward(dx.host_mut(), cos.host(), sin.host(), n, heads, head_dim, 2 * cos.cols());
    }

    fn attention(
        &self,
        o: &mut Tensor,
        lse: &mut Tensor,
        inputs: AttentionInputs<'_>,
        shape: &AttentionShape,
        segments: &[Segment],
    ) {
        let AttentionInputs { q, k, v } = inputs;
        kernels::attention(o.host_mut(), lse.host_mut(), q.host(), k.host(), v.host(), shape, segments);
    }

    fn attention_backward(
        &self,
        gradients: AttentionGradients<'_>,
        dy: &Tensor,
        inputs: AttentionInputs<'_>,
        o: &Tensor,
        lse: &Tensor,
        shape: &AttentionShape,
        segments: &[Segment],
    ) {
        kernels::attention_backward(
            gradients.dq.host_mut(),
            gradients.dk.host_mut(),
            gradients.dv.host_mut(),
            dy.host(),
            inputs.q.host(),
            inputs.k.host(),
            inputs.v.host(),
            o.host(),
            lse.host(),
            shape,
            segments,
        );
    }

    fn disentangled_attention(
        &self,
        o: &mut Tensor,
        lse: &mut Tensor,
        inputs: AttentionInputs<'_>,
        distances: Distances<'_>,
        shape: &DisentangledShape<'_>,
        segments: &[Segment],
    ) {
        let inputs = contents(inputs, distances);
        kernels::disentangled_attention(o.host_mut(), lse.host_mut(), &inputs, shape, segments);
    }

    fn disentangled_attention_backward(
        &self,
        gradients: (AttentionGradients<'_>, DistanceGradients<'_>),
        dy: &Tensor,
        inputs: AttentionInputs<'_>,
        distances: Distances<'_>,
        outputs: [&Tensor; 2],
        shape: &DisentangledShape<'_>,
        segments: &[Segment],
    ) {
        let (contents_of, distances_of) = gradients;
        let gradients = DisentangledGradients {
            dq: contents_of.dq.host_mut(),
            dk: contents_of.dk.host_mut(),
            dv: contents_of.dv.host_mut(),
            dpos_key: distances_of.dpos_key.map(Tensor::host_mut),
            dpos_query: distances_of.dpos_query.map(Tensor::host_mut),
        };
        let ([o, lse], inputs) = (outputs.map(Tensor::host), contents(inputs, distances));
        kernels::disentangled_attention_backward(gradients, dy.host(), o, lse, &inputs, shape, segments);
    }

    fn unfold(&self, y: &mut Tensor, x: &Tensor, kernel: usize, segments: &[Segment]) {
        kernels::unfold(y.host_mut(), x.host(), x.cols(), kernel, segments);
    }

    fn unfold_backward(&self, dx: &mut Tensor, dy: &Tensor, kernel: usize, segments: &[Segment]) {
        let d = dx.cols();
        kernels::unfold_backward(dx.host_mut(), dy.host(), d, kernel, segments);
    }

    fn cross_entropy(&self, logits: &mut Tensor, losses: &mut [f32], targets: Targets<'_>) {
        let vocab = logits.cols();
        let Targets { classes, weights, softcap } = targets;
        kernels::cross_entropy(logits.host_mut(), classes, vocab, weights, losses, softcap);
    }

    fn squared_error(
        &self,
        dx: &mut Tensor,
        losses: &mut [f32],
        x: &Tensor,
        targets: &[f32],
        weights: &[f32],
    ) {
        kernels::squared_error(losses, dx.host_mut(), x.host(), targets, weights);
    }

    fn binary_cross_entropy(
        &self,
        dx: &mut Tensor,
        losses: &mut [f32],
        x: &Tensor,
        targets: &[f32],
        weights: &[f32],
    ) {
        kernels::binary_cross_entropy(losses, dx.host_mut(), x.host(), targets, weights);
    }

    fn softcap(&self, x: &mut Tensor, cap: f32) {
        kernels::softcap(x.host_mut(), cap);
    }

    fn log_softmax(&self, x: &mut Tensor) {
        let vocab = x.cols();
        kernels::log_softmax(x.host_mut(), vocab);
    }

    fn argmax(&self, x: &Tensor) -> Vec<u32> {
        let mut best = vec![0; x.rows()];
        kernels::argmax(x.host(), x.cols(), &mut best);
        best
    }

    fn quantize_i16(&self, values: &mut Tensor, x: &Tensor) {
        kernels::quantize_i16(values.host_mut(), x.host());
    }

    fn dequantize_i16(&self, x: &mut Tensor, values: &Tensor) {
        kernels::dequantize_i16(x.host_mut(), values.host());
    }

    fn loha_left(&self, p: &mut Tensor, a: &Tensor, b: &Tensor) {
        kernels::loha_left(p.host_mut(), a.host(), b.host(), a.cols());
    }

    fn loha_left_backward(
        &self,
        da: Option<&mut Tensor>,
        db: Option<&mut Tensor>,
        dp: &Tensor,
        a: &Tensor,
        b: &Tensor,
    ) {
        let [da, db] = [da, db].map(|gradient| gradient.map(Tensor::host_mut));
        kernels::loha_left_backward(da, db, dp.host(), a.host(), b.host(), a.cols());
    }

    fn loha_right(&self, q: &mut Tensor, a: &Tensor, b: &Tensor) {
        kernels::loha_right(q.host_mut(), a.host(), b.host(), a.rows());
    }

    fn loha_right_backward(
        &self,
        da: Option<&mut Tensor>,
        db: Option<&mut Tensor>,
        dq: &Tensor,
        a: &Tensor,
        b: &Tensor,
    ) {
        let [da, db] = [da, db].map(|gradient| gradient.map(Tensor::host_mut));
        kernels::loha_right_backward(da, db, dq.host(), a.host(), b.host(), a.rows());
    }

    fn adalora_sensitivity(
        &self,
        mean: &mut Tensor,
        deviation: &mut Tensor,
        p: &Tensor,
        g: &Tensor,
        beta1: f32,
        beta2: f32,
    ) {
        let (mean, deviation) = (mean.host_mut(), deviation.host_mut());
        kernels::adalora_sensitivity(mean, deviation, p.host(), g.host(), beta1, beta2);
    }

    fn adalora_importance(&self, scores: &mut Tensor, a: [&Tensor; 2], b: [&Tensor; 2], e: [&Tensor; 2]) {
        let [a, b, e] = [a, b, e].map(|pair| pair.map(Tensor::host));
        kernels::adalora_importance(scores.host_mut(), a, b, e);
    }

    fn weight_squares(&self, w: WeightView<'_>) -> Vec<f64> {
        let outputs = if w.transposed { w.weight.cols() } else { w.weight.rows() };
        let mut squares = vec![0.0; outputs];
        kernels::weight_squares(&mut squares, &w.weight.view(), w.transposed);
        squares
    }

    fn dora_norms(
        &self,
        norms: &mut Tensor,
        squares: &[f64],
        b: &Tensor,
        p: &Tensor,
        aa: &Tensor,
        scaling: f32,
    ) {
        kernels::dora_norms(norms.host_mut(), squares, b.host(), p.host(), aa.host(), scaling);
    }

    fn dora_magnitude_backward(&self, dm: &mut Tensor, dy: &Tensor, z: &Tensor, norms: &Tensor) {
        kernels::dora_magnitude_backward(dm.host_mut(), dy.host(), z.host(), norms.host(), dy.rows());
    }

    fn adamw(
        &self,
        param: &mut Tensor,
        grad: &Tensor,
        m: &mut Tensor,
        v: &mut Tensor,
        settings: &kernels::AdamW,
        step: u64,
    ) {
        kernels::adamw(param.host_mut(), grad.host(), m.host_mut(), v.host_mut(), settings, step);
    }
}
