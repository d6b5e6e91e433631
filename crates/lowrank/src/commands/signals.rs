//! Requests to stop: Ctrl-C (SIGINT), and SIGTERM and SIGHUP, by which Slurm, systemd and Docker end a process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use lowrank::{Error, Result};

/// A flag that the first request sets, saying `message`; the second ends the process.
pub fn stop(message: &'static str) -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    handle(move || match flag.swap(true, Ordering::Relaxed) {
        true => std::process::exit(130),
        false => note!("\n{message}"),
    })?;
    Ok(stop)
}

/// The number of requests so far; each says `message`.
pub fn count(message: &'static str) -> Result<Arc<AtomicUsize>> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    handle(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        note!("\n{message}");
    })?;
    Ok(count)
}

fn handle(signal: impl FnMut() + Send + 'static) -> Result<()> {
    ctrlc::set_handler(signal).map_err(|e| Error::Failed(format!("cannot watch for signals: {e}")))
}
