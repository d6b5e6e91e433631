//! What ranks tell each other besides gradients.

use lowrank_comm::Communicator;

use crate::Error;

/// Ends all ranks where one failed.
///
/// # Errors
/// As [`lowrank_comm::all_well`].
pub(crate) fn all_well<T>(comm: &dyn Communicator, own: Result<T, Error>) -> Result<T, Error> {
    lowrank_comm::all_well(comm, own, |error| u8::from(error.is_input()) + 1)
}

/// What the first rank does for all, such as writing.
///
/// # Errors
/// As [`all_well`].
pub(crate) fn on_first(
    comm: &dyn Communicator,
    work: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    all_well(comm, if comm.is_first() { work() } else { Ok(()) })
}

/// Whether any rank says so.
pub(crate) fn any(comm: &dyn Communicator, own: bool) -> Result<bool, Error> {
    if comm.size() == 1 {
        return Ok(own);
    }
    Ok(comm.all_gather_known(&[u8::from(own)], vec![1; comm.size()])?.concat().contains(&1))
}

/// What must be the same on all ranks, by name.
///
/// # Errors
/// Names the first that is not, with the ranks.
pub fn check_same(comm: &dyn Communicator, own: &[(&str, String)]) -> Result<(), Error> {
    let text: Vec<&str> = own.iter().map(|(_, value)| value.as_str()).collect();
    let all = comm.all_gather(text.join("\0").as_bytes())?;
    let all: Vec<String> =
        all.into_iter().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect();
    let first: Vec<&str> = all[0].split('\0').collect();
    for (rank, values) in all.iter().enumerate().skip(1) {
        let values: Vec<&str> = values.split('\0').collect();
        for (i, (name, _)) in own.iter().enumerate() {
            let (mine, theirs) = (first.get(i).unwrap_or(&"nothing"), values.get(i).unwrap_or(&"nothing"));
            if mine != theirs {
                return all_well(
                    comm,
                    Err(Error::Options(format!(
                        "the ranks of a run need the same {name}: rank 0 has {mine}, rank {rank} has {theirs}"
                    ))),
                );
            }
        }
    }
    Ok(())
}
