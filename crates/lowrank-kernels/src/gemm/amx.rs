//! Products on the tile unit of newer x86 servers (AMX-BF16), which multiplies BF16 and adds in f32 at some twenty
//! times the rate of f32's own `fma`.
//!
//! An f32 is the sum of three BF16 exactly (24 bits are three times 8), so a product of f32 is nine of BF16. The
//! three smallest lie below what f32 keeps of the sum and are left out: six remain, and still three times the rate.
//! A BF16 weight is one part, which leaves three products; with activations rounded to BF16 there is one. The
//! smaller products are added up before the largest, so that they cost the sum no accuracy.
//!
//! A chunk of 32 of `k` is packed as 16 pairs `(2 l, 2 l + 1)`, 32 bits each. Both operands are packed in blocks of 32
//! rows (columns of the right one): chunk after chunk, in each the parts from the largest on, and of each part two
//! tiles of 16 x 16 pairs.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use rayon::prelude::*;

use super::pack::{Operand, transpose_units};
use super::product::{Product, Side, cut};
use super::scratch::{Buffer, Scratch, with_left, with_scratch};
use crate::WeightRef;
use crate::parallel::task_rows;
use crate::simd::{Avx512, Vector, amx_available};

/// Rows of `C`, and columns, in a block: two tiles each.
const BLOCK_ROWS: usize = 32;
/// `k` in a chunk.
const CHUNK_K: usize = 32;
/// Numbers of a tile's 1024 bytes, as f32.
const TILE_VALUES: usize = 256;
/// Most of `k` packed at a time.
const MAX_PACKED_K: usize = 1024;
/// Most rows of the left operand packed at a time for each thread, up to [`MAX_SHARING_THREADS`] of them.
const MAX_ROWS_PER_THREAD: usize = 512;
/// Threads that one packed left operand is made for; more of them share its memory.
const MAX_SHARING_THREADS: usize = 4;
/// Most bytes of a packed block of the right operand: most of the second cache.
const MAX_BLOCK_BYTES: usize = 1280 << 10;
/// Numbers of the right operand expanded to f32 before they are split.
const PIECE_VALUES: usize = 8 << 10;
/// Panels that share the work of asking for the next block of the left operand.
const PREFETCH_PANELS: usize = 8;

/// Most values of f32's size in a packed left operand.
pub(super) const fn left(threads: usize) -> usize {
    let sharers = if threads < MAX_SHARING_THREADS { threads } else { MAX_SHARING_THREADS };
    sharers * MAX_ROWS_PER_THREAD * MAX_PACKED_K * 3 / 2
}

/// Most values of f32's size that each thread keeps of the right operand: a block of columns, or the 256 at least that a
/// quantised block may hold.
pub(super) const MAX_RIGHT_VALUES: usize =
    (if MAX_BLOCK_BYTES > 6 * MAX_PACKED_K * 256 { MAX_BLOCK_BYTES / 6 } else { MAX_PACKED_K * 256 }) * 3 / 2;

/// In how many BF16 the values of both operands are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Parts {
    /// Three and three: f32.
    Exact,
    /// Three and one: f32 times BF16.
    ExactLeft,
    /// One and one: both rounded to BF16.
    Rounded,
}

impl Parts {
    fn left(self) -> usize {
        if self == Self::Rounded { 1 } else { 3 }
    }
    fn right(self) -> usize {
        if self == Self::Exact { 3 } else { 1 }
    }
}

/// Whether a product is large enough to pay for packing both operands. `A` must lie row by row.
pub(super) fn fits(p: &Product, parts: Parts) -> bool {
    let most = match parts {
        Parts::Exact => 112,
        Parts::ExactLeft => 64,
        Parts::Rounded => 32,
    };
    p.acs == 1 && p.m >= most && p.n >= 48 && p.k >= 48
}

/// Computes the product on up to `threads` threads of the current pool. Their number does not change a bit of it.
///
/// # Safety
/// The machine has the tile unit (but for tests) and AVX-512; the pointers of `p` cover its shapes, and nobody else uses `C`.
pub(super) unsafe fn run<B: Operand>(p: &Product, b: &B, parts: Parts, threads: usize) {
    let kc = cut(p.k, MAX_PACKED_K, b.k_step().max(CHUNK_K));
    let step = BLOCK_ROWS.max(b.n_step());
    let most = MAX_ROWS_PER_THREAD * threads.clamp(1, MAX_SHARING_THREADS);
    for i in (0..p.m).step_by(most) {
        let all = i..(i + most).min(p.m);
        let (tiles, units) = (all.len().div_ceil(BLOCK_ROWS), p.n.div_ceil(step));
        let (down, across) = grid(tiles, units * (step / BLOCK_ROWS), units, threads);
        for l in (0..p.k).step_by(kc) {
            let part = Part { p, k: l..(l + kc).min(p.k), parts, begins: l == 0 };
            let size = packed(part.k.len(), parts.left());
            let block = |tile: &Range<usize>| {
                all.start + tile.start * BLOCK_ROWS..(all.start + tile.end * BLOCK_ROWS).min(all.end)
            };
            // SAFETY: the caller's promises; tasks are disjoint in C.
            let pack = |tile: &Range<usize>, to: &mut [f32]| unsafe { pack_left(&part, block(tile), to) };
            let work = |tile: &Range<usize>, left: &[f32], cols: Range<usize>| {
                let cols = cols.start * step..(cols.end * step).min(p.n);
                // SAFETY: as above.
                with_scratch(|scratch| unsafe { task(&part, b, block(tile), left, cols, scratch) });
            };
            with_left(|left| {
                let left = left.get(tiles * size);
                if across == 1 {
                    each(deal(left, tiles, down), |(tile, left)| {
                        pack(&tile, left);
                        work(&tile, left, 0..units);
                    });
                    return;
                }
                each(deal(left, tiles, threads.min(tiles)), |(tile, left)| pack(&tile, left));
                let left = &*left;
                each((0..down * across).collect(), |t| {
                    let tile = task_rows(tiles, down, t / across);
                    work(&tile, &left[tile.start * size..], task_rows(units, across, t % across));
                });
            });
        }
    }
}

/// Packed blocks of rows dealt to `of`.
fn deal(mut left: &mut [f32], tiles: usize, of: usize) -> Vec<(Range<usize>, &mut [f32])> {
    let size = left.len() / tiles;
    let deal = |i| {
        let tile = task_rows(tiles, of, i);
        let part = left.split_off_mut(..tile.len() * size).expect("all shares together are the whole");
        (tile, part)
    };
    (0..of).map(deal).collect()
}

/// Does `work` on all of `items`, in parallel.
fn each<T: Send>(items: Vec<T>, work: impl Fn(T) + Send + Sync) {
    match items.len() {
        1 => items.into_iter().for_each(work),
        _ => items.into_par_iter().with_max_len(1).for_each(work),
    }
}

/// Blocks that are multiplied in the time of packing one.
const PACKING_BLOCKS: usize = 4;

/// Into how many tasks a product of `tiles` blocks of rows and `panels` blocks of columns, in `units` that stay
/// whole, is cut: down its rows and across its columns. A task packs its columns of the right operand, and the rows of the
/// left one where no other task needs them; else all threads pack those together, and each fetches what others packed.
fn grid(tiles: usize, panels: usize, units: usize, threads: usize) -> (usize, usize) {
    let threads = threads.max(1);
    let time = |&(down, across): &(usize, usize)| {
        let (rows, cols) = (tiles.div_ceil(down), units.div_ceil(across) * panels / units);
        let left = if across == 1 { rows } else { tiles.div_ceil(threads) + rows / 2 };
        (rows * cols + PACKING_BLOCKS * (cols + left)) * (down * across).div_ceil(threads)
    };
    let cuts = (1..=threads.clamp(1, tiles)).map(|down| (down, threads.div_ceil(down).min(units)));
    cuts.min_by_key(time).unwrap_or((1, 1))
}

/// Rows of the left operand, packed block by block.
unsafe fn pack_left(part: &Part, rows: Range<usize>, to: &mut [f32]) {
    let (p, k, parts) = (part.p, &part.k, part.parts.left());
    for (to, first) in to.chunks_exact_mut(packed(k.len(), parts)).zip(rows.clone().step_by(BLOCK_ROWS)) {
        // SAFETY: the CPU has AVX-512, and rows up to `rows.end` of A have p.k values, says the caller.
        unsafe {
            Avx512::enter(
                #[inline(always)]
                || {
                    let row = |r: usize| p.a.wrapping_add((first + r) * p.ars + k.start);
                    split_rows(row, BLOCK_ROWS.min(rows.end - first), k.len(), parts, to);
                },
            );
        }
    }
}

/// A part of a product, along `k`.
struct Part<'a> {
    p: &'a Product,
    k: Range<usize>,
    parts: Parts,
    /// Whether it is the first.
    begins: bool,
}

/// Values (of f32's size) in a packed block of 32 rows or columns.
fn packed(k: usize, parts: usize) -> usize {
    k.div_ceil(CHUNK_K) * parts * 2 * TILE_VALUES
}

/// How far ahead of its use a row of the left operand is asked for, in values.
const PREFETCH_VALUES: usize = 768;

/// A block of the left operand: row `r` of it are `k` values from `row(r)` on. Rows beyond `count` are zero.
#[inline(always)]
unsafe fn split_rows(
    row: impl Fn(usize) -> *const f32,
    count: usize,
    k: usize,
    parts: usize,
    to: &mut [f32],
) {
    for r in 0..BLOCK_ROWS {
        let row = row(if r < count { r } else { 0 });
        for (chunk, l) in (0..k).step_by(CHUNK_K).enumerate() {
            let from = |at: usize| {
                Avx512::prefetch(row.wrapping_add(at + PREFETCH_VALUES));
                let there = if r < count { k.saturating_sub(at).min(16) } else { 0 };
                let mask = ((1u32 << there) - 1) as __mmask16;
                // SAFETY: lanes beyond the row are masked out and not touched.
                unsafe { _mm512_maskz_loadu_ps(mask, row.wrapping_add(at)) }
            };
            let at = chunk * parts * 2 * TILE_VALUES + r / 16 * TILE_VALUES + r % 16 * 16;
            // SAFETY: the CPU has AVX-512, says the caller.
            unsafe { split(from(l), from(l + 16), in_order, parts, &mut to[at..]) };
        }
    }
}

/// Panels of the right operand, through pieces in f32 that stay in the first cache.
#[inline(always)]
unsafe fn pack_right<B: Operand>(
    b: &B,
    k: Range<usize>,
    cols: Range<usize>,
    parts: usize,
    to: &mut [f32],
    panels: &mut Buffer,
    expanded: &mut Buffer,
) {
    let size = packed(k.len(), parts);
    match b.bf16() {
        Some((w, side)) if parts == 1 && k.len().is_multiple_of(CHUNK_K) => {
            // SAFETY: the ranges lie inside the operand; the CPU has AVX-512, says the caller.
            return unsafe { pack_bf16(w, side, k, cols, to, size) };
        }
        _ => {}
    }
    // Pieces are long in the direction in which the operand is stored.
    let (deep, wide) = match b.along_k() {
        true => (PIECE_VALUES / BLOCK_ROWS, BLOCK_ROWS.max(b.n_step())),
        false => (CHUNK_K.max(b.k_step()), PIECE_VALUES / CHUNK_K),
    };
    for from in cols.clone().step_by(wide) {
        let piece = from..(from + wide).min(cols.end);
        let to = &mut to[(from - cols.start) / BLOCK_ROWS * size..];
        for l in k.clone().step_by(deep) {
            let part = l..(l + deep).min(k.end);
            let panels = panels.get(piece.len().div_ceil(BLOCK_ROWS) * part.len() * BLOCK_ROWS);
            // SAFETY: the ranges lie inside the operand; the CPU has AVX-512, says the caller.
            unsafe { b.pack::<Avx512>(part.clone(), piece.clone(), panels, expanded) };
            for (panel, to) in panels.chunks_exact(part.len() * BLOCK_ROWS).zip(to.chunks_exact_mut(size)) {
                let to = &mut to[(l - k.start) / CHUNK_K * parts * 2 * TILE_VALUES..];
                for (to, panel) in
                    to.chunks_exact_mut(parts * 2 * TILE_VALUES).zip(panel.chunks(CHUNK_K * BLOCK_ROWS))
                {
                    // SAFETY: the CPU has AVX-512, says the caller.
                    unsafe { split_panel(panel, parts, to) };
                }
            }
        }
    }
}

/// Panels of `size` of a BF16 weight, whose bits need no change. Weights come from memory, so rows are read as they lie.
#[inline(always)]
unsafe fn pack_bf16(
    w: &WeightRef,
    side: Side,
    k: Range<usize>,
    cols: Range<usize>,
    to: &mut [f32],
    size: usize,
) {
    match side {
        Side::Forward => {
            for (to, first) in to.chunks_exact_mut(size).zip(cols.clone().step_by(BLOCK_ROWS)) {
                let count = BLOCK_ROWS.min(cols.end - first);
                let mut rows = [std::ptr::null::<f32>(); BLOCK_ROWS];
                for (j, row) in rows.iter_mut().enumerate().take(count) {
                    *row = w.row(first + j)[2 * k.start..2 * k.end].as_ptr().cast();
                }
                // Pairs from a row to that of the next panel, where there is one.
                let next = BLOCK_ROWS * w.cols / 2;
                for (to, l) in to.chunks_exact_mut(2 * TILE_VALUES).zip((0..k.len() / 2).step_by(CHUNK_K / 2))
                {
                    rows.iter().for_each(|row| Avx512::prefetch(row.wrapping_add(l + next)));
                    for (half, to) in to.chunks_exact_mut(TILE_VALUES).enumerate() {
                        let rows = &rows[16 * half..][..16];
                        let width = count.saturating_sub(16 * half).min(16);
                        // SAFETY: each of these rows holds sixteen pairs from there on.
                        unsafe { transpose_units::<Avx512>(|j| rows[j].wrapping_add(l), 16, width, 16, to) };
                    }
                }
            }
        }
        Side::Backward => {
            for (pair, l) in k.step_by(2).enumerate() {
                let low = w.row(l)[2 * cols.start..2 * cols.end].as_ptr().cast::<i16>();
                let high = w.row(l + 1)[2 * cols.start..2 * cols.end].as_ptr().cast::<i16>();
                let at = pair / 16 * 2 * TILE_VALUES + pair % 16 * 16;
                for (to, first) in to.chunks_exact_mut(size).zip((0..cols.len()).step_by(BLOCK_ROWS)) {
                    for half in 0..2 {
                        let from = first + 16 * half;
                        let there = cols.len().saturating_sub(from).min(16);
                        let mask = ((1u32 << there) - 1) as __mmask16;
                        let to = &mut to[at + half * TILE_VALUES..][..16];
                        // SAFETY: lanes beyond the row are masked out and not touched; the CPU has AVX-512 BW and VL.
                        unsafe {
                            let low = _mm256_maskz_loadu_epi16(mask, low.wrapping_add(from));
                            let high = _mm256_maskz_loadu_epi16(mask, high.wrapping_add(from));
                            let (low, high) = (_mm512_cvtepu16_epi32(low), _mm512_cvtepu16_epi32(high));
                            let pairs = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
                            _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs);
                        }
                    }
                }
            }
        }
    }
}

/// One chunk of a panel of the right operand: for each `l` a row of 32 columns in f32.
#[inline(always)]
unsafe fn split_panel(panel: &[f32], parts: usize, to: &mut [f32]) {
    let mut zeros = [0.0; CHUNK_K * BLOCK_ROWS];
    let panel = if panel.len() < CHUNK_K * BLOCK_ROWS {
        zeros[..panel.len()].copy_from_slice(panel);
        &zeros
    } else {
        panel
    };
    for (pair, rows) in panel.chunks_exact(2 * BLOCK_ROWS).enumerate() {
        for half in 0..2 {
            // SAFETY: sixteen values each; the CPU has AVX-512, says the caller.
            unsafe {
                let low = _mm512_loadu_ps(rows[half * 16..][..16].as_ptr());
                let high = _mm512_loadu_ps(rows[BLOCK_ROWS + half * 16..][..16].as_ptr());
                split(low, high, lane_by_lane, parts, &mut to[half * TILE_VALUES + pair * 16..]);
            }
        }
    }
}

/// Pairs of the upper halves of `low` with those of `high`.
#[inline(always)]
unsafe fn lane_by_lane(low: __m512i, high: __m512i) -> __m512i {
    // SAFETY: the CPU has AVX-512, says the caller.
    unsafe { _mm512_or_si512(upper(high), _mm512_srli_epi32(low, 16)) }
}

/// Pairs of neighbours: the upper halves of `low` in their order, then those of `high`.
#[inline(always)]
unsafe fn in_order(low: __m512i, high: __m512i) -> __m512i {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = 2 * i as u16 + 1;
            i += 1;
        }
        order
    };
    // SAFETY: the CPU has AVX-512, says the caller; the order is 64 bytes.
    unsafe { _mm512_permutex2var_epi16(low, _mm512_loadu_si512(ORDER.as_ptr().cast()), high) }
}

/// Writes sixteen pairs of values in parts, two tiles apart, the largest first. One part is the nearest BF16. Three are the
/// leading eight bits, those that follow, and the last: what they leave is zero. (The parts of an infinity are NaN.)
#[inline(always)]
unsafe fn split(
    x: __m512,
    y: __m512,
    join: unsafe fn(__m512i, __m512i) -> __m512i,
    parts: usize,
    to: &mut [f32],
) {
    let to = &mut to[..(parts - 1) * 2 * TILE_VALUES + 16];
    // SAFETY: the CPU has AVX-512, says the caller; the slice is checked.
    unsafe {
        let mut put = |part: usize, pairs| {
            _mm512_storeu_si512(to.as_mut_ptr().add(part * 2 * TILE_VALUES).cast(), pairs)
        };
        let (low, high) = (_mm512_castps_si512(x), _mm512_castps_si512(y));
        if parts == 1 {
            return put(0, join(nearest(low), nearest(high)));
        }
        put(0, join(low, high));
        let (low, high) = (below(x), below(y));
        put(1, join(_mm512_castps_si512(low), _mm512_castps_si512(high)));
        let (low, high) = (below(low), below(high));
        put(2, join(_mm512_castps_si512(low), _mm512_castps_si512(high)));
    }
}

/// The upper halves of the lanes.
#[inline(always)]
unsafe fn upper(bits: __m512i) -> __m512i {
    // SAFETY: the CPU has AVX-512, says the caller.
    unsafe { _mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000u32 as i32)) }
}

/// What the upper half of each lane leaves of its value.
#[inline(always)]
unsafe fn below(x: __m512) -> __m512 {
    // SAFETY: the CPU has AVX-512, says the caller.
    unsafe { _mm512_sub_ps(x, _mm512_castsi512_ps(upper(_mm512_castps_si512(x)))) }
}

/// The nearest BF16, ties to even, in the upper half of each lane.
#[inline(always)]
unsafe fn nearest(bits: __m512i) -> __m512i {
    // SAFETY: the CPU has AVX-512, says the caller.
    unsafe {
        let odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        upper(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))))
    }
}

/// Eight tiles of 16 rows of 64 bytes.
unsafe fn configure() {
    #[repr(C, align(64))]
    struct Config([u8; 64]);
    let mut config = Config([0; 64]);
    config.0[0] = 1;
    for tile in 0..8 {
        config.0[16 + 2 * tile] = 64;
        config.0[48 + tile] = 16;
    }
    // SAFETY: the machine has the unit, says the caller; the operand is what the instruction reads.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(readonly, nostack, preserves_flags)) };
}

/// The product of packed rows with some columns.
unsafe fn task<B: Operand>(
    part: &Part,
    b: &B,
    rows: Range<usize>,
    left: &[f32],
    cols: Range<usize>,
    scratch: &mut Scratch,
) {
    let (p, k) = (part.p, part.k.len());
    let right_parts = part.parts.right();
    let (left_size, size) = (packed(k, part.parts.left()), packed(k, right_parts));
    let Scratch { panels, rows: expanded, right } = scratch;

    let step = BLOCK_ROWS.max(b.n_step());
    let nc = cut(cols.len(), (MAX_BLOCK_BYTES / (4 * size)).max(1) * BLOCK_ROWS / step * step, step);
    let mut sums = Sums([0.0; BLOCK_ROWS * BLOCK_ROWS]);
    if amx_available() {
        // SAFETY: the unit is there; it is released below, and nothing in between panics or uses it otherwise.
        unsafe { configure() };
    }
    for j in cols.clone().step_by(nc) {
        let block = j..(j + nc).min(cols.end);
        let right = right.get(block.len().div_ceil(BLOCK_ROWS) * size);
        // SAFETY: the ranges lie inside the operand; AVX-512 is there.
        unsafe {
            Avx512::enter(
                #[inline(always)]
                || pack_right(b, part.k.clone(), block.clone(), right_parts, right, panels, expanded),
            );
        }
        for (left, row) in left.chunks_exact(left_size).zip(rows.clone().step_by(BLOCK_ROWS)) {
            for (i, (right, col)) in
                right.chunks_exact(size).zip(block.clone().step_by(BLOCK_ROWS)).enumerate()
            {
                let (rows, width) = (BLOCK_ROWS.min(rows.end - row), BLOCK_ROWS.min(block.end - col));
                for r in 0..rows {
                    let c = p.c.wrapping_add((row + r) * p.crs + col * p.ccs);
                    Avx512::prefetch(c);
                    Avx512::prefetch(c.wrapping_add(16));
                }
                let ahead = if i < PREFETCH_PANELS { left_size + i * left_size / PREFETCH_PANELS } else { 0 };
                let ahead = left.as_ptr().wrapping_add(ahead);
                // SAFETY: both blocks are whole; the tiles are configured; C's block is ours.
                unsafe {
                    multiply(
                        part.parts,
                        left.as_ptr(),
                        right.as_ptr(),
                        k.div_ceil(CHUNK_K),
                        ahead,
                        &mut sums,
                    );
                    Avx512::enter(
                        #[inline(always)]
                        || add(p, &sums, row, rows, col, width, part.begins),
                    );
                }
            }
        }
    }
    if amx_available() {
        // SAFETY: the tiles hold nothing any more.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// A block of sums, 32 x 32.
#[repr(C, align(64))]
struct Sums([f32; BLOCK_ROWS * BLOCK_ROWS]);

/// The sums over `chunks` of two packed blocks. From `ahead` on an eighth of a left block is asked for.
unsafe fn multiply(
    parts: Parts,
    a: *const f32,
    b: *const f32,
    chunks: usize,
    ahead: *const f32,
    sums: &mut Sums,
) {
    #[cfg(test)]
    if !amx_available() {
        // SAFETY: the caller's promises.
        return unsafe { emulate(parts, a, b, chunks, sums) };
    }
    // Tiles 0 to 3 are the sums, 4 and 5 the left operand, 6 and 7 the right one. Each is loaded just before its
    // first use, so that loads and products overlap.
    macro_rules! left {
        ($tile:literal, $part:literal, $half:literal) => {
            concat!("tileloadd tmm", $tile, ", [{a} + {line} + 2048*", $part, " + 1024*", $half, "]\n")
        };
    }
    macro_rules! right {
        ($tile:literal, $part:literal, $half:literal) => {
            concat!("tileloadd tmm", $tile, ", [{b} + {line} + 2048*", $part, " + 1024*", $half, "]\n")
        };
    }
    /// Both operands are new.
    macro_rules! both {
        ($left:literal, $right:literal) => {
            concat!(
                left!("4", $left, "0"),
                right!("6", $right, "0"),
                "tdpbf16ps tmm0, tmm4, tmm6\n",
                right!("7", $right, "1"),
                "tdpbf16ps tmm1, tmm4, tmm7\n",
                left!("5", $left, "1"),
                "tdpbf16ps tmm2, tmm5, tmm6\n tdpbf16ps tmm3, tmm5, tmm7\n"
            )
        };
    }
    /// The left operand is new.
    macro_rules! new_left {
        ($part:literal) => {
            concat!(
                left!("4", $part, "0"),
                "tdpbf16ps tmm0, tmm4, tmm6\n tdpbf16ps tmm1, tmm4, tmm7\n",
                left!("5", $part, "1"),
                "tdpbf16ps tmm2, tmm5, tmm6\n tdpbf16ps tmm3, tmm5, tmm7\n"
            )
        };
    }
    /// The right operand is new.
    macro_rules! new_right {
        ($part:literal) => {
            concat!(
                right!("6", $part, "0"),
                "tdpbf16ps tmm0, tmm4, tmm6\n tdpbf16ps tmm2, tmm5, tmm6\n",
                right!("7", $part, "1"),
                "tdpbf16ps tmm1, tmm4, tmm7\n tdpbf16ps tmm3, tmm5, tmm7\n"
            )
        };
    }
    macro_rules! ask {
        ($($line:literal)*) => {
            concat!($("prefetcht1 [{ahead} + 64*", $line, "]\n",)*)
        };
    }
    macro_rules! next {
        ($left:literal, $right:literal) => {
            concat!("add {a}, 2048*", $left, "\n add {b}, 2048*", $right, "\n dec {n}\n")
        };
    }
    macro_rules! back {
        () => {
            "mov {n}, {chunks}\n mov {a}, {a0}\n mov {b}, {b0}\n"
        };
    }
    macro_rules! run {
        ($($line:expr),* $(,)?) => {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                $($line,)*
                "tilestored [{to} + {wide}], tmm0",
                "tilestored [{to} + {wide} + 64], tmm1",
                "tilestored [{to} + {wide} + 2048], tmm2",
                "tilestored [{to} + {wide} + 2112], tmm3",
                a = out(reg) _, b = out(reg) _, n = out(reg) _,
                ahead = inout(reg) ahead => _,
                a0 = in(reg) a, b0 = in(reg) b, chunks = in(reg) chunks,
                to = in(reg) sums.0.as_mut_ptr(),
                line = in(reg) 64usize, wide = in(reg) 4 * BLOCK_ROWS,
                options(nostack)
            )
        };
    }
    // SAFETY: the caller vouches for the tiles, and for `chunks` packed chunks on both pointers.
    unsafe {
        match parts {
            Parts::Exact => run!(
                back!(),
                "2:",
                both!("0", "2"),
                ask!("0" "1" "2" "3"),
                new_right!("1"),
                ask!("4" "5" "6" "7"),
                new_left!("1"),
                ask!("8" "9" "10" "11"),
                new_right!("0"),
                new_left!("2"),
                "add {ahead}, 64*12",
                next!("3", "3"),
                "jnz 2b",
                back!(),
                "3:",
                both!("0", "0"),
                next!("3", "3"),
                "jnz 3b",
            ),
            Parts::ExactLeft => run!(
                back!(),
                "2:",
                both!("2", "0"),
                ask!("0" "1" "2" "3" "4" "5"),
                new_left!("1"),
                ask!("6" "7" "8" "9" "10" "11"),
                "add {ahead}, 64*12",
                next!("3", "1"),
                "jnz 2b",
                back!(),
                "3:",
                both!("0", "0"),
                next!("3", "1"),
                "jnz 3b",
            ),
            Parts::Rounded => run!(
                back!(),
                "3:",
                both!("0", "0"),
                ask!("0" "1" "2" "3"),
                "add {ahead}, 64*4",
                next!("1", "1"),
                "jnz 3b",
            ),
        }
    }
}

/// [`multiply`] in plain Rust.
#[cfg(test)]
unsafe fn emulate(parts: Parts, a: *const f32, b: *const f32, chunks: usize, sums: &mut Sums) {
    // SAFETY: `chunks` packed chunks on both pointers, says the caller.
    let [a, b] = [(a, parts.left()), (b, parts.right())]
        .map(|(data, parts)| unsafe { std::slice::from_raw_parts(data, chunks * parts * 2 * TILE_VALUES) });
    let passes: [&[(usize, usize)]; 2] = match parts {
        Parts::Exact => [&[(0, 2), (0, 1), (1, 1), (1, 0), (2, 0)], &[(0, 0)]],
        Parts::ExactLeft => [&[(2, 0), (1, 0)], &[(0, 0)]],
        Parts::Rounded => [&[], &[(0, 0)]],
    };
    let low = |pair: f32| f32::from_bits(pair.to_bits() << 16);
    let high = |pair: f32| f32::from_bits(pair.to_bits() & 0xffff_0000);
    sums.0.fill(0.0);
    for pass in passes {
        for (chunk, (left, right)) in (0..chunks).flat_map(|chunk| pass.iter().map(move |pair| (chunk, pair)))
        {
            let left = &a[(chunk * parts.left() + left) * 2 * TILE_VALUES..][..2 * TILE_VALUES];
            let right = &b[(chunk * parts.right() + right) * 2 * TILE_VALUES..][..2 * TILE_VALUES];
            for (sums, left) in sums.0.chunks_exact_mut(BLOCK_ROWS).zip(left.chunks_exact(16)) {
                for (sums, right) in sums.chunks_exact_mut(16).zip(right.chunks_exact(TILE_VALUES)) {
                    for (x, right) in left.iter().zip(right.chunks_exact(16)) {
                        for (sum, y) in sums.iter_mut().zip(right) {
                            *sum += low(*x) * low(*y);
                            *sum += high(*x) * high(*y);
                        }
                    }
                }
            }
        }
    }
}

/// `C = beta C + alpha sums` for a block of `rows` x `width` of `C` from `(row, col)` on.
#[inline(always)]
unsafe fn add(p: &Product, sums: &Sums, row: usize, rows: usize, col: usize, width: usize, begins: bool) {
    let first = p.c.wrapping_add(row * p.crs + col * p.ccs);
    let (old, ors, beta) = p.old(begins, first, row, col);
    for (r, sums) in sums.0.chunks_exact(BLOCK_ROWS).take(rows).enumerate() {
        // SAFETY: inside C, says the caller, and AVX-512 is there.
        unsafe {
            let (c, old) = (first.add(r * p.crs), old.add(r * ors));
            if p.ccs == 1 {
                for half in 0..2 {
                    let mask = ((1u32 << width.saturating_sub(half * 16).min(16)) - 1) as __mmask16;
                    let (at, old) = (c.wrapping_add(half * 16), old.wrapping_add(half * 16));
                    let sum = _mm512_loadu_ps(sums[half * 16..].as_ptr());
                    let mut number = _mm512_mul_ps(_mm512_set1_ps(p.alpha), sum);
                    if beta != 0.0 {
                        number =
                            _mm512_fmadd_ps(_mm512_set1_ps(beta), _mm512_maskz_loadu_ps(mask, old), number);
                    }
                    _mm512_mask_storeu_ps(at, mask, number);
                }
            } else {
                for (s, sum) in sums[..width].iter().enumerate() {
                    let at = c.add(s * p.ccs);
                    *at = if beta == 0.0 { p.alpha * sum } else { beta * *at + p.alpha * sum };
                }
            }
        }
    }
}
