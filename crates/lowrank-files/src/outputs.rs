//! Where results go: never over an input, over what is there only where that was asked for, and whole or not at all.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::{Error, Result};

/// Whether two paths name one file: by links too, hard or symbolic.
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    let (Ok(first), Ok(second)) = (fs::metadata(a), fs::metadata(b)) else { return false };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (first.dev(), first.ino()) == (second.dev(), second.ino())
    }
    #[cfg(not(unix))]
    {
        let _ = (first, second);
        matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
    }
}

/// Whether a file of this name belongs to a model or an adapter: its weights, configuration, tokenizer or templates.
fn is_of_a_model(name: &OsStr) -> bool {
    let kinds = ["safetensors", "bin", "pt", "pth", "gguf", "json", "jinja", "model"];
    let extension =
        Path::new(name).extension().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase();
    kinds.contains(&extension.as_str()) || ["vocab.txt", "merges.txt"].iter().any(|known| name == *known)
}

/// Checks that a result may be written to `output`, a file or a folder. `inputs` are what the command reads; of a folder of
/// a model or an adapter its files count.
///
/// # Errors
/// Where `output` is one of the inputs or holds one, or where it exists and not `force`. Devices and pipes are no files.
pub fn check_output(output: &Path, inputs: &[&Path], force: bool) -> Result<()> {
    let Ok(there) = fs::metadata(output) else { return Ok(()) };
    for input in inputs {
        let own =
            |entry: &fs::DirEntry| is_of_a_model(&entry.file_name()) && is_same_file(&entry.path(), output);
        let read = is_same_file(input, output)
            || fs::read_dir(input).is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|e| own(&e))))
            || there.is_dir() && is_inside(input, output);
        if read {
            let what = format!("is an input of this command ({}): choose another output", input.display());
            return Err(Error::file(output, what));
        }
    }
    match there.is_file() || there.is_dir() {
        true if !force => Err(Error::file(output, "exists; use `force` to replace it")),
        _ => Ok(()),
    }
}

/// Whether `path` is in `folder` or is the folder, links followed.
pub fn is_inside(path: &Path, folder: &Path) -> bool {
    matches!((path.canonicalize(), folder.canonicalize()), (Ok(path), Ok(folder)) if path.starts_with(&folder))
}

/// A result that is made beside the place where it will stand, and goes with everything in it unless it is kept.
pub struct Staged {
    folder: TempDir,
    path: PathBuf,
    target: PathBuf,
}

impl Staged {
    /// What will stand at `target`, a file or a folder.
    ///
    /// # Errors
    /// Where `target` names no file, or nothing can be made beside it.
    pub fn beside(target: &Path) -> Result<Self> {
        let name =
            target.file_name().ok_or_else(|| Error::file(target, "names no file or folder to write"))?;
        let parent =
            target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if fs::metadata(target).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
            return Err(Error::file(
                target,
                "is a device or a pipe, and the result needs a file or a folder",
            ));
        }
        fs::create_dir_all(parent).map_err(Error::io(parent))?;
        let folder =
            tempfile::Builder::new().prefix(".lowrank-").tempdir_in(parent).map_err(Error::io(parent))?;
        Ok(Self { path: folder.path().join(name), folder, target: target.to_owned() })
    }

    /// Where it is made.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves it to its place. A folder that is there goes, but for the files in it that belong to no model or adapter.
    ///
    /// # Errors
    /// Where it cannot be moved; what was there is there still.
    pub fn keep(self) -> Result<()> {
        let Self { folder, path, target } = self;
        // A link to the place stays one.
        let target = target.canonicalize().unwrap_or(target);
        if target.is_dir() && !path.is_dir() {
            return Err(Error::file(&target, "is a folder, and the result is a file"));
        }
        if !target.exists() || target.is_file() && path.is_file() {
            return fs::rename(&path, &target).map_err(Error::io(&target));
        }
        exchange(&path, &target).map_err(Error::io(&target))?;
        let former = path;
        if former.is_dir() {
            for entry in fs::read_dir(&former).map_err(Error::io(&former))? {
                let name = entry.map_err(Error::io(&former))?.file_name();
                let (from, to) = (former.join(&name), target.join(&name));
                if (from.is_dir() || !is_of_a_model(&name)) && !to.exists() {
                    fs::rename(&from, &to).map_err(Error::io(&to))?;
                }
            }
        }
        drop(folder);
        Ok(())
    }
}

/// Exchanges what stands at two paths: in one step where the file system can, so that a killed process leaves the one or the
/// other.
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE) {
            Err(Errno::INVAL | Errno::NOSYS) => {}
            done => return Ok(done?),
        }
    }
    let between = a.with_file_name(".between");
    fs::rename(b, &between)?;
    if let Err(error) = fs::rename(a, b) {
        let _ = fs::rename(&between, b);
        return Err(error);
    }
    fs::rename(between, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (TempDir, impl Fn(&str) -> PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        let put = move |name: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
            path
        };
        (dir, put)
    }

    #[test]
    fn inputs_are_refused_by_any_name() {
        let (dir, put) = place();
        let (data, weights) = (put("data.jsonl"), put("model/model.safetensors"));
        let (notes, other) = (put("model/notes.md"), put("other"));
        let model = dir.path().join("model");
        let inputs = [data.as_path(), &model];
        let link = dir.path().join("link");
        let mut same = vec![data.clone(), model.join("../data.jsonl"), weights.clone(), model.clone()];
        fs::hard_link(&data, &link).unwrap();
        same.push(link);
        #[cfg(unix)]
        for (to, name) in [(&data, "soft"), (&weights, "soft-weights"), (&model, "soft-model")] {
            let link = dir.path().join(name);
            std::os::unix::fs::symlink(to, &link).unwrap();
            same.push(link);
        }
        // The folder that holds an input.
        same.push(dir.path().to_owned());
        for output in same {
            let error = check_output(&output, &inputs, true).unwrap_err().to_string();
            assert!(error.contains("is an input of this command"), "{}: {error}", output.display());
        }
        for output in [notes, other] {
            let error = check_output(&output, &inputs, false).unwrap_err().to_string();
            assert!(error.contains("exists; use `force`"), "{error}");
            check_output(&output, &inputs, true).unwrap();
        }
        check_output(&dir.path().join("new"), &inputs, false).unwrap();
        #[cfg(unix)]
        check_output(Path::new("/dev/null"), &inputs, false).unwrap();
    }

    #[test]
    fn what_is_made_takes_the_place_of_what_is_there() {
        let (dir, put) = place();
        let target = dir.path().join("out");
        for name in
            ["out/model.safetensors", "out/model-00001-of-00002.safetensors", "out/notes.md", "out/runs/log"]
        {
            put(name);
        }
        let staged = Staged::beside(&target).unwrap();
        fs::create_dir(staged.path()).unwrap();
        fs::write(staged.path().join("model.safetensors"), "new").unwrap();
        assert_eq!(fs::read(target.join("model.safetensors")).unwrap(), b"out/model.safetensors");
        staged.keep().unwrap();
        assert_eq!(fs::read(target.join("model.safetensors")).unwrap(), b"new");
        assert!(!target.join("model-00001-of-00002.safetensors").exists());
        assert!(target.join("notes.md").exists() && target.join("runs/log").exists());
        // Dropped, it leaves no trace; a file does not replace a folder.
        let dropped = Staged::beside(&target).unwrap();
        fs::write(dropped.path(), "file").unwrap();
        assert!(dropped.keep().unwrap_err().to_string().contains("is a folder"));
        drop(Staged::beside(&target).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let file = put("a.gguf");
        let staged = Staged::beside(&file).unwrap();
        fs::write(staged.path(), "new").unwrap();
        staged.keep().unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(Staged::beside(Path::new("..")).is_err());
        // A folder takes the place of a file, and no device is replaced.
        let staged = Staged::beside(&file).unwrap();
        fs::create_dir(staged.path()).unwrap();
        staged.keep().unwrap();
        assert!(file.is_dir());
        #[cfg(unix)]
        assert!(Staged::beside(Path::new("/dev/null")).is_err());
    }
}
