use std::path::{Path, PathBuf};

/// What can go wrong with adapters and their files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file whose content is wrong.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and the fix.
        what: String,
    },
    /// A file of tensors, or one that cannot be written.
    #[error(transparent)]
    Model(#[from] lowrank_models::Error),
    /// Numbers that cannot be computed with.
    #[error("cannot decompose: {0}")]
    Decomposition(String),
    /// A weight of the base model that cannot be read.
    #[error(transparent)]
    Base(Box<dyn std::error::Error + Send + Sync>),
    /// A configuration that makes no sense.
    #[error("adapter configuration: {0}")]
    Config(String),
    /// Target modules that match nothing.
    #[error("no layer matches target_modules {target}; this model has: {available}")]
    NoTarget {
        /// What was asked for.
        target: String,
        /// Names that exist.
        available: String,
    },
    /// An adapter made for another base model.
    #[error("{}: this adapter does not fit the base model: {what}", path.display())]
    Mismatch {
        /// The adapter's file.
        path: PathBuf,
        /// The site that differs.
        what: String,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn file(path: &Path, what: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn mismatch(path: &Path, what: impl Into<String>) -> Self {
        Self::Mismatch { path: path.to_owned(), what: what.into() }
    }
}
