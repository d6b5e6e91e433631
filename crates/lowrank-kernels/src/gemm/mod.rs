//! Matrix products: over frozen weights in every format, and between dense f32 matrices.
//!
//! A product is cut into tiles of `C` that stay in registers ([`tile`]), over panels of the right operand
//! packed for them block by block ([`pack`]): that is where quantised weights are expanded. The left
//! operand is read in place. Four ways around packing, for operands used too seldom to pay for it: few
//! tokens times a weight ([`gemv`]), fewer than outputs ([`small_m`]), few columns ([`skinny`]), and few rows
//! ([`blocked`]).
//!
//! No result depends on the number of threads: the sum over `k` is never divided among them.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
mod bf16;
mod blocked;
mod gemv;
mod pack;
mod product;
mod scratch;
mod skinny;
mod small_m;
#[cfg(test)]
mod tests;
mod tile;

use std::cmp::Ordering;

use pack::{Backward, Dense, Forward, MAX_EXPANDED_VALUES, Operand};
use product::{Product, Side};
use scratch::LINE_VALUES;

use crate::simd::{Level, at_level, level};
use crate::{Format, WeightRef};

/// Bytes of working memory the products keep on `threads` threads, at most, where no side of a matrix is longer than
/// `longest`: packed blocks of the operands. Each thread's share is allocated by its first product and used again by all
/// others.
pub fn scratch_bytes(threads: usize, longest: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    let (right, left) = match level() {
        Level::Amx => (amx::MAX_RIGHT_VALUES + 2 * LINE_VALUES, amx::left(threads) + LINE_VALUES),
        _ => (0, 0),
    };
    #[cfg(not(target_arch = "x86_64"))]
    let (right, left) = (0, 0);
    // No block is larger than its matrix, in whole blocks of columns.
    let side = longest.next_multiple_of(256) + 2 * LINE_VALUES;
    let most = |values: usize| values.min(side.saturating_mul(side)) + LINE_VALUES;
    let own = most(blocked::MAX_PANEL_VALUES) + most(MAX_EXPANDED_VALUES) + most(right);
    size_of::<f32>() * (threads * own + most(blocked::MAX_LEFT_VALUES.max(left)))
}

/// A read-only dense matrix: element `(i, j)` is `data[i * rs + j * cs]`.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a> {
    /// The values.
    pub data: &'a [f32],
    /// Distance between rows.
    pub rs: usize,
    /// Distance between columns.
    pub cs: usize,
}

/// A dense matrix to write: element `(i, j)` is `data[i * rs + j * cs]`.
#[derive(Debug)]
pub struct MatMut<'a> {
    /// The values.
    pub data: &'a mut [f32],
    /// Distance between rows.
    pub rs: usize,
    /// Distance between columns.
    pub cs: usize,
}

impl<'a> MatRef<'a> {
    /// A row-major matrix of `cols` columns.
    pub fn row_major(data: &'a [f32], cols: usize) -> Self {
        Self { data, rs: cols, cs: 1 }
    }

    /// The transpose, over the same values.
    pub fn t(self) -> Self {
        Self { data: self.data, rs: self.cs, cs: self.rs }
    }

    fn check(&self, rows: usize, cols: usize) {
        assert!(
            rows == 0 || cols == 0 || (rows - 1) * self.rs + (cols - 1) * self.cs < self.data.len(),
            "{rows} x {cols} with strides {} and {} exceeds {} values",
            self.rs,
            self.cs,
            self.data.len()
        );
    }
}

impl<'a> MatMut<'a> {
    /// A row-major matrix of `cols` columns.
    pub fn row_major(data: &'a mut [f32], cols: usize) -> Self {
        Self { data, rs: cols, cs: 1 }
    }
}

/// `C[m,n] = beta C + alpha A[m,k] B[k,n]` on the threads of the current rayon pool.
///
/// With `beta` 0 the old contents of `C` are never read.
///
/// # Panics
/// Where a slice is too short for its shape and strides.
#[allow(clippy::too_many_arguments)]
pub fn gemm(m: usize, n: usize, k: usize, alpha: f32, a: MatRef, b: MatRef, beta: f32, c: MatMut) {
    dense(level(), m, n, k, alpha, a, b, beta, c, rayon::current_num_threads());
}

/// [`gemm`] on the calling thread alone, for use inside parallel tasks.
///
/// # Panics
/// As [`gemm`].
#[allow(clippy::too_many_arguments)]
pub fn gemm_serial(m: usize, n: usize, k: usize, alpha: f32, a: MatRef, b: MatRef, beta: f32, c: MatMut) {
    dense(level(), m, n, k, alpha, a, b, beta, c, 1);
}

#[allow(clippy::too_many_arguments)]
fn dense(
    level: Level,
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: MatRef,
    b: MatRef,
    beta: f32,
    c: MatMut,
    threads: usize,
) {
    a.check(m, k);
    b.check(k, n);
    MatRef { data: c.data, rs: c.rs, cs: c.cs }.check(m, n);
    // Tiles are made of rows of C and of A. The transposed product is computed where less of its left
    // operand has to be copied to be read that way, or else where the columns of C are contiguous.
    let copied = |rows: usize, stride: usize| if stride > blocked::MAX_IN_PLACE_STRIDE { rows } else { 0 };
    let swap = match copied(m, a.cs).cmp(&copied(n, b.rs)) {
        Ordering::Less => false,
        Ordering::Greater => true,
        Ordering::Equal => c.cs != 1 && c.rs == 1,
    };
    let (m, n, a, b) = if swap { (n, m, b.t(), a.t()) } else { (m, n, a, b) };
    let product = Product {
        m,
        n,
        k,
        alpha,
        beta,
        a: a.data.as_ptr(),
        ars: a.rs,
        acs: a.cs,
        crs: if swap { c.cs } else { c.rs },
        ccs: if swap { c.rs } else { c.cs },
        c: c.data.as_mut_ptr(),
        start: std::ptr::null(),
        srs: 0,
    };
    let right = Dense { data: b.data.as_ptr(), ks: b.rs, ns: b.cs };
    // SAFETY: the checks above hold every index inside its slice; C is borrowed for this call alone.
    at_level!(level, V => unsafe {
        match skinny::fits(&product) {
            false if on_tiles(level, &product, &right, Format::F32, threads) => {}
            true => skinny::run::<V>(&product, right.data, right.ks, right.ns, threads),
            false => blocked::run::<V, _>(&product, &right, threads),
        }
    });
}

/// `y[N,O] = beta y + x[N,K] W[O,K]^T`, on the threads of the current rayon pool.
///
/// `W` is expanded tile by tile, never whole. With `beta` 0 the old contents of `y` are never read.
///
/// # Panics
/// Where `x`, `y` or the weight's bytes do not fit the shapes.
pub fn linear(y: &mut [f32], x: &[f32], w: &WeightRef, n: usize, beta: f32) {
    assert_eq!((y.len(), x.len()), (n * w.rows, n * w.cols), "y is N x O, x is N x K");
    linear_at(level(), y, x, w, n, beta);
}

/// `dx[N,K] = beta dx + dy[N,O] W[O,K]`, on the threads of the current rayon pool.
///
/// With `beta` 0 the old contents of `dx` are never read.
///
/// # Panics
/// As [`linear`].
pub fn linear_backward(dx: &mut [f32], dy: &[f32], w: &WeightRef, n: usize, beta: f32) {
    assert_eq!((dy.len(), dx.len()), (n * w.rows, n * w.cols), "dy is N x O, dx is N x K");
    linear_backward_at(level(), dx, dy, w, n, beta);
}

/// [`linear`] that may round `x` to BF16: where the weight is BF16, the tokens are more than a few, and the CPU
/// multiplies BF16 faster than f32 (AVX512-BF16, AMX-BF16, ARM's FEAT_BF16). Sums are f32 in any case.
///
/// # Panics
/// As [`linear`].
pub fn linear_bf16(y: &mut [f32], x: &[f32], w: &WeightRef, n: usize, beta: f32) {
    assert_eq!((y.len(), x.len()), (n * w.rows, n * w.cols), "y is N x O, x is N x K");
    if !native_bf16(&row_major(n, w.rows, w.cols, x, y, beta), w, Side::Forward) {
        linear_at(level(), y, x, w, n, beta);
    }
}

/// [`linear_backward`] that may round `dy` to BF16, as [`linear_bf16`] does with `x`.
///
/// # Panics
/// As [`linear`].
pub fn linear_backward_bf16(dx: &mut [f32], dy: &[f32], w: &WeightRef, n: usize, beta: f32) {
    assert_eq!((dy.len(), dx.len()), (n * w.rows, n * w.cols), "dy is N x O, dx is N x K");
    if !native_bf16(&row_major(n, w.cols, w.rows, dy, dx, beta), w, Side::Backward) {
        linear_backward_at(level(), dx, dy, w, n, beta);
    }
}

/// A linear layer as its kernels see it.
#[derive(Clone, Copy)]
pub struct LinearRef<'a> {
    /// `W: [O,K]`, or `[K,O]` where it is stored transposed.
    pub weight: WeightRef<'a>,
    /// `b: [O]`.
    pub bias: Option<&'a [f32]>,
    /// Whether the weight is stored transposed.
    pub transposed: bool,
    /// Whether `x` may be rounded to BF16, as by [`linear_bf16`].
    pub rounded: bool,
}

/// `y[N,O] = rows + b + x[N,K] W^T`, for `rows: [N,O]`.
///
/// # Panics
/// As [`linear`], and where rows or bias have another length.
pub fn linear_add(y: &mut [f32], x: &[f32], layer: &LinearRef, n: usize, rows: Option<&[f32]>) {
    linear_add_at(level(), y, x, layer, n, rows);
}

fn linear_add_at(level: Level, y: &mut [f32], x: &[f32], layer: &LinearRef, n: usize, rows: Option<&[f32]>) {
    let LinearRef { weight: ref w, bias, transposed, rounded } = *layer;
    let (o, k) = if transposed { (w.cols, w.rows) } else { (w.rows, w.cols) };
    assert_eq!((y.len(), x.len()), (n * o, n * k), "y is N x O, x is N x K");
    assert!(rows.is_none_or(|rows| rows.len() == y.len()), "rows are N x O");
    assert!(bias.is_none_or(|bias| bias.len() == o), "a bias has O values");
    if (rows.is_none() || bias.is_none()) && n > gemv::MAX_TOKENS && o > 0 && k > 0 {
        // Rows or a bias alone are what the first sums are added to.
        let start = rows.or(bias).map_or(std::ptr::null(), <[f32]>::as_ptr);
        let srs = if rows.is_some() { o } else { 0 };
        let product = Product { start, srs, ..row_major(n, o, k, x, y, 0.0) };
        let side = if transposed { Side::Backward } else { Side::Forward };
        if rounded && native_bf16(&product, w, side) {
            return;
        }
        // SAFETY: the lengths were checked against the shapes; y is borrowed for this call alone.
        if unsafe { over_weight(level, &product, w, side) } {
            return;
        }
    }
    match (rows, bias) {
        (rows, Some(bias)) => crate::set_bias(y, rows, bias, n),
        (Some(rows), None) => crate::copy(y, rows),
        (None, None) => y.fill(0.0),
    }
    match (transposed, rounded) {
        (false, false) => linear_at(level, y, x, w, n, 1.0),
        (true, false) => linear_backward_at(level, y, x, w, n, 1.0),
        (false, true) => linear_bf16(y, x, w, n, 1.0),
        (true, true) => linear_backward_bf16(y, x, w, n, 1.0),
    }
}

/// Whether [`linear_bf16`] and [`linear_backward_bf16`] round anything on this CPU: elsewhere they are [`linear`] and
/// [`linear_backward`].
pub fn rounds_to_bf16() -> bool {
    bf16::available() || level() == Level::Amx
}

/// Computes the product with BF16 operands, if that can be done here and pays. `product` covers its operands.
fn native_bf16(product: &Product, w: &WeightRef, side: Side) -> bool {
    let pays = w.format == Format::BF16 && product.m > gemv::MAX_TOKENS && product.n > 0 && product.k > 0;
    #[cfg(target_arch = "x86_64")]
    if pays {
        let threads = rayon::current_num_threads();
        let tiles = level() == Level::Amx && amx::fits(product, amx::Parts::Rounded);
        // SAFETY: the instructions are there; the callers checked the lengths against the shapes.
        unsafe {
            match side {
                Side::Forward if tiles => {
                    amx::run(product, &Forward(*w), amx::Parts::Rounded, threads);
                }
                Side::Backward if tiles => {
                    amx::run(product, &Backward(*w), amx::Parts::Rounded, threads);
                }
                _ if bf16::available() => bf16::run::<bf16::Native>(product, w, side, threads),
                _ => return false,
            }
        }
        return true;
    }
    #[cfg(target_arch = "aarch64")]
    if pays && bf16::available() {
        // SAFETY: the instruction is there; the callers checked the lengths against the shapes.
        unsafe { bf16::run::<bf16::Native>(product, w, side, rayon::current_num_threads()) };
        return true;
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (pays, side);
    false
}

fn linear_at(level: Level, y: &mut [f32], x: &[f32], w: &WeightRef, n: usize, beta: f32) {
    if n <= gemv::MAX_TOKENS {
        // SAFETY: the lengths were checked against the shapes.
        return unsafe { gemv::linear(level, y, x, w, n, beta) };
    }
    let product = row_major(n, w.rows, w.cols, x, y, beta);
    // SAFETY: the lengths were checked against the shapes; y is borrowed for this call alone.
    unsafe {
        if !over_weight(level, &product, w, Side::Forward) {
            let threads = rayon::current_num_threads();
            at_level!(level, V => small_m::run::<V>(y, x, w, n, beta, threads));
        }
    }
}

fn linear_backward_at(level: Level, dx: &mut [f32], dy: &[f32], w: &WeightRef, n: usize, beta: f32) {
    if n <= gemv::MAX_TOKENS {
        // SAFETY: the lengths were checked against the shapes.
        return at_level!(level, V => unsafe { gemv::backward::<V>(dx, dy, w, n, beta) });
    }
    let product = row_major(n, w.cols, w.rows, dy, dx, beta);
    // SAFETY: as above.
    let done = unsafe { over_weight(level, &product, w, Side::Backward) };
    debug_assert!(done, "only W^T is left to others");
}

/// Computes a product over a weight, on the tile unit or with vectors. Returns whether it did: a product with `W^T` that
/// [`small_m`] is for is left to it.
///
/// # Safety
/// The pointers of `product` cover its shapes, which are the weight's, and nobody else uses `C`.
unsafe fn over_weight(level: Level, product: &Product, w: &WeightRef, side: Side) -> bool {
    let threads = rayon::current_num_threads();
    // SAFETY: the caller's promises.
    unsafe {
        match side {
            Side::Forward => {
                let b = Forward(*w);
                on_tiles(level, product, &b, w.format, threads)
                    || at_level!(level, V => {
                        let takes = !small_m::fits::<V>(w, product.m);
                        if takes {
                            blocked::run::<V, _>(product, &b, threads);
                        }
                        takes
                    })
            }
            Side::Backward => {
                let b = Backward(*w);
                if !on_tiles(level, product, &b, w.format, threads) {
                    at_level!(level, V => blocked::run::<V, _>(product, &b, threads));
                }
                true
            }
        }
    }
}

/// Computes a product of f32 on the tile unit, if there is one and it pays. A right operand stored as BF16 needs no
/// more than that of it.
///
/// # Safety
/// The pointers of `product` cover its shapes, and nobody else uses `C`.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
unsafe fn on_tiles(
    level: Level,
    product: &Product,
    b: &impl Operand,
    format: Format,
    threads: usize,
) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let parts = if format == Format::BF16 { amx::Parts::ExactLeft } else { amx::Parts::Exact };
        if level == Level::Amx && amx::fits(product, parts) {
            // SAFETY: the level is there; the rest is the caller's promise.
            unsafe { amx::run(product, b, parts, threads) };
            return true;
        }
    }
    false
}

/// `C[m,n] = beta C + A[m,k] B`, `A` and `C` row-major.
fn row_major(m: usize, n: usize, k: usize, a: &[f32], c: &mut [f32], beta: f32) -> Product {
    let (a, c) = (a.as_ptr(), c.as_mut_ptr());
    let start = std::ptr::null();
    Product { m, n, k, alpha: 1.0, beta, a, ars: k, acs: 1, c, crs: n, ccs: 1, start, srs: 0 }
}
