//! Rows picked by index, and sums into them: every such operation is one of the two of `rows.wgsl`.

use std::borrow::Borrow;

use lowrank_engine::Tensor;

use crate::gpu::Gpu;
use crate::runtime::params;
use crate::shaders::File;

/// How rows lie in a tensor: value `j` of row `r` at `r row + at + j step`.
pub(crate) struct Rows<T> {
    tensor: T,
    row: usize,
    at: usize,
    step: usize,
}

impl<T: Borrow<Tensor>> Rows<T> {
    /// Rows of `d` values, one after the other.
    pub fn of(tensor: T, d: usize) -> Self {
        Self { tensor, row: d, at: 0, step: 1 }
    }

    /// The same from column `at` on.
    pub fn starting_at(self, at: usize) -> Self {
        Self { at, ..self }
    }

    fn check(&self, largest: Option<u32>, width: usize) {
        let Some(row) = largest else { return };
        let last = row as usize * self.row + self.at + width.saturating_sub(1) * self.step;
        assert!(width == 0 || last < self.tensor.borrow().len(), "row {row} is outside the tensor");
    }
}

/// Columns of a matrix of `columns` columns as rows.
pub(crate) fn strided<T: Borrow<Tensor>>(tensor: T, columns: usize) -> Rows<T> {
    Rows { tensor, row: 1, at: 0, step: columns }
}

/// `y[to, j] = scale x[from, j]` for each pair `(to, from)` and `j` below `width`. Rows of `y` come once at most.
pub(crate) fn copy(
    gpu: &Gpu,
    y: Rows<&mut Tensor>,
    x: Rows<&Tensor>,
    pairs: impl Iterator<Item = (u32, u32)>,
    width: usize,
    scale: f32,
) {
    let data: Vec<u32> = pairs.flat_map(|(to, from)| [to, from]).collect();
    y.check(data.chunks(2).map(|pair| pair[0]).max(), width);
    x.check(data.chunks(2).map(|pair| pair[1]).max(), width);
    let n = data.len() / 2 * width;
    let parameters = params![n, width, scale, 0u32, y.row, y.at, y.step, x.row, x.at, x.step];
    let (x, y) = (gpu.read(x.tensor), gpu.write(y.tensor));
    gpu.map(File::Rows, "copy_rows", parameters, &[Some(&y), Some(&x), None], &data);
}

/// `y[to, j] += factor x[from, j]` for each `(to, from, factor)` and `j` below `width`, in the order of the entries.
pub(crate) fn add(
    gpu: &Gpu,
    y: Rows<&mut Tensor>,
    x: Rows<&Tensor>,
    entries: impl Iterator<Item = (u32, u32, f32)>,
    width: usize,
) {
    let mut entries: Vec<(u32, u32, f32)> = entries.collect();
    x.check(entries.iter().map(|entry| entry.1).max(), width);
    // A stable sort keeps the order of what goes to one row.
    entries.sort_by_key(|entry| entry.0);
    y.check(entries.last().map(|entry| entry.0), width);
    let mut data = Vec::new();
    let mut first = 0;
    for group in entries.chunk_by(|a, b| a.0 == b.0) {
        data.extend([group[0].0, first, first + group.len() as u32]);
        first += group.len() as u32;
    }
    let (groups, at) = (data.len() / 3, data.len());
    data.extend(entries.iter().flat_map(|(_, from, factor)| [*from, factor.to_bits()]));
    let parameters = params![groups * width, width, 1.0f32, at, y.row, y.at, y.step, x.row, x.at, x.step];
    let (x, y) = (gpu.read(x.tensor), gpu.write(y.tensor));
    gpu.map(File::Rows, "add_rows", parameters, &[Some(&y), Some(&x), None], &data);
}
