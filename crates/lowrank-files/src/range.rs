//! The values that a numeric option or field may have.

use std::fmt;

/// A range of numbers, which messages and help texts state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// Whole numbers from the first to the second.
    Whole(u64, u64),
    /// Numbers from the first to the second.
    Real(f64, f64),
    /// Numbers above the first, up to the second.
    Above(f64, f64),
    /// Numbers from the first, below the second.
    Below(f64, f64),
}

impl Range {
    /// Ranks of an adapter.
    pub const RANK: Self = Self::Whole(1, 65_536);
    /// Alpha of an adapter.
    pub const ALPHA: Self = Self::Above(0.0, 1e9);
    /// Probabilities of dropout.
    pub const DROPOUT: Self = Self::Below(0.0, 1.0);
    /// Threads of a command.
    pub const THREADS: Self = Self::Whole(1, 1024);
    /// Random seeds: what TOML and JSON can write.
    pub const SEED: Self = Self::Whole(0, i64::MAX as u64);

    /// Whether the range holds `value`. A range of whole numbers holds no fractions.
    pub fn contains(&self, value: f64) -> bool {
        match *self {
            Self::Whole(least, most) => {
                value.fract() == 0.0
                    && value >= least as f64
                    && value <= most as f64
                    && value < u64::MAX as f64
            }
            Self::Real(least, most) => (least..=most).contains(&value),
            Self::Above(limit, most) => value > limit && value <= most,
            Self::Below(least, limit) => (least..limit).contains(&value),
        }
    }

    /// The same for a whole number, exactly.
    pub fn contains_whole(&self, value: i128) -> bool {
        match *self {
            Self::Whole(least, most) => (i128::from(least)..=i128::from(most)).contains(&value),
            _ => self.contains(value as f64),
        }
    }

    /// Reads a number in the range.
    ///
    /// # Errors
    /// Says what the value must be.
    pub fn parse(&self, text: &str) -> Result<f64, String> {
        let text = text.trim();
        let value = match self {
            Self::Whole(..) => {
                text.parse::<i128>().ok().filter(|n| self.contains_whole(*n)).map(|n| n as f64)
            }
            _ => text.parse::<f64>().ok().filter(|x| self.contains(*x)),
        };
        value.ok_or_else(|| self.must_be())
    }

    /// Reads a whole number in the range.
    ///
    /// # Errors
    /// Says what the value must be.
    pub fn parse_whole(&self, text: &str) -> Result<u64, String> {
        let value = text.trim().parse::<i128>().ok().filter(|n| self.contains_whole(*n));
        value.and_then(|n| u64::try_from(n).ok()).ok_or_else(|| self.must_be())
    }

    /// "must be a whole number from 1 to 8".
    pub fn must_be(&self) -> String {
        format!("must be {self}")
    }

    /// Checks a number.
    ///
    /// # Errors
    /// "is 9; it must be a whole number from 1 to 8".
    pub fn check(&self, value: f64) -> Result<(), String> {
        if self.contains(value) { Ok(()) } else { Err(self.refusal(value)) }
    }

    /// "is 9; it must be a whole number from 1 to 8".
    pub fn refusal(&self, value: impl fmt::Display) -> String {
        format!("is {value}; it {}", self.must_be())
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(least, most) => write!(f, "a whole number from {least} to {most}"),
            Self::Real(least, most) => write!(f, "a number from {least} to {most}"),
            Self::Above(limit, most) => write!(f, "a number above {limit} and at most {most}"),
            Self::Below(least, limit) => write!(f, "a number from {least} to below {limit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_fractions_and_what_is_no_number() {
        let whole = Range::Whole(1, 8);
        assert!(whole.contains(1.0) && whole.contains(8.0));
        for out in [0.0, 9.0, 1.5, -1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert!(!whole.contains(out), "{out}");
        }
        assert_eq!(Range::SEED.parse_whole("9223372036854775807"), Ok(i64::MAX as u64));
        for out in ["9223372036854775808", "-1", "1e3", "nan", "", "0.5", "1e400"] {
            assert_eq!(Range::SEED.parse_whole(out), Err(Range::SEED.must_be()), "{out}");
        }
        for (range, text) in [(Range::ALPHA, "0"), (Range::DROPOUT, "1"), (Range::Real(0.0, 1.0), "1.1")] {
            for text in [text, "nan", "inf", "-inf", "1e400", "-1"] {
                assert!(range.parse(text).is_err(), "{range}: {text}");
            }
        }
        assert_eq!(whole.check(9.0).unwrap_err(), "is 9; it must be a whole number from 1 to 8");
    }
}
