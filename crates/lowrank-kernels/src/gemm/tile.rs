//! The innermost product: one tile of `C`, at most `MR x NR`, held in registers over a block of `k`.

use crate::simd::Vector;

/// The columns of a tile at one level: two vectors.
pub(super) const fn nr<V: Vector>() -> usize {
    2 * V::LANES
}

/// Rows of `B` asked for ahead of their use: an unpacked `B` has each in a line of its own.
const PREFETCH_ROWS: usize = 8;

/// Most values in a tile at any level.
pub(super) const MAX_TILE_VALUES: usize = 14 * 32;

/// `C[rows, NR] = beta old[rows, NR] + alpha A[rows, k] B[k, NR]`; `old` is `C`, most times.
///
/// `A(i, l)` lies at `a + i*ars + l*aks`: the rows are read in place, since a row of activations runs
/// along `k` and six rows are six streams that the caches follow well. `B(l, j)` lies at
/// `b + l*bks + j`. `C(i, j)` lies at `c + i*crs + j`. Every value of `C` is one chain of `fma` over `l`,
/// so it does not depend on the height of the tile it falls into.
///
/// # Safety
/// The CPU has the level; `rows` is in `1..=MR`; the pointers cover the shapes; with `beta` 0 `old` need
/// not be initialised.
#[allow(clippy::too_many_arguments)]
#[inline]
pub(super) unsafe fn tile<V: Vector>(
    rows: usize,
    k: usize,
    a: *const f32,
    ars: usize,
    aks: usize,
    b: *const f32,
    bks: usize,
    c: *mut f32,
    crs: usize,
    alpha: f32,
    old: *const f32,
    ors: usize,
    beta: f32,
) {
    macro_rules! heights {
        ($($r:literal)*) => {
            match rows {
                // Heights beyond MR are never asked for, and not compiled.
                $($r if $r <= V::TILE_ROWS => {
                    // SAFETY: the caller's promises, passed on.
                    unsafe { V::enter(#[inline(always)] || fixed::<V, $r>(k, a, ars, aks, b, bks, c, crs, alpha, old, ors, beta)) }
                })*
                _ => unreachable!("a tile of {rows} rows"),
            }
        };
    }
    heights!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn fixed<V: Vector, const R: usize>(
    k: usize,
    a: *const f32,
    ars: usize,
    aks: usize,
    b: *const f32,
    bks: usize,
    c: *mut f32,
    crs: usize,
    alpha: f32,
    old: *const f32,
    ors: usize,
    beta: f32,
) {
    // SAFETY: the caller of `tile` vouches for the CPU and for every pointer below.
    unsafe {
        for i in 0..R {
            V::prefetch(c.add(i * crs));
        }
        let mut b = b;
        // One pointer for three rows: the distances `ars` and `2 ars` are free in an address, whereas a
        // pointer for each row would not fit the registers. `opaque` keeps the compiler to that.
        let mut bases: [*const f32; 5] = std::array::from_fn(|g| V::opaque(a.wrapping_add(3 * g * ars)));
        let mut sums = [[V::splat(0.0); 2]; R];
        for _ in 0..k {
            let right = [V::load_ptr(b), V::load_ptr(b.add(V::LANES))];
            // Spelt out, since the compiler gives up on unrolling loops of fourteen rows.
            macro_rules! rows {
                ($($i:literal)*) => {
                    $(if $i < R {
                        let left = V::splat(*bases[$i / 3].add($i % 3 * ars));
                        sums[$i][0] = left.mul_add(right[0], sums[$i][0]);
                        sums[$i][1] = left.mul_add(right[1], sums[$i][1]);
                    })*
                    $(if $i % 3 == 0 && $i < R {
                        bases[$i / 3] = V::opaque(bases[$i / 3].wrapping_add(aks));
                    })*
                };
            }
            rows!(0 1 2 3 4 5 6 7 8 9 10 11 12 13);
            V::prefetch(b.wrapping_add(PREFETCH_ROWS * bks));
            b = b.wrapping_add(bks);
        }
        let alpha = V::splat(alpha);
        let scale = V::splat(beta);
        for (i, row) in sums.iter().enumerate() {
            for (j, &sum) in row.iter().enumerate() {
                let at = c.add(i * crs + j * V::LANES);
                let mut value = alpha.mul(sum);
                if beta != 0.0 {
                    value = scale.mul_add(V::load_ptr(old.add(i * ors + j * V::LANES)), value);
                }
                value.store_ptr(at);
            }
        }
    }
}
