//! What the schemes share: settings, and the tensors that a matrix is made of.

use std::path::Path;

use lowrank_engine::{Span, give_back};
use lowrank_kernels::{Format, RowOrder, WeightRef};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::tensors::Tensors;

/// What to do with a folder that cannot be read.
pub(super) const INSTEAD: &str = "take the model's unquantized folder or a GGUF file of it, or save it from transformers after \
                                  `model.dequantize()`";

/// An error of one tensor of the folder.
pub(super) fn tensor_error(tensors: &Tensors, name: &str, what: String) -> Error {
    Error::tensor(tensors.file_of(name).unwrap_or("model".as_ref()), name, what)
}

/// `quantization_config`.
pub(super) struct Config<'a> {
    pub path: &'a Path,
    pub settings: &'a Map<String, Value>,
}

impl Config<'_> {
    /// The error of a setting.
    pub fn wrong(&self, field: &str, what: String) -> Error {
        Error::field(self.path, &format!("quantization_config.{field}"), what)
    }

    pub fn text(&self, field: &str) -> Option<&str> {
        self.settings.get(field)?.as_str()
    }

    pub fn integer(&self, field: &str) -> Option<i64> {
        self.settings.get(field)?.as_i64()
    }
}

/// A tensor of the file, whatever its type.
#[derive(Clone)]
pub(super) struct Part {
    span: Span,
    pub dtype: String,
    pub shape: Vec<usize>,
}

impl Part {
    /// The tensor `name`, whose type must be one of `dtypes`.
    ///
    /// # Errors
    /// Where it is missing or of another type.
    pub fn of(tensors: &Tensors, name: &str, dtypes: &[&str]) -> Result<Self> {
        let part = Self::find(tensors, name).ok_or_else(|| tensors.missing(name))?;
        if !dtypes.contains(&part.dtype.as_str()) {
            let what = format!("is {}, expected {}", part.dtype, dtypes.join(" or "));
            return Err(tensor_error(tensors, name, what));
        }
        Ok(part)
    }

    pub fn find(tensors: &Tensors, name: &str) -> Option<Self> {
        let (dtype, shape, span) = tensors.raw(name)?;
        Some(Self { span, dtype, shape })
    }

    /// Checks the shape.
    ///
    /// # Errors
    /// Where it is another.
    pub fn expect(&self, tensors: &Tensors, name: &str, shape: &[usize]) -> Result<()> {
        if self.shape == shape {
            return Ok(());
        }
        let what = format!("has shape {:?}; quantization_config asks for {shape:?}", self.shape);
        Err(tensor_error(tensors, name, what))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.span.0[self.span.1.clone()]
    }

    /// Value `i` of a tensor of I32.
    #[inline]
    pub fn i32(&self, i: usize) -> i32 {
        i32::from_le_bytes(self.bytes()[4 * i..][..4].try_into().expect("four bytes"))
    }

    /// All values, of a tensor of one of [`FLOATS`], I64 or I32.
    pub fn values(&self) -> Vec<f32> {
        fn read<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.chunks_exact(N).map(|b| value(b.try_into().expect("the size of a value"))).collect()
        }
        let bytes = self.bytes();
        match self.dtype.as_str() {
            name @ ("F16" | "BF16") => {
                let format = if name == "F16" { Format::F16 } else { Format::BF16 };
                let mut values = vec![0.0; bytes.len() / 2];
                let (cols, order) = (values.len(), RowOrder::Plain);
                WeightRef { format, rows: 1, cols, order, bytes }.expand(0, 0..cols, &mut values);
                values
            }
            // A power of two.
            "F8_E8M0" => read(bytes, |[e]| 2f32.powi(i32::from(e) - 127)),
            "I64" => read(bytes, |b| i64::from_le_bytes(b) as f32),
            "I32" => read(bytes, |b| i32::from_le_bytes(b) as f32),
            _ => read(bytes, f32::from_le_bytes),
        }
    }

    /// Gives the memory of its pages back.
    pub fn release(&self) {
        give_back(&self.span);
    }
}

/// Types of scales.
pub(super) const FLOATS: [&str; 4] = ["F32", "F16", "BF16", "F8_E8M0"];

/// The dense format for weights whose scales fit no blocks.
pub(super) fn dense_format(scales: &Part) -> Format {
    if scales.dtype == "BF16" { Format::BF16 } else { Format::F16 }
}
