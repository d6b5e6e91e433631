//! `--method`: what is trained, by the names that the LoRA paper's tables use. PEFT's methods go by PEFT's names.

use lowrank_adapters::{LoraConfig, OneOrMany, Targets, layer_count};
use lowrank_engine::SiteKind;
use lowrank_models::Model;

use crate::{Error, Result};

/// A method by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// One of PEFT's, by its `peft_type`.
    Peft(String),
    /// Every weight.
    Full,
    /// Every weight of so many last blocks (FT-Top2), and a new head.
    Top(usize),
    /// Every bias.
    BitFit,
    /// The head alone.
    LinearProbe,
    /// Learned embeddings before every text.
    Prompt,
    /// Learned keys and values before every text, in every layer.
    Prefix,
    /// Adapter layers of a form, not in so many of the lowest blocks.
    AdapterLayers(&'static str, usize),
}

/// Blocks without adapter layer in AdapterDrop, where nobody says how many: the paper's five.
const DROPPED: usize = 5;

const PEFT: [&str; 6] = ["lora", "ia3", "vera", "loha", "lokr", "adalora"];

impl Method {
    /// The method called `name`.
    pub fn parse(name: &str) -> Result<Self> {
        let lower = name.to_lowercase();
        if PEFT.contains(&lower.as_str()) {
            return Ok(Self::Peft(lower.to_uppercase()));
        }
        let top = lower.strip_prefix("top").and_then(|n| n.parse().ok()).filter(|n| *n > 0);
        match (lower.as_str(), top) {
            (_, Some(blocks)) => Ok(Self::Top(blocks)),
            ("full", _) => Ok(Self::Full),
            ("bitfit", _) => Ok(Self::BitFit),
            ("linear-probe", _) => Ok(Self::LinearProbe),
            ("prompt", _) => Ok(Self::Prompt),
            ("prefix", _) => Ok(Self::Prefix),
            ("adapter-h", _) => Ok(Self::AdapterLayers("houlsby", 0)),
            ("adapter-p", _) => Ok(Self::AdapterLayers("pfeiffer", 0)),
            ("adapter-l", _) => Ok(Self::AdapterLayers("lin", 0)),
            ("adapter-d", _) => Ok(Self::AdapterLayers("pfeiffer", DROPPED)),
            _ => Err(Error::Usage(format!(
                "--method {name:?} is not known; known are {}, full, top2 (or any number), bitfit, linear-probe, \
                 adapter-h, adapter-p, adapter-l, adapter-d, prompt and prefix",
                PEFT.join(", ")
            ))),
        }
    }

    /// The method of a `peft_type`.
    pub fn of_peft_type(name: String) -> Self {
        match name.as_str() {
            "PROMPT_TUNING" => Self::Prompt,
            "PREFIX_TUNING" => Self::Prefix,
            _ => Self::Peft(name),
        }
    }

    /// Whether every text begins with virtual tokens, so that no module is adapted.
    pub fn has_virtual_tokens(&self) -> bool {
        matches!(self, Self::Prompt | Self::Prefix)
    }

    /// Its `peft_type`.
    pub fn peft_type(&self) -> &str {
        match self {
            Self::Peft(name) => name,
            Self::Full | Self::Top(_) | Self::LinearProbe => "FULL",
            Self::BitFit => "BITFIT",
            Self::AdapterLayers(..) => "BOTTLENECK",
            Self::Prompt => "PROMPT_TUNING",
            Self::Prefix => "PREFIX_TUNING",
        }
    }

    /// Says in `config` what of `model` it trains.
    pub fn choose(&self, config: &mut LoraConfig, model: &dyn Model) -> Result<()> {
        let path = |site: usize| model.sites()[site].path.clone();
        let head: Vec<String> = model.head().layers().iter().map(|layer| path(layer.site.0)).collect();
        match self {
            Self::Top(blocks) => {
                let all = layer_count(model.sites());
                if *blocks > all {
                    return Err(Error::Usage(format!("--method top{blocks}: the model has {all} blocks")));
                }
                config.layers_to_transform = Some(OneOrMany::Many((all - blocks..all).collect()));
            }
            Self::LinearProbe if head.is_empty() => {
                let what = "--method linear-probe trains the head, and this task has none";
                return Err(Error::Usage(what.to_owned()));
            }
            Self::LinearProbe => config.target_modules = Some(Targets::Names(head)),
            Self::Full | Self::BitFit => {
                // A model under another head keeps the one for language, which nothing reads then.
                let idle = |kind| matches!(kind, SiteKind::Head | SiteKind::TiedHead(_));
                let idle = model.sites().iter().filter(|s| idle(s.kind) && !head.contains(&s.path));
                let idle: Vec<String> = idle.map(|s| s.path.clone()).collect();
                if config.exclude_modules.is_none() && !idle.is_empty() {
                    config.exclude_modules = Some(Targets::Names(idle));
                }
            }
            Self::AdapterLayers(form, dropped) => {
                config.other.insert("form".to_owned(), (*form).into());
                if *dropped > 0 {
                    config.other.entry("drop_layers").or_insert_with(|| (*dropped).into());
                }
            }
            Self::Prompt | Self::Prefix if model.lm_head().is_none() => {
                let what = "--method prompt and prefix are for language models (--task lm)";
                return Err(Error::Usage(what.to_owned()));
            }
            Self::Prefix => {
                // PEFT's words for the width of a layer's keys.
                let widths = model.kv_widths();
                let fields = [
                    ("token_dim", widths.first().copied().unwrap_or(0)),
                    ("num_layers", widths.len()),
                    ("num_attention_heads", model.kv_heads()),
                ];
                config.other.extend(fields.map(|(field, value)| (field.to_owned(), value.into())));
            }
            Self::Prompt | Self::Peft(_) => {}
        }
        Ok(())
    }
}
