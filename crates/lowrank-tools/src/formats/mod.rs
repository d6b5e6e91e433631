//! The formats adapters come in, each a reader and a writer between its file and [`Lora`].

pub mod diffusers;
pub mod gguf;
pub mod kohya;
pub mod loralib;
pub mod mlx;
pub mod peft;
mod sd_names;

use std::path::{Path, PathBuf};

use crate::{Error, Lora, Result};

/// A format of adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFormat {
    /// PEFT's folder: `adapter_config.json` and `adapter_model.safetensors` (or `.bin`).
    Peft,
    /// A checkpoint of loralib: PyTorch's `.bin` or `.pt` with `PATH.lora_A` and `PATH.lora_B`.
    Loralib,
    /// An adapter of llama.cpp.
    Gguf,
    /// MLX's folder: `adapter_config.json` and `adapters.safetensors`.
    Mlx,
    /// kohya's (and A1111's) safetensors file for Stable Diffusion.
    Kohya,
    /// The file of diffusers: `pytorch_lora_weights.safetensors`.
    Diffusers,
}

impl FileFormat {
    /// All formats.
    pub const ALL: [Self; 6] =
        [Self::Peft, Self::Loralib, Self::Gguf, Self::Mlx, Self::Kohya, Self::Diffusers];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::Loralib => "loralib",
            Self::Gguf => "gguf",
            Self::Mlx => "mlx",
            Self::Kohya => "kohya",
            Self::Diffusers => "diffusers",
        }
    }

    /// The format of that name.
    ///
    /// # Errors
    /// Lists the names.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.into_iter().map(Self::name).collect();
            Error::Usage(format!("unknown adapter format {name:?}: one of {}", names.join(", ")))
        })
    }

    /// The format of what lies at `path`, where that can be told.
    ///
    /// # Errors
    /// Where it cannot.
    pub fn detect(path: &Path) -> Result<Self> {
        let has = |name: &str| path.join(name).is_file();
        if has(mlx::TENSORS_FILE) {
            return Ok(Self::Mlx);
        }
        if has(peft::CONFIG_FILE) {
            return Ok(Self::Peft);
        }
        if has(diffusers::TENSORS_FILE) {
            return Ok(Self::Diffusers);
        }
        let unknown = || {
            let names: Vec<&str> = Self::ALL.into_iter().map(Self::name).collect();
            Error::file(
                path,
                format!("is no adapter that is known by its name or content; say --from {}", names.join("|")),
            )
        };
        if !path.is_file() {
            return Err(unknown());
        }
        if path.extension().is_some_and(|e| e == "gguf") {
            let file = lowrank_models::files::Gguf::open(path)?;
            // A model has the same ending.
            return match file.string("general.type")? {
                Some("adapter") => Ok(Self::Gguf),
                _ => Err(unknown()),
            };
        }
        let tensors = lowrank_models::Tensors::open(path)?;
        let any = |end: &str| tensors.names().any(|name| name.ends_with(end));
        match () {
            () if any(".lora_down.weight") => Ok(Self::Kohya),
            () if any(".lora_A.weight") => Ok(Self::Diffusers),
            () if any(".lora_A") => Ok(Self::Loralib),
            () => Err(unknown()),
        }
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
    /// Which of the models of a diffusion pipeline is meant where only one is: `unet`, `text_encoder`,
    /// `text_encoder_2`.
    pub component: Option<String>,
}

/// Reads an adapter.
///
/// # Errors
/// Where the file is damaged, or holds what the format has no meaning for (named).
pub fn read(path: &Path, format: FileFormat, options: &Options) -> Result<Lora> {
    let lora = match format {
        FileFormat::Peft => peft::read(path),
        FileFormat::Loralib => loralib::read(path, options),
        FileFormat::Gguf => gguf::read(path, options),
        FileFormat::Mlx => mlx::read(path),
        FileFormat::Kohya => kohya::read(path),
        FileFormat::Diffusers => diffusers::read(path),
    }?;
    if lora.pairs.is_empty() {
        return Err(Error::file(path, format!("holds no LoRA pairs of the format {}", format.name())));
    }
    Ok(lora)
}

/// Writes an adapter; returns the path of what was written.
///
/// # Errors
/// Names what the format has no place for; nothing is written then.
pub fn write(lora: &Lora, path: &Path, format: FileFormat, options: &Options) -> Result<PathBuf> {
    match format {
        FileFormat::Peft => peft::write(lora, path, options),
        FileFormat::Loralib => loralib::write(lora, path, options),
        FileFormat::Gguf => gguf::write(lora, path, options),
        FileFormat::Mlx => mlx::write(lora, path),
        FileFormat::Kohya => kohya::write(lora, path, options),
        FileFormat::Diffusers => diffusers::write(lora, path, options),
    }?;
    Ok(path.to_owned())
}

/// Two halves of a pair as they are found one by one.
#[derive(Default)]
pub(crate) struct Halves {
    pub a: Option<crate::Tensor>,
    pub b: Option<crate::Tensor>,
    pub alpha: Option<f64>,
}

/// Makes pairs of halves; `alpha` where a pair has none of its own (its argument is the rank).
///
/// # Errors
/// Names the modules with one half only.
pub(crate) fn pairs(
    path: &Path,
    halves: std::collections::BTreeMap<String, Halves>,
    alpha: impl Fn(&str, usize) -> f64,
) -> Result<std::collections::BTreeMap<String, crate::Pair>> {
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
            let pair = crate::Pair::new(&name, a, b, value, crate::Kind::Linear)?;
            Ok((name, pair))
        })
        .collect()
}

/// Refuses tensors trained whole and embeddings, where a format has no place for them.
pub(crate) fn only_linear(lora: &Lora, format: FileFormat) -> Result<()> {
    let mut names: Vec<String> = lora.saved.keys().cloned().collect();
    names.extend(lora.pairs.iter().filter(|(_, p)| p.kind != crate::Kind::Linear).map(|(n, _)| n.clone()));
    match names.is_empty() {
        true => Ok(()),
        false => Err(Error::names(format!("the format {} has no place for", format.name()), names)),
    }
}
