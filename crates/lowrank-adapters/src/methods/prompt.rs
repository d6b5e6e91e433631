//! Prompt tuning (Lester et al. 2021; prefix-embedding tuning in the LoRA paper): every text begins with `n` virtual tokens whose
//! embeddings `P: [n,D]` are trained, and nothing else is.
//!
//! Configuration, tensor and positions are those of PEFT's PROMPT_TUNING: the virtual tokens have the first positions, they are
//! not predicted, and the last of them predicts the first token of the text.

use std::sync::Arc;

use lowrank_engine::{Adapter, Grads, ParamId, Params, Scope, Site, SiteKind, Tensor, kernels};

use crate::config::LoraConfig;
use crate::contract::{BaseInfo, InitContext, Method, Target, Variant};
use crate::error::Error;
use crate::methods::virtual_tokens::{Extra, NO_MODULES, TENSOR, TOKENS, language_model_only};

/// Learned embeddings at the table of extra.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// `P: [n,D]`.
    pub embeddings: ParamId,
    /// Size of the vocabulary: virtual token `i` has the id `vocab + i`.
    vocab: u32,
    sample: bool,
}

impl Prompt {
    /// The row of each of `ids` that is a virtual token.
    fn rows(&self, ids: &[u32]) -> Vec<Option<u32>> {
        ids.iter().map(|id| id.checked_sub(self.vocab)).collect()
    }
}

impl Adapter for Prompt {
    fn embed(&self, scope: &Scope<'_>, ids: &[u32], _: f32, y: &mut Tensor) -> Vec<Tensor> {
        scope.device.table_lookup(y, scope.params.tensor(self.embeddings), &self.rows(ids), 1.0);
        Vec::new()
    }

    /// `dP[i] += dy` of every row of virtual token `i`.
    fn embed_backward(
        &self,
        scope: &Scope<'_>,
        grads: &mut Grads,
        ids: &[u32],
        _: f32,
        dy: &Tensor,
        _: Vec<Tensor>,
    ) {
        scope.device.table_lookup_backward(grads.get_mut(self.embeddings), dy, &self.rows(ids), 1.0);
    }
}

impl Variant for Prompt {
    fn params(&self) -> Vec<ParamId> {
        vec![self.embeddings]
    }

    /// Rows of random tokens of the vocabulary (SAMPLE_VOCAB), or normal values as in PyTorch's `Embedding` (RANDOM).
    fn init(&self, params: &mut Params, start: &InitContext<'_>) -> Result<(), Error> {
        let param = params.get_mut(self.embeddings);
        let (n, d) = (param.rows, param.cols);
        let mut value = vec![0.0; n * d];
        if self.sample {
            let mut drawn = vec![0.0; n];
            kernels::uniform(&mut drawn, 0.0, self.vocab as f32, start.seed, start.stream);
            for (row, at) in value.chunks_exact_mut(d).zip(drawn) {
                let id = (at as usize).min(self.vocab as usize - 1);
                start.base.read_rows(&start.site.path, id..id + 1, row)?;
            }
        } else {
            kernels::normal(&mut value, 0.0, 1.0, start.seed, start.stream);
        }
        param.set(value);
        Ok(())
    }

    fn check_merge(&self, _: &Site) -> Result<(), Error> {
        Err(Error::Config("a prompt is not a part of the weights, so it cannot be merged into them".into()))
    }
}

/// `peft_type` PROMPT_TUNING.
pub struct PromptMethod;

impl Method for PromptMethod {
    fn peft_type(&self) -> &'static str {
        "PROMPT_TUNING"
    }

    fn names(&self) -> &'static [(&'static str, &'static str)] {
        &[("prompt", "embeddings of virtual tokens")]
    }

    fn title(&self) -> &'static str {
        "Learned prompt"
    }

    fn takes_target_modules(&self) -> bool {
        false
    }

    fn default_virtual_tokens(&self) -> usize {
        TOKENS
    }

    fn select(&self, _: &str, _: usize, _: &mut LoraConfig, base: &BaseInfo) -> Result<(), Error> {
        language_model_only(base)
    }

    fn foreign_fields(&self) -> &'static [&'static str] {
        NO_MODULES
    }

    fn fields(&self) -> &'static [&'static str] {
        &["num_virtual_tokens", "num_transformer_submodules", "prompt_tuning_init"]
    }

    fn check_new(&self, config: &LoraConfig) -> Result<(), Error> {
        match config.other.get("prompt_tuning_init").and_then(|word| word.as_str()) {
            Some("TEXT") => Err(Error::Config(
                "prompt_tuning_init TEXT is read, not trained: it may be SAMPLE_VOCAB or RANDOM".into(),
            )),
            _ => Ok(()),
        }
    }

    fn configure(&self, config: &mut LoraConfig, sites: &[Site], _: u64) {
        config.default_to("num_virtual_tokens", TOKENS);
        config.default_to("num_transformer_submodules", 1);
        config.default_to("prompt_tuning_init", "SAMPLE_VOCAB");
        if let Some(table) = table(sites) {
            config.default_to("token_dim", sites[table].out_features);
        }
    }

    fn check(&self, config: &LoraConfig) -> Result<(), Error> {
        Extra::parse(config)?.sample().map(|_| ())
    }

    fn own_targets(&self, sites: &[Site]) -> Option<Vec<Target>> {
        Some(table(sites).map(|site| Target { site, r: 0, alpha: 0.0 }).into_iter().collect())
    }

    fn virtual_tokens(&self, config: &LoraConfig) -> Result<usize, Error> {
        Ok(Extra::parse(config)?.num_virtual_tokens)
    }

    fn attach(
        &self,
        config: &LoraConfig,
        targets: &[Target],
        sites: &[Site],
        params: &mut Params,
    ) -> Result<Vec<Arc<dyn Variant>>, Error> {
        let extra = Extra::parse(config)?;
        let sample = extra.sample()?;
        let plan = |target: &Target| {
            let site = &sites[target.site];
            let (n, d) = (extra.num_virtual_tokens, site.out_features);
            let embeddings = params.push(TENSOR.to_owned(), n, d, Vec::new());
            Arc::new(Prompt { embeddings, vocab: site.in_features as u32, sample }) as Arc<dyn Variant>
        };
        Ok(targets.iter().map(plan).collect())
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &[]
    }

    fn features(&self, _: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<(usize, usize)> {
        None
    }

    fn sites_alone(&self, config: &LoraConfig) -> Vec<Site> {
        let width = Extra::parse(config).ok().and_then(|extra| extra.token_dim).unwrap_or(0);
        let path = "embeddings".to_owned();
        vec![Site { path, kind: SiteKind::Embedding, in_features: 0, out_features: width, bias: false }]
    }
}

/// The table of words: the first of a model's tables.
fn table(sites: &[Site]) -> Option<usize> {
    sites.iter().position(|site| site.kind == SiteKind::Embedding)
}
