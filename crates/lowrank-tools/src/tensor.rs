//! Named tensors in memory, and the files they come from and go to.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use lowrank_files::{Tensors, regular, write_atomic};
use lowrank_kernels::{Format, quantize};
use safetensors::tensor::{Dtype, Metadata, TensorView};

use crate::error::{Error, Result};

/// A tensor: numbers as f32, and the number type its file has.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Outermost axis first.
    pub shape: Vec<usize>,
    /// The numbers, row-major.
    pub data: Vec<f32>,
    /// F32, F16 or BF16: how it is written.
    pub dtype: Format,
}

/// Tensors by name, in the order of their names.
pub type Named = BTreeMap<String, Tensor>;

impl Tensor {
    /// An F32 tensor.
    ///
    /// # Panics
    /// Where the shape holds another count of numbers.
    pub fn new(shape: Vec<usize>, data: Vec<f32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "numbers of a tensor {shape:?}");
        Self { shape, data, dtype: Format::F32 }
    }

    /// One number.
    pub fn scalar(value: f32) -> Self {
        Self::new(Vec::new(), vec![value])
    }

    /// First axis.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// The product of the other axes.
    pub fn cols(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// The transpose of a matrix.
    ///
    /// # Panics
    /// Where it is none.
    pub fn transposed(&self) -> Self {
        let &[rows, cols] = &self.shape[..] else { panic!("{:?} is not a matrix", self.shape) };
        let data = (0..rows * cols).map(|i| self.data[i % rows * cols + i / rows]).collect();
        Self { shape: vec![cols, rows], data, dtype: self.dtype }
    }

    /// The bytes in its number type, least significant first.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.data.len() * self.dtype.block_bytes());
        quantize(self.dtype, &self.data, &mut out).expect("a plain number type");
        out
    }

    /// The square root of the sum of squares.
    pub fn norm(&self) -> f64 {
        self.data.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt()
    }
}

/// All tensors of a safetensors or PyTorch file.
///
/// # Errors
/// Where the file is damaged or holds a number type that is not read (8 bits and less of float).
pub fn read(path: &Path) -> Result<Named> {
    let file = Tensors::open(path)?;
    file.names().map(|name| Ok((name.to_owned(), read_one(&file, name)?))).collect()
}

/// One tensor of an opened file.
pub(crate) fn read_one(file: &Tensors, name: &str) -> Result<Tensor> {
    let (shape, data) = (file.shape(name).unwrap_or_default().to_vec(), file.values(name)?);
    let dtype = match file.format(name) {
        Some(format @ (Format::F16 | Format::BF16)) => format,
        _ => Format::F32,
    };
    Ok(Tensor { shape, data, dtype })
}

/// The format's own limit on the header.
const MAX_HEADER: u64 = 100_000_000;

/// The `__metadata__` of a safetensors file; `None` for any other file.
pub(crate) fn metadata(path: &Path) -> Result<Option<HashMap<String, String>>> {
    // The header alone: eight bytes of length, and as many bytes of JSON.
    regular(path)?;
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut bytes = vec![0; 8];
    file.read_exact(&mut bytes).map_err(Error::io(path))?;
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")).min(MAX_HEADER);
    file.take(length).read_to_end(&mut bytes).map_err(Error::io(path))?;
    let found = serde_json::from_slice::<Metadata>(&bytes[8..]).ok();
    Ok(found.map(|metadata| metadata.metadata().clone().unwrap_or_default()))
}

/// Writes a safetensors file, whole or not at all.
///
/// # Errors
/// Where it cannot be written.
pub fn write(path: &Path, tensors: &Named, metadata: &[(&str, &str)]) -> Result<()> {
    let bytes: Vec<(&String, &Tensor, Vec<u8>)> =
        tensors.iter().map(|(name, tensor)| (name, tensor, tensor.bytes())).collect();
    let views = bytes.iter().map(|(name, tensor, bytes)| {
        let dtype = match tensor.dtype {
            Format::F16 => Dtype::F16,
            Format::BF16 => Dtype::BF16,
            _ => Dtype::F32,
        };
        (*name, TensorView::new(dtype, tensor.shape.clone(), bytes).expect("sizes agree"))
    });
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let file = safetensors::serialize(views, Some(metadata)).map_err(|e| Error::file(path, e.to_string()))?;
    Ok(write_atomic(path, &file)?)
}
