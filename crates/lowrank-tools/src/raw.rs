//! The tensors of an adapter as its file names them, whatever they mean: for what changes every tensor alike.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use lowrank_adapters::adapter_folder;
use lowrank_files::write_atomic;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::formats::{FileFormat, diffusers, gguf, loralib, mlx, peft};
use crate::tensor::{self, Named};

/// An adapter of any method in its own form.
#[derive(Debug)]
pub struct Raw {
    /// The tensors by the names of the file.
    pub tensors: Named,
    /// The configuration beside them, or nothing.
    pub config: Map<String, Value>,
    form: Form,
    metadata: HashMap<String, String>,
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Peft,
    /// A folder with a configuration and a file of this name.
    Mlx,
    /// A folder with one file.
    Diffusers,
    Safetensors,
    Pytorch,
}

impl Raw {
    /// Reads an adapter folder, or a file of tensors.
    ///
    /// # Errors
    /// If it is neither, or damaged.
    pub fn read(path: &Path) -> Result<Self> {
        let format = FileFormat::detect(path).ok();
        let (file, form, config) = match format {
            None if path.is_dir() => return Err(Error::file(path, "is not the folder of an adapter")),
            Some(format) if format == peft::FORMAT => {
                let (config, tensors) = peft::read_raw(path)?;
                return Ok(Self { tensors, config, form: Form::Peft, metadata: HashMap::new() });
            }
            Some(format) if format == gguf::FORMAT => {
                let what = "is a GGUF adapter: use lowrank convert, which takes a number type too";
                return Err(Error::file(path, what));
            }
            Some(format) if format == mlx::FORMAT => {
                let folder = adapter_folder(path);
                (folder.join(mlx::TENSORS_FILE), Form::Mlx, mlx::read_config(folder)?)
            }
            Some(format) if format == diffusers::FORMAT && path.is_dir() => {
                (path.join(diffusers::TENSORS_FILE), Form::Diffusers, Map::new())
            }
            _ => (path.to_owned(), Form::Safetensors, Map::new()),
        };
        let tensors = tensor::read(&file)?;
        let metadata = tensor::metadata(&file)?;
        let form = if metadata.is_none() { Form::Pytorch } else { form };
        Ok(Self { tensors, config, form, metadata: metadata.unwrap_or_default() })
    }

    /// Writes it in the form that was read.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let metadata: Vec<(&str, &str)> =
            self.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let folder = |name: &str| -> Result<PathBuf> {
            std::fs::create_dir_all(path).map_err(Error::io(path))?;
            Ok(path.join(name))
        };
        match self.form {
            Form::Peft => peft::write_raw(path, &self.config, &self.tensors),
            Form::Mlx => {
                tensor::write(&folder(mlx::TENSORS_FILE)?, &self.tensors, &metadata)?;
                let text = serde_json::to_string_pretty(&self.config).expect("plain data") + "\n";
                Ok(write_atomic(&path.join(peft::CONFIG_FILE), text.as_bytes())?)
            }
            Form::Diffusers => tensor::write(&folder(diffusers::TENSORS_FILE)?, &self.tensors, &metadata),
            Form::Safetensors => tensor::write(path, &self.tensors, &metadata),
            Form::Pytorch => loralib::save(path, &self.tensors),
        }
    }
}
