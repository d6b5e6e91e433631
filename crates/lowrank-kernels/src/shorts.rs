//! Numbers rounded to integers of 16 bits, two to a word, with one scale for each run of [`RUN`].
//!
//! A number is off by at most half a step, `max |x| / 65534` over its run: the largest ones keep 15 bits, where BF16 keeps
//! 8. In each run word `i` holds number `i` below and number `i + RUN / 2` above, so that nothing changes lanes; the
//! scales of all runs come after the words.

use std::ops::Range;

use crate::parallel::{SharedMut, for_rows};
use crate::vector::{Vector, dispatch};

/// Numbers that share a scale.
const RUN: usize = 128;

/// Words of their integers.
const WORDS: usize = RUN / 2;

/// The largest integer.
const MOST: f32 = 32767.0;

/// Words that `len` numbers take.
pub const fn shorts_len(len: usize) -> usize {
    len.div_ceil(RUN) * (WORDS + 1)
}

/// Rounds `from` (nearest, ties to even). A run with a number that is not finite becomes NaN.
///
/// # Panics
/// If `to` has not [`shorts_len`] words.
pub fn to_shorts(to: &mut [f32], from: &[f32]) {
    assert_eq!(to.len(), shorts_len(from.len()), "to_shorts: words for {} numbers", from.len());
    let runs = from.len().div_ceil(RUN);
    let (words, scales) = to.split_at_mut(runs * WORDS);
    let (words, scales) = (SharedMut::new(words), SharedMut::new(scales));
    for_rows(runs, RUN, |r| {
        // SAFETY: the ranges of `for_rows` are disjoint.
        let (words, scales) = unsafe { (words.part(r.start * WORDS..r.end * WORDS), scales.part(r.clone())) };
        round_runs(words, scales, &from[r.start * RUN..(r.end * RUN).min(from.len())]);
    });
}

/// What [`to_shorts`] rounded, as f32.
///
/// # Panics
/// If `from` has not [`shorts_len`] words.
pub fn from_shorts(to: &mut [f32], from: &[f32]) {
    let len = to.len();
    assert_eq!(from.len(), shorts_len(len), "from_shorts: words for {len} numbers");
    let shared = SharedMut::new(to);
    for_rows(len.div_ceil(RUN), RUN, |r| {
        let r = r.start * RUN..(r.end * RUN).min(len);
        // SAFETY: the ranges of `for_rows` are disjoint.
        expand(unsafe { shared.part(r.clone()) }, from, r);
    });
}

/// Numbers as they are, or as [`to_shorts`] keeps them.
#[derive(Clone, Copy, Debug)]
pub enum Numbers<'a> {
    /// f32.
    Whole(&'a [f32]),
    /// Words of two integers, and scales.
    Shorts(&'a [f32]),
}

impl<'a> Numbers<'a> {
    /// # Panics
    /// If these are not `len` numbers.
    pub(crate) fn check(self, what: &str, len: usize) {
        let (have, want) = match self {
            Self::Whole(x) => (x.len(), len),
            Self::Shorts(words) => (words.len(), shorts_len(len)),
        };
        assert_eq!(have, want, "{what}: the length of one input of {len} numbers");
    }

    /// The numbers of a piece of [`for_pieces`], in `room` if they have to be expanded.
    #[inline(always)]
    pub(crate) fn piece<'b>(self, r: Range<usize>, room: &'b mut [f32; PIECE]) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Self::Whole(x) => &x[r],
            Self::Shorts(from) => {
                let to = &mut room[..r.len()];
                expand(to, from, r);
                to
            }
        }
    }
}

/// The numbers of a range that begins with a run.
#[inline(always)]
fn expand(to: &mut [f32], from: &[f32], r: Range<usize>) {
    let (words, scales) = from.split_at(from.len() / (WORDS + 1) * WORDS);
    let runs = r.start / RUN..r.end.div_ceil(RUN);
    expand_runs(to, &words[runs.start * WORDS..runs.end * WORDS], &scales[runs]);
}

impl<'a, T: AsRef<[f32]> + ?Sized> From<&'a T> for Numbers<'a> {
    fn from(x: &'a T) -> Self {
        Self::Whole(x.as_ref())
    }
}

/// Numbers that are expanded at a time by those that use them at once: they stay in the first cache.
pub(crate) const PIECE: usize = 16 * RUN;

/// Calls `f` on consecutive pieces of `len` numbers, each at most [`PIECE`] long, in parallel where `len * cost` is worth
/// it.
pub(crate) fn for_pieces(len: usize, cost: usize, f: impl Fn(Range<usize>) + Sync) {
    for_rows(len.div_ceil(PIECE), PIECE * cost, |pieces| {
        for piece in pieces {
            f(piece * PIECE..((piece + 1) * PIECE).min(len));
        }
    });
}

dispatch! {
    fn round_runs<V>(words: &mut [f32], scales: &mut [f32], from: &[f32]) {
        #[inline(always)]
        fn round<V: Vector>(to: &mut [f32; WORDS], from: &[f32; RUN]) -> f32 {
            let (mut most, mut broken) = (V::zero(), V::zero());
            for at in (0..RUN).step_by(V::LANES) {
                let x = V::load(from, at, V::LANES);
                most = most.max(x.abs());
                // Zero, but NaN where a number is not finite.
                broken = x.mul_add(V::zero(), broken);
            }
            let most = most.max_lane();
            // Below this the integers of a step would have no f32.
            let steps = if most > 1e-30 { MOST / most } else { 0.0 };
            let steps = V::splat(steps);
            for at in (0..WORDS).step_by(V::LANES) {
                let low = V::load(from, at, V::LANES).mul(steps);
                let high = V::load(from, at + WORDS, V::LANES).mul(steps);
                V::from_shorts(low, high).store(to, at, V::LANES);
            }
            most / MOST + broken.sum()
        }
        let (words, (runs, rest)) = (words.as_chunks_mut::<WORDS>().0, from.as_chunks::<RUN>());
        for ((to, scale), from) in words.iter_mut().zip(scales.iter_mut()).zip(runs) {
            *scale = round::<V>(to, from);
        }
        if !rest.is_empty() {
            let mut last = [0.0; RUN];
            last[..rest.len()].copy_from_slice(rest);
            scales[runs.len()] = round::<V>(&mut words[runs.len()], &last);
        }
    }
}

dispatch! {
    fn expand_runs<V>(to: &mut [f32], words: &[f32], scales: &[f32]) {
        #[inline(always)]
        fn expand<V: Vector>(to: &mut [f32; RUN], from: &[f32; WORDS], scale: f32) {
            let scale = V::splat(scale);
            for at in (0..WORDS).step_by(V::LANES) {
                let [low, high] = V::load(from, at, V::LANES).shorts();
                low.mul(scale).store(to, at, V::LANES);
                high.mul(scale).store(to, at + WORDS, V::LANES);
            }
        }
        let ((runs, rest), words) = (to.as_chunks_mut::<RUN>(), words.as_chunks::<WORDS>().0);
        let whole = runs.len();
        for ((to, from), scale) in runs.iter_mut().zip(words).zip(scales) {
            expand::<V>(to, from, *scale);
        }
        if !rest.is_empty() {
            let mut last = [0.0; RUN];
            expand::<V>(&mut last, &words[whole], scales[whole]);
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(from: &[f32]) -> Vec<f32> {
        let mut words = vec![f32::NAN; shorts_len(from.len())];
        to_shorts(&mut words, from);
        let mut back = vec![f32::NAN; from.len()];
        from_shorts(&mut back, &words);
        back
    }

    #[test]
    fn there_and_back_is_half_a_step_away() {
        for len in [0, 1, 15, 16, 63, 64, 65, 127, 128, 129, 1000, 200_003] {
            for size in [1.0, 1e-20, 1e30] {
                let mut from = vec![0.0; len];
                crate::normal(&mut from, 0.0, size, 1, 0);
                // A run with one number far larger than the others.
                if let Some(x) = from.get_mut(70) {
                    *x *= 1e3;
                }
                let back = there_and_back(&from);
                for (from, back) in from.chunks(RUN).zip(back.chunks(RUN)) {
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
        let mut from: Vec<f32> = (0..RUN).map(|i| (i as f32 - 64.0) * 511.0).collect();
        from[5] = -MOST;
        assert_eq!(there_and_back(&from), from);
        from[..4].copy_from_slice(&[0.5, 1.5, -2.5, 7.25]);
        assert_eq!(there_and_back(&from)[..4], [0.0, 2.0, -2.0, 7.0]);
    }

    #[test]
    fn zeros_and_what_is_no_number() {
        assert_eq!(there_and_back(&[0.0; 200]), [0.0; 200]);
        assert_eq!(there_and_back(&[1e-40, -1e-40]), [0.0; 2]);
        for strange in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut from = [1.0; 2 * RUN];
            from[RUN + 77] = strange;
            let back = there_and_back(&from);
            assert!(back[..RUN].iter().all(|x| *x == 1.0));
            assert!(back[RUN..].iter().all(|x| x.is_nan()), "{strange}");
        }
    }
}
