//! Uploads to the Hugging Face hub: of an adapter or a model, and of a run at its end.

use std::fs;
use std::path::{Path, PathBuf};

use lowrank_files::{IoError, shell_quoted};
use lowrank_models::hub::Repository;
use lowrank_train::Summary;

use crate::options::TrainOptions;
use crate::{Error, Result};

/// Files of adapters and models that are uploaded, by name.
const NAMES: [&str; 17] = [
    "README.md",
    "adapter_config.json",
    "adapter_model.bin",
    "task.json",
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "Modelfile",
];

/// The ends of the others.
const ENDS: [&str; 3] = [".safetensors", ".safetensors.index.json", ".gguf"];

/// What was uploaded.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// The page of the repository.
    pub page: String,
    /// The files.
    pub files: Vec<String>,
    /// Files and folders that are no part of an adapter or a model and were left out.
    pub left_out: Vec<String>,
}

/// Uploads the adapter or the model in a folder, or one file of a model, to the repository `name` (`org/name`, or a name of the
/// token's owner), which is made where it does not exist. The access token is `HF_TOKEN`'s, or the one that `hf auth login` stored.
///
/// # Errors
/// Where there is nothing to upload, or the hub refuses.
pub fn push(path: &Path, name: &str, private: bool, message: &str) -> Result<Pushed> {
    let contents = Contents::of(path)?;
    contents.send(&Repository::create(name, private)?, message)
}

/// What of a folder is uploaded.
struct Contents {
    files: Vec<(String, PathBuf)>,
    left_out: Vec<String>,
}

impl Contents {
    fn of(path: &Path) -> Result<Self> {
        let mut contents = Self { files: Vec::new(), left_out: Vec::new() };
        let entry = |path: PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, path)
        };
        let mut entries = Vec::new();
        match fs::metadata(path).map_err(IoError::at(path))?.is_dir() {
            true => {
                for found in fs::read_dir(path).map_err(IoError::at(path))? {
                    entries.push(entry(found.map_err(IoError::at(path))?.path()));
                }
            }
            false => entries.push(entry(path.to_owned())),
        }
        entries.sort();
        for (name, path) in entries {
            let known = NAMES.contains(&name.as_str()) || ENDS.iter().any(|end| name.ends_with(end));
            match known && path.is_file() {
                true => contents.files.push((name, path)),
                false => contents.left_out.push(name),
            }
        }
        let holds = |(name, _): &(String, PathBuf)| {
            ENDS.iter().any(|end| name.ends_with(end)) || name == "adapter_model.bin"
        };
        match contents.files.iter().any(holds) {
            true => Ok(contents),
            false => Err(Error::Usage(format!(
                "{}: holds no adapter and no model: name a folder that `train`, `merge` or `convert` wrote, or a .gguf file",
                path.display()
            ))),
        }
    }

    fn send(self, repository: &Repository, message: &str) -> Result<Pushed> {
        repository.commit(&self.files, message)?;
        let files = self.files.into_iter().map(|(name, _)| name).collect();
        Ok(Pushed { page: repository.page(), files, left_out: self.left_out })
    }
}

/// Makes the repository of a run before it begins, so that what the hub refuses is refused then.
pub(crate) fn repository_of(options: &TrainOptions) -> Result<Option<Repository>> {
    let name = options.hub_repository()?;
    Ok(name.map(|name| Repository::create(&name, options.hub_private_repo)).transpose()?)
}

/// Uploads a run that is complete.
///
/// # Errors
/// With the summary, and the command that uploads it again.
pub(crate) fn push_run(repository: &Repository, options: &TrainOptions, summary: &Summary) -> Result<Pushed> {
    let pushed = Contents::of(&options.out).and_then(|contents| contents.send(repository, "End of training"));
    pushed.map_err(|error| {
        let (out, private) = (shell_quoted(&options.out.to_string_lossy()), if options.hub_private_repo { " --private" } else { "" });
        Error::NotPushed {
            summary: Box::new(summary.clone()),
            what: format!(
                "{error}. Nothing is lost: the run is complete and its adapter is in {}; upload it with `lowrank push {out} {}{private}`",
                options.out.display(),
                repository.id()
            ),
        }
    })
}
