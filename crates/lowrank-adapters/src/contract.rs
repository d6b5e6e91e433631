//! What a method is: the ground floor of this crate. A method is one file of [`crate::methods`]; the trainer, the merger
//! and the file formats know only the two traits: a [`Method`] is what `adapter_config.json` asks for, a [`Variant`] is
//! what it puts at one site.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use lowrank_engine::{Adapter, ParamId, Params, Site, SiteId, SiteKind};

use crate::base::BaseWeights;
use crate::config::{LoraConfig, Targets};
use crate::error::Error;
use crate::training_hook::TrainingHook;

/// A kind of adapter, as `adapter_config.json` names it: decides what is put at the sites.
pub trait Method: Sync {
    /// Its `peft_type`.
    fn peft_type(&self) -> &'static str;

    /// The names users call it by, in lower case, each with a few words for the help text (or none). In a name that ends
    /// in `N`, a number from 1 takes its place (`top2`). There is no name if other fields of the configuration choose the
    /// method among those of one `peft_type`.
    fn names(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// What a model card calls an adapter of this method.
    fn title(&self) -> &'static str {
        "Adapter"
    }

    /// Whether PEFT has this method and loads its folder.
    fn in_peft(&self) -> bool {
        true
    }

    /// Whether users may name its target modules. The others choose their modules themselves.
    fn takes_target_modules(&self) -> bool {
        true
    }

    /// Whether it has PEFT's field `bias`: biases trained beside the adapter.
    fn has_bias_field(&self) -> bool {
        false
    }

    /// Sets the fields of `config` that follow from one of its names and from the base model. `name` is an entry of
    /// [`Method::names`] and `number` what the user wrote for its `N`, or both are empty (`""` and 0) where only the
    /// `peft_type` was given.
    ///
    /// # Errors
    /// If the method cannot train this model.
    fn select(
        &self,
        name: &str,
        number: usize,
        config: &mut LoraConfig,
        base: &BaseInfo,
    ) -> Result<(), Error> {
        let _ = (name, number, config, base);
        Ok(())
    }

    /// Whether a configuration of its `peft_type` asks for it.
    fn matches(&self, config: &LoraConfig) -> bool {
        let _ = config;
        true
    }

    /// Fields of [`LoraConfig`] that its configuration does not have and that are not written.
    fn foreign_fields(&self) -> &'static [&'static str] {
        &[]
    }

    /// Fields of [`LoraConfig`] that do nothing for it: a new adapter must not set them.
    fn unused_fields(&self) -> &'static [&'static str] {
        self.foreign_fields()
    }

    /// Fields of its configuration, beside those of [`LoraConfig`], that a new adapter may set.
    fn fields(&self) -> &'static [&'static str] {
        &[]
    }

    /// Checks what matters only where a new adapter is made.
    ///
    /// # Errors
    /// Names the field and what it may be.
    fn check_new(&self, config: &LoraConfig) -> Result<(), Error> {
        let _ = config;
        Ok(())
    }

    /// The rank and alpha of targets that no pattern names.
    ///
    /// # Errors
    /// If its fields do not parse.
    fn rank_and_alpha(&self, config: &LoraConfig) -> Result<(usize, f64), Error> {
        Ok((config.r, config.lora_alpha))
    }

    /// Sets the fields of its own that are not set, for a run of `total_steps` steps on `sites`.
    fn configure(&self, config: &mut LoraConfig, sites: &[Site], total_steps: u64) {
        let _ = (config, sites, total_steps);
    }

    /// The sites it adapts, if that does not depend on `target_modules`.
    fn own_targets(&self, sites: &[Site]) -> Option<Vec<Target>> {
        let _ = sites;
        None
    }

    /// How many virtual tokens every text begins with.
    ///
    /// # Errors
    /// If its fields do not parse.
    fn virtual_tokens(&self, config: &LoraConfig) -> Result<usize, Error> {
        let _ = config;
        Ok(0)
    }

    /// How many virtual tokens every text begins with if its configuration does not say.
    fn default_virtual_tokens(&self) -> usize {
        0
    }

    /// The parameter that is the keys and values of virtual tokens.
    fn prefix(&self, params: &Params) -> Option<ParamId> {
        let _ = params;
        None
    }

    /// Sets the initial values of the parameters that belong to no site.
    fn init_shared(&self, params: &mut Params, seed: u64) {
        let _ = (params, seed);
    }

    /// The sites of an adapter that is read without its base and has no tensors by module.
    fn sites_alone(&self, config: &LoraConfig) -> Vec<Site> {
        let _ = config;
        Vec::new()
    }

    /// Whether it has something to train at a site that its configuration names.
    fn adapts(&self, site: &Site) -> bool {
        !matches!(site.kind, SiteKind::Norm | SiteKind::Convolution)
    }

    /// Whether `modules_to_save` alone is enough, so that no target is needed.
    fn may_have_no_target(&self) -> bool {
        false
    }

    /// The error message if `target_modules` matches layers, but [`Method::adapts`] none of them.
    fn nothing_to_adapt(&self, target_modules: &Targets) -> Option<String> {
        let _ = target_modules;
        None
    }

    /// Checks its own fields.
    ///
    /// # Errors
    /// Names the field and what it may be.
    fn check(&self, config: &LoraConfig) -> Result<(), Error>;

    /// Makes the variant of every target and adds its parameters (without values) to `params`.
    ///
    /// # Errors
    /// If a site is of a kind that it cannot adapt.
    fn attach(
        &self,
        config: &LoraConfig,
        targets: &[Target],
        sites: &[Site],
        params: &mut Params,
    ) -> Result<Vec<Arc<dyn Variant>>, Error>;

    /// What it adds to each training step.
    ///
    /// # Errors
    /// If its fields do not parse.
    fn training_hook(
        &self,
        config: &LoraConfig,
        layers: &[AdaptedSite],
    ) -> Result<Option<Box<dyn TrainingHook>>, Error> {
        let _ = (config, layers);
        Ok(None)
    }

    /// The form of the adapter that is written to its folder, if it is not the form that is trained.
    ///
    /// # Errors
    /// If that form cannot hold it.
    fn export(
        &self,
        config: &LoraConfig,
        params: &Params,
        layers: &[AdaptedSite],
        hook: Option<&dyn TrainingHook>,
    ) -> Result<Option<Exported>, Error> {
        let _ = (config, params, layers, hook);
        Ok(None)
    }

    /// Whether the form that is written may be another than the form that is trained, so that both exist while saving.
    fn exports(&self) -> bool {
        false
    }

    /// Endings of the names of a site's tensors in a file, after the module path and a dot.
    fn suffixes(&self) -> &'static [&'static str];

    /// `(in_features, out_features)` of a site, from the shapes of its tensors by ending (of tensors that all sites
    /// share, by their name in the file); 0 where they do not say.
    fn features(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<(usize, usize)>;

    /// What kind of layer that site is, and whether it has a bias, as far as the tensors of the file go.
    fn kind(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> (SiteKind, bool) {
        let _ = shape;
        (SiteKind::Linear, false)
    }
}

/// The adapter at one site: [`Adapter`] computes it; the rest is about its parameters.
pub trait Variant: Adapter {
    /// Bytes that it keeps beside its parameters, at a site of `out_features`.
    fn cached_bytes(&self, out_features: usize) -> usize {
        let _ = out_features;
        0
    }

    /// Its rank, where it has one.
    fn rank(&self) -> Option<usize> {
        None
    }

    /// The factor of what it adds, where it has one.
    fn scaling(&self) -> Option<f32> {
        None
    }

    /// Its parameters, including those that are not trained.
    fn params(&self) -> Vec<ParamId>;

    /// Whether its weight is another site's parameter: a head that shares the trained table of an embedding.
    fn shares_weight(&self) -> bool {
        false
    }

    /// What PEFT's file has under this site's name although another site has it already, with `ensure_weight_tying`.
    fn repeated(&self, params: &Params) -> Vec<Repeated> {
        let _ = params;
        Vec::new()
    }

    /// Sets the initial values of its parameters.
    ///
    /// # Errors
    /// If the base's weight is needed and cannot be read.
    fn init(&self, params: &mut Params, start: &InitContext<'_>) -> Result<(), Error>;

    /// Computes the parameters that are not stored in the file, after the others were read.
    ///
    /// # Errors
    /// If the base's weight is needed and cannot be read.
    fn finish_load(&self, params: &mut Params, start: &InitContext<'_>) -> Result<(), Error> {
        let _ = (params, start);
        Ok(())
    }

    /// The Frobenius norm of what it adds to the weight, if that does not depend on the weight.
    fn delta_norm(&self, params: &Params) -> Option<f64> {
        let _ = params;
        None
    }

    /// Checks that it can be merged into the weight of `site`.
    ///
    /// # Errors
    /// Says why not.
    fn check_merge(&self, site: &Site) -> Result<(), Error> {
        let _ = site;
        Ok(())
    }

    /// `w += factor dW`, with `dW` what the adapter adds to rows `at.rows` of the weight as it is stored, in f32. For
    /// methods that add to the weight: [`Variant::merge`] and [`Variant::unmerge`] follow from it.
    ///
    /// # Errors
    /// If the method does not add to the weight.
    fn add_delta(
        &self,
        params: &Params,
        at: &WeightRows<'_>,
        factor: f32,
        w: &mut [f32],
    ) -> Result<(), Error> {
        let _ = (params, factor, w);
        self.check_merge(at.site)?;
        Err(Error::Config(format!("{}: this adapter is not a part of the weight", at.site.path)))
    }

    /// Turns `w`, rows `at.rows` of the base's weight as it is stored, into those of the merged weight, in f32.
    ///
    /// # Errors
    /// If more of the base's weight is needed and cannot be read.
    fn merge(&self, params: &Params, at: &WeightRows<'_>, w: &mut [f32]) -> Result<(), Error> {
        self.add_delta(params, at, 1.0, w)
    }

    /// The reverse of [`Variant::merge`].
    ///
    /// # Errors
    /// If the merged weight does not determine what the base was.
    fn unmerge(&self, params: &Params, at: &WeightRows<'_>, w: &mut [f32]) -> Result<(), Error> {
        self.add_delta(params, at, -1.0, w)
    }

    /// Turns elements `range` of the base's bias into those of the merged layer.
    fn merge_bias(&self, params: &Params, range: Range<usize>, bias: &mut [f32]) {
        let _ = (params, range, bias);
    }

    /// The reverse of [`Variant::merge_bias`].
    fn unmerge_bias(&self, params: &Params, range: Range<usize>, bias: &mut [f32]) {
        let _ = (params, range, bias);
    }
}

/// A tensor that PEFT's file has twice.
pub struct Repeated {
    /// Its name, behind the site's path.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values.
    pub value: Vec<f32>,
}

/// A site that gets an adapter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Index in the model's list of sites.
    pub site: usize,
    /// Its rank.
    pub r: usize,
    /// Its alpha.
    pub alpha: f64,
}

/// One adapted site.
#[derive(Clone)]
pub struct AdaptedSite {
    /// If it is in the model's list.
    pub id: SiteId,
    /// The layer.
    pub site: Site,
    /// The adapter.
    pub variant: Arc<dyn Variant>,
}

/// What a method may ask of the base model when it is chosen.
#[derive(Clone, Debug, Default)]
pub struct BaseInfo {
    /// Its layers.
    pub sites: Vec<Site>,
    /// Module paths of the layers of the head that this task uses.
    pub head: Vec<String>,
    /// Whether that head predicts words.
    pub is_language_model: bool,
    /// Width of the keys (and of the values) of each layer.
    pub kv_widths: Vec<usize>,
    /// Heads of keys in each layer.
    pub kv_heads: usize,
}

impl BaseInfo {
    /// The layers that predict words, where the task uses another head: nothing reads them.
    pub fn unused_heads(&self) -> Option<Targets> {
        let head = |kind| matches!(kind, SiteKind::Head | SiteKind::TiedHead(_));
        let unused = self.sites.iter().filter(|s| head(s.kind) && !self.head.contains(&s.path));
        let unused: Vec<String> = unused.map(|s| s.path.clone()).collect();
        (!unused.is_empty()).then_some(Targets::Names(unused))
    }
}

/// The form of an adapter in its folder.
pub struct Exported {
    /// Its configuration.
    pub config: LoraConfig,
    /// Values by parameter name, of the parameters that differ from those that are trained.
    pub values: BTreeMap<String, Vec<f32>>,
}

/// What a variant may read when it is initialised.
pub struct InitContext<'a> {
    /// The layer.
    pub site: Site,
    /// Random seed of the run.
    pub seed: u64,
    /// Random stream of this site's first parameter; the following ones are its too.
    pub stream: u64,
    /// The base model's weights.
    pub base: &'a dyn BaseWeights,
}

/// Rows of a weight that is merged.
pub struct WeightRows<'a> {
    /// The layer.
    pub site: &'a Site,
    /// Rows of its weight as it is stored.
    pub rows: Range<usize>,
    /// The base model's weights (those of the merged model, where the adapter is taken out).
    pub base: &'a dyn BaseWeights,
}

/// Refuses a site that is not a linear layer.
///
/// # Errors
/// Names the layer and what it is.
pub fn linear_only(site: &Site) -> Result<(), Error> {
    let kind = match site.kind {
        SiteKind::Linear | SiteKind::TransposedLinear | SiteKind::Head | SiteKind::TiedHead(_) => {
            return Ok(());
        }
        SiteKind::Embedding => "an embedding",
        SiteKind::Norm => "a norm",
        SiteKind::Convolution => "a convolution",
    };
    Err(Error::Config(format!("{} is {kind}; only linear layers can be adapted", site.path)))
}

/// The error of [`Variant::unmerge`] if merging replaced what was there.
pub fn gone(trained: &str) -> Error {
    Error::Config(format!("{trained}: the merged model does not hold what it was before"))
}
