//! The options of a training run, in PEFT's and Trainer's words.

use std::path::{Path, PathBuf};

use lowrank_adapters::{AdapterSet, BaseInfo, CLASSIFIERS, LoraConfig, NamedMethod, OneOrMany, Targets};
use lowrank_engine::Device;
use lowrank_files::{LoadOptions, Precision, Quantize};
use lowrank_models::Model;
use lowrank_models::heads::Reads;
use lowrank_train::{DataFormat, DataOptions, LrScheduler, Task, Template};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// How what the backward pass needs is kept (`--saved-activations`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SavedActivations {
    /// As it was computed.
    F32,
    /// In integers of 16 bits with a scale for each 128: half the memory, gradients within a few
    /// ten-thousandths of exact ones, losses exact.
    #[default]
    Int16,
}

impl std::str::FromStr for SavedActivations {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "f32" => Ok(Self::F32),
            "int16" => Ok(Self::Int16),
            _ => Err(format!("{name:?} is not known; known are f32 and int16")),
        }
    }
}

/// Everything that says how to train. Every field is also a flag of `lowrank train` (with dashes) and a
/// key of its TOML file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TrainOptions {
    pub model: String,
    pub data: PathBuf,
    pub out: PathBuf,
    pub eval_data: Option<PathBuf>,
    pub task: Task,
    /// Names of the classes, in the order of their scores; `None`: those of the data.
    pub labels: Option<Vec<String>>,
    pub quantize: Option<Quantize>,
    pub precision: Precision,
    pub stream_base: bool,

    pub r: usize,
    pub lora_alpha: f64,
    pub lora_dropout: f32,
    /// `None`: what the model says ([`lowrank_models::Model::default_targets`]).
    pub target_modules: Option<Targets>,
    pub exclude_modules: Option<Targets>,
    pub layers_to_transform: Option<OneOrMany<usize>>,
    pub rank_pattern: Map<String, Value>,
    pub alpha_pattern: Map<String, Value>,
    pub use_rslora: bool,
    /// What is trained, by name: lora, full, top2, bitfit and others; in place of `peft_type`.
    pub method: Option<String>,
    /// PEFT's name of the method: LORA, IA3, VERA, LOHA, LOKR, ADALORA.
    pub peft_type: String,
    pub use_dora: bool,
    /// true, false, or a word of PEFT's.
    pub init_lora_weights: Value,
    /// Other fields of `adapter_config.json`, such as `target_r` of AdaLoRA.
    pub peft_options: Map<String, Value>,
    /// LoRA+: B learns so many times as fast as A.
    pub loraplus_lr_ratio: Option<f64>,
    /// LoRA-FA: A is not trained.
    pub lora_fa: bool,
    /// Layers trained whole, beside those that the task's head needs.
    /// Biases trained beside the adapter: none, all, or those of its layers (`lora_only`).
    pub bias: String,
    pub modules_to_save: Vec<String>,
    /// Parts of fused layers that get an adapter, of rank `r` each (queries and values of `c_attn`: true, false, true).
    pub enable_lora: Vec<bool>,
    pub init_adapter: Option<PathBuf>,

    pub learning_rate: f64,
    pub lr_scheduler: LrScheduler,
    pub warmup_steps: u64,
    /// Share of all steps until the peak, where `warmup_steps` is 0.
    pub warmup_ratio: f64,
    pub weight_decay: f64,
    pub max_grad_norm: f64,
    pub batch_size: usize,
    pub gradient_accumulation_steps: usize,
    pub epochs: f64,
    pub max_steps: Option<u64>,
    pub max_seq_len: usize,
    pub seed: u64,
    pub no_shuffle: bool,
    pub no_share_prefix: bool,
    pub prompt_group: usize,
    pub checkpoint_activations: bool,
    pub saved_activations: SavedActivations,

    pub data_format: Option<DataFormat>,
    pub prompt_column: Option<String>,
    pub completion_column: Option<String>,
    pub text_column: Option<String>,
    pub pair_column: Option<String>,
    pub label_column: Option<String>,
    pub prompt_template: Option<String>,
    pub skip_bad_lines: bool,

    pub eval_steps: u64,
    pub save_steps: u64,
    pub resume: bool,
    pub force: bool,
    pub threads: Option<usize>,
    pub log_json: Option<PathBuf>,
    pub tensorboard: Option<PathBuf>,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            model: String::new(),
            data: PathBuf::new(),
            out: PathBuf::new(),
            eval_data: None,
            task: Task::Lm,
            labels: None,
            quantize: None,
            precision: Precision::F32,
            stream_base: false,
            r: 8,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            target_modules: None,
            exclude_modules: None,
            layers_to_transform: None,
            rank_pattern: Map::new(),
            alpha_pattern: Map::new(),
            use_rslora: false,
            method: None,
            peft_type: LoraConfig::default().peft_type,
            use_dora: false,
            init_lora_weights: Value::Bool(true),
            peft_options: Map::new(),
            loraplus_lr_ratio: None,
            lora_fa: false,
            bias: "none".into(),
            modules_to_save: Vec::new(),
            enable_lora: Vec::new(),
            init_adapter: None,
            learning_rate: 2e-4,
            lr_scheduler: LrScheduler::Linear,
            warmup_steps: 0,
            warmup_ratio: 0.0,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            batch_size: 8,
            gradient_accumulation_steps: 1,
            epochs: 3.0,
            max_steps: None,
            max_seq_len: 1024,
            seed: 42,
            no_shuffle: false,
            no_share_prefix: false,
            prompt_group: 4,
            checkpoint_activations: false,
            saved_activations: SavedActivations::Int16,
            data_format: None,
            prompt_column: None,
            completion_column: None,
            text_column: None,
            pair_column: None,
            label_column: None,
            prompt_template: None,
            skip_bad_lines: false,
            eval_steps: 0,
            save_steps: 500,
            resume: false,
            force: false,
            threads: None,
            log_json: None,
            tensorboard: None,
        }
    }
}

impl TrainOptions {
    /// From a table of keys, with dashes or underscores.
    ///
    /// # Errors
    /// Names the key that is unknown or has a wrong value.
    pub fn from_table(table: toml::Table) -> Result<Self> {
        let table: toml::Table =
            table.into_iter().map(|(key, value)| (key.replace('-', "_"), value)).collect();
        table.try_into().map_err(|e: toml::de::Error| Error::Usage(e.message().to_owned()))
    }

    /// Checks what no other part checks.
    ///
    /// # Errors
    /// Names the option and what it may be.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::Usage(what.to_owned()));
        for (value, flag) in
            [(&self.data, "data"), (&self.out, "out"), (&PathBuf::from(&self.model), "model")]
        {
            if value.as_os_str().is_empty() {
                return wrong(&format!(
                    "--{flag} is missing (give the flag, or the key in the --config file)"
                ));
            }
        }
        if !(self.learning_rate.is_finite() && self.learning_rate >= 0.0) {
            return wrong("--learning-rate must be a number from 0");
        }
        if !(self.epochs.is_finite() && self.epochs > 0.0) {
            return wrong("--epochs must be more than 0");
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return wrong("--weight-decay must be a number from 0");
        }
        if !(self.max_grad_norm.is_finite() && self.max_grad_norm >= 0.0) {
            return wrong("--max-grad-norm must be a number from 0 (0 does not clip)");
        }
        if self.loraplus_lr_ratio.is_some_and(|ratio| !(ratio.is_finite() && ratio > 0.0)) {
            return wrong("--loraplus-lr-ratio must be more than 0");
        }
        if !(0.0..=1.0).contains(&self.warmup_ratio) {
            return wrong("--warmup-ratio must be from 0 to 1");
        }
        self.method()?;
        if self.threads == Some(0) {
            return wrong("--threads must be at least 1");
        }
        Ok(())
    }

    /// How the base model is held in memory: what [`Session::open_as`](crate::Session::open_as) takes.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions {
            quantize: self.quantize,
            precision: self.precision,
            stream: self.stream_base,
            shapes_only: false,
        }
    }

    /// What is trained.
    pub(crate) fn method(&self) -> Result<NamedMethod> {
        let Some(name) = &self.method else { return Ok(NamedMethod::of_peft_type(&self.peft_type)?) };
        let named = NamedMethod::parse(name)?;
        let (peft_type, default) = (self.peft_type.to_uppercase(), LoraConfig::default().peft_type);
        if peft_type != default && peft_type != named.method.peft_type() {
            let what =
                format!("--method {name} and --peft-type {} are two methods: name one", self.peft_type);
            return Err(Error::Usage(what));
        }
        if self.target_modules.is_some() && !named.method.takes_target_modules() {
            let what = format!(
                "--method {name} chooses its modules itself: --target-modules is for LoRA and its kin"
            );
            return Err(Error::Usage(what));
        }
        Ok(named)
    }

    /// The adapter's configuration on `model`, for a run of `total_steps` steps.
    ///
    /// # Errors
    /// Where there is no such method.
    pub fn lora(&self, model: &dyn Model, total_steps: u64) -> Result<LoraConfig> {
        let named = self.method()?;
        let defaults = || Targets::Names(model.default_targets().iter().map(ToString::to_string).collect());
        // Parts of a fused layer are stored as one adapter of all their ranks; the scaling stays that of a part.
        let parts = self.enable_lora.iter().filter(|on| **on).count().max(1);
        let share = if self.use_rslora { (parts as f64).sqrt() } else { parts as f64 };
        let mut other = self.peft_options.clone();
        if !self.enable_lora.is_empty() {
            other.insert("enable_lora".to_owned(), self.enable_lora.clone().into());
        }
        let mut config = LoraConfig {
            task_type: self.task.peft_type().map(str::to_owned),
            base_model_name_or_path: Some(self.model.clone()),
            r: self.r * parts,
            lora_alpha: self.lora_alpha * share,
            lora_dropout: self.lora_dropout,
            target_modules: self.target_modules.as_ref().map(|targets| match targets {
                Targets::Pattern(text) => Targets::parse(text),
                names => names.clone(),
            }),
            exclude_modules: self.exclude_modules.clone(),
            layers_to_transform: self.layers_to_transform.clone(),
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
            use_rslora: self.use_rslora,
            bias: self.bias.clone(),
            peft_type: named.method.peft_type().to_owned(),
            init_lora_weights: match self.init_lora_weights.as_str() {
                Some("true") => Value::Bool(true),
                Some("false") => Value::Bool(false),
                _ => self.init_lora_weights.clone(),
            },
            other,
            ..LoraConfig::default()
        };
        if self.use_dora {
            config.other.insert("use_dora".into(), Value::Bool(true));
        }
        let mut whole = self.modules_to_save.clone();
        if matches!(config.task_type.as_deref(), Some("SEQ_CLS" | "TOKEN_CLS")) {
            // PEFT names both wherever it classifies.
            whole.extend(
                CLASSIFIERS.map(str::to_owned).into_iter().filter(|c| !self.modules_to_save.contains(c)),
            );
        }
        config.modules_to_save = (!whole.is_empty()).then_some(whole);
        for path in model.fresh() {
            // Numbers that no file holds are lost if they are not saved.
            if !config.saves(path) {
                config.modules_to_save.get_or_insert_default().push(path.clone());
            }
        }
        named.select(&mut config, &base_info(model))?;
        config.configure(model.sites(), total_steps)?;
        if named.method.default_virtual_tokens() == 0 {
            config.target_modules.get_or_insert_with(defaults);
        }
        Ok(config)
    }

    /// What of the adapter is trained and how fast.
    pub(crate) fn apply(&self, adapters: &mut AdapterSet) {
        if let Some(ratio) = self.loraplus_lr_ratio {
            adapters.set_loraplus_lr_ratio(ratio);
        }
        if self.lora_fa {
            adapters.freeze_a();
        }
    }

    /// Positions that virtual tokens take from every text.
    fn virtual_tokens(&self) -> Result<usize> {
        if let Some(dir) = &self.init_adapter {
            return Ok(LoraConfig::load(dir)?.virtual_tokens()?);
        }
        let default = self.method()?.method.default_virtual_tokens();
        let set = self.peft_options.get("num_virtual_tokens").and_then(Value::as_u64);
        Ok(if default > 0 { set.map_or(default, |n| n as usize) } else { 0 })
    }

    /// Which columns of the data are what, with nothing known of a model.
    pub(crate) fn column_options(&self) -> DataOptions {
        DataOptions {
            format: self.data_format,
            prompt_column: self.prompt_column.clone(),
            completion_column: self.completion_column.clone(),
            text_column: self.text_column.clone(),
            pair_column: self.pair_column.clone(),
            label_column: self.label_column.clone(),
            skip_bad_lines: self.skip_bad_lines,
            task: self.task,
            ..DataOptions::default()
        }
    }

    /// How to read the data for `model`: where its positions end, so do the examples.
    ///
    /// # Errors
    /// Where the prompt template is wrong.
    pub fn data_options(&self, model: &dyn Model) -> Result<DataOptions> {
        let limit = model.position_limit().unwrap_or(usize::MAX).saturating_sub(self.virtual_tokens()?);
        Ok(DataOptions {
            max_seq_len: Some(self.max_seq_len.min(limit)),
            reads_last: model.head_layout().reads == Reads::Last,
            ..self.read_options()?
        })
    }

    /// How to read the data as text, whatever the model.
    ///
    /// # Errors
    /// Where the prompt template is wrong.
    pub fn read_options(&self) -> Result<DataOptions> {
        let prompt_template = self.prompt_template.as_deref().map(Template::parse).transpose()?;
        Ok(DataOptions { prompt_template, ..self.column_options() })
    }

    /// `device`, on which activations are kept for the backward pass as is asked for.
    pub(crate) fn saving_on(&self, device: Device) -> Device {
        device.rounding_kept(self.saved_activations == SavedActivations::Int16)
    }

    /// What must not change when a run is resumed: everything that changes its numbers.
    pub(crate) fn fingerprint(&self) -> Map<String, Value> {
        let Value::Object(mut all) = serde_json::to_value(self).expect("options are plain data") else {
            unreachable!("a struct is an object")
        };
        let free = [
            "out",
            "resume",
            "force",
            "threads",
            "log_json",
            "tensorboard",
            "eval_steps",
            "save_steps",
            "eval_data",
            "checkpoint_activations",
            "stream_base",
            "init_adapter",
            "model",
            "data",
        ];
        all.retain(|key, _| !free.contains(&key.as_str()));
        all
    }
}

/// Whether `dir` holds another run's results.
pub(crate) fn holds_a_run(dir: &Path) -> bool {
    [lowrank_adapters::CONFIG_FILE, lowrank_adapters::TENSORS_FILE, "checkpoints"]
        .iter()
        .any(|name| dir.join(name).exists())
}

/// What a method may ask of `model`.
fn base_info(model: &dyn Model) -> BaseInfo {
    let path = |site: usize| model.sites()[site].path.clone();
    BaseInfo {
        sites: model.sites().to_vec(),
        head: model.head().layers().iter().map(|layer| path(layer.site.0)).collect(),
        is_language_model: model.lm_head().is_some(),
        kv_widths: model.kv_widths(),
        kv_heads: model.kv_heads(),
    }
}
