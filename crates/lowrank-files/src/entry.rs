//! A mapped file, and where a tensor lies in it: what the reader of each format gives.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowrank_engine::Mapped;
use lowrank_kernels::{Format, RowOrder};

use crate::error::{Error, Result};
use crate::json::regular;
use crate::packed::Packed;

/// A memory-mapped file and its path.
#[derive(Clone)]
pub(crate) struct MappedFile {
    pub path: PathBuf,
    pub map: Arc<Mapped>,
}

impl MappedFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        regular(path)?;
        let file = File::open(path).map_err(Error::io(path))?;
        let map = Mapped::new(file, path).map_err(Error::io(path))?;
        Ok(Self { path: path.to_owned(), map: Arc::new(map) })
    }
}

/// Where one tensor lies.
pub(crate) struct Entry {
    pub name: String,
    /// Index into the files.
    pub file: usize,
    /// `Err` keeps the file's own name of a number type we do not read: an error only when asked for.
    pub format: Result<Format, String>,
    /// Outermost axis first.
    pub shape: Vec<usize>,
    pub order: RowOrder,
    pub bytes: Range<usize>,
    /// How the values are made, where a quantized folder keeps them in several tensors: `bytes` are the main one's.
    pub packed: Option<Arc<Packed>>,
}

impl Entry {
    pub fn readable(&self) -> Result<Format, String> {
        self.format.clone().map_err(|found| format!("{found} numbers are not supported here"))
    }

    pub fn as_matrix(&self) -> (usize, usize) {
        match self.shape.as_slice() {
            [] => (1, 1),
            [rows, rest @ ..] => (*rows, rest.iter().product()),
        }
    }
}
