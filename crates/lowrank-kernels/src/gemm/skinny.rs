//! Products with few columns and long rows, such as `x A^T` with an adapter's `A`: nothing is packed,
//! since each value of the large operand is used too few times to pay for it.

use rayon::prelude::*;

use super::product::Product;
use super::scratch::with_left;
use crate::simd::Vector;

/// Most columns this way is taken for.
const MAX_COLUMNS: usize = 12;
/// Rows and columns of a tile of dot products: twelve sums hide the latency of `fma`.
const TILE_ROWS: usize = 3;
const TILE_COLUMNS: usize = 4;

/// Whether the product is one for [`run`]: few columns, and rows of `A` that run along a long `k`.
pub(super) fn fits(p: &Product) -> bool {
    p.n <= MAX_COLUMNS && p.m >= 8 && p.acs == 1 && p.k >= 64
}

/// Computes the product with `B(l, j)` at `b + l*ks + j*ns`.
///
/// # Safety
/// As [`super::blocked::run`], and `b` covers its shape.
pub(super) unsafe fn run<V: Vector>(p: &Product, b: *const f32, ks: usize, ns: usize, threads: usize) {
    // SAFETY: the caller's promises; the copy below covers the same shape.
    unsafe {
        if ks == 1 {
            return tasks::<V>(p, b, ns, threads);
        }
        with_left(|copy| {
            let copy = copy.get(p.n * p.k);
            for (j, to) in copy.chunks_exact_mut(p.k).enumerate() {
                for (l, to) in to.iter_mut().enumerate() {
                    *to = *b.add(l * ks + j * ns);
                }
            }
            tasks::<V>(p, copy.as_ptr(), p.k, threads);
        });
    }
}

/// A pointer that tasks share.
struct Columns(*const f32);

// SAFETY: only read.
unsafe impl Sync for Columns {}

unsafe fn tasks<V: Vector>(p: &Product, b: *const f32, ns: usize, threads: usize) {
    let b = Columns(b);
    let b = &b;
    let small = (1 << 16) / (p.n * p.k).max(1);
    let rows = p.m.div_ceil(4 * threads).max(small).next_multiple_of(TILE_ROWS);
    let task = |task: usize| {
        for i in (task * rows..((task + 1) * rows).min(p.m)).step_by(TILE_ROWS) {
            let height = TILE_ROWS.min(p.m - i);
            for j in (0..p.n).step_by(TILE_COLUMNS) {
                // SAFETY: the rows and columns lie inside the operands; nobody else writes them in C.
                unsafe {
                    let (a, b) = (p.a.add(i * p.ars), b.0.add(j * ns));
                    let sums = dots::<V>(height, TILE_COLUMNS.min(p.n - j), p.k, a, p.ars, b, ns);
                    for (r, sums) in sums.iter().enumerate().take(height) {
                        for (s, &sum) in sums.iter().enumerate().take(p.n - j) {
                            let at = &mut *p.c.add((i + r) * p.crs + (j + s) * p.ccs);
                            *at = p.alpha * sum + if p.beta == 0.0 { 0.0 } else { p.beta * *at };
                        }
                    }
                }
            }
        }
    };
    let count = p.m.div_ceil(rows);
    match threads == 1 || count == 1 {
        true => (0..count).for_each(task),
        false => (0..count).into_par_iter().with_max_len(1).for_each(task),
    }
}

/// The dot products of `rows` rows of `k` values with `cols` others.
unsafe fn dots<V: Vector>(
    rows: usize,
    cols: usize,
    k: usize,
    a: *const f32,
    ars: usize,
    b: *const f32,
    ns: usize,
) -> [[f32; TILE_COLUMNS]; TILE_ROWS] {
    let mut out = [[0.0; TILE_COLUMNS]; TILE_ROWS];
    macro_rules! shapes {
        ($(($r:literal, $c:literal))*) => {
            match (rows, cols) {
                // SAFETY: the caller's promises, passed on.
                $(($r, $c) => unsafe {
                    V::enter(#[inline(always)] || fixed::<V, $r, $c>(k, a, ars, b, ns, &mut out))
                },)*
                _ => unreachable!("{rows} x {cols} dot products"),
            }
        };
    }
    shapes!((3, 4)(3, 3)(3, 2)(3, 1)(2, 4)(2, 3)(2, 2)(2, 1)(1, 4)(1, 3)(1, 2)(1, 1));
    out
}

#[inline(always)]
unsafe fn fixed<V: Vector, const R: usize, const C: usize>(
    k: usize,
    a: *const f32,
    ars: usize,
    b: *const f32,
    ns: usize,
    out: &mut [[f32; TILE_COLUMNS]; TILE_ROWS],
) {
    let whole = k / V::LANES * V::LANES;
    // SAFETY: every read lies in one of the rows, says the caller.
    unsafe {
        let mut sums = [[V::splat(0.0); C]; R];
        for l in (0..whole).step_by(V::LANES) {
            let mut left = [V::splat(0.0); R];
            for (r, left) in left.iter_mut().enumerate() {
                *left = V::load_ptr(a.add(r * ars + l));
            }
            for c in 0..C {
                let right = V::load_ptr(b.add(c * ns + l));
                for (left, sums) in left.iter().zip(&mut sums) {
                    sums[c] = left.mul_add(right, sums[c]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (c, &sum) in sums.iter().enumerate() {
                out[r][c] = sum.sum();
                for l in whole..k {
                    out[r][c] += *a.add(r * ars + l) * *b.add(c * ns + l);
                }
            }
        }
    }
}
