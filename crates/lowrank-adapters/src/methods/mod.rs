//! The methods, one file each. A method is added by its file, a `mod` line and an entry of `METHODS`.

pub mod adalora;
pub mod bitfit;
pub mod bottleneck;
pub mod dora;
pub mod embedding;
pub mod full;
pub mod ia3;
pub mod loha;
pub mod lokr;
pub mod lora;
mod lycoris;
pub mod merged_linear;
pub mod prefix;
pub mod prompt;
pub mod residual;
pub mod vera;
mod virtual_tokens;

use crate::contract::Method;

/// All methods. Of those with one `peft_type`, the first that matches a configuration takes it.
pub(crate) static METHODS: [&dyn Method; 14] = [
    &merged_linear::MergedLinearMethod,
    &residual::ResidualMethod,
    &dora::DoraMethod,
    &lora::LoraMethod,
    &ia3::Ia3Method,
    &vera::VeraMethod,
    &loha::LohaMethod,
    &lokr::LokrMethod,
    &adalora::AdaloraMethod,
    &full::FullMethod,
    &bitfit::BitfitMethod,
    &bottleneck::BottleneckMethod,
    &prompt::PromptMethod,
    &prefix::PrefixMethod,
];
