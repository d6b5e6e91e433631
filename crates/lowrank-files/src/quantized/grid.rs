//! Codes of a byte, `[rows, cols]`, with scales for all, for each row, or for blocks of rows and columns.

use std::ops::Range;

use super::matrix::{Code, Shape, Source, packed};
use super::parts::{FLOATS, INSTEAD, Part, dense_format, tensor_error};
use crate::error::Result;
use crate::packed::Packed;
use crate::tensors::Tensors;

struct Grid {
    weight: Part,
    scales: Vec<f32>,
    /// Scales of a row of blocks.
    across: usize,
    block_rows: usize,
    cols: usize,
    signed: bool,
}

impl Source for Grid {
    fn read(&self, rows: Range<usize>, codes: &mut [i16], scales: &mut [f32]) {
        let bytes = &self.weight.bytes()[rows.start * self.cols..rows.end * self.cols];
        for (code, byte) in codes.iter_mut().zip(bytes) {
            *code = if self.signed { i16::from(*byte as i8) } else { i16::from(*byte) };
        }
        for (row, to) in rows.zip(scales.chunks_exact_mut(self.across)) {
            to.copy_from_slice(&self.scales[row / self.block_rows * self.across..][..self.across]);
        }
    }
}

/// How the scales of a matrix of bytes are said.
pub(super) struct Scales<'a> {
    pub name: &'a str,
    /// What each is multiplied with.
    pub times: f32,
    /// Rows and columns of a block, where the settings say.
    pub block: Option<[usize; 2]>,
}

/// A matrix of the bytes `name` and its scales.
pub(super) fn bytes_with_scales(
    tensors: &Tensors,
    name: &str,
    code: Code,
    scales: Scales<'_>,
) -> Result<Packed> {
    let signed = code == Code::Int8;
    let weight = Part::of(tensors, name, if signed { &["I8"] } else { &["F8_E4M3"] })?;
    let &[rows, cols] = weight.shape.as_slice() else {
        let what = format!("has shape {:?}, expected a matrix: {INSTEAD}", weight.shape);
        return Err(tensor_error(tensors, name, what));
    };
    let scale = Part::of(tensors, scales.name, &FLOATS)?;
    let count: usize = scale.shape.iter().product();
    let grid = match scale.shape.as_slice() {
        [a, b] => [*a, *b],
        [a] if *a == rows => [*a, 1],
        _ => [1, count],
    };
    // How many rows or columns a scale is for.
    let span = |axis: usize, len: usize| -> Option<usize> {
        match (grid[axis], scales.block.map(|sizes| sizes[axis])) {
            (0, _) => None,
            (1, _) => Some(len),
            (count, _) if count == len => Some(1),
            (count, Some(size)) => (len.div_ceil(size) == count).then_some(size),
            (count, None) => len.is_multiple_of(count).then(|| len / count),
        }
    };
    let (Some(block_rows), Some(run)) = (span(0, rows), span(1, cols)) else {
        let what = format!("has shape {:?}, which are not the scales of {rows} x {cols} values", scale.shape);
        return Err(tensor_error(tensors, scales.name, what));
    };
    if rows == 0 || cols == 0 {
        return Err(tensor_error(tensors, name, format!("is empty (shape {:?})", weight.shape)));
    }
    let shape = Shape { rows, cols, run, code, dense: dense_format(&scale) };
    let across = cols.div_ceil(run);
    let (parts, times) = (vec![weight.clone(), scale.clone()], scales.times);
    Ok(packed(shape, parts, move || {
        let scales = scale.values().iter().map(|value| value * times).collect();
        Grid { weight: weight.clone(), scales, across, block_rows, cols, signed }
    }))
}
