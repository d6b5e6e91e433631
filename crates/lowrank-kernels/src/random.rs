//! Counter-based random values (Philox4x32-10) and dropout.
//!
//! A value depends only on `(seed, stream, index)`, never on the order of calls or on threads: a mask
//! is recomputed in the backward instead of being kept. Source: Salmon, Moraes, Dror and Shaw,
//! "Parallel random values: as easy as 1, 2, 3" (SC 2011).

use crate::parallel::{SharedMut, for_rows};
use crate::simd::{dispatch, for_lanes};

/// Philox4x32 with 10 rounds on `LANES` counters at once: `words[w][lane]`.
#[inline(always)]
fn philox<const LANES: usize>(mut c: [[u32; LANES]; 4], key: [u32; 2]) -> [[u32; LANES]; 4] {
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        #[allow(clippy::needless_range_loop)]
        for i in 0..LANES {
            let a = u64::from(c[0][i]) * 0xD251_1F53;
            let b = u64::from(c[2][i]) * 0xCD9E_8D57;
            let (c1, c3) = (c[1][i], c[3][i]);
            c[0][i] = (b >> 32) as u32 ^ c1 ^ k0;
            c[1][i] = b as u32;
            c[2][i] = (a >> 32) as u32 ^ c3 ^ k1;
            c[3][i] = a as u32;
        }
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    c
}

/// Values made at once: four words of eight counters. Number `i` of a stream is word `i % 32 / 8` of
/// counter `i / 32 * 8 + i % 8`, so that a word of eight neighbouring counters is stored in one go.
const GROUP_VALUES: usize = 32;

/// The random bits of the values `group * 32 ..` of a stream.
#[inline(always)]
fn bits(seed: u64, stream: u64, group: u64) -> [[u32; 8]; 4] {
    let counter: [u64; 8] = std::array::from_fn(|i| group.wrapping_mul(8).wrapping_add(i as u64));
    let words = [
        counter.map(|c| c as u32),
        counter.map(|c| (c >> 32) as u32),
        [stream as u32; 8],
        [(stream >> 32) as u32; 8],
    ];
    let key = [seed as u32, (seed >> 32) as u32];
    #[cfg(target_arch = "x86_64")]
    if crate::simd::level() != crate::simd::Level::Portable {
        // SAFETY: every level above has AVX2.
        return unsafe { philox_avx2(words, key) };
    }
    philox(words, key)
}

/// [`philox`] on eight counters (the compiler does not find these instructions by itself).
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn philox_avx2(c: [[u32; 8]; 4], key: [u32; 2]) -> [[u32; 8]; 4] {
    use std::arch::x86_64::*;
    // SAFETY: eight words are 32 bytes, and the load needs no alignment.
    let mut c = c.map(|w| unsafe { _mm256_loadu_si256(w.as_ptr().cast()) });
    let [mut k0, mut k1] = key;
    // The low and the high words of the products of eight words with one.
    let multiply = |x: __m256i, by: u32| {
        let by = _mm256_set1_epi32(by as i32);
        let even = _mm256_mul_epu32(x, by);
        let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(x), by);
        let low = _mm256_blend_epi32::<0b1010_1010>(even, _mm256_slli_epi64::<32>(odd));
        let high = _mm256_blend_epi32::<0b1010_1010>(_mm256_srli_epi64::<32>(even), odd);
        (low, high)
    };
    for _ in 0..10 {
        let (a_low, a_high) = multiply(c[0], 0xD251_1F53);
        let (b_low, b_high) = multiply(c[2], 0xCD9E_8D57);
        let key0 = _mm256_set1_epi32(k0 as i32);
        let key1 = _mm256_set1_epi32(k1 as i32);
        c = [
            _mm256_xor_si256(_mm256_xor_si256(b_high, c[1]), key0),
            b_low,
            _mm256_xor_si256(_mm256_xor_si256(a_high, c[3]), key1),
            a_low,
        ];
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    c.map(|w| {
        let mut words = [0; 8];
        // SAFETY: as for the loads.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), w) };
        words
    })
}

/// To `[0, 1)`, in steps of 2^-24.
#[inline(always)]
fn to_unit(bits: u32) -> f32 {
    (bits >> 8) as i32 as f32 * (1.0 / 16_777_216.0)
}

/// Fills `out` with values of the uniform distribution on `[low, high)`: value `i` of `stream` goes to
/// `out[i]`.
pub fn uniform(out: &mut [f32], low: f32, high: f32, seed: u64, stream: u64) {
    let n = out.len();
    let out = SharedMut::new(out);
    for_groups(n, |r, first| {
        // SAFETY: the ranges are disjoint.
        uniform_run(unsafe { out.part(r) }, low, high, seed, stream, first);
    });
}

dispatch! {
    fn uniform_run<V>(out: &mut [f32], low: f32, high: f32, seed: u64, stream: u64, first: u64) {
        let _ = V::LANES;
        for (g, out) in out.chunks_mut(GROUP_VALUES).enumerate() {
            let random = bits(seed, stream, first + g as u64);
            for (o, &b) in out.iter_mut().zip(random.as_flattened()) {
                // The product can round up to `high` itself.
                let x = low + (high - low) * to_unit(b);
                *o = if x < high { x } else { low };
            }
        }
    }
}

/// Fills `out` with values of the normal distribution (Box-Muller, in f64 until the last rounding).
pub fn normal(out: &mut [f32], mean: f32, std: f32, seed: u64, stream: u64) {
    let n = out.len();
    let out = SharedMut::new(out);
    for_groups(n, |r, first| {
        // SAFETY: the ranges are disjoint.
        let out = unsafe { out.part(r) };
        for (g, out) in out.chunks_mut(GROUP_VALUES).enumerate() {
            let random = bits(seed, stream, first + g as u64);
            let random = random.as_flattened();
            for (i, o) in out.iter_mut().enumerate() {
                // Value `i` of the first half and value `i + 16` share their two random words.
                let (a, b) = (random[i % 16], random[i % 16 + 16]);
                // In (0, 1], so that the logarithm is finite.
                let radius = (-2.0 * ((f64::from(a) + 1.0) / 4_294_967_296.0).ln()).sqrt();
                let angle = std::f64::consts::TAU * f64::from(b) / 4_294_967_296.0;
                let z = radius * if i < 16 { angle.cos() } else { angle.sin() };
                *o = (f64::from(mean) + f64::from(std) * z) as f32;
            }
        }
    });
}

/// `y = x mask / (1 - p)`, where each value is kept with probability `1 - p`.
///
/// The mask depends on `(seed, stream)` and the position alone, so [`dropout_backward`] makes it again.
/// `p = 0` copies, `p = 1` gives zeros.
///
/// # Panics
/// If the lengths differ or `p` is not in `[0, 1]`.
pub fn dropout(y: &mut [f32], x: &[f32], p: f32, seed: u64, stream: u64) {
    masked(y, x, p, seed, stream, false);
}

/// Backward of [`dropout`]: `dx = dy mask / (1 - p)`, added to `dx` where `accumulate`.
///
/// # Panics
/// As [`dropout`].
pub fn dropout_backward(dx: &mut [f32], dy: &[f32], p: f32, seed: u64, stream: u64, accumulate: bool) {
    masked(dx, dy, p, seed, stream, accumulate);
}

/// The factors of [`dropout`], 0 or `1 / (1 - p)`, of the values of a stream from `first` on.
pub(crate) fn dropout_factors(out: &mut [f32], p: f32, seed: u64, stream: u64, first: usize) {
    let (drop, factor) = dropout_odds(p);
    let mut at = 0;
    while at < out.len() {
        let (group, skip) = ((first + at) / GROUP_VALUES, (first + at) % GROUP_VALUES);
        let random = bits(seed, stream, group as u64);
        let out = &mut out[at..];
        let count = out.len().min(GROUP_VALUES - skip);
        for (o, &b) in out.iter_mut().zip(&random.as_flattened()[skip..]) {
            *o = if u64::from(b) < drop { 0.0 } else { factor };
        }
        at += count;
    }
}

/// Dropout of whole features, such as LoHa's and LoKr's: the factor of each of `factors: [O]` is 0 with probability `p`,
/// else 1 or, with `rescale`, `O` divided by the number of features that stay; and all are 0 with probability `p_all`.
/// The masks are those of [`dropout`] with the two streams.
///
/// # Panics
/// If a probability is not in `[0, 1]`.
pub fn feature_dropout(factors: &mut [f32], p: f32, p_all: f32, rescale: bool, seed: u64, streams: [u64; 2]) {
    for p in [p, p_all] {
        assert!((0.0..=1.0).contains(&p), "feature_dropout: p = {p} is not in [0, 1]");
    }
    let mask = |out: &mut [f32], p: f32, stream: u64| {
        dropout_factors(out, p, seed, stream, 0);
        out.iter_mut().for_each(|x| *x = f32::from(*x != 0.0));
    };
    mask(factors, p, streams[0]);
    let share = factors.iter().sum::<f32>() / factors.len() as f32;
    let scale = if rescale && share > 0.0 { 1.0 / share } else { 1.0 };
    let mut all = [0.0];
    mask(&mut all, p_all, streams[1]);
    factors.iter_mut().for_each(|f| *f = *f * scale * all[0]);
}

/// The word below which a value is dropped (with `p` 1 all words are below 2^32), and the factor of the others.
pub fn dropout_odds(p: f32) -> (u64, f32) {
    let factor = if p < 1.0 { (1.0 / (1.0 - f64::from(p))) as f32 } else { 0.0 };
    ((f64::from(p) * 4_294_967_296.0).round() as u64, factor)
}

fn masked(y: &mut [f32], x: &[f32], p: f32, seed: u64, stream: u64, accumulate: bool) {
    assert_eq!(y.len(), x.len(), "dropout: the output has {} values, the input {}", y.len(), x.len());
    assert!((0.0..=1.0).contains(&p), "dropout: p = {p} is not in [0, 1]");
    let (drop, factor) = dropout_odds(p);
    let y = SharedMut::new(y);
    for_groups(x.len(), |r, first| {
        // SAFETY: the ranges are disjoint.
        masked_run(unsafe { y.part(r.clone()) }, &x[r], drop, factor, seed, stream, first, accumulate);
    });
}

dispatch! {
    fn masked_run<V>(
        y: &mut [f32], x: &[f32], drop: u64, factor: f32, seed: u64, stream: u64, first: u64, accumulate: bool,
    ) {
        let drop_all = drop > u64::from(u32::MAX);
        let drop = drop as u32;
        let mut mask = [0.0; GROUP_VALUES];
        for (g, (y, x)) in y.chunks_mut(GROUP_VALUES).zip(x.chunks(GROUP_VALUES)).enumerate() {
            let random = bits(seed, stream, first + g as u64);
            for (m, &b) in mask.iter_mut().zip(random.as_flattened()) {
                *m = if b < drop || drop_all { 0.0 } else { factor };
            }
            for_lanes!(V, x.len(), |at, lanes| {
                let m = V::load(&mask, at, lanes);
                // A dropped value is zero even where it was infinite.
                let v = V::zero().if_less(m, V::load(x, at, lanes).mul(m), V::zero());
                let v = if accumulate { v.add(V::load(y, at, lanes)) } else { v };
                v.store(y, at, lanes);
            });
        }
    }
}

/// Calls `f(range, first)` on disjoint ranges of `0..n` that start at a group, `first` its index.
fn for_groups(n: usize, f: impl Fn(std::ops::Range<usize>, u64) + Sync) {
    for_rows(n.div_ceil(GROUP_VALUES), 4 * GROUP_VALUES, |r| {
        f(r.start * GROUP_VALUES..n.min(r.end * GROUP_VALUES), r.start as u64);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors publish with Random123 (`kat_vectors`).
    #[test]
    fn philox_known_answers() {
        let cases: [([u32; 4], [u32; 2], [u32; 4]); 3] = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, want) in cases {
            assert_eq!(philox::<1>(counter.map(|c| [c]), key).map(|w| w[0]), want);
            assert_eq!(philox::<8>(counter.map(|c| [c; 8]), key).map(|w| w[7]), want);
            #[cfg(target_arch = "x86_64")]
            if crate::simd::level() != crate::simd::Level::Portable {
                // SAFETY: every level above has AVX2.
                assert_eq!(unsafe { philox_avx2(counter.map(|c| [c; 8]), key) }.map(|w| w[7]), want);
            }
        }
    }

    #[test]
    fn eight_counters_at_once_equal_one_at_a_time() {
        for (seed, stream, group) in [(1, 2, 3), (u64::MAX, 1 << 40, (1 << 29) - 1), (0, 0, u64::MAX)] {
            let got = bits(seed, stream, group);
            for i in 0..8 {
                let counter = group.wrapping_mul(8).wrapping_add(i);
                let words = [counter as u32, (counter >> 32) as u32, stream as u32, (stream >> 32) as u32];
                let want = philox::<1>(words.map(|w| [w]), [seed as u32, (seed >> 32) as u32]);
                assert_eq!(got.map(|w| w[i as usize]), want.map(|w| w[0]));
            }
        }
    }

    #[test]
    fn distributions() {
        let n = 1_000_003;
        let mut x = vec![f32::NAN; n];
        uniform(&mut x, -0.25, 0.25, 7, 3);
        assert!(x.iter().all(|x| (-0.25..0.25).contains(x)));
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 1e-3, "{mean}");
        normal(&mut x, 1.0, 2.0, 7, 3);
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let moment = |k: i32| x.iter().map(|&x| (f64::from(x) - mean).powi(k)).sum::<f64>() / n as f64;
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
        assert!((moment(2) - 4.0).abs() < 0.02, "{}", moment(2));
        assert!((moment(4) / 48.0 - 1.0).abs() < 0.02, "{}", moment(4));
    }

    #[test]
    fn a_number_depends_on_its_position_only() {
        let (mut long, mut short) = (vec![0.0; 100_000], vec![0.0; 77]);
        uniform(&mut long, 0.0, 1.0, 1, 2);
        uniform(&mut short, 0.0, 1.0, 1, 2);
        assert_eq!(short, long[..77]);
        let mut other = vec![0.0; 77];
        uniform(&mut other, 0.0, 1.0, 1, 3);
        assert_ne!(short, other);
        uniform(&mut other, 0.0, 1.0, 2, 2);
        assert_ne!(short, other);
    }

    #[test]
    fn features_are_dropped_whole() {
        let n = 1000;
        let mut factors = vec![f32::NAN; n];
        feature_dropout(&mut factors, 0.25, 0.0, true, 5, [8, 9]);
        let mut mask = vec![f32::NAN; n];
        dropout(&mut mask, &vec![1.0; n], 0.25, 5, 8);
        let stays = mask.iter().filter(|m| **m != 0.0).count();
        for (f, m) in factors.iter().zip(&mask) {
            assert!((f - if *m == 0.0 { 0.0 } else { n as f32 / stays as f32 }).abs() < 1e-6);
        }
        feature_dropout(&mut factors, 0.0, 0.0, true, 5, [8, 9]);
        assert!(factors.iter().all(|f| *f == 1.0));
        feature_dropout(&mut factors, 0.25, 1.0, false, 5, [8, 9]);
        assert!(factors.iter().all(|f| *f == 0.0));
    }

    #[test]
    fn dropout_and_its_backward_share_the_mask() {
        let n = 300_001;
        let x: Vec<f32> = (0..n).map(|i| 1.0 + (i % 7) as f32).collect();
        let (mut y, mut dx) = (vec![f32::NAN; n], vec![f32::NAN; n]);
        dropout(&mut y, &x, 0.1, 5, 9);
        dropout_backward(&mut dx, &vec![1.0; n], 0.1, 5, 9, false);
        let mut dropped = 0;
        for i in 0..n {
            assert!(y[i] == 0.0 || (y[i] - x[i] / 0.9).abs() < 1e-5);
            assert!((y[i] - x[i] * dx[i]).abs() < 1e-5);
            dropped += usize::from(y[i] == 0.0);
        }
        assert!((dropped as f64 / n as f64 - 0.1).abs() < 0.005, "{dropped}");
        dropout_backward(&mut dx, &vec![1.0; n], 0.1, 5, 9, true);
        assert!(dx.iter().zip(&y).all(|(d, y)| (*d == 0.0) == (*y == 0.0)));

        // The factors alone, from any value on.
        for first in [0, 5, 31, 32, 100] {
            let mut factors = vec![f32::NAN; 77];
            dropout_factors(&mut factors, 0.1, 5, 9, first);
            dropout_backward(&mut dx, &vec![1.0; n], 0.1, 5, 9, false);
            assert_eq!(factors, dx[first..first + 77]);
        }

        let infinite = vec![f32::INFINITY; 64];
        dropout(&mut y[..64], &infinite, 1.0, 5, 9);
        assert!(y[..64].iter().all(|&y| y == 0.0));
        dropout(&mut y[..64], &x[..64], 0.0, 5, 9);
        assert_eq!(y[..64], x[..64]);
    }
}
