//! PyTorch's files (`.bin`, `.pt`, `.pth`): a pickle that describes tensors, beside their numbers.
//!
//! Since PyTorch 1.6 the file is a zip archive with `NAME/data.pkl` and the storages, uncompressed, in
//! `NAME/data/KEY`; before, it was a row of pickles followed by the storages. Both are read in place.

mod pickle;
mod write;

pub use write::{PytorchTensor, write_pytorch};

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;

use lowrank_kernels::{Format, RowOrder};

use self::pickle::{Machine, Object, Storage, Tensor, Value};
use crate::entry::{Entry, MappedFile};
use crate::error::{Error, Result, shown};

/// Where a checkpoint keeps its weights when it also holds other things.
const WRAPPERS: [&str; 4] = ["model_state_dict", "state_dict", "model", "module"];

/// The first pickle of the old format: its magic number.
const OLD_MAGIC: [u8; 15] =
    [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];

/// Whether a file that begins so was written by torch.save.
pub(crate) fn is_pytorch(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(&OLD_MAGIC)
}

/// Where the tensors of the PyTorch file lie. The entries' file index is set by the caller.
pub(crate) fn read(file: &MappedFile) -> Result<Vec<Entry>> {
    let entries = if file.map.starts_with(b"PK\x03\x04") {
        read_zip(&file.map)
    } else if file.map.starts_with(&OLD_MAGIC) {
        read_old(&file.map)
    } else {
        Err("is not a file of torch.save: neither a zip archive nor its older format".into())
    };
    entries.map_err(|what| Error::file(&file.path, what))
}

/// Where storages lie in the file.
type Places = HashMap<String, Range<usize>>;

fn read_zip(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    let zip = |e: zip::result::ZipError| format!("zip archive: {e}; truncated or damaged");
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(zip)?;
    let mut places = Places::new();
    for number in 0..archive.len() {
        let entry = archive.by_index_raw(number).map_err(zip)?;
        let name = entry.name().map_err(zip)?.into_owned();
        let range = entry.data_start().and_then(|start| {
            let start = usize::try_from(start).ok()?;
            let end = start.checked_add(usize::try_from(entry.size()).ok()?)?;
            (end <= bytes.len()).then_some(start..end)
        });
        let range = range.ok_or_else(|| format!("{}: lies outside the file", shown(&name)))?;
        if entry.compression() != zip::CompressionMethod::Stored || entry.compressed_size() != entry.size() {
            return Err(format!("{}: is compressed, which torch.save never does", shown(&name)));
        }
        places.insert(name, range);
    }
    let pickle = places.keys().filter(|name| name.strip_suffix("data.pkl").is_some_and(is_folder));
    let [name] = pickle.collect::<Vec<_>>()[..] else {
        return Err("has not one data.pkl: a zip archive, but none of torch.save".into());
    };
    let folder = name.strip_suffix("data.pkl").unwrap_or_default().to_owned();
    if let Some(order) = places.get(&format!("{folder}byteorder"))
        && &bytes[order.clone()] != b"little"
    {
        return Err("was written with the most significant byte first, which is not supported".into());
    }
    let (machine, result, _) = pickle::run(&bytes[places[name].clone()])?;
    entries(&machine, result, |key| places.get(&format!("{folder}data/{key}")).cloned())
}

fn is_folder(prefix: &str) -> bool {
    prefix.is_empty() || (prefix.ends_with('/') && prefix.matches('/').count() == 1)
}

/// Pickles: magic number, protocol, what machine wrote it, the object, the keys of the storages. Then each
/// storage: the count of its numbers as i64, and the numbers.
fn read_old(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    let mut at = OLD_MAGIC.len();
    let mut next = || -> Result<(Machine<'_>, Value<'_>), String> {
        let (machine, value, length) = pickle::run(&bytes[at..])?;
        at += length;
        Ok((machine, value))
    };
    let (_, protocol) = next()?;
    if protocol != Value::Int(1001) {
        return Err("is of an unknown version of torch.save's old format".into());
    }
    let (info, value) = next()?;
    let little = (Value::Text("little_endian"), Value::Bool(true));
    if !matches!(info.object(value), Some(Object::Dict(items)) if items.contains(&little)) {
        return Err("does not say that the least significant byte comes first".into());
    }
    let (machine, result) = next()?;
    let (list, keys) = next()?;
    let Some(Object::List(keys)) = list.object(keys) else {
        return Err("has no list of storages".into());
    };
    let sizes: HashMap<&str, u64> = machine.storages().map(|s| (s.key, item_size(s.dtype))).collect();
    let mut places = Places::new();
    for key in keys {
        let Value::Text(key) = key else {
            return Err("names a storage by something that is not a text".into());
        };
        let size = *sizes.get(key).ok_or_else(|| format!("holds a storage {} of no tensor", shown(key)))?;
        let cut = || format!("storage {}: the file ends before it: truncated", shown(key));
        let (count, rest) = bytes[at..].split_first_chunk::<8>().ok_or_else(cut)?;
        let length = u64::from_le_bytes(*count).checked_mul(size).filter(|n| *n <= rest.len() as u64);
        let start = at + 8;
        // Fits: no more than what is left of the file.
        at = start + length.ok_or_else(cut)? as usize;
        places.insert((*key).to_owned(), start..at);
    }
    entries(&machine, result, |key| places.get(key).cloned())
}

/// The tensors of a dictionary, or of the one that a checkpoint wraps it in.
fn entries<'a>(
    machine: &Machine<'a>,
    result: Value<'a>,
    place: impl Fn(&str) -> Option<Range<usize>>,
) -> Result<Vec<Entry>, String> {
    let dict = |value| match machine.object(value) {
        Some(Object::Dict(items)) => Some(items),
        _ => None,
    };
    let tensor = |value| match machine.object(value) {
        Some(Object::Tensor(tensor)) => Some(tensor),
        _ => None,
    };
    let mut items = dict(result).ok_or("holds no dictionary of tensors")?;
    if !items.iter().any(|(_, value)| tensor(*value).is_some()) {
        let wrapped = |name| items.iter().find(|(key, _)| *key == Value::Text(name)).map(|(_, value)| *value);
        if let Some(inner) = WRAPPERS.into_iter().filter_map(wrapped).find_map(dict) {
            items = inner;
        }
    }
    let mut entries = Vec::new();
    for (key, value) in items {
        let Some(tensor) = tensor(*value) else { continue };
        let Value::Text(name) = key else {
            return Err("names a tensor by something that is not a text".into());
        };
        let entry = entry(machine, name, tensor, &place);
        entries.push(entry.map_err(|what| format!("tensor {}: {what}", shown(name)))?);
    }
    if entries.is_empty() {
        return Err("holds no tensors".into());
    }
    Ok(entries)
}

fn entry(
    machine: &Machine<'_>,
    name: &str,
    tensor: &Tensor,
    place: impl Fn(&str) -> Option<Range<usize>>,
) -> Result<Entry, String> {
    let Some(Object::Storage(storage)) = machine.object(Value::Object(tensor.storage)) else {
        return Err("has no storage".into());
    };
    let range = place(storage.key).ok_or_else(|| format!("its storage {} is missing", shown(storage.key)))?;
    let size = item_size(storage.dtype);
    if storage.numbers.checked_mul(size) != Some(range.len() as u64) {
        return Err(format!(
            "its storage holds {} bytes, not the {} numbers of {} that it should",
            range.len(),
            storage.numbers,
            storage.dtype
        ));
    }
    let numbers = tensor.shape.iter().try_fold(1u64, |n, axis| n.checked_mul(*axis));
    let axes_fit =
        tensor.shape.iter().try_fold(1usize, |n, axis| n.checked_mul(usize::try_from(*axis).ok()?.max(1)));
    let end = numbers.and_then(|n| n.checked_add(tensor.offset)).filter(|end| *end <= storage.numbers);
    let (Some(numbers), Some(end), Some(_)) = (numbers, end, axes_fit) else {
        return Err(format!(
            "its shape {:?} from number {} on lies outside its storage of {} numbers",
            tensor.shape, tensor.offset, storage.numbers
        ));
    };
    let mut want = 1;
    for (axis, stride) in tensor.shape.iter().zip(&tensor.strides).rev() {
        if *axis != 1 && numbers > 0 && *stride != want {
            return Err("its numbers do not follow one another; save it with .contiguous()".into());
        }
        want *= (*axis).max(1);
    }
    let at = |number: u64| range.start + (number * size) as usize;
    Ok(Entry {
        name: name.to_owned(),
        file: 0,
        format: format(storage),
        shape: tensor.shape.iter().map(|axis| *axis as usize).collect(),
        order: RowOrder::Plain,
        bytes: at(tensor.offset)..at(end),
        packed: None,
    })
}

fn format(storage: &Storage<'_>) -> Result<Format, String> {
    match storage.dtype {
        "F32" => Ok(Format::F32),
        "F16" => Ok(Format::F16),
        "BF16" => Ok(Format::BF16),
        other => Err(other.to_owned()),
    }
}

fn item_size(dtype: &str) -> u64 {
    match dtype {
        "F64" | "I64" => 8,
        "F32" | "I32" => 4,
        "F16" | "BF16" | "I16" => 2,
        _ => 1,
    }
}
