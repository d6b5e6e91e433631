//! From rewards to advantages: how much better a completion is than the others of its prompt.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;

/// What advantages are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleRewards {
    /// The standard deviation of the rewards of a prompt's completions.
    Group,
    /// That of all rewards of a step.
    Batch,
    /// Nothing (Liu et al. 2025).
    None,
}

impl FromStr for ScaleRewards {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "group" => Ok(Self::Group),
            "batch" => Ok(Self::Batch),
            "none" => Ok(Self::None),
            _ => Err(Error::Options(lowrank_files::unknown("scale", name, ["group", "batch", "none"]))),
        }
    }
}

/// Added to a standard deviation that is divided by, as in TRL.
const EPS: f64 = 1e-4;

/// The advantages of completions in groups of one prompt each, and what is logged of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Advantages {
    /// Of each completion.
    pub advantages: Vec<f64>,
    /// The share of completions whose rewards have the standard deviation 0 in their group, or in the step where that scales.
    pub frac_reward_zero_std: f64,
}

/// The advantages of `rewards`, of which every `num_generations` in a row are of one prompt: the reward less the mean of the group,
/// or with `leave_one_out` (RLOO) less the mean of the others, over what `scale` says. In RLOO the scale `batch` centres the
/// advantages too. A reward that is NaN says nothing: its completion has the advantage 0, and the others do without it.
///
/// # Panics
/// Where groups have one completion.
pub fn advantages(
    rewards: &[f64],
    num_generations: usize,
    scale: ScaleRewards,
    leave_one_out: bool,
) -> Advantages {
    assert!(num_generations > 1, "completions are compared with others of their prompt");
    let batch_std = mean_and_std(rewards).1;
    let (mut all, mut stds) = (Vec::new(), Vec::new());
    for group in rewards.chunks(num_generations) {
        let (mean, std) = mean_and_std(group);
        let count = group.iter().filter(|reward| !reward.is_nan()).count() as f64;
        for reward in group {
            let others = (mean * count - reward) / (count - 1.0);
            all.push(match (scale, leave_one_out) {
                (_, true) => reward - others,
                (ScaleRewards::Group, false) => (reward - mean) / (std + EPS),
                (ScaleRewards::Batch, false) => (reward - mean) / (batch_std + EPS),
                (ScaleRewards::None, false) => reward - mean,
            });
            stds.push(if scale == ScaleRewards::Batch && !leave_one_out { batch_std } else { std });
        }
    }
    if leave_one_out && scale == ScaleRewards::Batch {
        let (mean, std) = mean_and_std(&all);
        all.iter_mut().for_each(|advantage| *advantage = (*advantage - mean) / (std + EPS));
    }
    // Where a reward or all others say nothing.
    all.iter_mut().filter(|advantage| !advantage.is_finite()).for_each(|advantage| *advantage = 0.0);
    let zero = stds.iter().filter(|std| std.abs() <= 1e-8).count();
    Advantages { advantages: all, frac_reward_zero_std: zero as f64 / stds.len().max(1) as f64 }
}

/// The mean and the standard deviation (over `n - 1`) of those values that are numbers; NaN and 0 where there are too few.
pub(super) fn mean_and_std(values: &[f64]) -> (f64, f64) {
    let values: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0).max(1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(have: &[f64], want: &[f64]) {
        assert_eq!(have.len(), want.len());
        for (have, want) in have.iter().zip(want) {
            assert!((have - want).abs() < 1e-4, "{have} for {want}");
        }
    }

    #[test]
    fn of_groups() {
        let rewards = [1.0, 0.0, 0.0, 1.0, 2.0, 2.0, 2.0, 2.0];
        let group = advantages(&rewards, 4, ScaleRewards::Group, false);
        // The deviation of 1, 0, 0, 1 is 1 / sqrt 3.
        near(&group.advantages[..4], &[0.86588, -0.86588, -0.86588, 0.86588]);
        assert_eq!(group.advantages[4..], [0.0; 4]);
        assert_eq!(group.frac_reward_zero_std, 0.5);
        let none = advantages(&rewards, 4, ScaleRewards::None, false);
        near(&none.advantages[..4], &[0.5, -0.5, -0.5, 0.5]);
        let batch = advantages(&rewards, 4, ScaleRewards::Batch, false);
        // The deviation of all is sqrt(5.5 / 7).
        near(&batch.advantages[..2], &[0.56401, -0.56401]);
        assert_eq!(batch.frac_reward_zero_std, 0.0);
        let rloo = advantages(&rewards, 4, ScaleRewards::None, true);
        near(&rloo.advantages[..4], &[2.0 / 3.0, -2.0 / 3.0, -2.0 / 3.0, 2.0 / 3.0]);
        let centred = advantages(&rewards, 4, ScaleRewards::Batch, true);
        near(&[centred.advantages.iter().sum(), centred.advantages[0] + centred.advantages[1]], &[0.0, 0.0]);
    }

    #[test]
    fn completions_without_a_reward_teach_nothing() {
        let rewards = [1.0, f64::NAN, 0.0, f64::NAN, 3.0, f64::NAN];
        for rloo in [false, true] {
            let found = advantages(&rewards, 3, ScaleRewards::None, rloo);
            let half = if rloo { 1.0 } else { 0.5 };
            near(&found.advantages, &[half, 0.0, -half, 0.0, 0.0, 0.0]);
        }
    }
}
