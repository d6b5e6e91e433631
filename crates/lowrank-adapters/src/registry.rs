//! Finds the method of a configuration or of a name.

use lowrank_engine::Site;
use serde_json::Value;

use crate::beside::bias::Biases;
use crate::config::{self, LoraConfig};
use crate::contract::{BaseInfo, Method, Target};
use crate::error::Error;
use crate::methods::METHODS;
use crate::target;

/// The method that `config` asks for.
///
/// # Errors
/// If `peft_type` is unknown (lists the known).
pub fn method(config: &LoraConfig) -> Result<&'static dyn Method, Error> {
    let of_type = |m: &&&dyn Method| m.peft_type() == config.peft_type;
    METHODS.iter().filter(of_type).find(|m| m.matches(config)).copied().ok_or_else(|| {
        let mut known: Vec<&str> = METHODS.iter().map(|m| m.peft_type()).collect();
        known.dedup();
        Error::Config(format!("peft_type is {:?}; supported are {}", config.peft_type, known.join(", ")))
    })
}

/// A method as a user names it.
#[derive(Clone, Copy)]
pub struct NamedMethod {
    /// The method.
    pub method: &'static dyn Method,
    name: &'static str,
    number: usize,
}

impl NamedMethod {
    /// The method called `name`, in any case.
    ///
    /// # Errors
    /// If there is none (lists the known).
    pub fn parse(name: &str) -> Result<Self, Error> {
        let lower = name.to_lowercase();
        let number = |pattern: &str| match pattern.strip_suffix('N') {
            Some(stem) => lower.strip_prefix(stem)?.parse().ok().filter(|n| *n > 0),
            None => (pattern == lower).then_some(0),
        };
        let named = |method: &&'static dyn Method| {
            method
                .names()
                .iter()
                .find_map(|(name, _)| Some(Self { method: *method, name, number: number(name)? }))
        };
        METHODS
            .iter()
            .find_map(named)
            .ok_or_else(|| Error::Config(lowrank_files::unknown("method", name, Self::names())))
    }

    /// The names of all methods; an `N` at the end of one stands for a number.
    pub fn names() -> impl Iterator<Item = &'static str> {
        METHODS.iter().flat_map(|m| m.names().iter().map(|(name, _)| *name))
    }

    /// The same as a line for help texts: `lora, ..., topN (the last N blocks), ...`.
    pub fn list() -> String {
        let name = |(name, note): &(&str, &str)| match note.is_empty() {
            true => (*name).to_owned(),
            false => format!("{name} ({note})"),
        };
        METHODS.iter().flat_map(|m| m.names().iter().map(name)).collect::<Vec<_>>().join(", ")
    }

    /// The `peft_type` of each method that PEFT has: `LORA, IA3, ...`.
    pub fn peft_types() -> String {
        let mut types: Vec<&str> = METHODS.iter().filter(|m| m.in_peft()).map(|m| m.peft_type()).collect();
        types.dedup();
        types.join(", ")
    }

    /// The method of a `peft_type`, in any case.
    ///
    /// # Errors
    /// If there is none (lists the known).
    pub fn of_peft_type(peft_type: &str) -> Result<Self, Error> {
        let config = LoraConfig { peft_type: peft_type.to_uppercase(), ..LoraConfig::default() };
        Ok(Self { method: method(&config)?, name: "", number: 0 })
    }

    /// Sets the fields of `config` that follow from the name and from the base model.
    ///
    /// # Errors
    /// If the method cannot train this model.
    pub fn select(&self, config: &mut LoraConfig, base: &BaseInfo) -> Result<(), Error> {
        self.method.select(self.name, self.number, config, base)
    }
}

/// The sites that `config` targets, each with its rank and alpha.
///
/// # Errors
/// If a pattern is not a valid regular expression, a rank is not a positive integer, or nothing matches (lists what
/// exists).
pub fn targets(config: &LoraConfig, sites: &[Site]) -> Result<Vec<Target>, Error> {
    target::targets(method(config)?, config, sites)
}

/// Switches of PEFT that change what the adapter computes and that Lowrank does not have.
const UNSUPPORTED: [&str; 9] = [
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "alora_invocation_tokens",
    "layer_replication",
    "target_parameters",
    "kasa_config",
    "arrow_config",
    "monteclora_config",
];

/// Fields of PEFT's configurations that a new adapter cannot set.
const NOT_SUPPORTED: [&str; 21] = [
    "use_qalora",
    "qalora_group_size",
    "use_bdlora",
    "lora_bias",
    "alora_invocation_tokens",
    "layer_replication",
    "target_parameters",
    "megatron_config",
    "megatron_core",
    "lora_ga_config",
    "velora_config",
    "monteclora_config",
    "arrow_config",
    "kasa_config",
    "runtime_config",
    "init_ia3_weights",
    "use_effective_conv2d",
    "prompt_tuning_init_text",
    "tokenizer_name_or_path",
    "tokenizer_kwargs",
    "encoder_hidden_size",
];

/// Fields that follow from the base model and the run.
const DERIVED: [&str; 7] = [
    "inference_mode",
    "auto_mapping",
    "peft_version",
    "revision",
    "token_dim",
    "num_layers",
    "num_attention_heads",
];

/// Settings that `init_lora_weights` turns on, and their fields.
const STARTS: [(&str, &str, &[&str]); 3] = [
    ("eva_config", "eva", &["rho", "tau", "use_label_mask", "whiten", "adjust_scaling_factors"]),
    ("corda_config", "corda", &["corda_method"]),
    ("loftq_config", "loftq", &["loftq_bits", "loftq_iter"]),
];

impl LoraConfig {
    /// Whether a field of this name stands outside of `other`.
    pub fn has_field(name: &str) -> bool {
        config::FIELDS.contains(&name)
    }

    /// Checks the fields that a user set for a new adapter: one that its method does not act on would be lost.
    ///
    /// # Errors
    /// Names the field, and the nearest that there is.
    pub fn check_fields<'a>(&self, set: impl IntoIterator<Item = &'a str>) -> Result<(), Error> {
        let (method, kind) = (method(self)?, &self.peft_type);
        for field in set {
            let known = match config::FIELDS.contains(&field) {
                true => !method.unused_fields().contains(&field),
                false => method.fields().contains(&field),
            };
            if known {
                continue;
            }
            let of: Vec<&str> =
                METHODS.iter().filter(|m| m.fields().contains(&field)).map(|m| m.peft_type()).collect();
            let what = match &of[..] {
                _ if config::FIELDS.contains(&field) => {
                    format!("`{field}` does nothing for {kind}: leave it out")
                }
                [first, ..] => format!("`{field}` is a field of {first}, not of {kind}"),
                [] if NOT_SUPPORTED.contains(&field) => format!("`{field}` is not supported"),
                [] if DERIVED.contains(&field) => {
                    format!("`{field}` follows from the base model and the run: leave it out")
                }
                [] => {
                    let fields = config::FIELDS.iter().filter(|name| !method.unused_fields().contains(name));
                    let nearest = lowrank_files::nearest(field, fields.chain(method.fields()).copied());
                    format!("{kind} has no field `{field}`{nearest}")
                }
            };
            return Err(Error::Config(what));
        }
        for (field, word, names) in STARTS {
            let Some(value) = self.other.get(field).filter(|value| !value.is_null()) else { continue };
            if !self.init_lora_weights.as_str().is_some_and(|set| set.eq_ignore_ascii_case(word)) {
                let what = format!("`{field}` is for `init_lora_weights` {word}");
                return Err(Error::Config(what));
            }
            let unknown =
                value.as_object().and_then(|map| map.keys().find(|key| !names.contains(&key.as_str())));
            if let Some(key) = unknown {
                return Err(Error::Config(format!(
                    "{field}: {}",
                    lowrank_files::unknown("field", key, names.iter().copied())
                )));
            }
        }
        Ok(())
    }

    /// Checks that every value is valid and supported.
    ///
    /// # Errors
    /// Names the field and what it may be.
    pub fn check(&self) -> Result<(), Error> {
        let method = method(self)?;
        self.check_ranges()?;
        method.check(self)?;
        Biases::of(self, method.has_bias_field())?;
        for field in UNSUPPORTED {
            if self.is_set(field) {
                let what = format!("{field} is {}, which is not supported", self.other[field]);
                return Err(Error::Config(what));
            }
        }
        Ok(())
    }

    /// Fields that are set and that neither PEFT 0.21 nor Lowrank knows: those of a newer PEFT.
    pub(crate) fn unknown_fields(&self) -> Vec<&str> {
        let fields = || METHODS.iter().flat_map(|method| method.fields());
        let known = |field: &str| {
            [&NOT_SUPPORTED[..], &DERIVED].concat().contains(&field) || fields().any(|known| *known == field)
        };
        let all = self.other.keys().map(String::as_str);
        let mut unknown: Vec<&str> = all.filter(|field| !known(field) && self.is_set(field)).collect();
        unknown.sort_unstable();
        unknown
    }

    /// How many virtual tokens every text begins with: prompt and prefix tuning.
    ///
    /// # Errors
    /// If there is no such method or a field of it is wrong.
    pub fn virtual_tokens(&self) -> Result<usize, Error> {
        method(self)?.virtual_tokens(self)
    }

    /// Sets the fields of its method that are not set, for a run of `total_steps` steps on `sites`.
    ///
    /// # Errors
    /// If there is no such method.
    pub fn configure(&mut self, sites: &[Site], total_steps: u64) -> Result<(), Error> {
        method(self)?.configure(self, sites, total_steps);
        Ok(())
    }

    /// `adapter_config.json`: the fields that its method has.
    pub(crate) fn to_json(&self) -> Value {
        let mut all = serde_json::to_value(self).expect("a configuration is plain data");
        if let (Ok(method), Some(fields)) = (method(self), all.as_object_mut()) {
            fields.retain(|key, _| !method.foreign_fields().contains(&key.as_str()));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of PEFT 0.21's configurations of the methods here, beside those of [`LoraConfig`].
    const PEFT: &str = "alora_invocation_tokens alpha arrow_config auto_mapping beta1 beta2 corda_config d_initial \
        decompose_both decompose_factor deltaT encoder_hidden_size ensure_weight_tying eva_config feedforward_modules \
        init_ia3_weights init_r init_weights kasa_config layer_replication loftq_config lora_bias lora_ga_config \
        megatron_config megatron_core module_dropout monteclora_config num_attention_heads num_layers \
        num_transformer_submodules num_virtual_tokens orth_reg_weight peft_version prefix_projection \
        projection_prng_key prompt_tuning_init prompt_tuning_init_text qalora_group_size rank_dropout \
        rank_dropout_scale revision runtime_config save_projection target_parameters target_r tfinal tinit token_dim \
        tokenizer_kwargs tokenizer_name_or_path total_step trainable_token_indices use_bdlora use_dora \
        use_effective_conv2d use_qalora velora_config vera_dropout";

    #[test]
    fn fields_of_a_newer_peft_are_told_from_todays() {
        let mut config = LoraConfig::default();
        for field in PEFT.split_whitespace() {
            config.default_to(field, 1);
        }
        assert_eq!(config.unknown_fields(), Vec::<&str>::new());
        config.default_to("use_foresight", true);
        config.default_to("use_hindsight", false);
        assert_eq!(config.unknown_fields(), ["use_foresight"]);
    }
}
