//! What can be wrong with a model's files.

use std::path::{Path, PathBuf};

/// Errors of model files, tokenizers and chat templates. Every message names the file and what in it
/// is wrong, and where there is one, the fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that cannot be read or written, or whose content is wrong.
    #[error(transparent)]
    Files(#[from] lowrank_files::Error),
    /// A configuration that describes no model known here.
    #[error("{0}")]
    Config(String),
    /// A tokenizer that cannot be built or used.
    #[error("{}: tokenizer: {what}", path.display())]
    Tokenizer {
        /// The file it came from.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A chat template that does not parse or refuses the messages.
    #[error("{0}")]
    Template(String),
    /// A request that no decoder can serve: names the field and what it may be.
    #[error("{0}")]
    Request(String),
    /// A request that needs more rows of the key-value cache than are free. It may fit when others have left, unless it
    /// needs more than the capacity.
    #[error("the request needs {needed} rows of the key-value cache; {free} of {capacity} are free")]
    NoRoom {
        /// Rows it needs.
        needed: usize,
        /// Rows that are free.
        free: usize,
        /// Rows there are.
        capacity: usize,
    },
    /// A model whose computation gives no numbers.
    #[error(
        "the model gives NaN for the next token: its weights or the adapter's hold NaN or infinity, or are too large \
         (`lowrank inspect` names the tensors)"
    )]
    NotFinite,
    /// What makes the numbers of a model that is written.
    #[error(transparent)]
    Source(Box<dyn std::error::Error + Send + Sync>),
    /// A model of the hub that is neither cached nor reachable.
    #[error("{repo}: {what}")]
    Hub {
        /// The hub id as given.
        repo: String,
        /// What is missing and what to do.
        what: String,
    },
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| lowrank_files::Error::io(path)(source).into()
    }

    pub(crate) fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self + '_ {
        move |source| lowrank_files::Error::Json { path: path.to_owned(), source }.into()
    }

    pub(crate) fn file(path: &Path, what: impl Into<String>) -> Self {
        lowrank_files::Error::file(path, what).into()
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, what: impl Into<String>) -> Self {
        lowrank_files::Error::tensor(path, tensor, what).into()
    }

    pub(crate) fn field(path: &Path, field: &str, what: impl Into<String>) -> Self {
        lowrank_files::Error::field(path, field, what).into()
    }

    pub(crate) fn tokenizer(path: &Path, what: impl std::fmt::Display) -> Self {
        Self::Tokenizer { path: path.to_owned(), what: what.to_string() }
    }
}
