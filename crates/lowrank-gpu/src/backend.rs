//! The operations. What is rare and small is computed by the CPU's kernels between a download and an upload: `docs/devices.md`
//! lists it.

use std::ops::Range;

use lowrank_engine::kernels::{self, DisentangledShape};
use lowrank_engine::{
    Activation, AttentionGradients, AttentionInputs, AttentionShape, Backend, Buffer, Cpu, DistanceGradients,
    Distances, FrozenWeight, Lifetime, LowRankRows, Mask, Mat, MatMut, NormWeights, Saved, Segment, Targets,
    Tensor, WeightView,
};

use crate::gpu::{Gpu, bits};
use crate::memory::Slice;
use crate::ops::rows::{Rows, strided};
use crate::ops::{attention, product, rows};
use crate::runtime::params;
use crate::shaders::File;
use crate::tensor::GpuValues;

/// The number of an activation in `activation.wgsl`.
fn number(activation: Activation) -> usize {
    Activation::ALL.iter().position(|a| *a == activation).expect("every one is in the list")
}

fn range_words(ranges: &[Range<usize>]) -> Vec<u32> {
    ranges.iter().flat_map(|r| [r.start as u32, r.end as u32]).collect()
}

impl Gpu {
    /// One thread for each of `n` elements; `n` is the first parameter.
    fn elements(&self, file: File, entry: &'static str, parameters: &[u32], buffers: &[&Slice]) {
        let buffers: Vec<_> = buffers.iter().map(|slice| Some(*slice)).collect();
        self.map(file, entry, parameters, &buffers, &[]);
    }

    fn elementwise(&self, entry: &'static str, y: &mut Tensor, inputs: &[&Tensor], factor: f32) {
        let n = y.len();
        inputs.iter().for_each(|x| assert_eq!(x.len(), n, "{entry}: {} values, not {n}", x.len()));
        let inputs: Vec<Slice> = inputs.iter().map(|x| self.read(x)).collect();
        let y = self.write(y);
        let buffers: Vec<&Slice> = std::iter::once(&y).chain(&inputs).collect();
        self.elements(File::Elementwise, entry, params![n, factor], &buffers);
    }

    fn activation(
        &self,
        entry: &'static str,
        outputs: &mut [&mut Tensor],
        inputs: &[&Tensor],
        activation: Activation,
    ) {
        let n = outputs[0].len();
        let lengths = outputs.iter().map(|x| x.len()).chain(inputs.iter().map(|x| x.len()));
        lengths.for_each(|len| assert_eq!(len, n, "{entry}: {len} values, not {n}"));
        let inputs: Vec<Slice> = inputs.iter().map(|x| self.read(x)).collect();
        let outputs: Vec<Slice> = outputs.iter_mut().map(|x| self.write(x)).collect();
        let buffers: Vec<&Slice> = outputs.iter().chain(&inputs).collect();
        self.elements(File::Activation, entry, params![n, number(activation)], &buffers);
    }

    /// A saved value as f32.
    fn restored(&self, x: &Saved) -> Tensor {
        match x {
            Saved::F32(x) => x.clone(),
            Saved::I16 { values, rows, cols } => {
                let mut x = self.alloc(*rows, *cols, Lifetime::Temporary);
                self.dequantize_i16(&mut x, values);
                x
            }
        }
    }

    /// `y[j] += sum_i dy[i,j] u[i,j]`; `mode` of `column_sums.wgsl` says what `u` is.
    fn column_sums(&self, y: &mut Tensor, dy: &Tensor, mode: u32, factors: [Option<&Tensor>; 3]) {
        let n = y.len();
        let rows = dy.len() / n.max(1);
        assert_eq!(dy.len(), rows * n, "column sums of {} values in {n} columns", dy.len());
        let dy = self.read(dy);
        let factors = factors.map(|factor| factor.map_or_else(|| dy.clone(), |x| self.read(x)));
        let y = self.write(y);
        let [x, f, g] = &factors;
        self.elements(File::ColumnSums, "column_sums", params![n, rows, mode], &[&y, &dy, x, f, g]);
    }

    fn masked(&self, y: &mut Tensor, x: &Tensor, mask: Mask, accumulate: bool) {
        let len = y.len();
        assert_eq!(x.len(), len, "dropout: {} values, not {len}", x.len());
        let Mask { p, seed, stream } = mask;
        assert!((0.0..=1.0).contains(&p), "dropout: p = {p} is not in [0, 1]");
        let (drop, factor) = kernels::dropout_odds(p);
        let all = drop > u64::from(u32::MAX);
        let (x, y) = (self.read(x), self.write(y));
        let n = len.div_ceil(32) * 8;
        let words = [seed as u32, (seed >> 32) as u32, stream as u32, (stream >> 32) as u32];
        self.elements(
            File::Dropout,
            "dropout",
            params![n, len, drop as u32, all, factor, accumulate, words[0], words[1], words[2], words[3]],
            &[&y, &x],
        );
    }

    fn rotate(&self, x: &mut Tensor, cos: &Tensor, sin: &Tensor, [heads, head_dim]: [usize; 2], sign: f32) {
        let (rows, pairs) = (x.rows(), cos.cols());
        assert_eq!(x.len(), rows * heads * head_dim, "rope: {rows} rows of {heads} heads of {head_dim}");
        assert!(
            2 * pairs <= head_dim && cos.len() == rows * pairs && sin.len() == cos.len(),
            "rope: {pairs} pairs"
        );
        let (cos, sin, x) = (self.read(cos), self.read(sin), self.write(x));
        let n = rows * heads * pairs;
        self.elements(File::Rope, "rope", params![n, heads, head_dim, pairs, sign], &[&x, &cos, &sin]);
    }

    /// Losses of rows, read back.
    fn losses(
        &self,
        entry: &'static str,
        x: &Slice,
        dx: &Slice,
        count: usize,
        parameters: &[u32],
        data: &[u32],
    ) -> Vec<f32> {
        let out = self.scratch(count);
        let group = [count, 1];
        let buffers = [Some(x), Some(&out), None, Some(dx)];
        self.runtime.dispatch((File::Loss, entry), group, parameters, &buffers, data);
        self.runtime.download(&out, count)
    }

    fn host_values<'a>(
        inputs: AttentionInputs<'a>,
        distances: Distances<'a>,
    ) -> kernels::DisentangledInputs<'a> {
        kernels::DisentangledInputs {
            q: inputs.q.values(),
            k: inputs.k.values(),
            v: inputs.v.values(),
            pos_key: distances.pos_key.map(Tensor::values),
            pos_query: distances.pos_query.map(Tensor::values),
        }
    }
}

impl Backend for Gpu {
    fn name(&self) -> &str {
        &self.runtime.name
    }

    fn alloc(&self, rows: usize, cols: usize, _: Lifetime) -> Tensor {
        Tensor::over(Buffer::Device(Box::new(GpuValues::new(&self.runtime, rows * cols))), rows, cols)
    }

    fn upload(&self, x: &mut Tensor, values: &[f32]) {
        assert_eq!(x.len(), values.len(), "values of a tensor");
        let x = self.write(x);
        if !values.is_empty() {
            self.runtime.upload(&x, bytemuck::cast_slice(values));
        }
    }

    fn download(&self, x: &Tensor) -> Vec<f32> {
        x.to_vec()
    }

    fn peak_bytes(&self) -> usize {
        self.runtime.memory.peak() as usize
    }

    fn reset_peak(&self) {
        self.runtime.memory.reset_peak();
    }

    fn trim(&self) {
        self.runtime.trim();
    }

    fn fill(&self, x: &mut Tensor, value: f32) {
        self.elementwise("fill", x, &[], value);
    }

    fn copy(&self, y: &mut Tensor, x: &Tensor) {
        self.elementwise("copy", y, &[x], 0.0);
    }

    fn add(&self, y: &mut Tensor, x: &Tensor) {
        self.elementwise("add", y, &[x], 0.0);
    }

    fn sub(&self, y: &mut Tensor, x: &Tensor) {
        self.elementwise("sub", y, &[x], 0.0);
    }

    fn mul(&self, y: &mut Tensor, x: &Tensor) {
        self.elementwise("mul", y, &[x], 0.0);
    }

    fn div(&self, y: &mut Tensor, x: &Tensor) {
        self.elementwise("div", y, &[x], 0.0);
    }

    fn reciprocal(&self, y: &mut Tensor, x: &Tensor) {
        self.elementwise("reciprocal", y, &[x], 0.0);
    }

    fn scale(&self, x: &mut Tensor, factor: f32) {
        self.elementwise("scale", x, &[], factor);
    }

    fn add_scaled_difference(&self, y: &mut Tensor, a: &Tensor, b: &Tensor, factor: f32) {
        self.elementwise("add_scaled_difference", y, &[a, b], factor);
    }

    fn sum_squares(&self, x: &Tensor) -> f64 {
        const RUN_VALUES: usize = 4096;
        let (len, x) = (x.len(), self.read(x));
        let rows = len.div_ceil(RUN_VALUES);
        let out = self.scratch(rows);
        let parameters = params![rows, RUN_VALUES, 0.0f32, 0.0f32, 0u32, len];
        let buffers = [Some(&out), Some(&x), Some(&x), Some(&x)];
        self.runtime.dispatch((File::Norm, "sum_squares"), [rows, 1], parameters, &buffers, &[]);
        self.runtime.download(&out, rows).into_iter().map(f64::from).sum()
    }

    fn copy_columns(&self, y: &mut Tensor, x: &Tensor, y_at: usize, x_at: usize, width: usize) {
        let (n, d, e) = (y.rows(), y.cols(), x.len() / y.rows().max(1));
        assert!(
            x.len() == n * e && y_at + width <= d && x_at + width <= e,
            "copy_columns: {width} of {e} to {d}"
        );
        let (x, y) = (self.read(x), self.write(y));
        let parameters = params![n * width, d, e, y_at, x_at, width];
        self.elements(File::Columns, "copy_columns", parameters, &[&y, &x]);
    }

    fn fill_columns(&self, y: &mut Tensor, at: usize, width: usize, value: f32) {
        let (n, d) = (y.rows(), y.cols());
        assert!(at + width <= d, "fill_columns: {at} + {width} of {d}");
        let y = self.write(y);
        self.elements(
            File::Columns,
            "fill_columns",
            params![n * width, d, 0u32, at, 0u32, width, value],
            &[&y],
        );
    }

    fn add_bias(&self, y: &mut Tensor, bias: &Tensor) {
        let (n, d) = (y.len(), y.cols());
        assert_eq!(bias.len(), d, "add_bias: bias has {} values, not {d}", bias.len());
        let (bias, y) = (self.read(bias), self.write(y));
        self.elements(File::Columns, "add_bias", params![n, d], &[&y, &y.clone(), &bias]);
    }

    fn bias_backward(&self, dbias: &mut Tensor, dy: &Tensor) {
        self.column_sums(dbias, dy, 0, [None; 3]);
    }

    fn scale_columns(&self, y: &mut Tensor, x: &Tensor, factors: &Tensor, beta: f32) {
        let (n, d) = (y.len(), factors.len());
        assert!(x.len() == n && n.is_multiple_of(d.max(1)), "scale_columns: {} values, not {n}", x.len());
        let (x, factors, y) = (self.read(x), self.read(factors), self.write(y));
        let parameters = params![n, d, 0u32, 0u32, 0u32, 0u32, beta];
        self.elements(File::Columns, "scale_columns", parameters, &[&y, &x, &factors]);
    }

    fn scale_columns_backward(&self, dfactors: &mut Tensor, dy: &Tensor, x: &Tensor) {
        assert_eq!(dy.len(), x.len(), "scale_columns_backward");
        self.column_sums(dfactors, dy, 1, [Some(x), None, None]);
    }

    fn scale_rows(&self, x: &mut Tensor, factors: &Tensor) {
        let (n, d) = (x.len(), x.len() / factors.len().max(1));
        assert_eq!(n, d * factors.len(), "scale_rows: {n} values are not {} rows", factors.len());
        let (factors, x) = (self.read(factors), self.write(x));
        self.elements(File::Columns, "scale_rows", params![n, d], &[&x, &x.clone(), &factors]);
    }

    fn keep_columns(&self, x: &mut Tensor, kept: &[Range<usize>]) {
        let (n, d) = (x.len(), x.len() / kept.len().max(1));
        assert_eq!(n, d * kept.len(), "keep_columns: {n} values are not {} rows", kept.len());
        let x = self.write(x);
        self.map(
            File::Columns,
            "keep_columns",
            params![n, d],
            &[Some(&x), Some(&x), Some(&x), None],
            &range_words(kept),
        );
    }

    fn swap_axes(&self, y: &mut Tensor, x: &Tensor, sizes: [usize; 3]) {
        let [a, b, c] = sizes;
        assert!(
            y.len() == a * b * c && x.len() == y.len(),
            "swap_axes: {} values, not {a} x {b} x {c}",
            x.len()
        );
        let (x, y) = (self.read(x), self.write(y));
        self.elements(File::Columns, "swap_axes", params![a * b * c, a, b, 0u32, 0u32, c], &[&y, &x]);
    }

    fn gather_rows(&self, y: &mut Tensor, x: &Tensor, rows: &[u32]) {
        let d = x.cols();
        let pairs = (0..).zip(rows.iter().copied());
        rows::copy(self, Rows::of(y, d), Rows::of(x, d), pairs, d, 1.0);
    }

    fn scatter_add_rows(&self, dx: &mut Tensor, dy: &Tensor, rows: &[u32]) {
        let d = dy.cols();
        let entries = rows.iter().zip(0..).map(|(to, from)| (*to, from, 1.0));
        rows::add(self, Rows::of(dx, d), Rows::of(dy, d), entries, d);
    }

    fn scatter_rows(&self, y: &mut Tensor, x: &Tensor, rows: &[u32]) {
        let d = x.cols();
        rows::copy(self, Rows::of(y, d), Rows::of(x, d), rows.iter().copied().zip(0..), d, 1.0);
    }

    fn move_rows(&self, x: &mut Tensor, from: Range<usize>, to: usize) {
        let d = x.cols();
        // The two may overlap.
        let mut moved = self.alloc(from.len(), d, Lifetime::Temporary);
        let pairs = (0..).zip(from.start as u32..from.end as u32);
        rows::copy(self, Rows::of(&mut moved, d), Rows::of(&*x, d), pairs, d, 1.0);
        let pairs = (to as u32..).zip(0..from.len() as u32);
        rows::copy(self, Rows::of(x, d), Rows::of(&moved, d), pairs, d, 1.0);
    }

    fn gather_columns(&self, y: &mut Tensor, x: &Tensor, columns: &[u32]) {
        let (n, j, d) = (x.rows(), columns.len(), x.cols());
        assert!(y.len() == n * j && columns.iter().all(|c| (*c as usize) < d), "gather_columns: {j} of {d}");
        let (x, y) = (self.read(x), self.write(y));
        let parameters = params![n * j, d, 0u32, 0u32, 0u32, j];
        self.map(File::Columns, "gather_columns", parameters, &[Some(&y), Some(&x), Some(&x), None], columns);
    }

    fn replace_columns(&self, y: &mut Tensor, x: &Tensor, bias: Option<&Tensor>, columns: &[u32]) {
        let (n, j, d) = (x.rows(), columns.len(), y.len() / x.rows().max(1));
        assert!(x.len() == n * j && columns.iter().all(|c| (*c as usize) < d), "replace_columns: {j} of {d}");
        assert!(
            bias.is_none_or(|bias| bias.len() == d),
            "replace_columns: the bias does not have {d} values"
        );
        let (x, mode) = (self.read(x), bias.is_some());
        let bias = bias.map_or_else(|| x.clone(), |bias| self.read(bias));
        let y = self.write(y);
        let parameters = params![n * j, d, 0u32, 0u32, 0u32, j, 0.0f32, mode];
        self.map(
            File::Columns,
            "replace_columns",
            parameters,
            &[Some(&y), Some(&x), Some(&bias), None],
            columns,
        );
    }

    fn gather_transposed(&self, y: &mut Tensor, x: &Tensor, ids: &[u32]) {
        let r = y.cols();
        let v = x.len() / r.max(1);
        rows::copy(self, Rows::of(y, r), strided(x, v), (0..).zip(ids.iter().copied()), r, 1.0);
    }

    fn gather_transposed_backward(&self, dx: &mut Tensor, dy: &Tensor, ids: &[u32]) {
        let r = dy.cols();
        let v = dx.len() / r.max(1);
        let entries = ids.iter().zip(0..).map(|(to, from)| (*to, from, 1.0));
        rows::add(self, strided(dx, v), Rows::of(dy, r), entries, r);
    }

    fn mean_rows(&self, y: &mut Tensor, x: &Tensor, ranges: &[Range<usize>]) {
        let d = x.cols();
        assert_eq!(y.len(), ranges.len() * d, "mean_rows: {} ranges", ranges.len());
        ranges.iter().for_each(|r| assert!(!r.is_empty() && r.end <= x.rows(), "mean_rows: {r:?}"));
        let (x, y) = (self.read(x), self.write(y));
        let parameters = params![ranges.len() * d, d];
        self.map(File::Rows, "mean_rows", parameters, &[Some(&y), Some(&x), None], &range_words(ranges));
    }

    fn mean_rows_backward(&self, dx: &mut Tensor, dy: &Tensor, ranges: &[Range<usize>]) {
        let d = dy.cols();
        let entries = ranges.iter().zip(0..).flat_map(|(range, from)| {
            let factor = 1.0 / range.len() as f32;
            range.clone().map(move |to| (to as u32, from, factor))
        });
        rows::add(self, Rows::of(dx, d), Rows::of(dy, d), entries, d);
    }

    fn normalize_rows(&self, y: &mut Tensor, norms: &mut Tensor, x: &Tensor) {
        let (rows, d) = (norms.len(), x.cols());
        assert!(x.len() == rows * d && y.len() == x.len(), "normalize_rows: {rows} rows of {d}");
        let (x, y, norms) = (self.read(x), self.write(y), self.write(norms));
        let buffers = [&y, &x, &x, &norms].map(Some);
        self.runtime.dispatch((File::Norm, "normalize_rows"), [rows, 1], params![rows, d], &buffers, &[]);
    }

    fn normalize_rows_backward(&self, dx: &mut Tensor, dy: &Tensor, y: &Tensor, norms: &Tensor) {
        let (rows, d) = (norms.len(), dy.cols());
        assert!(
            [dx.len(), dy.len(), y.len()] == [rows * d; 3],
            "normalize_rows_backward: {rows} rows of {d}"
        );
        let (dy, y, norms, dx) = (self.read(dy), self.read(y), self.read(norms), self.write(dx));
        let buffers = [&dx, &y, &y, &norms, &dy].map(Some);
        self.runtime.dispatch(
            (File::Norm, "normalize_rows_backward"),
            [rows, 1],
            params![rows, d],
            &buffers,
            &[],
        );
    }

    fn replace_rows(&self, x: &mut Tensor, table: &Tensor, columns: Range<usize>, rows: &[(usize, usize)]) {
        let d = columns.len();
        let from = Rows::of(table, table.cols()).starting_at(columns.start);
        let pairs = rows.iter().map(|(row, token)| (*row as u32, *token as u32));
        rows::copy(self, Rows::of(x, d), from, pairs, d, 1.0);
    }

    fn replace_rows_backward(
        &self,
        dtable: &mut Tensor,
        dx: &mut Tensor,
        columns: Range<usize>,
        rows: &[(usize, usize)],
    ) {
        let (d, width) = (columns.len(), dtable.cols());
        let entries = rows.iter().map(|(row, token)| (*token as u32, *row as u32, 1.0));
        let to = Rows::of(dtable, width).starting_at(columns.start);
        rows::add(self, to, Rows::of(&*dx, d), entries, d);
        let mut zeros = self.alloc(1, d, Lifetime::Temporary);
        self.fill(&mut zeros, 0.0);
        rows::copy(
            self,
            Rows::of(dx, d),
            Rows::of(&zeros, d),
            rows.iter().map(|(row, _)| (*row as u32, 0)),
            d,
            1.0,
        );
    }

    fn embedding(&self, y: &mut Tensor, w: &FrozenWeight, ids: &[u32]) {
        // Only these rows go to the device: a table in which words are only looked up takes none of its memory.
        let mut values = vec![0.0; y.len()];
        w.rows_of(ids, &mut values);
        self.upload(y, &values);
    }

    fn table_lookup(&self, y: &mut Tensor, table: &Tensor, rows: &[Option<u32>], scale: f32) {
        let d = table.cols();
        assert_eq!(y.len(), rows.len() * d, "table_lookup: {} rows of {d}", rows.len());
        let pairs = (0..).zip(rows).filter_map(|(to, row)| Some((to, (*row)?)));
        rows::copy(self, Rows::of(y, d), Rows::of(table, d), pairs, d, scale);
    }

    fn table_lookup_backward(&self, dtable: &mut Tensor, dy: &Tensor, rows: &[Option<u32>], scale: f32) {
        let d = dy.cols();
        assert_eq!(dy.len(), rows.len() * d, "table_lookup_backward: {} rows of {d}", rows.len());
        let entries = rows.iter().zip(0..).filter_map(|(row, from)| Some(((*row)?, from, scale)));
        rows::add(self, Rows::of(dtable, d), Rows::of(dy, d), entries, d);
    }

    fn table_change(&self, y: &mut Tensor, table: &Tensor, w: &FrozenWeight, rows: &[u32]) {
        let mut base = self.alloc(rows.len(), w.cols(), Lifetime::Temporary);
        self.embedding(&mut base, w, rows);
        self.copy(y, table);
        self.sub(y, &base);
    }

    fn add_low_rank_rows(&self, y: &mut Tensor, x: &Tensor, groups: &[LowRankRows<'_>]) {
        for group in groups {
            let count = group.rows.len();
            let mut own = self.alloc(count, x.cols(), Lifetime::Temporary);
            self.gather_rows(&mut own, x, &group.rows);
            for factors in &group.factors {
                let r = factors.a.shape().0;
                let mut inner = self.alloc(count, r, Lifetime::Temporary);
                let mut change = self.alloc(count, y.cols(), Lifetime::Temporary);
                self.gemm(1.0, own.mat(), factors.a.t(), 0.0, inner.mat_mut());
                self.gemm(factors.scaling, inner.mat(), factors.b.t(), 0.0, change.mat_mut());
                self.scatter_add_rows(y, &change, &group.rows);
            }
        }
    }

    fn gemm(&self, alpha: f32, a: Mat<'_>, b: Mat<'_>, beta: f32, c: MatMut<'_>) {
        product::gemm(self, alpha, a, b, beta, c);
    }

    fn linear(&self, y: &mut Tensor, x: &Tensor, w: WeightView<'_>, beta: f32) {
        product::frozen(self, y, x, w.weight, !w.transposed, beta);
    }

    fn linear_add(&self, y: &mut Tensor, x: &Tensor, w: WeightView<'_>, residual: Option<&Tensor>) {
        if let Some(residual) = residual {
            self.copy(y, residual);
        }
        match (w.bias, residual) {
            (Some(bias), Some(_)) => self.add_bias(y, bias),
            (Some(bias), None) => {
                let (n, d) = (y.len(), y.cols());
                assert_eq!(bias.len(), d, "linear_add: bias has {} values, not {d}", bias.len());
                let (bias, y) = (self.read(bias), self.write(y));
                self.elements(File::Columns, "set_bias", params![n, d], &[&y, &y.clone(), &bias]);
            }
            (None, _) => {}
        }
        let beta = if w.bias.is_some() || residual.is_some() { 1.0 } else { 0.0 };
        self.linear(y, x, w, beta);
    }

    fn linear_backward(&self, dx: &mut Tensor, dy: &Tensor, w: WeightView<'_>, beta: f32) {
        product::frozen(self, dx, dy, w.weight, w.transposed, beta);
    }

    fn rms_norm(&self, y: &mut Tensor, rstd: &mut Tensor, x: &Tensor, norm: NormWeights<'_>) {
        let (d, keep) = (norm.weight.len(), !rstd.is_empty());
        let rows = x.len() / d;
        assert!(x.len() == rows * d && y.len() == x.len(), "rms_norm: {} values in runs of {d}", x.len());
        assert!(!keep || rstd.len() == rows, "rms_norm: {} factors of {rows} runs", rstd.len());
        let (x, w, y) = (self.read(x), self.read(norm.weight), self.write(y));
        let rstd = if keep { self.write(rstd) } else { y.clone() };
        let parameters = params![rows, d, norm.eps, norm.offset, 0u32, keep];
        self.runtime.dispatch(
            (File::Norm, "rms_norm"),
            [rows, 1],
            parameters,
            &[&y, &x, &w, &rstd].map(Some),
            &[],
        );
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
        let rows = x.len() / d;
        assert!(
            [dx.len(), dy.len(), x.len()] == [rows * d; 3] && rstd.len() == rows,
            "rms_norm_backward: {rows} x {d}"
        );
        if let Some(dw) = dw {
            self.column_sums(dw, dy, 2, [Some(x), Some(rstd), None]);
        }
        let (x, dy, rstd, w) = (self.read(x), self.read(dy), self.read(rstd), self.read(norm.weight));
        let dx = self.write(dx);
        let parameters = params![rows, d, norm.eps, norm.offset, accumulate];
        let buffers = [&dx, &x, &w, &rstd, &dy].map(Some);
        self.runtime.dispatch((File::Norm, "rms_norm_backward"), [rows, 1], parameters, &buffers, &[]);
    }

    fn layer_norm(&self, y: &mut Tensor, stats: Option<[&mut Tensor; 2]>, x: &Tensor, norm: NormWeights<'_>) {
        let (rows, d, keep) = (x.rows(), x.cols(), stats.is_some());
        assert!(y.len() == rows * d && norm.weight.len() == d, "layer_norm: {rows} x {d}");
        let (x, w) = (self.read(x), self.read(norm.weight));
        let (bias, mode) = (norm.bias.map_or_else(|| w.clone(), |bias| self.read(bias)), norm.bias.is_some());
        let y = self.write(y);
        let [mean, rstd] =
            stats.map_or_else(|| [y.clone(), y.clone()], |stats| stats.map(|stat| self.write(stat)));
        let parameters = params![rows, d, norm.eps, norm.offset, mode, keep];
        let buffers = [&y, &x, &w, &rstd, &x, &mean, &bias].map(Some);
        self.runtime.dispatch((File::Norm, "layer_norm"), [rows, 1], parameters, &buffers, &[]);
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
        let (rows, d) = (x.rows(), x.cols());
        assert!(
            dx.len() == rows * d && dy.is_none_or(|dy| dy.len() == rows * d),
            "layer_norm_backward: {rows} x {d}"
        );
        let [dweight, dbias] = dweights;
        if let Some(dweight) = dweight {
            self.column_sums(dweight, dy.unwrap_or(dx), 3, [Some(x), Some(stats[1]), Some(stats[0])]);
        }
        if let Some(dbias) = dbias {
            self.column_sums(dbias, dy.unwrap_or(dx), 0, [None; 3]);
        }
        let (x, w, [mean, rstd]) = (self.read(x), self.read(norm.weight), stats.map(|stat| self.read(stat)));
        let (own, mode) = (dy.map(|dy| self.read(dy)), dy.is_some());
        let dx = self.write(dx);
        let dy = own.unwrap_or_else(|| dx.clone());
        let parameters = params![rows, d, norm.eps, norm.offset, mode];
        let buffers = [&dx, &x, &w, &rstd, &dy, &mean].map(Some);
        self.runtime.dispatch((File::Norm, "layer_norm_backward"), [rows, 1], parameters, &buffers, &[]);
    }

    fn activate(&self, y: &mut Tensor, x: &Tensor, activation: Activation) {
        self.activation("activate", &mut [y], &[x], activation);
    }

    fn activate_in_place(&self, x: &mut Tensor, activation: Activation) {
        self.activation("activate_in_place", &mut [x], &[], activation);
    }

    fn activate_backward(&self, dy: &mut Tensor, x: &Saved, activation: Activation) {
        self.activation("activate_backward", &mut [dy], &[&self.restored(x)], activation);
    }

    fn gated(&self, h: &mut Tensor, gate: &Tensor, up: &Tensor, activation: Activation) {
        self.activation("gated", &mut [h], &[gate, up], activation);
    }

    fn gated_in_place(&self, gate: &mut Tensor, up: &Tensor, activation: Activation) {
        self.activation("gated_in_place", &mut [gate], &[up], activation);
    }

    fn gated_backward(
        &self,
        dh: &mut Tensor,
        dup: &mut Tensor,
        gate: &Saved,
        up: &Saved,
        activation: Activation,
    ) {
        let (gate, up) = (self.restored(gate), self.restored(up));
        self.activation("gated_backward", &mut [dh, dup], &[&gate, &up], activation);
    }

    fn gated_backward_in_place(
        &self,
        gate: &mut Tensor,
        up: &mut Tensor,
        dh: &Tensor,
        activation: Activation,
    ) {
        self.activation("gated_backward_in_place", &mut [gate, up], &[dh], activation);
    }

    fn dropout(&self, y: &mut Tensor, x: &Tensor, mask: Mask) {
        self.masked(y, x, mask, false);
    }

    fn dropout_backward(&self, dx: &mut Tensor, dy: &Tensor, mask: Mask, accumulate: bool) {
        self.masked(dx, dy, mask, accumulate);
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
        let mut values = vec![0.0; factors.len()];
        kernels::feature_dropout(&mut values, p, p_all, rescale, seed, streams);
        self.upload(factors, &values);
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
        // Sines of large angles are not exact on every device.
        let (mut cosines, mut sines) = (vec![0.0; cos.len()], vec![0.0; sin.len()]);
        kernels::rope_table(&mut cosines, &mut sines, positions, sets, frequencies, cos.cols(), scale);
        self.upload(cos, &cosines);
        self.upload(sin, &sines);
    }

    fn rope(&self, x: &mut Tensor, cos: &Tensor, sin: &Tensor, heads: usize, head_dim: usize) {
        self.rotate(x, cos, sin, [heads, head_dim], 1.0);
    }

    fn rope_backward(&self, dx: &mut Tensor, cos: &Tensor, sin: &Tensor, heads: usize, head_dim: usize) {
        self.rotate(dx, cos, sin, [heads, head_dim], -1.0);
    }

    fn attention(
        &self,
        o: &mut Tensor,
        lse: &mut Tensor,
        inputs: AttentionInputs<'_>,
        shape: &AttentionShape,
        segments: &[Segment],
    ) {
        attention::forward(self, [o, lse], inputs, shape, segments);
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
        attention::backward(self, gradients, dy, inputs, [o, lse], shape, segments);
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
        let (mut out, mut sums) = (o.to_vec(), lse.to_vec());
        let inputs = Self::host_values(inputs, distances);
        kernels::disentangled_attention(&mut out, &mut sums, &inputs, shape, segments);
        self.upload(o, &out);
        self.upload(lse, &sums);
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
        let (AttentionGradients { dq, dk, dv }, DistanceGradients { dpos_key, dpos_query }) = gradients;
        let host = |x: &Tensor| Tensor::from_vec(x.rows(), x.cols(), x.to_vec());
        let own = |x: &Tensor| x.clone();
        let inputs = AttentionInputs { q: &own(inputs.q), k: &own(inputs.k), v: &own(inputs.v) };
        let mut all = [host(dq), host(dk), host(dv)];
        let mut positions = [&dpos_key, &dpos_query].map(|x| x.as_deref().map(host));
        let [hq, hk, hv] = &mut all;
        let [hpk, hpq] = &mut positions;
        let gradients = (
            AttentionGradients { dq: hq, dk: hk, dv: hv },
            DistanceGradients { dpos_key: hpk.as_mut(), dpos_query: hpq.as_mut() },
        );
        Cpu::new()
            .disentangled_attention_backward(gradients, dy, inputs, distances, outputs, shape, segments);
        for (to, from) in [dq, dk, dv].into_iter().zip(&all) {
            self.upload(to, from.values());
        }
        for (to, from) in [dpos_key, dpos_query].into_iter().zip(&positions) {
            if let (Some(to), Some(from)) = (to, from) {
                self.upload(to, from.values());
            }
        }
    }

    fn unfold(&self, y: &mut Tensor, x: &Tensor, kernel: usize, segments: &[Segment]) {
        let (rows, d) = (x.rows(), x.cols());
        assert!(
            kernel % 2 == 1 && y.len() == x.len() * kernel,
            "unfold: a kernel of {kernel}; it must be odd"
        );
        let (x, y) = (self.read(x), self.write(y));
        let parameters = params![rows * d * kernel, d, 0u32, 0u32, 0u32, kernel];
        let bounds = row_bounds(rows, segments);
        self.map(File::Columns, "unfold", parameters, &[Some(&y), Some(&x), Some(&x), None], &bounds);
    }

    fn unfold_backward(&self, dx: &mut Tensor, dy: &Tensor, kernel: usize, segments: &[Segment]) {
        let (rows, d) = (dx.rows(), dx.cols());
        assert!(
            kernel % 2 == 1 && dy.len() == dx.len() * kernel,
            "unfold: a kernel of {kernel}; it must be odd"
        );
        let (dy, dx) = (self.read(dy), self.write(dx));
        let parameters = params![rows * d, d, 0u32, 0u32, 0u32, kernel];
        let bounds = row_bounds(rows, segments);
        self.map(
            File::Columns,
            "unfold_backward",
            parameters,
            &[Some(&dx), Some(&dy), Some(&dy), None],
            &bounds,
        );
    }

    fn cross_entropy(&self, logits: &mut Tensor, losses: &mut [f32], targets: Targets<'_>) {
        let (rows, d) = (targets.classes.len(), logits.cols());
        assert!(logits.len() == rows * d && losses.len() == rows, "cross_entropy: {rows} rows of {d}");
        let ok = targets.classes.iter().all(|class| (*class as usize) < d);
        assert!(ok, "cross_entropy: a target is not below the vocabulary, {d}");
        assert!(
            targets.weights.is_none_or(|weights| weights.len() == rows),
            "cross_entropy: there are not {rows} weights"
        );
        let mut data = targets.classes.to_vec();
        data.extend(targets.weights.unwrap_or_default().iter().map(|w| w.to_bits()));
        let x = self.write(logits);
        let gradient = targets.weights.is_some();
        let parameters = params![rows, d, targets.softcap.unwrap_or(0.0), gradient, rows];
        losses.copy_from_slice(&self.losses("cross_entropy", &x, &x, rows, parameters, &data));
    }

    fn squared_error(
        &self,
        dx: &mut Tensor,
        losses: &mut [f32],
        x: &Tensor,
        targets: &[f32],
        weights: &[f32],
    ) {
        self.errors("squared_error", dx, losses, x, targets, weights);
    }

    fn binary_cross_entropy(
        &self,
        dx: &mut Tensor,
        losses: &mut [f32],
        x: &Tensor,
        targets: &[f32],
        weights: &[f32],
    ) {
        self.errors("binary_cross_entropy", dx, losses, x, targets, weights);
    }

    fn softcap(&self, x: &mut Tensor, cap: f32) {
        assert!(cap > 0.0, "softcap: {cap} is not positive");
        self.elementwise("softcap", x, &[], cap);
    }

    fn log_softmax(&self, x: &mut Tensor) {
        let (rows, d) = (x.rows(), x.cols());
        let x = self.write(x);
        self.runtime.dispatch(
            (File::Loss, "log_softmax"),
            [rows, 1],
            params![rows, d, 0.0f32],
            &[Some(&x)],
            &[],
        );
    }

    fn argmax(&self, x: &Tensor) -> Vec<u32> {
        let (rows, d) = (x.rows(), x.cols());
        assert!(d <= 1 << 24, "argmax: {d} columns");
        let x = self.read(x);
        let found = self.losses("argmax", &x, &x, rows, params![rows, d], &[0]);
        found.into_iter().map(f32::to_bits).collect()
    }

    fn quantize_i16(&self, values: &mut Tensor, x: &Tensor) {
        self.int16("quantize_i16", values.len(), x.len(), || (self.write(values), self.read(x)));
    }

    fn dequantize_i16(&self, x: &mut Tensor, values: &Tensor) {
        self.int16("dequantize_i16", values.len(), x.len(), || (self.read(values), self.write(x)));
    }

    fn loha_left(&self, p: &mut Tensor, a: &Tensor, b: &Tensor) {
        let r = a.cols();
        assert!(a.len() == b.len() && p.len() == a.len() * r, "loha_left: rank {r}");
        let (n, a, b, p) = (p.len(), self.read(a), self.read(b), self.write(p));
        self.elements(File::Loha, "loha_left", params![n, r], &[&p, &a, &b]);
    }

    fn loha_left_backward(
        &self,
        da: Option<&mut Tensor>,
        db: Option<&mut Tensor>,
        dp: &Tensor,
        a: &Tensor,
        b: &Tensor,
    ) {
        self.loha_backward("loha_left_backward", [da, db], dp, [b, a], [a.cols(), 0]);
    }

    fn loha_right(&self, q: &mut Tensor, a: &Tensor, b: &Tensor) {
        let (r, d) = (a.rows(), a.cols());
        assert!(a.len() == b.len() && q.len() == a.len() * r, "loha_right: rank {r}");
        let (n, a, b, q) = (q.len(), self.read(a), self.read(b), self.write(q));
        self.elements(File::Loha, "loha_right", params![n, r, d], &[&q, &a, &b]);
    }

    fn loha_right_backward(
        &self,
        da: Option<&mut Tensor>,
        db: Option<&mut Tensor>,
        dq: &Tensor,
        a: &Tensor,
        b: &Tensor,
    ) {
        self.loha_backward("loha_right_backward", [da, db], dq, [b, a], [a.rows(), a.cols()]);
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
        let mut values = vec![0.0; norms.len()];
        kernels::dora_norms(&mut values, squares, b.values(), p.values(), aa.values(), scaling);
        self.upload(norms, &values);
    }

    fn dora_magnitude_backward(&self, dm: &mut Tensor, dy: &Tensor, z: &Tensor, norms: &Tensor) {
        assert!(
            dy.len() == z.len() && dm.len() == norms.len(),
            "dora_magnitude_backward: {} values",
            dy.len()
        );
        self.column_sums(dm, dy, 4, [Some(z), Some(norms), None]);
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
        let n = p.len();
        assert_eq!([mean.len(), deviation.len(), g.len()], [n; 3], "adalora_sensitivity: {n} values");
        let (p, g, mean, deviation) = (self.read(p), self.read(g), self.write(mean), self.write(deviation));
        let parameters = params![n, 0.0f32, beta1, beta2];
        self.elements(File::Elementwise, "adalora_sensitivity", parameters, &[&mean, &deviation, &p, &g]);
    }

    fn adalora_importance(&self, scores: &mut Tensor, a: [&Tensor; 2], b: [&Tensor; 2], e: [&Tensor; 2]) {
        let mut values = vec![0.0; scores.len()];
        let [a, b, e] = [a, b, e].map(|pair| pair.map(Tensor::values));
        kernels::adalora_importance(&mut values, a, b, e);
        self.upload(scores, &values);
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
        let n = param.len();
        assert_eq!([grad.len(), m.len(), v.len()], [n; 3], "adamw: {n} values");
        assert!(step > 0, "adamw: the first step is number 1");
        let kernels::AdamW { lr, beta1, beta2, eps, weight_decay } = *settings;
        let correction1 = 1.0 - beta1.powf(step as f64);
        let root2 = (1.0 - beta2.powf(step as f64)).sqrt();
        let factors =
            [1.0 - lr * weight_decay, 1.0 - beta1, beta2, 1.0 - beta2, -lr / correction1, root2, eps]
                .map(|x| x as f32);
        let (grad, param, m, v) = (self.read(grad), self.write(param), self.write(m), self.write(v));
        let mut parameters = vec![n as u32];
        parameters.extend(bits(&factors));
        self.elements(File::AdamW, "adamw", &parameters, &[&param, &grad, &m, &v]);
    }
}

/// The segment of each row, as its first row and one past the last; empty for rows of none.
fn row_bounds(rows: usize, segments: &[Segment]) -> Vec<u32> {
    let mut bounds = vec![0; 2 * rows];
    for q in segments.iter().map(|segment| &segment.q) {
        for row in q.clone() {
            bounds[2 * row] = q.start as u32;
            bounds[2 * row + 1] = q.end as u32;
        }
    }
    bounds
}

impl Gpu {
    fn errors(
        &self,
        entry: &'static str,
        dx: &mut Tensor,
        losses: &mut [f32],
        x: &Tensor,
        targets: &[f32],
        weights: &[f32],
    ) {
        let (rows, d) = (losses.len(), x.len() / losses.len().max(1));
        assert_eq!([x.len(), dx.len(), targets.len()], [rows * d; 3], "{entry}: {rows} rows of {d}");
        assert_eq!(weights.len(), rows, "{entry}: {} weights of {rows} rows", weights.len());
        let data: Vec<u32> = bits(targets).chain(bits(weights)).collect();
        let (x, dx) = (self.read(x), self.write(dx));
        let parameters = params![rows, d, 0.0f32, 0u32, rows * d];
        losses.copy_from_slice(&self.losses(entry, &x, &dx, rows, parameters, &data));
    }

    fn int16(&self, entry: &'static str, words: usize, len: usize, buffers: impl FnOnce() -> (Slice, Slice)) {
        assert_eq!(words, kernels::i16_len(len), "{entry}: {words} words of {len} values");
        let rows = len.div_ceil(128);
        let (values, x) = buffers();
        let buffers = [Some(&values), Some(&x)];
        self.runtime.dispatch((File::Int16, entry), [rows, 1], params![rows, len, rows * 64], &buffers, &[]);
    }

    /// `others`: what the gradients of the first and of the second factor are sums over; `sizes`: rank and columns.
    fn loha_backward(
        &self,
        entry: &'static str,
        gradients: [Option<&mut Tensor>; 2],
        product: &Tensor,
        others: [&Tensor; 2],
        [r, d]: [usize; 2],
    ) {
        for (own, (gradient, other)) in gradients.into_iter().zip(others).enumerate() {
            let Some(gradient) = gradient else { continue };
            let n = gradient.len();
            assert!(other.len() == n && product.len() == n * r, "{entry}: rank {r}, {n} values");
            let (product, other, gradient) = (self.read(product), self.read(other), self.write(gradient));
            self.elements(File::Loha, entry, params![n, r, d, own], &[&gradient, &product, &other]);
        }
    }
}
