//! A lock on a folder that a run writes to. The system gives it up when its process ends, in whatever way.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::outputs::is_same_file;

/// The file that is locked; it says who holds the lock, and is there as long as the run.
const LOCK_FILE: &str = ".lowrank.lock";

/// The right to write to a folder, until it is dropped.
#[derive(Debug)]
pub struct FolderLock {
    path: PathBuf,
    /// Holds the lock; nothing where the file system has none.
    _file: Option<File>,
}

impl FolderLock {
    /// Locks `folder`, which is made where missing.
    ///
    /// # Errors
    /// Says which process holds it, or what the system refuses.
    pub fn take(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let path = folder.join(LOCK_FILE);
        loop {
            let mut options = OpenOptions::new();
            let mut file = options
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(Error::io(&path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(held(folder, &mut file)),
                Err(TryLockError::Error(_)) => return Ok(Self { path, _file: None }),
            }
            // Who held it before may have removed the file between opening and locking.
            if !is_this(&file, &path) {
                continue;
            }
            // The lock holds whether or not there is space to say whose it is.
            let _ = file.set_len(0).and_then(|()| file.write_all(who().as_bytes()));
            return Ok(Self { path, _file: Some(file) });
        }
    }

    /// Whether a process holds the lock on `folder` now, and which.
    pub fn holder(folder: &Path) -> Option<String> {
        let mut file = File::open(folder.join(LOCK_FILE)).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => Some(read(&mut file)),
            _ => None,
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn held(folder: &Path, file: &mut File) -> Error {
    Error::file(
        folder,
        format!("is being written to by {}: wait for it, or choose another folder", read(file)),
    )
}

fn read(file: &mut File) -> String {
    let mut text = String::new();
    let _ = file.rewind().and_then(|()| file.take(400).read_to_string(&mut text));
    // Between locking and writing there is nothing to read.
    if text.trim().is_empty() { "another process".into() } else { crate::error::shown(text.trim()) }
}

/// This process, as the lock file names it.
fn who() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host.or_else(|| std::env::var("HOSTNAME").or_else(|_| std::env::var("COMPUTERNAME")).ok());
    let host = host.map(|host| format!(" on {}", host.trim())).unwrap_or_default();
    let now = chrono::Local::now().format("%Y-%m-%d %H:%M:%S");
    format!("process {}{host} since {now}\n", std::process::id())
}

/// Whether the file that is open is the one at `path`.
fn is_this(file: &File, path: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        is_same_file(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())), path)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, is_same_file);
        path.exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_is_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        assert_eq!(FolderLock::holder(&folder), None);
        let first = FolderLock::take(&folder).unwrap();
        let error = FolderLock::take(&folder).unwrap_err().to_string();
        let own = format!("process {}", std::process::id());
        assert!(error.contains(&own) && error.contains("since 2") && error.contains("wait"), "{error}");
        assert!(FolderLock::holder(&folder).unwrap().contains(&own));
        drop(first);
        assert_eq!(FolderLock::holder(&folder), None);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        drop(FolderLock::take(&folder).unwrap());
    }

    #[test]
    fn what_a_dead_process_left_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LOCK_FILE), "process 1 on nowhere since 2020-01-01 00:00:00\n").unwrap();
        let lock = FolderLock::take(dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join(LOCK_FILE)).unwrap();
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
        drop(lock);
    }
}
