use std::time::Duration;

/// What can go wrong between ranks.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No MPI library, or one that lacks a function.
    #[error(
        "{launcher} started this process as one of {size}, and no MPI library can be opened: {what}. Install it (`apt \
             install openmpi-bin`, `pip install mpich`) or name its file in LOWRANK_MPI"
    )]
    NoLibrary {
        /// What started this process.
        launcher: &'static str,
        /// How many processes it started.
        size: usize,
        /// What was tried.
        what: String,
    },
    /// The library is not the launcher's.
    #[error(
        "{launcher} started {announced} processes, but {library} sees {size}: it is not the launcher's library. Use the \
         mpirun of that library, or name the launcher's library in LOWRANK_MPI"
    )]
    OtherLibrary {
        /// What started this process.
        launcher: &'static str,
        /// How many processes it started.
        announced: usize,
        /// The library that was opened.
        library: String,
        /// How many processes that library knows.
        size: usize,
    },
    /// A call of the library failed.
    #[error("{call}: {what}")]
    Call {
        /// The function.
        call: &'static str,
        /// What the library says.
        what: String,
    },
    /// A rank ended.
    #[error("rank {rank} ended before the others{how}. Checkpoints are whole: continue with `resume`")]
    Lost {
        /// The rank.
        rank: usize,
        /// How it ended, where that is known: begins with a blank.
        how: String,
    },
    /// A rank did not answer.
    #[error(
        "no message from rank {ranks} for {} s: it hangs, or its machine cannot be reached. Checkpoints are whole: continue \
         with `resume`; LOWRANK_TIMEOUT=SECONDS waits longer",
        waited.as_secs()
    )]
    TimedOut {
        /// The ranks that were waited for.
        ranks: String,
        /// How long.
        waited: Duration,
    },
    /// Processes of this machine could not be started or connected.
    #[error("cannot start {size} processes: {what}")]
    Start {
        /// How many were wanted.
        size: usize,
        /// What went wrong.
        what: String,
    },
    /// The messages of ranks do not fit together.
    #[error(
        "rank {rank} sent {got} bytes where {wanted} were expected: the ranks are at different places of the run"
    )]
    Mismatch {
        /// The rank.
        rank: usize,
        /// Bytes that came.
        got: usize,
        /// Bytes that should have come.
        wanted: usize,
    },
    /// What the caller's own messages failed with.
    #[error("{0}")]
    Callback(String),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// How long a rank waits for a message: `LOWRANK_TIMEOUT` seconds, else ten minutes.
pub(crate) fn timeout() -> Duration {
    let given = std::env::var("LOWRANK_TIMEOUT").ok().and_then(|seconds| seconds.trim().parse().ok());
    Duration::from_secs(given.unwrap_or(600))
}

/// The error of waiting too long for these ranks.
pub(crate) fn timed_out(ranks: impl Iterator<Item = usize>, waited: Duration) -> Error {
    let mut ranks: Vec<usize> = ranks.collect();
    ranks.sort_unstable();
    ranks.dedup();
    let ranks = ranks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Error::TimedOut { ranks, waited }
}
