//! Files that are either whole or not there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// A file under construction: bytes go to a hidden neighbour, which takes the place of `path` on
/// [`AtomicFile::commit`] and is removed if that never comes. A link stays a link, and what is no regular file (a device,
/// a pipe) is written to as it is.
pub struct AtomicFile {
    path: PathBuf,
    file: BufWriter<Target>,
}

enum Target {
    Neighbour(NamedTempFile),
    Device(File),
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Neighbour(file) => file.write(bytes),
            Self::Device(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Neighbour(file) => file.flush(),
            Self::Device(file) => file.flush(),
        }
    }
}

impl AtomicFile {
    /// Starts writing the file that will stand at `path`; makes its folder if needed.
    ///
    /// # Errors
    /// Where the folder or the temporary file cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let path = &match fs::metadata(path) {
            Ok(there) if there.is_file() => path.canonicalize().map_err(Error::io(path))?,
            Ok(there) if !there.is_dir() => {
                let device = OpenOptions::new().write(true).open(path).map_err(Error::io(path))?;
                return Ok(Self { path: path.to_owned(), file: BufWriter::new(Target::Device(device)) });
            }
            _ => path.to_owned(),
        };
        let folder = parent(path);
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let name = path.file_name().ok_or_else(|| Error::file(path, "is not a file name"))?;
        let prefix = format!(".{}.", name.to_string_lossy());
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".tmp");
        // As any new file: readable by those whom the umask lets.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = Target::Neighbour(builder.tempfile_in(folder).map_err(Error::io(path))?);
        Ok(Self { path: path.to_owned(), file: BufWriter::with_capacity(1 << 18, file) })
    }

    /// Where the bytes stand until [`AtomicFile::commit`], for writers that want a path and not a [`Write`].
    pub fn temporary(&self) -> &Path {
        match self.file.get_ref() {
            Target::Neighbour(file) => file.path(),
            Target::Device(_) => &self.path,
        }
    }

    /// Forces the bytes to disk and renames the file to its place.
    ///
    /// # Errors
    /// Where writing, syncing or renaming fails; nothing then stands at the path that did not before.
    pub fn commit(self) -> Result<()> {
        let Self { path, file } = self;
        let finish = || -> io::Result<()> {
            let Target::Neighbour(file) = file.into_inner().map_err(io::IntoInnerError::into_error)? else {
                return Ok(());
            };
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

    #[cfg(unix)]
    #[test]
    fn links_and_devices_stay_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        write_atomic(&link, b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
        write_atomic(Path::new("/dev/null"), b"nothing").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        assert!(
            write_atomic(Path::new("/dev/full"), b"no space").unwrap_err().to_string().contains("/dev/full")
        );
    }

    /// The mode is that of any new file: what the umask leaves of 0666.
    #[cfg(unix)]
    #[test]
    fn the_mode_is_that_of_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        let (plain, atomic) = (folder.path().join("plain"), folder.path().join("atomic"));
        fs::write(&plain, "x").unwrap();
        write_atomic(&atomic, b"x").unwrap();
        assert_eq!(mode(&plain), mode(&atomic));
    }

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
