//! The form a base model's matrices take in memory: as their file has them, or converted while they are read,
//! tensor by tensor, so that no more than one of them is ever there twice.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;

use lowrank_engine::{BaseStream, FrozenWeight, Span, Storage};
use lowrank_kernels::{Format, WeightRef, quantize_matrix};
use serde::{Deserialize, Serialize};

use super::tensors::Tensors;
use crate::{Error, Result};

/// What `--quantize` makes of the linear layers of a dense base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantize {
    /// QLoRA's 4-bit normal float with double quantisation: 4.13 bits a weight.
    Nf4,
    /// GGUF's Q8_0: 8.5 bits a weight.
    #[serde(rename = "q8_0")]
    Q8_0,
}

impl Quantize {
    /// The storage format.
    pub fn format(self) -> Format {
        match self {
            Self::Nf4 => Format::NF4,
            Self::Q8_0 => Format::Q8_0,
        }
    }
}

impl std::str::FromStr for Quantize {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "nf4" => Ok(Self::Nf4),
            "q8_0" => Ok(Self::Q8_0),
            _ => Err(format!("{name:?} is not known; known are nf4 and q8_0")),
        }
    }
}

/// The precision of weights and products (`--precision`). Everything else is f32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Weights as stored, products in f32.
    #[default]
    F32,
    /// F32 and F16 matrices become BF16: half the memory of F32. Where the CPU multiplies BF16 faster
    /// (AVX512-BF16), products round activations to BF16 too; sums stay f32.
    Bf16,
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(format!("{name:?} is not known; known are f32 and bf16")),
        }
    }
}

/// How a base model is held in memory.
///
/// As in QLoRA, only the linear layers are quantised: embeddings, output layer and norms stay dense. Matrices
/// that a file already has quantised stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// Quantise dense linear layers.
    pub quantize: Option<Quantize>,
    /// Keep dense matrices as BF16.
    pub precision: Precision,
    /// Keep only a window of blocks in memory, and read the weights again and again.
    pub stream: bool,
    /// Nothing but shapes, for planning: what would be converted gets no bytes.
    pub shapes_only: bool,
}

/// What became of the matrices so far.
#[derive(Default)]
pub(super) struct Converted {
    bytes: HashMap<String, usize>,
    left: Vec<String>,
    /// Tables of which only single rows are read.
    lookups: HashSet<String>,
}

/// What a matrix is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The weight of a linear layer.
    Linear,
    /// An output layer.
    Output,
}

impl Tensors {
    /// Says in which form matrices are handed out.
    pub fn set_form(&mut self, form: Form) {
        self.form = form;
        self.converted = Mutex::default();
    }

    /// The form that was asked for.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Bytes of all tensors: those that were converted in their new form, the others as stored.
    pub fn weight_bytes(&self) -> u64 {
        self.bytes(true)
    }

    /// Bytes that the tensors take in memory: all but tables in which rows are only looked up; the largest window,
    /// where they are streamed.
    pub fn resident_bytes(&self) -> u64 {
        if let Some(stream) = self.stream() {
            return stream.window_bytes() as u64;
        }
        self.bytes(false)
    }

    fn bytes(&self, lookups: bool) -> u64 {
        let converted = self.converted.lock().expect("nobody panics with it");
        let bytes = |name: &str, stored: usize| match lookups || !converted.lookups.contains(name) {
            true => converted.bytes.get(name).copied().unwrap_or(stored) as u64,
            false => 0,
        };
        match &self.planned {
            Some(planned) => planned.sizes().iter().map(|(name, stored)| bytes(name, *stored)).sum(),
            None => self.stored_sizes().map(|(name, stored)| bytes(name, stored)).sum(),
        }
    }

    /// What belongs to which block, where the form asks for streaming. A block's number is the first number in
    /// the names of its tensors (`model.layers.7.mlp.up_proj.weight`).
    pub fn stream(&self) -> Option<BaseStream> {
        if !self.form.stream || self.is_planned() {
            return None;
        }
        let (mut blocks, mut rest) = (BTreeMap::<usize, Vec<Span>>::new(), Vec::new());
        for (name, span) in self.spans() {
            match name.split('.').find_map(|part| part.parse().ok()) {
                Some(block) => blocks.entry(block).or_default().push(span),
                None => rest.push(span),
            }
        }
        Some(BaseStream::new(blocks.into_values().collect(), rest))
    }

    /// How many matrices were converted.
    pub fn converted(&self) -> usize {
        self.converted.lock().expect("nobody panics with it").bytes.len()
    }

    /// The linear layers that stay dense although they should be quantised: their rows are no whole number of
    /// blocks.
    pub fn left_dense(&self) -> Vec<String> {
        self.converted.lock().expect("nobody panics with it").left.clone()
    }

    /// A matrix in the form that was asked for.
    ///
    /// # Errors
    /// As [`Tensors::weight`], and where a number to be quantised is not finite.
    pub(crate) fn matrix(&self, name: &str, role: Role) -> Result<FrozenWeight> {
        let stored = self.weight(name)?;
        self.converted.lock().expect("nobody panics with it").lookups.remove(name);
        let weight = match self.target(name, stored.format(), stored.cols(), role) {
            Some(format) => self.convert(name, &stored, format)?,
            None => stored,
        };
        Ok(self.precise(weight))
    }

    /// A table whose rows are only looked up. It stays in its file as it is and takes no memory, unless it is asked for
    /// with [`Tensors::matrix`] later.
    ///
    /// # Errors
    /// As [`Tensors::weight`].
    pub(crate) fn table(&self, name: &str) -> Result<FrozenWeight> {
        let stored = self.weight(name)?;
        if !matches!(stored.storage(), Storage::Owned(..)) {
            self.converted.lock().expect("nobody panics with it").lookups.insert(name.to_owned());
        }
        Ok(stored)
    }

    /// The weight with the products that the precision asks for.
    fn precise(&self, weight: FrozenWeight) -> FrozenWeight {
        match self.form.precision {
            Precision::F32 => weight,
            Precision::Bf16 => weight.with_bf16_products(),
        }
    }

    /// A linear layer's matrix that is stored transposed, `[in, out]`. Where it is converted, it is also turned
    /// round: the second value says whether it is still transposed.
    ///
    /// # Errors
    /// As [`Tensors::matrix`].
    pub(crate) fn transposed_matrix(&self, name: &str) -> Result<(FrozenWeight, bool)> {
        let stored = self.weight(name)?;
        let Some(format) = self.target(name, stored.format(), stored.rows(), Role::Linear) else {
            return Ok((self.precise(stored), true));
        };
        let (rows, cols) = (stored.cols(), stored.rows());
        if self.form.shapes_only {
            let fail = |e: lowrank_engine::Error| self.fail(name, e.to_string());
            let shape = FrozenWeight::shape_only(format, rows, cols).map_err(fail)?;
            self.note(name, &shape);
            return Ok((shape, false));
        }
        let dense = transposed(&stored.view());
        let fill = |row: usize, out: &mut [f32]| out.copy_from_slice(&dense[row * cols..][..cols]);
        Ok((self.precise(self.fill(name, format, rows, cols, fill)?), false))
    }

    /// What a matrix of rows of `cols` numbers becomes, or `None` where it stays.
    fn target(&self, name: &str, stored: Format, cols: usize, role: Role) -> Option<Format> {
        if !matches!(stored, Format::F32 | Format::F16 | Format::BF16) {
            return None;
        }
        if let (Some(quantize), Role::Linear) = (self.form.quantize, role) {
            if cols.is_multiple_of(quantize.format().block_len()) {
                return Some(quantize.format());
            }
            self.converted.lock().expect("nobody panics with it").left.push(name.to_owned());
        }
        (self.form.precision == Precision::Bf16 && stored != Format::BF16).then_some(Format::BF16)
    }

    fn convert(&self, name: &str, stored: &FrozenWeight, format: Format) -> Result<FrozenWeight> {
        let (rows, cols) = (stored.rows(), stored.cols());
        if self.form.shapes_only {
            let fail = |e: lowrank_engine::Error| self.fail(name, e.to_string());
            let shape = FrozenWeight::shape_only(format, rows, cols).map_err(fail)?;
            self.note(name, &shape);
            return Ok(shape);
        }
        let view = stored.view();
        self.fill(name, format, rows, cols, |row, out| view.expand(row, 0..cols, out))
    }

    /// Makes the weight and gives the pages of the file back.
    fn fill(
        &self,
        name: &str,
        format: Format,
        rows: usize,
        cols: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<FrozenWeight> {
        let made = FrozenWeight::filled(format, rows, cols, |bytes| {
            quantize_matrix(format, rows, cols, &fill, bytes).map_err(|e| self.fail(name, e.to_string()))
        });
        let weight = made.map_err(|e| self.fail(name, e.to_string()))??;
        self.release(name);
        self.note(name, &weight);
        Ok(weight)
    }

    fn note(&self, name: &str, weight: &FrozenWeight) {
        let mut converted = self.converted.lock().expect("nobody panics with it");
        converted.bytes.insert(name.to_owned(), weight.byte_len());
    }

    fn fail(&self, name: &str, what: String) -> Error {
        Error::tensor(self.file_of(name).unwrap_or("model".as_ref()), name, what)
    }
}

/// `W^T` as f32.
fn transposed(w: &WeightRef) -> Vec<f32> {
    /// Columns read at a time: a line of each row.
    const STRIP: usize = 16;
    let (rows, cols) = (w.rows, w.cols);
    let mut out = vec![0.0; rows * cols];
    let mut strip = [0.0; STRIP];
    for (s, out) in out.chunks_mut(STRIP * rows).enumerate() {
        let at = s * STRIP;
        let width = STRIP.min(cols - at);
        for row in 0..rows {
            w.expand(row, at..at + width, &mut strip[..width]);
            for (j, number) in strip[..width].iter().enumerate() {
                out[j * rows + row] = *number;
            }
        }
    }
    out
}
