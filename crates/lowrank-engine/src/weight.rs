//! Frozen weights: read where they lie, never copied whole.

use std::ops::Range;
use std::sync::Arc;

use lowrank_kernels::{self as kernels, Format, RowOrder, WeightRef};
use rayon::prelude::*;

use crate::Error;
use crate::mapped::Mapped;

/// Rows that one task reads from a file.
const ROWS: usize = 64;

/// Where the bytes of a frozen weight live.
#[derive(Clone)]
pub enum Storage {
    /// A range of a memory-mapped file.
    Mapped(Arc<Mapped>, Range<usize>),
    /// Bytes of our own (8-byte aligned), for weights that were made or changed in memory.
    Owned(Arc<Vec<u64>>, usize),
    /// No bytes at all: the Plan device needs shapes only.
    Shape,
}

/// A base weight `W: rows x cols` that no training step changes: shared by all adapters, kept in the
/// format of its file, expanded tile by tile inside the products.
///
/// Cloning is cheap: clones share the bytes.
#[derive(Clone)]
pub struct FrozenWeight {
    format: Format,
    rows: usize,
    cols: usize,
    order: RowOrder,
    storage: Storage,
    bf16_products: bool,
}

impl FrozenWeight {
    /// A weight over `storage`. The storage must hold exactly `rows * cols` numbers of `format`.
    ///
    /// # Errors
    /// Where a row is not a whole number of blocks, or the bytes are too few or too many.
    pub fn new(
        format: Format,
        rows: usize,
        cols: usize,
        order: RowOrder,
        storage: Storage,
    ) -> Result<Self, Error> {
        if !cols.is_multiple_of(format.block_len()) {
            let blocks = format.name();
            return Err(Error::Weight(format!("{cols} columns are not a whole number of {blocks} blocks")));
        }
        let want =
            format.matrix_bytes(rows, cols).ok_or(Error::Weight(format!("{rows} x {cols} overflows")))?;
        let have = match &storage {
            Storage::Mapped(map, range) => {
                if range.end > map.len() || range.start > range.end {
                    return Err(Error::Weight("its bytes lie outside the file".into()));
                }
                range.len()
            }
            Storage::Owned(_, len) => *len,
            Storage::Shape => want,
        };
        if have != want {
            return Err(Error::Weight(format!(
                "{rows} x {cols} {} takes {want} bytes, found {have}",
                format.name()
            )));
        }
        if let Some(unit) = order.multiple()
            && (unit == 0 || !unit.is_multiple_of(2) || !rows.is_multiple_of(unit))
        {
            return Err(Error::Weight(format!("{rows} rows are not a whole number of heads of {unit}")));
        }
        Ok(Self { format, rows, cols, order, storage, bf16_products: false })
    }

    /// An F32 weight that owns its numbers.
    pub fn from_f32(rows: usize, cols: usize, data: &[f32]) -> Self {
        assert_eq!(data.len(), rows * cols, "a {rows} x {cols} weight");
        let view = WeightRef::from_f32(rows, cols, data);
        Self::from_bytes(Format::F32, rows, cols, view.bytes).expect("the size was just checked")
    }

    /// A weight that owns a copy of `bytes`, in Hugging Face's row order.
    ///
    /// # Errors
    /// As [`FrozenWeight::new`].
    pub fn from_bytes(format: Format, rows: usize, cols: usize, bytes: &[u8]) -> Result<Self, Error> {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        as_bytes(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self::new(format, rows, cols, RowOrder::Plain, Storage::Owned(Arc::new(words), bytes.len()))
    }

    /// A weight that owns the bytes that `fill` writes (zeros before), in Hugging Face's row order. The inner
    /// result is `fill`'s.
    ///
    /// # Errors
    /// As [`FrozenWeight::new`].
    pub fn filled<E>(
        format: Format,
        rows: usize,
        cols: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Result<Self, E>, Error> {
        let len = Self::shape_only(format, rows, cols)?.byte_len();
        let mut words = vec![0u64; len.div_ceil(8)];
        if let Err(error) = fill(&mut as_bytes(&mut words)[..len]) {
            return Ok(Err(error));
        }
        Self::new(format, rows, cols, RowOrder::Plain, Storage::Owned(Arc::new(words), len)).map(Ok)
    }

    /// A weight without bytes, for planning.
    ///
    /// # Errors
    /// As [`FrozenWeight::new`].
    pub fn shape_only(format: Format, rows: usize, cols: usize) -> Result<Self, Error> {
        Self::new(format, rows, cols, RowOrder::Plain, Storage::Shape)
    }

    /// The same weight, whose products may round activations to BF16 where the CPU is faster that way.
    pub fn with_bf16_products(self) -> Self {
        Self { bf16_products: true, ..self }
    }

    /// Whether products may round activations to BF16.
    pub fn bf16_products(&self) -> bool {
        self.bf16_products
    }

    /// Output features `O`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features `K`.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Storage format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Order of the stored rows.
    pub fn order(&self) -> RowOrder {
        self.order
    }

    /// Size of the stored numbers in bytes.
    pub fn byte_len(&self) -> usize {
        self.format.matrix_bytes(self.rows, self.cols).expect("checked when made")
    }

    /// Where the bytes live.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Rows `ids` as f32: `out[i,:] = W[ids[i],:]`. What a file holds is read from there row by row, so that a table
    /// in which words are only looked up takes no memory.
    ///
    /// # Panics
    /// Where an id is not below the rows or `out` has another length, and as [`FrozenWeight::view`].
    pub fn rows_of(&self, ids: &[u32], out: &mut [f32]) {
        let Storage::Mapped(file, range) = &self.storage else {
            return kernels::embedding(out, ids, &self.view(), ids.len());
        };
        assert_eq!(out.len(), ids.len() * self.cols, "rows of {} numbers", self.cols);
        let view = self.view();
        let len = self.format.row_bytes(self.cols).expect("checked when made");
        let copy = |(ids, out): (&[u32], &mut [f32])| {
            let mut bytes = vec![0; len];
            for (id, out) in ids.iter().zip(out.chunks_exact_mut(self.cols)) {
                let (row, rows) = (*id as usize, self.rows);
                assert!(row < rows, "id {row} is not below the table's {rows} rows");
                file.read(range.start + view.stored_row(row) * len, &mut bytes);
                WeightRef { rows: 1, order: RowOrder::Plain, bytes: &bytes, ..view }.expand(
                    0,
                    0..self.cols,
                    out,
                );
            }
        };
        match ids.len() {
            ..=ROWS => copy((ids, out)),
            _ => ids.par_chunks(ROWS).zip(out.par_chunks_mut(ROWS * self.cols)).for_each(copy),
        }
    }

    /// The view the kernels read.
    ///
    /// # Panics
    /// For a weight without bytes: the Plan device never reads one.
    pub fn view(&self) -> WeightRef<'_> {
        let bytes = match &self.storage {
            Storage::Mapped(map, range) => &map[range.clone()],
            Storage::Owned(words, len) => {
                // SAFETY: the words are initialised and cover `len` bytes.
                unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), *len) }
            }
            Storage::Shape => panic!("a planned weight has no bytes"),
        };
        WeightRef { format: self.format, rows: self.rows, cols: self.cols, order: self.order, bytes }
    }
}

fn as_bytes(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: u64 has no padding, any byte pattern is a valid u64, and the length is in bounds.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), words.len() * 8) }
}

impl std::fmt::Debug for FrozenWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FrozenWeight({} x {} {})", self.rows, self.cols, self.format.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_file_are_those_of_memory() {
        let (rows, cols) = (156, 24);
        let numbers: Vec<f32> = (0..rows * cols).map(|i| i as f32 / 8.0).collect();
        let owned = FrozenWeight::from_f32(rows, cols, &numbers);
        let path = std::env::temp_dir().join(format!("lowrank-rows-{}", std::process::id()));
        let mut bytes = vec![7; 12];
        bytes.extend_from_slice(owned.view().bytes);
        std::fs::write(&path, &bytes).unwrap();
        let file = Arc::new(Mapped::new(std::fs::File::open(&path).unwrap(), &path).unwrap());
        std::fs::remove_file(&path).unwrap();
        let ids: Vec<u32> = (0..200).map(|i| i * 37 % 156).collect();
        let apart = RowOrder::PartsApart { head_dim: 26 };
        for order in [RowOrder::Plain, RowOrder::RopeInterleaved { head_dim: 26 }, apart] {
            let storage = Storage::Mapped(file.clone(), 12..bytes.len());
            let mapped = FrozenWeight::new(Format::F32, rows, cols, order, storage).unwrap();
            let view = WeightRef { order, ..owned.view() };
            let mut want = vec![0.0; ids.len() * cols];
            kernels::embedding(&mut want, &ids, &view, ids.len());
            let mut got = vec![f32::NAN; want.len()];
            mapped.rows_of(&ids, &mut got);
            assert_eq!(got, want);
        }
    }
}
