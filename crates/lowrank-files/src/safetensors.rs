//! The header of a safetensors file, checked before anything believes it.
//!
//! Layout: eight bytes little-endian header length `n`, `n` bytes of JSON
//! (`{name: {dtype, shape, data_offsets}}`, optionally `__metadata__`), then the numbers.

use std::fmt;
use std::path::Path;

use lowrank_kernels::{Format, RowOrder};
use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};

use crate::entry::{Entry, MappedFile};
use crate::error::{Error, Result, shown};

/// The format's own limit on the header.
const MAX_HEADER: u64 = 100_000_000;

#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Where the tensors of the safetensors file lie. The entries' file index is set by the caller.
pub(crate) fn read(file: &MappedFile) -> Result<Vec<Entry>> {
    let (data_start, infos) = read_header(&file.path, &file.map)?;
    check(&file.path, infos, data_start, file.map.len())
}

fn read_header(path: &Path, bytes: &[u8]) -> Result<(usize, Vec<(String, Info)>)> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        let what = format!("is {} bytes long: no safetensors file is shorter than 8", bytes.len());
        return Err(Error::file(path, what));
    };
    let length = u64::from_le_bytes(*length);
    if length > rest.len() as u64 || length > MAX_HEADER {
        let what = format!(
            "header length: says {length} bytes, but {} follow{}",
            rest.len(),
            if length > MAX_HEADER {
                " and a header may take at most 100 MB"
            } else {
                "; the file is truncated"
            }
        );
        return Err(Error::file(path, what));
    }
    let header = &rest[..length as usize];
    let json = |source: serde_json::Error| Error::file(path, format!("header: {source}"));
    let mut reader = serde_json::Deserializer::from_slice(header);
    let infos = serde::Deserializer::deserialize_map(&mut reader, Header).map_err(json)?;
    reader.end().map_err(json)?;
    Ok((8 + length as usize, infos))
}

struct Header;

impl<'de> Visitor<'de> for Header {
    type Value = Vec<(String, Info)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut infos = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let info =
                map.next_value().map_err(|e| A::Error::custom(format!("tensor {}: {e}", shown(&name))))?;
            infos.push((name, info));
        }
        Ok(infos)
    }
}

/// Checks sizes, offsets, overlaps and holes.
fn check(path: &Path, infos: Vec<(String, Info)>, start: usize, file_len: usize) -> Result<Vec<Entry>> {
    let data_len = (file_len - start) as u64;
    let mut entries = Vec::new();
    for (name, info) in infos {
        let fail = |what: String| Error::tensor(path, &name, what);
        let (from, to) = info.data_offsets;
        if from > to || to > data_len {
            return Err(fail(format!(
                "data_offsets [{from}, {to}] lie outside the {data_len} bytes of numbers"
            )));
        }
        let numbers = info.shape.iter().try_fold(1u64, |product, axis| product.checked_mul(*axis));
        let (format, bits) =
            number_type(&info.dtype).ok_or_else(|| fail(format!("unknown dtype {}", shown(&info.dtype))))?;
        let want = numbers.and_then(|n| n.checked_mul(bits)).map(|bits| bits.div_ceil(8));
        if want != Some(to - from) {
            return Err(fail(format!(
                "shape {:?} of {} takes {} bytes, its data_offsets [{from}, {to}] hold {}",
                &info.shape[..info.shape.len().min(8)],
                info.dtype,
                want.map_or("more than any file's".into(), |n| n.to_string()),
                to - from
            )));
        }
        // Both fit in usize: they lie within a mapped file.
        let bytes = start + from as usize..start + to as usize;
        let shape: Vec<usize> =
            info.shape.iter().map(|&axis| usize::try_from(axis).unwrap_or(usize::MAX)).collect();
        if shape.iter().try_fold(1usize, |product, axis| product.checked_mul((*axis).max(1))).is_none() {
            return Err(fail("an axis is larger than any memory".into()));
        }
        entries.push(Entry { name, file: 0, format, shape, order: RowOrder::Plain, bytes, packed: None });
    }
    let mut spans: Vec<(usize, usize, usize)> =
        entries.iter().enumerate().map(|(i, e)| (e.bytes.start, e.bytes.end, i)).collect();
    spans.sort_unstable();
    for pair in spans.windows(2) {
        let [(_, end, first), (begin, _, second)] = pair else { continue };
        if begin < end {
            let what = format!("its bytes overlap those of {}", shown(&entries[*first].name));
            return Err(Error::tensor(path, &entries[*second].name, what));
        }
        if end < begin {
            let what = format!("{} bytes before it belong to no tensor", begin - end);
            return Err(Error::tensor(path, &entries[*second].name, what));
        }
    }
    // Like the official reader: the tensors fill the file.
    if let Some((begin, _, first)) = spans.first().filter(|(begin, ..)| *begin > start) {
        let what = format!("{} bytes before it belong to no tensor", begin - start);
        return Err(Error::tensor(path, &entries[*first].name, what));
    }
    let end = spans.last().map_or(start, |(_, end, _)| *end);
    if end < file_len {
        let what = format!("the last {} bytes belong to no tensor of the header", file_len - end);
        return Err(Error::file(path, what));
    }
    Ok(entries)
}

/// The format of a dtype, and the bits of one number: `None` for a dtype we never heard of, an `Err`
/// with the dtype's name for one that we know but do not read.
fn number_type(dtype: &str) -> Option<(Result<Format, String>, u64)> {
    let known = |bits| (Err(dtype.to_owned()), bits);
    Some(match dtype {
        "F32" => (Ok(Format::F32), 32),
        "F16" => (Ok(Format::F16), 16),
        "BF16" => (Ok(Format::BF16), 16),
        "F64" | "I64" | "U64" | "C64" => known(64),
        "I32" | "U32" => known(32),
        "I16" | "U16" => known(16),
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => known(8),
        "F6_E2M3" | "F6_E3M2" => known(6),
        "F4" => known(4),
        _ => return None,
    })
}
