//! Errors of the engine as Python exceptions, with the same texts.

use std::io::ErrorKind;

use lowrank::Error;
use pyo3::PyErr;
use pyo3::exceptions::{PyFileNotFoundError, PyOSError, PyPermissionError, PyRuntimeError, PyValueError};

/// What the system said, where it was the system: an error of the operating system is a cause of ours.
fn system(error: &Error) -> Option<ErrorKind> {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.filter_map(|error| error.downcast_ref::<std::io::Error>()).map(std::io::Error::kind).next()
}

/// `OSError` (or the class below it that Python has for the case) where a file could not be read or
/// written, `ValueError` for input that is wrong, `RuntimeError` for a failure on the way.
pub fn to_python(error: Error) -> PyErr {
    let text = error.to_string();
    match system(&error) {
        Some(ErrorKind::NotFound) => PyFileNotFoundError::new_err(text),
        Some(ErrorKind::PermissionDenied) => PyPermissionError::new_err(text),
        Some(_) => PyOSError::new_err(text),
        None if error.exit_code() == 2 => PyValueError::new_err(text),
        None => PyRuntimeError::new_err(text),
    }
}
