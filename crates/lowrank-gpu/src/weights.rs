//! Frozen weights in a GPU's memory: the blocks of their file, padded to whole words, rows in Hugging Face's order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use lowrank_engine::{Error, Format, FrozenWeight, Storage};

use crate::memory::Slice;
use crate::runtime::Runtime;

/// The most bytes of one part of a weight, where the device takes more.
const MOST_PART: u64 = 1 << 30;

/// Rows of a weight that lie in one buffer.
pub(crate) struct Part {
    pub first: usize,
    pub rows: usize,
    pub slice: Slice,
}

/// A weight that has been uploaded.
pub(crate) struct Uploaded {
    /// Words of a row.
    pub words: usize,
    pub parts: Vec<Part>,
    bytes: u64,
    /// Keeps the bytes that the key names.
    _weight: FrozenWeight,
}

/// The weights that have been uploaded.
#[derive(Default)]
pub(crate) struct Weights {
    map: Mutex<HashMap<[usize; 3], Arc<Uploaded>>>,
}

impl Weights {
    /// The weight in the device's memory, uploaded when it is first used.
    pub fn get(&self, runtime: &Runtime, weight: &FrozenWeight) -> Arc<Uploaded> {
        let key = match weight.storage() {
            Storage::Mapped(file, range) => [Arc::as_ptr(file) as usize, range.start, range.end],
            Storage::Owned(words, len) => [Arc::as_ptr(words) as usize, 0, *len],
            Storage::Shape => panic!("a planned weight has no bytes"),
        };
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        map.entry(key).or_insert_with(|| Arc::new(upload(runtime, weight))).clone()
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        map.values().map(|weight| weight.bytes).sum()
    }
}

/// Whether a GPU has the format as 16 bytes and their scale (f32) for each 16 values: the formats that need tables.
pub(crate) fn is_levels(format: Format) -> bool {
    !format.can_quantize()
        && !matches!(format, Format::Q2_K | Format::F8_E4M3 | Format::NF4_F32 | Format::NF4)
}

/// Words of a block in a GPU's memory.
fn block_words(format: Format) -> usize {
    match format {
        // A scale of its own for each block, in f32.
        Format::NF4 => 9,
        _ if is_levels(format) => 5 * format.block_len() / 16,
        _ => format.block_bytes().div_ceil(4),
    }
}

/// Words of a row of `cols` values.
pub(crate) fn row_words(format: Format, cols: usize) -> usize {
    match format {
        Format::F32 => cols,
        Format::F16 | Format::BF16 => cols.div_ceil(2),
        _ => cols / format.block_len() * block_words(format),
    }
}

fn upload(runtime: &Runtime, weight: &FrozenWeight) -> Uploaded {
    let (rows, words) = (weight.rows(), row_words(weight.format(), weight.cols()).max(1));
    let most = (runtime.memory.largest().min(MOST_PART) / 4) as usize;
    let per_part = (most / words).max(1);
    let mut parts = Vec::new();
    let mut bytes = 0;
    for first in (0..rows).step_by(per_part) {
        let count = per_part.min(rows - first);
        let len = 4 * (count * words) as u64;
        let Some(buffer) = (len <= runtime.memory.largest()).then(|| runtime.memory.create(len)).flatten()
        else {
            Error::Memory(format!(
                "{}: out of memory: the base needs {} MiB more: take a smaller or quantized base (`quantize`), or device `cpu`",
                runtime.name,
                len >> 20
            ))
            .end_step()
        };
        // In runs of rows, so that little of it is in the host's memory at once.
        let run = ((4 << 20) / words).max(1);
        for start in (first..first + count).step_by(run) {
            let rows = start..(start + run).min(first + count);
            let mut data = Vec::with_capacity(rows.len() * words);
            rows.clone().for_each(|row| push_row(&mut data, weight, row));
            runtime.write(&buffer, 4 * ((start - first) * words) as u64, bytemuck::cast_slice(&data));
        }
        bytes += len;
        parts.push(Part { first, rows: count, slice: Slice { buffer, offset: 0, len, _own: None } });
    }
    Uploaded { words, parts, bytes, _weight: weight.clone() }
}

/// Appends the words of a row.
fn push_row(to: &mut Vec<u32>, weight: &FrozenWeight, row: usize) {
    let view = weight.view();
    let bytes = view.row(row);
    let word = |bytes: &[u8]| {
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        u32::from_le_bytes(word)
    };
    match weight.format() {
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => {
            // The scale has a word of its own.
            for block in bytes.chunks_exact(weight.format().block_bytes()) {
                to.push(word(&block[..2]));
                to.extend(block[2..].chunks(4).map(word));
            }
        }
        Format::Q6_K => {
            for block in bytes.chunks_exact(weight.format().block_bytes()) {
                to.extend(block.chunks(4).map(word));
            }
        }
        Format::NF4 => {
            let scales = lowrank_kernels::nf4_scales(&view, row);
            for (block, scale) in bytes.chunks_exact(weight.format().block_bytes()).zip(scales) {
                to.push(scale.to_bits());
                to.extend(block[1..].chunks(4).map(word));
            }
        }
        format if is_levels(format) => {
            let (quants, scales) = lowrank_kernels::row_levels(&view, row).expect("a format of levels");
            for (quants, scale) in quants.chunks_exact(16).zip(scales) {
                to.push(scale.to_bits());
                to.extend(
                    quants.chunks_exact(4).map(|q| u32::from_le_bytes([0, 1, 2, 3].map(|i| q[i] as u8))),
                );
            }
        }
        _ => to.extend(bytes.chunks(4).map(word)),
    }
}
