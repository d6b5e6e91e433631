//! Full fine-tuning: trains every targeted layer whole ([`Saved`]). With `layers_to_transform` it fine-tunes some blocks (FT-Top2
//! of the LoRA paper); with the head as its only target it is a linear probe.
//!
//! PEFT has no such method: `peft_type` FULL is Lowrank's own. The folder holds every trained weight under `base_model.model.`
//! and its module path; a weight that two layers share (a tied head) is stored once, under the name of the embedding.

use std::collections::HashMap;
use std::sync::Arc;

use lowrank_engine::{Params, Site, SiteKind};

use crate::beside::bias::Bias;
use crate::beside::saved::Saved;
use crate::config::{LoraConfig, OneOrMany, RANK_FIELDS, Targets};
use crate::contract::{BaseInfo, Method, Target, Variant};
use crate::error::Error;
use crate::target::layer_count;

/// `peft_type` FULL.
pub struct FullMethod;

impl Method for FullMethod {
    fn peft_type(&self) -> &'static str {
        "FULL"
    }

    fn names(&self) -> &'static [(&'static str, &'static str)] {
        &[("full", "every weight"), ("topN", "the last N blocks"), ("linear-probe", "the head alone")]
    }

    fn title(&self) -> &'static str {
        "Fine-tuned weights"
    }

    fn in_peft(&self) -> bool {
        false
    }

    fn takes_target_modules(&self) -> bool {
        false
    }

    /// `topN`: the last `N` blocks. `linear-probe`: the head. `full`: all layers but a head that nothing reads.
    fn select(
        &self,
        name: &str,
        number: usize,
        config: &mut LoraConfig,
        base: &BaseInfo,
    ) -> Result<(), Error> {
        match name {
            "topN" if config.layers_to_transform.is_some() => {
                let what =
                    format!("method top{number} is the last {number} blocks: drop `layers_to_transform`");
                return Err(Error::Config(what));
            }
            "topN" => {
                let blocks = layer_count(&base.sites);
                if number > blocks {
                    return Err(Error::Config(format!("method top{number}: the model has {blocks} blocks")));
                }
                config.layers_to_transform = Some(OneOrMany::Many((blocks - number..blocks).collect()));
            }
            "linear-probe" if base.head.is_empty() => {
                let what = "method linear-probe trains the head, and this task has none";
                return Err(Error::Config(what.to_owned()));
            }
            "linear-probe" => config.target_modules = Some(Targets::Names(base.head.clone())),
            "full" if config.exclude_modules.is_none() => config.exclude_modules = base.unused_heads(),
            _ => {}
        }
        Ok(())
    }

    fn foreign_fields(&self) -> &'static [&'static str] {
        &RANK_FIELDS
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
