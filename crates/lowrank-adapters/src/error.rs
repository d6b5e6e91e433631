use std::path::{Path, PathBuf};

/// What can go wrong with adapters and their files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file whose content is wrong.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and the fix.
        what: String,
    },
    /// A file that cannot be read or written, or a wrong file of tensors.
    #[error(transparent)]
    Files(#[from] lowrank_files::Error),
    /// A matrix that cannot be decomposed.
    #[error("cannot decompose: {0}")]
    Decomposition(String),
    /// A weight of the base model that cannot be read.
    #[error(transparent)]
    Base(Box<dyn std::error::Error + Send + Sync>),
    /// A configuration that is not valid.
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
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| lowrank_files::Error::io(path)(source).into()
    }

    pub(crate) fn file(path: &Path, what: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn mismatch(path: &Path, what: impl Into<String>) -> Self {
        Self::Mismatch { path: path.to_owned(), what: what.into() }
    }
}
