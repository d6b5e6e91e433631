//! How this program is started again, as `study` does for each of its runs.

use std::ffi::OsString;
use std::sync::OnceLock;

use lowrank::{Error, Result};

static WORDS: OnceLock<Vec<OsString>> = OnceLock::new();

/// Says that `words`, a program and its first arguments, start this program: an interpreter runs it.
pub fn set(words: Vec<OsString>) {
    // It is set once, by whoever calls the command.
    let _ = WORDS.set(words);
}

/// A program and its first arguments.
///
/// # Errors
/// Where the system does not know the file of this program.
pub fn words() -> Result<Vec<OsString>> {
    if let Some(words) = WORDS.get() {
        return Ok(words.clone());
    }
    let file = std::env::current_exe();
    let file = file.map_err(|e| Error::Failed(format!("cannot find this program's own file: {e}")))?;
    Ok(vec![file.into()])
}
