//! One command per file.

pub mod base;
pub mod compose;
pub mod convert;
pub mod decoding;
pub mod diff;
pub mod dtype;
pub mod eval;
pub mod eval_texts;
pub mod extract;
pub mod files;
pub mod generate;
pub mod inspect;
pub mod merge;
pub mod plan;
pub mod predict;
pub mod prune;
pub mod rename;
pub mod report;
pub mod resize;
pub mod scored;
pub mod study;
pub mod train;

use std::path::PathBuf;

use lowrank::{Error, Result};

/// `DIR` or `DIR:WEIGHT`: an adapter folder and its weight, 1 where none is given.
pub fn weighted(text: &str) -> std::result::Result<(PathBuf, f32), String> {
    let whole = PathBuf::from(text);
    let Some((dir, weight)) = text.rsplit_once(':').filter(|_| !whole.exists()) else {
        return Ok((whole, 1.0));
    };
    match weight.parse::<f32>() {
        Ok(weight) if weight.is_finite() => Ok((dir.into(), weight)),
        _ => Err(format!("{weight:?} after the colon is no weight, and {text} is no folder")),
    }
}

/// Runs `work` on a pool of `threads` threads, or of as many as there are processors. `work` itself is on
/// one of them, so that handing parts to the others needs no sleeping and waking.
pub fn on_threads<T: Send>(threads: Option<usize>, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let threads = threads.unwrap_or(0);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::Failed(format!("cannot start {threads} threads: {e}")))?;
    pool.install(work)
}
