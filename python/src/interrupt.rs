//! Long work from Python: the GIL is free meanwhile, Ctrl-C asks it to stop, callbacks run on the thread
//! that called.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use pyo3::prelude::*;
use rayon::ThreadPool;

/// How often a signal is looked for.
const PATIENCE: Duration = Duration::from_millis(50);

/// Takes messages for the calling thread, and waits until each was dealt with.
#[derive(Clone)]
pub struct Caller<M> {
    to: Sender<(M, SyncSender<()>)>,
    /// Set where the work should end early.
    pub stop: Arc<AtomicBool>,
}

impl<M> Caller<M> {
    /// Hands `message` over.
    pub fn tell(&self, message: M) {
        let (done, wait) = sync_channel(1);
        if self.to.send((message, done)).is_ok() {
            // An error means that the caller is gone, and nobody waits for what we do.
            let _ = wait.recv();
        }
    }
}

/// Runs `work` on `pool` with the GIL free. Its messages go to `hear` on this thread, with the GIL.
///
/// `hear` says whether to go on. The first exception (of `hear`, or a signal handler's, such as
/// `KeyboardInterrupt`) sets `stop` too; it is returned beside the result, once `work` has ended.
pub fn run<T: Send, M: Send>(
    py: Python<'_>,
    pool: &ThreadPool,
    work: impl FnOnce(Caller<M>) -> T + Send,
    mut hear: impl FnMut(Python<'_>, M) -> PyResult<bool> + Send,
) -> (T, Option<PyErr>) {
    let (to, from): (_, Receiver<(M, SyncSender<()>)>) = channel();
    let stop = Arc::new(AtomicBool::new(false));
    let caller = Caller { to, stop: stop.clone() };
    py.detach(move || {
        std::thread::scope(|scope| {
            let work = scope.spawn(move || pool.install(|| work(caller)));
            let mut raised = None;
            loop {
                let outcome = match from.recv_timeout(PATIENCE) {
                    // Once something was raised, the rest is not shown any more.
                    Ok(_) if raised.is_some() => Ok(true),
                    Ok((message, _done)) => Python::attach(|py| hear(py, message)),
                    Err(RecvTimeoutError::Timeout) => Python::attach(|py| py.check_signals().map(|()| true)),
                    Err(RecvTimeoutError::Disconnected) => break,
                };
                if !matches!(outcome, Ok(true)) {
                    stop.store(true, Ordering::Relaxed);
                }
                raised = raised.or(outcome.err());
            }
            match work.join() {
                Ok(result) => (result, raised),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    })
}
