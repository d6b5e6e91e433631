//! Reading GGUF's bytes: every length is checked against what is left of the file before it is used.

use std::ops::Range;
use std::path::Path;

use lowrank_kernels::Format;

use crate::error::{Error, Result, shown};

/// Type of a metadata value, by GGUF's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// Bytes of one value of a fixed size.
    pub fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }

    /// A whole number out of exactly [`Kind::size`] bytes.
    pub fn integer(self, bytes: &[u8]) -> Option<i128> {
        Some(match self {
            Self::U8 => u8::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::I8 => i8::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::U16 => u16::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::I16 => i16::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::U32 => u32::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::I32 => i32::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::U64 => u64::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::I64 => i64::from_le_bytes(bytes.try_into().ok()?).into(),
            Self::F32 | Self::F64 | Self::Bool | Self::String | Self::Array => return None,
        })
    }

    /// A number out of exactly [`Kind::size`] bytes.
    pub fn float(self, bytes: &[u8]) -> Option<f64> {
        match self {
            Self::F32 => Some(f32::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::F64 => Some(f64::from_le_bytes(bytes.try_into().ok()?)),
            _ => self.integer(bytes).map(|value| value as f64),
        }
    }
}

/// Default of `general.alignment`.
pub(crate) const ALIGNMENT: u64 = 32;

/// One metadata entry: its value is a range of the file.
pub(crate) struct Meta {
    pub key: String,
    pub kind: Kind,
    /// Of an array: the kind of its elements and how many there are.
    pub elements: Option<(Kind, usize)>,
    /// The value's bytes, without the type tag (of an array: the elements only).
    pub value: Range<usize>,
    /// Type tag and value, to copy as they are.
    pub whole: Range<usize>,
}

impl Meta {
    pub fn describe(&self) -> String {
        match self.elements {
            Some((kind, count)) => format!("an array of {count} {}", kind.name()),
            None => self.kind.name().to_owned(),
        }
    }
}

/// Bytes of a tensor, `None` where a row is no whole number of blocks or the size overflows.
pub(crate) fn byte_len(format: Format, dims: &[usize]) -> Option<u64> {
    let (row, outer) = dims.split_first()?;
    let row = format.row_bytes(*row)?;
    let size = outer.iter().try_fold(row, |size, axis| size.checked_mul(*axis))?;
    // The product of the axes must be countable too, for whoever multiplies them later.
    dims.iter().try_fold(1usize, |numbers, axis| numbers.checked_mul((*axis).max(1)))?;
    u64::try_from(size).ok()
}

/// A place in the file, moving forward.
pub(crate) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, at: 0 }
    }

    pub fn at(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Refuses a count of things that take at least `each` bytes where the file is too short for them.
    pub fn check_count(&self, count: u64, each: u64, what: &str) -> Result<()> {
        if count > self.left() as u64 / each {
            let message =
                format!("says {count}, but only {} bytes follow; truncated or damaged", self.left());
            return Err(Error::field(self.path, what, message));
        }
        Ok(())
    }

    pub fn bytes(&mut self, count: u64, what: &str) -> Result<&'a [u8]> {
        if count > self.left() as u64 {
            let message = format!("takes {count} bytes at offset {}, but the file ends before", self.at);
            return Err(Error::field(self.path, what, message));
        }
        // Fits: it is no more than what is left of a slice.
        let from = self.at;
        self.at += count as usize;
        Ok(&self.bytes[from..self.at])
    }

    pub fn u32(&mut self, what: &str) -> Result<u32> {
        let bytes = self.bytes(4, what)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes were asked for")))
    }

    pub fn u64(&mut self, what: &str) -> Result<u64> {
        let bytes = self.bytes(8, what)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes were asked for")))
    }

    fn name(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        let at = self.at;
        let bytes = self.bytes(length, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(e) => Err(Error::field(self.path, what, format!("at offset {at} is not UTF-8: {e}"))),
        }
    }

    fn kind(&mut self, key: &str) -> Result<Kind> {
        let number = self.u32(key)?;
        let kind = Kind::ALL.get(number as usize).copied();
        kind.ok_or_else(|| Error::field(self.path, key, format!("has the unknown value type {number}")))
    }

    /// One metadata entry.
    pub fn metadata(&mut self) -> Result<Meta> {
        let key = self.name("metadata key")?;
        let begin = self.at;
        let kind = self.kind(&key)?;
        let mut start = self.at;
        let mut elements = None;
        if kind == Kind::Array {
            let of = self.kind(&key)?;
            let count = self.u64(&key)?;
            start = self.at;
            match of {
                Kind::Array => {
                    return Err(Error::field(
                        self.path,
                        &key,
                        "is an array of arrays, which no model file has",
                    ));
                }
                Kind::String => {
                    self.check_count(count, 8, &key)?;
                    for _ in 0..count {
                        self.string(&key)?;
                    }
                }
                _ => {
                    let size = of.size().expect("of a fixed size") as u64;
                    self.check_count(count, size, &key)?;
                    self.bytes(count * size, &key)?;
                }
            }
            // Fits: as many elements lie in the file.
            elements = Some((of, count as usize));
        } else {
            match kind.size() {
                Some(size) => self.bytes(size as u64, &key).map(drop)?,
                None => self.string(&key)?,
            }
        }
        Ok(Meta { key, kind, elements, value: start..self.at, whole: begin..self.at })
    }

    fn string(&mut self, key: &str) -> Result<()> {
        let length = self.u64(key)?;
        self.bytes(length, key).map(drop)
    }

    /// One tensor description: name, axes (innermost first), format, offset.
    pub fn tensor(&mut self) -> Result<(String, Vec<usize>, Format, u64)> {
        let name = self.name("tensor name")?;
        let fail = |what: String| Error::tensor(self.path, &name, what);
        let axes = self.u32(&name)?;
        if !(1..=4).contains(&axes) {
            return Err(fail(format!("has {axes} axes; 1 to 4 are possible")));
        }
        let mut dims = Vec::with_capacity(4);
        for _ in 0..axes {
            let axis = self.u64(&name)?;
            match usize::try_from(axis) {
                Ok(axis) if axis > 0 => dims.push(axis),
                _ => {
                    let what = format!("has an axis of {axis}");
                    return Err(Error::tensor(self.path, &name, what));
                }
            }
        }
        let number = self.u32(&name)?;
        let format = tensor_format(number).map_err(|what| Error::tensor(self.path, &name, what))?;
        let offset = self.u64(&name)?;
        Ok((name, dims, format, offset))
    }
}

/// GGUF's number of a tensor format, where it has the format.
pub(crate) fn format_number(format: Format) -> Option<u32> {
    Some(match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q5_0 => 6,
        Format::Q5_1 => 7,
        Format::Q8_0 => 8,
        Format::Q2_K => 10,
        Format::Q3_K => 11,
        Format::Q4_K => 12,
        Format::Q5_K => 13,
        Format::Q6_K => 14,
        Format::Q8_K => 15,
        Format::IQ2_XXS => 16,
        Format::IQ2_XS => 17,
        Format::IQ3_XXS => 18,
        Format::IQ1_S => 19,
        Format::IQ4_NL => 20,
        Format::IQ3_S => 21,
        Format::IQ2_S => 22,
        Format::IQ4_XS => 23,
        Format::IQ1_M => 29,
        Format::BF16 => 30,
        Format::TQ1_0 => 34,
        Format::TQ2_0 => 35,
        Format::MXFP4 => 39,
        Format::NVFP4 => 40,
        Format::Q1_0 => 41,
        Format::Q2_0 => 42,
        Format::INT4 | Format::INT8 | Format::F8_E4M3 | Format::NF4_F32 | Format::NF4 => return None,
    })
}

fn tensor_format(number: u32) -> Result<Format, String> {
    if let Some(format) = Format::ALL.into_iter().find(|f| format_number(*f) == Some(number)) {
        return Ok(format);
    }
    let name = match number {
        9 => "Q8_1",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        // Layouts for one kind of processor, which llama.cpp no longer reads either.
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        _ => "unknown",
    };
    let supported = Format::ALL.iter().filter(|f| format_number(**f).is_some());
    let supported: Vec<&str> = supported.map(|f| f.name()).collect();
    Err(format!(
        "is stored as {name} (type {number}), which is not supported; supported: {}",
        supported.join(", ")
    ))
}

/// The strings of a metadata array, one at a time, borrowed from the file.
#[derive(Clone)]
pub struct Strings<'a> {
    path: &'a Path,
    key: &'a str,
    bytes: &'a [u8],
    index: usize,
    count: usize,
}

impl<'a> Strings<'a> {
    pub(crate) fn new(path: &'a Path, key: &'a str, bytes: &'a [u8], count: usize) -> Self {
        Self { path, key, bytes, index: 0, count }
    }
}

impl<'a> Iterator for Strings<'a> {
    type Item = Result<&'a str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.index == self.count {
            return None;
        }
        // Lengths were checked when the file was opened.
        let (length, rest) = self.bytes.split_first_chunk::<8>()?;
        let (text, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        self.bytes = rest;
        self.index += 1;
        Some(std::str::from_utf8(text).map_err(|e| {
            let what = format!(
                "element {} is not UTF-8 ({e}): {}",
                self.index - 1,
                shown(&String::from_utf8_lossy(text))
            );
            Error::field(self.path, self.key, what)
        }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count - self.index, Some(self.count - self.index))
    }
}

impl ExactSizeIterator for Strings<'_> {}
