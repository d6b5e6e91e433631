//! What a format of adapters is, and what several of them share.

use std::collections::BTreeMap;
use std::path::Path;

use lowrank_adapters::{CONFIG_FILE, adapter_folder};
use lowrank_files::Tensors;
use lowrank_files::{Gguf, is_gguf};

use crate::error::{Error, Result};
use crate::lora::{Kind, Lora, Pair};
use crate::tensor::Tensor;

/// A format of adapters: one file of this folder and one row of [`FileFormat::ALL`].
#[derive(Clone, Copy)]
pub struct FileFormat {
    /// Its name on the command line.
    pub name: &'static str,
    /// Whether it is the format of what lies at a path.
    pub matches: fn(&Candidate<'_>) -> bool,
    /// Whether its files may hold adapters for several models of a diffusion pipeline.
    pub pipeline: bool,
    /// Reads an adapter.
    pub read: fn(&Path, &Options) -> Result<Lora>,
    /// Writes an adapter.
    pub write: fn(&Lora, &Path, &Options) -> Result<()>,
}

impl PartialEq for FileFormat {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for FileFormat {}

impl std::fmt::Debug for FileFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A file or folder whose format is asked for.
pub struct Candidate<'a> {
    path: &'a Path,
    tensors: Option<Tensors>,
    gguf: Option<Gguf>,
}

impl<'a> Candidate<'a> {
    /// Opens what lies at `path`.
    ///
    /// # Errors
    /// If it is a file that cannot be read.
    pub fn open(path: &'a Path) -> Result<Self> {
        let mut candidate = Self { path, tensors: None, gguf: None };
        let found = std::fs::metadata(path).map_err(lowrank_files::Error::io(path))?;
        if found.is_file() && !path.ends_with(CONFIG_FILE) {
            match is_gguf(path) {
                true => candidate.gguf = Some(Gguf::open(path)?),
                false => candidate.tensors = Some(Tensors::open(path)?),
            }
        }
        Ok(candidate)
    }

    /// Whether it is a folder with a file of that name.
    pub fn has_file(&self, name: &str) -> bool {
        self.path.join(name).is_file()
    }

    /// Whether it is the file of that name, or a folder with it, with a configuration beside it.
    pub fn is_configured(&self, name: &str) -> bool {
        let folder = adapter_folder(self.path);
        let named = self.path == folder || self.path.ends_with(CONFIG_FILE) || self.path.ends_with(name);
        named && folder.join(CONFIG_FILE).is_file() && folder.join(name).is_file()
    }

    /// Whether it is PEFT's folder, or a file of tensors beside PEFT's configuration.
    pub fn is_peft(&self) -> bool {
        let of_others = [".lora_down.weight", ".exp_avg", ".exp_avg_sq"];
        let other = self.gguf.is_some() || of_others.iter().any(|end| self.has_tensor(end));
        !other && adapter_folder(self.path).join(CONFIG_FILE).is_file()
    }

    /// Whether it is a file of tensors, one of which has a name that ends so.
    pub fn has_tensor(&self, end: &str) -> bool {
        self.tensors.as_ref().is_some_and(|tensors| tensors.names().any(|name| name.ends_with(end)))
    }

    /// Whether it is a file of tensors with PEFT's names, and without the configuration that says their alpha.
    pub fn is_peft_alone(&self) -> bool {
        let peft = |tensors: &Tensors| tensors.names().any(|name| name.starts_with("base_model."));
        self.tensors.as_ref().is_some_and(peft) && !self.is_peft()
    }

    /// Whether it is a GGUF file of that `general.type`.
    pub fn is_gguf(&self, kind: &str) -> bool {
        self.gguf.as_ref().is_some_and(|file| file.string("general.type").is_ok_and(|is| is == Some(kind)))
    }
}

/// What a format does not say by itself.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `alpha`, for files that have none (loralib).
    pub alpha: Option<f64>,
    /// Which parts of a fused layer are adapted, for loralib's MergedLinear: `[true, false, true]` for q and v.
    pub enable_lora: Vec<bool>,
    /// The base model: its architecture decides the row order of q and k in GGUF.
    pub base: Option<String>,
    /// Which of the models of a diffusion pipeline is meant where only one is: `unet`, `transformer`, `text_encoder` and
    /// others. It is the one that is read of a file with several, and what stands before the paths of a file with none.
    pub component: Option<String>,
}

/// Two halves of a pair as they are found one by one.
#[derive(Default)]
pub(crate) struct Halves {
    pub a: Option<Tensor>,
    pub b: Option<Tensor>,
    pub alpha: Option<f64>,
}

/// Makes pairs of halves; `alpha` where a pair has none of its own (its argument is the rank).
///
/// # Errors
/// Names the modules with one half only.
pub(crate) fn pairs(
    path: &Path,
    halves: BTreeMap<String, Halves>,
    alpha: impl Fn(&str, usize) -> f64,
) -> Result<BTreeMap<String, Pair>> {
    let single: Vec<String> =
        halves.iter().filter(|(_, h)| h.a.is_none() || h.b.is_none()).map(|(name, _)| name.clone()).collect();
    if !single.is_empty() {
        return Err(Error::names(format!("{}: only one matrix of the two", path.display()), single));
    }
    halves
        .into_iter()
        .filter_map(|(name, h)| Some((name, h.a?, h.b?, h.alpha)))
        .map(|(name, a, b, own)| {
            let value = own.unwrap_or_else(|| alpha(&name, a.rows()));
            let pair = Pair::new(&name, a, b, value, Kind::Linear)?;
            Ok((name, pair))
        })
        .collect()
}

/// Refuses tensors trained whole and embeddings, where a format has no place for them.
pub(crate) fn only_linear(lora: &Lora, format: &FileFormat) -> Result<()> {
    let mut names: Vec<String> = lora.saved.keys().cloned().collect();
    names.extend(lora.pairs.iter().filter(|(_, p)| p.kind != Kind::Linear).map(|(n, _)| n.clone()));
    match names.is_empty() {
        true => Ok(()),
        false => Err(Error::names(format!("the format {} has no place for", format.name), names)),
    }
}
