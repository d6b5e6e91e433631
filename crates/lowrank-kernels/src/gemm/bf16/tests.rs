//! The products on emulations of the instructions and, where the CPU has one, on itself.

use super::kernel::Dot;
use super::*;
use crate::RowOrder;
use crate::simd::Portable;

/// The instruction in plain Rust, by its description: both products of a lane are added in f32.
struct Emulated;

impl Dot for Emulated {
    type Sum = [f32; 16];
    type Pairs = [u32; 16];
    type Pack = Portable<4>;

    unsafe fn enter<T>(f: impl FnOnce() -> T) -> T {
        f()
    }
    unsafe fn zero() -> [f32; 16] {
        [0.0; 16]
    }
    unsafe fn load(p: *const u32) -> [u32; 16] {
        // SAFETY: the caller vouches for the pointer.
        unsafe { p.cast::<[u32; 16]>().read_unaligned() }
    }
    unsafe fn splat(pair: u32) -> [u32; 16] {
        [pair; 16]
    }
    unsafe fn dot(sum: [f32; 16], a: [u32; 16], b: [u32; 16]) -> [f32; 16] {
        let low = |x: u32| f32::from_bits(x << 16);
        let high = |x: u32| f32::from_bits(x & 0xffff_0000);
        std::array::from_fn(|i| sum[i] + high(a[i]) * high(b[i]) + low(a[i]) * low(b[i]))
    }
    unsafe fn store(to: *mut f32, sum: [f32; 16], old: *const f32, beta: f32) {
        for (i, sum) in sum.into_iter().enumerate() {
            // SAFETY: the caller vouches for the pointer.
            unsafe { *to.add(i) = if beta == 0.0 { sum } else { beta * *old.add(i) + sum } };
        }
    }
}

/// ARM's tile in plain Rust, to test units of two pairs on any machine.
struct EmulatedUnits;

impl Kernel for EmulatedUnits {
    type Pack = Portable<4>;
    const MR: usize = 8;
    const NR: usize = 12;
    const PAIRS: usize = 2;

    unsafe fn enter<T>(f: impl FnOnce() -> T) -> T {
        f()
    }
    unsafe fn tile<const R: usize>(
        pairs: usize,
        a: *const u32,
        stride: usize,
        b: *const u32,
        c: *mut f32,
        crs: usize,
        old: *const f32,
        ors: usize,
        beta: f32,
    ) {
        for (i, j) in (0..R).flat_map(|i| (0..Self::NR).map(move |j| (i, j))) {
            // SAFETY: the caller vouches for the pointers.
            unsafe {
                let sum = (0..pairs).fold([0.0; 16], |sum, l| {
                    let right = *b.add((l / 2 * Self::NR + j) * 2 + l % 2);
                    Emulated::dot(sum, [*a.add(i * stride + l); 16], [right; 16])
                });
                let old = old.wrapping_add(i * ors + j);
                *c.add(i * crs + j) = if beta == 0.0 { sum[0] } else { beta * *old + sum[0] };
            }
        }
    }
}

fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut numbers = vec![0.0; len];
    crate::normal(&mut numbers, 0.0, 1.0, seed, 0);
    numbers
}

fn rounded(x: f32) -> f64 {
    f64::from(half::bf16::from_f32(x).to_f32())
}

/// Both products of `W: [o,k]` against sums in f64 over the rounded values.
fn case<K: Kernel>(n: usize, o: usize, k: usize, order: RowOrder, beta: f32, threads: usize) {
    let bytes: Vec<u8> =
        numbers(o * k, 1).iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
    let w = WeightRef { format: Format::BF16, rows: o, cols: k, order, bytes: &bytes };
    let mut dense = vec![0.0; o * k];
    dense.chunks_exact_mut(k).enumerate().for_each(|(row, out)| w.expand(row, 0..k, out));
    for side in [Side::Forward, Side::Backward] {
        let (cols, depth) = if side == Side::Forward { (o, k) } else { (k, o) };
        let a = numbers(n * depth, 2);
        let before = if beta == 0.0 { vec![f32::NAN; n * cols] } else { numbers(n * cols, 3) };
        let mut c = before.clone();
        // SAFETY: the operands have their shapes, and the caller has the instruction.
        unsafe { run::<K>(&super::super::row_major(n, cols, depth, &a, &mut c, beta), &w, side, threads) };
        for i in 0..n {
            for j in 0..cols {
                let (mut want, mut size) = (0.0f64, 0.0f64);
                for l in 0..depth {
                    let b = if side == Side::Forward { dense[j * k + l] } else { dense[l * k + j] };
                    let term = rounded(a[i * depth + l]) * f64::from(b);
                    want += term;
                    size += term.abs();
                }
                if beta != 0.0 {
                    want += f64::from(beta) * f64::from(before[i * cols + j]);
                    size += f64::from(before[i * cols + j]).abs();
                }
                let got = f64::from(c[i * cols + j]);
                assert!((got - want).abs() <= 2e-6 * (1.0 + size), "{n} x {o} x {k}: [{i},{j}] {got} {want}");
            }
        }
    }
}

fn cases<K: Kernel>() {
    for (n, o, k) in
        [(1, 1, 1), (7, 33, 65), (12, 32, 64), (13, 31, 3), (50, 67, 130), (97, 64, 37), (25, 96, 2)]
    {
        for (beta, threads) in [(0.0, 1), (1.0, 3)] {
            case::<K>(n, o, k, RowOrder::Plain, beta, threads);
        }
    }
    // Longer than a block of k, more rows than are packed at a time, and llama.cpp's order of rows.
    case::<K>(5, 40, 2085, RowOrder::Plain, 0.0, 2);
    case::<K>(1031, 5, 9, RowOrder::Plain, 0.5, 2);
    case::<K>(14, 72, 48, RowOrder::RopeInterleaved { head_dim: 24 }, 0.0, 2);
}

#[test]
fn pairs_are_packed_and_multiplied_right() {
    cases::<Emulated>();
    cases::<EmulatedUnits>();
}

#[test]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn the_instruction_gives_the_same() {
    #[cfg(target_arch = "x86_64")]
    let there = is_x86_feature_detected!("avx512bf16");
    #[cfg(target_arch = "aarch64")]
    let there = std::arch::is_aarch64_feature_detected!("bf16");
    if !there {
        lowrank_testing::not_here("no instruction for BF16");
        return;
    }
    cases::<Native>();
}
