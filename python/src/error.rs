//! Errors of the engine as Python exceptions, with the same texts.

use std::io::ErrorKind;

use lowrank::{Error, adapters, models, tools, train};
use pyo3::PyErr;
use pyo3::exceptions::{PyFileNotFoundError, PyOSError, PyPermissionError, PyRuntimeError, PyValueError};

/// What the system said, where it was the system.
fn system(error: &Error) -> Option<ErrorKind> {
    match error {
        Error::Io { source, .. } | Error::Train(train::Error::Io { source, .. }) => Some(source.kind()),
        Error::Tools(tools::Error::Io { source, .. }) => Some(source.kind()),
        Error::Model(error) | Error::Tools(tools::Error::Model(error)) => of_model(error),
        Error::Adapter(error)
        | Error::Train(train::Error::Adapter(error))
        | Error::Tools(tools::Error::Adapter(error)) => match error {
            adapters::Error::Io { source, .. } => Some(source.kind()),
            adapters::Error::Model(error) => of_model(error),
            _ => None,
        },
        _ => None,
    }
}

fn of_model(error: &models::Error) -> Option<ErrorKind> {
    match error {
        models::Error::Io { source, .. } => Some(source.kind()),
        _ => None,
    }
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
