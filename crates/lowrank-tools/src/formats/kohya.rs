//! kohya's files for Stable Diffusion, which A1111 and ComfyUI read too: `NAME.lora_down.weight` (A),
//! `NAME.lora_up.weight` (B) and `NAME.alpha`, where NAME is `lora_unet_` or `lora_te_` and the module path of
//! diffusers with underscores. Convolutions have `[r, K, h, w]` and `[O, r, 1, 1]`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::formats::format::{FileFormat, Halves, Options, only_linear, pairs};
use crate::formats::sd_names::{component_of, dotted, underscored, with_component};
use crate::lora::Lora;
use crate::tensor::{self, Named, Tensor};

/// kohya's (and A1111's) safetensors file for Stable Diffusion.
pub const FORMAT: FileFormat =
    FileFormat { name: "kohya", matches: |at| at.has_tensor(".lora_down.weight"), read, write };

/// Reads a kohya file. Module paths begin with the model's name in diffusers: `unet.`, `text_encoder.`.
///
/// # Errors
/// Names the modules that are none of Stable Diffusion's, and tensors of other methods (LoHa, DoRA, Tucker).
pub fn read(path: &Path, _: &Options) -> Result<Lora> {
    let mut halves: BTreeMap<String, Halves> = BTreeMap::new();
    let (mut unknown, mut others) = (Vec::new(), Vec::new());
    for (name, tensor) in tensor::read(path)? {
        let Some((module, part)) = name.split_once('.') else {
            others.push(name);
            continue;
        };
        if !["lora_down.weight", "lora_up.weight", "alpha"].contains(&part) {
            others.push(name);
            continue;
        }
        let Some(module) = dotted(module) else {
            unknown.push(name);
            continue;
        };
        let half = halves.entry(module).or_default();
        match part {
            "lora_down.weight" => half.a = Some(tensor),
            "lora_up.weight" => half.b = Some(tensor),
            _ => match tensor.data[..] {
                [alpha] => half.alpha = Some(alpha.into()),
                _ => others.push(name),
            },
        }
    }
    if !others.is_empty() {
        return Err(Error::names(format!("{}: no part of a plain LoRA", path.display()), others));
    }
    if !unknown.is_empty() {
        return Err(Error::names(
            format!("{}: no module of Stable Diffusion known here", path.display()),
            unknown,
        ));
    }
    Ok(Lora { pairs: pairs(path, halves, |_, rank| rank as f64)?, ..Lora::default() })
}

/// Writes a kohya file.
///
/// # Errors
/// Names the modules that are none of Stable Diffusion's.
pub fn write(lora: &Lora, path: &Path, options: &Options) -> Result<()> {
    only_linear(lora, &FORMAT)?;
    let lora = with_component(lora, options)?;
    let two = lora.pairs.keys().any(|module| component_of(module) == Some("text_encoder_2"));
    let mut tensors = Named::new();
    let mut unknown = Vec::new();
    for (module, pair) in &lora.pairs {
        let Some(name) = underscored(module, two) else {
            unknown.push(module.clone());
            continue;
        };
        // A name that reads back as another module would put the numbers elsewhere.
        if dotted(&name).as_ref() != Some(module) {
            unknown.push(module.clone());
            continue;
        }
        tensors.insert(format!("{name}.lora_down.weight"), pair.a.clone());
        tensors.insert(format!("{name}.lora_up.weight"), pair.b.clone());
        let alpha = Tensor { dtype: lowrank_kernels::Format::F32, ..Tensor::scalar(pair.alpha as f32) };
        tensors.insert(format!("{name}.alpha"), alpha);
    }
    if !unknown.is_empty() {
        return Err(Error::names("the format kohya has no place for", unknown));
    }
    tensor::write(path, &tensors, &[("format", "pt"), ("ss_network_module", "networks.lora")])
}
