use std::path::PathBuf;

/// What can go wrong between a data file and a trained adapter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A data file that is wrong as a whole: its format, its header, or nothing in it.
    #[error("{}: {reason}", path.display())]
    DataFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, and how to put it right.
        reason: String,
    },
    /// A line of a data file that makes no example.
    #[error("{}:{line}: {reason} (--skip-bad-lines leaves such lines out)", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: u64,
        /// What is wrong, and how to put it right.
        reason: String,
    },
    /// Options that contradict each other or say nothing sensible.
    #[error("{0}")]
    Options(String),
}

impl Error {
    /// For `map_err`: an I/O error of `path`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
