//! Writing a whole model as a Hugging Face folder.

use std::io::Write;
use std::path::Path;

use lowrank_files::folder::{INDEX, SINGLE};
use lowrank_files::{AtomicFile, read_limited, read_object, write_atomic};
use lowrank_kernels::{Format, RowOrder};
use serde_json::{Map, Value, json};

use super::stream::{Fill, Target, refuse_plan, stream};
use crate::arch::tied_of;
use crate::base::{Base, Kind};
use crate::text::templates::CHAT_TEMPLATE_FILE;
use crate::tied::{self, Tied};
use crate::{Error, Result};

/// A shard of a folder holds at most this many bytes of numbers, as save_pretrained's.
const SHARD: u64 = 5_000_000_000;

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
        map.extend(tensors.iter().map(|tensor| (base.file_name(tensor.name), json!(file))));
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
    let at = |name: &str| base.wrapper().map_or_else(|| name.to_owned(), |wrapper| wrapper.whole(name));
    let unties = |config: &Map<String, Value>, tied: &Tied| {
        tied.is_contradicted(config, |name| map.contains_key(&base.file_name(&at(name))))
    };
    let kind = base.config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    if let Some(tied) = tied_of(kind)
        && unties(base.config_map(), tied)?
    {
        config.insert(tied::FIELD.into(), json!(false));
    }
    config.extend(changes.config.clone());
    // Both places say it, so that every version of transformers reads the same.
    if let (Some(tie), Some(Value::Object(text))) =
        (config.get(tied::FIELD).cloned(), config.get_mut("text_config"))
    {
        text.insert(tied::FIELD.into(), tie);
    }
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

/// Everything a tokenizer or generation may need, as it is.
fn copy_small_files(from: &Path, to: &Path) -> Result<()> {
    const NAMES: [&str; 14] = [
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
        // Of models that read more than text.
        "chat_template.json",
        "preprocessor_config.json",
        "processor_config.json",
        "video_preprocessor_config.json",
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
        header.insert(base.file_name(tensor.name), info);
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
                let target = Target { name: tensor.name, shape, format, order: RowOrder::Plain, added: 0.0 };
                stream(path, &target, None, fill, &mut file)?;
            }
        }
        // A model that is written need not fit in memory.
        base.tensors.release(tensor.name);
    }
    file.commit()?;
    Ok(offset)
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    #[test]
    fn a_large_model_is_split_and_a_small_one_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let (source, out) = (folder.path().join("source"), folder.path().join("out"));
        std::fs::create_dir(&source).unwrap();
        std::fs::write(
            source.join("config.json"),
            r#"{"dtype": "float32", "quantization_config": {"quant_method": "gptq", "bits": 4}}"#,
        )
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
