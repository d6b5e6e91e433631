//! Tensors as [`LoadOptions`] ask for them: converted while they are read, tensor by tensor, so that no more than one of
//! them is in memory twice, or with shapes alone.

use std::collections::BTreeMap;
use std::sync::Mutex;

use lowrank_engine::{BaseStream, FrozenWeight, Span, Storage};
use lowrank_kernels::{Format, WeightRef, quantize_matrix};

use crate::error::{Error, Result};
use crate::load_options::{LoadOptions, Precision, Role};
use crate::planned::Planned;
use crate::tensors::Tensors;

impl Tensors {
    /// The tensors of a model that is only planned, in the plain format `format`.
    pub fn planned(format: Format) -> Self {
        let mut tensors = Self::default();
        tensors.planned = Some(Planned::new(format));
        tensors.set_load_options(LoadOptions { shapes_only: true, ..LoadOptions::default() });
        tensors
    }

    /// Whether there are shapes only.
    pub fn is_planned(&self) -> bool {
        self.planned.is_some()
    }

    /// Says which shape a tensor has where the model is only planned. A vector has one column.
    ///
    /// # Errors
    /// Where that is no size of a tensor, or more than any model has.
    pub fn plan(&self, name: &str, rows: usize, cols: usize) -> Result<()> {
        let Some(planned) = &self.planned else { return Ok(()) };
        planned.ask(name, rows, cols)
    }

    /// Sets how matrices are held in memory from now on.
    pub fn set_load_options(&mut self, options: LoadOptions) {
        self.options = options;
        self.converted = Mutex::default();
    }

    /// How matrices are held in memory.
    pub fn load_options(&self) -> LoadOptions {
        self.options
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

    /// Bytes of the matrices that were converted, and the most that one conversion took beside its result.
    pub fn conversion_bytes(&self) -> (usize, usize) {
        let converted = self.converted.lock().expect("nobody panics with it");
        (converted.bytes.values().sum(), converted.temporary)
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
        if !self.options.stream || self.is_planned() {
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
        let converted = self.converted.lock().expect("nobody panics with it");
        converted.bytes.keys().filter(|name| !self.is_packed(name)).count()
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
    pub fn matrix(&self, name: &str, role: Role) -> Result<FrozenWeight> {
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
    pub fn table(&self, name: &str) -> Result<FrozenWeight> {
        let stored = self.weight(name)?;
        if !matches!(stored.storage(), Storage::Owned(..)) && !self.is_packed(name) {
            self.converted.lock().expect("nobody panics with it").lookups.insert(name.to_owned());
        }
        Ok(stored)
    }

    /// The weight with the products that the precision asks for.
    fn precise(&self, weight: FrozenWeight) -> FrozenWeight {
        match self.options.precision {
            Precision::F32 => weight,
            Precision::Bf16 => weight.with_bf16_products(),
        }
    }

    /// A linear layer's matrix that is stored transposed, `[in, out]`. Where it is converted, it is also turned
    /// round: the second value says whether it is still transposed.
    ///
    /// # Errors
    /// As [`Tensors::matrix`].
    pub fn transposed_matrix(&self, name: &str) -> Result<(FrozenWeight, bool)> {
        let stored = self.weight(name)?;
        let Some(format) = self.target(name, stored.format(), stored.rows(), Role::Linear) else {
            return Ok((self.precise(stored), true));
        };
        let (rows, cols) = (stored.cols(), stored.rows());
        self.note_conversion(stored.byte_len() + rows * cols * size_of::<f32>());
        if self.options.shapes_only {
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
        if let (Some(quantize), Role::Linear) = (self.options.quantize, role) {
            if cols.is_multiple_of(quantize.format().block_len()) {
                return Some(quantize.format());
            }
            self.converted.lock().expect("nobody panics with it").left.push(name.to_owned());
        }
        (self.options.precision == Precision::Bf16 && stored != Format::BF16).then_some(Format::BF16)
    }

    fn convert(&self, name: &str, stored: &FrozenWeight, format: Format) -> Result<FrozenWeight> {
        let (rows, cols) = (stored.rows(), stored.cols());
        self.note_conversion(stored.byte_len());
        if self.options.shapes_only {
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

    pub(crate) fn note_conversion(&self, temporary: usize) {
        let mut converted = self.converted.lock().expect("nobody panics with it");
        converted.temporary = converted.temporary.max(temporary);
    }

    pub(crate) fn note(&self, name: &str, weight: &FrozenWeight) {
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
