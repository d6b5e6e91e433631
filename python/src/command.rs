//! The `lowrank` command, which the package's script runs.

use std::ffi::OsString;
use std::process::ExitCode;

use pyo3::prelude::*;

/// Runs the command with `arguments`, of which the first is its name; `start` are the words that start it again. Returns its
/// exit code.
#[pyfunction]
pub fn command(py: Python<'_>, start: Vec<OsString>, arguments: Vec<OsString>) -> u8 {
    let code = py.detach(|| lowrank::cli::main_of_script(start, arguments));
    // Of an `ExitCode` only this can be asked.
    (0..=u8::MAX).find(|number| ExitCode::from(*number) == code).unwrap_or(1)
}
