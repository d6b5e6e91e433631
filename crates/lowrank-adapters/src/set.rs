//! An adapter set: made from a configuration, attached to a model, merged into its weights.

use std::ops::Range;
use std::sync::Arc;

use lowrank_engine::{ActiveAdapters, Param, ParamId, Params, Prefix, Site, SiteId, SiteKind};
use serde_json::Value;

use crate::base::{BaseWeights, NoBase};
use crate::beside::bias::{self, Biases};
use crate::beside::saved::Saved;
use crate::beside::tokens::{self, TrainedTokens};
use crate::config::LoraConfig;
use crate::contract::{AdaptedSite, Exported, InitContext, Target, Variant, WeightRows};
use crate::error::Error;
use crate::init::{self, InitLoraWeights};
use crate::methods::embedding::TiedHeadLora;
use crate::registry::{method, targets};
use crate::target::check_names;
use crate::tied::{Tied, tie};
use crate::training_hook::TrainingHook;

/// The adapters of one model with their parameters. Making a set never changes the base model.
#[derive(Clone, Default)]
pub struct AdapterSet {
    /// Its configuration.
    pub config: LoraConfig,
    /// Its parameters, under their names in the file.
    pub params: Params,
    /// The adapted layers.
    pub layers: Vec<AdaptedSite>,
    /// The same, as the engine reads them.
    pub active: ActiveAdapters,
    /// Task and labels, which PEFT's configuration has no field for: `task.json` of its folder.
    pub task: Option<Value>,
    /// The chat template that its conversations were written with, where that is not the base's: `chat_template.jinja`.
    pub chat_template: Option<String>,
    /// What its method adds to each training step.
    pub training_hook: Option<Box<dyn TrainingHook>>,
    /// What was passed over while reading it, as PEFT warns of it.
    pub notes: Vec<String>,
}

impl AdapterSet {
    /// No adapter at all: the base model alone.
    pub fn none() -> Self {
        Self::default()
    }

    /// A new adapter for a base with these `sites`.
    ///
    /// # Errors
    /// If the configuration is not valid, matches nothing, or starts from the base's weights.
    pub fn new(config: LoraConfig, sites: &[Site], seed: u64) -> Result<Self, Error> {
        Self::new_on(config, sites, seed, &NoBase)
    }

    /// A new adapter, which may start from the weights of its base.
    ///
    /// # Errors
    /// If the configuration is not valid or matches nothing, or a weight cannot be read.
    pub fn new_on(
        config: LoraConfig,
        sites: &[Site],
        seed: u64,
        base: &dyn BaseWeights,
    ) -> Result<Self, Error> {
        let mut set = Self::planned_new(config, sites)?;
        for (layer, start) in set.layers.iter().zip(set.init_contexts(seed, base)) {
            layer.variant.init(&mut set.params, &start)?;
        }
        method(&set.config)?.init_shared(&mut set.params, seed);
        Ok(set)
    }

    /// What the variant of each site may read when it is initialised.
    pub(crate) fn init_contexts<'a>(&self, seed: u64, base: &'a dyn BaseWeights) -> Vec<InitContext<'a>> {
        let start = |(index, layer): (usize, &AdaptedSite)| {
            let stream = init::STREAM + index as u64 * init::STREAMS_PER_SITE;
            InitContext { site: layer.site.clone(), seed, stream, base }
        };
        self.layers.iter().enumerate().map(start).collect()
    }

    /// A fresh adapter without values, to plan with.
    ///
    /// # Errors
    /// As [`AdapterSet::new`].
    pub fn planned_new(config: LoraConfig, sites: &[Site]) -> Result<Self, Error> {
        config.check()?;
        let method = method(&config)?;
        method.check_new(&config)?;
        if method.own_targets(sites).is_none() {
            check_names(method, &config, sites)?;
        }
        Self::planned(config, sites)
    }

    /// The same, to fill from a file: names of modules that the base lacks are passed over.
    ///
    /// # Errors
    /// As [`AdapterSet::new`].
    pub fn planned(config: LoraConfig, sites: &[Site]) -> Result<Self, Error> {
        Self::planned_at(config, sites, |_| true)
    }

    /// The same without the targets that `wanted` refuses.
    pub(crate) fn planned_at(
        config: LoraConfig,
        sites: &[Site],
        wanted: impl Fn(&Site) -> bool,
    ) -> Result<Self, Error> {
        config.check()?;
        let mut config = config;
        let method = method(&config)?;
        let (tied, warning) = tie(&mut config, sites)?;
        let tied = |shares| tied.filter(|tied| tied.shares == shares);
        let wanted = |t: &Target| {
            let follows = tied(Tied::Adapted).is_some_and(|tied| tied.head == t.site);
            wanted(&sites[t.site]) && !follows
        };
        let found: Vec<Target> = match method.own_targets(sites) {
            Some(own) => own,
            None => targets(&config, sites)?.into_iter().filter(wanted).collect(),
        };
        let mut set = Self { config, notes: warning.into_iter().collect(), ..Self::default() };
        let variants = method.attach(&set.config, &found, sites, &mut set.params)?;
        for (target, variant) in found.iter().zip(variants) {
            let (id, site) = (SiteId(target.site), sites[target.site].clone());
            // PEFT keeps one word for all targets, and warns where it does not fit the layer.
            set.config.fan_in_fan_out |= site.kind == SiteKind::TransposedLinear;
            set.put(id, &site, variant);
        }
        if let Some(tied) = tied(Tied::Adapted)
            && let Some(table) = set.layers.iter().find(|layer| layer.id.0 == tied.table)
        {
            let shared = TiedHeadLora::of(&*table.variant, &set.config, tied.head, &set.params);
            let shared = shared.ok_or_else(|| {
                let what = "is only supported for plain LoRA on an embedding and for layers trained whole";
                Error::Config(format!("ensure_weight_tying {what}: {}", table.site.path))
            })?;
            set.put(SiteId(tied.head), &sites[tied.head], shared);
        }
        set.active.virtual_tokens = method.virtual_tokens(&set.config)?;
        set.active.prefix = method.prefix(&set.params).map(|param| Prefix { param });
        set.training_hook = method.training_hook(&set.config, &set.layers)?;
        set.config.check_saved(sites)?;
        for (index, site) in sites.iter().enumerate() {
            if set.config.saves(&site.path) {
                if site.kind == SiteKind::Convolution {
                    let what = "is a convolution, which cannot be trained whole";
                    return Err(Error::Config(format!("modules_to_save: {} {what}", site.path)));
                }
                let variant = Saved::plan(site, &mut set.params);
                if let Some(tied) = tied(Tied::Saved).filter(|tied| tied.table == index) {
                    let shared = Saved::tied(&sites[tied.head], &variant, &mut set.params);
                    set.put(SiteId(tied.head), &sites[tied.head], shared);
                }
                set.put(SiteId(index), site, variant);
            }
        }
        set.train_biases(sites)?;
        set.train_tokens(sites)?;
        Ok(set)
    }

    /// A layer trained whole that the configuration does not name: an embedding or a head that was stored with the
    /// adapter. A head that is tied to the table at `site` follows it.
    pub(crate) fn add_saved(&mut self, index: usize, sites: &[Site]) {
        let variant = Saved::plan(&sites[index], &mut self.params);
        let tied = |(_, site): &(usize, &Site)| site.kind == SiteKind::TiedHead(SiteId(index));
        if let Some((head, site)) = sites.iter().enumerate().find(tied)
            && self.active.get(SiteId(head)).is_none()
        {
            let shared: Arc<dyn Variant> = Saved::tied(site, &variant, &mut self.params);
            self.put(SiteId(head), site, shared);
        }
        self.put(SiteId(index), &sites[index], variant);
    }

    /// Puts `variant` at a site, in place of what was there.
    fn put(&mut self, id: SiteId, site: &Site, variant: Arc<dyn Variant>) {
        self.active.attach(id, variant.clone());
        match self.layers.iter_mut().find(|layer| layer.id == id) {
            Some(layer) => layer.variant = variant,
            None => self.layers.push(AdaptedSite { id, site: site.clone(), variant }),
        }
    }

    /// Adds the biases that the configuration trains beside the adapter.
    fn train_biases(&mut self, sites: &[Site]) -> Result<(), Error> {
        let biases = Biases::of(&self.config, method(&self.config)?.has_bias_field())?;
        for (index, site) in sites.iter().enumerate() {
            let inner = self.layers.iter().find(|l| l.id.0 == index).map(|l| l.variant.clone());
            if !self.config.saves(&site.path) && biases.train(site, inner.is_some()) {
                let variant = bias::plan(site, inner, &mut self.params);
                self.put(SiteId(index), site, variant);
            }
        }
        Ok(())
    }

    /// Adds the rows of tables that the configuration trains beside the adapter. A head that shares its table shares
    /// its rows.
    fn train_tokens(&mut self, sites: &[Site]) -> Result<(), Error> {
        for (index, tokens) in tokens::wanted(&self.config, sites)? {
            let site = &sites[index];
            if self.active.get(SiteId(index)).is_some() {
                return Err(Error::Config(format!(
                    "{} is adapted or saved whole: {} cannot name it too",
                    site.path,
                    tokens::FIELD
                )));
            }
            let trained = TrainedTokens::plan(site, tokens, &mut self.params)?;
            let tied = |other: &(usize, &Site)| other.1.kind == SiteKind::TiedHead(SiteId(index));
            if let Some((head, site)) = sites.iter().enumerate().find(tied) {
                if self.active.get(SiteId(head)).is_some() {
                    return Err(Error::Config(format!(
                        "{} shares the table whose tokens {} trains: it cannot be adapted too",
                        site.path,
                        tokens::FIELD
                    )));
                }
                self.put(SiteId(head), site, Arc::new(trained.shared()));
            }
            self.put(SiteId(index), site, Arc::new(trained));
        }
        Ok(())
    }

    /// What PEFT warns of: an adapter on one of two layers that share a weight, without being shared itself.
    pub fn warnings(&self, sites: &[Site]) -> Vec<String> {
        let own = |site: &Site| {
            let trained = |id: &ParamId| !self.params.get(*id).name.ends_with(tokens::SUFFIX);
            self.layer(&site.path).is_some_and(|layer| layer.variant.params().iter().any(trained))
        };
        let mut warnings = Vec::new();
        for head in sites {
            let SiteKind::TiedHead(table) = head.kind else { continue };
            let Some(table) = sites.get(table.0) else { continue };
            let shares = self.layer(&head.path).is_some_and(|layer| layer.variant.params().is_empty());
            if own(head) || own(table) && !shares {
                let adapted = if own(head) { head } else { table };
                warnings.push(format!(
                    "{} and {} share one weight, and the adapter on {} is not shared: what is merged differs",
                    table.path, head.path, adapted.path
                ));
            }
        }
        warnings
    }

    /// Bytes that it keeps while it is trained, beside its parameters with their gradients and moments.
    pub fn cached_bytes(&self) -> usize {
        let layers = self.layers.iter().map(|layer| layer.variant.cached_bytes(layer.site.out_features));
        layers.sum::<usize>() + self.training_hook.as_ref().map_or(0, |hook| hook.bytes(&self.params))
    }

    /// Bytes that saving it for a checkpoint takes: the state of its hook, and its values in the other form that its folder
    /// holds.
    ///
    /// # Errors
    /// If the configuration is of no method.
    pub fn saving_bytes(&self) -> Result<usize, Error> {
        let hook = self.training_hook.as_ref().map_or(0, |hook| hook.bytes(&self.params));
        let values: usize = self.params.iter().map(|(_, p)| size_of::<f32>() * p.rows * p.cols).sum();
        Ok(hook + if method(&self.config)?.exports() { values } else { 0 })
    }

    /// Whether its initial values come from the training data.
    ///
    /// # Errors
    /// If `init_lora_weights` is not a known value.
    pub fn starts_from_data(&self) -> Result<bool, Error> {
        Ok(InitLoraWeights::parse(&self.config)?.needs_data())
    }

    /// Bytes that finding its initial values takes, with batches of `rows` tokens of the training data.
    ///
    /// # Errors
    /// If `init_lora_weights` is not a known value.
    pub fn start_bytes(&self, rows: usize) -> Result<usize, Error> {
        let init = InitLoraWeights::parse(&self.config)?;
        let dora = self.config.is_set("use_dora");
        let sizes = self.layers.iter().map(|layer| {
            let rank = layer.variant.rank().unwrap_or(0);
            (layer.site.out_features, layer.site.in_features, rank)
        });
        Ok(init.working_bytes(sizes, rows, dora))
    }

    /// The adapter as its folder holds it, if that differs from how it is trained.
    ///
    /// # Errors
    /// If the folder's form cannot hold it.
    pub(crate) fn exported(&self) -> Result<Option<Self>, Error> {
        let hook = self.training_hook.as_deref();
        let exported = method(&self.config)?.export(&self.config, &self.params, &self.layers, hook)?;
        let Some(Exported { config, mut values }) = exported else { return Ok(None) };
        let sites: Vec<Site> = self.layers.iter().map(|layer| layer.site.clone()).collect();
        let mut set = Self::planned(config, &sites)?;
        (set.task, set.chat_template) = (self.task.clone(), self.chat_template.clone());
        set.each_param(|param| {
            param.set(match (values.remove(&param.name), self.params.find(&param.name)) {
                (Some(value), _) => value,
                (None, Some(same)) if same.shape == param.shape => same.values().to_vec(),
                _ => {
                    let what = format!("{} has no value in the form that is written", param.name);
                    return Err(Error::Config(what));
                }
            });
            Ok(())
        })?;
        Ok(Some(set))
    }

    /// Calls `change` on every parameter.
    pub(crate) fn each_param(
        &mut self,
        mut change: impl FnMut(&mut Param) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let ids: Vec<ParamId> = self.params.iter().map(|(id, _)| id).collect();
        ids.into_iter().try_for_each(|id| change(self.params.get_mut(id)))
    }

    /// The adapter at a module path.
    pub fn layer(&self, path: &str) -> Option<&AdaptedSite> {
        self.layers.iter().find(|l| l.site.path == path)
    }

    /// The Frobenius norm of what the adapter adds to the weight, where that does not depend on the weight.
    pub fn delta_norm(&self, layer: &AdaptedSite) -> Option<f64> {
        layer.variant.delta_norm(&self.params)
    }

    /// Turns `w`, rows `rows` of the tensor `name` of the base model as it is stored, into those of the merged
    /// model, always in f32. Tensors without an adapter stay as they are.
    ///
    /// # Errors
    /// If an adapter needs more of `base` than is there.
    pub fn merge_rows(
        &self,
        base: &dyn BaseWeights,
        name: &str,
        rows: Range<usize>,
        w: &mut [f32],
    ) -> Result<(), Error> {
        if let Some(layer) = name.strip_suffix(".weight").and_then(|path| self.layer(path)) {
            layer.variant.merge(&self.params, &WeightRows { site: &layer.site, rows, base }, w)?;
        } else if let Some(layer) = name.strip_suffix(".bias").and_then(|path| self.layer(path)) {
            layer.variant.merge_bias(&self.params, rows, w);
        }
        Ok(())
    }

    /// The reverse of [`AdapterSet::merge_rows`]: takes the adapter out of a merged model.
    ///
    /// # Errors
    /// If the merged weight alone does not say what the base was.
    pub fn unmerge_rows(
        &self,
        merged: &dyn BaseWeights,
        name: &str,
        rows: Range<usize>,
        w: &mut [f32],
    ) -> Result<(), Error> {
        if let Some(layer) = name.strip_suffix(".weight").and_then(|path| self.layer(path)) {
            layer.variant.unmerge(&self.params, &WeightRows { site: &layer.site, rows, base: merged }, w)?;
        } else if let Some(layer) = name.strip_suffix(".bias").and_then(|path| self.layer(path)) {
            layer.variant.unmerge_bias(&self.params, rows, w);
        }
        Ok(())
    }
}
