use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Communicator, Error, Result};

/// Why the ranks end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The first rank that failed.
    pub rank: usize,
    /// Whether all ranks failed with the same message.
    pub same: bool,
    /// The exit code of that rank.
    pub code: u8,
    /// What went wrong there.
    pub what: String,
}

static AGREED: AtomicBool = AtomicBool::new(false);

/// Whether all ranks know that they end: then none has to be stopped.
pub fn agreed_to_end() -> bool {
    AGREED.load(Ordering::Relaxed)
}

/// Ends all ranks where one failed, in good order: the rank that failed returns its own error, the others that of the first that did.
/// So work of one rank, such as writing a file, ends the others too.
///
/// # Errors
/// As just said.
pub fn all_well<T, E: Display + From<Error> + From<Failure>>(
    comm: &dyn Communicator,
    own: std::result::Result<T, E>,
    exit_code: impl Fn(&E) -> u8,
) -> std::result::Result<T, E> {
    if comm.size() == 1 {
        return own;
    }
    let said = own.as_ref().err().map(|error| (exit_code(error), error.to_string()));
    match (agree(comm, said)?, own) {
        (None, own) => own,
        (Some(failure), Err(error)) if failure.same || failure.rank == comm.rank() => Err(error),
        (Some(failure), _) => Err(failure.into()),
    }
}

/// Tells all ranks whether this one failed, with which exit code and message; gives the first failure of all.
fn agree(comm: &dyn Communicator, own: Option<(u8, String)>) -> Result<Option<Failure>> {
    let own = own.map(|(code, what)| [&[code], what.as_bytes()].concat()).unwrap_or_default();
    let all = comm.all_gather(&own)?;
    let Some((rank, first)) = all.iter().enumerate().find(|(_, message)| !message.is_empty()) else {
        return Ok(None);
    };
    AGREED.store(true, Ordering::Relaxed);
    let (code, what) = (first[0], String::from_utf8_lossy(&first[1..]).into_owned());
    Ok(Some(Failure { rank, same: all.iter().all(|message| message == first), code, what }))
}
