//! Operands as the tiles read them.

use std::ops::Range;

use super::kernel::Kernel;
use crate::WeightRef;
use crate::gemm::pack::transpose_units;
use crate::gemm::product::Side;
use crate::simd::Vector;

/// Rows of the weight asked for ahead of their use.
const PREFETCH_ROWS: usize = 16;

/// [`WeightRef::row`] of what is known to be BF16, for inner loops.
#[inline(always)]
fn row_of<'a>(w: &WeightRef<'a>, row: usize) -> &'a [u8] {
    &w.bytes[w.stored_row(row) * 2 * w.cols..][..2 * w.cols]
}

/// Asks for share `step` of `steps` of what the next block packs: its rows are too short for the CPU to see a stream.
#[inline(always)]
pub(super) fn ask<K: Kernel>(
    w: &WeightRef,
    side: Side,
    k: &Range<usize>,
    next: &Range<usize>,
    step: usize,
    steps: usize,
) {
    if k.is_empty() || next.is_empty() {
        return;
    }
    let (rows, cols) = if side == Side::Forward { (next, k) } else { (k, next) };
    let share = |step: usize| rows.start + step * rows.len() / steps;
    (share(step)..share(step + 1)).for_each(|row| ask_row::<K>(w, row, cols));
}

/// Asks for the part `cols` of a row.
#[inline(always)]
fn ask_row<K: Kernel>(w: &WeightRef, row: usize, cols: &Range<usize>) {
    let bytes = &row_of(w, row)[2 * cols.start..2 * cols.end];
    let (line, last) = (bytes.as_ptr().cast::<f32>(), bytes.len().div_ceil(64));
    (0..=last).for_each(|at| K::Pack::prefetch(line.wrapping_add(16 * at)));
}

/// Packs `B[k, n]` in panels: for each unit of `k`, a tile's columns.
#[inline(always)]
pub(super) unsafe fn pack<K: Kernel>(
    w: &WeightRef,
    side: Side,
    k: Range<usize>,
    n: Range<usize>,
    panels: &mut [f32],
) {
    let pairs = k.len().div_ceil(2).next_multiple_of(K::PAIRS);
    let columns = |from: usize| from.min(n.end)..(from + K::NR).min(n.end);
    match side {
        Side::Forward => {
            ask::<K>(w, side, &k, &columns(n.start), 0, 1);
            for (panel, from) in panels.chunks_exact_mut(K::NR * pairs).zip(n.clone().step_by(K::NR)) {
                ask::<K>(w, side, &k, &columns(from + K::NR), 0, 1);
                let (width, whole) = (columns(from).len(), k.len() / 2);
                let row = |j: usize| &row_of(w, from + j)[2 * k.start..2 * k.end];
                // What is left for single steps.
                let done = if K::PAIRS == 1 { whole } else { 0 };
                // SAFETY: each row holds `whole` pairs.
                unsafe {
                    let row = |j: usize| row(j).as_ptr().cast();
                    transpose_units::<K::Pack>(row, done, width, K::NR, &mut panel[..done * K::NR]);
                }
                // Nothing, most times.
                for j in 0..if done < pairs { K::NR } else { 0 } {
                    let numbers = if j < width { row(j).as_chunks().0 } else { &[] };
                    let number = |l: usize| numbers.get(l).map_or(0, |bytes| half(*bytes));
                    for pair in done..pairs {
                        let at = (pair / K::PAIRS * K::NR + j) * K::PAIRS + pair % K::PAIRS;
                        panel[at] = f32::from_bits(number(2 * pair) | number(2 * pair + 1) << 16);
                    }
                }
            }
        }
        Side::Backward => {
            for pair in 0..pairs {
                let l = k.start + 2 * pair;
                (l + PREFETCH_ROWS..l + PREFETCH_ROWS + 2)
                    .filter(|l| *l < k.end)
                    .for_each(|l| ask_row::<K>(w, l, &n));
                let row = |l: usize| row_of(w, l)[2 * n.start..2 * n.end].as_chunks::<2>().0;
                let low = row(l.min(k.end - 1));
                // Beyond the last row stand zeros.
                let high = if l + 1 < k.end { row(l + 1) } else { low };
                let mask = if l + 1 < k.end { !0 } else { u32::from(l < k.end) * 0xffff };
                let units = panels.chunks_exact_mut(K::NR * K::PAIRS);
                let units = units.skip(pair / K::PAIRS).step_by(pairs / K::PAIRS);
                for (to, (low, high)) in units.zip(low.chunks(K::NR).zip(high.chunks(K::NR))) {
                    let (to, rest) = to.split_at_mut(low.len() * K::PAIRS);
                    for (to, (low, high)) in to.chunks_exact_mut(K::PAIRS).zip(low.iter().zip(high)) {
                        to[pair % K::PAIRS] = f32::from_bits((half(*low) | half(*high) << 16) & mask);
                    }
                    rest.fill(0.0);
                }
            }
        }
    }
}

#[inline(always)]
fn half(bytes: [u8; 2]) -> u32 {
    u32::from(u16::from_le_bytes(bytes))
}
