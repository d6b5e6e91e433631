//! Full fine-tuning: every layer that is targeted is trained whole ([`Saved`]). With `layers_to_transform` it is the
//! fine-tuning of some layers (the paper's FT-Top2), with the head as its only target a linear probe.
//!
//! PEFT has no such method, so `peft_type` FULL is ours: the folder holds every trained weight under
//! `base_model.model.` and its module path, a weight that two layers share (a tied head) once, under the embedding's.
//! `lowrank merge` makes a model of it that needs no adapter.

use std::collections::HashMap;
use std::sync::Arc;

use lowrank_engine::{Params, Site, SiteKind};

use super::Variant;
use super::bitfit::Bias;
use super::saved::Saved;
use crate::target::Target;
use crate::{Error, LoraConfig, Targets};

/// Fields of LoRA that a method without rank does not have.
pub(super) const NO_RANK: [&str; 7] =
    ["r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"];

/// `peft_type` FULL.
pub struct Method;

impl super::Method for Method {
    fn peft_type(&self) -> &'static str {
        "FULL"
    }

    fn foreign_fields(&self) -> &'static [&'static str] {
        &NO_RANK
    }

    /// Everything, where nobody says what.
    fn configure(&self, config: &mut LoraConfig, _: &[Site], _: u64) {
        config.target_modules.get_or_insert_with(|| Targets::Pattern(".*".to_owned()));
    }

    fn adapts(&self, _: &Site) -> bool {
        true
    }

    /// A new head is a module to save, and may be all there is.
    fn may_have_no_target(&self) -> bool {
        true
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
        // Embeddings first in any case: a tied head needs its table.
        let mut tables: HashMap<usize, Arc<Saved>> = HashMap::new();
        for target in targets.iter().filter(|t| sites[t.site].kind == SiteKind::Embedding) {
            tables.insert(target.site, Saved::plan(&sites[target.site], params));
        }
        let mut plan = |target: &Target| -> Arc<dyn Variant> {
            let site = &sites[target.site];
            match site.kind {
                SiteKind::Embedding => tables[&target.site].clone(),
                SiteKind::TiedHead(table) if tables.contains_key(&table.0) => {
                    Saved::tied(site, &tables[&table.0], params)
                }
                // Of a convolution, the bias alone: its kernel is not kept as its file has it.
                SiteKind::Convolution => Bias::plan(site, params),
                _ => Saved::plan(site, params),
            }
        };
        Ok(targets.iter().map(&mut plan).collect())
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["weight", "bias"]
    }

    fn features(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<(usize, usize)> {
        match shape("weight")?[..] {
            [d] => Some((d, d)),
            [o, k] => Some((k, o)),
            _ => None,
        }
    }

    fn kind(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> (SiteKind, bool) {
        let norm = shape("weight").is_some_and(|shape| shape.len() == 1);
        (if norm { SiteKind::Norm } else { SiteKind::Linear }, shape("bias").is_some())
    }
}
