//! The cache on disk, laid out as `huggingface_hub` does:
//! `models--org--name/{refs/<revision>, snapshots/<commit>/<file>, blobs/<etag>}`, where a snapshot's files are links to blobs.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// What the cache has of one repository.
pub(super) struct Cache {
    repo: PathBuf,
    revision: String,
}

impl Cache {
    /// The part of `cache` for `repo` (`org/name`, of `models` or `datasets`) at `revision`.
    pub fn new(cache: &Path, kind: &str, repo: &str, revision: &str) -> Self {
        let repo = cache.join(format!("{kind}--{}", repo.replace('/', "--")));
        Self { repo, revision: revision.to_owned() }
    }

    /// A file of the revision, where it is there.
    pub fn get(&self, name: &str) -> Option<PathBuf> {
        let commit = fs::read_to_string(self.repo.join("refs").join(&self.revision));
        // A revision that is a commit needs no ref.
        let commit = commit.map_or_else(|_| self.revision.clone(), |commit| commit.trim().to_owned());
        let path = self.snapshot(&commit, name).ok()?;
        path.exists().then_some(path)
    }

    /// The files of the revision that are there, wherever they lie in the repository.
    pub fn files(&self) -> Vec<String> {
        let commit = fs::read_to_string(self.repo.join("refs").join(&self.revision));
        let commit = commit.map_or_else(|_| self.revision.clone(), |commit| commit.trim().to_owned());
        let mut found = Vec::new();
        if plain(&commit).is_ok() {
            list(&self.repo.join("snapshots").join(commit), "", &mut found);
        }
        found
    }

    /// A file of a commit, where it is there.
    pub fn at_commit(&self, commit: &str, name: &str) -> Option<PathBuf> {
        self.snapshot(commit, name).ok().filter(|path| path.exists())
    }

    /// Where the bytes with this etag lie.
    pub fn blob(&self, etag: &str) -> io::Result<PathBuf> {
        Ok(self.repo.join("blobs").join(plain(etag)?))
    }

    /// Puts a blob at its name in the snapshot of `commit`, and the revision at that commit.
    pub fn link(&self, commit: &str, name: &str, etag: &str) -> io::Result<PathBuf> {
        let path = self.snapshot(commit, name)?;
        let folder = path.parent().expect("in a snapshot");
        fs::create_dir_all(folder)?;
        let up = "../".repeat(name.split('/').count() + 1);
        let blob = PathBuf::from(format!("{up}blobs/{etag}"));
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink(blob, &path)?;
        #[cfg(not(unix))]
        fs::hard_link(folder.join(blob), &path)?;
        let reference = self.repo.join("refs").join(&self.revision);
        fs::create_dir_all(reference.parent().expect("below refs"))?;
        lowrank_files::write_atomic(&reference, commit.as_bytes()).map_err(io::Error::other)?;
        Ok(path)
    }

    fn snapshot(&self, commit: &str, name: &str) -> io::Result<PathBuf> {
        Ok(self.repo.join("snapshots").join(plain(commit)?).join(plain(name)?))
    }
}

/// The files below `folder`, with `before` in front of their names.
fn list(folder: &Path, before: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{before}{}", entry.file_name().to_string_lossy());
        match entry.path() {
            path if path.is_file() => found.push(name),
            path => list(&path, &format!("{name}/"), found),
        }
    }
}

/// A name that stays below the folder it is joined to.
fn plain(name: &str) -> io::Result<&str> {
    let parts: Vec<Component> = Path::new(name).components().collect();
    let below = !parts.is_empty() && parts.iter().all(|part| matches!(part, Component::Normal(_)));
    match below && !name.contains(['\\', '\0']) {
        true => Ok(name),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the hub names a file {}, which is outside its folder", lowrank_files::shown(name)),
        )),
    }
}
