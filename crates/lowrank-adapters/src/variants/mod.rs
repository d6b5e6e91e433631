//! What a variant of LoRA is. Each is one file here; the trainer, the merger and the file formats know only the
//! two traits: a [`Method`] is what `adapter_config.json` asks for, a [`Variant`] is what it puts at one site.

pub mod embedding;
pub mod lora;
pub mod low_rank;
pub mod merged_linear;
pub mod saved;

use std::ops::Range;
use std::sync::Arc;

use lowrank_engine::{Adapter, ParamId, Params, Site, SiteKind};

use crate::target::Target;
use crate::{Error, LoraConfig};

/// All methods. Of those with one `peft_type`, the first that claims a configuration takes it.
static METHODS: [&dyn Method; 2] = [&merged_linear::Method, &lora::Method];

/// A kind of adapter, as `adapter_config.json` names it: decides what is put at the sites.
pub trait Method: Sync {
    /// Its `peft_type`.
    fn peft_type(&self) -> &'static str;

    /// Whether a configuration of its `peft_type` asks for it.
    fn claims(&self, config: &LoraConfig) -> bool {
        let _ = config;
        true
    }

    /// Fields of [`LoraConfig`] that its configuration does not have and that are not written.
    fn foreign_fields(&self) -> &'static [&'static str] {
        &[]
    }

    /// Checks its own fields.
    ///
    /// # Errors
    /// Names the field and what it may be.
    fn check(&self, config: &LoraConfig) -> Result<(), Error>;

    /// Makes the variant of every target and adds its parameters (without numbers) to `params`.
    ///
    /// # Errors
    /// Where a site is of a kind that it cannot adapt.
    fn attach(
        &self,
        config: &LoraConfig,
        targets: &[Target],
        sites: &[Site],
        params: &mut Params,
    ) -> Result<Vec<Arc<dyn Variant>>, Error>;

    /// Endings of the names of a site's tensors in a file, after the module path and a dot.
    fn suffixes(&self) -> &'static [&'static str];

    /// `(in_features, out_features)` of a site, from the shapes of its tensors by ending; 0 where they do not say.
    fn features(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<(usize, usize)>;
}

/// The adapter at one site: [`Adapter`] computes it, the rest is about its numbers.
pub trait Variant: Adapter {
    /// Its rank, where it has one.
    fn rank(&self) -> Option<usize> {
        None
    }

    /// The factor of what it adds, where it has one.
    fn scaling(&self) -> Option<f32> {
        None
    }

    /// Its parameters, those that are not trained included.
    fn params(&self) -> Vec<ParamId>;

    /// Gives its parameters the numbers that training starts from.
    ///
    /// # Errors
    /// Where the base's weight is needed and cannot be read.
    fn init(&self, params: &mut Params, start: &Start<'_>) -> Result<(), Error>;

    /// The Frobenius norm of what it adds to the weight, where that does not depend on the weight.
    fn delta_norm(&self, params: &Params) -> Option<f64> {
        let _ = params;
        None
    }

    /// Turns rows `at.rows` of the base's weight as it is stored, `w`, into those of the merged weight; always
    /// in f32.
    ///
    /// # Errors
    /// Where more of the base's weight is needed and cannot be read.
    fn merge(&self, params: &Params, at: &Place<'_>, w: &mut [f32]) -> Result<(), Error>;

    /// The reverse of [`Variant::merge`].
    ///
    /// # Errors
    /// Where the merged weight alone does not say what the base was.
    fn unmerge(&self, params: &Params, at: &Place<'_>, w: &mut [f32]) -> Result<(), Error>;

    /// Turns numbers `range` of the base's bias into those of the merged layer.
    fn merge_bias(&self, params: &Params, range: Range<usize>, bias: &mut [f32]) {
        let _ = (params, range, bias);
    }

    /// The reverse of [`Variant::merge_bias`].
    fn unmerge_bias(&self, params: &Params, range: Range<usize>, bias: &mut [f32]) {
        let _ = (params, range, bias);
    }
}

/// Reads the frozen weights of the base model.
pub trait BaseWeights: Sync {
    /// Rows `rows` of the weight of the layer at `path`, as it is stored (`[O,K]`, or `[K,O]` where
    /// transposed), as f32.
    ///
    /// # Errors
    /// Where there is no such weight.
    fn read_rows(&self, path: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error>;

    /// The bias of the layer at `path`.
    ///
    /// # Errors
    /// Where there is none.
    fn read_bias(&self, path: &str, out: &mut [f32]) -> Result<(), Error> {
        let _ = out;
        Err(Error::Config(format!("{path}: the bias of the base model is needed here")))
    }
}

/// No base at hand.
pub struct NoBase;

impl BaseWeights for NoBase {
    fn read_rows(&self, path: &str, _: Range<usize>, _: &mut [f32]) -> Result<(), Error> {
        Err(Error::Config(format!("{path}: the weight of the base model is needed here")))
    }
}

/// What a variant may look at when training starts.
pub struct Start<'a> {
    /// The layer.
    pub site: &'a Site,
    /// Random seed of the run.
    pub seed: u64,
    /// Random stream of this site's first parameter; the following ones are its too.
    pub stream: u64,
    /// The base model's weights.
    pub base: &'a dyn BaseWeights,
}

impl Start<'_> {
    /// `W: [O,K]` of the layer, transposed back where it is stored transposed.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn weight(&self) -> Result<Vec<f32>, Error> {
        let (k, o) = (self.site.in_features, self.site.out_features);
        let mut w = vec![0.0; o * k];
        if self.site.kind != SiteKind::TransposedLinear {
            self.base.read_rows(&self.site.path, 0..o, &mut w)?;
            return Ok(w);
        }
        let mut stored = vec![0.0; o * k];
        self.base.read_rows(&self.site.path, 0..k, &mut stored)?;
        for (row, stored) in stored.chunks_exact(o).enumerate() {
            for (column, value) in stored.iter().enumerate() {
                w[column * k + row] = *value;
            }
        }
        Ok(w)
    }
}

/// Rows of a weight that is merged.
pub struct Place<'a> {
    /// The layer.
    pub site: &'a Site,
    /// Rows of its weight as it is stored.
    pub rows: Range<usize>,
    /// The base model's weights (those of the merged model, where the adapter is taken out).
    pub base: &'a dyn BaseWeights,
}

/// The method that `config` asks for.
///
/// # Errors
/// Where `peft_type` is unknown (lists the known).
pub fn method(config: &LoraConfig) -> Result<&'static dyn Method, Error> {
    let of_type = |m: &&&dyn Method| m.peft_type() == config.peft_type;
    METHODS.iter().filter(of_type).find(|m| m.claims(config)).copied().ok_or_else(|| {
        let mut known: Vec<&str> = METHODS.iter().map(|m| m.peft_type()).collect();
        known.dedup();
        Error::Config(format!("peft_type is {:?}; supported are {}", config.peft_type, known.join(", ")))
    })
}

/// Refuses a site that is no linear layer.
fn linear_only(site: &Site) -> Result<(), Error> {
    if site.kind == SiteKind::Embedding {
        return Err(Error::Config(format!(
            "{} is an embedding; only linear layers can be adapted",
            site.path
        )));
    }
    Ok(())
}
