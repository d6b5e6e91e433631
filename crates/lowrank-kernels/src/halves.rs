//! Numbers rounded to BF16 and kept two to a word.
//!
//! In each run of 32, word `i` holds number `i` below and number `i + 16` above, so that nothing changes lanes.

use std::ops::Range;

use crate::parallel::{SharedMut, for_rows};
use crate::vector::{Vector, dispatch};

/// Numbers that lie together.
const RUN: usize = 32;

/// Words that `len` numbers take.
pub const fn halves_len(len: usize) -> usize {
    len.div_ceil(RUN) * (RUN / 2)
}

/// Rounds `from` to BF16 (nearest, ties to even).
///
/// # Panics
/// If `to` has not [`halves_len`] words.
pub fn to_halves(to: &mut [f32], from: &[f32]) {
    assert_eq!(to.len(), halves_len(from.len()), "to_halves: words for {} numbers", from.len());
    let shared = SharedMut::new(to);
    for_rows(from.len().div_ceil(RUN), RUN, |r| {
        // SAFETY: the ranges of `for_rows` are disjoint.
        let to = unsafe { shared.part(r.start * (RUN / 2)..r.end * (RUN / 2)) };
        round_run(to, &from[r.start * RUN..(r.end * RUN).min(from.len())]);
    });
}

/// What [`to_halves`] rounded, as f32.
///
/// # Panics
/// If `from` has not [`halves_len`] words.
pub fn from_halves(to: &mut [f32], from: &[f32]) {
    assert_eq!(from.len(), halves_len(to.len()), "from_halves: words for {} numbers", to.len());
    let len = to.len();
    let shared = SharedMut::new(to);
    for_rows(len.div_ceil(RUN), RUN, |r| {
        // SAFETY: the ranges of `for_rows` are disjoint.
        let to = unsafe { shared.part(r.start * RUN..(r.end * RUN).min(len)) };
        expand_run(to, &from[r.start * (RUN / 2)..r.end * (RUN / 2)]);
    });
}

/// Numbers as they are, or as [`to_halves`] keeps them.
#[derive(Clone, Copy, Debug)]
pub enum Numbers<'a> {
    /// f32.
    Whole(&'a [f32]),
    /// Words of two BF16.
    Halves(&'a [f32]),
}

impl<'a> Numbers<'a> {
    /// # Panics
    /// If these are not `len` numbers.
    pub(crate) fn check(self, what: &str, len: usize) {
        let (have, want) = match self {
            Self::Whole(x) => (x.len(), len),
            Self::Halves(words) => (words.len(), halves_len(len)),
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
            Self::Halves(words) => {
                let to = &mut room[..r.len()];
                expand_run(to, &words[r.start / 2..halves_len(r.end)]);
                to
            }
        }
    }
}

impl<'a, T: AsRef<[f32]> + ?Sized> From<&'a T> for Numbers<'a> {
    fn from(x: &'a T) -> Self {
        Self::Whole(x.as_ref())
    }
}

/// Numbers that are expanded at a time by those that use them at once: they stay in the first cache.
pub(crate) const PIECE: usize = 64 * RUN;

/// Calls `f` on consecutive pieces of `len` numbers, each at most [`PIECE`] long, in parallel where `len * cost` is worth
/// it.
pub(crate) fn for_pieces(len: usize, cost: usize, f: impl Fn(Range<usize>) + Sync) {
    for_rows(len.div_ceil(PIECE), PIECE * cost, |pieces| {
        for piece in pieces {
            f(piece * PIECE..((piece + 1) * PIECE).min(len));
        }
    });
}

/// One BF16, nearest, ties to even. (A NaN stays one: its payload is not worth a branch, but its exponent must
/// not overflow into the sign.)
#[inline(always)]
pub(crate) fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { bits >> 16 | 0x40 } else { rounded }
}

/// Two of them.
#[inline(always)]
pub(crate) fn word(low: f32, high: f32) -> f32 {
    f32::from_bits(round(low) | round(high) << 16)
}

dispatch! {
    fn round_run<V>(to: &mut [f32], from: &[f32]) {
        #[inline(always)]
        fn round<V: Vector>(to: &mut [f32; RUN / 2], from: &[f32; RUN]) {
            for at in (0..RUN / 2).step_by(V::LANES) {
                let [low, high] = [at, at + RUN / 2].map(|at| V::load(from, at, V::LANES));
                V::from_halves(low, high).store(to, at, V::LANES);
            }
        }
        let (to, (runs, rest)) = (to.as_chunks_mut::<{ RUN / 2 }>().0, from.as_chunks::<RUN>());
        to.iter_mut().zip(runs).for_each(|(to, from)| round::<V>(to, from));
        if !rest.is_empty() {
            let mut last = [0.0; RUN];
            last[..rest.len()].copy_from_slice(rest);
            round::<V>(&mut to[runs.len()], &last);
        }
    }
}

dispatch! {
    fn expand_run<V>(to: &mut [f32], from: &[f32]) {
        #[inline(always)]
        fn expand<V: Vector>(to: &mut [f32; RUN], from: &[f32; RUN / 2]) {
            for at in (0..RUN / 2).step_by(V::LANES) {
                let [low, high] = V::load(from, at, V::LANES).halves();
                low.store(to, at, V::LANES);
                high.store(to, at + RUN / 2, V::LANES);
            }
        }
        let ((runs, rest), from) = (to.as_chunks_mut::<RUN>(), from.as_chunks::<{ RUN / 2 }>().0);
        let whole = runs.len();
        runs.iter_mut().zip(from).for_each(|(to, from)| expand::<V>(to, from));
        if !rest.is_empty() {
            let mut last = [0.0; RUN];
            expand::<V>(&mut last, &from[whole]);
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back_is_rounding() {
        for len in [0, 1, 15, 16, 17, 31, 32, 33, 1000, 200_003] {
            let mut from = vec![0.0; len];
            crate::normal(&mut from, 0.0, 1.0, 1, 0);
            let mut words = vec![f32::NAN; halves_len(len)];
            to_halves(&mut words, &from);
            let mut back = vec![f32::NAN; len];
            from_halves(&mut back, &words);
            for (x, y) in from.iter().zip(&back) {
                assert_eq!(half::bf16::from_f32(*x).to_f32(), *y, "of {len}");
            }
            // Whatever must not become another kind of number.
            let strange = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MAX];
            let strange = &strange[..len.min(strange.len())];
            from[..strange.len()].copy_from_slice(strange);
            to_halves(&mut words, &from);
            from_halves(&mut back, &words);
            for (x, y) in strange.iter().zip(&back) {
                assert_eq!(half::bf16::from_f32(*x).to_f32().to_bits(), y.to_bits(), "{x}");
            }
        }
    }

    #[test]
    fn rounding_is_to_the_nearest_even() {
        let mut all = vec![0.0; 1000];
        crate::normal(&mut all, 0.0, 1.0, 4, 0);
        let (max, one) = (f32::MAX, 1.0 / 256.0);
        all.extend([0.0, -0.0, max, -max, f32::INFINITY, f32::NEG_INFINITY, 1.0 + one, 1.0 + 3.0 * one]);
        for x in all {
            assert_eq!(round(x), u32::from(half::bf16::from_f32(x).to_bits()), "{x}");
        }
        assert!(f32::from_bits(round(f32::NAN) << 16).is_nan());
    }
}
