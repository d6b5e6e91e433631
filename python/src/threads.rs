//! The threads that work runs on. The engine has rayon pools, one for each number of threads that was asked
//! for. The kernels behind `lowrank.torch` run on PyTorch's own OpenMP threads: these spin for milliseconds
//! after each of PyTorch's operations, and would take the processors from threads of ours.

use std::any::Any;
use std::collections::HashMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, OnceLock};

use lowrank::files::Range;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuilder};

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
    check(threads)?;
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

/// Refuses a number of threads that nobody means; 0 stands for all processors.
fn check(threads: usize) -> PyResult<()> {
    if threads == 0 || Range::THREADS.contains_whole(threads as i128) {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("threads {}", Range::THREADS.refusal(threads))))
}

/// Threads that the engine uses from now on; 0 for all processors.
///
/// # Errors
/// Where there are too many.
#[pyfunction]
pub fn set_num_threads(threads: usize) -> PyResult<()> {
    check(threads)?;
    with_pools(|pools| pools.chosen = (threads > 0).then_some(threads));
    Ok(())
}

/// Threads that the engine uses.
#[pyfunction]
pub fn get_num_threads() -> usize {
    with_pools(|pools| pools.chosen.unwrap_or_else(available))
}

/// `GOMP_parallel(function, data, threads, flags)` of GCC's OpenMP runtime: runs `function(data)` on each thread
/// of a team, the calling one among them, and returns when all have.
type Parallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, u32, u32);

/// The OpenMP runtime that PyTorch brought into the process, where there is one.
#[cfg(target_os = "linux")]
fn openmp() -> Option<Parallel> {
    unsafe extern "C" {
        fn dlsym(handle: *mut c_void, name: *const std::ffi::c_char) -> *mut c_void;
    }
    // SAFETY: a null handle searches what is loaded, and the function of that name has had this signature
    // since it exists.
    unsafe {
        let found = dlsym(std::ptr::null_mut(), c"GOMP_parallel".as_ptr());
        (!found.is_null()).then(|| std::mem::transmute::<*mut c_void, Parallel>(found))
    }
}

#[cfg(not(target_os = "linux"))]
fn openmp() -> Option<Parallel> {
    None
}

/// The runtime and the process in which it was found: its threads do not live on in a forked child.
static OPENMP: OnceLock<(u32, Option<Parallel>)> = OnceLock::new();

/// The workers of a pool that nobody runs yet.
type Team = Mutex<Vec<ThreadBuilder>>;

/// Makes an OpenMP thread a worker until the pool ends.
extern "C" fn join(team: *mut c_void) {
    // SAFETY: `on_torch_threads` passes a team that outlives the parallel region.
    let team = unsafe { &*team.cast::<Team>() };
    let worker = team.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
    if let Some(worker) = worker {
        worker.run();
    }
}

/// Runs `work` on `threads` threads: on PyTorch's where they are OpenMP's, or else on a pool.
///
/// # Errors
/// Where the system gives no threads.
pub fn on_torch_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> PyResult<T> {
    let (process, parallel) = *OPENMP.get_or_init(|| (std::process::id(), openmp()));
    let parallel = parallel.filter(|_| process == std::process::id());
    if threads > 1 && parallel.is_none() {
        return Ok(pool(threads)?.install(work));
    }
    let team = Team::default();
    let enlist = |worker| {
        team.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(worker);
        Ok(())
    };
    let new = ThreadPoolBuilder::new().num_threads(threads.max(1)).spawn_handler(enlist).build();
    let new = new.map_err(|e| PyRuntimeError::new_err(format!("cannot start {threads} threads: {e}")))?;
    let pool: Mutex<Option<ThreadPool>> = Mutex::default();
    let result: Mutex<Option<Result<T, Box<dyn Any + Send>>>> = Mutex::default();
    let job = || {
        let done = catch_unwind(AssertUnwindSafe(work));
        *result.lock().expect("nobody else has it") = Some(done);
        // Ends the pool, and with it the workers.
        drop(pool.lock().expect("nobody else has it").take());
    };
    let job: Box<dyn FnOnce() + Send + '_> = Box::new(job);
    // SAFETY: the job has run when the workers end, which is before this function returns. (Were none to run, it
    // would be leaked with its pool and never run.)
    let job: Box<dyn FnOnce() + Send> = unsafe { std::mem::transmute(job) };
    new.spawn(job);
    *pool.lock().expect("nobody else has it") = Some(new);
    let data = std::ptr::from_ref(&team).cast_mut().cast();
    match parallel {
        // SAFETY: `join` takes the team, which lives until the region ends.
        Some(parallel) if threads > 1 => unsafe { parallel(join, data, threads as u32, 0) },
        _ => join(data),
    }
    let done = result.lock().expect("nobody else has it").take();
    Ok(done.expect("the job ran").unwrap_or_else(|panic| resume_unwind(panic)))
}
