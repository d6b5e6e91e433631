//! What a variant of LoRA is. Each is one file here; the trainer, the merger and the file formats know only the
//! two traits: a [`Method`] is what `adapter_config.json` asks for, a [`Variant`] is what it puts at one site.

pub mod adalora;
pub mod bias;
pub mod bitfit;
pub mod bottleneck;
pub mod dora;
pub mod embedding;
pub mod full;
pub mod ia3;
pub mod loha;
pub mod lokr;
pub mod lora;
pub mod low_rank;
mod lycoris;
pub mod merged_linear;
pub mod mixture;
pub mod prefix;
pub mod prompt;
pub mod residual;
mod rows;
pub mod saved;
pub mod tokens;
mod torch_random;
pub mod vera;

use std::ops::Range;
use std::sync::Arc;

use lowrank_engine::{Adapter, ParamId, Params, Site, SiteKind};
use lowrank_kernels::{Format, RowOrder, WeightRef, quantize_matrix};

use crate::regime::Regime;
use crate::target::Target;
use crate::{AdaptedSite, AdapterSet, Error, LoraConfig};

/// All methods. Of those with one `peft_type`, the first that claims a configuration takes it.
static METHODS: [&dyn Method; 14] = [
    &merged_linear::Method,
    &residual::Method,
    &dora::Method,
    &lora::Method,
    &ia3::Method,
    &vera::Method,
    &loha::Method,
    &lokr::Method,
    &adalora::Method,
    &full::Method,
    &bitfit::Method,
    &bottleneck::Method,
    &prompt::Method,
    &prefix::Method,
];

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

    /// The rank and alpha of targets that no pattern names.
    ///
    /// # Errors
    /// Where its fields do not parse.
    fn rank_and_alpha(&self, config: &LoraConfig) -> Result<(usize, f64), Error> {
        Ok((config.r, config.lora_alpha))
    }

    /// Fills fields of its own that were not said from what was, for a run of `total_steps` steps on `sites`.
    fn configure(&self, config: &mut LoraConfig, sites: &[Site], total_steps: u64) {
        let _ = (config, sites, total_steps);
    }

    /// The sites it is for, where no configuration names them.
    fn own_targets(&self, sites: &[Site]) -> Option<Vec<Target>> {
        let _ = sites;
        None
    }

    /// How many virtual tokens every text begins with.
    ///
    /// # Errors
    /// Where its fields do not parse.
    fn virtual_tokens(&self, config: &LoraConfig) -> Result<usize, Error> {
        let _ = config;
        Ok(0)
    }

    /// The parameter that is the keys and values of virtual tokens.
    fn prefix(&self, params: &Params) -> Option<ParamId> {
        let _ = params;
        None
    }

    /// Gives parameters that belong to no site the numbers that training starts from.
    fn start(&self, params: &mut Params, seed: u64) {
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

    /// Whether modules that are saved whole are enough, so that no target is needed.
    fn may_have_no_target(&self) -> bool {
        false
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

    /// What its training does beside following the gradient.
    ///
    /// # Errors
    /// Where its fields do not parse.
    fn regime(&self, config: &LoraConfig, layers: &[AdaptedSite]) -> Result<Option<Box<dyn Regime>>, Error> {
        let _ = (config, layers);
        Ok(None)
    }

    /// What is written to the adapter folder in place of `set`, where it is not `set` as it is trained.
    ///
    /// # Errors
    /// Where the form that is written cannot hold it.
    fn export(&self, set: &AdapterSet) -> Result<Option<AdapterSet>, Error> {
        let _ = set;
        Ok(None)
    }

    /// Endings of the names of a site's tensors in a file, after the module path and a dot.
    fn suffixes(&self) -> &'static [&'static str];

    /// `(in_features, out_features)` of a site, from the shapes of its tensors by ending (of tensors that all sites
    /// share, by their name in the file); 0 where they do not say.
    fn features(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<(usize, usize)>;

    /// What kind of layer that site is, and whether it has a bias, as far as the tensors of the file go.
    fn kind(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> (SiteKind, bool) {
        let embedding = shape(embedding::SUFFIXES[0]).is_some();
        (if embedding { SiteKind::Embedding } else { SiteKind::Linear }, false)
    }
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

    /// Gives the parameters that no file holds their numbers, after the others were read.
    ///
    /// # Errors
    /// Where the base's weight is needed and cannot be read.
    fn complete(&self, params: &mut Params, start: &Start<'_>) -> Result<(), Error> {
        let _ = (params, start);
        Ok(())
    }

    /// The Frobenius norm of what it adds to the weight, where that does not depend on the weight.
    fn delta_norm(&self, params: &Params) -> Option<f64> {
        let _ = params;
        None
    }

    /// Whether it can be merged into the weight of `site` at all.
    ///
    /// # Errors
    /// Says why not.
    fn check_merge(&self, site: &Site) -> Result<(), Error> {
        let _ = site;
        Ok(())
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

    /// The format that the weight of a layer is quantised to before it is computed with, where it is not computed
    /// with as it is stored.
    fn quantised(&self, site: &Site) -> Option<Format> {
        let _ = site;
        None
    }

    /// What was found in the training data about the inputs of a layer ([`crate::calibrate`]).
    fn observed(&self, site: &Site) -> Option<&[f32]> {
        let _ = site;
        None
    }

    /// Whether the data were looked at at all.
    fn observes(&self) -> bool {
        false
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
    pub site: Site,
    /// Random seed of the run.
    pub seed: u64,
    /// Random stream of this site's first parameter; the following ones are its too.
    pub stream: u64,
    /// The base model's weights.
    pub base: &'a dyn BaseWeights,
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

/// `W: [O,K]` of a layer as it is computed with: transposed back where it is stored transposed, and with the error of
/// quantising where it is quantised on the way.
///
/// # Errors
/// Where it cannot be read.
pub fn whole_weight(base: &dyn BaseWeights, site: &Site) -> Result<Vec<f32>, Error> {
    let w = stored_weight(base, site)?;
    let Some(format) = base.quantised(site) else { return Ok(w) };
    let (rows, cols) = (site.out_features, site.in_features);
    let wrong = |what: String| Error::Config(format!("{}: {what}", site.path));
    let bytes =
        format.matrix_bytes(rows, cols).ok_or_else(|| wrong("its rows are no whole blocks".into()))?;
    let mut quantised = vec![0; bytes];
    let fill = |row: usize, out: &mut [f32]| out.copy_from_slice(&w[row * cols..][..cols]);
    quantize_matrix(format, rows, cols, fill, &mut quantised).map_err(|e| wrong(e.to_string()))?;
    let view = WeightRef { format, rows, cols, order: RowOrder::Plain, bytes: &quantised };
    let mut again = vec![0.0; rows * cols];
    again.chunks_exact_mut(cols).enumerate().for_each(|(row, out)| view.expand(row, 0..cols, out));
    Ok(again)
}

/// `W: [O,K]` of a layer as its file has it, transposed back where it is stored transposed.
///
/// # Errors
/// Where it cannot be read.
pub fn stored_weight(base: &dyn BaseWeights, site: &Site) -> Result<Vec<f32>, Error> {
    let (k, o) = (site.in_features, site.out_features);
    let mut w = vec![0.0; o * k];
    if site.kind != SiteKind::TransposedLinear {
        base.read_rows(&site.path, 0..o, &mut w)?;
        return Ok(w);
    }
    let mut stored = vec![0.0; o * k];
    base.read_rows(&site.path, 0..k, &mut stored)?;
    for (row, stored) in stored.chunks_exact(o).enumerate() {
        for (column, value) in stored.iter().enumerate() {
            w[column * k + row] = *value;
        }
    }
    Ok(w)
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

/// Says that what was there before merging is not known any more.
fn gone(trained: &str) -> Error {
    Error::Config(format!("{trained}: the merged model does not hold what it was before"))
}
