//! A matrix of codes and scales, and the blocks that are made of it.

use std::ops::Range;

use lowrank_engine::FrozenWeight;
use lowrank_kernels::{Format, e4m3_to_f32, nf4_tables, pack_codes, quantize};
use rayon::prelude::*;

use super::parts::Part;
use crate::packed::Packed;

/// Rows that are made at a time: where a file keeps columns together, these are read together.
const ROWS: usize = 16;

/// What a code of a [`Source`] stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// An integer that spans at most four bits in a run.
    Int4,
    /// An integer of eight bits.
    Int8,
    /// A float of eight bits.
    E4m3,
    /// The number of a level of NF4.
    Nf4,
}

impl Code {
    const fn format(self) -> Format {
        match self {
            Self::Int4 => Format::INT4,
            Self::Int8 => Format::INT8,
            Self::E4m3 => Format::F8_E4M3,
            Self::Nf4 => Format::NF4_F32,
        }
    }

    fn value(self, code: i16) -> f32 {
        match self {
            Self::Int4 | Self::Int8 => f32::from(code),
            Self::E4m3 => e4m3_to_f32(code as u8),
            Self::Nf4 => nf4_tables().0[code as usize & 15],
        }
    }
}

/// The codes and scales of a matrix.
pub(super) trait Source: Send + Sync {
    /// Writes the codes of some rows, and a scale for each run of columns of each row.
    fn read(&self, rows: Range<usize>, codes: &mut [i16], scales: &mut [f32]);
}

/// Shape of a [`Source`]: every `run` columns of a row share a scale.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub rows: usize,
    pub cols: usize,
    pub run: usize,
    pub code: Code,
    /// What it becomes where no blocks fit.
    pub dense: Format,
}

impl Shape {
    /// The format in memory: blocks, where every block is of one run.
    pub fn format(&self) -> Format {
        let format = self.code.format();
        let block = format.block_len();
        match self.cols.is_multiple_of(block) && self.run.is_multiple_of(block) {
            true => format,
            false => self.dense,
        }
    }
}

/// A matrix of the codes and scales of what `source` gives when it is needed, which reads `parts`.
pub(super) fn packed<S: Source>(
    shape: Shape,
    parts: Vec<Part>,
    source: impl Fn() -> S + Send + Sync + 'static,
) -> Packed {
    let stored = parts.iter().map(|part| part.bytes().len()).sum();
    Packed::new(shape.format(), (shape.rows, shape.cols), stored, move || {
        let made = build(&shape, &source());
        parts.iter().for_each(Part::release);
        made
    })
}

fn build(shape: &Shape, source: &impl Source) -> Result<FrozenWeight, String> {
    let &Shape { rows, cols, run, code, .. } = shape;
    let format = shape.format();
    let bytes = format.row_bytes(cols).ok_or("its rows are not a whole number of blocks")?;
    let blocked = format == code.format();
    let runs = cols.div_ceil(run);
    let fill = |out: &mut [u8]| {
        out.par_chunks_mut(ROWS * bytes).enumerate().try_for_each(|(chunk, out)| {
            let count = out.len() / bytes;
            let (mut codes, mut scales) = (vec![0i16; count * cols], vec![0.0f32; count * runs]);
            source.read(chunk * ROWS..chunk * ROWS + count, &mut codes, &mut scales);
            let rows =
                codes.chunks_exact(cols).zip(scales.chunks_exact(runs)).zip(out.chunks_exact_mut(bytes));
            for ((codes, scales), out) in rows {
                let scale = |col: usize| scales[col / run];
                if blocked {
                    let block = format.block_len();
                    let scales: Vec<f32> = (0..cols / block).map(|i| scale(i * block)).collect();
                    pack_codes(format, codes, &scales, out);
                } else {
                    let values: Vec<f32> =
                        codes.iter().enumerate().map(|(col, q)| code.value(*q) * scale(col)).collect();
                    let mut row = Vec::with_capacity(bytes);
                    quantize(format, &values, &mut row).map_err(|e| e.to_string())?;
                    out.copy_from_slice(&row);
                }
            }
            Ok(())
        })
    };
    FrozenWeight::filled(format, rows, cols, fill).map_err(|e| e.to_string())?
}
