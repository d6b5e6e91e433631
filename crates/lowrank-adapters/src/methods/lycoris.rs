//! What LoHa and LoKr share (PEFT took both from LyCORIS): their fields, and dropout of output features.

use lowrank_engine::{Scope, Tensor};
use serde::Deserialize;
use serde_json::Value;

use crate::config::LoraConfig;
use crate::error::Error;

/// The fields that both have.
#[derive(Deserialize)]
#[serde(default)]
pub(super) struct Extra {
    alpha: f64,
    rank_dropout: f32,
    module_dropout: f32,
    rank_dropout_scale: bool,
}

impl Default for Extra {
    fn default() -> Self {
        Self { alpha: 8.0, rank_dropout: 0.0, module_dropout: 0.0, rank_dropout_scale: false }
    }
}

/// Fields of a LoRA that neither has.
pub(super) const FOREIGN: &[&str] =
    &["lora_alpha", "lora_dropout", "use_rslora", "bias", "fan_in_fan_out", "init_lora_weights"];

/// Of these, those that a new adapter must not set: its alpha is LoRA's where nobody says another.
pub(super) const UNUSED: &[&str] =
    &["lora_dropout", "use_rslora", "bias", "fan_in_fan_out", "init_lora_weights"];

pub(super) fn rank_and_alpha(config: &LoraConfig) -> Result<(usize, f64), Error> {
    Ok((config.r, config.parse_extra::<Extra>()?.alpha))
}

pub(super) fn configure(config: &mut LoraConfig) {
    config.default_to("alpha", whole_or_not(config.lora_alpha));
}

/// A number as PEFT writes it: alpha is an integer there.
fn whole_or_not(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { Value::from(x as i64) } else { Value::from(x) }
}

pub(super) fn check(config: &LoraConfig) -> Result<(), Error> {
    let extra: Extra = config.parse_extra()?;
    for (name, p) in [("rank_dropout", extra.rank_dropout), ("module_dropout", extra.module_dropout)] {
        if !(0.0..1.0).contains(&p) {
            return Err(Error::Config(format!("{name} is {p}; it must be at least 0 and less than 1")));
        }
    }
    Ok(())
}

/// Dropout of the change's output features, in training.
#[derive(Clone, Copy, Debug)]
pub(super) struct OutputDropout {
    /// Probability of dropping an output feature.
    rank: f32,
    /// Whether what stays is divided by the share that stays.
    rescale: bool,
    /// Probability of dropping the whole change.
    module: f32,
    stream: u64,
}

impl OutputDropout {
    /// `always_rescale`: LoHa's choice; LoKr asks its configuration.
    pub fn new(config: &LoraConfig, always_rescale: bool, stream: u64) -> Result<Self, Error> {
        let extra: Extra = config.parse_extra()?;
        let rescale = always_rescale || extra.rank_dropout_scale;
        Ok(Self { rank: extra.rank_dropout, rescale, module: extra.module_dropout, stream })
    }

    /// The factor of each of `o` output features in this pass, `[1,O]`, where anything may be dropped.
    pub fn factors(&self, scope: &Scope<'_>, o: usize) -> Option<Tensor> {
        let key = scope.dropout.filter(|_| self.rank > 0.0 || self.module > 0.0)?;
        let mut factors = scope.alloc(1, o);
        let streams = [key.stream(2 * self.stream), key.stream(2 * self.stream + 1)];
        scope.device.feature_dropout(&mut factors, self.rank, self.module, self.rescale, key.seed, streams);
        Some(factors)
    }
}
