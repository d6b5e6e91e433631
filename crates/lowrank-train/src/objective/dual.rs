//! Numbers with their derivatives: a loss is written once, as its formula, and its gradient comes with it.

use std::ops::{Add, Mul, Neg, Sub};

/// A value `f(a, b)` with `df/da` and `df/db`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Dual {
    pub value: f64,
    pub slope: [f64; 2],
}

impl Dual {
    /// `a` (`which` 0) or `b` (1) itself.
    pub fn variable(value: f64, which: usize) -> Self {
        let mut slope = [0.0; 2];
        slope[which] = 1.0;
        Self { value, slope }
    }

    /// `g(f)` from `g` and its derivative at `f`.
    fn chain(self, value: f64, derivative: f64) -> Self {
        Self { value, slope: self.slope.map(|slope| derivative * slope) }
    }

    /// `1 / (1 + exp(-f))`.
    pub fn sigmoid(self) -> Self {
        let s = sigmoid(self.value);
        self.chain(s, s * (1.0 - s))
    }

    /// `log(1 / (1 + exp(-f)))`, without overflow.
    pub fn log_sigmoid(self) -> Self {
        self.chain(log_sigmoid(self.value), sigmoid(-self.value))
    }

    /// `max(f, 0)`, with the slope 0 at 0.
    pub fn relu(self) -> Self {
        self.chain(self.value.max(0.0), if self.value > 0.0 { 1.0 } else { 0.0 })
    }

    /// `f^2`.
    pub fn square(self) -> Self {
        self * self
    }

    /// `log(1 - exp(f))` for `f < 0`.
    pub fn log1mexp(self) -> Self {
        // Where `exp(f)` is near 1 the first form keeps the digits, elsewhere the second.
        let value = match self.value > -std::f64::consts::LN_2 {
            true => (-self.value.exp_m1()).ln(),
            false => (-self.value.exp()).ln_1p(),
        };
        self.chain(value, self.value.exp() / self.value.exp_m1())
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

impl From<f64> for Dual {
    fn from(value: f64) -> Self {
        Self { value, slope: [0.0; 2] }
    }
}

impl Add for Dual {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let slope = [0, 1].map(|i| self.slope[i] + other.slope[i]);
        Self { value: self.value + other.value, slope }
    }
}

impl Add<f64> for Dual {
    type Output = Self;

    fn add(self, other: f64) -> Self {
        Self { value: self.value + other, ..self }
    }
}

impl Neg for Dual {
    type Output = Self;

    fn neg(self) -> Self {
        self * -1.0
    }
}

impl Sub for Dual {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Sub<f64> for Dual {
    type Output = Self;

    fn sub(self, other: f64) -> Self {
        self + -other
    }
}

impl Mul for Dual {
    type Output = Self;

    // The product rule has a sum.
    #[allow(clippy::suspicious_arithmetic_impl)]
    fn mul(self, other: Self) -> Self {
        let slope = [0, 1].map(|i| self.slope[i] * other.value + self.value * other.slope[i]);
        Self { value: self.value * other.value, slope }
    }
}

impl Mul<f64> for Dual {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        self.chain(self.value * factor, factor)
    }
}
