//! SavedValues rounded to integers of 16 bits, two to a word, with one scale for each run of [`BLOCK_LEN`].
//!
//! A value is off by at most half a step, `max |x| / 65534` over its run: the largest ones keep 15 bits, where BF16 keeps
//! 8. In each run word `i` holds value `i` in its low half and value `i + BLOCK_LEN / 2` in its high half, so that nothing changes lanes; the
//! scales of all runs come after the words.

use std::ops::Range;

use crate::parallel::{SharedMut, for_rows};
use crate::simd::{Vector, dispatch};

/// SavedValues that share a scale.
const BLOCK_LEN: usize = 128;

/// Words of their integers.
const BLOCK_WORDS: usize = BLOCK_LEN / 2;

/// The largest integer.
const I16_MAX: f32 = 32767.0;

/// Words that `len` values take.
pub const fn i16_len(len: usize) -> usize {
    len.div_ceil(BLOCK_LEN) * (BLOCK_WORDS + 1)
}

/// Rounds `from` (nearest, ties to even). A run with a value that is not finite becomes NaN.
///
/// # Panics
/// If `to` has not [`i16_len`] words.
pub fn quantize_i16(to: &mut [f32], from: &[f32]) {
    assert_eq!(to.len(), i16_len(from.len()), "quantize_i16: words for {} values", from.len());
    let runs = from.len().div_ceil(BLOCK_LEN);
    let (words, scales) = to.split_at_mut(runs * BLOCK_WORDS);
    let (words, scales) = (SharedMut::new(words), SharedMut::new(scales));
    for_rows(runs, BLOCK_LEN, |r| {
        // SAFETY: the ranges of `for_rows` are disjoint.
        let (words, scales) =
            unsafe { (words.part(r.start * BLOCK_WORDS..r.end * BLOCK_WORDS), scales.part(r.clone())) };
        round_runs(words, scales, &from[r.start * BLOCK_LEN..(r.end * BLOCK_LEN).min(from.len())]);
    });
}

/// What [`quantize_i16`] rounded, as f32.
///
/// # Panics
/// If `from` has not [`i16_len`] words.
pub fn dequantize_i16(to: &mut [f32], from: &[f32]) {
    let len = to.len();
    assert_eq!(from.len(), i16_len(len), "dequantize_i16: words for {len} values");
    let shared = SharedMut::new(to);
    for_rows(len.div_ceil(BLOCK_LEN), BLOCK_LEN, |r| {
        let r = r.start * BLOCK_LEN..(r.end * BLOCK_LEN).min(len);
        // SAFETY: the ranges of `for_rows` are disjoint.
        expand(unsafe { shared.part(r.clone()) }, from, r);
    });
}

/// SavedValues as they are, or as [`quantize_i16`] keeps them.
#[derive(Clone, Copy, Debug)]
pub enum SavedValues<'a> {
    /// f32.
    F32(&'a [f32]),
    /// Words of two integers, and scales.
    I16(&'a [f32]),
}

impl<'a> SavedValues<'a> {
    /// # Panics
    /// If these are not `len` values.
    pub(crate) fn check(self, what: &str, len: usize) {
        let (have, want) = match self {
            Self::F32(x) => (x.len(), len),
            Self::I16(words) => (words.len(), i16_len(len)),
        };
        assert_eq!(have, want, "{what}: the length of one input of {len} values");
    }

    /// The values of a piece of [`for_pieces`], in `room` if they have to be expanded.
    #[inline(always)]
    pub(crate) fn piece<'b>(self, r: Range<usize>, room: &'b mut [f32; PIECE_LEN]) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Self::F32(x) => &x[r],
            Self::I16(from) => {
                let to = &mut room[..r.len()];
                expand(to, from, r);
                to
            }
        }
    }
}

/// The values of a range that begins with a run.
#[inline(always)]
fn expand(to: &mut [f32], from: &[f32], r: Range<usize>) {
    let (words, scales) = from.split_at(from.len() / (BLOCK_WORDS + 1) * BLOCK_WORDS);
    let runs = r.start / BLOCK_LEN..r.end.div_ceil(BLOCK_LEN);
    expand_runs(to, &words[runs.start * BLOCK_WORDS..runs.end * BLOCK_WORDS], &scales[runs]);
}

impl<'a, T: AsRef<[f32]> + ?Sized> From<&'a T> for SavedValues<'a> {
    fn from(x: &'a T) -> Self {
        Self::F32(x.as_ref())
    }
}

/// SavedValues that are expanded at a time by those that use them at once: they stay in the first cache.
pub(crate) const PIECE_LEN: usize = 16 * BLOCK_LEN;

/// Calls `f` on consecutive pieces of `len` values, each at most [`PIECE_LEN`] long, in parallel where `len * cost` is worth
/// it.
pub(crate) fn for_pieces(len: usize, cost: usize, f: impl Fn(Range<usize>) + Sync) {
    for_rows(len.div_ceil(PIECE_LEN), PIECE_LEN * cost, |pieces| {
        for piece in pieces {
            f(piece * PIECE_LEN..((piece + 1) * PIECE_LEN).min(len));
        }
    });
}

dispatch! {
    fn round_runs<V>(words: &mut [f32], scales: &mut [f32], from: &[f32]) {
        #[inline(always)]
        fn round<V: Vector>(to: &mut [f32; BLOCK_WORDS], from: &[f32; BLOCK_LEN]) -> f32 {
            let (mut most, mut broken) = (V::zero(), V::zero());
            for at in (0..BLOCK_LEN).step_by(V::LANES) {
                let x = V::load(from, at, V::LANES);
                most = most.max(x.abs());
                // Zero, but NaN where a value is not finite.
                broken = x.mul_add(V::zero(), broken);
            }
            let most = most.max_lane();
            // Below this the integers of a step would have no f32.
            let steps = if most > 1e-30 { I16_MAX / most } else { 0.0 };
            let steps = V::splat(steps);
            for at in (0..BLOCK_WORDS).step_by(V::LANES) {
                let low = V::load(from, at, V::LANES).mul(steps);
                let high = V::load(from, at + BLOCK_WORDS, V::LANES).mul(steps);
                V::from_i16_pair(low, high).store(to, at, V::LANES);
            }
            most / I16_MAX + broken.sum()
        }
        let (words, (runs, rest)) = (words.as_chunks_mut::<BLOCK_WORDS>().0, from.as_chunks::<BLOCK_LEN>());
        for ((to, scale), from) in words.iter_mut().zip(scales.iter_mut()).zip(runs) {
            *scale = round::<V>(to, from);
        }
        if !rest.is_empty() {
            let mut last = [0.0; BLOCK_LEN];
            last[..rest.len()].copy_from_slice(rest);
            scales[runs.len()] = round::<V>(&mut words[runs.len()], &last);
        }
    }
}

dispatch! {
    fn expand_runs<V>(to: &mut [f32], words: &[f32], scales: &[f32]) {
        #[inline(always)]
        fn expand<V: Vector>(to: &mut [f32; BLOCK_LEN], from: &[f32; BLOCK_WORDS], scale: f32) {
            let scale = V::splat(scale);
            for at in (0..BLOCK_WORDS).step_by(V::LANES) {
                let [low, high] = V::load(from, at, V::LANES).to_i16_pair();
                low.mul(scale).store(to, at, V::LANES);
                high.mul(scale).store(to, at + BLOCK_WORDS, V::LANES);
            }
        }
        let ((runs, rest), words) = (to.as_chunks_mut::<BLOCK_LEN>(), words.as_chunks::<BLOCK_WORDS>().0);
        let whole = runs.len();
        for ((to, from), scale) in runs.iter_mut().zip(words).zip(scales) {
            expand::<V>(to, from, *scale);
        }
        if !rest.is_empty() {
            let mut last = [0.0; BLOCK_LEN];
            expand::<V>(&mut last, &words[whole], scales[whole]);
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(from: &[f32]) -> Vec<f32> {
        let mut words = vec![f32::NAN; i16_len(from.len())];
        quantize_i16(&mut words, from);
        let mut back = vec![f32::NAN; from.len()];
        dequantize_i16(&mut back, &words);
        back
    }

    #[test]
    fn there_and_back_is_half_a_step_away() {
        for len in [0, 1, 15, 16, 63, 64, 65, 127, 128, 129, 1000, 200_003] {
            for size in [1.0, 1e-20, 1e30] {
                let mut from = vec![0.0; len];
                crate::normal(&mut from, 0.0, size, 1, 0);
                // A run with one value far larger than the others.
                if let Some(x) = from.get_mut(70) {
                    *x *= 1e3;
                }
                let back = there_and_back(&from);
                for (from, back) in from.chunks(BLOCK_LEN).zip(back.chunks(BLOCK_LEN)) {
                    let most = from.iter().fold(0.0_f64, |most, x| most.max(f64::from(x.abs())));
                    let limit = most / 65534.0 * (1.0 + 1e-2);
                    for (x, y) in from.iter().zip(back) {
                        let error = (f64::from(*x) - f64::from(*y)).abs();
                        assert!(error <= limit, "{x} became {y} of {len}");
                    }
                }
            }
        }
    }

    #[test]
    fn integers_of_the_scale_are_exact_and_others_go_to_the_even_one() {
        let mut from: Vec<f32> = (0..BLOCK_LEN).map(|i| (i as f32 - 64.0) * 511.0).collect();
        from[5] = -I16_MAX;
        assert_eq!(there_and_back(&from), from);
        from[..4].copy_from_slice(&[0.5, 1.5, -2.5, 7.25]);
        assert_eq!(there_and_back(&from)[..4], [0.0, 2.0, -2.0, 7.0]);
    }

    #[test]
    fn zeros_and_what_is_no_number() {
        assert_eq!(there_and_back(&[0.0; 200]), [0.0; 200]);
        assert_eq!(there_and_back(&[1e-40, -1e-40]), [0.0; 2]);
        for strange in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut from = [1.0; 2 * BLOCK_LEN];
            from[BLOCK_LEN + 77] = strange;
            let back = there_and_back(&from);
            assert!(back[..BLOCK_LEN].iter().all(|x| *x == 1.0));
            assert!(back[BLOCK_LEN..].iter().all(|x| x.is_nan()), "{strange}");
        }
    }
}
