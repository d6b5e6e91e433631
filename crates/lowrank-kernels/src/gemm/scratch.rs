//! Working memory of the products: kept by each thread and used again, so that no step after the first
//! pays for fresh pages.

use std::cell::Cell;

/// Values in a cache line.
pub(super) const LINE_VALUES: usize = 16;

/// Values whose room in the heap is worth the time of giving it back.
const MIN_TRIMMED_VALUES: usize = 1 << 18;

/// Memory that grows to the largest size asked for and is handed out 64-byte aligned.
#[derive(Default)]
pub(super) struct Buffer(Vec<f32>);

impl Buffer {
    /// `len` values of unspecified content.
    pub(super) fn get(&mut self, len: usize) -> &mut [f32] {
        if self.0.len() < len + LINE_VALUES {
            // The old values go first, so that both are never there at once, and leave no large hole in the heap.
            if std::mem::take(&mut self.0).len() > MIN_TRIMMED_VALUES {
                crate::trim_heap();
            }
            self.0 = vec![0.0; len + LINE_VALUES];
        }
        let skip = self.0.as_ptr().align_offset(64).min(LINE_VALUES);
        &mut self.0[skip..skip + len]
    }
}

/// What one thread needs while it works on one task.
#[derive(Default)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) struct Scratch {
    /// A packed block of the right operand.
    pub(super) panels: Buffer,
    /// Weight rows expanded to f32.
    pub(super) rows: Buffer,
    /// A part of the right operand, packed for the tile unit.
    pub(super) right: Buffer,
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
    static LEFT: Cell<Option<Box<Buffer>>> = const { Cell::new(None) };
}

/// Lends this thread's scratch to `work`. (Taken out of its cell meanwhile, so that a nested product is
/// safe: it would merely allocate its own.)
pub(super) fn with_scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    let mut scratch = SCRATCH.take().unwrap_or_default();
    let result = work(&mut scratch);
    SCRATCH.set(Some(scratch));
    result
}

/// Lends `work` this thread's buffer for the left operand, as [`with_scratch`] does.
pub(super) fn with_left<T>(work: impl FnOnce(&mut Buffer) -> T) -> T {
    let mut left = LEFT.take().unwrap_or_default();
    let result = work(&mut left);
    LEFT.set(Some(left));
    result
}

/// Bytes this thread keeps.
#[cfg(test)]
pub(super) fn kept() -> usize {
    let own: usize = with_scratch(|scratch| {
        [&scratch.panels, &scratch.rows, &scratch.right].map(|b| b.0.len()).iter().sum::<usize>()
    });
    size_of::<f32>() * (own + with_left(|left| left.0.len()))
}
