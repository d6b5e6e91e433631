//! How many singular values are kept.

use lowrank_adapters::linalg::Svd;

use crate::error::{Error, Result};

/// A rule for the rank of a decomposition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// This many.
    Fixed(usize),
    /// The fewest whose squares are this share of the sum of all squares.
    Energy(f64),
    /// The fewest whose Frobenius norm is this share of the whole norm.
    Frobenius(f64),
    /// The fewest whose sum is this share of the sum of all.
    Cumulative(f64),
    /// Those larger than the largest divided by this.
    Ratio(f64),
}

impl Rule {
    /// Checks the number.
    ///
    /// # Errors
    /// Says what it may be.
    pub fn check(self) -> Result<()> {
        let wrong = match self {
            Self::Fixed(0) => "a rank of 0",
            Self::Energy(x) | Self::Frobenius(x) | Self::Cumulative(x) if !(x > 0.0 && x <= 1.0) => {
                "a share is more than 0 and at most 1"
            }
            Self::Ratio(x) if x.is_nan() || x < 1.0 => "a ratio of singular values is at least 1",
            _ => return Ok(()),
        };
        Err(Error::Usage(wrong.into()))
    }

    /// The rank, at least 1 and at most `max`, for these singular values of a matrix whose squares sum to
    /// `total`; `None` where more values are needed to tell.
    pub(crate) fn rank(self, s: &[f32], total: f64, max: usize) -> Option<usize> {
        let share = |share: f64, whole: f64, power: i32| {
            let mut sum = 0.0;
            // A share of 1 is not missed for a rounding error.
            let wanted = share * whole * (1.0 - 1e-12);
            s.iter().position(|x| {
                sum += f64::from(*x).powi(power);
                sum >= wanted
            })
        };
        let enough = |found: Option<usize>| match found {
            Some(at) => Some(at + 1),
            None if s.len() >= max => Some(max),
            None => None,
        };
        let rank = match self {
            Self::Fixed(rank) => (s.len() >= rank.min(max)).then_some(rank),
            Self::Energy(energy) => enough(share(energy, total, 2)),
            Self::Frobenius(ratio) => enough(share(ratio * ratio, total, 2)),
            Self::Cumulative(_) if s.len() < max => None,
            Self::Cumulative(part) => enough(share(part, s.iter().map(|x| f64::from(*x)).sum(), 1)),
            Self::Ratio(ratio) => {
                let least = s.first().map_or(0.0, |first| f64::from(*first) / ratio);
                let found = s.iter().position(|x| f64::from(*x) <= least && ratio > 1.0);
                found.or_else(|| (s.len() >= max).then_some(max))
            }
        };
        Some(rank?.clamp(1, max.max(1)))
    }
}

/// Share of the squares that the values keep.
pub(crate) fn energy(svd: &Svd, total: f64) -> f64 {
    let kept: f64 = svd.s.iter().map(|s| f64::from(*s).powi(2)).sum();
    if total > 0.0 { (kept / total).min(1.0) } else { 1.0 }
}
