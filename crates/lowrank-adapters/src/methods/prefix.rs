//! Prefix tuning (Li & Liang 2021; prefix-layer tuning in the LoRA paper): in every layer, attention sees the trained keys and
//! values of `n` virtual tokens before those of the text.
//!
//! # Shapes
//! One tensor `[n, layers * 2 * width]`: row `i` has, for each layer, the key of virtual token `i` and then its value.
//!
//! Configuration, tensor and positions are those of PEFT's PREFIX_TUNING: keys are trained as they are after rotation, and the
//! text's positions begin after the virtual tokens. Adapters trained with `prefix_projection` are read; training here is without
//! it.

use std::sync::Arc;

use lowrank_engine::{ParamId, Params, Site, kernels};

use crate::config::LoraConfig;
use crate::contract::{BaseInfo, Method, Target, Variant};
use crate::error::Error;
use crate::init;
use crate::methods::virtual_tokens::{Extra, NO_MODULES, TENSOR, TOKENS, language_model_only};

/// Deviation of keys and values at the start: a prefix that says little, and to which attention is even. PyTorch's
/// `Embedding`, which PEFT starts from, has deviation 1.
const DEVIATION: f32 = 0.02;

/// `peft_type` PREFIX_TUNING.
pub struct PrefixMethod;

impl Method for PrefixMethod {
    fn peft_type(&self) -> &'static str {
        "PREFIX_TUNING"
    }

    fn names(&self) -> &'static [(&'static str, &'static str)] {
        &[("prefix", "keys and values of virtual tokens")]
    }

    fn title(&self) -> &'static str {
        "Learned prefix"
    }

    fn takes_target_modules(&self) -> bool {
        false
    }

    fn default_virtual_tokens(&self) -> usize {
        TOKENS
    }

    /// PEFT's fields for the width of a layer's keys.
    fn select(&self, _: &str, _: usize, config: &mut LoraConfig, base: &BaseInfo) -> Result<(), Error> {
        language_model_only(base)?;
        let fields = [
            ("token_dim", base.kv_widths.first().copied().unwrap_or(0)),
            ("num_layers", base.kv_widths.len()),
            ("num_attention_heads", base.kv_heads),
        ];
        config.other.extend(fields.map(|(field, value)| (field.to_owned(), value.into())));
        Ok(())
    }

    fn foreign_fields(&self) -> &'static [&'static str] {
        NO_MODULES
    }

    fn fields(&self) -> &'static [&'static str] {
        &["num_virtual_tokens", "num_transformer_submodules", "prefix_projection"]
    }

    fn check_new(&self, config: &LoraConfig) -> Result<(), Error> {
        match config.is_set("prefix_projection") {
            true => Err(Error::Config(
                "prefix_projection is read, not trained: it must be false for a new prefix".into(),
            )),
            false => Ok(()),
        }
    }

    fn configure(&self, config: &mut LoraConfig, _: &[Site], _: u64) {
        config.default_to("num_virtual_tokens", TOKENS);
        config.default_to("num_transformer_submodules", 1);
        config.default_to("prefix_projection", false);
    }

    fn check(&self, config: &LoraConfig) -> Result<(), Error> {
        let extra = Extra::parse(config)?;
        match (extra.token_dim, extra.num_layers) {
            (Some(1..), Some(1..)) => Ok(()),
            _ => Err(Error::Config("token_dim and num_layers must say how wide a prefix is".into())),
        }
    }

    fn own_targets(&self, _: &[Site]) -> Option<Vec<Target>> {
        Some(Vec::new())
    }

    fn virtual_tokens(&self, config: &LoraConfig) -> Result<usize, Error> {
        Ok(Extra::parse(config)?.num_virtual_tokens)
    }

    fn attach(
        &self,
        config: &LoraConfig,
        _: &[Target],
        _: &[Site],
        params: &mut Params,
    ) -> Result<Vec<Arc<dyn Variant>>, Error> {
        let Extra { num_virtual_tokens, token_dim, num_layers, .. } = Extra::parse(config)?;
        let width = 2 * token_dim.unwrap_or(0) * num_layers.unwrap_or(0);
        params.push(TENSOR.to_owned(), num_virtual_tokens, width, Vec::new());
        Ok(Vec::new())
    }

    fn prefix(&self, params: &Params) -> Option<ParamId> {
        params.iter().find(|(_, p)| p.name == TENSOR).map(|(id, _)| id)
    }

    fn init_shared(&self, params: &mut Params, seed: u64) {
        let Some(id) = self.prefix(params) else { return };
        params.get_mut(id).fill_with(|x| kernels::normal(x, 0.0, DEVIATION, seed, init::STREAM));
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &[]
    }

    fn features(&self, _: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<(usize, usize)> {
        None
    }
}
