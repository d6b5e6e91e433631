//! Uploaded files.

use std::fs;
use std::path::{Path, PathBuf};

use lowrank_files::{AtomicFile, write_atomic};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::random;

/// An uploaded file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// `file-` and digits.
    pub id: String,
    /// Always `file`.
    pub object: String,
    /// Its size.
    pub bytes: u64,
    /// In seconds since 1970.
    pub created_at: u64,
    /// As the client named it: never a path here.
    pub filename: String,
    /// `fine-tune`.
    pub purpose: String,
    /// `processed`.
    pub status: String,
}

/// The folder of uploaded files.
pub struct Files {
    folder: PathBuf,
}

impl Files {
    /// The files in `folder`, which is made where missing.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn open(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).map_err(|e| Error::failed(format!("{}: {e}", folder.display())))?;
        Ok(Self { folder })
    }

    /// Where a new file's bytes go, and its id.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn create(&self) -> Result<(String, AtomicFile)> {
        let id = random::id("file");
        let file = AtomicFile::create(&self.path(&id)).map_err(|e| Error::failed(e.to_string()))?;
        Ok((id, file))
    }

    /// Notes a file whose bytes are there.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn add(&self, id: String, bytes: u64, filename: String, purpose: String) -> Result<FileRecord> {
        let (object, status, created_at) = ("file".to_owned(), "processed".to_owned(), random::now());
        let record = FileRecord { id, object, bytes, created_at, filename, purpose, status };
        write_json(&self.folder.join(format!("{}.json", record.id)), &record)?;
        Ok(record)
    }

    /// All files, newest first.
    pub fn list(&self) -> Vec<FileRecord> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let record =
            |path: PathBuf| path.extension().is_some_and(|e| e == "json").then(|| read_json(&path)).flatten();
        let mut list: Vec<FileRecord> = entries.flatten().filter_map(|entry| record(entry.path())).collect();
        list.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
        list
    }

    /// The file of an id.
    ///
    /// # Errors
    /// Where there is none.
    pub fn get(&self, id: &str) -> Result<FileRecord> {
        let known = is_id(id, "file").then(|| read_json(&self.folder.join(format!("{id}.json")))).flatten();
        known.ok_or_else(|| Error::not_found(format!("there is no file {id:?}")))
    }

    /// Where the bytes of a file are that [`Files::get`] knows.
    pub fn path(&self, id: &str) -> PathBuf {
        self.folder.join(id)
    }

    /// Removes a file.
    ///
    /// # Errors
    /// Where there is none, or it cannot be removed.
    pub fn remove(&self, id: &str) -> Result<()> {
        self.get(id)?;
        let gone = |path: PathBuf| {
            fs::remove_file(&path).map_err(|e| Error::failed(format!("{}: {e}", path.display())))
        };
        gone(self.folder.join(format!("{id}.json")))?;
        gone(self.path(id))
    }
}

/// Whether `id` is `prefix-` and hexadecimal digits, and so no path.
pub fn is_id(id: &str, prefix: &str) -> bool {
    id.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-')).is_some_and(|digits| {
        !digits.is_empty() && digits.len() <= 64 && digits.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

/// Reads JSON that this server wrote.
pub fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Writes JSON, whole or not at all.
///
/// # Errors
/// Where it cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(value).map_err(|e| Error::failed(e.to_string()))?;
    write_atomic(path, &text).map_err(|e| Error::failed(e.to_string()))
}
