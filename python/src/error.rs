//! Errors of the engine as Python exceptions, with the same texts.

use std::io::ErrorKind;

use lowrank::Error;
use lowrank::files::shortened;
use pyo3::PyErr;
use pyo3::exceptions::{PyFileNotFoundError, PyOSError, PyPermissionError, PyRuntimeError, PyValueError};

/// `OSError` (or the class below it that Python has for the case) where a file could not be read or
/// written, `ValueError` for input that is wrong, `RuntimeError` for a failure on the way.
pub fn to_python(error: Error) -> PyErr {
    let text = shortened(&error.to_string()).into_owned();
    match error.io_error().map(std::io::Error::kind) {
        Some(ErrorKind::NotFound) => PyFileNotFoundError::new_err(text),
        Some(ErrorKind::PermissionDenied) => PyPermissionError::new_err(text),
        Some(_) => PyOSError::new_err(text),
        None if error.exit_code() == 2 => PyValueError::new_err(text),
        None => PyRuntimeError::new_err(text),
    }
}
