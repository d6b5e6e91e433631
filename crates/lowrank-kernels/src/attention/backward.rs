//! The backward: scores and probabilities of each tile again, then the three gradients.
//!
//! Per head, with `P = exp(S - lse)` and `D_i = dout_i . out_i`: `dV = P' dout`, `dP = dout V'`,
//! `dS = P (dP - D)`, `dQ = scale dS K`, `dK = scale dS' Q`.
//!
//! No gradient row is ever written by two threads at a time, and the order of additions depends only on
//! the shapes and the number of threads. The units that share no row are (set of segments that share
//! keys) x (kv head). Where these are too few for the threads, a unit is cut further:
//! - the own keys of a long segment: blocks of queries x blocks of keys, one diagonal at a time, so that
//!   the tiles of a phase share neither queries nor keys;
//! - a prefix that many segments share: each thread gathers its gradient for some of the segments apart,
//!   and the parts are added in order.

use std::ops::Range;

use rayon::prelude::*;

use super::dropout::weigh;
use super::forward::{clear, edges, mask};
use super::geometry::{KeyRows, Spans, View, blocks, components};
use super::scratch::{SCRATCH_PADDING, Scratch, carve, pitch, with_scratch};
use super::shape::{AttentionShape, Segment};
use super::tile::{Bound, MAX_PANEL, PAD, Product, pack_columns, pack_queries, pack_rows, panel, product};
use crate::math::exp;
use crate::parallel::SharedMut;
use crate::simd::{dispatch, for_lanes};

/// Rows (queries times heads of a group) of a tile, at most, for heads of up to 64 values.
const MAX_TILE_ROWS: usize = 128;
/// Keys of a tile, at most.
const MAX_TILE_KEYS: usize = 128;
/// Multiplications and additions below which a unit is not cut for several threads.
const MIN_SPLIT_FMAS: usize = 20_000_000;

/// Queries of a block, at most.
fn tile_queries(shape: &AttentionShape) -> usize {
    let rows = (MAX_TILE_ROWS * 64 / shape.head_dim.max(64)).max(48);
    (rows / (shape.heads / shape.kv_heads)).max(1)
}

/// Values of one thread's scratch, at most.
pub(super) fn scratch_values(shape: &AttentionShape) -> usize {
    let (d, rows) = (shape.head_dim, tile_queries(shape) * (shape.heads / shape.kv_heads));
    let row = pitch(d);
    let keys = MAX_TILE_KEYS + PAD;
    let tiles = 2 + usize::from(shape.dropout.is_some());
    2 * keys.next_multiple_of(MAX_PANEL) * d
        + 3 * keys * row
        + 3 * rows * row
        + tiles * rows * pitch(keys)
        + 2 * rows
        + SCRATCH_PADDING
}

/// Values of the parts in which threads gather the gradients of prefixes, at most.
pub(super) fn prefix_values(shape: &AttentionShape, segments: &[Segment], threads: usize) -> usize {
    let prefixes = || segments.iter().map(|s| &s.prefix).filter(|p| !p.is_empty());
    let start = prefixes().map(|p| p.start).min().unwrap_or(0);
    let end = prefixes().map(|p| p.end).max().unwrap_or(0);
    threads.min(segments.len()) * 2 * (end - start) * shape.head_dim
}

struct Inputs<'a> {
    dout: &'a [f32],
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    lse: &'a [f32],
    shape: &'a AttentionShape,
    segments: &'a [Segment],
    group: usize,
    /// Queries of a block, at most.
    queries: usize,
}

/// Where gradients of keys and values go: row `i` of the key buffer, at `(i - base) * pitch + at`.
struct KeyGradients<'a> {
    dk: &'a SharedMut<'a>,
    dv: &'a SharedMut<'a>,
    base: usize,
    pitch: usize,
    at: usize,
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward(
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    dout: &[f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    lse: &[f32],
    shape: &AttentionShape,
    segments: &[Segment],
) {
    let group = shape.heads / shape.kv_heads;
    let queries = tile_queries(shape);
    let inputs = Inputs { dout, q, k, v, out, lse, shape, segments, group, queries };
    clear_gaps(dq, segments.iter().map(|s| s.q.clone()), shape.heads * shape.head_dim);
    for gradient in [&mut *dk, dv] {
        let read = segments.iter().flat_map(|s| [s.prefix.clone(), s.own.clone()]);
        clear_gaps(gradient, read, shape.kv_heads * shape.head_dim);
    }
    let (dq, dk, dv) = (SharedMut::new(dq), SharedMut::new(dk), SharedMut::new(dv));
    let sets = components(segments);
    let threads = rayon::current_num_threads();
    let few_units = sets.len() * shape.kv_heads < 4 * threads;
    let work = |set: &[usize]| -> usize {
        let pairs = |&i: &usize| View::new(shape, &segments[i]).pairs(segments[i].q.len());
        set.iter().map(pairs).sum::<usize>() * group * shape.head_dim * 10
    };
    let units: Vec<(&[usize], usize, usize)> = sets
        .iter()
        .flat_map(|set| {
            let work = work(set);
            (0..shape.kv_heads).map(move |kv| (set.as_slice(), kv, work))
        })
        .collect();
    let run = |&(set, kv, work): &(&[usize], usize, usize)| {
        let pitch = shape.kv_heads * shape.head_dim;
        let to = KeyGradients { dk: &dk, dv: &dv, base: 0, pitch, at: kv * shape.head_dim };
        inputs.clear(set, kv, &dq, &to);
        if threads > 1 && few_units && work > MIN_SPLIT_FMAS && own_keys_are_apart(segments, set) {
            inputs.cut_unit(set, kv, &dq, &to, threads);
        } else {
            with_scratch(|scratch| {
                for &i in set {
                    let view = View::new(shape, &segments[i]);
                    let queries = blocks(0..segments[i].q.len(), inputs.queries, 1);
                    for keys in blocks(0..view.keys, MAX_TILE_KEYS, PAD) {
                        inputs.key_block(scratch, i, kv, keys, queries.clone(), &dq, &to);
                    }
                }
            });
        }
    };
    if threads == 1 || units.iter().map(|u| u.2).sum::<usize>() < MIN_SPLIT_FMAS / 8 {
        units.iter().for_each(run);
    } else {
        units.par_iter().for_each(run);
    }
}

/// Zeros in the rows that no range covers.
fn clear_gaps(x: &mut [f32], ranges: impl Iterator<Item = Range<usize>>, width: usize) {
    let mut ranges: Vec<_> = ranges.map(|r| (r.start, r.end)).collect();
    ranges.sort_unstable();
    let mut covered = 0;
    for (start, end) in ranges {
        if covered < start {
            x[covered * width..start * width].fill(0.0);
        }
        covered = covered.max(end);
    }
    x[covered * width..].fill(0.0);
}

fn own_keys_are_apart(segments: &[Segment], set: &[usize]) -> bool {
    let mut own: Vec<(usize, usize)> =
        set.iter().map(|&i| (segments[i].own.start, segments[i].own.end)).collect();
    own.sort_unstable();
    own.windows(2).all(|w| w[0].1 <= w[1].0)
}

impl Inputs<'_> {
    /// Zeros in all the gradients of one unit, just before they are added to: they are then in the cache.
    fn clear(&self, set: &[usize], kv: usize, dq: &SharedMut<'_>, to: &KeyGradients<'_>) {
        let d = self.shape.head_dim;
        let heads = self.group * d;
        for segment in set.iter().map(|&i| &self.segments[i]) {
            for i in segment.q.clone() {
                let at = i * self.shape.heads * d + kv * heads;
                // SAFETY: units have different kv heads or segments.
                unsafe { dq.part(at..at + heads) }.fill(0.0);
            }
            for j in segment.prefix.clone().chain(segment.own.clone()) {
                let at = j * to.pitch + to.at;
                for gradient in [to.dk, to.dv] {
                    // SAFETY: units have different kv heads or share no key.
                    unsafe { gradient.part(at..at + d) }.fill(0.0);
                }
            }
        }
    }

    /// One unit on several threads.
    fn cut_unit(&self, set: &[usize], kv: usize, dq: &SharedMut<'_>, to: &KeyGradients<'_>, threads: usize) {
        let d = self.shape.head_dim;
        // Own keys: segments share none, so each runs on its own, long ones by diagonals.
        set.par_iter().for_each(|&i| {
            let prefix = self.segments[i].prefix.len();
            let queries: Vec<_> = blocks(0..self.segments[i].q.len(), self.queries, 1).collect();
            let keys: Vec<_> =
                blocks(prefix..prefix + self.segments[i].own.len(), MAX_TILE_KEYS, PAD).collect();
            let phases = queries.len().max(keys.len());
            for phase in 0..phases {
                queries.par_iter().enumerate().for_each(|(n, queries)| {
                    if let Some(keys) = keys.get((n + phases - phase) % phases) {
                        let queries = std::iter::once(queries.clone());
                        with_scratch(|s| self.key_block(s, i, kv, keys.clone(), queries, dq, to));
                    }
                });
            }
        });
        // Prefixes.
        let prefixes = || set.iter().map(|&i| &self.segments[i].prefix).filter(|p| !p.is_empty());
        let Some(start) = prefixes().map(|p| p.start).min() else { return };
        let end = prefixes().map(|p| p.end).max().unwrap_or(start);
        let size = (end - start) * d;
        let parts = threads.min(set.len());
        let mut memory = vec![0.0; parts * 2 * size];
        memory.par_chunks_mut(2 * size).enumerate().for_each(|(part, memory)| {
            let (dk, dv) = memory.split_at_mut(size);
            let (dk, dv) = (SharedMut::new(dk), SharedMut::new(dv));
            let to = KeyGradients { dk: &dk, dv: &dv, base: start, pitch: d, at: 0 };
            with_scratch(|scratch| {
                for &i in set.iter().skip(part).step_by(parts) {
                    let queries = blocks(0..self.segments[i].q.len(), self.queries, 1);
                    for keys in blocks(0..self.segments[i].prefix.len(), MAX_TILE_KEYS, PAD) {
                        self.key_block(scratch, i, kv, keys, queries.clone(), dq, &to);
                    }
                }
            });
        });
        for part in memory.chunks_exact(2 * size) {
            let (dk, dv) = part.split_at(size);
            for j in 0..end - start {
                to.add(start + j, &dk[j * d..][..d], &dv[j * d..][..d]);
            }
        }
    }

    /// All tiles of one block of keys (positions of segment `index`) with some blocks of queries.
    #[allow(clippy::too_many_arguments)]
    fn key_block(
        &self,
        scratch: &mut Scratch,
        index: usize,
        kv: usize,
        keys: Range<usize>,
        queries: impl Iterator<Item = Range<usize>>,
        dq: &SharedMut<'_>,
        to: &KeyGradients<'_>,
    ) {
        let AttentionShape { heads, kv_heads, head_dim: d, scale, softcap, dropout, .. } = *self.shape;
        let (group, segment) = (self.group, &self.segments[index]);
        let view = View::new(self.shape, segment);
        let (q_pitch, k_pitch) = (heads * d, kv_heads * d);
        let (q_at, k_at) = (kv * group * d, kv * d);
        let (columns, row) = (d.next_multiple_of(PAD), pitch(d));
        let key_rows = KeyRows::new(segment, keys.clone());
        let (width, key_row) = (keys.len().next_multiple_of(PAD), pitch(keys.len()));
        let rows = self.queries * group;
        let transposed = keys.len().next_multiple_of(MAX_PANEL) * d;
        let (tile, by_query, by_key) = (rows * key_row, rows * row, keys.len() * row);
        let Scratch { floats, spans } = scratch;
        let [keys_t, values_t, keys_p, dk, dv, q, dout, dq_tile, p, dp, factors, lse, mean] = carve(
            floats,
            [
                transposed,
                transposed,
                by_key,
                by_key,
                by_key,
                by_query,
                by_query,
                by_query,
                tile,
                tile,
                if dropout.is_some() { tile } else { 0 },
                rows,
                rows,
            ],
        );
        let wide = panel();
        let mut first = true;
        for queries in queries {
            let reach = view.reach(&queries);
            if reach.end <= keys.start || keys.end <= reach.start {
                continue;
            }
            if first {
                pack_columns(keys_t, self.k, &key_rows, k_pitch, k_at, d);
                pack_columns(values_t, self.v, &key_rows, k_pitch, k_at, d);
                pack_rows(keys_p, row, self.k, &key_rows, k_pitch, k_at, d);
            }
            let query_rows = segment.q.start + queries.start..segment.q.start + queries.end;
            let rows = queries.len() * group;
            spans.set_rows(&view, &queries, &keys, group);
            spans.set_keys(keys.len());
            let Spans { low, high, key_low, key_high } = &*spans;
            pack_queries(
                &mut q[..rows * row],
                row,
                self.q,
                query_rows.clone(),
                q_pitch,
                q_at,
                group,
                d,
                scale,
            );
            pack_queries(
                &mut dout[..rows * row],
                row,
                self.dout,
                query_rows.clone(),
                q_pitch,
                q_at,
                group,
                d,
                1.0,
            );
            for (r, (i, h)) in heads_of(query_rows.clone(), group) {
                lse[r] = self.lse[i * heads + kv * group + h];
                mean[r] = dot(&dout[r * row..][..d], &self.out[i * q_pitch + q_at + h * d..][..d]);
            }
            let scores = Product {
                cols: width,
                depth: d,
                a: q,
                a_row: row,
                a_step: 1,
                b: keys_t,
                b_step: wide,
                b_panel: wide * d,
                c_row: key_row,
                add: false,
                low,
                high,
                bound: Bound::Columns,
            };
            product(&scores, p);
            product(&Product { a: dout, b: values_t, ..scores }, dp);
            if let Some(dropout) = dropout {
                let streams =
                    heads_of(query_rows.clone(), group).map(|(_, (i, h))| i * heads + kv * group + h);
                dropout.fill(factors, key_row, width, keys.start, streams);
                weigh(dp, factors, key_row, width, rows);
            }
            score_gradients(p, dp, key_row, width, low, high, lse, mean, softcap.unwrap_or(0.0));
            if dropout.is_some() {
                weigh(p, factors, key_row, width, rows);
            }
            // Rows of these are keys, and the sums run over the queries.
            let by_keys = Product {
                cols: columns,
                depth: rows,
                a: p,
                a_row: 1,
                a_step: key_row,
                b: dout,
                b_step: row,
                b_panel: wide,
                c_row: row,
                add: !first,
                low: key_low,
                high: key_high,
                bound: Bound::Depth,
            };
            product(&by_keys, dv);
            product(&Product { a: dp, b: q, ..by_keys }, dk);
            let by_queries = Product {
                cols: columns,
                depth: keys.len(),
                a: dp,
                a_row: key_row,
                a_step: 1,
                b: keys_p,
                b_step: row,
                b_panel: wide,
                c_row: row,
                add: false,
                low,
                high,
                bound: Bound::Depth,
            };
            product(&by_queries, dq_tile);
            for (r, (i, h)) in heads_of(query_rows, group) {
                let at = i * q_pitch + q_at + h * d;
                // SAFETY: threads at work at the same time have different kv heads or query rows.
                let dq = unsafe { dq.part(at..at + d) };
                for (x, y) in dq.iter_mut().zip(&dq_tile[r * row..]) {
                    *x += scale * y;
                }
            }
            first = false;
        }
        if !first {
            for j in 0..key_rows.len() {
                to.add(key_rows.row(j), &dk[j * row..][..d], &dv[j * row..][..d]);
            }
        }
    }
}

impl KeyGradients<'_> {
    fn add(&self, row: usize, dk: &[f32], dv: &[f32]) {
        let at = (row - self.base) * self.pitch + self.at;
        for (to, from) in [(self.dk, dk), (self.dv, dv)] {
            // SAFETY: threads at work at the same time have different kv heads, key rows or buffers.
            let to = unsafe { to.part(at..at + from.len()) };
            for (x, y) in to.iter_mut().zip(from) {
                *x += y;
            }
        }
    }
}

/// The rows of a tile: `(row, (query row, head of the group))`.
fn heads_of(queries: Range<usize>, group: usize) -> impl Iterator<Item = (usize, (usize, usize))> {
    queries.flat_map(move |i| (0..group).map(move |h| (i, h))).enumerate()
}

dispatch! {
    fn dot<V>(a: &[f32], b: &[f32]) -> f32 {
        let mut sum = V::zero();
        for_lanes!(V, a.len(), |at, lanes| { sum = V::load(a, at, lanes).mul_add(V::load(b, at, lanes), sum); });
        sum.sum()
    }
}

dispatch! {
    /// Scores `s` become probabilities, and `dp`, their gradients, those of the scores (before the cap),
    /// both zero outside each row's span.
    fn score_gradients<V>(
        s: &mut [f32], dp: &mut [f32], pitch: usize, width: usize, low: &[u32], high: &[u32], lse: &[f32],
        mean: &[f32], cap: f32,
    ) {
        for r in 0..low.len() {
            let (row, gradient) = (&mut s[r * pitch..][..width], &mut dp[r * pitch..][..width]);
            let (start, end) = mask::<V>(row, low[r] as usize, high[r] as usize, cap);
            clear::<V>(gradient, start, end);
            let (lse, mean, inverse) = (V::splat(lse[r]), V::splat(mean[r]), V::splat(1.0 / cap));
            for_lanes!(V, end - start, |at, _lanes| {
                let z = V::load(row, start + at, V::LANES);
                let p = exp(z.sub(lse));
                let mut ds = p.mul(V::load(gradient, start + at, V::LANES).sub(mean));
                if cap > 0.0 {
                    let u = z.mul(inverse);
                    ds = ds.mul(V::splat(1.0).sub(u.mul(u)));
                }
                p.store(row, start + at, V::LANES);
                ds.store(gradient, start + at, V::LANES);
            });
            // The columns of no key, which were never products, and a masked score's slope times zero.
            edges::<V>(gradient, start, end, low[r] as usize, high[r] as usize, 0.0);
        }
    }
}
