//! One command per file.

pub mod eval;
pub mod generate;
pub mod inspect;
pub mod merge;
pub mod plan;
pub mod train;

use lowrank::{Error, Result};

/// Gives the kernels `threads` threads, or as many as there are processors.
pub fn use_threads(threads: Option<usize>) -> Result<()> {
    let threads = threads.unwrap_or(0);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|e| Error::Failed(format!("cannot start {threads} threads: {e}")))
}
