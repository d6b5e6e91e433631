//! What can be wrong with files.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// A file or folder that the operating system refuses to read or write. Every crate's error holds this one.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct IoError {
    /// The file or folder.
    pub path: PathBuf,
    /// What the system says.
    pub source: std::io::Error,
}

impl IoError {
    /// For `map_err`: an error of the operating system at `path`.
    pub fn at(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self { path, source }
    }
}

/// Errors of files of tensors. Every message names the file and what in it is wrong, and where there is one, the fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] IoError),
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
    /// A JSON file that cannot be read.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// A tensor that a configuration asks for and that cannot be planned.
    #[error("{0}")]
    Planned(String),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// For `map_err`: an error of the operating system at `path`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| IoError { path: path.to_owned(), source }.into()
    }

    /// `path` is not what its format asks for.
    pub fn file(path: &Path, what: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), what: what.into() }
    }

    /// A tensor of `path` is missing or unusable. The name may come from the file: it is made fit for one line.
    pub fn tensor(path: &Path, tensor: &str, what: impl Into<String>) -> Self {
        Self::Tensor { path: path.to_owned(), tensor: shown(tensor), what: what.into() }
    }

    /// A field of `path` is missing or wrong. The name may come from the file: it is made fit for one line.
    pub fn field(path: &Path, field: &str, what: impl Into<String>) -> Self {
        Self::Field { path: path.to_owned(), field: shown(field), what: what.into() }
    }
}

/// A name from a file, fit for one line of a message: control characters escaped, at most 120 characters.
pub fn shown(name: &str) -> String {
    cut(name, 120, |_| true)
}

/// A text from a file or a command line, fit for one line of a message: control characters escaped, at most `most`
/// characters.
pub fn shown_at_most(text: &str, most: usize) -> String {
    // Line and paragraph separators break lines as well.
    cut(text, most, |c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'))
}

/// Most bytes at the start and at the end of a message that [`shortened`] keeps.
const KEPT: (usize, usize) = (1800, 900);

/// A message without the middle of what is too long to read: values come from files and users.
pub fn shortened(message: &str) -> Cow<'_, str> {
    if message.len() <= KEPT.0 + KEPT.1 {
        return message.into();
    }
    let boundary = |at: &usize| message.is_char_boundary(*at);
    let start = (0..=KEPT.0).rev().find(boundary).unwrap_or(0);
    let end = (message.len() - KEPT.1..message.len()).find(boundary).unwrap_or(message.len());
    format!("{} [... {} bytes left out ...] {}", &message[..start], end - start, &message[end..]).into()
}

fn cut(text: &str, most: usize, escaped: impl Fn(char) -> bool) -> String {
    let mut short = String::new();
    for c in text.chars().take(most) {
        match escaped(c) {
            true => short.extend(c.escape_debug()),
            false => short.push(c),
        }
    }
    if text.chars().nth(most).is_some() {
        short.push('…');
    }
    short
}
