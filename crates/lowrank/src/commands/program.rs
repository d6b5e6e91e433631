//! How this program is started again, as `study` and `serve` do for each of their runs.

use std::ffi::OsString;
use std::process::Command;
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

/// A process of this program that is to be started.
///
/// # Errors
/// Where the system does not know the file of this program.
pub fn command() -> Result<Command> {
    let words = words()?;
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    Ok(command)
}
