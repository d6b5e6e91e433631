//! Models with the head that a task needs.

use lowrank_engine::{FrozenWeight, Linear, LmHead, SiteKind, Tape, Tensor, Var, kernels};
use lowrank_files::Tensors;
use serde_json::Value;

use super::{ClassHead, Head, MaskedHead, Reads};
use crate::arch::{base_prefix, load, load_without_head, tied_of};
use crate::loader::Loader;
use crate::model::{Model, ModelInfo, TokenBatch};
use crate::{Error, Result};

/// Which head a task needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// Next-token prediction.
    Language,
    /// Prediction of masked tokens.
    Masked,
    /// Scores of a text or a pair of texts: as many as there are classes, 1 for a value.
    Sequence(usize),
    /// Scores of tokens.
    Token(usize),
    /// Sentence embeddings.
    Embedding,
}

/// Seed of new layers. It is fixed, so that a layer that is neither in the base's files nor trained is the same
/// whenever the model is loaded.
const SEED: u64 = 0x6865_6164;

/// Builds the model that `config` describes over `tensors`, with a head of kind `kind`.
///
/// A classification head comes from `tensors` where they have it with as many classes, and else is new.
///
/// # Errors
/// As [`load`], and where the architecture has no such head.
pub fn load_for(config: &Value, tensors: &Tensors, kind: HeadKind) -> Result<Box<dyn Model>> {
    let model = match kind {
        HeadKind::Language => load(config, tensors)?,
        _ => load_without_head(config, tensors)?,
    };
    let name = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let none = |what: &str| Err(Error::Config(format!("a model of type {name} has no {what}")));
    let mut layout = model.info().head_layout;
    if let Reads::Last(padding) = &mut layout.reads {
        *padding = config.get("pad_token_id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
    }
    let mut new =
        NewLayers { loader: Loader::continued(tensors, model.sites().to_vec()), config, fresh: vec![] };
    let d = model.info().width;
    let head = match kind {
        HeadKind::Language => {
            return match model.head() {
                Head::Language(_) => Ok(model),
                _ => none("language-model head: it cannot be trained or used with `task` lm"),
            };
        }
        HeadKind::Masked => match masked(&mut new.loader, config, tensors, &*model)? {
            Some(head) => Head::Masked(head),
            None => return none("masked-language-model head: `task` mlm is for encoders"),
        },
        HeadKind::Sequence(outputs) => {
            let (mut layers, dropout) = (Vec::new(), model.head_dropout());
            if let Some((path, activation)) = layout.dense {
                layers.push((new.linear(path, d, d, true)?, Some(activation)));
            }
            layers.push((new.linear(layout.output, d, outputs, layout.bias)?, None));
            let dropout =
                if layers.len() == 2 { vec![dropout.dense, dropout.output] } else { vec![dropout.output] };
            Head::Classes(ClassHead { reads: layout.reads, layers, dropout })
        }
        HeadKind::Token(outputs) => {
            // transformers' token heads have a bias everywhere.
            let layers = vec![(new.linear(layout.token_output, d, outputs, true)?, None)];
            let dropout = vec![model.head_dropout().token];
            Head::Classes(ClassHead { reads: Reads::Each, layers, dropout })
        }
        HeadKind::Embedding => Head::Embedding,
    };
    let (mut sites, new_layers) = (new.loader.into_sites(), new.fresh);
    if kind == HeadKind::Embedding {
        // PEFT adapts the bare model then, whose module names lack the prefix.
        let prefix = base_prefix(name).map(|p| format!("{p}.")).unwrap_or_default();
        for site in &mut sites {
            site.path = site.path.strip_prefix(&prefix).unwrap_or(&site.path).to_owned();
        }
    }
    let info = ModelInfo { sites, new_layers, head_layout: layout, ..model.info().clone() };
    Ok(Box::new(WithHead { model, head, info }))
}

struct NewLayers<'a> {
    loader: Loader<'a>,
    config: &'a Value,
    fresh: Vec<String>,
}

impl NewLayers<'_> {
    /// The layer of the file where it fits, else a new one.
    fn linear(&mut self, path: &str, inputs: usize, outputs: usize, bias: bool) -> Result<Linear> {
        if self.loader.fits(path, inputs, outputs) {
            return self.loader.linear(path, inputs, outputs, bias);
        }
        let std = self.config.get("initializer_range").and_then(Value::as_f64).unwrap_or(0.02) as f32;
        let mut weight = vec![0.0; outputs * inputs];
        kernels::normal(&mut weight, 0.0, std, SEED, self.fresh.len() as u64);
        let weight = FrozenWeight::from_f32(outputs, inputs, &weight);
        self.fresh.push(path.to_owned());
        let site = self.loader.site(path, SiteKind::Linear, inputs, outputs, bias);
        Ok(Linear { site, weight, bias: bias.then(|| Tensor::vector(vec![0.0; outputs])), transposed: false })
    }
}

fn masked(
    loader: &mut Loader<'_>,
    config: &Value,
    tensors: &Tensors,
    model: &dyn Model,
) -> Result<Option<MaskedHead>> {
    let Some(layout) = model.info().head_layout.masked else { return Ok(None) };
    let tied = match (tied_of(config["model_type"].as_str().unwrap_or_default()), config.as_object()) {
        (Some(tied), Some(config)) => tied.is_set(config)?,
        _ => false,
    };
    let (d, vocab) = (model.info().width, model.info().vocab);
    let dense = loader.linear(layout.dense, d, d, true)?;
    let norm = loader.layer_norm(layout.norm.0, d, layout.norm.1)?;
    let (weight, kind) = match loader.is_own(layout.decoder, tied) {
        true => (loader.own_output(layout.decoder, vocab, d)?, SiteKind::Head),
        false => {
            let kind = loader.site_at(layout.table).map_or(SiteKind::Head, SiteKind::TiedHead);
            (loader.matrix(layout.table, vocab, d)?, kind)
        }
    };
    let own = format!("{}.bias", layout.decoder);
    let bias = if tied && !tensors.contains(&own) { layout.bias } else { &own };
    let bias = Some(loader.vector(bias, vocab)?);
    let site = loader.site(layout.decoder, kind, d, vocab, true);
    let linear = Linear { site, weight, bias, transposed: false };
    let decoder = LmHead { linear, softcap: None, scale: 1.0 };
    Ok(Some(MaskedHead { dense, activation: layout.activation, norm, decoder }))
}

/// A model under another head.
struct WithHead {
    model: Box<dyn Model>,
    head: Head,
    info: ModelInfo,
}

impl Model for WithHead {
    fn hidden<'m>(&'m self, tape: &mut Tape<'m>, batch: &TokenBatch<'m>) -> Var<'m> {
        self.model.hidden(tape, batch)
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn has_dropout(&self) -> bool {
        self.model.has_dropout()
    }
}
