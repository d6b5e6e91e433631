//! The folder of a run: who writes to it, what may be replaced in it, and when.
//!
//! With `force` the files of the former run are set aside once everything is checked, and gone before the first step. A run
//! that is killed in between is put back by the next one.

use std::fs;
use std::path::{Path, PathBuf};

use lowrank_adapters::{CHAT_TEMPLATE_FILE, CONFIG_FILE, TASK_FILE, TENSORS_FILE};
use lowrank_files::{FolderLock, check_output, is_inside, is_same_file};
use lowrank_train::checkpoint;
use lowrank_train::log::JsonLog;

use crate::options::TrainOptions;
use crate::{Error, Result, card, sample_prompts, training_args};

/// The log of a run in its folder.
pub const LOG_FILE: &str = "log.jsonl";

/// Files that a run writes, beside its checkpoints.
const FILES: [&str; 8] = [
    CONFIG_FILE,
    TENSORS_FILE,
    TASK_FILE,
    CHAT_TEMPLATE_FILE,
    LOG_FILE,
    training_args::FILE,
    card::FILE,
    lowrank_train::reference::FILE,
];

/// The former run while the new one begins, and while it is removed.
const ASIDE: &str = ".replaced";
const GONE: &str = ".removed";

/// A run's folder, locked.
pub(crate) struct RunFolder {
    path: PathBuf,
    lock: Option<FolderLock>,
    /// Whether it was made here: then it goes again, should nothing be written to it.
    made: bool,
}

impl RunFolder {
    /// Locks the folder that `options` name, and checks that the run may write what it will.
    ///
    /// # Errors
    /// Where another process writes to it, a file that the run reads would be overwritten, or something is there that was not
    /// to be replaced; with `resume`, where there is nothing to go on from.
    pub fn open(options: &TrainOptions) -> Result<Self> {
        check_inputs(options)?;
        let path = options.out.clone();
        let made = !path.exists();
        let lock = Some(FolderLock::take(&path)?);
        let folder = Self { path, lock, made };
        put_back(&folder.path)?;
        if let Some(log) = options.log_json.as_ref().filter(|_| !options.resume) {
            check_output(log, &[], options.force)?;
        }
        match options.resume {
            true => folder.check_resume()?,
            false if options.force => {}
            false => folder.check_free()?,
        }
        Ok(folder)
    }

    /// Whether there is something that a run or a tool wrote.
    fn holds(&self, names: &[&str]) -> Option<PathBuf> {
        names.iter().map(|name| self.path.join(name)).find(|path| path.exists())
    }

    fn check_resume(&self) -> Result<()> {
        checkpoint::settle(&self.path)?;
        if checkpoint::exists(&self.path) {
            return Ok(());
        }
        let advice = match self.holds(&FILES) {
            Some(_) => "use `force` in its place to start the run again",
            None => "drop `resume` to start a run",
        };
        Err(Error::Usage(format!("{}: no checkpoint to resume from; {advice}", self.path.display())))
    }

    fn check_free(&self) -> Result<()> {
        let dir = self.path.display();
        let refused = |what: String| Err(Error::Usage(what));
        if checkpoint::exists(&self.path) {
            return refused(format!(
                "{dir} holds another run: use `resume` to continue it or `force` to replace it"
            ));
        }
        if self.holds(&[CONFIG_FILE, TENSORS_FILE]).is_some() {
            return refused(format!(
                "{dir} holds an adapter: use `force` to replace it, or choose another `out`"
            ));
        }
        let Some(found) = self.holds(&FILES) else { return Ok(()) };
        if JsonLog::is_log(&self.path.join(LOG_FILE)) {
            return refused(format!("{dir} holds a run without a checkpoint: use `force` to start it again"));
        }
        refused(format!(
            "{} is there already: choose another `out`, or use `force` to replace it",
            found.display()
        ))
    }

    /// Sets aside what a former run left, for a run that replaces it.
    ///
    /// # Errors
    /// Where a file cannot be moved; what was there is there still.
    pub fn set_aside(&self) -> Result<SetAside> {
        let mut aside = SetAside { folder: self.path.clone(), names: Vec::new() };
        let place = self.path.join(ASIDE);
        for name in FILES.iter().chain(&[checkpoint::FOLDER]).filter(|name| self.path.join(name).exists()) {
            fs::create_dir_all(&place).map_err(Error::io(&place))?;
            let path = self.path.join(name);
            fs::rename(&path, place.join(name)).map_err(Error::io(&path))?;
            aside.names.push((*name).to_owned());
        }
        Ok(aside)
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        // The lock is a file in the folder.
        self.lock = None;
        if self.made {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// A former run that is to be replaced; dropped, it is put back.
pub(crate) struct SetAside {
    folder: PathBuf,
    names: Vec<String>,
}

impl SetAside {
    /// Removes it for good.
    ///
    /// # Errors
    /// Where a file cannot be removed.
    pub fn discard(mut self) -> Result<()> {
        if std::mem::take(&mut self.names).is_empty() {
            return Ok(());
        }
        let (aside, gone) = (self.folder.join(ASIDE), self.folder.join(GONE));
        fs::rename(&aside, &gone).map_err(Error::io(&aside))?;
        fs::remove_dir_all(&gone).map_err(Error::io(&gone))
    }
}

impl Drop for SetAside {
    fn drop(&mut self) {
        if !self.names.is_empty() {
            let _ = put_back(&self.folder);
        }
    }
}

/// Puts back the run that was set aside in `folder` by one that saved nothing, and removes what was removed half.
fn put_back(folder: &Path) -> Result<()> {
    let (aside, gone) = (folder.join(ASIDE), folder.join(GONE));
    if gone.exists() {
        fs::remove_dir_all(&gone).map_err(Error::io(&gone))?;
    }
    if !aside.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(&aside).map_err(Error::io(&aside))? {
        let name = entry.map_err(Error::io(&aside))?.file_name();
        let (from, to) = (aside.join(&name), folder.join(&name));
        if to.is_dir() {
            fs::remove_dir_all(&to).map_err(Error::io(&to))?;
        }
        fs::rename(&from, &to).map_err(Error::io(&from))?;
    }
    fs::remove_dir(&aside).map_err(Error::io(&aside))
}

/// Checks that nothing the run writes is a file that it reads.
fn check_inputs(options: &TrainOptions) -> Result<()> {
    let TrainOptions { out, data, eval_data, init_adapter, .. } = options;
    let template = options.chat_template.as_ref().map(PathBuf::from);
    let model = PathBuf::from(&options.model);
    let data = [Some(data), eval_data.as_ref()].into_iter().flatten().flat_map(|data| &data.files);
    let prompts = options.sample_prompts.as_deref().and_then(sample_prompts::file).map(Path::to_owned);
    let others =
        [init_adapter.as_ref(), template.as_ref(), Some(&model), prompts.as_ref()].into_iter().flatten();
    let read: Vec<&Path> = data.map(|file| file.path.as_path()).chain(others.map(PathBuf::as_path)).collect();
    let log = options.log_json.as_deref();
    for output in FILES.iter().map(|name| out.join(name)).chain(log.map(Path::to_owned)) {
        check_output(&output, &read, true)?;
    }
    let mut folders = [&model].into_iter().chain(init_adapter);
    if let Some(folder) = folders.find(|folder| is_same_file(folder, out)) {
        let what = "is read by this run, and `out` is the same folder: choose another `out`";
        return Err(Error::Usage(format!("{} {what}", folder.display())));
    }
    let checkpoints = out.join(checkpoint::FOLDER);
    if let Some(inside) = read.iter().find(|path| options.force && is_inside(path, &checkpoints)) {
        let what = "is part of the run that `force` replaces: choose another `out`";
        return Err(Error::Usage(format!("{} {what}", inside.display())));
    }
    let own = |log: &Path| {
        let folder = log.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = log.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name != LOG_FILE && FILES.contains(&name) && (folder == out || is_same_file(folder, out))
    };
    match log.filter(|log| own(log)) {
        Some(log) => Err(Error::Usage(format!("`log_json` {} is another file of the run", log.display()))),
        None => Ok(()),
    }
}
