//! The forward: for a block of queries, over blocks of keys, scores, their softmax so far and the sum of
//! values it weighs (FlashAttention's order: Dao et al., 2022).

use std::ops::Range;

use rayon::prelude::*;

use super::dropout::weigh;
use super::geometry::{KeyRows, View, blocks};
use super::scratch::{SCRATCH_PADDING, Scratch, carve, pitch, with_scratch};
use super::shape::{AttentionShape, Segment};
use super::tile::{Bound, MAX_PANEL, PAD, Product, pack_columns, pack_queries, pack_rows, panel, product};
use crate::math::{exp, tanh};
use crate::parallel::SharedMut;
use crate::simd::{Vector, dispatch, for_lanes};

/// Rows (queries times heads of a group) of a tile, at most, for heads of up to 64 values.
const MAX_TILE_ROWS: usize = 192;
/// Keys of a tile, at most.
const MAX_TILE_KEYS: usize = 128;
/// Rows whose scores exist at a time: with the keys and values they stay in the first caches.
const SCORE_ROWS: usize = 24;
/// Up to this many rows, keys are read in place, one dot product at a time: packing them would cost as
/// much as using them.
const MAX_UNPACKED_ROWS: usize = 8;
/// With few rows (decoding), each run of this many keys is a task of its own.
const KEYS_PER_TASK: usize = 512;
/// Multiplications and additions below which one thread is faster.
const MIN_PARALLEL_FMAS: usize = 1_000_000;

/// Values of one thread's scratch, at most.
pub(super) fn scratch_values(shape: &AttentionShape) -> usize {
    let AttentionShape { heads, kv_heads, head_dim: d, .. } = *shape;
    let (group, row) = (heads / kv_heads, pitch(d));
    let rows = tile_rows(d) / group * group;
    let rows = rows.max(group);
    let keys = MAX_TILE_KEYS + PAD;
    let scores = rows.min(SCORE_ROWS) * pitch(keys);
    2 * rows * (row + 1) + keys.next_multiple_of(MAX_PANEL) * d + keys * row + 2 * scores + SCRATCH_PADDING
}

/// Rows (queries times heads of a group) of a tile, at most, for heads of `d` values.
fn tile_rows(d: usize) -> usize {
    (MAX_TILE_ROWS * 64 / d.max(64)).max(48)
}

struct Task {
    segment: usize,
    kv: usize,
    queries: Range<usize>,
    keys: Range<usize>,
    /// Where the result of a part of the keys goes, among the parts; `None` where the keys are all there
    /// are.
    part: Option<usize>,
}

struct Inputs<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    shape: &'a AttentionShape,
    segments: &'a [Segment],
    group: usize,
}

pub(super) fn forward(
    out: &mut [f32],
    lse: &mut [f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    shape: &AttentionShape,
    segments: &[Segment],
) {
    let d = shape.head_dim;
    let group = shape.heads / shape.kv_heads;
    let rows = tile_rows(d);
    let (mut tasks, mut work, mut parts) = (Vec::new(), 0, 0);
    for (segment, s) in segments.iter().enumerate() {
        let view = View::new(shape, s);
        work += view.pairs(s.q.len()) * shape.heads * d * 4;
        for kv in 0..shape.kv_heads {
            for queries in blocks(0..s.q.len(), (rows / group).max(1), 1) {
                let keys = view.reach(&queries);
                if queries.len() * group <= MAX_UNPACKED_ROWS && keys.len() > 2 * KEYS_PER_TASK {
                    for keys in blocks(keys, KEYS_PER_TASK, PAD) {
                        tasks.push(Task { segment, kv, queries: queries.clone(), keys, part: Some(parts) });
                        parts += 1;
                    }
                } else {
                    tasks.push(Task { segment, kv, queries, keys, part: None });
                }
            }
        }
    }
    let inputs = Inputs { q, k, v, shape, segments, group };
    let part_len = MAX_UNPACKED_ROWS * (d + 2);
    let mut part_memory = vec![0.0; parts * part_len];
    {
        let (out, lse) = (SharedMut::new(out), SharedMut::new(lse));
        let part_memory = SharedMut::new(&mut part_memory);
        let run = |task: &Task| {
            with_scratch(|scratch| inputs.attend(scratch, task, &out, &lse, &part_memory, part_len));
        };
        if work < MIN_PARALLEL_FMAS || rayon::current_num_threads() == 1 {
            tasks.iter().for_each(run);
        } else {
            tasks.par_iter().for_each(run);
        }
    }
    let mut at = 0;
    while at < tasks.len() {
        let first = &tasks[at];
        let count = tasks[at..].iter().take_while(|t| same_result(first, t)).count();
        if let Some(part) = first.part {
            inputs.merge(first, &part_memory[part * part_len..(part + count) * part_len], part_len, out, lse);
        }
        at += count;
    }
}

fn same_result(a: &Task, b: &Task) -> bool {
    a.segment == b.segment && a.kv == b.kv && a.queries == b.queries
}

impl Inputs<'_> {
    /// One task. Results go to `out` and `lse`, or to a part: rows of `d` weighted sums, then the largest
    /// scores, then the sums of exponentials.
    fn attend(
        &self,
        scratch: &mut Scratch,
        task: &Task,
        out: &SharedMut<'_>,
        lse: &SharedMut<'_>,
        parts: &SharedMut<'_>,
        part_len: usize,
    ) {
        let AttentionShape { heads, kv_heads, head_dim: d, scale, softcap, dropout, .. } = *self.shape;
        let (group, segment) = (self.group, &self.segments[task.segment]);
        let view = View::new(self.shape, segment);
        let (q_pitch, k_pitch) = (heads * d, kv_heads * d);
        let (q_at, k_at) = (task.kv * group * d, task.kv * d);
        let rows = task.queries.len() * group;
        let (columns, row) = (d.next_multiple_of(PAD), pitch(d));
        let most_keys = task.keys.len().min(MAX_TILE_KEYS + PAD);
        let (key_columns, key_row) = (most_keys.next_multiple_of(MAX_PANEL), pitch(most_keys));
        let few = rows <= MAX_UNPACKED_ROWS;
        let Scratch { floats, spans } = scratch;
        let [queries, keys_t, values, scores, factors, sums, most, total] = carve(
            floats,
            [
                rows * row,
                if few { 0 } else { key_columns * d },
                most_keys * row,
                rows.min(SCORE_ROWS) * key_row,
                if dropout.is_some() { rows.min(SCORE_ROWS) * key_row } else { 0 },
                rows * row,
                rows,
                rows,
            ],
        );
        let query_rows = segment.q.start + task.queries.start..segment.q.start + task.queries.end;
        pack_queries(queries, row, self.q, query_rows.clone(), q_pitch, q_at, group, d, scale);
        let (wide, cap) = (panel(), softcap.unwrap_or(0.0));
        let mut first = true;
        for keys in blocks(task.keys.clone(), MAX_TILE_KEYS, PAD) {
            let key_rows = KeyRows::new(segment, keys.clone());
            spans.set_rows(&view, &task.queries, &keys, group);
            if !few {
                pack_columns(keys_t, self.k, &key_rows, k_pitch, k_at, d);
            }
            // Values lie well as they are if they are whole vectors in one run.
            let in_place = few && d.is_multiple_of(PAD) && key_rows.is_one_run();
            let (values, value_row) = if in_place {
                (&self.v[key_rows.row(0) * k_pitch + k_at..], k_pitch)
            } else {
                pack_rows(values, row, self.v, &key_rows, k_pitch, k_at, d);
                (&*values, row)
            };
            for at in (0..rows).step_by(SCORE_ROWS) {
                let chunk = at..rows.min(at + SCORE_ROWS);
                let (queries, sums) = (&queries[at * row..], &mut sums[at * row..]);
                let (low, high) = (&spans.low[chunk.clone()], &spans.high[chunk.clone()]);
                let (cols, depth) = (keys.len().next_multiple_of(PAD), keys.len());
                if few {
                    dots(scores, key_row, queries, row, rows, self.k, self.v, &key_rows, k_pitch, k_at, d);
                } else {
                    let (a_row, a_step, b_step, b_panel) = (row, 1, wide, wide * d);
                    let (a, b, bound) = (queries, &*keys_t, Bound::Columns);
                    let (depth, c_row, add) = (d, key_row, false);
                    product(
                        &Product {
                            cols,
                            depth,
                            a,
                            a_row,
                            a_step,
                            b,
                            b_step,
                            b_panel,
                            c_row,
                            add,
                            low,
                            high,
                            bound,
                        },
                        scores,
                    );
                }
                let (most, total) = (&mut most[chunk.clone()], &mut total[chunk.clone()]);
                softmax(scores, key_row, cols, low, high, most, total, sums, row, first, cap);
                if let Some(dropout) = dropout {
                    let stream = |r| (query_rows.start + r / group) * heads + task.kv * group + r % group;
                    let count = chunk.len();
                    dropout.fill(factors, key_row, cols, keys.start, chunk.map(stream));
                    weigh(scores, factors, key_row, cols, count);
                }
                let (a_row, a_step, b_step, b_panel) = (key_row, 1, value_row, wide);
                let (a, b, bound) = (&*scores, values, Bound::Depth);
                let (cols, c_row, add) = (columns, row, !first);
                product(
                    &Product {
                        cols,
                        depth,
                        a,
                        a_row,
                        a_step,
                        b,
                        b_step,
                        b_panel,
                        c_row,
                        add,
                        low,
                        high,
                        bound,
                    },
                    sums,
                );
            }
            first = false;
        }
        if first {
            // No key at all.
            sums.fill(0.0);
            most.fill(f32::NEG_INFINITY);
            total.fill(0.0);
        }
        if let Some(part) = task.part {
            // SAFETY: each task has a part of its own.
            let part = unsafe { parts.part(part * part_len..(part + 1) * part_len) };
            for (to, from) in part.chunks_exact_mut(d).zip(sums.chunks_exact(row)) {
                to.copy_from_slice(&from[..d]);
            }
            part[MAX_UNPACKED_ROWS * d..][..rows].copy_from_slice(most);
            part[MAX_UNPACKED_ROWS * (d + 1)..][..rows].copy_from_slice(total);
            return;
        }
        for (r, (i, h)) in query_rows.flat_map(|i| (0..group).map(move |h| (i, h))).enumerate() {
            let to = i * q_pitch + q_at + h * d;
            let at = i * heads + task.kv * group + h;
            // SAFETY: no two tasks without a part share a query row and a head.
            let (out, lse) = unsafe { (out.part(to..to + d), lse.part(at..at + 1)) };
            finish(out, lse, &sums[r * row..][..d], most[r], total[r]);
        }
    }

    /// The result of one block of queries from the parts that its runs of keys gave.
    fn merge(&self, task: &Task, parts: &[f32], part_len: usize, out: &mut [f32], lse: &mut [f32]) {
        let AttentionShape { heads, head_dim: d, .. } = *self.shape;
        let start = self.segments[task.segment].q.start;
        let mut sums = vec![0.0; d];
        for (r, (i, h)) in task.queries.clone().flat_map(|i| (0..self.group).map(move |h| (i, h))).enumerate()
        {
            let most_of = |part: &[f32]| part[MAX_UNPACKED_ROWS * d + r];
            let most = parts.chunks_exact(part_len).map(most_of).fold(f32::NEG_INFINITY, f32::max);
            let mut total = 0.0;
            sums.fill(0.0);
            for part in parts.chunks_exact(part_len) {
                let weight =
                    if most_of(part) == f32::NEG_INFINITY { 0.0 } else { (most_of(part) - most).exp() };
                total += weight * part[MAX_UNPACKED_ROWS * (d + 1) + r];
                for (s, x) in sums.iter_mut().zip(&part[r * d..][..d]) {
                    *s += weight * x;
                }
            }
            let at = (start + i) * heads + task.kv * self.group + h;
            finish(&mut out[at * d..][..d], &mut lse[at..=at], &sums, most, total);
        }
    }
}

dispatch! {
    /// Writes one row of the result.
    fn finish<V>(out: &mut [f32], lse: &mut [f32], sums: &[f32], most: f32, total: f32) {
        // A query that sees no key: zeros, not 0 / 0.
        let factor = V::splat(if total == 0.0 { 0.0 } else { 1.0 / total });
        for_lanes!(V, out.len(), |at, lanes| { V::load(sums, at, lanes).mul(factor).store(out, at, lanes); });
        lse[0] = most + total.ln();
    }
}

dispatch! {
    /// Turns scores (rows of `width`, `pitch` apart) into `exp(score - most)`, zero outside each row's
    /// span, where `most` is the largest score of the row so far, and updates `total`, the sum of
    /// exponentials, and the rows of `sums` to the new `most`. Where `first`, the three have no content yet.
    fn softmax<V>(
        scores: &mut [f32], pitch: usize, width: usize, low: &[u32], high: &[u32], most: &mut [f32],
        total: &mut [f32], sums: &mut [f32], sums_pitch: usize, first: bool, cap: f32,
    ) {
        for r in 0..low.len() {
            let row = &mut scores[r * pitch..][..width];
            let (start, end) = mask::<V>(row, low[r] as usize, high[r] as usize, cap);
            let mut peak = V::splat(f32::NEG_INFINITY);
            for_lanes!(V, end - start, |at, _lanes| { peak = peak.max(V::load(row, start + at, V::LANES)); });
            let before = if first { f32::NEG_INFINITY } else { most[r] };
            let peak = peak.max_lane();
            let now = if peak > before { peak } else { before };
            most[r] = now;
            // Nothing seen yet: every exponential is then exp(-inf - 0) = 0.
            let shift = if now == f32::NEG_INFINITY { 0.0 } else { now };
            let mut sum = V::zero();
            for_lanes!(V, end - start, |at, _lanes| {
                let e = exp(V::load(row, start + at, V::LANES).sub(V::splat(shift)));
                sum = sum.add(e);
                e.store(row, start + at, V::LANES);
            });
            let sum = sum.sum();
            if first {
                total[r] = sum;
            } else if now == before {
                total[r] += sum;
            } else {
                let fade = (before - shift).exp();
                total[r] = total[r] * fade + sum;
                let kept = &mut sums[r * sums_pitch..][..sums_pitch];
                for_lanes!(V, kept.len(), |at, lanes| {
                    V::load(kept, at, lanes).mul(V::splat(fade)).store(kept, at, lanes);
                });
            }
        }
    }
}

/// Caps the scores of a row, sets those outside `low..high` to minus infinity in the vectors that the
/// span touches and to zero elsewhere, and returns where those vectors start and end.
#[inline(always)]
pub(super) fn mask<V: Vector>(row: &mut [f32], low: usize, high: usize, cap: f32) -> (usize, usize) {
    let (start, end) =
        if low < high { (low / V::LANES * V::LANES, high.next_multiple_of(V::LANES)) } else { (0, 0) };
    clear::<V>(row, start, end);
    if cap > 0.0 {
        let (cap, inverse) = (V::splat(cap), V::splat(1.0 / cap));
        for_lanes!(V, end - start, |at, _lanes| {
            let s = V::load(row, start + at, V::LANES);
            tanh(s.mul(inverse)).mul(cap).store(row, start + at, V::LANES);
        });
    }
    edges::<V>(row, start, end, low, high, f32::NEG_INFINITY);
    (start, end)
}

/// Zeros in a row of whole vectors, but for `start..end`.
#[inline(always)]
pub(super) fn clear<V: Vector>(row: &mut [f32], start: usize, end: usize) {
    for_lanes!(V, start, |at, _lanes| {
        V::zero().store(row, at, V::LANES);
    });
    for_lanes!(V, row.len() - end, |at, _lanes| {
        V::zero().store(row, end + at, V::LANES);
    });
}

/// `fill` in the values of the vectors `start..end` that lie outside `low..high`. By whole vectors, since
/// a vector read just after single values of it were written waits for the writes.
#[inline(always)]
pub(super) fn edges<V: Vector>(
    row: &mut [f32],
    start: usize,
    end: usize,
    low: usize,
    high: usize,
    fill: f32,
) {
    if high < end {
        let last = end - V::LANES;
        V::load(row, last, V::LANES).fill_above(high - last, fill).store(row, last, V::LANES);
    }
    if start < low && start < end {
        V::load(row, start, V::LANES).fill_below(low - start, fill).store(row, start, V::LANES);
    }
}

dispatch! {
    /// `scores[r, j] = queries[r] . key j`, for few rows.
    fn dots<V>(
        scores: &mut [f32], pitch: usize, queries: &[f32], row: usize, rows: usize, k: &[f32], v: &[f32], keys: &KeyRows,
        k_pitch: usize, k_at: usize, d: usize,
    ) {
        // Keys and values are read once each, in runs too short for the hardware to see them coming.
        const AHEAD: usize = 8;
        let key = |j: usize| {
            let at = keys.row(j) * k_pitch + k_at;
            for e in (0..d).step_by(16) {
                V::prefetch(k.as_ptr().wrapping_add(at + AHEAD * k_pitch + e));
                V::prefetch(v.as_ptr().wrapping_add(at + e));
            }
            &k[at..at + d]
        };
        let mut r = 0;
        while r < rows {
            let m = (rows - r).min(4);
            let queries = &queries[r * row..];
            let mut j = 0;
            while j + 2 <= keys.len() {
                let pair = [key(j), key(j + 1)];
                let to = &mut scores[r * pitch + j..];
                match m {
                    1 => dot_block::<V, 1, 2>(to, pitch, queries, row, pair, d),
                    2 => dot_block::<V, 2, 2>(to, pitch, queries, row, pair, d),
                    3 => dot_block::<V, 3, 2>(to, pitch, queries, row, pair, d),
                    _ => dot_block::<V, 4, 2>(to, pitch, queries, row, pair, d),
                }
                j += 2;
            }
            if j < keys.len() {
                for i in 0..m {
                    let to = &mut scores[(r + i) * pitch + j..];
                    dot_block::<V, 1, 1>(to, pitch, &queries[i * row..], row, [key(j)], d);
                }
            }
            r += m;
        }
    }
}

#[inline(always)]
fn dot_block<V: Vector, const R: usize, const J: usize>(
    scores: &mut [f32],
    pitch: usize,
    queries: &[f32],
    row: usize,
    keys: [&[f32]; J],
    d: usize,
) {
    let mut sums = [[V::zero(); J]; R];
    for_lanes!(V, d, |at, lanes| {
        let mut key = [V::zero(); J];
        for (x, from) in key.iter_mut().zip(keys) {
            *x = V::load(from, at, lanes);
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // Rows of queries are padded with zeros to whole vectors.
            let query = V::load(queries, r * row + at, V::LANES);
            for (s, x) in sums.iter_mut().zip(key) {
                *s = query.mul_add(x, *s);
            }
        }
    });
    for (r, sums) in sums.iter().enumerate() {
        for (j, s) in sums.iter().enumerate() {
            scores[r * pitch + j] = s.sum();
        }
    }
}
