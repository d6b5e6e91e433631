//! Mapped files.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// A file whose bytes are mapped into memory, read-only.
pub struct Mapped {
    // Dropped before the mapping that it names.
    #[cfg(unix)]
    _name: crate::cut::Named,
    map: Mmap,
    #[cfg_attr(not(unix), allow(dead_code))]
    file: File,
}

impl Mapped {
    /// Maps the whole of `file`, which lies at `path`.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn new(file: File, path: &Path) -> io::Result<Self> {
        // SAFETY: the map is read-only; as with every mapped model file, nobody may shorten or rewrite
        // it while the model is in use (our own writers replace files by rename and never in place).
        let map = unsafe { Mmap::map(&file) }?;
        #[cfg(not(unix))]
        let _ = path;
        Ok(Self {
            #[cfg(unix)]
            _name: crate::cut::Named::new(&map, path),
            map,
            file,
        })
    }

    /// Copies the bytes from `at` on, without their pages becoming this process's memory, nor those around them (up to
    /// 2 MB on Linux).
    ///
    /// # Panics
    /// Where the file is shorter.
    pub fn read(&self, at: usize, to: &mut [u8]) {
        #[cfg(unix)]
        if std::os::unix::fs::FileExt::read_exact_at(&self.file, to, at as u64).is_ok() {
            return;
        }
        to.copy_from_slice(&self.map[at..at + to.len()]);
    }
}

impl Deref for Mapped {
    type Target = Mmap;

    fn deref(&self) -> &Mmap {
        &self.map
    }
}
