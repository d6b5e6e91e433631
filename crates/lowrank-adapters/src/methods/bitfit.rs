//! BitFit (Ben Zaken et al. 2021): trains the biases of the model and nothing else.
//!
//! PEFT has no such method: `peft_type` BITFIT is Lowrank's own. The folder holds the biases under the names of
//! [`crate::methods::full`].

use std::sync::Arc;

use lowrank_engine::{Params, Site, SiteKind};

use crate::beside::bias::Bias;
use crate::config::{LoraConfig, RANK_FIELDS, Targets};
use crate::contract::{BaseInfo, Method, Target, Variant};
use crate::error::Error;

/// `peft_type` BITFIT.
pub struct BitfitMethod;

impl Method for BitfitMethod {
    fn peft_type(&self) -> &'static str {
        "BITFIT"
    }

    fn names(&self) -> &'static [(&'static str, &'static str)] {
        &[("bitfit", "biases")]
    }

    fn title(&self) -> &'static str {
        "Fine-tuned biases"
    }

    fn in_peft(&self) -> bool {
        false
    }

    fn takes_target_modules(&self) -> bool {
        false
    }

    /// All layers but a head that nothing reads.
    fn select(&self, name: &str, _: usize, config: &mut LoraConfig, base: &BaseInfo) -> Result<(), Error> {
        if !name.is_empty() && config.exclude_modules.is_none() {
            config.exclude_modules = base.unused_heads();
        }
        Ok(())
    }

    fn foreign_fields(&self) -> &'static [&'static str] {
        &RANK_FIELDS
    }

    /// Every bias, where nobody says which.
    fn configure(&self, config: &mut LoraConfig, _: &[Site], _: u64) {
        config.target_modules.get_or_insert_with(|| Targets::Pattern(".*".to_owned()));
    }

    fn adapts(&self, site: &Site) -> bool {
        site.bias
    }

    fn nothing_to_adapt(&self, target_modules: &Targets) -> Option<String> {
        Some(format!(
            "BitFit trains biases, and no layer that target_modules {target_modules} matches has one"
        ))
    }

    fn check(&self, _: &LoraConfig) -> Result<(), Error> {
        Ok(())
    }

    fn attach(
        &self,
        _: &LoraConfig,
        targets: &[Target],
        sites: &[Site],
        params: &mut Params,
    ) -> Result<Vec<Arc<dyn Variant>>, Error> {
        Ok(targets.iter().map(|target| Bias::plan(&sites[target.site], params)).collect())
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["bias"]
    }

    fn features(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<(usize, usize)> {
        Some((0, *shape("bias")?.first()?))
    }

    fn kind(&self, _: &dyn Fn(&str) -> Option<Vec<usize>>) -> (SiteKind, bool) {
        (SiteKind::Linear, true)
    }
}
