//! Files that are either whole or not there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// A file under construction: bytes go to a hidden neighbour, which takes the place of `path` on
/// [`AtomicFile::commit`] and is removed if that never comes.
pub struct AtomicFile {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl AtomicFile {
    /// Starts writing the file that will stand at `path`; makes its folder if needed.
    ///
    /// # Errors
    /// Where the folder or the temporary file cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let folder = parent(path);
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let name = path.file_name().ok_or_else(|| Error::file(path, "is not a file name"))?;
        let prefix = format!(".{}.", name.to_string_lossy());
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".tmp");
        // As any new file: readable by those whom the umask lets.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder).map_err(Error::io(path))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::with_capacity(1 << 18, file) })
    }

    /// Where the bytes stand until [`AtomicFile::commit`], for writers that want a path and not a [`Write`].
    pub fn temporary(&self) -> &Path {
        self.file.get_ref().path()
    }

    /// Forces the bytes to disk and renames the file to its place.
    ///
    /// # Errors
    /// Where writing, syncing or renaming fails; nothing then stands at the path that did not before.
    pub fn commit(self) -> Result<()> {
        let Self { path, file } = self;
        let finish = || -> io::Result<()> {
            let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            // By its name: who wrote to the path may have put another file there.
            OpenOptions::new().write(true).open(file.path())?.sync_all()?;
            file.persist(&path)?;
            // The rename itself is durable once the folder is synced; not every system can do that.
            if let Ok(folder) = File::open(parent(&path)) {
                let _ = folder.sync_all();
            }
            Ok(())
        };
        finish().map_err(Error::io(&path))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes `bytes` to `path` whole or not at all: temporary file, fsync, rename.
///
/// # Errors
/// As [`AtomicFile::create`] and [`AtomicFile::commit`].
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(Error::io(path))?;
    file.commit()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_committed_leaves_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/model.bin");
        write_atomic(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half of the new").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
