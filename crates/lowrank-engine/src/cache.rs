//! Keys and values of the tokens seen so far, for generation.

use std::ops::Range;

use crate::device::Device;
use crate::tensor::Tensor;

/// One buffer of keys and one of values per layer, `[rows, kv_heads * head_dim]`. Which rows belong to
/// which sequence is the caller's business: segments name them.
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    rows: usize,
    /// For each row of the next forward pass, the cache row that its key and value go to.
    pub targets: Vec<usize>,
}

impl KvCache {
    /// A cache of `rows` rows for layers of the given widths.
    pub fn new(device: &Device, rows: usize, kv_widths: &[usize]) -> Self {
        let layers = kv_widths.iter().map(|&d| (device.alloc(rows, d), device.alloc(rows, d))).collect();
        Self { layers, rows, targets: Vec::new() }
    }

    /// Capacity in rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Makes room for at least `rows` rows, keeping what is there.
    pub fn grow(&mut self, device: &Device, rows: usize) {
        if rows <= self.rows {
            return;
        }
        for (keys, values) in &mut self.layers {
            for buffer in [keys, values] {
                let mut larger = device.alloc(rows, buffer.cols());
                larger.data_mut()[..buffer.data().len()].copy_from_slice(buffer.data());
                *buffer = larger;
            }
        }
        self.rows = rows;
    }

    /// Copies the rows `from` of every layer to those from `to` on.
    pub fn copy_rows(&mut self, from: Range<usize>, to: usize) {
        for (keys, values) in &mut self.layers {
            for buffer in [keys, values] {
                let d = buffer.cols();
                buffer.data_mut().copy_within(from.start * d..from.end * d, to * d);
            }
        }
    }

    /// Stores the keys and values of the pass's rows and returns the whole buffers of the layer.
    pub(crate) fn extend(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        assert_eq!(self.targets.len(), k.rows(), "one cache row per token");
        let (keys, values) = &mut self.layers[layer];
        for (buffer, rows) in [(&mut *keys, k), (&mut *values, v)] {
            let d = rows.cols();
            let data = buffer.data_mut();
            for (&to, row) in self.targets.iter().zip(rows.data().chunks_exact(d)) {
                data[to * d..(to + 1) * d].copy_from_slice(row);
            }
        }
        (keys.clone(), values.clone())
    }
}
