//! kohya's files for Stable Diffusion, which A1111 and ComfyUI read too: `NAME.lora_down.weight` (A),
//! `NAME.lora_up.weight` (B) and `NAME.alpha`, where NAME is `lora_unet_` or `lora_te_` and the module path of
//! diffusers with underscores. Convolutions have `[r, K, h, w]` and `[O, r, 1, 1]`. A NAME of another model is kept as it is.

use std::path::Path;

use crate::error::Result;
use crate::formats::format::{FileFormat, Options, only_linear, pairs};
use crate::formats::pipeline::{self, Part, metadata, with_component};
use crate::formats::sd_names::{dotted, underscored};
use crate::lora::{Lora, PairNames};
use crate::tensor;

/// kohya's (and A1111's) safetensors file for Stable Diffusion.
pub const FORMAT: FileFormat = FileFormat {
    name: "kohya",
    matches: |at| at.has_tensor(".lora_down.weight"),
    pipeline: true,
    read,
    write,
};

/// Endings of the tensors of a pair.
const ENDS: [(&str, Part); 3] =
    [(".lora_down.weight", Part::A), (".lora_up.weight", Part::B), (".alpha", Part::Alpha)];

/// Reads a kohya file. Module paths of Stable Diffusion begin with the model's name in diffusers: `unet.`,
/// `text_encoder.`.
///
/// # Errors
/// Names the tensors of other methods (LoHa, DoRA, Tucker).
pub fn read(path: &Path, _: &Options) -> Result<Lora> {
    let found = pipeline::read(path, FORMAT.name, |name| {
        let (module, part) = ENDS.iter().find_map(|(end, part)| Some((name.strip_suffix(end)?, *part)))?;
        Some((dotted(module).unwrap_or_else(|| module.to_owned()), part)).filter(|_| !module.is_empty())
    })?;
    // Without alpha kohya takes the rank.
    let pairs = pairs(path, found.halves, |_, rank| rank as f64)?;
    Ok(Lora { pairs, origin: Some(found.origin), ..Lora::default() })
}

/// Writes a kohya file.
///
/// # Errors
/// Names the modules that are none of Stable Diffusion's.
pub fn write(lora: &Lora, path: &Path, options: &Options) -> Result<()> {
    only_linear(lora, &FORMAT)?;
    let lora = &with_component(lora, options)?;
    let two = lora.pairs.keys().any(|module| module.starts_with("text_encoder_2."));
    let fresh = |module: &str| {
        let name = underscored(module, two)?;
        // A name that reads back as another module would put the numbers elsewhere.
        let [a, b, alpha] = ENDS.map(|(end, _)| format!("{name}{end}"));
        (dotted(&name).as_deref() == Some(module)).then_some(PairNames { a, b, alpha: Some(alpha) })
    };
    let tensors = pipeline::tensors(lora, FORMAT.name, fresh, |pair| pair.alpha != pair.rank() as f64)?;
    let own = match &lora.origin {
        Some(origin) if origin.format == FORMAT.name => &[][..],
        _ => &[("format", "pt"), ("ss_network_module", "networks.lora")],
    };
    tensor::write(path, &tensors, &metadata(lora, FORMAT.name, own))
}
