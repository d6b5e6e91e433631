//! How the ranks of a run fail and speak together.

use lowrank_comm::Communicator;

use crate::{Error, Result};

/// Ends all ranks where one failed.
///
/// # Errors
/// As [`lowrank_comm::all_well`].
pub fn all_well<T>(comm: &dyn Communicator, own: Result<T>) -> Result<T> {
    lowrank_comm::all_well(comm, own, Error::exit_code)
}

/// Prints a line on standard error, on the first rank.
pub(crate) fn say(text: &str) {
    if lowrank_comm::is_first_rank() {
        eprintln!("{text}");
    }
}
