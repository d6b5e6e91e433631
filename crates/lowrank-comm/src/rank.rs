//! Which of the ranks this process is, for those who print.

use std::sync::atomic::{AtomicUsize, Ordering};

static RANK: AtomicUsize = AtomicUsize::new(0);

/// Says that this process is `rank` of its run.
pub fn set_process_rank(rank: usize) {
    RANK.store(rank, Ordering::Relaxed);
}

/// The rank of this process; 0 where it is alone.
pub fn process_rank() -> usize {
    RANK.load(Ordering::Relaxed)
}

/// Whether this process prints and writes for all.
pub fn is_first_rank() -> bool {
    process_rank() == 0
}
