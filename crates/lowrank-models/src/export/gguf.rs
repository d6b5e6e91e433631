//! Writing a whole model as a GGUF file.

use std::collections::HashMap;
use std::path::Path;

use lowrank_files::{GgufWriter, TensorPlan};
use lowrank_kernels::Format;

use super::file_type::{FileType, Stack};
use super::stream::{Fill, Target, refuse_plan, stream};
use crate::arch::{gguf_names, gguf_of};
use crate::architecture::INSTEAD;
use crate::base::{Base, Kind};
use crate::gguf::{factors_of, metadata_of};
use crate::text::tokenizer::write_metadata;
use crate::{Error, Result};

/// Writes the model as a GGUF file: matrices as `file_type` mixes them, vectors in F32, q and k of the Llama family in
/// llama.cpp's row order. Without a file type every tensor keeps the format that it has in a GGUF source. Metadata and
/// tokenizer are those of a GGUF source, or made from the folder's files.
///
/// Rows that `fill` leaves as they are, in the format that they have in a GGUF source, are copied byte for byte.
///
/// # Errors
/// Where GGUF cannot express the model, a file cannot be written, or `fill` fails.
pub fn save_gguf(base: &Base, path: &Path, file_type: Option<FileType>, fill: &mut Fill<'_>) -> Result<()> {
    refuse_plan(base)?;
    let mut writer = GgufWriter::new();
    match &base.kind {
        Kind::Gguf(source) => {
            const TEMPLATE: &str = "tokenizer.chat_template";
            let replaced = base.replaced_chat_template();
            writer.copy_metadata(source, |key| match key {
                "general.alignment" | "general.quantization_version" => false,
                "general.file_type" => file_type.is_none(),
                // It is one file, whatever the base is.
                "split.no" | "split.count" | "split.tensors.count" => false,
                _ => key != TEMPLATE || replaced.is_none(),
            })?;
            if let Some(template) = replaced {
                writer.string(TEMPLATE, template.source())?;
            }
        }
        Kind::Folder | Kind::Config => {
            metadata_of(&base.source.join("config.json"), base.config_map(), &mut writer)?;
            let table = gguf_names(&base.gguf_layout()?.0).to_hf("token_embd.weight");
            let table = base.wrapper().map_or(table.clone(), |wrapper| wrapper.whole(&table));
            let vocab = base.tensors.shape(&table).and_then(|s| s.first().copied());
            let vocab =
                vocab.ok_or_else(|| Error::tensor(&base.source, &table, "is missing; nothing GGUF knows"))?;
            let template = base.chat_template.as_ref().and_then(|t| t.as_ref().ok()).map(|t| t.source());
            write_metadata(&base.tokenizer()?, template, vocab, &mut writer)?;
        }
    }
    if let Some(file_type) = file_type {
        writer.u32("general.file_type", file_type.number())?;
    }
    writer.u32("general.quantization_version", 2)?;

    let (architecture, head_dim) = base.gguf_layout()?;
    let names = gguf_names(&architecture);
    let mut plans = Vec::new();
    let mut sources = Vec::new();
    for (name, plan) in plan_gguf(base, &architecture, file_type)? {
        plans.push(plan);
        sources.push(Some(name));
    }
    let factors = match gguf_of(base.config["model_type"].as_str().unwrap_or_default()) {
        Some(model) if !base.tensors.contains("rope_freqs") => {
            factors_of(&(model.rope)(base.config_map())?, head_dim)
        }
        _ => None,
    };
    if let Some(factors) = &factors {
        plans.push(TensorPlan {
            name: "rope_freqs.weight".into(),
            dims: vec![factors.len()],
            format: Format::F32,
        });
        sources.push(None);
    }
    let mut sources = sources.into_iter();
    writer.write(path, &plans, |plan, out| match sources.next().flatten() {
        Some(name) => {
            let order = names.order(name, head_dim);
            let shape = base.tensors.matrix_shape(name).unwrap_or_default();
            let same = matches!(base.kind, Kind::Gguf(_)) && base.tensors.format(name) == Some(plan.format);
            let target = Target { name, shape, format: plan.format, order, added: names.added(name) };
            stream(path, &target, same.then_some(&base.tensors), fill, out)?;
            base.tensors.release(name);
            Ok(())
        }
        None => {
            let bytes: Vec<u8> = factors.iter().flatten().flat_map(|f| f.to_le_bytes()).collect();
            out.write_all(&bytes).map_err(Error::io(path))
        }
    })
}

/// Name and format of every tensor of the base in a GGUF file of it.
///
/// # Errors
/// Where GGUF cannot express the model, or the base has no types to keep and no file type is given.
pub fn gguf_formats(base: &Base, file_type: Option<FileType>) -> Result<HashMap<String, Format>> {
    let plans = plan_gguf(base, &base.gguf_layout()?.0, file_type)?;
    Ok(plans.into_iter().map(|(name, plan)| (name.to_owned(), plan.format)).collect())
}

/// The tensors of a GGUF file of the base, with the names that they have in the base.
fn plan_gguf<'a>(
    base: &'a Base,
    architecture: &str,
    file_type: Option<FileType>,
) -> Result<Vec<(&'a str, TensorPlan)>> {
    let names = gguf_names(architecture);
    let model = gguf_of(base.config["model_type"].as_str().unwrap_or_default());
    let stack = Stack::new(base.config_map(), &base.tensors);
    let plan = |name: &'a str| {
        let gguf = names.from_hf(name).filter(|_| model.is_none_or(|model| model.holds(name)));
        let gguf = gguf.ok_or_else(|| {
            let what = format!("has no place in a GGUF file of {architecture}; {INSTEAD}");
            Error::tensor(&base.source, name, what)
        })?;
        let mut dims = base.tensors.shape(name).unwrap_or_default().to_vec();
        dims.reverse();
        let format = match (file_type, &base.kind) {
            (Some(file_type), _) => Some(file_type.format_of(&gguf, &dims, &stack)),
            (None, Kind::Gguf(_)) => base.tensors.format(name),
            (None, Kind::Folder | Kind::Config) => None,
        };
        let format = format.ok_or_else(|| {
            Error::tensor(&base.source, name, "has no type of GGUF that could be kept: choose a `dtype`")
        })?;
        Ok((name, TensorPlan { name: gguf, dims, format }))
    };
    // Old checkpoints carry constants that every implementation computes for itself.
    let old = |name: &&str| name.ends_with(".rotary_emb.inv_freq");
    // llama.cpp has the other parts of a model that reads more than text in a file of their own.
    let other = |name: &&str| base.wrapper().is_some_and(|wrapper| !wrapper.holds(name));
    base.tensors.names().filter(|name| !old(name) && !other(name)).map(plan).collect()
}
