//! Extraction: an adapter out of a base model and its full fine-tune.

use std::collections::BTreeMap;

use lowrank_adapters::{LoraConfig, Targets, targets};
use lowrank_engine::SiteKind;
use lowrank_models::Base;
use lowrank_tools::extract::{Extract, Extracted, extract};
use serde_json::json;

use crate::{Result, Session};

/// The best low-rank adapter to what `tuned` changed of `model`, on the modules that `target_modules` means. Both are
/// read layer by layer.
///
/// # Errors
/// Where a model cannot be opened, nothing matches, or nothing changed.
pub fn extract_adapter(
    model: &str,
    tuned: &str,
    target_modules: Targets,
    how: &Extract,
) -> Result<Extracted> {
    how.rule.check()?;
    let session = Session::open(model)?;
    let tuned = Base::open(tuned)?;
    let config = LoraConfig { target_modules: Some(target_modules), ..LoraConfig::default() };
    let sites = session.sites();
    let wanted: BTreeMap<&str, SiteKind> = targets(&config, sites)?
        .into_iter()
        .map(|target| (sites[target.site].path.as_str(), sites[target.site].kind))
        .collect();
    let transposed = |path: &str| wanted.get(path) == Some(&SiteKind::TransposedLinear);
    let wants = |path: &str| wanted.contains_key(path);
    let mut found = extract(&session.base.tensors, &tuned.tensors, how, &wants, &transposed)?;
    let config = &mut found.lora.config;
    config.insert("base_model_name_or_path".into(), json!(lowrank_models::base_name(model)));
    config.insert("task_type".into(), json!("CAUSAL_LM"));
    Ok(found)
}
