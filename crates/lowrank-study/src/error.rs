//! What can go wrong.

use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a study.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The specification, or a run that is asked for, is wrong.
    #[error("{0}")]
    Spec(String),
    /// A file could not be read or written.
    #[error(transparent)]
    Io(#[from] lowrank_files::IoError),
    /// A file is not what it should be.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Something failed on the way.
    #[error("{0}")]
    Failed(String),
    /// A file could not be written.
    #[error(transparent)]
    Files(#[from] lowrank_files::Error),
    /// A model could not be opened.
    #[error(transparent)]
    Model(#[from] lowrank_models::Error),
    /// An adapter could not be read.
    #[error(transparent)]
    Adapter(#[from] lowrank_adapters::Error),
    /// Another rank of the study does not answer.
    #[error(transparent)]
    Comm(#[from] lowrank_comm::Error),
    /// An adapter's file could not be looked into.
    #[error(transparent)]
    Tools(#[from] lowrank_tools::Error),
}

impl Error {
    /// For `map_err` around file operations.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| lowrank_files::IoError { path: path.into(), source }.into()
    }

    pub(crate) fn file(path: &Path, reason: impl Into<String>) -> Self {
        Self::File { path: path.into(), reason: reason.into() }
    }

    /// Whether the user's input is to blame.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Spec(_) | Self::File { .. } | Self::Model(_) | Self::Adapter(_) | Self::Tools(_))
    }
}
