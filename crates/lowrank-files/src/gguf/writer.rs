//! Writing a GGUF file, version 3, as a stream.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

use lowrank_kernels::Format;

use crate::atomic::AtomicFile;
use crate::error::{Error, Result};
use crate::gguf::cursor::{ALIGNMENT, Kind, byte_len, format_number};
use crate::gguf::file::Gguf;

/// A tensor that will be written: GGUF name, axes (innermost first), format.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorPlan {
    /// GGUF name.
    pub name: String,
    /// Innermost axis first, as GGUF counts.
    pub dims: Vec<usize>,
    /// Storage format.
    pub format: Format,
}

/// Collects metadata, then writes header, metadata, tensor descriptions and the numbers of one tensor
/// after the other, so that no more than one piece of one tensor is ever in memory. The file appears
/// at its place only when it is whole.
#[derive(Default)]
pub struct GgufWriter {
    metadata: Vec<u8>,
    keys: HashSet<String>,
}

impl GgufWriter {
    /// A writer without metadata.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the key was written.
    pub fn has(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    fn begin(&mut self, key: &str) -> Result<()> {
        if !self.keys.insert(key.to_owned()) {
            return Err(Error::field(Path::new("GGUF metadata"), key, "written twice"));
        }
        self.metadata.extend((key.len() as u64).to_le_bytes());
        self.metadata.extend(key.as_bytes());
        Ok(())
    }

    fn value(&mut self, key: &str, kind: Kind, bytes: &[u8]) -> Result<()> {
        self.begin(key)?;
        self.metadata.extend((kind as u32).to_le_bytes());
        self.metadata.extend(bytes);
        Ok(())
    }

    fn text(&mut self, text: &str) {
        self.metadata.extend((text.len() as u64).to_le_bytes());
        self.metadata.extend(text.as_bytes());
    }

    fn array(&mut self, key: &str, kind: Kind, count: usize) -> Result<()> {
        self.value(key, Kind::Array, &(kind as u32).to_le_bytes())?;
        self.metadata.extend((count as u64).to_le_bytes());
        Ok(())
    }

    /// A string.
    ///
    /// # Errors
    /// Like the other setters: where the key was written before.
    pub fn string(&mut self, key: &str, value: &str) -> Result<()> {
        self.value(key, Kind::String, &[])?;
        self.text(value);
        Ok(())
    }

    /// A u32.
    ///
    /// # Errors
    /// See [`GgufWriter::string`].
    pub fn u32(&mut self, key: &str, value: u32) -> Result<()> {
        self.value(key, Kind::U32, &value.to_le_bytes())
    }

    /// An f32.
    ///
    /// # Errors
    /// See [`GgufWriter::string`].
    pub fn f32(&mut self, key: &str, value: f32) -> Result<()> {
        self.value(key, Kind::F32, &value.to_le_bytes())
    }

    /// A truth value.
    ///
    /// # Errors
    /// See [`GgufWriter::string`].
    pub fn boolean(&mut self, key: &str, value: bool) -> Result<()> {
        self.value(key, Kind::Bool, &[value.into()])
    }

    /// An array of truth values.
    ///
    /// # Errors
    /// See [`GgufWriter::string`].
    pub fn booleans(&mut self, key: &str, values: &[bool]) -> Result<()> {
        self.array(key, Kind::Bool, values.len())?;
        self.metadata.extend(values.iter().map(|value| u8::from(*value)));
        Ok(())
    }

    /// An array of strings.
    ///
    /// # Errors
    /// See [`GgufWriter::string`].
    pub fn strings<'a>(&mut self, key: &str, values: impl ExactSizeIterator<Item = &'a str>) -> Result<()> {
        self.array(key, Kind::String, values.len())?;
        values.for_each(|value| self.text(value));
        Ok(())
    }

    /// An array of i32.
    ///
    /// # Errors
    /// See [`GgufWriter::string`].
    pub fn i32s(&mut self, key: &str, values: &[i32]) -> Result<()> {
        self.array(key, Kind::I32, values.len())?;
        values.iter().for_each(|value| self.metadata.extend(value.to_le_bytes()));
        Ok(())
    }

    /// An array of f32.
    ///
    /// # Errors
    /// See [`GgufWriter::string`].
    pub fn f32s(&mut self, key: &str, values: &[f32]) -> Result<()> {
        self.array(key, Kind::F32, values.len())?;
        values.iter().for_each(|value| self.metadata.extend(value.to_le_bytes()));
        Ok(())
    }

    /// Copies the metadata of `source` as it is, but for the keys that `keep` refuses.
    ///
    /// # Errors
    /// See [`GgufWriter::string`].
    pub fn copy_metadata(&mut self, source: &Gguf, keep: impl Fn(&str) -> bool) -> Result<()> {
        for (key, bytes) in source.raw_metadata().filter(|(key, _)| keep(key)) {
            self.begin(key)?;
            self.metadata.extend(bytes);
        }
        Ok(())
    }

    /// Writes the file. `fill` is called once for each tensor in order and must write exactly the
    /// bytes of its plan.
    ///
    /// # Errors
    /// Where the file cannot be written, a shape does not fit its format, or `fill` fails or writes
    /// another number of bytes.
    pub fn write<E: From<Error>>(
        self,
        path: &Path,
        tensors: &[TensorPlan],
        mut fill: impl FnMut(&TensorPlan, &mut dyn Write) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut header = Vec::new();
        header.extend(b"GGUF");
        header.extend(3u32.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((self.keys.len() as u64).to_le_bytes());
        header.extend(&self.metadata);
        drop(self.metadata);
        let mut offset = 0u64;
        for plan in tensors {
            let fits = byte_len(plan.format, &plan.dims).filter(|_| (1..=4).contains(&plan.dims.len()));
            let size = fits.ok_or_else(|| {
                let what = format!("shape {:?} does not fit the format {}", plan.dims, plan.format.name());
                Error::tensor(path, &plan.name, what)
            })?;
            header.extend((plan.name.len() as u64).to_le_bytes());
            header.extend(plan.name.as_bytes());
            header.extend((plan.dims.len() as u32).to_le_bytes());
            plan.dims.iter().for_each(|axis| header.extend((*axis as u64).to_le_bytes()));
            let number = format_number(plan.format).ok_or_else(|| {
                Error::tensor(path, &plan.name, format!("GGUF has no {} tensors", plan.format.name()))
            })?;
            header.extend(number.to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset += size.next_multiple_of(ALIGNMENT);
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);

        let mut file = AtomicFile::create(path)?;
        file.write_all(&header).map_err(Error::io(path))?;
        for plan in tensors {
            let want = byte_len(plan.format, &plan.dims).expect("checked above");
            let mut counted = Counted { inner: &mut file, bytes: 0 };
            fill(plan, &mut counted)?;
            let wrote = counted.bytes;
            if wrote != want {
                let what = format!("takes {want} bytes, {wrote} were written");
                return Err(Error::tensor(path, &plan.name, what).into());
            }
            let padding = want.next_multiple_of(ALIGNMENT) - want;
            file.write_all(&[0; ALIGNMENT as usize][..padding as usize]).map_err(Error::io(path))?;
        }
        Ok(file.commit()?)
    }
}

struct Counted<'a> {
    inner: &'a mut AtomicFile,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let wrote = self.inner.write(bytes)?;
        self.bytes += wrote as u64;
        Ok(wrote)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
