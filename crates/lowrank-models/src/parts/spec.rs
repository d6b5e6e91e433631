//! A decoder's [`Spec`] from its `config.json`: Llama's, which a family then changes.

use serde::Deserialize;
use serde_json::Value;

use super::activation::activation;
use super::decoder::{LayerSpec, Mlp, Names, NormKind, Norms, Qkv, Spec};
use super::fields;
use super::rope::{self, Beside, RopeParameters, RopeTable};
use crate::Result;

/// The fields of `config.json` that most families have.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Fields {
    vocab_size: usize,
    hidden_size: usize,
    #[serde(alias = "ffn_dim")]
    intermediate_size: usize,
    pub num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    #[serde(alias = "activation_function")]
    hidden_act: String,
    tie_word_embeddings: bool,
    pub sliding_window: Option<usize>,
    pub layer_types: Option<Vec<String>>,
}

/// How the rope of a family is read.
#[derive(Clone, Copy)]
pub(crate) struct RopeKind {
    /// The base where none is given.
    pub theta: f64,
    /// The share of a head that is rotated where none is given; `None`: always all of it.
    pub partial: Option<f64>,
    /// Whether the two values of a pair are neighbours.
    pub interleaved: bool,
}

impl RopeKind {
    pub const LLAMA: Self = Self { theta: 10_000.0, partial: None, interleaved: false };

    /// The table of `parameters`.
    ///
    /// # Errors
    /// Where no such rope can be computed.
    pub fn table(&self, fields: &Fields, parameters: &RopeParameters) -> Result<RopeTable> {
        let (head_dim, length) = (fields.head_dim(), fields.max_position_embeddings);
        let mut table = match self.partial {
            None => RopeTable::whole(head_dim, length, parameters)?,
            Some(default) => {
                let share = parameters.partial.unwrap_or(default);
                let rotated = (head_dim as f64 * share) as usize;
                if !(share > 0.0 && share <= 1.0) || rotated == 0 || !rotated.is_multiple_of(2) {
                    return Err(fields::wrong(format!(
                        "partial_rotary_factor {share} rotates {rotated} numbers of a head of {head_dim}: an even number \
                         from 2 is needed"
                    )));
                }
                RopeTable::of_part(rotated, head_dim, length, parameters)?
            }
        };
        table.interleaved = self.interleaved;
        Ok(table)
    }

    /// The one rope of a model.
    ///
    /// # Errors
    /// Where a field is wrong.
    pub fn read(&self, config: &Value, fields: &Fields) -> Result<RopeTable> {
        let config = fields::object(config);
        rope::check_flat(config)?;
        self.table(fields, &self.parameters(config)?)
    }

    /// The parameters of the one rope of a model.
    ///
    /// # Errors
    /// Where a field is wrong.
    pub fn parameters(&self, config: &serde_json::Map<String, Value>) -> Result<RopeParameters> {
        let (at, section) = rope::flat_section(config)?;
        let mut beside = Beside { default_theta: self.theta, ..Beside::of(config) };
        // GPT-NeoX's own words.
        beside.theta = beside.theta.or(config.get("rotary_emb_base"));
        beside.partial = beside.partial.or(config.get("rotary_pct")).filter(|share| !share.is_null());
        RopeParameters::complete(at, &section, &beside)
    }
}

impl Fields {
    /// The fields of a configuration.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn read(config: &Value) -> Result<Self> {
        let read: Self = fields::read(config)?;
        if read.head_dim.is_none() {
            fields::check_width(read.hidden_size, read.num_attention_heads)?;
        }
        fields::check_heads(read.num_attention_heads, read.kv_heads(), read.head_dim())?;
        Ok(read)
    }

    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// For each layer whether it sees a window only: by `layer_types`, else as `otherwise` says.
    pub fn sliding(&self, otherwise: impl Fn(usize) -> bool) -> Vec<bool> {
        fields::sliding_layers(self.layer_types.as_deref(), self.num_hidden_layers, otherwise)
    }

    /// Llama's model of these sizes, without ropes; `eps` is its norms'.
    ///
    /// # Errors
    /// Where a field is wrong.
    pub fn spec(&self, config: &Value, eps: f64) -> Result<Spec> {
        let field = match config.get("hidden_act") {
            Some(_) => "hidden_act",
            None => "activation_function",
        };
        let head_dim = self.head_dim();
        Ok(Spec {
            names: Names::LLAMA,
            vocab: self.vocab_size,
            width: self.hidden_size,
            inner: self.intermediate_size,
            heads: self.num_attention_heads,
            kv_heads: self.kv_heads(),
            head_dim,
            max_positions: self.max_position_embeddings,
            norm: NormKind::Rms,
            eps: eps as f32,
            norms: Norms::Before("input_layernorm", "post_attention_layernorm"),
            last_norm: true,
            qkv: Qkv::Apart,
            qkv_bias: false,
            o_bias: false,
            qk_norm: None,
            mlp: Mlp::Gated,
            mlp_bias: false,
            activation: activation(field, &self.hidden_act)?,
            scale: 1.0 / (head_dim as f32).sqrt(),
            query_scale: None,
            embed_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            learned_positions: None,
            embed_width: None,
            layers: vec![LayerSpec { window: None, rope: None }; self.num_hidden_layers],
            ropes: Vec::new(),
            tied: self.tie_word_embeddings,
            head_bias: false,
            default_targets: &["q_proj", "v_proj"],
        })
    }
}

impl Spec {
    /// Gives all layers the one rope.
    pub fn rotate(&mut self, rope: RopeTable) {
        self.ropes = vec![rope];
        self.layers.iter_mut().for_each(|layer| layer.rope = Some(0));
    }

    /// Gives layers their windows.
    ///
    /// # Errors
    /// Where layers have one but the configuration says none.
    pub fn slide(&mut self, window: Option<usize>, sliding: &[bool]) -> Result<()> {
        let windows = fields::windows(window, sliding)?;
        self.layers.iter_mut().zip(windows).for_each(|(layer, window)| layer.window = window);
        Ok(())
    }
}

/// A number of the configuration.
///
/// # Errors
/// Where it is missing or something else.
pub(crate) fn number(config: &Value, field: &str) -> Result<f64> {
    let value = config.get(field).unwrap_or(&Value::Null);
    value
        .as_f64()
        .filter(|number| number.is_finite())
        .ok_or_else(|| fields::wrong(format!("{field} is {value}; a number is needed")))
}

/// Refuses a switch that is on.
///
/// # Errors
/// Where it is.
pub(crate) fn refuse(config: &Value, field: &str, what: &str) -> Result<()> {
    match fields::flag(config, field)? {
        true => Err(fields::wrong(format!("{field} is true: {what} are not supported"))),
        false => Ok(()),
    }
}
