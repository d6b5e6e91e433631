//! The configuration of a LoRA adapter, in PEFT's words (`adapter_config.json`).

use lowrank_files::Range;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::error::Error;

/// Which modules get an adapter: PEFT's `target_modules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// `all-linear`, or a regular expression that the whole module path must match.
    Pattern(String),
    /// Module names: a path matches that equals one of them or ends with `.name`.
    Names(Vec<String>),
}

impl Targets {
    /// From the command line: `all-linear`, a comma-separated list of names, or a regular expression
    /// (anything with a character that no module name has).
    pub fn parse(text: &str) -> Self {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.-, ".contains(c);
        if text == "all-linear" || !text.chars().all(plain) {
            return Self::Pattern(text.to_owned());
        }
        Self::Names(text.split(',').map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect())
    }
}

impl std::fmt::Display for Targets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pattern(pattern) => write!(f, "{pattern:?}"),
            Self::Names(names) => write!(f, "{names:?}"),
        }
    }
}

/// One number or several, as PEFT accepts for `layers_to_transform`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// All of them.
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// The fields of [`LoraConfig`], without `other`: three that every method has, then those of LoRA.
pub(crate) const FIELDS: [&str; 17] = [
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "bias",
    "fan_in_fan_out",
    "modules_to_save",
    "init_lora_weights",
];

/// Fields of LoRA that a method without rank does not have.
pub(crate) const RANK_FIELDS: [&str; 7] =
    ["r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"];

/// Fields that are not optional and may be null all the same.
const NULL_IS_DEFAULT: [&str; 10] = [
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
];

/// Alpha in a file: any finite number that other programs may have written.
const ANY_ALPHA: Range = Range::Real(-1e9, 1e9);

/// The ranges of fields in `other` that sizes and scales follow from.
const OTHER_RANGES: [(&str, Range); 9] = [
    ("alpha", ANY_ALPHA),
    ("init_r", Range::RANK),
    ("module_dropout", Range::DROPOUT),
    ("num_layers", Range::Whole(1, 65_536)),
    ("num_virtual_tokens", Range::Whole(1, 65_536)),
    ("rank_dropout", Range::DROPOUT),
    ("target_r", Range::RANK),
    ("token_dim", Range::Whole(1, 1 << 20)),
    ("vera_dropout", Range::DROPOUT),
];

/// PEFT's `LoraConfig` and, in `other`, the fields of the other methods and those that Lowrank does not act on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct LoraConfig {
    /// The method: `LORA` and the like.
    pub peft_type: String,
    /// `CAUSAL_LM` and the like.
    #[serde(default)]
    pub task_type: Option<String>,
    /// If the base model came from.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// Rank `r`.
    #[serde(default = "default_r")]
    pub r: usize,
    /// `alpha`: the adapter's output is scaled by `alpha / r`.
    #[serde(default = "default_alpha")]
    pub lora_alpha: f64,
    /// Dropout on the adapter's input, a probability.
    #[serde(default)]
    #[serde(serialize_with = "shortest")]
    pub lora_dropout: f32,
    /// Modules with an adapter.
    pub target_modules: Option<Targets>,
    /// Modules without, although they match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<Targets>,
    /// Scale by `alpha / sqrt(r)` instead (Kalajdzievski 2023).
    #[serde(default)]
    pub use_rslora: bool,
    /// Ranks that differ, by module name or regular expression.
    #[serde(default)]
    pub rank_pattern: Map<String, Value>,
    /// Alphas that differ, likewise.
    #[serde(default)]
    pub alpha_pattern: Map<String, Value>,
    /// Only these layers.
    #[serde(default)]
    pub layers_to_transform: Option<OneOrMany<usize>>,
    /// Name of the list of layers, where it is not the usual one.
    #[serde(default)]
    pub layers_pattern: Option<OneOrMany<String>>,
    /// Which biases are trained with the adapter: `none`, `all`, or those of its layers (`lora_only`).
    #[serde(default = "none")]
    pub bias: String,
    /// Whether the weights of the targets are stored transposed (GPT-2). Follows from the base model here.
    #[serde(default)]
    pub fan_in_fan_out: bool,
    /// Modules trained whole.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// PEFT's note that the adapter is not to be trained on.
    #[serde(default)]
    pub inference_mode: bool,
    /// How A and B start: true for A random and B zero.
    #[serde(default = "yes")]
    pub init_lora_weights: Value,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Serialize for LoraConfig {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, to)
    }
}

impl<'de> Deserialize<'de> for LoraConfig {
    /// A field that is null has its default.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut fields: Map<String, Value> = Map::deserialize(from)?;
        fields.retain(|name, value| !(value.is_null() && NULL_IS_DEFAULT.contains(&name.as_str())));
        Self::deserialize(Value::Object(fields)).map_err(D::Error::custom)
    }
}

fn none() -> String {
    "none".to_owned()
}

fn default_r() -> usize {
    8
}

fn default_alpha() -> f64 {
    8.0
}

fn yes() -> Value {
    Value::Bool(true)
}

/// A number of single precision as it was written, such as 0.1.
fn shortest<S: serde::Serializer>(value: &f32, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_f64(lowrank_files::round_f32(f64::from(*value)))
}

impl Default for LoraConfig {
    /// PEFT's defaults: r 8, alpha 8, no dropout.
    fn default() -> Self {
        Self {
            peft_type: "LORA".to_owned(),
            task_type: None,
            base_model_name_or_path: None,
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: None,
            exclude_modules: None,
            use_rslora: false,
            rank_pattern: Map::new(),
            alpha_pattern: Map::new(),
            layers_to_transform: None,
            layers_pattern: None,
            bias: none(),
            fan_in_fan_out: false,
            modules_to_save: None,
            inference_mode: true,
            init_lora_weights: yes(),
            other: Map::new(),
        }
    }
}

impl LoraConfig {
    /// Checks the numbers that sizes and scales follow from, before anything is made of them.
    pub(crate) fn check_ranges(&self) -> Result<(), Error> {
        let refuse = |field: &str, what: String| Err(Error::Config(format!("{field} {what}")));
        if !Range::RANK.contains_whole(self.r as i128) {
            return refuse("r", Range::RANK.refusal(self.r));
        }
        if let Err(what) = ANY_ALPHA.check(self.lora_alpha) {
            return refuse("lora_alpha", what);
        }
        for (field, map, range) in [
            ("rank_pattern", &self.rank_pattern, Range::RANK),
            ("alpha_pattern", &self.alpha_pattern, ANY_ALPHA),
        ] {
            for value in map.values().filter_map(Value::as_f64) {
                if let Err(what) = range.check(value) {
                    return refuse(field, what);
                }
            }
        }
        for (field, range) in OTHER_RANGES {
            if let Some(Err(what)) = self.other.get(field).and_then(Value::as_f64).map(|x| range.check(x)) {
                return refuse(field, what);
            }
        }
        Ok(())
    }

    /// Checks the fields of LoRA.
    pub(crate) fn check_lora(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Config(what));
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return wrong(format!(
                "lora_dropout is {}; it must be at least 0 and less than 1",
                self.lora_dropout
            ));
        }
        Ok(())
    }

    /// Sets a field of its method where it was not said.
    pub(crate) fn default_to(&mut self, field: &str, value: impl Into<Value>) {
        self.other.entry(field).or_insert_with(|| value.into());
    }

    /// The fields that a method adds, from `other`.
    pub(crate) fn parse_extra<T: serde::de::DeserializeOwned>(&self) -> Result<T, Error> {
        // PEFT writes null for what was not said.
        let said = self.other.iter().filter(|(_, value)| !value.is_null());
        let said: Map<String, Value> = said.map(|(key, value)| (key.clone(), value.clone())).collect();
        // The error names the field.
        serde_path_to_error::deserialize(Value::Object(said)).map_err(|e| Error::Config(e.to_string()))
    }

    /// Whether one of the other fields is there and is not null, false or empty.
    pub(crate) fn is_set(&self, field: &str) -> bool {
        match self.other.get(field) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(_) => true,
        }
    }

    /// The factor of the adapter's output: `alpha / r`, or `alpha / sqrt(r)` with `use_rslora`.
    pub fn scaling(&self, r: usize, alpha: f64) -> f32 {
        let r = r as f64;
        (if self.use_rslora { alpha / r.sqrt() } else { alpha / r }) as f32
    }

    /// Whether the module at `path` is trained whole: it, or one that holds it, ends with a name of
    /// `modules_to_save` (`peft/utils/other.py`: `_set_trainable`).
    pub fn saves(&self, path: &str) -> bool {
        self.modules_to_save.iter().flatten().any(|name| is_part_of(name, path))
    }
}

/// Whether the module at `path`, or one that holds it, ends with `name`.
pub(crate) fn is_part_of(name: &str, path: &str) -> bool {
    let ends = path.match_indices('.').map(|(at, _)| at).chain([path.len()]);
    !name.is_empty() && ends.into_iter().any(|end| path[..end].ends_with(name))
}
