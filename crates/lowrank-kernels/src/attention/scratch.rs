//! Working memory of one tile, kept by each thread and used again.

use std::cell::Cell;

use super::geometry::Spans;
use super::tile::PAD;

/// What one thread needs while it works on tiles.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) floats: Vec<f32>,
    pub(super) spans: Spans,
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Lends this thread's scratch to `work`.
pub(super) fn with_scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    // Taken out of its cell meanwhile: a nested call would merely allocate its own.
    let mut scratch = SCRATCH.take().unwrap_or_default();
    let result = work(&mut scratch);
    SCRATCH.set(Some(scratch));
    result
}

/// Values that rounding each piece to whole cache lines adds, at most.
pub(super) const SCRATCH_PADDING: usize = 16 * PAD;

/// Cuts `memory`, grown as needed, into pieces of the given lengths, each starting at a cache line. Their
/// content is unspecified.
pub(super) fn carve<const N: usize>(memory: &mut Vec<f32>, lengths: [usize; N]) -> [&mut [f32]; N] {
    let total: usize = lengths.iter().map(|n| n.next_multiple_of(PAD)).sum();
    if memory.len() < total + PAD {
        *memory = vec![0.0; total + PAD];
    }
    let skip = memory.as_ptr().align_offset(64).min(PAD);
    let mut rest = &mut memory[skip..];
    lengths.map(|n| {
        let (piece, after) = std::mem::take(&mut rest).split_at_mut(n.next_multiple_of(PAD));
        rest = after;
        &mut piece[..n]
    })
}

/// Values from one row of a tile of `columns` values to the next: whole cache lines, and an odd number
/// of them, so that a column of the tile spreads over all sets of the first cache.
pub(super) fn pitch(columns: usize) -> usize {
    let lines = columns.div_ceil(PAD);
    (lines + usize::from(lines.is_multiple_of(2))) * PAD
}
