//! The formats adapters come in, one file each: a reader and a writer between its file and [`Lora`]. A format is added by its
//! file, a `mod` line and a row of [`FileFormat::ALL`].

pub mod diffusers;
pub mod format;
pub mod gguf;
pub mod kohya;
pub mod loralib;
pub mod mlx;
pub mod peft;
mod pipeline;
mod sd_names;

use std::path::{Path, PathBuf};

pub use format::{Candidate, FileFormat, Options};

use crate::error::{Error, Result};
use crate::lora::Lora;

impl FileFormat {
    /// All formats; the first that matches a file or folder is its format.
    pub const ALL: [Self; 6] =
        [mlx::FORMAT, peft::FORMAT, kohya::FORMAT, diffusers::FORMAT, loralib::FORMAT, gguf::FORMAT];

    /// The names of all formats, with this between them.
    pub fn names(between: &str) -> String {
        Self::ALL.map(|format| format.name).join(between)
    }

    /// The format of that name.
    ///
    /// # Errors
    /// Lists the names.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|format| format.name == name).ok_or_else(|| {
            Error::Usage(lowrank_files::unknown("adapter format", name, Self::ALL.map(|format| format.name)))
        })
    }

    /// The format of what lies at `path`, by its names and content.
    ///
    /// # Errors
    /// If it is not known by them.
    pub fn detect(path: &Path) -> Result<Self> {
        let candidate = Candidate::open(path)?;
        if candidate.is_peft_alone() {
            return Err(Error::file(path, peft::ALONE));
        }
        Self::ALL.into_iter().find(|format| (format.matches)(&candidate)).ok_or_else(|| {
            let names = Self::names(", ");
            Error::file(
                path,
                format!("is not an adapter in a known format; if it is one of {names}, say so with `from`"),
            )
        })
    }
}

/// Reads an adapter.
///
/// # Errors
/// If the file is damaged, or holds what the format has no meaning for or no numbers (named).
pub fn read(path: &Path, format: FileFormat, options: &Options) -> Result<Lora> {
    let lora = pipeline::selected((format.read)(path, options)?, path, options)?;
    if lora.pairs.is_empty() {
        return Err(Error::file(path, format!("holds no LoRA pairs of the format {}", format.name)));
    }
    lora.check_finite(path)?;
    Ok(lora)
}

/// Writes an adapter; returns the path of what was written.
///
/// # Errors
/// Names what the format has no place for; nothing is written then.
pub fn write(lora: &Lora, path: &Path, format: FileFormat, options: &Options) -> Result<PathBuf> {
    if format != kohya::FORMAT {
        pipeline::only_paths(lora, format.name)?;
    }
    (format.write)(lora, path, options)?;
    Ok(path.to_owned())
}
