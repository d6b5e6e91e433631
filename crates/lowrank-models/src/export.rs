//! Writing a whole model, streamed: to a Hugging Face folder or to a GGUF file.

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use lowrank_files::folder::{INDEX, SINGLE};
use lowrank_files::{AtomicFile, GgufWriter, TensorPlan, read_limited, read_object, write_atomic};
use lowrank_kernels::{Format, RowOrder, WeightRef, quantize};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::arch::{gguf_names, gguf_of, tied_of};
use crate::architecture::INSTEAD;
use crate::base::{Base, Kind};
use crate::gguf::{factors_of, metadata_of};
use crate::text::templates::CHAT_TEMPLATE_FILE;
use crate::text::tokenizer::write_metadata;
use crate::tied;
use crate::{Error, Result};

/// A shard of a folder holds at most this many bytes of numbers, as save_pretrained's.
const SHARD: u64 = 5_000_000_000;

/// Numbers in memory at a time (16 MB of f32).
const PIECE: usize = 4 << 20;

/// What the written model is made of: `fill(name, rows, out)` writes rows `rows` of the tensor `name`
/// (Hugging Face's name and order) as f32. To change nothing: [`lowrank_files::Tensors::read_rows`].
pub type Fill<'a> = dyn FnMut(&str, Range<usize>, &mut [f32]) -> Result<()> + 'a;

/// Writes the model as a Hugging Face folder that transformers loads: `config.json`, `.safetensors` in
/// `format` (F32, F16 or BF16; shards of 5 GB with their index where one does not do), the tokenizer's
/// files and `generation_config.json`. For a folder as source they are copied, for a GGUF file
/// made from its metadata.
///
/// # Errors
/// Where a file cannot be written or made, `format` is not plain, or `fill` fails.
pub fn save_folder(base: &Base, folder: &Path, format: Format, fill: &mut Fill<'_>) -> Result<()> {
    save_folder_with(base, &Changes::default(), folder, format, fill)
}

/// How a written folder differs from its base: another head.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Name and shape of tensors that the base lacks, or has in another shape.
    pub tensors: Vec<(String, Vec<usize>)>,
    /// Tensors of the base that are left out.
    pub without: Vec<String>,
    /// Fields of `config.json`.
    pub config: Map<String, Value>,
}

/// [`save_folder`] with changes; `fill` is asked for the new tensors too.
///
/// # Errors
/// As [`save_folder`].
pub fn save_folder_with(
    base: &Base,
    changes: &Changes,
    folder: &Path,
    format: Format,
    fill: &mut Fill<'_>,
) -> Result<()> {
    save_folder_in_shards(base, changes, folder, format, SHARD, fill)
}

/// A tensor that is written.
#[derive(Clone)]
struct Written<'a> {
    name: &'a str,
    shape: &'a [usize],
    /// The type and bytes of a number type that stays as it is.
    raw: Option<(&'a str, &'a [u8])>,
}

impl Written<'_> {
    fn bytes(&self, format: Format) -> u64 {
        match self.raw {
            Some((_, bytes)) => bytes.len() as u64,
            None => self.shape.iter().product::<usize>() as u64 * format.block_bytes() as u64,
        }
    }
}

/// The tensors of a folder, in the order of the base.
fn written<'a>(base: &'a Base, changes: &'a Changes) -> Vec<Written<'a>> {
    let new = |name: &str| changes.tensors.iter().any(|(new, _)| new == name);
    let kept =
        |name: &&str| *name != "rope_freqs" && !new(name) && !changes.without.iter().any(|w| w == name);
    let tensors = &base.tensors;
    let old = tensors.names().filter(kept).map(|name| Written {
        name,
        shape: tensors.shape(name).unwrap_or_default(),
        raw: tensors.unread(name),
    });
    let new = changes.tensors.iter().map(|(name, shape)| Written { name, shape, raw: None });
    old.chain(new).collect()
}

fn save_folder_in_shards(
    base: &Base,
    changes: &Changes,
    folder: &Path,
    format: Format,
    limit: u64,
    fill: &mut Fill<'_>,
) -> Result<()> {
    let dtype = match format {
        Format::F32 => "float32",
        Format::F16 => "float16",
        Format::BF16 => "bfloat16",
        other => {
            return Err(Error::file(folder, format!("{} cannot be stored in safetensors", other.name())));
        }
    };
    refuse_plan(base)?;
    if base.tensors.contains("rope_freqs") && base.config.get("rope_scaling").is_none() {
        let what = "its rope_freqs fit no setting that config.json can express; write a GGUF file instead";
        return Err(Error::tensor(&base.source, "rope_freqs", what));
    }
    let shards = split(&written(base, changes), format, limit);
    let count = shards.len();
    let mut map = Map::new();
    let mut total = 0;
    for (number, tensors) in shards.iter().enumerate() {
        let file = match count {
            1 => SINGLE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        total += write_safetensors(base, &folder.join(&file), tensors, format, fill)?;
        map.extend(tensors.iter().map(|tensor| (tensor.name.to_owned(), json!(file))));
    }
    if count > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        write_json(&folder.join(INDEX), &index)?;
    } else if folder.join(INDEX).exists() {
        // The index of what stood here before would win over the one file.
        std::fs::remove_file(folder.join(INDEX)).map_err(Error::io(folder))?;
    }

    let mut config = match &base.kind {
        // As the authors wrote it, not as we normalised it.
        Kind::Folder => read_object(&base.source.join("config.json"))?,
        Kind::Gguf(_) | Kind::Config => base.config_map().clone(),
    };
    for name in ["torch_dtype", "dtype"] {
        if config.contains_key(name) {
            config[name] = json!(dtype);
        }
    }
    if !config.contains_key("dtype") {
        config.insert("torch_dtype".into(), json!(dtype));
    }
    // The weights are plain now, whatever they were loaded from.
    config.remove("quantization_config");
    if let Some(tied) = config.get("model_type").and_then(Value::as_str).and_then(tied_of)
        && tied.is_contradicted(&config, |name| map.contains_key(name))?
    {
        config.insert(tied::FIELD.into(), json!(false));
    }
    config.extend(changes.config.clone());
    write_json(&folder.join("config.json"), &Value::Object(config))?;
    match &base.kind {
        Kind::Folder => copy_small_files(&base.source, folder)?,
        Kind::Gguf(_) | Kind::Config => {
            let tokenizer = base.tokenizer()?;
            write_atomic(&folder.join("tokenizer.json"), tokenizer.to_json()?.as_bytes())?;
            let template = base.chat_template.as_ref().and_then(|t| t.as_ref().ok()).map(|t| t.source());
            let length = base.config["max_position_embeddings"].as_u64();
            write_json(&folder.join("tokenizer_config.json"), &tokenizer.config_json(template, length))?;
            write_json(&folder.join("generation_config.json"), &base.generation.to_json())?;
        }
    }
    if let Some(template) = base.replaced_chat_template() {
        write_atomic(&folder.join(CHAT_TEMPLATE_FILE), template.source().as_bytes())?;
    }
    Ok(())
}

fn refuse_plan(base: &Base) -> Result<()> {
    match base.kind {
        Kind::Config => {
            Err(Error::file(&base.source, "is a configuration alone: it has no weights to write"))
        }
        _ => Ok(()),
    }
}

/// Everything a tokenizer or generation may need, as it is.
fn copy_small_files(from: &Path, to: &Path) -> Result<()> {
    const NAMES: [&str; 10] = [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        CHAT_TEMPLATE_FILE,
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "vocab.txt",
        "tokenizer.model",
    ];
    for name in NAMES {
        let (source, target) = (from.join(name), to.join(name));
        if source.is_file() && source != target {
            write_atomic(&target, &read_limited(&source, u64::MAX)?)?;
        }
    }
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(Error::json(path))? + "\n";
    Ok(write_atomic(path, text.as_bytes())?)
}

/// Tensors for each shard, in order; one larger than the limit has a shard of its own.
fn split<'a>(tensors: &[Written<'a>], format: Format, limit: u64) -> Vec<Vec<Written<'a>>> {
    let mut shards: Vec<Vec<Written<'_>>> = vec![Vec::new()];
    let mut used = 0;
    for tensor in tensors {
        let size = tensor.bytes(format);
        if used > 0 && used + size > limit {
            shards.push(Vec::new());
            used = 0;
        }
        used += size;
        shards.last_mut().expect("at least one").push(tensor.clone());
    }
    shards
}

/// Writes one safetensors file; returns the bytes of its numbers.
fn write_safetensors(
    base: &Base,
    path: &Path,
    tensors: &[Written<'_>],
    format: Format,
    fill: &mut Fill<'_>,
) -> Result<u64> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.bytes(format);
        let dtype = tensor.raw.map_or(format.name(), |(dtype, _)| dtype);
        let info = json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [offset, end] });
        header.insert(tensor.name.to_owned(), info);
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = AtomicFile::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(Error::io(path))?;
    file.write_all(&header).map_err(Error::io(path))?;
    for tensor in tensors {
        match tensor.raw {
            Some((_, bytes)) => file.write_all(bytes).map_err(Error::io(path))?,
            None => {
                let shape =
                    (tensor.shape.first().copied().unwrap_or(1), tensor.shape.iter().skip(1).product());
                stream(path, tensor.name, shape, format, RowOrder::Plain, fill, &mut file)?;
            }
        }
        // A model that is written need not fit in memory.
        base.tensors.release(tensor.name);
    }
    file.commit()?;
    Ok(offset)
}

/// Writes the model as a GGUF file: matrices in `format` (F32, F16, BF16 or Q8_0; a matrix whose rows
/// are no whole number of blocks in F16), vectors in F32, q and k of the Llama family in llama.cpp's row
/// order. Metadata and tokenizer are those of a GGUF source, or made from the folder's files.
///
/// # Errors
/// Where GGUF cannot express the model, a file cannot be written, or `fill` fails.
pub fn save_gguf(base: &Base, path: &Path, format: Format, fill: &mut Fill<'_>) -> Result<()> {
    let file_type = match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q8_0 => 7,
        Format::BF16 => 32,
        other => return Err(Error::file(path, format!("writing GGUF as {} is not supported", other.name()))),
    };
    refuse_plan(base)?;
    let mut writer = GgufWriter::new();
    let architecture = match &base.kind {
        Kind::Gguf(source) => {
            const OURS: [&str; 3] =
                ["general.alignment", "general.file_type", "general.quantization_version"];
            const TEMPLATE: &str = "tokenizer.chat_template";
            let replaced = base.replaced_chat_template();
            writer.copy_metadata(source, |key| {
                !OURS.contains(&key) && (key != TEMPLATE || replaced.is_none())
            })?;
            if let Some(template) = replaced {
                writer.string(TEMPLATE, template.source())?;
            }
            source.architecture()?.to_owned()
        }
        Kind::Folder | Kind::Config => {
            let config = base.config_map();
            let architecture = metadata_of(&base.source.join("config.json"), config, &mut writer)?;
            let vocab = base.tensors.shape("model.embed_tokens.weight").and_then(|s| s.first().copied());
            let vocab = vocab.ok_or_else(|| {
                Error::tensor(&base.source, "model.embed_tokens.weight", "is missing; nothing GGUF knows")
            })?;
            let template = base.chat_template.as_ref().and_then(|t| t.as_ref().ok()).map(|t| t.source());
            write_metadata(&base.tokenizer()?, template, vocab, &mut writer)?;
            architecture.to_owned()
        }
    };
    writer.u32("general.file_type", file_type)?;
    writer.u32("general.quantization_version", 2)?;

    let head_dim = head_dim(base)?;
    let model = gguf_of(base.config["model_type"].as_str().unwrap_or_default());
    let factors = match model {
        Some(model) if !base.tensors.contains("rope_freqs") => {
            factors_of(&(model.rope)(base.config_map())?, head_dim)
        }
        _ => None,
    };
    let names = gguf_names(&architecture);
    let mut plans = Vec::new();
    let mut sources = Vec::new();
    for name in base.tensors.names() {
        // Old checkpoints carry constants that every implementation computes for itself.
        if name.ends_with(".rotary_emb.inv_freq") {
            continue;
        }
        let gguf = names.from_hf(name).filter(|_| model.is_none_or(|model| model.holds(name)));
        let gguf = gguf.ok_or_else(|| {
            let what = format!("has no place in a GGUF file of {architecture}; {INSTEAD}");
            Error::tensor(&base.source, name, what)
        })?;
        let mut dims = base.tensors.shape(name).unwrap_or_default().to_vec();
        dims.reverse();
        let format = match dims.as_slice() {
            [_] => Format::F32,
            [cols, ..] if cols.is_multiple_of(format.block_len()) => format,
            _ => Format::F16,
        };
        plans.push(TensorPlan { name: gguf, dims, format });
        sources.push(Some(name));
    }
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
            let order = match names.permutes_rows(name) {
                true => RowOrder::RopeInterleaved { head_dim },
                false => RowOrder::Plain,
            };
            let added = names.added(name);
            let mut fill = |name: &str, rows: Range<usize>, out: &mut [f32]| {
                fill(name, rows, out)?;
                out.iter_mut().for_each(|x| *x += added);
                Ok(())
            };
            let shape = base.tensors.matrix_shape(name).unwrap_or_default();
            stream(path, name, shape, plan.format, order, &mut fill, out)?;
            base.tensors.release(name);
            Ok(())
        }
        None => {
            let bytes: Vec<u8> = factors.iter().flatten().flat_map(|f| f.to_le_bytes()).collect();
            out.write_all(&bytes).map_err(Error::io(path))
        }
    })
}

fn head_dim(base: &Base) -> Result<usize> {
    let number = |name: &str| base.config.get(name).and_then(Value::as_u64);
    let dim =
        number("head_dim").or_else(|| number("hidden_size")?.checked_div(number("num_attention_heads")?));
    let dim = dim.and_then(|dim| usize::try_from(dim).ok()).filter(|dim| *dim > 0 && dim % 2 == 0);
    dim.ok_or_else(|| Error::field(&base.source, "head_dim", "is missing or no even number"))
}

/// Writes the numbers of one tensor of `shape`, some rows at a time, its rows in `order`.
fn stream(
    path: &Path,
    name: &str,
    (rows, cols): (usize, usize),
    format: Format,
    order: RowOrder,
    fill: &mut Fill<'_>,
    out: &mut dyn Write,
) -> Result<()> {
    let fail = |what: String| Error::tensor(path, name, what);
    if rows == 0 || cols == 0 {
        return Ok(());
    }
    // Whole heads at a time: only within a head does llama.cpp's order differ.
    let unit = match order {
        RowOrder::Plain => 1,
        RowOrder::RopeInterleaved { head_dim } if rows.is_multiple_of(head_dim) => head_dim,
        RowOrder::RopeInterleaved { head_dim } => {
            return Err(fail(format!("its {rows} rows are not a whole number of heads of {head_dim}")));
        }
    };
    let step = (PIECE / cols / unit).max(1) * unit;
    let mut numbers = Vec::new();
    for start in (0..rows).step_by(step) {
        let piece = start..rows.min(start + step);
        numbers.resize(piece.len() * cols, 0.0);
        fill(name, piece.clone(), &mut numbers)?;
        let view = WeightRef { order, ..WeightRef::from_f32(piece.len(), cols, &numbers) };
        let mut source: Vec<usize> = vec![0; piece.len()];
        (0..piece.len()).for_each(|row| source[view.stored_row(row)] = row);
        let encode = |rows: &[usize]| {
            let mut bytes = Vec::new();
            rows.iter().try_for_each(|row| quantize(format, &numbers[row * cols..][..cols], &mut bytes))?;
            Ok(bytes)
        };
        let encoded: Result<Vec<Vec<u8>>, lowrank_kernels::QuantizeError> =
            source.par_chunks(piece.len().div_ceil(rayon::current_num_threads())).map(encode).collect();
        for bytes in encoded.map_err(|e| fail(e.to_string()))? {
            out.write_all(&bytes).map_err(Error::io(path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_model_is_split_and_a_small_one_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let (source, out) = (folder.path().join("source"), folder.path().join("out"));
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("config.json"), r#"{"dtype": "float32", "quantization_config": {}}"#)
            .unwrap();
        let header = r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[3],"data_offsets":[16,28]},"c":{"dtype":"F32","shape":[1],"data_offsets":[28,32]}}"#;
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend((0..8u8).flat_map(|i| f32::from(i).to_le_bytes()));
        std::fs::write(source.join(SINGLE), file).unwrap();
        let base = Base::open_path(&source).unwrap();
        let mut copy =
            |name: &str, rows: Range<usize>, out: &mut [f32]| Ok(base.tensors.read_rows(name, rows, out)?);

        save_folder_in_shards(&base, &Changes::default(), &out, Format::BF16, 8, &mut copy).unwrap();
        assert!(out.join("model-00002-of-00002.safetensors").is_file());
        let again = Base::open_path(&out).unwrap();
        assert_eq!(again.tensors.names().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(again.tensors.format("a"), Some(Format::BF16));
        assert_eq!(again.tensors.vector("b").unwrap(), [4.0, 5.0, 6.0]);
        assert_eq!(again.config, json!({ "dtype": "bfloat16" }));
        drop(again);

        save_folder_in_shards(&base, &Changes::default(), &out, Format::F16, 100, &mut copy).unwrap();
        let again = Base::open_path(&out).unwrap();
        assert_eq!(again.tensors.format("a"), Some(Format::F16));
        assert!(save_folder(&base, &out, Format::Q8_0, &mut copy).is_err());
    }
}
