//! Splitting rows over rayon's threads.

use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Work (about one unit per value touched) below which another thread costs more than it saves.
const MIN_WORK: usize = 32 * 1024;

/// Calls `f` on consecutive, disjoint ranges that cover `0..n`, in parallel where `n * cost` is worth
/// it. The ranges depend only on the arguments and the number of threads.
pub(crate) fn for_rows(n: usize, cost: usize, f: impl Fn(Range<usize>) + Sync) {
    let tasks = row_tasks(n, cost);
    if tasks <= 1 {
        return f(0..n);
    }
    (0..tasks).into_par_iter().for_each(|t| f(task_rows(n, tasks, t)));
}

/// Calls `f` on parts that cover `y`, each with its range, as [`for_rows`] does.
pub(crate) fn for_parts(y: &mut [f32], cost: usize, f: impl Fn(&mut [f32], Range<usize>) + Sync) {
    let (len, y) = (y.len(), SharedMut::new(y));
    // SAFETY: the ranges of `for_rows` are disjoint.
    for_rows(len, cost, |r| f(unsafe { y.part(r.clone()) }, r));
}

/// The number of ranges [`for_rows`] uses.
pub(crate) fn row_tasks(n: usize, cost: usize) -> usize {
    let threads = rayon::current_num_threads();
    if threads == 1 {
        return 1;
    }
    n.saturating_mul(cost).div_euclid(MIN_WORK).clamp(1, threads * 4).min(n.max(1))
}

/// Rows of task `t` of `tasks`.
pub(crate) fn task_rows(n: usize, tasks: usize, t: usize) -> Range<usize> {
    n * t / tasks..n * (t + 1) / tasks
}

/// A mutable slice of which several threads write disjoint parts.
pub(crate) struct SharedMut<'a> {
    start: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: parts are handed out only by `part`, whose caller promises that they do not overlap.
unsafe impl Send for SharedMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedMut<'_> {}

impl<'a> SharedMut<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// The values of `range`.
    ///
    /// # Safety
    /// No other part that overlaps `range` may be alive.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the slice by the check above, not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
