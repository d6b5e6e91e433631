//! DeBERTa's attention (He et al. 2021): a score is the sum of how the contents match, how the query's content
//! matches the distance, and how the key's content matches it.
//!
//! Texts are short here and the distances make every score depend on three products, so that the scores of one head
//! and one text exist whole, in scratch; they are never stored for the backward pass, which computes them again.

use std::ops::Range;

use rayon::prelude::*;

use super::dropout::{AttentionDropout, weigh};
use super::scratch::{SCRATCH_PADDING, carve, with_scratch};
use super::shape::Segment;
use crate::math::exp;
use crate::parallel::SharedMut;
use crate::simd::{dispatch, for_lanes};
use crate::{MatMut, MatRef, gemm_serial};

/// The shape of a disentangled attention.
#[derive(Clone, Copy, Debug)]
pub struct DisentangledShape<'a> {
    /// Heads `H`.
    pub heads: usize,
    /// Values in a head, `d`.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / sqrt(3 d)` with both tables.
    pub scale: f32,
    /// Rows of the tables by distance: for texts of up to `L` rows, entry `L - 1 + i - j` is that of query `i` and key
    /// `j` (`2 L - 1` entries in all, which never fall).
    pub buckets: &'a [u32],
    /// Dropout of the probabilities, as in the other attention.
    pub dropout: Option<AttentionDropout>,
}

/// What the attention reads. `q`, `k`, `v`: `[N, H d]`; the tables of distances `[P, H d]`, where the model has them.
#[derive(Clone, Copy, Debug)]
pub struct DisentangledInputs<'a> {
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// Keys of distances, matched with queries (`c2p`).
    pub pos_key: Option<&'a [f32]>,
    /// Queries of distances, matched with keys (`p2c`).
    pub pos_query: Option<&'a [f32]>,
}

/// The gradients, each shaped as its input.
#[derive(Debug)]
pub struct DisentangledGradients<'a> {
    /// Of the queries.
    pub dq: &'a mut [f32],
    /// Of the keys.
    pub dk: &'a mut [f32],
    /// Of the values.
    pub dv: &'a mut [f32],
    /// Of the keys of distances.
    pub dpos_key: Option<&'a mut [f32]>,
    /// Of the queries of distances.
    pub dpos_query: Option<&'a mut [f32]>,
}

/// `out_i = sum_j softmax_j(scale (q_i k_j + q_i pk_b + k_j pq_b)) v_j` per head, over all rows `j` of the query's
/// segment, where `b` is the bucket of `i - j`, `pk` the rows of `pos_key` and `pq` those of `pos_query`.
///
/// `out`: `[N, H d]`; `lse`: `[N, H]`, the logarithm of the sum of exponentials, for the backward. Rows outside every
/// segment are left alone.
///
/// # Panics
/// If a length does not fit the shapes, a segment has a prefix or other keys than its queries, is longer than `L`, or
/// shares rows with another.
pub fn disentangled_attention(
    out: &mut [f32],
    lse: &mut [f32],
    inputs: &DisentangledInputs<'_>,
    shape: &DisentangledShape<'_>,
    segments: &[Segment],
) {
    let n = inputs.check("disentangled_attention", shape, segments);
    let DisentangledShape { heads, head_dim: d, .. } = *shape;
    assert_eq!(out.len(), n * heads * d, "disentangled_attention: out has {} values", out.len());
    assert_eq!(lse.len(), n * heads, "disentangled_attention: lse has {} values", lse.len());
    let (out, lse) = (SharedMut::new(out), SharedMut::new(lse));
    let texts = segments.iter().filter(|s| !s.q.is_empty());
    let tasks: Vec<(usize, Range<usize>)> =
        texts.flat_map(|s| (0..heads).map(|h| (h, s.q.clone()))).collect();
    tasks.par_iter().for_each(|(h, rows)| {
        let t = rows.len();
        let span = shape.span(t);
        with_scratch(|scratch| {
            let [q, k, v, table, scores, by_distance, result, total, factors] = carve(
                &mut scratch.floats,
                [t * d, t * d, t * d, span.len() * d, t * t, t * span.len(), t * d, t, shape.factors(t)],
            );
            shape.take(v, inputs.v, rows, *h);
            inputs.scores(shape, rows, *h, &span, q, k, table, scores, by_distance);
            softmax(scores, total, t);
            shape.drop_out(scores, factors, rows, *h);
            gemm_serial(t, d, t, 1.0, mat(scores, t), mat(v, d), 0.0, MatMut::row_major(result, d));
            for (i, row) in rows.clone().enumerate() {
                let (at, to) = (row * heads + h, (row * heads + h) * d);
                // SAFETY: no two tasks share a row and a head.
                let (out, lse) = unsafe { (out.part(to..to + d), lse.part(at..at + 1)) };
                out.copy_from_slice(&result[i * d..(i + 1) * d]);
                lse[0] = total[i];
            }
        });
    });
}

/// Backward of [`disentangled_attention`]: all gradients are overwritten, from `dout` and what the forward gave. Rows
/// outside every segment get zeros.
///
/// # Panics
/// As [`disentangled_attention`], and where a table has a gradient and is none, or the other way round.
pub fn disentangled_attention_backward(
    gradients: DisentangledGradients<'_>,
    dout: &[f32],
    out: &[f32],
    lse: &[f32],
    inputs: &DisentangledInputs<'_>,
    shape: &DisentangledShape<'_>,
    segments: &[Segment],
) {
    let kernel = "disentangled_attention_backward";
    let n = inputs.check(kernel, shape, segments);
    let DisentangledShape { heads, head_dim: d, .. } = *shape;
    let DisentangledGradients { dq, dk, dv, dpos_key, dpos_query } = gradients;
    for (name, len) in
        [("dq", dq.len()), ("dk", dk.len()), ("dv", dv.len()), ("out", out.len()), ("dout", dout.len())]
    {
        assert_eq!(len, n * heads * d, "{kernel}: {name} has {len} values");
    }
    assert_eq!(lse.len(), n * heads, "{kernel}: lse has {} values", lse.len());
    for (have, want) in [(&dpos_key, inputs.pos_key), (&dpos_query, inputs.pos_query)] {
        assert_eq!(
            have.as_ref().map(|g| g.len()),
            want.map(<[f32]>::len),
            "{kernel}: gradients of the tables"
        );
    }
    for gradient in [&mut *dq, &mut *dk, &mut *dv] {
        gradient.fill(0.0);
    }
    let (dq, dk, dv) = (SharedMut::new(dq), SharedMut::new(dk), SharedMut::new(dv));
    let (dpos_key, dpos_query) = (dpos_key.map(SharedMut::new), dpos_query.map(SharedMut::new));
    // All texts add to the tables' gradients: within a head they come one after the other.
    (0..heads).into_par_iter().for_each(|h| {
        let mut tables =
            [inputs.pos_key, inputs.pos_query].map(|t| vec![0.0; t.map_or(0, |t| t.len() / heads)]);
        for segment in segments.iter().filter(|s| !s.q.is_empty()) {
            with_scratch(|scratch| {
                let one = One { inputs, shape, rows: segment.q.clone(), head: h };
                one.backward(&mut scratch.floats, [&dq, &dk, &dv], dout, out, lse, &mut tables);
            });
        }
        for (to, from) in [&dpos_key, &dpos_query].into_iter().zip(&tables) {
            let Some(to) = to else { continue };
            for (row, from) in from.chunks_exact(d).enumerate() {
                let at = (row * heads + h) * d;
                // SAFETY: heads have different columns.
                unsafe { to.part(at..at + d) }.copy_from_slice(from);
            }
        }
    });
}

/// Bytes of working memory that [`disentangled_attention`] and its backward take on `threads` threads, at most: one head of
/// the longest text, and one head's gradients of `tables` tables of `rows` rows.
pub fn disentangled_scratch_bytes(
    shape: &DisentangledShape<'_>,
    segments: &[Segment],
    tables: usize,
    rows: usize,
    threads: usize,
) -> usize {
    let d = shape.head_dim;
    let of = |t: usize| {
        let wide = shape.span(t).len();
        8 * t * d + wide * d + 2 * t * t + t * wide + 2 * t + shape.factors(t) + SCRATCH_PADDING
    };
    let longest = segments.iter().map(|s| s.q.len()).max().filter(|t| *t > 0);
    threads.min(shape.heads * segments.len()) * size_of::<f32>() * (longest.map_or(0, of) + tables * rows * d)
}

/// One head of one text.
struct One<'a> {
    inputs: &'a DisentangledInputs<'a>,
    shape: &'a DisentangledShape<'a>,
    rows: Range<usize>,
    head: usize,
}

impl One<'_> {
    /// With `p` the probabilities, `m` the factors of their dropout and `g = dout`: `dv = (p m)^T g`, `ds = scale p (m g v^T - g out)`,
    /// `dq = ds k`, `dk = ds^T q`; by distance `c_ib = sum of ds_ij with bucket b`: `dq += c pk`, `dpk += c^T q`, and likewise for
    /// keys.
    fn backward(
        &self,
        memory: &mut Vec<f32>,
        outputs: [&SharedMut<'_>; 3],
        dout: &[f32],
        out: &[f32],
        lse: &[f32],
        tables: &mut [Vec<f32>; 2],
    ) {
        let Self { inputs, shape, rows, head: h } = self;
        let (t, d, span) = (rows.len(), shape.head_dim, self.shape.span(self.rows.len()));
        let (wide, n) = (span.len(), t * d);
        let [q, k, v, g, o, table, p, ds, by_distance, dq, dk, dv, mean, total, factors] =
            carve(memory, [n, n, n, n, n, wide * d, t * t, t * t, t * wide, n, n, n, t, t, shape.factors(t)]);
        inputs.scores(shape, rows, *h, &span, q, k, table, p, by_distance);
        for (to, from) in [(&mut *v, inputs.v), (&mut *g, dout), (&mut *o, out)] {
            shape.take(to, from, rows, *h);
        }
        for (i, row) in rows.clone().enumerate() {
            total[i] = lse[row * shape.heads + h];
            mean[i] = dot(&g[i * d..(i + 1) * d], &o[i * d..(i + 1) * d]);
        }
        gemm_serial(t, t, d, 1.0, mat(g, d), mat(v, d).t(), 0.0, MatMut::row_major(ds, t));
        shape.drop_out(ds, factors, rows, *h);
        score_gradients(p, ds, total, mean, t, shape.scale);
        if shape.dropout.is_some() {
            weigh(p, factors, t, t, t);
        }
        gemm_serial(t, d, t, 1.0, mat(p, t).t(), mat(g, d), 0.0, MatMut::row_major(dv, d));
        gemm_serial(t, d, t, 1.0, mat(ds, t), mat(k, d), 0.0, MatMut::row_major(dq, d));
        gemm_serial(t, d, t, 1.0, mat(ds, t).t(), mat(q, d), 0.0, MatMut::row_major(dk, d));
        let parts = [(inputs.pos_key, &*q, &mut *dq), (inputs.pos_query, &*k, &mut *dk)];
        for (which, (pos, content, gradient)) in parts.into_iter().enumerate() {
            let Some(pos) = pos else { continue };
            shape.take(table, pos, &span, *h);
            by_distance.fill(0.0);
            for (i, scores) in ds.chunks_exact(t).enumerate() {
                for (j, (s, bucket)) in scores.iter().zip(shape.row(i, t)).enumerate() {
                    let at = if which == 0 { i } else { j };
                    by_distance[at * wide + bucket - span.start] += s;
                }
            }
            let c = mat(by_distance, wide);
            gemm_serial(t, d, wide, 1.0, c, mat(table, d), 1.0, MatMut::row_major(gradient, d));
            let sum = &mut tables[which][span.start * d..span.end * d];
            gemm_serial(wide, d, t, 1.0, c.t(), mat(content, d), 1.0, MatMut::row_major(sum, d));
        }
        for (to, from) in outputs.into_iter().zip([dq, dk, dv]) {
            for (i, row) in rows.clone().enumerate() {
                let at = (row * shape.heads + h) * d;
                // SAFETY: heads have different columns, and segments different rows.
                unsafe { to.part(at..at + d) }.copy_from_slice(&from[i * d..(i + 1) * d]);
            }
        }
    }
}

impl DisentangledInputs<'_> {
    /// Fills `q` and `k` of a head and its `scores: [T,T]`.
    #[allow(clippy::too_many_arguments)]
    fn scores(
        &self,
        shape: &DisentangledShape<'_>,
        rows: &Range<usize>,
        head: usize,
        span: &Range<usize>,
        q: &mut [f32],
        k: &mut [f32],
        table: &mut [f32],
        scores: &mut [f32],
        by_distance: &mut [f32],
    ) {
        let (t, d, wide) = (rows.len(), shape.head_dim, span.len());
        shape.take(q, self.q, rows, head);
        shape.take(k, self.k, rows, head);
        gemm_serial(t, t, d, shape.scale, mat(q, d), mat(k, d).t(), 0.0, MatMut::row_major(scores, t));
        for (which, pos, content) in [(0, self.pos_key, &*q), (1, self.pos_query, &*k)] {
            let Some(pos) = pos else { continue };
            shape.take(table, pos, span, head);
            let (a, b, c) = (mat(content, d), mat(table, d).t(), MatMut::row_major(by_distance, wide));
            gemm_serial(t, wide, d, shape.scale, a, b, 0.0, c);
            for (i, scores) in scores.chunks_exact_mut(t).enumerate() {
                for (j, (s, bucket)) in scores.iter_mut().zip(shape.row(i, t)).enumerate() {
                    let at = if which == 0 { i } else { j };
                    *s += by_distance[at * wide + bucket - span.start];
                }
            }
        }
    }

    /// Checks every length; returns `N`.
    fn check(&self, kernel: &str, shape: &DisentangledShape<'_>, segments: &[Segment]) -> usize {
        let width = shape.heads * shape.head_dim;
        assert!(width > 0, "{kernel}: {} heads of {} values", shape.heads, shape.head_dim);
        let n = self.q.len() / width;
        for (name, x) in [("q", self.q), ("k", self.k), ("v", self.v)] {
            assert_eq!(x.len(), n * width, "{kernel}: {name} has {} values, not {n} x {width}", x.len());
        }
        let (len, most) = (shape.buckets.len(), shape.buckets.len().div_ceil(2));
        assert!(
            len % 2 == 1 && shape.buckets.is_sorted(),
            "{kernel}: buckets of {len} distances must not fall"
        );
        let rows = shape.buckets.last().map_or(0, |&last| last as usize + 1);
        for table in [self.pos_key, self.pos_query].into_iter().flatten() {
            assert!(
                table.len().is_multiple_of(width) && table.len() >= rows * width,
                "{kernel}: a table of {} values for {rows} buckets of {width}",
                table.len()
            );
        }
        let mut queries: Vec<_> = segments.iter().map(|s| (s.q.start, s.q.end)).collect();
        queries.sort_unstable();
        for (i, &(start, end)) in queries.iter().enumerate() {
            assert!(
                start <= end && end <= n && end - start <= most,
                "{kernel}: rows {start}..{end} of {n}, {most} at most"
            );
            assert!(
                i == 0 || queries[i - 1].1 <= start || start == end,
                "{kernel}: two segments share row {start}"
            );
        }
        for s in segments {
            assert!(s.prefix.is_empty() && s.own == s.q, "{kernel}: a segment's keys are its queries' rows");
        }
        n
    }
}

impl DisentangledShape<'_> {
    /// How many factors of dropout a text of `t` rows needs.
    fn factors(&self, t: usize) -> usize {
        if self.dropout.is_some() { t * t } else { 0 }
    }

    /// Weighs `x: [T,T]` of a head by the factors of dropout, which it writes.
    fn drop_out(&self, x: &mut [f32], factors: &mut [f32], rows: &Range<usize>, head: usize) {
        let Some(dropout) = self.dropout else { return };
        let t = rows.len();
        dropout.fill(factors, t, t, 0, rows.clone().map(|row| row * self.heads + head));
        weigh(x, factors, t, t, t);
    }

    /// Buckets of the keys `0..t` of query `i`.
    fn row(&self, i: usize, t: usize) -> impl Iterator<Item = usize> {
        let middle = self.buckets.len() / 2;
        self.buckets[middle + i + 1 - t..=middle + i].iter().rev().map(|b| *b as usize)
    }

    /// The rows of the tables that a text of `t` rows, at least one, touches.
    fn span(&self, t: usize) -> Range<usize> {
        let middle = self.buckets.len() / 2;
        self.buckets[middle + 1 - t] as usize..self.buckets[middle + t - 1] as usize + 1
    }

    /// Rows of one head, one after the other.
    fn take(&self, to: &mut [f32], from: &[f32], rows: &Range<usize>, head: usize) {
        let d = self.head_dim;
        for (to, row) in to.chunks_exact_mut(d).zip(rows.clone()) {
            to.copy_from_slice(&from[(row * self.heads + head) * d..][..d]);
        }
    }
}

/// A row-major matrix of `cols` columns.
fn mat(data: &[f32], cols: usize) -> MatRef<'_> {
    MatRef::row_major(data, cols)
}

dispatch! {
    fn dot<V>(a: &[f32], b: &[f32]) -> f32 {
        let mut sum = V::zero();
        for_lanes!(V, a.len(), |at, lanes| { sum = V::load(a, at, lanes).mul_add(V::load(b, at, lanes), sum); });
        sum.sum()
    }
}

dispatch! {
    /// Rows of `t` scores become probabilities; `total` gets the logarithms of their sums of exponentials.
    fn softmax<V>(scores: &mut [f32], total: &mut [f32], t: usize) {
        for (row, total) in scores.chunks_exact_mut(t.max(1)).zip(total) {
            let mut peak = V::splat(f32::NEG_INFINITY);
            for_lanes!(V, t, |at, lanes| {
                peak = peak.max(V::load(row, at, lanes).fill_above(lanes, f32::NEG_INFINITY));
            });
            let peak = peak.max_lane();
            let mut sum = V::zero();
            for_lanes!(V, t, |at, lanes| {
                let x = V::load(row, at, lanes).fill_above(lanes, f32::NEG_INFINITY);
                let e = exp(x.sub(V::splat(peak)));
                sum = sum.add(e);
                e.store(row, at, lanes);
            });
            let sum = sum.sum();
            let by = V::splat(1.0 / sum);
            for_lanes!(V, t, |at, lanes| { V::load(row, at, lanes).mul(by).store(row, at, lanes); });
            *total = peak + sum.ln();
        }
    }
}

dispatch! {
    /// Scores `s` become probabilities `p = exp(s - total)`, and `dp`, their gradients, those of what the scale is a
    /// factor of: `scale p (dp - mean)`.
    fn score_gradients<V>(s: &mut [f32], dp: &mut [f32], total: &[f32], mean: &[f32], t: usize, scale: f32) {
        let rows = s.chunks_exact_mut(t.max(1)).zip(dp.chunks_exact_mut(t.max(1)));
        for ((s, dp), (total, mean)) in rows.zip(total.iter().zip(mean)) {
            let (total, mean, scale) = (V::splat(*total), V::splat(*mean), V::splat(scale));
            for_lanes!(V, t, |at, lanes| {
                let p = exp(V::load(s, at, lanes).sub(total));
                p.store(s, at, lanes);
                V::load(dp, at, lanes).sub(mean).mul(p).mul(scale).store(dp, at, lanes);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, salt: u64) -> Vec<f32> {
        let mut x = vec![0.0; n];
        crate::normal(&mut x, 0.0, 1.0, 31, salt);
        x
    }

    /// Distances up to `L - 1`, clamped to `-reach..reach`.
    fn buckets(longest: usize, reach: i64) -> Vec<u32> {
        let far = longest as i64 - 1;
        (-far..=far).map(|x| (x.clamp(-reach, reach - 1) + reach) as u32).collect()
    }

    fn packed(lengths: &[usize]) -> Vec<Segment> {
        let mut at = 0;
        let run = |&n: &usize| {
            at += n;
            Segment { q: at - n..at, prefix: 0..0, own: at - n..at }
        };
        lengths.iter().map(run).collect()
    }

    /// `q`, `k`, `v`, `pos_key`, `pos_query`; the tables empty where there are none.
    type Numbers = [Vec<f64>; 5];

    /// Outputs and logarithms, pair by pair, in f64.
    fn reference(
        x: &Numbers,
        shape: &DisentangledShape<'_>,
        segments: &[Segment],
        n: usize,
    ) -> (Vec<f64>, Vec<f64>) {
        let (heads, d) = (shape.heads, shape.head_dim);
        let (mut out, mut lse) = (vec![0.0; n * heads * d], vec![0.0; n * heads]);
        let row = |of: usize, row: usize, h: usize| &x[of][(row * heads + h) * d..][..d];
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for s in segments {
            for (i, h) in s.q.clone().flat_map(|i| (0..heads).map(move |h| (i, h))) {
                let score = |j: usize| {
                    let b = shape.buckets[shape.buckets.len() / 2 + i - j] as usize;
                    let mut score = dot(row(0, i, h), row(1, j, h));
                    if !x[3].is_empty() {
                        score += dot(row(0, i, h), row(3, b, h));
                    }
                    if !x[4].is_empty() {
                        score += dot(row(1, j, h), row(4, b, h));
                    }
                    score * f64::from(shape.scale)
                };
                let scores: Vec<f64> = s.q.clone().map(score).collect();
                let total = scores.iter().map(|s| s.exp()).sum::<f64>();
                lse[i * heads + h] = total.ln();
                for (j, score) in s.q.clone().zip(&scores) {
                    let v = row(2, j, h).iter();
                    let out = &mut out[(i * heads + h) * d..][..d];
                    out.iter_mut().zip(v).for_each(|(o, v)| *o += score.exp() / total * v);
                }
            }
        }
        (out, lse)
    }

    fn close(name: &str, got: f32, want: f64, limit: f64) {
        assert!((f64::from(got) - want).abs() <= limit * want.abs().max(1.0), "{name}: {got}, not {want}");
    }

    /// Forward against the reference, backward against its slope at every `step`th value.
    fn check(heads: usize, d: usize, lengths: &[usize], reach: i64, tables: [bool; 2], step: usize) {
        let segments = packed(lengths);
        // A row that no segment has.
        let n = lengths.iter().sum::<usize>() + 1;
        let (width, rows) = (heads * d, 2 * reach as usize);
        let buckets = buckets(*lengths.iter().max().unwrap() + 2, reach);
        let shape = DisentangledShape {
            heads,
            head_dim: d,
            scale: 0.4 / (d as f32).sqrt(),
            buckets: &buckets,
            dropout: None,
        };
        let table = |wanted: bool, salt| numbers(if wanted { rows * width } else { 0 }, salt);
        let x: [Vec<f32>; 5] = [
            numbers(n * width, 1),
            numbers(n * width, 2),
            numbers(n * width, 3),
            table(tables[0], 4),
            table(tables[1], 5),
        ];
        let inputs = DisentangledInputs {
            q: &x[0],
            k: &x[1],
            v: &x[2],
            pos_key: tables[0].then_some(&x[3]),
            pos_query: tables[1].then_some(&x[4]),
        };
        let dout = numbers(n * width, 6);
        let run = || {
            let (mut out, mut lse) = (vec![f32::NAN; n * width], vec![f32::NAN; n * heads]);
            disentangled_attention(&mut out, &mut lse, &inputs, &shape, &segments);
            let mut g: [Vec<f32>; 5] = x.each_ref().map(|x| vec![f32::NAN; x.len()]);
            let [dq, dk, dv, pk, pq] = &mut g;
            let dpos_key = tables[0].then_some(&mut pk[..]);
            let dpos_query = tables[1].then_some(&mut pq[..]);
            let gradients = DisentangledGradients { dq, dk, dv, dpos_key, dpos_query };
            disentangled_attention_backward(gradients, &dout, &out, &lse, &inputs, &shape, &segments);
            (out, lse, g)
        };
        let (out, lse, g) = run();
        let mut wide: Numbers = x.each_ref().map(|x| x.iter().map(|x| f64::from(*x)).collect());
        let (want, logs) = reference(&wide, &shape, &segments, n);
        let covered = (n - 1) * width;
        assert!(out[covered..].iter().all(|x| x.is_nan()), "a row outside every segment is left alone");
        out[..covered].iter().zip(&want).for_each(|(g, w)| close("out", *g, *w, 2e-6));
        lse[..(n - 1) * heads].iter().zip(&logs).for_each(|(g, w)| close("lse", *g, *w, 2e-6));
        let loss = |x: &Numbers| -> f64 {
            let (out, _) = reference(x, &shape, &segments, n);
            out[..covered].iter().zip(&dout).map(|(o, g)| o * f64::from(*g)).sum()
        };
        for of in 0..5 {
            for i in (0..wide[of].len()).step_by(step) {
                let at = wide[of][i];
                wide[of][i] = at + 1e-5;
                let up = loss(&wide);
                wide[of][i] = at - 1e-5;
                let down = loss(&wide);
                wide[of][i] = at;
                let name = ["dq", "dk", "dv", "dpos_key", "dpos_query"][of];
                close(&format!("{name}[{i}]"), g[of][i], (up - down) / 2e-5, 2e-5);
            }
        }
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let again = pool.install(run);
            assert_eq!(again.1[..(n - 1) * heads], lse[..(n - 1) * heads]);
            assert_eq!(again.2, g, "{threads} threads");
        }
    }

    #[test]
    fn tables_and_lengths() {
        for tables in [[true, true], [true, false], [false, true], [false, false]] {
            check(2, 5, &[7, 1, 4], 3, tables, 1);
            check(1, 1, &[3], 9, tables, 1);
        }
        check(3, 8, &[20, 2], 16, [true, true], 7);
    }

    #[test]
    fn longer_texts() {
        check(2, 24, &[70, 33], 20, [true, true], 331);
    }

    #[test]
    #[should_panic(expected = "two segments share row 3")]
    fn shared_rows_are_refused() {
        let x = numbers(5, 1);
        let inputs = DisentangledInputs { q: &x, k: &x, v: &x, pos_key: None, pos_query: None };
        let buckets = buckets(5, 2);
        let shape = DisentangledShape { heads: 1, head_dim: 1, scale: 1.0, buckets: &buckets, dropout: None };
        let mut segments = packed(&[4, 1]);
        (segments[1].q, segments[1].own) = (3..5, 3..5);
        disentangled_attention(&mut [0.0; 5], &mut [0.0; 5], &inputs, &shape, &segments);
    }
}
