//! Which losses of preferences and of sampled completions a run minimizes, in TRL's words.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::task::Task;

/// A loss of preferences. The formulas are in `objective/pair_losses.rs` and `objective/kto.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LossType {
    /// DPO (Rafailov et al. 2023).
    Sigmoid,
    /// SLiC (Zhao et al. 2023).
    Hinge,
    /// IPO (Azar et al. 2023).
    Ipo,
    /// EXO (Ji et al. 2024) for pairs.
    ExoPair,
    /// NCA (Chen et al. 2024) for pairs.
    NcaPair,
    /// Robust DPO (Chowdhury et al. 2024).
    Robust,
    /// BCO (Jung et al. 2024) for pairs.
    BcoPair,
    /// SPPO (Wu et al. 2024) with hard labels.
    SppoHard,
    /// APO-zero (D'Oosterlinck et al. 2024).
    ApoZero,
    /// APO-down (D'Oosterlinck et al. 2024).
    ApoDown,
    /// DPO on mean log-probabilities (Lambert et al. 2024).
    SigmoidNorm,
    /// Cross-entropy on the chosen completions.
    Sft,
    /// ORPO (Hong et al. 2024).
    Orpo,
    /// SimPO (Meng et al. 2024).
    Simpo,
    /// CPO (Xu et al. 2024).
    Cpo,
    /// KTO (Ethayarajh et al. 2024).
    Kto,
    /// APO-zero for completions that are not in pairs.
    ApoZeroUnpaired,
    /// GRPO (Shao et al. 2024): the mean over completions of each one's mean.
    Grpo,
    /// Dr. GRPO (Liu et al. 2025): the sum over tokens, divided by the longest possible length.
    DrGrpo,
    /// The mean over the tokens of a micro-batch.
    Bnpo,
    /// DAPO (Yu et al. 2025): the mean over the tokens of a step.
    Dapo,
    /// RLOO (Ahmadian et al. 2024): whole completions, against the mean of the others.
    Rloo,
    /// The next token's cross-entropy.
    Nll,
    /// The same, weighted by each token's probability (DFT, Wu et al. 2025).
    Dft,
}

impl LossType {
    const ALL: [(Self, &'static str); 24] = [
        (Self::Sigmoid, "sigmoid"),
        (Self::Hinge, "hinge"),
        (Self::Ipo, "ipo"),
        (Self::ExoPair, "exo_pair"),
        (Self::NcaPair, "nca_pair"),
        (Self::Robust, "robust"),
        (Self::BcoPair, "bco_pair"),
        (Self::SppoHard, "sppo_hard"),
        (Self::ApoZero, "apo_zero"),
        (Self::ApoDown, "apo_down"),
        (Self::SigmoidNorm, "sigmoid_norm"),
        (Self::Sft, "sft"),
        (Self::Orpo, "orpo"),
        (Self::Simpo, "simpo"),
        (Self::Cpo, "cpo"),
        (Self::Kto, "kto"),
        (Self::ApoZeroUnpaired, "apo_zero_unpaired"),
        (Self::Grpo, "grpo"),
        (Self::DrGrpo, "dr_grpo"),
        (Self::Bnpo, "bnpo"),
        (Self::Dapo, "dapo"),
        (Self::Rloo, "rloo"),
        (Self::Nll, "nll"),
        (Self::Dft, "dft"),
    ];

    /// As TRL calls it.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(loss, _)| *loss == self).map_or("", |(_, name)| name)
    }

    /// The task whose data it needs.
    pub fn task(self) -> Task {
        match self {
            Self::Kto | Self::ApoZeroUnpaired => Task::Kto,
            Self::Nll | Self::Dft => Task::Lm,
            Self::Grpo | Self::DrGrpo | Self::Bnpo | Self::Dapo | Self::Rloo => Task::Grpo,
            _ => Task::Preference,
        }
    }

    /// Whether it always compares the model with a reference.
    pub fn needs_reference(self) -> bool {
        self.task() != Task::Grpo
            && !matches!(self, Self::Sft | Self::Orpo | Self::Simpo | Self::Cpo | Self::Nll | Self::Dft)
    }
}

impl FromStr for LossType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let plain = name.to_ascii_lowercase().replace('-', "_");
        if plain == "dpo" {
            return Ok(Self::Sigmoid);
        }
        Self::ALL.iter().find(|(_, known)| *known == plain).map(|(loss, _)| *loss).ok_or_else(|| {
            let known = Self::ALL.iter().map(|(_, name)| *name).chain(["dpo"]);
            Error::Options(lowrank_files::unknown("loss", name, known))
        })
    }
}

impl TryFrom<String> for LossType {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

impl From<LossType> for String {
    fn from(loss: LossType) -> Self {
        loss.name().to_owned()
    }
}

/// Of what the ratio of probabilities is taken that GRPO clips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImportanceSamplingLevel {
    /// Of each token.
    #[default]
    Token,
    /// Of the completion: the geometric mean over its tokens (GSPO, Zheng et al. 2025).
    Sequence,
}

impl FromStr for ImportanceSamplingLevel {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "token" => Ok(Self::Token),
            "sequence" => Ok(Self::Sequence),
            _ => Err(Error::Options(lowrank_files::unknown(
                "importance sampling level",
                name,
                ["token", "sequence"],
            ))),
        }
    }
}

/// The losses of preferences and rewards, with their weights and constants.
#[derive(Clone, Debug, PartialEq)]
pub struct LossOptions {
    /// Each loss with its weight; empty is the task's own: `nll`, `sigmoid`, `kto` or `dapo`.
    pub losses: Vec<(LossType, f64)>,
    /// How strongly the reference is held to.
    pub beta: f64,
    /// The share of pairs whose preference is wrong.
    pub label_smoothing: f64,
    /// The margin of SimPO.
    pub simpo_gamma: f64,
    /// Weight of the cross-entropy in CPO.
    pub cpo_alpha: f64,
    /// KTO: weight of desirable completions.
    pub desirable_weight: f64,
    /// KTO: weight of undesirable completions.
    pub undesirable_weight: f64,
    /// Rewards: weight of `(r_chosen + r_rejected)^2`.
    pub center_rewards_coefficient: f64,
    /// Next tokens: the share of the target that is spread over all tokens.
    pub label_smoothing_factor: f64,
    /// Next tokens: the size of the noise on embeddings (NEFTune, Jain et al. 2023).
    pub neftune_noise_alpha: Option<f64>,
    /// GRPO: how far below 1 a ratio of probabilities counts.
    pub epsilon: f64,
    /// GRPO: how far above 1; `None` is as far as below.
    pub epsilon_high: Option<f64>,
    /// GRPO: of what the ratio is taken.
    pub importance_sampling_level: ImportanceSamplingLevel,
    /// GRPO: weight the distance to the reference by the ratio, so that its gradient is unbiased.
    pub use_bias_correction_kl: bool,
    /// GRPO: the temperature of the distribution that completions are sampled from.
    pub temperature: f64,
}

impl LossOptions {
    /// TRL's defaults.
    pub const DEFAULT: Self = Self {
        losses: Vec::new(),
        beta: 0.1,
        label_smoothing: 0.0,
        simpo_gamma: 0.5,
        cpo_alpha: 1.0,
        desirable_weight: 1.0,
        undesirable_weight: 1.0,
        center_rewards_coefficient: 0.0,
        label_smoothing_factor: 0.0,
        neftune_noise_alpha: None,
        epsilon: 0.2,
        epsilon_high: None,
        importance_sampling_level: ImportanceSamplingLevel::Token,
        use_bias_correction_kl: true,
        temperature: 1.0,
    };

    /// The losses of `task`.
    pub fn of(&self, task: Task) -> Vec<(LossType, f64)> {
        match (self.losses.is_empty(), task) {
            (true, Task::Preference) => vec![(LossType::Sigmoid, 1.0)],
            (true, Task::Kto) => vec![(LossType::Kto, 1.0)],
            (true, Task::Grpo) => vec![(LossType::Dapo, 1.0)],
            _ => self.losses.clone(),
        }
    }

    /// Whether a loss of `task` compares with a reference.
    pub fn needs_reference(&self, task: Task) -> bool {
        if task == Task::Grpo {
            return self.beta > 0.0;
        }
        self.of(task).iter().any(|(loss, _)| loss.needs_reference())
    }

    /// Whether a loss of `task` has a mean over the tokens of a whole batch, which is then not split.
    pub fn averages_over_batch(&self, task: Task) -> bool {
        self.of(task).iter().any(|(loss, _)| matches!(loss, LossType::Sft | LossType::Orpo | LossType::Cpo))
    }

    /// Whether a loss of `task` has a cross-entropy that goes over prompts too: ORPO's, as in TRL.
    pub fn reads_prompts(&self, task: Task) -> bool {
        self.of(task).iter().any(|(loss, _)| *loss == LossType::Orpo)
    }
}

impl Default for LossOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}
