//! The values of one tensor, some rows at a time, to a file.

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use lowrank_files::Tensors;
use lowrank_kernels::{Format, QuantizeError, RowOrder, WeightRef, quantize};
use rayon::prelude::*;

use crate::base::{Base, Kind};
use crate::{Error, Result};

/// Numbers in memory at a time (16 MB of f32).
const PIECE: usize = 4 << 20;

/// What the written model is made of: `fill(name, rows, out)` writes rows `rows` of the tensor `name`
/// (Hugging Face's name and order) as f32. To change nothing: [`lowrank_files::Tensors::read_rows`].
pub type Fill<'a> = dyn FnMut(&str, Range<usize>, &mut [f32]) -> Result<()> + 'a;

/// # Errors
/// Where the base has no weights.
pub(super) fn refuse_plan(base: &Base) -> Result<()> {
    match base.kind {
        Kind::Config => {
            Err(Error::file(&base.source, "is a configuration alone: it has no weights to write"))
        }
        _ => Ok(()),
    }
}

/// A tensor of a file to write.
pub(super) struct Target<'a> {
    pub name: &'a str,
    pub shape: (usize, usize),
    pub format: Format,
    pub order: RowOrder,
    /// What the file adds to every value.
    pub added: f32,
}

/// Writes the values of one tensor, some rows at a time. Rows that `fill` gives as `stored` has them are copied, where that
/// is given: its format and order are those to write.
pub(super) fn stream(
    path: &Path,
    target: &Target<'_>,
    stored: Option<&Tensors>,
    fill: &mut Fill<'_>,
    out: &mut dyn Write,
) -> Result<()> {
    let &Target { name, shape: (rows, cols), format, order, added } = target;
    let fail = |what: String| Error::tensor(path, name, what);
    if rows == 0 || cols == 0 {
        return Ok(());
    }
    // Whole heads at a time: only within a head does llama.cpp's order differ, or else within all of them.
    let unit = match (order, order.multiple()) {
        (_, Some(unit)) if !rows.is_multiple_of(unit) => {
            return Err(fail(format!("its {rows} rows are not a whole number of heads of {unit}")));
        }
        (RowOrder::PartsApart { .. }, _) => rows,
        (_, unit) => unit.unwrap_or(1),
    };
    let step = (PIECE / cols / unit).max(1) * unit;
    let (mut values, mut before) = (Vec::new(), Vec::new());
    for start in (0..rows).step_by(step) {
        let piece = start..rows.min(start + step);
        values.resize(piece.len() * cols, 0.0);
        fill(name, piece.clone(), &mut values)?;
        let bytes = stored.and_then(|tensors| tensors.stored(name));
        if let (Some(tensors), Some(_)) = (stored, bytes) {
            before.resize(values.len(), 0.0);
            tensors.read_rows(name, piece.clone(), &mut before)?;
        }
        let view = WeightRef { order, ..WeightRef::from_f32(piece.len(), cols, &values) };
        let mut source: Vec<usize> = vec![0; piece.len()];
        (0..piece.len()).for_each(|row| source[view.stored_row(row)] = row);
        let copied = |row: usize| {
            let kept = WeightRef { format, rows, cols, order, bytes: bytes? };
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
            let span = row * cols..(row + 1) * cols;
            values[span.clone()].iter().zip(&before[span]).all(same).then(|| kept.row(piece.start + row))
        };
        let encode = |rows: &[usize]| {
            let mut bytes = Vec::new();
            let mut shifted = Vec::new();
            for &row in rows {
                if let Some(kept) = copied(row) {
                    bytes.extend(kept);
                    continue;
                }
                shifted.clear();
                shifted.extend(values[row * cols..][..cols].iter().map(|x| x + added));
                quantize(format, &shifted, &mut bytes)?;
            }
            Ok(bytes)
        };
        let encoded: Result<Vec<Vec<u8>>, QuantizeError> =
            source.par_chunks(piece.len().div_ceil(rayon::current_num_threads())).map(encode).collect();
        for bytes in encoded.map_err(|e| fail(e.to_string()))? {
            out.write_all(&bytes).map_err(Error::io(path))?;
        }
    }
    Ok(())
}
