//! The threads that kernels run on: one rayon pool for each number of threads that was asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

struct Pools {
    /// A forked child has its parent's memory but none of its threads: it needs pools of its own.
    process: u32,
    by_threads: HashMap<usize, Arc<ThreadPool>>,
    /// What [`set_num_threads`] said.
    chosen: Option<usize>,
}

static POOLS: Mutex<Option<Pools>> = Mutex::new(None);

fn with_pools<T>(work: impl FnOnce(&mut Pools) -> T) -> T {
    let mut guard = POOLS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let process = std::process::id();
    let chosen = guard.as_ref().and_then(|p| p.chosen);
    if guard.as_ref().is_none_or(|p| p.process != process) {
        // Ending pools whose threads do not exist here would wait for them: they are left as they are.
        std::mem::forget(guard.replace(Pools { process, by_threads: HashMap::new(), chosen }));
    }
    work(guard.as_mut().expect("just made"))
}

fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The pool of `threads` threads, or of the chosen number where `threads` is 0.
///
/// # Errors
/// Where the system gives no threads.
pub fn pool(threads: usize) -> PyResult<Arc<ThreadPool>> {
    with_pools(|pools| {
        let threads = if threads == 0 { pools.chosen.unwrap_or_else(available) } else { threads };
        if let Some(pool) = pools.by_threads.get(&threads) {
            return Ok(pool.clone());
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("lowrank-{i}"))
            .build()
            .map_err(|e| PyRuntimeError::new_err(format!("cannot start {threads} threads: {e}")))?;
        let pool = Arc::new(pool);
        pools.by_threads.insert(threads, pool.clone());
        Ok(pool)
    })
}

/// Threads that the engine uses from now on; 0 for all processors.
#[pyfunction]
pub fn set_num_threads(threads: usize) {
    with_pools(|pools| pools.chosen = (threads > 0).then_some(threads));
}

/// Threads that the engine uses.
#[pyfunction]
pub fn get_num_threads() -> usize {
    with_pools(|pools| pools.chosen.unwrap_or_else(available))
}
