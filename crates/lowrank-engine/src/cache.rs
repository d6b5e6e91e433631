//! Keys and values of the tokens seen so far, for generation.

use std::ops::Range;

use crate::device::Device;
use crate::tensor::Tensor;

/// One buffer of keys and one of values per layer, `[rows, kv_heads * head_dim]`. Which rows belong to
/// which sequence is the caller's business: segments name them.
pub struct KvCache {
    device: Device,
    layers: Vec<(Tensor, Tensor)>,
    rows: usize,
    /// For each row of the next forward pass, the cache row that its key and value go to.
    pub targets: Vec<usize>,
}

impl KvCache {
    /// A cache of `rows` rows for layers of the given widths.
    pub fn new(device: &Device, rows: usize, kv_widths: &[usize]) -> Self {
        let layers = kv_widths.iter().map(|&d| (device.alloc(rows, d), device.alloc(rows, d))).collect();
        Self { device: device.clone(), layers, rows, targets: Vec::new() }
    }

    /// Capacity in rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Makes room for at least `rows` rows, keeping what is there.
    pub fn grow(&mut self, rows: usize) {
        if rows <= self.rows {
            return;
        }
        for (keys, values) in &mut self.layers {
            for buffer in [keys, values] {
                let mut larger = self.device.alloc(rows, buffer.cols());
                let rows: Vec<u32> = (0..buffer.rows() as u32).collect();
                self.device.scatter_rows(&mut larger, buffer, &rows);
                *buffer = larger;
            }
        }
        self.rows = rows;
    }

    /// Copies the rows `from` of every layer to those from `to` on.
    pub fn copy_rows(&mut self, from: Range<usize>, to: usize) {
        for (keys, values) in &mut self.layers {
            for buffer in [keys, values] {
                self.device.move_rows(buffer, from.clone(), to);
            }
        }
    }

    /// Stores the keys and values of the pass's rows and returns the whole buffers of the layer.
    pub(crate) fn extend(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        assert_eq!(self.targets.len(), k.rows(), "one cache row per token");
        let (keys, values) = &mut self.layers[layer];
        let targets: Vec<u32> = self.targets.iter().map(|&row| row as u32).collect();
        self.device.scatter_rows(keys, k, &targets);
        self.device.scatter_rows(values, v, &targets);
        (keys.clone(), values.clone())
    }
}
