//! What can be wrong with a model's files.

use std::path::{Path, PathBuf};

/// Errors of model files, tokenizers and chat templates. Every message names the file and what in it
/// is wrong, and where there is one, the fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that is not what its format asks for.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        what: String,
    },
    /// One tensor of a file is missing or unusable.
    #[error("{}: tensor {tensor}: {what}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong.
        what: String,
    },
    /// A field of a configuration or of GGUF metadata is missing or wrong.
    #[error("{}: {field}: {what}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's name.
        field: String,
        /// What is wrong.
        what: String,
    },
    /// A configuration that describes no model known here.
    #[error("{0}")]
    Config(String),
    /// A JSON file that cannot be read.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// A tokenizer that cannot be built or used.
    #[error("{}: tokenizer: {what}", path.display())]
    Tokenizer {
        /// The file it came from.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A chat template that does not parse or refuses the messages.
    #[error("chat template: {0}")]
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
        move |source| Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn file(path: &Path, what: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, what: impl Into<String>) -> Self {
        Self::Tensor { path: path.to_owned(), tensor: shown(tensor), what: what.into() }
    }

    pub(crate) fn field(path: &Path, field: &str, what: impl Into<String>) -> Self {
        Self::Field { path: path.to_owned(), field: shown(field), what: what.into() }
    }

    pub(crate) fn tokenizer(path: &Path, what: impl std::fmt::Display) -> Self {
        Self::Tokenizer { path: path.to_owned(), what: what.to_string() }
    }
}

/// A name out of a file, fit for one line of a message: no control characters, not endless.
pub(crate) fn shown(name: &str) -> String {
    let mut short: String = name.chars().take(120).flat_map(char::escape_debug).collect();
    if name.chars().nth(120).is_some() {
        short.push('…');
    }
    short
}
