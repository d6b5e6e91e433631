//! The numbers that training starts from.

use lowrank_engine::kernels;

/// Random streams of initialisation: far from those of dropout.
pub const STREAM: u64 = 1 << 62;

/// Random streams of one site.
pub const STREAMS_PER_SITE: u64 = 16;

/// `[rows,cols]` uniform in `±1/sqrt(cols)`: Kaiming's with `a = sqrt(5)`, as loralib and PEFT fill `A`.
pub fn kaiming(rows: usize, cols: usize, seed: u64, stream: u64) -> Vec<f32> {
    let mut values = vec![0.0; rows * cols];
    let bound = 1.0 / (cols as f32).sqrt();
    kernels::uniform(&mut values, -bound, bound, seed, stream);
    values
}
