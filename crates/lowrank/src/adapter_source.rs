//! Adapters in other formats than PEFT's (GGUF, MLX): converted for the run that reads them.

use std::path::{Path, PathBuf};

use lowrank_tools::{FileFormat, Options, formats};
use tempfile::TempDir;

use crate::{Error, Result};

/// The format of an adapter that is none of PEFT's.
pub(crate) fn other_format(path: &Path) -> Option<FileFormat> {
    FileFormat::detect(path).ok().filter(|format| *format != formats::peft::FORMAT)
}

/// PEFT's folder of an adapter.
pub(crate) struct PeftFolder {
    /// Where it is.
    pub path: PathBuf,
    /// Removed with this.
    _made: Option<TempDir>,
}

impl PeftFolder {
    /// That of the adapter at `path` for the base at `base`.
    ///
    /// # Errors
    /// If the file does not say all that PEFT needs, or is damaged.
    pub fn of(path: &Path, base: &Path) -> Result<Self> {
        let Some(format) = other_format(path) else {
            return Ok(Self { path: path.to_owned(), _made: None });
        };
        if format == formats::loralib::FORMAT {
            return Err(Error::Usage(format!(
                "{path} is a loralib checkpoint, which does not hold its alpha: convert it first (lowrank convert {path} \
                 --alpha ALPHA --to peft --out DIR)",
                path = path.display()
            )));
        }
        let options = Options { base: Some(base.to_string_lossy().into_owned()), ..Options::default() };
        let lora = formats::read(path, format, &options)?;
        let made = TempDir::new().map_err(lowrank_files::IoError::at(&std::env::temp_dir()))?;
        formats::write(&lora, made.path(), formats::peft::FORMAT, &options)?;
        Ok(Self { path: made.path().to_owned(), _made: Some(made) })
    }
}
