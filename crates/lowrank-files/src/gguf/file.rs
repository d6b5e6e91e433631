//! An open GGUF file. Nothing is copied: metadata values are ranges of the mapped file, checked once when it is opened.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use lowrank_kernels::{Format, RowOrder};

use crate::entry::{Entry, MappedFile};
use crate::error::{Error, Result, shown};
use crate::gguf::cursor::{ALIGNMENT, Cursor, Kind, Meta, Strings, byte_len};
use crate::gguf::names::GgufNames;
use crate::gguf::split::part_beside;
use crate::tensors::Tensors;

/// One tensor's description.
struct Info {
    name: String,
    /// Innermost axis first, as GGUF counts.
    dims: Vec<usize>,
    format: Format,
    /// Index into the files.
    file: usize,
    bytes: Range<usize>,
}

/// Which part of a split model a file is.
struct Split {
    /// From 0 on.
    number: u64,
    count: u64,
    tensors: Option<u64>,
}

/// An open GGUF file: metadata and tensor descriptions, all sizes checked against the file. Of a split model the metadata
/// are the first part's.
pub struct Gguf {
    /// The parts of a split model, or one.
    files: Vec<MappedFile>,
    metadata: Vec<Meta>,
    tensors: Vec<Info>,
}

impl Gguf {
    /// Opens and checks a GGUF file; with the first part of a split model also the others, which lie beside it.
    ///
    /// # Errors
    /// Where the file is no GGUF file, is truncated, or any size, count, offset or type in it is
    /// wrong; the message names the field or tensor. Where a part is missing or belongs to another model.
    pub fn open(path: &Path) -> Result<Self> {
        let mut whole = Self::open_part(path)?;
        let Some(Split { number, count, tensors }) = whole.split()? else { return Ok(whole) };
        let beside = |number: u64| part_beside(path, number as usize + 1, count as usize);
        let Some(first) = beside(0) else {
            let what = format!(
                "is part {} of {count} by its metadata, but not by its name, which should end in -{:05}-of-{count:05}.gguf: \
                 give the parts back the names that they had",
                number + 1,
                number + 1
            );
            return Err(Error::file(path, what));
        };
        if number != 0 {
            let what = format!("is part {} of {count}: name the first part, {}", number + 1, first.display());
            return Err(Error::file(path, what));
        }
        let mut names: HashSet<String> = whole.tensors.iter().map(|tensor| tensor.name.clone()).collect();
        for number in 1..count {
            let path = beside(number).expect("the first part is named as one");
            if !path.is_file() {
                let what =
                    format!("is missing: part {} of {count} of the model {}", number + 1, first.display());
                return Err(Error::file(&path, what));
            }
            let part = Self::open_part(&path)?;
            whole.check_part(&part, number, count)?;
            for tensor in part.tensors {
                if !names.insert(tensor.name.clone()) {
                    let what = format!("is in another part of {} too", first.display());
                    return Err(Error::tensor(&path, &tensor.name, what));
                }
                whole.tensors.push(Info { file: whole.files.len(), ..tensor });
            }
            whole.files.extend(part.files);
        }
        match tensors {
            Some(count) if count != whole.tensors.len() as u64 => {
                let what = format!("is {count}, but all parts together hold {} tensors", whole.tensors.len());
                Err(Error::field(path, "split.tensors.count", what))
            }
            _ => Ok(whole),
        }
    }

    /// What the metadata say of the parts; `None` where there is one file.
    fn split(&self) -> Result<Option<Split>> {
        let count = self.integer("split.count")?.unwrap_or(0);
        if count <= 1 {
            return Ok(None);
        }
        let number = self.integer("split.no")?.ok_or_else(|| self.lacks("split.no"))?;
        if number >= count || count > 99_999 {
            let what = format!("is {number} of {count} parts");
            return Err(Error::field(self.path(), "split.no", what));
        }
        Ok(Some(Split { number, count, tensors: self.integer("split.tensors.count")? }))
    }

    /// Checks that `part` is part `number` (from 0 on) of this model.
    fn check_part(&self, part: &Self, number: u64, count: u64) -> Result<()> {
        let fail = |what: String| {
            let what = format!("is not part {} of {count} of {}: {what}", number + 1, self.path().display());
            Err(Error::file(part.path(), what))
        };
        match part.split()? {
            Some(split) if (split.number, split.count) == (number, count) => {}
            Some(split) => {
                return fail(format!("it says that it is part {} of {}", split.number + 1, split.count));
            }
            None => return fail("it says that it is a whole model".into()),
        }
        for key in ["general.architecture", "general.name", "general.uuid"] {
            if let (Some(own), Some(theirs)) = (self.string(key)?, part.string(key)?)
                && own != theirs
            {
                return fail(format!("its {key} is {} and not {}", shown(theirs), shown(own)));
            }
        }
        Ok(())
    }

    /// Opens and checks one file.
    fn open_part(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let mut cursor = Cursor::new(path, &file.map);
        if cursor.bytes(4, "magic")? != b"GGUF" {
            return Err(Error::file(path, "does not begin with the letters GGUF: no GGUF file"));
        }
        match cursor.u32("version")? {
            2 | 3 => {}
            1 => return Err(Error::file(path, "GGUF version 1 is not supported; convert it with llama.cpp")),
            v if matches!(v.swap_bytes(), 1..=3) => {
                return Err(Error::file(
                    path,
                    "is big-endian; convert it with gguf-py's gguf_convert_endian.py",
                ));
            }
            v => return Err(Error::file(path, format!("GGUF version {v} is not supported (2 and 3 are)"))),
        }
        let tensor_count = cursor.u64("tensor count")?;
        let metadata_count = cursor.u64("metadata count")?;
        // An entry takes at least a length, a key of no letters, a type and one byte; a tensor a length,
        // an axis count, a type and an offset. So the counts are believed only as far as the file goes.
        cursor.check_count(metadata_count, 13, "metadata count")?;
        cursor.check_count(tensor_count, 24, "tensor count")?;

        let mut metadata = Vec::new();
        let mut keys = HashSet::new();
        for _ in 0..metadata_count {
            let meta = cursor.metadata()?;
            if !keys.insert(meta.key.clone()) {
                return Err(Error::field(path, &meta.key, "appears twice in the metadata"));
            }
            metadata.push(meta);
        }
        drop(keys);
        let mut gguf = Self { metadata, tensors: Vec::new(), files: vec![file.clone()] };
        let alignment = gguf.alignment()?;

        let mut described = Vec::new();
        for _ in 0..tensor_count {
            described.push(cursor.tensor()?);
        }
        let start = (cursor.at() as u64).next_multiple_of(alignment);
        let length = file.map.len() as u64;
        for (name, dims, format, offset) in described {
            let fail = |what: String| Error::tensor(path, &name, what);
            if offset % alignment != 0 {
                return Err(fail(format!("offset {offset} is not a multiple of the alignment {alignment}")));
            }
            let size = byte_len(format, &dims).ok_or_else(|| {
                fail(format!("shape {dims:?} is not a whole number of {} blocks or overflows", format.name()))
            })?;
            let from = start.checked_add(offset);
            let to = from.and_then(|from| from.checked_add(size));
            let (Some(from), Some(to)) = (from, to.filter(|to| *to <= length)) else {
                return Err(fail(format!(
                    "its {size} bytes at offset {offset} lie outside the file of {length} bytes; \
                     the file is truncated or damaged"
                )));
            };
            // Both fit in usize: they lie within a mapped file.
            let bytes = from as usize..to as usize;
            gguf.tensors.push(Info { name, dims, format, file: 0, bytes });
        }
        gguf.check_overlaps()?;
        Ok(gguf)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.files[0].path
    }

    /// The metadata keys, in the file's order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.iter().map(|m| m.key.as_str())
    }

    /// The names of the tensors as GGUF spells them, with shape (innermost axis first) and format.
    pub fn tensor_infos(&self) -> impl Iterator<Item = (&str, &[usize], Format)> {
        self.tensors.iter().map(|t| (t.name.as_str(), t.dims.as_slice(), t.format))
    }

    /// A string, `None` where the key is missing.
    ///
    /// # Errors
    /// Where the value is of another type or is not UTF-8.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        let Some(meta) = self.meta(key) else { return Ok(None) };
        if meta.kind != Kind::String {
            return Err(self.wrong_kind(meta, "a string"));
        }
        // The first eight bytes are the length, checked when the file was opened.
        let bytes = &self.map()[meta.value.start + 8..meta.value.end];
        let text = std::str::from_utf8(bytes);
        text.map(Some).map_err(|e| Error::field(self.path(), key, format!("is not UTF-8: {e}")))
    }

    /// A whole number that is not negative, whatever integer type holds it.
    ///
    /// # Errors
    /// Where the value is of another type or negative.
    pub fn integer(&self, key: &str) -> Result<Option<u64>> {
        let Some(meta) = self.meta(key) else { return Ok(None) };
        match meta.kind.integer(&self.map()[meta.value.clone()]) {
            Some(value) => match u64::try_from(value) {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(Error::field(self.path(), key, format!("is {value}, which is negative"))),
            },
            None => Err(self.wrong_kind(meta, "a whole number")),
        }
    }

    /// A number, whatever type holds it.
    ///
    /// # Errors
    /// Where the value is of another type, or not finite.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        let Some(meta) = self.meta(key) else { return Ok(None) };
        match meta.kind.float(&self.map()[meta.value.clone()]) {
            None => Err(self.wrong_kind(meta, "a number")),
            Some(value) if value.is_finite() => Ok(Some(value)),
            Some(value) => {
                Err(Error::field(self.path(), key, format!("is {value}; expected a finite number")))
            }
        }
    }

    /// A truth value.
    ///
    /// # Errors
    /// Where the value is of another type.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        let Some(meta) = self.meta(key) else { return Ok(None) };
        if meta.kind != Kind::Bool {
            return Err(self.wrong_kind(meta, "a truth value"));
        }
        Ok(Some(self.map()[meta.value.start] != 0))
    }

    /// An array of strings, read one at a time.
    ///
    /// # Errors
    /// Where the value is of another type.
    pub fn strings(&self, key: &str) -> Result<Option<Strings<'_>>> {
        let Some(meta) = self.meta(key) else { return Ok(None) };
        match meta.elements {
            Some((Kind::String, count)) => {
                Ok(Some(Strings::new(self.path(), &meta.key, &self.map()[meta.value.clone()], count)))
            }
            _ => Err(self.wrong_kind(meta, "an array of strings")),
        }
    }

    /// An array of numbers.
    ///
    /// # Errors
    /// Where the value is of another type.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(meta) = self.meta(key) else { return Ok(None) };
        let wrong = || self.wrong_kind(meta, "an array of numbers");
        let (kind, _) = meta.elements.ok_or_else(wrong)?;
        let size = kind.size().ok_or_else(wrong)?;
        let values = self.map()[meta.value.clone()].chunks_exact(size);
        values.map(|bytes| kind.float(bytes).ok_or_else(wrong)).collect::<Result<_>>().map(Some)
    }

    /// An array of truth values.
    ///
    /// # Errors
    /// Where the value is of another type.
    pub fn flags(&self, key: &str) -> Result<Option<Vec<bool>>> {
        let Some(meta) = self.meta(key) else { return Ok(None) };
        match meta.elements {
            Some((Kind::Bool, _)) => {
                Ok(Some(self.map()[meta.value.clone()].iter().map(|byte| *byte != 0).collect()))
            }
            _ => Err(self.wrong_kind(meta, "an array of truth values")),
        }
    }

    /// The tensors under the file's own names, rows in the file's order, to read one by one.
    ///
    /// # Errors
    /// Where a name appears twice.
    pub fn tensors(&self) -> Result<Tensors> {
        let mut tensors = Tensors::default();
        let files: Vec<usize> = self.files.iter().map(|file| tensors.add_file(file.clone())).collect();
        for info in &self.tensors {
            let shape = info.dims.iter().rev().copied().collect();
            let (name, bytes) = (info.name.clone(), info.bytes.clone());
            tensors.add(Entry {
                name,
                file: files[info.file],
                format: Ok(info.format),
                shape,
                order: RowOrder::Plain,
                bytes,
                packed: None,
            })?;
        }
        Ok(tensors)
    }

    /// Adds the file's tensors under their Hugging Face names; `head_dim` are the rows of one attention head.
    pub fn add_tensors(&self, names: &GgufNames, head_dim: usize, tensors: &mut Tensors) -> Result<()> {
        let files: Vec<usize> = self.files.iter().map(|file| tensors.add_file(file.clone())).collect();
        for info in &self.tensors {
            self.check_scale(info)?;
            let name = names.to_hf(&info.name);
            let order = names.order(&name, head_dim);
            let mut shape = info.dims.clone();
            shape.reverse();
            if let Some(unit) = order.multiple().filter(|unit| !shape[0].is_multiple_of(*unit)) {
                let what = format!("its {} rows are not a whole number of heads of {unit}", shape[0]);
                return Err(Error::tensor(self.path(), &info.name, what));
            }
            let bytes = info.bytes.clone();
            tensors.set_added(&name, names.added(&name));
            let file = files[info.file];
            tensors.add(Entry { name, file, format: Ok(info.format), shape, order, bytes, packed: None })?;
        }
        Ok(())
    }

    /// Key, type tag and value of every metadata entry as they lie in the file.
    pub fn raw_metadata(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.metadata.iter().map(|m| (m.key.as_str(), &self.map()[m.whole.clone()]))
    }

    /// `general.architecture`.
    ///
    /// # Errors
    /// Where it is missing.
    pub fn architecture(&self) -> Result<&str> {
        self.string("general.architecture")?.ok_or_else(|| self.lacks("general.architecture"))
    }

    /// The error of a missing key.
    pub fn lacks(&self, key: &str) -> Error {
        Error::field(self.path(), key, "is missing from the metadata")
    }

    /// A size, from 1 to 2^31 - 1.
    ///
    /// # Errors
    /// Where it is missing or another number.
    pub fn size(&self, key: &str) -> Result<u64> {
        let value = self.integer(key)?.ok_or_else(|| self.lacks(key))?;
        match value {
            1..=0x7fff_ffff => Ok(value),
            _ => Err(Error::field(self.path(), key, format!("is {value}; expected 1 to 2147483647"))),
        }
    }

    /// The shape of a tensor by its GGUF name, innermost axis first; `None` where there is no such tensor.
    pub fn dims_of(&self, name: &str) -> Option<&[usize]> {
        self.tensors.iter().find(|tensor| tensor.name == name).map(|tensor| tensor.dims.as_slice())
    }

    /// The bytes of the file with the metadata.
    fn map(&self) -> &[u8] {
        &self.files[0].map
    }

    /// Refuses a scale beside a weight, which NVFP4 files have, unless it is one.
    fn check_scale(&self, info: &Info) -> Result<()> {
        if !info.name.ends_with(".scale") || info.format != Format::F32 {
            return Ok(());
        }
        let file = &self.files[info.file];
        let mut scales = file.map[info.bytes.clone()].chunks_exact(4);
        if scales.all(|scale| scale == 1.0f32.to_le_bytes()) {
            return Ok(());
        }
        let what = "scales a whole weight, which is not supported: convert the model to another type, such as Q8_0, \
                    with llama.cpp's llama-quantize";
        Err(Error::tensor(&file.path, &info.name, what))
    }

    fn meta(&self, key: &str) -> Option<&Meta> {
        self.metadata.iter().find(|m| m.key == key)
    }

    fn wrong_kind(&self, meta: &Meta, wanted: &str) -> Error {
        Error::field(self.path(), &meta.key, format!("expected {wanted}, found {}", meta.describe()))
    }

    fn alignment(&self) -> Result<u64> {
        let alignment = self.integer("general.alignment")?.unwrap_or(ALIGNMENT);
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            let what = format!("is {alignment}; it must be a power of two up to 1048576");
            return Err(Error::field(self.path(), "general.alignment", what));
        }
        Ok(alignment)
    }

    fn check_overlaps(&self) -> Result<()> {
        let mut spans: Vec<&Info> = self.tensors.iter().collect();
        spans.sort_unstable_by_key(|t| (t.bytes.start, t.bytes.end));
        for pair in spans.windows(2) {
            if pair[1].bytes.start < pair[0].bytes.end {
                let what = format!("its bytes overlap those of {}", shown(&pair[0].name));
                return Err(Error::tensor(self.path(), &pair[1].name, what));
            }
        }
        Ok(())
    }
}

/// A float of GGUF metadata, which is an f32, as people write it: `1e-5`, not `9.999999747378752e-6`.
pub fn round_f32(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}

/// The file of the model `path` holds: GGUF by its ending or its first bytes.
pub fn is_gguf(path: &Path) -> bool {
    let named = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    named || (path.is_file() && begins_with_magic(path))
}

fn begins_with_magic(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    path.is_file()
        && std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut magic)).is_ok()
        && &magic == b"GGUF"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_floats_are_written_as_people_write_them() {
        assert_eq!(round_f32(f64::from(1e-5f32)), 1e-5);
        assert_eq!(round_f32(f64::from(1e-6f32)), 1e-6);
        assert_eq!(round_f32(10000.0), 10000.0);
    }
}
