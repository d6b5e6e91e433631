//! Products.

use lowrank_engine::{FrozenWeight, Mat, MatMut, Tensor};

use crate::gpu::Gpu;
use crate::memory::Slice;
use crate::runtime::params;
use crate::shaders::File;

/// Rows and columns of a tile of the result.
const TILE: usize = 64;

fn tiles(m: usize, n: usize) -> [usize; 2] {
    [m.div_ceil(TILE) * n.div_ceil(TILE), 1]
}

pub(crate) fn gemm(gpu: &Gpu, alpha: f32, a: Mat<'_>, b: Mat<'_>, beta: f32, mut c: MatMut<'_>) {
    let ((m, k), (kb, n)) = (a.shape(), b.shape());
    assert_eq!(k, kb, "inner sizes of a product");
    assert_eq!((m, n), c.shape(), "result of a product");
    let ((a_row, a_col), (b_row, b_col)) = (a.strides(), b.strides());
    let (a, b, c) = (gpu.read(a.tensor()), gpu.read(b.tensor()), gpu.write(c.tensor()));
    let parameters = params![m, n, k, a_row, a_col, 0u32, n, 0u32, alpha, beta, b_row, b_col];
    gpu.runtime.dispatch((File::Gemm, "gemm"), tiles(m, n), parameters, &[&c, &a, &b].map(Some), &[]);
}

/// `y = beta y + x W^T` where `transposed`, else `y = beta y + x W`, for the stored `W`.
pub(crate) fn frozen(gpu: &Gpu, y: &mut Tensor, x: &Tensor, w: &FrozenWeight, transposed: bool, beta: f32) {
    let (rows, cols) = (w.rows(), w.cols());
    let (inner, outer) = if transposed { (cols, rows) } else { (rows, cols) };
    let m = x.rows();
    assert!(
        x.len() == m * inner && y.len() == m * outer,
        "a product of {} values with a {rows} x {cols} weight to {}",
        x.len(),
        y.len()
    );
    let weight = gpu.weights.get(&gpu.runtime, w);
    let (x, y) = (gpu.read(x), gpu.write(y));
    let words = weight.words;
    let dispatch = |file, n: usize, parameters: &[u32], part: &Slice| {
        gpu.runtime.dispatch((file, "gemm"), tiles(m, n), parameters, &[&y, &x, part].map(Some), &[]);
    };
    for (number, part) in weight.parts.iter().enumerate() {
        if transposed {
            // Rows of the part are columns of the result.
            let file = File::Linear(w.format());
            let parameters = params![
                m, part.rows, inner, inner, 1u32, 0u32, outer, part.first, 1.0f32, beta, 0u32, 0u32, words
            ];
            dispatch(file, part.rows, parameters, &part.slice);
        } else {
            // Rows of the part are a range of the inner side: the parts' products add up.
            let file = File::LinearBackward(w.format());
            let beta = if number == 0 { beta } else { 1.0 };
            let parameters = params![
                m, outer, part.rows, inner, 1u32, part.first, outer, 0u32, 1.0f32, beta, 0u32, 0u32, words
            ];
            dispatch(file, outer, parameters, &part.slice);
        }
    }
}
