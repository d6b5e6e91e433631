use std::path::{Path, PathBuf};

/// What can go wrong with adapter files. Messages name the file and the tensor, and the fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that cannot be read or written, or a wrong file of tensors.
    #[error(transparent)]
    Files(#[from] lowrank_files::Error),
    /// A file whose content is wrong.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and the fix.
        what: String,
    },
    /// Tensors or modules that a format has no place for, or an operation no meaning.
    #[error("{why}: {}", listed(names))]
    Names {
        /// What cannot be done, and the fix.
        why: String,
        /// What it cannot be done with.
        names: Vec<String>,
    },
    /// Settings or adapters that do not fit together.
    #[error("{0}")]
    Usage(String),
    /// A model's file.
    #[error(transparent)]
    Model(#[from] lowrank_models::Error),
    /// A decomposition.
    #[error(transparent)]
    Adapter(#[from] lowrank_adapters::Error),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| lowrank_files::Error::io(path)(source).into()
    }

    pub(crate) fn file(path: &Path, what: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn names(why: impl Into<String>, names: Vec<String>) -> Self {
        Self::Names { why: why.into(), names }
    }
}

/// A few of the names, and how many there are. Names come out of files: made fit for one line.
fn listed(names: &[String]) -> String {
    let short = |name: &String| name.chars().take(120).flat_map(char::escape_debug).collect::<String>();
    let some: Vec<String> = names.iter().take(8).map(short).collect();
    let more = names.len().saturating_sub(some.len());
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    some.join(", ") + &tail
}
