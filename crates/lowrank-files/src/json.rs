//! JSON files of bounded size.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Largest configuration file that is parsed, in bytes: real ones are far smaller.
pub const MAX_CONFIG: u64 = 8 << 20;

/// Reads a JSON file of at most `limit` bytes.
///
/// # Errors
/// Where the file is missing, larger, or not JSON of this type.
pub fn read_json<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<T> {
    let text = read_limited(path, limit)?;
    serde_json::from_slice(&text).map_err(|source| Error::Json { path: path.to_owned(), source })
}

/// Reads a whole file of at most `limit` bytes.
///
/// # Errors
/// Where the file is missing or larger, or is no regular file: a pipe may never end, or never begin.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    // Before it is opened: opening a pipe waits for whoever writes to it.
    regular(path)?;
    read_input(path, limit)
}

/// Checks that there is a regular file at `path`.
///
/// # Errors
/// Where there is none.
pub fn regular(path: &Path) -> Result<()> {
    let kind = std::fs::metadata(path).map_err(Error::io(path))?.file_type();
    if kind.is_dir() {
        return Err(Error::io(path)(std::io::ErrorKind::IsADirectory.into()));
    }
    if !kind.is_file() {
        return Err(Error::io(path)(std::io::Error::other("is not a regular file")));
    }
    Ok(())
}

/// Reads at most `limit` bytes of what a user named: a file, or a pipe such as `/dev/stdin`.
///
/// # Errors
/// Where it cannot be read or is larger.
pub fn read_input(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let file = File::open(path).map_err(Error::io(path))?;
    file.take(limit.saturating_add(1)).read_to_end(&mut text).map_err(Error::io(path))?;
    if text.len() as u64 > limit {
        return Err(Error::file(path, format!("is larger than the {limit} bytes such a file may have")));
    }
    Ok(text)
}

/// Reads a JSON object of at most 8 MiB.
///
/// # Errors
/// Where the file is missing, larger, or holds something else.
pub fn read_object(path: &Path) -> Result<Map<String, Value>> {
    match read_json(path, MAX_CONFIG)? {
        Value::Object(map) => Ok(map),
        _ => Err(Error::file(path, "expected a JSON object")),
    }
}

/// As [`read_object`], `None` where there is no such file.
///
/// # Errors
/// As [`read_object`].
pub fn read_optional_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if path.exists() { read_object(path).map(Some) } else { Ok(None) }
}
