//! The learning rate of each optimiser step.

use std::f64::consts::PI;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;

/// The shape of a learning-rate schedule, after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrScheduler {
    /// Down to 0 in a straight line.
    #[default]
    Linear,
    /// Down to 0 along half a cosine.
    Cosine,
    /// No change.
    Constant,
}

impl FromStr for LrScheduler {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "linear" => Ok(Self::Linear),
            "cosine" => Ok(Self::Cosine),
            "constant" => Ok(Self::Constant),
            _ => Err(Error::Options(lowrank_files::unknown(
                "scheduler",
                name,
                ["linear", "cosine", "constant"],
            ))),
        }
    }
}

/// The learning rate `peak * f(s)` of optimiser step `s`, counted from 0.
///
/// With `w` warm-up steps of `n` in all, and `p = (s - w) / max(1, n - w)`:
///
/// | | `f(s)` |
/// |---|---|
/// | `s < w` | `s / w` |
/// | linear | `max(0, (n - s) / max(1, n - w))` |
/// | cosine | `max(0, (1 + cos(pi * p)) / 2)` |
/// | constant | `1` |
///
/// These are `get_{linear,cosine,constant}_schedule_with_warmup` of transformers, where the first
/// of `w > 0` warm-up steps has the rate 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Shape.
    pub scheduler: LrScheduler,
    /// The rate at the end of the warm-up.
    pub peak: f64,
    /// `w`.
    pub warmup_steps: u64,
    /// `n`.
    pub total_steps: u64,
}

impl Schedule {
    /// What the user should know of it.
    pub fn warning(&self) -> Option<String> {
        let (warmup, total) = (self.warmup_steps, self.total_steps);
        (total > 0 && warmup >= total).then(|| {
            format!("the warm-up of {warmup} steps is not over when the run of {total} ends: `learning_rate` is not reached")
        })
    }

    /// The learning rate of optimiser step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        let (s, w, n) = (step as f64, self.warmup_steps as f64, self.total_steps as f64);
        if step < self.warmup_steps {
            return self.peak * (s / w.max(1.0));
        }
        let span = (n - w).max(1.0);
        self.peak
            * match self.scheduler {
                LrScheduler::Linear => ((n - s) / span).max(0.0),
                LrScheduler::Cosine => (0.5 * (1.0 + (PI * ((s - w) / span)).cos())).max(0.0),
                LrScheduler::Constant => 1.0,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Printed by transformers 5.24.0 for the same arguments.
    #[test]
    fn equals_transformers() {
        let cases: [(LrScheduler, f64, u64, u64, &[f64]); 6] = [
            (
                LrScheduler::Linear,
                2e-4,
                3,
                11,
                &[
                    0.0,
                    6.666666666666667e-05,
                    0.00013333333333333334,
                    0.0002,
                    0.000175,
                    0.00015000000000000001,
                    0.000125,
                    0.0001,
                    7.500000000000001e-05,
                    5e-05,
                    2.5e-05,
                    0.0,
                    0.0,
                ],
            ),
            (LrScheduler::Linear, 1e-3, 0, 4, &[0.001, 0.00075, 0.0005, 0.00025]),
            (
                LrScheduler::Cosine,
                2e-4,
                3,
                11,
                &[
                    0.0,
                    6.666666666666667e-05,
                    0.00013333333333333334,
                    0.0002,
                    0.0001923879532511287,
                    0.00017071067811865476,
                    0.000138268343236509,
                    0.0001,
                    6.173165676349103e-05,
                    2.9289321881345254e-05,
                    7.612046748871327e-06,
                    0.0,
                    7.6120467488713156e-06,
                ],
            ),
            (
                LrScheduler::Constant,
                5e-5,
                4,
                9,
                &[0.0, 1.25e-05, 2.5e-05, 3.7500000000000003e-05, 5e-05, 5e-05],
            ),
            (LrScheduler::Linear, 1e-3, 5, 3, &[0.0, 0.0002, 0.0004, 0.0006, 0.0008]),
            (LrScheduler::Cosine, 1e-3, 0, 3, &[0.001, 0.00075, 0.0002500000000000001, 0.0]),
        ];
        for (scheduler, peak, warmup_steps, total_steps, want) in cases {
            let schedule = Schedule { scheduler, peak, warmup_steps, total_steps };
            for (step, &want) in want.iter().enumerate() {
                let got = schedule.at(step as u64);
                assert!(
                    (got - want).abs() <= 1e-15 * peak.max(1.0),
                    "{schedule:?} step {step}: {got} for {want}"
                );
            }
        }
    }

    #[test]
    fn a_warm_up_that_does_not_end_is_said() {
        let warning = |warmup_steps, total_steps| {
            Schedule { scheduler: LrScheduler::Linear, peak: 1.0, warmup_steps, total_steps }.warning()
        };
        assert!(warning(500, 20).unwrap().contains("500") && warning(20, 20).is_some());
        assert!(warning(19, 20).is_none() && warning(0, 20).is_none() && warning(5, 0).is_none());
    }

    #[test]
    fn reads_its_names() {
        assert_eq!("cosine".parse::<LrScheduler>().unwrap(), LrScheduler::Cosine);
        assert!("cos".parse::<LrScheduler>().unwrap_err().to_string().contains("linear, cosine, constant"));
    }
}
