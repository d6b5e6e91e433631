//! The options of a training run, in PEFT's and Trainer's words.

use std::path::{Path, PathBuf};

use lowrank_adapters::{
    AdapterSet, BaseInfo, CLASSIFIERS, LoraConfig, LoraPlus, NamedMethod, OneOrMany, Targets,
};
use lowrank_engine::{AdamW, AdamWForm, Device, SavedDtype, SiteKind};
use lowrank_files::{LoadOptions, Precision, Quantize, Range};
use lowrank_models::Model;
use lowrank_train::{
    DataFormat, DataOptions, ImportanceSamplingLevel, LossOptions, LossType, LrScheduler, ScaleRewards, Task,
    Template, TrainOnTurns,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::adapter_source::other_format;
use crate::data_files::DataFiles;
use crate::device::DeviceChoice;
use crate::fields::{Field, FieldKind, named, options};
use crate::push_option::PushToHub;
use crate::reward_funcs::RewardFuncs;
use crate::{Error, Result};

/// The number type of activations saved for the backward pass (`saved_activations`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SavedActivations {
    /// f32, exact.
    F32,
    /// int16 with one scale per 128 values: half the memory, relative gradient error about 1e-4, losses exact.
    #[default]
    Int16,
}

impl std::str::FromStr for SavedActivations {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "f32" => Ok(Self::F32),
            "int16" => Ok(Self::Int16),
            _ => Err(lowrank_files::unknown("number type", name, ["f32", "int16"])),
        }
    }
}

named!(SavedActivations, ScaleRewards, ImportanceSamplingLevel, TrainOnTurns);

/// Sets of defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// PEFT's modules for the architecture.
    Peft,
    /// Those of LoRA's paper on GPT-2 (Hu et al. 2021, table 11).
    Paper,
}

impl std::str::FromStr for Preset {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "peft" => Ok(Self::Peft),
            "paper" => Ok(Self::Paper),
            _ => Err(lowrank_files::unknown("preset", name, ["peft", "paper"])),
        }
    }
}

impl Preset {
    /// The options that it gives where they are not given.
    fn options(self) -> toml::Table {
        let text = match self {
            Self::Peft => "",
            Self::Paper => {
                "r = 4\nlora_alpha = 32.0\nlora_dropout = 0.1\nwarmup_steps = 500\nweight_decay = 0.01\nepochs = 5.0"
            }
        };
        text.parse().expect("valid TOML")
    }
}

named!(Preset);

/// The learning rate where no rule says another.
const FLAT_RATE: f64 = 2e-4;

/// What other trainers call an option: Trainer and TRL, PEFT's examples, unsloth, axolotl, mlx-lm. Flags and keys of these names
/// set it too.
pub const ALIASES: &[(&str, &[&str])] = &[
    ("model", &["model_name_or_path", "base_model"]),
    ("data", &["train_file", "dataset"]),
    ("eval_data", &["validation_file", "eval_dataset"]),
    ("out", &["output_dir", "adapter_path"]),
    ("eval_split", &["val_set_size", "test_size"]),
    ("r", &["lora_r", "rank"]),
    ("lora_alpha", &["alpha"]),
    ("target_modules", &["lora_target_modules"]),
    ("modules_to_save", &["lora_modules_to_save"]),
    ("layers_to_transform", &["lora_layers_to_transform"]),
    ("learning_rate", &["lr"]),
    ("lr_scheduler", &["lr_scheduler_type"]),
    ("batch_size", &["per_device_train_batch_size", "train_batch_size", "micro_batch_size"]),
    ("gradient_accumulation_steps", &["grad_accumulation_steps"]),
    ("epochs", &["num_train_epochs", "num_epochs"]),
    ("max_steps", &["iters"]),
    ("max_seq_len", &["max_length", "max_seq_length", "sequence_len", "cutoff_len"]),
    ("checkpoint_activations", &["gradient_checkpointing", "grad_checkpoint"]),
    ("resume", &["resume_from_checkpoint"]),
    ("text_column", &["dataset_text_field"]),
    ("loss_on_prompt", &["train_on_inputs"]),
    ("eval_steps", &["steps_per_eval"]),
    ("logging_steps", &["steps_per_report"]),
    ("save_steps", &["save_every"]),
    ("tensorboard", &["logging_dir"]),
    ("loss_type", &["loss"]),
    ("ref_adapter", &["ref_adapter_name", "reference_adapter"]),
    ("num_completions_to_log", &["num_completions_to_print"]),
];

/// Numbers of steps.
const STEPS: Range = Range::Whole(0, 1_000_000_000_000);

options! {
    /// Everything that says how to train, in the words of PEFT and Trainer. Each field is a flag of `lowrank train` (with
    /// dashes) and a key of its TOML file; this list is the only place where it is written.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct TrainOptions;

    "Input and output" {
        /// Base model: Hugging Face folder, GGUF file or hub id.
        model: String = String::new();
        /// Data: .jsonl, .json, .csv, .tsv, .conll, .parquet, the files of GLUE, E2E, WebNLG and DART, or a data set of the hub
        /// (hub:org/name); several times for several files. FILE:0.5 takes half of a file's rows, FILE:2 each row twice.
        data: DataFiles = DataFiles::default();
        /// Folder to write the adapter to.
        out: PathBuf = PathBuf::new();
        /// Held-out data, evaluated during and after training; one file or several, as in data.
        eval_data: Option<DataFiles> = None;
        /// Task: lm, classification, multi-label-classification, pair-classification, regression, token-classification,
        /// mlm, embedding, preference (DPO and its kin), kto, grpo (completions that the model samples and rewards judge) or reward.
        task: Task = Task::Lm;
        /// Names of the classes, in the order of their scores (default: those in the data).
        labels: Option<Vec<String>> = None;
    }
    "Base model" {
        /// Quantize the linear layers of a dense base while loading: nf4 (as in QLoRA) or q8_0.
        quantize: Option<Quantize> = None;
        /// Number type of a dense base's weights and products: f32, or bf16 at half the memory.
        precision: Precision = Precision::F32;
        /// Keep the weights of one block in memory at a time, for a base larger than memory.
        stream_base: bool = false;
        /// Device: cpu, gpu (the first), gpu:N (number N of `lowrank devices`) or auto (a discrete or Apple GPU that the base fits,
        /// else the processor).
        device: DeviceChoice = DeviceChoice::Cpu;
    }
    "Adapter" {
        /// Defaults of another kind, for options that are not given: peft (PEFT's modules, rate 2e-4) or paper (the same with LoRA's
        /// settings on GPT-2: r 4, alpha 32, dropout 0.1, 500 warm-up steps, weight decay 0.01, 5 epochs).
        preset: Option<Preset> = None;
        /// Method: one of PEFT's, such as lora, or a baseline such as full (default: lora).
        method: Option<String> = None;
        /// Rank.
        r: usize = 8, Range::RANK;
        /// Scale the adapter's output by alpha / r.
        lora_alpha: f64 = 16.0, Range::ALPHA;
        /// Dropout probability on the adapter's input.
        lora_dropout: f32 = 0.0, Range::DROPOUT;
        /// Train with the base model's own dropouts too, with the probabilities in its config.json, as transformers does
        /// (BERT, RoBERTa, XLM-R, DistilBERT, DeBERTa, GPT-2).
        base_dropout: bool = false;
        /// Modules that get an adapter: names, a regular expression, or all-linear (default: all-linear for LoRA on a decoder;
        /// else PEFT's for the architecture).
        target_modules: Option<Targets> = None;
        /// Modules that get none: names or a regular expression.
        exclude_modules: Option<Targets> = None;
        /// Indices of the blocks that get an adapter (default: all).
        layers_to_transform: Option<OneOrMany<usize>> = None, Range::Whole(0, 65_535);
        /// Name of the list of blocks that these count in, for a model with several (default: any).
        layers_pattern: Option<OneOrMany<String>> = None;
        /// Rank of the modules whose path matches a pattern.
        rank_pattern: Map<String, Value> = Map::new(), Range::RANK;
        /// Alpha of the modules whose path matches a pattern.
        alpha_pattern: Map<String, Value> = Map::new(), Range::ALPHA;
        /// Scale by alpha / sqrt(r) (rsLoRA).
        use_rslora: bool = false;
        /// Method in PEFT's words, such as LORA; use this or method.
        peft_type: String = LoraConfig::default().peft_type;
        /// Train magnitude and direction separately (DoRA).
        use_dora: bool = false;
        /// Initialization of A and B: true, gaussian, orthogonal, pissa, pissa_niter_N, olora, loftq, eva, corda or false.
        init_lora_weights: Value = Value::Bool(true);
        /// Set any other field of the method's configuration in PEFT, such as target_r=4.
        peft_options: Map<String, Value> = Map::new();
        /// Ratio of B's learning rate to A's (LoRA+) (default: 1).
        loraplus_lr_ratio: Option<f64> = None, Range::Above(0.0, 1e9);
        /// Learning rate of a LoRA on an embedding, with LoRA+.
        loraplus_lr_embedding: f64 = 1e-6, Range::Real(0.0, 1000.0);
        /// Freeze A and train B with projected gradients (LoRA-FA).
        lora_fa: bool = false;
        /// Biases to train as well: none, all, or lora_only (those of the adapted layers).
        bias: String = "none".into();
        /// Layers to train in full next to the adapter, by the end of their path (a new head of the task always is).
        modules_to_save: Vec<String> = Vec::new();
        /// Parts of a fused layer that get an adapter of rank r each, such as true,false,true for q and v of c_attn.
        enable_lora: Vec<bool> = Vec::new();
        /// Name of the base model in adapter_config.json and the model card (default: its hub id, or its file's or folder's name).
        base_model_name: Option<String> = None;
        /// Start from the adapter in this folder and use its configuration.
        init_adapter: Option<PathBuf> = None;
    }
    "Preferences" {
        /// Loss of task preference: sigmoid (dpo), hinge, ipo, exo_pair, nca_pair, robust, bco_pair, sppo_hard, apo_zero, apo_down,
        /// sigmoid_norm, orpo, simpo, cpo or sft; of task kto: kto or apo_zero_unpaired; several are added up (default: sigmoid, kto).
        /// Of task lm: nll (default) or dft (weighted by each token's probability). Of task grpo, one of grpo, dr_grpo, bnpo, dapo
        /// (default) and rloo.
        loss_type: Option<OneOrMany<LossType>> = None;
        /// Weight of each of several losses (default: 1 each).
        loss_weights: Option<OneOrMany<f64>> = None, Range::Real(0.0, 1e6);
        /// How strongly the model is held to the reference (default: 0.1, and for task grpo 0, which needs no reference).
        beta: Option<f64> = None, Range::Real(0.0, 1e6);
        /// Share of the pairs whose preference is wrong: for robust, exo_pair, simpo and cpo.
        label_smoothing: f64 = LossOptions::DEFAULT.label_smoothing, Range::Real(0.0, 0.5);
        /// Margin between chosen and rejected in SimPO.
        simpo_gamma: f64 = LossOptions::DEFAULT.simpo_gamma, Range::Real(0.0, 1e6);
        /// Weight of the cross-entropy in CPO.
        cpo_alpha: f64 = LossOptions::DEFAULT.cpo_alpha, Range::Real(0.0, 1e6);
        /// Weight of desirable completions in KTO.
        desirable_weight: f64 = LossOptions::DEFAULT.desirable_weight, Range::Real(0.0, 1e6);
        /// Weight of undesirable completions in KTO.
        undesirable_weight: f64 = LossOptions::DEFAULT.undesirable_weight, Range::Real(0.0, 1e6);
        /// Weight of (chosen + rejected reward)^2 for task reward, which keeps rewards near 0.
        center_rewards_coefficient: f64 = LossOptions::DEFAULT.center_rewards_coefficient, Range::Real(0.0, 1e6);
        /// Adapter of the reference model, or none for the base model alone (default: that of init_adapter, else none).
        ref_adapter: Option<String> = None;
    }
    "Sampled completions" {
        /// What rewards a completion in task grpo, as NAME:ARGUMENT, several times for several: exact_match:COLUMN, numeric:COLUMN (the
        /// last number), regex:PATTERN, json_schema:SCHEMA (or a file, or a column), length:TOKENS, adapter:DIR (a reward model on the
        /// same base) or command:PROGRAM (reads a JSON object a line, the row with its completion, and answers each with a number).
        reward_funcs: RewardFuncs = RewardFuncs::default();
        /// Weight of each reward (default: 1 each).
        reward_weights: Option<OneOrMany<f64>> = None, Range::Real(-1e6, 1e6);
        /// Seconds that a program has to reward the completions of a step; then it is started again, once.
        reward_timeout: f64 = 60.0, Range::Above(0.0, 1e6);
        /// Completions of each prompt. They divide the completions of a step, batch_size times gradient_accumulation_steps.
        num_generations: usize = 8, Range::Whole(2, 4096);
        /// Maximum number of tokens in a completion.
        max_completion_length: usize = 256, Range::Whole(1, 65_536);
        /// Temperature of sampling, and of the probabilities that are trained.
        temperature: f64 = LossOptions::DEFAULT.temperature, Range::Real(0.0, 100.0);
        /// Sample from the most likely tokens that together have this probability; 1 from all.
        top_p: f64 = 1.0, Range::Above(0.0, 1.0);
        /// Sample from this many of the most likely tokens; 0 from all.
        top_k: usize = 0, Range::Whole(0, 1 << 32);
        /// Sample from tokens with this share of the most likely one's probability; 0 from all.
        min_p: f64 = 0.0, Range::Real(0.0, 1.0);
        /// Divide advantages by the standard deviation of the rewards of a prompt (group), of the step (batch) or by nothing (none)
        /// (default: group, and none for rloo).
        scale_rewards: Option<ScaleRewards> = None;
        /// Steps that each batch of completions is used for.
        num_iterations: u64 = 1, Range::Whole(1, 1000);
        /// How far a ratio of probabilities may move from 1 before it is clipped.
        epsilon: f64 = LossOptions::DEFAULT.epsilon, Range::Real(0.0, 1e6);
        /// How far it may move above 1 (default: epsilon).
        epsilon_high: Option<f64> = None, Range::Real(0.0, 1e6);
        /// Take the ratio of each token (token) or of the whole completion (sequence, GSPO).
        importance_sampling_level: ImportanceSamplingLevel = ImportanceSamplingLevel::Token;
        /// Leave out the factor that makes the gradient of the distance to the reference unbiased.
        no_bias_correction_kl: bool = false;
        /// Leave completions out that reach max_completion_length.
        mask_truncated_completions: bool = false;
        /// Completions of each batch that go to the log.
        num_completions_to_log: usize = 1, Range::Whole(0, 65_536);
    }
    "Optimizer" {
        /// Peak learning rate (default: for LoRA on a decoder by its width, 5e-4 * (2000 / hidden_size)^0.781, a tenth of it for the tasks
        /// preference, kto and grpo; else 2e-4).
        learning_rate: Option<f64> = None, Range::Real(0.0, 1e38);
        /// Schedule after the warm-up: linear, cosine or constant.
        lr_scheduler: LrScheduler = LrScheduler::Linear;
        /// Warm-up steps.
        warmup_steps: u64 = 0, STEPS;
        /// Warm-up as a share of all steps; use this or warmup_steps.
        warmup_ratio: f64 = 0.0, Range::Real(0.0, 1.0);
        /// Decoupled weight decay, of everything but biases and norms.
        weight_decay: f64 = 0.0, Range::Real(0.0, 1000.0);
        /// Adam's decay of the mean of gradients.
        adam_beta1: f64 = 0.9, Range::Real(0.0, 0.999_999);
        /// Adam's decay of the mean of squared gradients.
        adam_beta2: f64 = 0.999, Range::Real(0.0, 0.999_999_9);
        /// Added to the root of Adam's second moment (default: 1e-8, and 1e-6 with LoRA-FA).
        adam_epsilon: Option<f64> = None, Range::Above(0.0, 1.0);
        /// Share of each target of task lm that is spread over all tokens, as Trainer's option of this name.
        label_smoothing_factor: f64 = 0.0, Range::Real(0.0, 1.0);
        /// Size of the noise that is added to embeddings in training (NEFTune), such as 5 (default: none).
        neftune_noise_alpha: Option<f64> = None, Range::Above(0.0, 1e6);
        /// Clip the gradient to this norm; 0 turns clipping off.
        max_grad_norm: f64 = 1.0, Range::Real(0.0, 1e30);
        /// Examples in a micro-batch; for task grpo, completions.
        batch_size: usize = 8, Range::Whole(1, 65_536);
        /// Micro-batches in a step.
        gradient_accumulation_steps: usize = 1, Range::Whole(1, 65_536);
        /// Passes over the data.
        epochs: f64 = 3.0, Range::Above(0.0, 1e6);
        /// Number of steps, in place of epochs.
        max_steps: Option<u64> = None, STEPS;
        /// Random seed.
        seed: u64 = 42, Range::SEED;
    }
    "Data" {
        /// Share of the data to hold out for evaluation, in place of eval_data; examples of one prompt stay together.
        eval_split: f64 = 0.0, Range::Real(0.0, 0.99);
        /// Truncate examples to this number of tokens.
        max_seq_len: usize = 1024, Range::Whole(1, 1 << 20);
        /// Compute the loss on prompts and on all turns of conversations too; prompts are then not shared.
        loss_on_prompt: bool = false;
        /// Turns of the assistant to train in conversations: all, or the last. A turn with a weight of 0 or "train": false is left out.
        train_on_turns: TrainOnTurns = TrainOnTurns::All;
        /// Keep the order of the file.
        no_shuffle: bool = false;
        /// Compute a prompt again for each of its completions.
        no_share_prefix: bool = false;
        /// Number of examples with the same prompt that shuffling keeps together.
        prompt_group: usize = 4, Range::Whole(1, 65_536);
        /// Format of the data: jsonl, csv, tsv, parquet, e2e, webnlg, dart, conll or glue:TASK (cola, sst2, mrpc, rte, qnli, qqp, mnli,
        /// stsb) (default: by the file's name and columns).
        data_format: Option<DataFormat> = None;
        /// Column or key of the prompt (default: prompt).
        prompt_column: Option<String> = None;
        /// Column or key of the completion (default: completion).
        completion_column: Option<String> = None;
        /// Column or key of the chosen completion (default: chosen).
        chosen_column: Option<String> = None;
        /// Column or key of the rejected completion (default: rejected).
        rejected_column: Option<String> = None;
        /// Column or key of a text without a prompt, or of the (first) text of a labelled example.
        text_column: Option<String> = None;
        /// Column or key of the second text of a pair (default: the usual names).
        pair_column: Option<String> = None;
        /// Column or key of the label (default: the usual names).
        label_column: Option<String> = None;
        /// Column or key of the weight of a row's losses (default: every row counts 1).
        weight_column: Option<String> = None;
        /// Template of a prompt, such as "{prompt}\n".
        prompt_template: Option<String> = None;
        /// Chat template of conversations: a Jinja file, or alpaca, chatml, gemma, llama2, llama3, mistral, phi3 or zephyr
        /// (default: the adapter's, else the model's).
        chat_template: Option<String> = None;
        /// Skip lines that are not valid examples, and count them.
        skip_bad_lines: bool = false;
        /// Maximum number of bytes in a row of the data; a longer one is an error.
        max_row_bytes: usize = 16 << 20, Range::Whole(1, 1 << 32);
    }
    "Run" {
        /// Evaluate every N steps; 0 evaluates at the end only.
        eval_steps: u64 = 0, STEPS;
        /// Stop after this many evaluations in a row without a lower held-out loss, and keep the best adapter; 0 never stops.
        early_stopping_patience: u64 = 0, STEPS;
        /// How much lower a held-out loss must be to count as lower.
        early_stopping_threshold: f64 = 0.0, Range::Real(0.0, 1e9);
        /// Write the adapter of the lowest held-out loss at the end, in place of the last (with early stopping always).
        load_best_model_at_end: bool = false;
        /// Text or file of prompts (one a line, or the rows of a data file) to continue at each evaluation: the samples go to the log and
        /// the report.
        sample_prompts: Option<String> = None;
        /// Generate the samples every N steps; 0 generates them at each evaluation.
        sample_steps: u64 = 0, STEPS;
        /// Maximum number of new tokens in a sample.
        sample_max_new_tokens: usize = 64, Range::Whole(1, 65_536);
        /// Save a checkpoint every N steps; 0 saves at the end only.
        save_steps: u64 = 500, STEPS;
        /// Number of checkpoints to keep: the last, and before it adapter folders checkpoints/step-N.
        save_total_limit: u64 = 1, Range::Whole(1, 1_000_000);
        /// Log every N steps, with means over these.
        logging_steps: u64 = 1, Range::Whole(1, 1_000_000_000);
        /// Continue the run in the output folder bit-identically.
        resume: bool = false;
        /// Replace the run in the output folder.
        force: bool = false;
        /// Save the inputs of blocks only and recompute the rest: less memory, about a third slower.
        checkpoint_activations: bool = false;
        /// Number type of saved activations: int16 (one scale per 128 values, relative gradient error about 1e-4) or f32 (exact,
        /// twice the memory).
        saved_activations: SavedActivations = SavedActivations::Int16;
        /// Maximum number of parts of a step's batch, which processes share; a part has at least 256 tokens. The results depend on it,
        /// and not on the number of processes (default: 8, and 1 where more than 50 million parameters are trained).
        shards: Option<usize> = None, Range::Whole(1, 4096);
        /// Number of threads (default: all processors, shared with the other processes of the run).
        threads: Option<usize> = None, Range::THREADS;
        /// Upload the adapter to the Hugging Face hub at the end, with the access token in HF_TOKEN: to this repository (org/name),
        /// else to hub_model_id, else to one of the output folder's name.
        push_to_hub: PushToHub = PushToHub::default();
        /// Repository to upload to: org/name, or a name of your own; made if it does not exist.
        hub_model_id: Option<String> = None;
        /// Make that repository private.
        hub_private_repo: bool = false;
        /// File for the log, one JSON object a line (default: log.jsonl in the output folder).
        log_json: Option<PathBuf> = None;
        /// Folder for TensorBoard events.
        tensorboard: Option<PathBuf> = None;
    }
}

impl TrainOptions {
    /// The defaults, for this base model, these data and this output folder.
    pub fn new(model: impl Into<String>, data: impl Into<DataFiles>, out: impl Into<PathBuf>) -> Self {
        Self { model: model.into(), data: data.into(), out: out.into(), ..Self::default() }
    }

    /// `table` with the options' own names for keys: with underscores, and without [`ALIASES`].
    ///
    /// # Errors
    /// Names a key that is there twice.
    pub fn named(table: toml::Table) -> Result<toml::Table> {
        let mut named = toml::Table::new();
        for (key, value) in table {
            let given = key.replace('-', "_");
            let known = ALIASES.iter().find(|(_, aliases)| aliases.contains(&given.as_str()));
            let name = known.map_or(given, |(name, _)| (*name).to_owned());
            if named.insert(name.clone(), value).is_some() {
                return Err(Error::Usage(format!(
                    "`{name}` is given twice: by another name, or with dashes and with underscores"
                )));
            }
        }
        Ok(named)
    }

    /// From a table of keys, with dashes or underscores.
    ///
    /// # Errors
    /// Names the key that is unknown, with the nearest known one, or that has a wrong value.
    pub fn from_table(table: toml::Table) -> Result<Self> {
        let mut table = Self::named(table)?;
        Self::move_peft_options(&mut table)?;
        let preset =
            table.get("preset").and_then(toml::Value::as_str).and_then(|name| name.parse::<Preset>().ok());
        for (key, value) in preset.into_iter().flat_map(Preset::options) {
            table.entry(key).or_insert(value);
        }
        for key in table.keys() {
            let mut names = Self::FIELDS.iter().map(|field| field.name);
            if !names.any(|name| name == key) {
                let names = Self::FIELDS.iter().map(|field| field.name);
                let nearest = lowrank_files::nearest(key, names);
                return Err(Error::Usage(format!("unknown option `{key}`{nearest}")));
            }
        }
        // Key by key, so that an error can name its key.
        for (key, value) in &table {
            let alone: toml::Table = [(key.clone(), value.clone())].into_iter().collect();
            let checked: Result<Self, toml::de::Error> = alone.try_into();
            let field = Self::FIELDS.iter().find(|field| field.name == key).expect("looked up above");
            field.check(value).map_err(|what| Error::Usage(format!("`{key}` {what}")))?;
            checked.map_err(|e| Error::Usage(format!("`{key}`: {}", e.message())))?;
        }
        table.try_into().map_err(|e: toml::de::Error| Error::Usage(e.message().to_owned()))
    }

    /// Moves entries of `peft_options` that are options of their own to these.
    fn move_peft_options(table: &mut toml::Table) -> Result<()> {
        let Some(toml::Value::Table(entries)) = table.get("peft_options").cloned() else { return Ok(()) };
        let mut rest = toml::Table::new();
        for (key, value) in entries {
            let Some(field) = Self::peft_field(&key) else {
                rest.insert(key, value);
                continue;
            };
            let wrong = |what: String| Error::Usage(format!("`{key}`: {what}"));
            let value = match (value, field.kind) {
                (toml::Value::String(text), FieldKind::List) => {
                    let parts = text.split(',').map(|part| field.parse(part.trim()));
                    toml::Value::Array(parts.collect::<Result<_, String>>().map_err(wrong)?)
                }
                (toml::Value::String(text), _) => field.parse(&text).map_err(wrong)?,
                (value, _) => value,
            };
            if table.insert(key.clone(), value).is_some() {
                let what = "is given twice: as an option of its own and in `peft_options`";
                return Err(Error::Usage(format!("`{key}` {what}")));
            }
        }
        table.insert("peft_options".into(), toml::Value::Table(rest));
        Ok(())
    }

    /// The option that is a field of PEFT's configurations by this name.
    fn peft_field(name: &str) -> Option<&'static Field> {
        let own = LoraConfig::has_field(name) || matches!(name, "use_dora" | "enable_lora");
        Self::FIELDS.iter().find(|field| own && field.name == name)
    }

    /// Checks what no other part checks.
    ///
    /// # Errors
    /// Names the option and what it may be.
    pub fn check(&self) -> Result<()> {
        let require = |holds: bool, name: &str, range: &str| match holds {
            true => Ok(()),
            false => Err(Error::Usage(format!("`{name}` must be {range}"))),
        };
        for (name, given) in [
            ("model", !self.model.is_empty()),
            ("data", !self.data.is_empty()),
            ("out", !self.out.as_os_str().is_empty()),
        ] {
            require(given, name, "given")?;
        }
        self.check_ranges()?;
        if self.loraplus_lr_ratio.is_some() {
            let above = self.learning_rate.is_none_or(|rate| rate > 0.0);
            require(above, "learning_rate", "a number above 0 with LoRA+")?;
        } else if self.loraplus_lr_embedding != Self::default().loraplus_lr_embedding {
            let what = "`loraplus_lr_embedding` is for LoRA+: give `loraplus_lr_ratio` as well";
            return Err(Error::Usage(what.into()));
        }
        if self.lora_fa && self.loraplus_lr_ratio.is_some() {
            return Err(Error::Usage(
                "`lora_fa` and `loraplus_lr_ratio` are two optimizers: give one".into(),
            ));
        }
        if self.eval_split > 0.0 && self.eval_data.is_some() {
            return Err(Error::Usage("give `eval_split` or `eval_data`, not both".into()));
        }
        if self.eval_data.is_none() && self.eval_split == 0.0 {
            for (name, on) in [
                ("early_stopping_patience", self.early_stopping_patience > 0),
                ("load_best_model_at_end", self.load_best_model_at_end),
            ] {
                if on {
                    let what = format!("`{name}` needs held-out data: give `eval_data` or `eval_split`");
                    return Err(Error::Usage(what));
                }
            }
        }
        if self.early_stopping_patience > 0 && self.eval_steps == 0 {
            return Err(Error::Usage(
                "`early_stopping_patience` counts evaluations: give `eval_steps`".into(),
            ));
        }
        if self.sample_prompts.is_none() && self.sample_steps > 0 {
            return Err(Error::Usage("`sample_steps` is for samples: give `sample_prompts`".into()));
        }
        if self.warmup_steps > 0 && self.warmup_ratio > 0.0 {
            return Err(Error::Usage("give `warmup_steps` or `warmup_ratio`, not both".into()));
        }
        self.check_losses()?;
        self.method()?;
        self.hub_repository()?;
        Ok(())
    }

    /// Whether the losses are those of the task, and their constants fit.
    fn check_losses(&self) -> Result<()> {
        let usage = |what: String| Err(Error::Usage(what));
        let losses = self.loss_type.as_ref().map(OneOrMany::as_slice).unwrap_or_default();
        let task = self.task.name();
        if let Some(other) = losses.iter().find(|loss| loss.task() != self.task) {
            let (name, theirs) = (other.name(), other.task().name());
            return usage(format!("`loss_type` {name} is for `task` {theirs}, not {task}"));
        }
        let weights = self.loss_weights.as_ref().map(OneOrMany::as_slice).unwrap_or_default();
        if !weights.is_empty() && weights.len() != losses.len() {
            let (weights, losses) = (weights.len(), losses.len());
            return usage(format!("`loss_weights` has {weights} numbers for {losses} losses of `loss_type`"));
        }
        if losses.contains(&LossType::ExoPair) && self.label_smoothing == 0.0 {
            return usage("`loss_type` exo_pair needs a `label_smoothing` above 0, such as 0.01".into());
        }
        if losses.contains(&LossType::Robust) && self.label_smoothing >= 0.5 {
            return usage("`loss_type` robust needs a `label_smoothing` below 0.5: more wrong pairs than right ones say nothing".into());
        }
        self.check_sampling()?;
        if self.label_smoothing_factor > 0.0 {
            if self.task != Task::Lm {
                return usage(format!(
                    "`label_smoothing_factor` is for `task` lm, not {task}; see `label_smoothing`"
                ));
            }
            if losses.contains(&LossType::Dft) {
                return usage("`label_smoothing_factor` and `loss_type` dft are two losses: give one".into());
            }
        }
        if self.loss_on_prompt && self.train_on_turns == TrainOnTurns::Last {
            return usage("`loss_on_prompt` trains all turns: give it or `train_on_turns` last".into());
        }
        if self.beta == Some(0.0) && self.task != Task::Grpo {
            return usage(
                "`beta` must be above 0: without a reference there is `loss_type` orpo, simpo or cpo".into(),
            );
        }
        let compares = matches!(self.task, Task::Preference | Task::Kto | Task::Grpo);
        if self.ref_adapter.is_some() && !(compares && self.loss_options().needs_reference(self.task)) {
            return usage(format!(
                "`ref_adapter` is for losses with a reference, and `task` {task} has none here"
            ));
        }
        if self.loss_on_prompt && (self.task.compares() || self.task == Task::Grpo) {
            return usage(format!("`loss_on_prompt` is for `task` lm, not {task}"));
        }
        Ok(())
    }

    /// Whether the options of sampled completions are for the task, and fit together.
    fn check_sampling(&self) -> Result<()> {
        let usage = |what: String| Err(Error::Usage(what));
        let rewards = self.reward_funcs.as_slice();
        if self.task != Task::Grpo {
            return match rewards.is_empty() {
                true => Ok(()),
                false => usage(format!("`reward_funcs` is for `task` grpo, not {}", self.task.name())),
            };
        }
        if rewards.is_empty() {
            return usage(
                "`task` grpo needs a reward: give `reward_funcs`, such as exact_match:answer".into(),
            );
        }
        let weights = self.reward_weights.as_ref().map(OneOrMany::as_slice).unwrap_or_default();
        if !weights.is_empty() && weights.len() != rewards.len() {
            let (weights, rewards) = (weights.len(), rewards.len());
            return usage(format!(
                "`reward_weights` has {weights} numbers for {rewards} rewards of `reward_funcs`"
            ));
        }
        if self.temperature == 0.0 {
            return usage(
                "`temperature` of `task` grpo must be above 0: equal completions teach nothing".into(),
            );
        }
        let (completions, group) = (self.completions_of_step(), self.num_generations);
        if !completions.is_multiple_of(group) {
            return usage(format!(
                "a step has {completions} completions, `batch_size` times `gradient_accumulation_steps`, which is not a \
                 multiple of `num_generations` {group}"
            ));
        }
        if self.loss_type.as_ref().is_some_and(|losses| losses.as_slice().len() > 1) {
            return usage("`loss_type` of `task` grpo is one loss".into());
        }
        if self.grpo_loss() == LossType::Rloo {
            if self.scale_rewards == Some(ScaleRewards::Group) {
                return usage("`scale_rewards` is none or batch for `loss_type` rloo".into());
            }
            if self.importance_sampling_level == ImportanceSamplingLevel::Sequence {
                let what = "`importance_sampling_level`: `loss_type` rloo always takes the ratio of whole completions";
                return usage(what.into());
            }
        }
        Ok(())
    }

    /// Completions that a step of task grpo learns from.
    pub(crate) fn completions_of_step(&self) -> usize {
        self.batch_size * self.gradient_accumulation_steps
    }

    /// The loss of task grpo.
    pub(crate) fn grpo_loss(&self) -> LossType {
        self.loss_options().of(Task::Grpo).first().map_or(LossType::Dapo, |(loss, _)| *loss)
    }

    /// The default of `beta`.
    fn default_beta(&self) -> f64 {
        if self.task == Task::Grpo { 0.0 } else { LossOptions::DEFAULT.beta }
    }

    /// The losses of preferences, rewards and sampled completions.
    pub fn loss_options(&self) -> LossOptions {
        let losses = self.loss_type.as_ref().map(OneOrMany::as_slice).unwrap_or_default();
        let weights = self.loss_weights.as_ref().map(OneOrMany::as_slice).unwrap_or_default();
        let weight = |at: usize| weights.get(at).copied().unwrap_or(1.0);
        LossOptions {
            losses: losses.iter().enumerate().map(|(at, loss)| (*loss, weight(at))).collect(),
            beta: self.beta.unwrap_or_else(|| self.default_beta()),
            label_smoothing: self.label_smoothing,
            simpo_gamma: self.simpo_gamma,
            cpo_alpha: self.cpo_alpha,
            desirable_weight: self.desirable_weight,
            undesirable_weight: self.undesirable_weight,
            center_rewards_coefficient: self.center_rewards_coefficient,
            label_smoothing_factor: self.label_smoothing_factor,
            neftune_noise_alpha: self.neftune_noise_alpha,
            epsilon: self.epsilon,
            epsilon_high: self.epsilon_high,
            importance_sampling_level: self.importance_sampling_level,
            use_bias_correction_kl: !self.no_bias_correction_kl,
            temperature: self.temperature,
        }
    }

    /// The repository of the hub that the run is uploaded to.
    pub(crate) fn hub_repository(&self) -> Result<Option<String>> {
        self.push_to_hub.repository(self.hub_model_id.as_deref(), self.hub_private_repo, &self.out)
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
                format!("`method` {name} and `peft_type` {} are two methods: give one", self.peft_type);
            return Err(Error::Usage(what));
        }
        if self.target_modules.is_some() && !named.method.takes_target_modules() {
            let what = format!(
                "`method` {name} chooses its own modules: `target_modules` is for LoRA and its variants"
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
        let defaults = || match self.takes_our_defaults(model) {
            true => Targets::parse("all-linear"),
            false => Targets::Names(model.info().default_targets.iter().map(ToString::to_string).collect()),
        };
        // Parts of a fused layer are stored as one adapter of all their ranks; the scaling stays that of a part.
        let parts = self.enable_lora.iter().filter(|on| **on).count().max(1);
        let share = if self.use_rslora { (parts as f64).sqrt() } else { parts as f64 };
        let parsed = |targets: &Targets| match targets {
            Targets::Pattern(text) => Targets::parse(text),
            names => names.clone(),
        };
        let mut other = self.peft_options.clone();
        if let Some(own) = other.keys().find(|key| Self::peft_field(key).is_some()) {
            return Err(Error::Usage(format!("`peft_options`: `{own}` is an option of its own")));
        }
        self.drop_derived(&mut other, model)?;
        if !self.enable_lora.is_empty() {
            other.insert("enable_lora".to_owned(), self.enable_lora.clone().into());
        }
        let mut config = LoraConfig {
            task_type: self.task.peft_type().map(str::to_owned),
            base_model_name_or_path: Some(self.base_name()),
            r: self.r * parts,
            lora_alpha: self.lora_alpha * share,
            lora_dropout: self.lora_dropout,
            target_modules: self.target_modules.as_ref().map(parsed),
            exclude_modules: self.exclude_modules.as_ref().map(parsed),
            layers_to_transform: self.layers_to_transform.clone(),
            layers_pattern: self.layers_pattern.clone(),
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
        config.check_fields(self.set_fields().iter().chain(config.other.keys()).map(String::as_str))?;
        self.set_loftq(&mut config)?;
        let mut whole = self.modules_to_save.clone();
        if matches!(config.task_type.as_deref(), Some("SEQ_CLS" | "TOKEN_CLS")) {
            // PEFT names both wherever it classifies.
            whole.extend(
                CLASSIFIERS.map(str::to_owned).into_iter().filter(|c| !self.modules_to_save.contains(c)),
            );
        }
        config.modules_to_save = (!whole.is_empty()).then_some(whole);
        for path in &model.info().new_layers {
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
        if named.method.in_peft() {
            check_targets(&config)?;
        }
        Ok(config)
    }

    /// Checks that the options of an adapter say what `config` of the adapter in `dir` says, from which training starts.
    ///
    /// # Errors
    /// Names an option that says something else: it would be ignored.
    pub(crate) fn check_init(&self, config: &LoraConfig, dir: &Path, model: &dyn Model) -> Result<()> {
        let wanted = serde_json::to_value(self.lora(model, 1)?).expect("a configuration is plain data");
        let there = serde_json::to_value(config).expect("a configuration is plain data");
        let sorted = |value: &Value| match value {
            Value::Array(list) => {
                let mut list: Vec<String> = list.iter().map(ToString::to_string).collect();
                list.sort_unstable();
                list.into()
            }
            other => other.clone(),
        };
        let own = self.peft_options.keys().cloned();
        let own = own.chain(self.method.is_some().then(|| "peft_type".to_owned()));
        let own = own.chain(self.use_dora.then(|| "use_dora".to_owned()));
        let own = own.chain((!self.enable_lora.is_empty()).then(|| "enable_lora".to_owned()));
        for field in self.set_fields().into_iter().chain(own) {
            if sorted(&wanted[&field]) != sorted(&there[&field]) {
                return Err(Error::Usage(format!(
                    "`{field}` is {}, and the adapter in {} has {}: leave it out, `init_adapter` decides",
                    wanted[&field],
                    dir.display(),
                    there[&field]
                )));
            }
        }
        Ok(())
    }

    /// Options that are fields of the configuration and not at their defaults.
    fn set_fields(&self) -> Vec<String> {
        let (Ok(Value::Object(now)), Ok(default)) =
            (serde_json::to_value(self), serde_json::to_value(Self::default()))
        else {
            unreachable!("options are plain data")
        };
        let set =
            now.into_iter().filter(|(name, value)| LoraConfig::has_field(name) && default[name] != *value);
        set.map(|(name, _)| name).collect()
    }

    /// Takes out of `other` what the base model and the run decide.
    ///
    /// # Errors
    /// Where they decide otherwise.
    fn drop_derived(&self, other: &mut Map<String, Value>, model: &dyn Model) -> Result<()> {
        let transposed = model.sites().iter().any(|site| site.kind == SiteKind::TransposedLinear);
        for (field, decided) in [
            ("fan_in_fan_out", Value::from(transposed)),
            ("task_type", self.task.peft_type().into()),
            ("base_model_name_or_path", self.base_name().into()),
        ] {
            let Some(set) = other.remove(field).filter(|set: &Value| *set != decided) else { continue };
            return Err(Error::Usage(format!(
                "`peft_options`: {field} is {set}, and follows from the base model and the task, {decided} here: \
                 leave it out"
            )));
        }
        Ok(())
    }

    /// What the adapter's files call the base.
    pub(crate) fn base_name(&self) -> String {
        self.base_model_name.clone().unwrap_or_else(|| lowrank_models::base_name(&self.model))
    }

    /// The field without which PEFT does not load a LoftQ.
    fn set_loftq(&self, config: &mut LoraConfig) -> Result<()> {
        if config.init_lora_weights.as_str().is_none_or(|start| !start.eq_ignore_ascii_case("loftq")) {
            return Ok(());
        }
        let bits = if self.quantize == Some(Quantize::Q8_0) { 8 } else { 4 };
        let decided = json!({"loftq_bits": bits, "loftq_iter": 1});
        if let Some(set) = config.other.get("loftq_config").and_then(Value::as_object)
            && let Some((key, value)) = set.iter().find(|(key, value)| decided[key.as_str()] != **value)
        {
            return Err(Error::Usage(format!(
                "`peft_options`: {key} is {value}, and it is {} here: the base is quantized by `quantize`, once",
                decided[key.as_str()]
            )));
        }
        config.other.insert("loftq_config".into(), decided);
        Ok(())
    }

    /// What of the adapter is trained, how fast, and with which decay.
    pub(crate) fn apply(&self, adapters: &mut AdapterSet) -> Result<(), lowrank_adapters::Error> {
        if self.lora_fa {
            return adapters.set_lora_fa();
        }
        match self.loraplus_lr_ratio {
            Some(lr_ratio) => {
                let rate = self.learning_rate.unwrap_or(FLAT_RATE);
                let embedding_ratio = self.loraplus_lr_embedding / rate;
                adapters.set_loraplus(LoraPlus { lr_ratio, embedding_ratio });
            }
            None => adapters.group_weight_decay(),
        }
        Ok(())
    }

    /// Shards of a step's batch at most, where `trainable` parameters are trained: the gradients of several are in memory at once.
    pub(crate) fn shards_of(&self, trainable: usize) -> usize {
        const MANY: usize = 50_000_000;
        match self.loss_options().averages_over_batch(self.task) {
            true => 1,
            false => self.shards.unwrap_or(if trainable > MANY { 1 } else { 8 }),
        }
    }

    /// Gives the optimiser its settings.
    pub(crate) fn set_optimizer(&self, optimizer: &mut AdamW) {
        optimizer.form = if self.lora_fa { AdamWForm::Transformers } else { AdamWForm::Torch };
        optimizer.betas = (self.adam_beta1, self.adam_beta2);
        optimizer.eps = self.adam_epsilon;
    }

    /// Whether Lowrank's own defaults of modules and rate hold: for LoRA on a decoder, where no preset is chosen.
    fn takes_our_defaults(&self, model: &dyn Model) -> bool {
        let named = |name: &String| name.eq_ignore_ascii_case("lora");
        let lora = self.method.as_ref().map_or(self.peft_type.eq_ignore_ascii_case("LORA"), named);
        lora && self.preset.is_none() && self.enable_lora.is_empty() && !model.info().is_encoder
    }

    /// The same with a learning rate: where none is given, the one that goes with `model`.
    #[must_use]
    pub fn resolved(&self, model: &dyn Model) -> Self {
        let by_width = || 5e-4 * (2000.0 / model.info().width as f64).powf(0.781);
        // Two digits are what such a rule knows.
        let rounded = |rate: f64| format!("{rate:.1e}").parse().expect("a number");
        let share = if matches!(self.task, Task::Preference | Task::Kto | Task::Grpo) { 0.1 } else { 1.0 };
        let rate = self.learning_rate.unwrap_or_else(|| match self.takes_our_defaults(model) {
            true => rounded(share * by_width()),
            false => FLAT_RATE,
        });
        let beta = self.beta.unwrap_or_else(|| self.default_beta());
        Self { learning_rate: Some(rate), beta: Some(beta), ..self.clone() }
    }

    /// Positions that virtual tokens take from every text.
    fn virtual_tokens(&self) -> Result<usize> {
        if let Some(dir) = &self.init_adapter {
            return match other_format(dir) {
                Some(_) => Ok(0),
                None => Ok(LoraConfig::load(dir)?.virtual_tokens()?),
            };
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
            weight_column: self.weight_column.clone(),
            chosen_column: self.chosen_column.clone(),
            rejected_column: self.rejected_column.clone(),
            train_on_turns: self.train_on_turns,
            loss_on_prompt: self.loss_on_prompt || self.loss_options().reads_prompts(self.task),
            skip_bad_lines: self.skip_bad_lines,
            max_row_bytes: Some(self.max_row_bytes),
            task: self.task,
            ..DataOptions::default()
        }
    }

    /// How to read the data for `model`: where its positions end, so do the examples.
    ///
    /// # Errors
    /// Where the prompt template is wrong.
    pub fn data_options(&self, model: &dyn Model) -> Result<DataOptions> {
        let limit = model.info().position_limit.unwrap_or(usize::MAX).saturating_sub(self.virtual_tokens()?);
        Ok(DataOptions {
            max_seq_len: Some(self.max_seq_len.min(limit)),
            reads: model.info().head_layout.reads,
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
        device.with_saved_dtype(match self.saved_activations {
            SavedActivations::Int16 => SavedDtype::Int16,
            SavedActivations::F32 => SavedDtype::F32,
        })
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
            "max_row_bytes",
            "log_json",
            "tensorboard",
            "push_to_hub",
            "hub_model_id",
            "hub_private_repo",
            "preset",
            "eval_steps",
            "early_stopping_patience",
            "early_stopping_threshold",
            "load_best_model_at_end",
            "sample_prompts",
            "sample_steps",
            "sample_max_new_tokens",
            "save_steps",
            "save_total_limit",
            "logging_steps",
            "eval_data",
            "checkpoint_activations",
            "stream_base",
            "device",
            "model",
            "data",
            "reward_timeout",
            "num_completions_to_log",
        ];
        all.retain(|key, _| !free.contains(&key.as_str()));
        if self.task != Task::Grpo {
            let sampling = Self::FIELDS.iter().filter(|field| field.group == "Sampled completions");
            sampling.for_each(|field| drop(all.remove(field.name)));
        }
        // The examples are the same as those of a run that did not know it.
        if !self.loss_on_prompt {
            all.remove("loss_on_prompt");
        }
        if self.train_on_turns == TrainOnTurns::All {
            all.remove("train_on_turns");
        }
        if self.label_smoothing_factor == 0.0 {
            all.remove("label_smoothing_factor");
        }
        // A run that goes on need not be told again what it began with.
        if self.init_adapter.is_none() {
            all.remove("init_adapter");
        }
        all
    }
}

/// Refuses a regular expression with some layers only, as PEFT does. `all-linear` is written as the names of its layers.
fn check_targets(config: &LoraConfig) -> Result<()> {
    match (&config.target_modules, &config.layers_to_transform) {
        (Some(Targets::Pattern(pattern)), Some(_)) if !pattern.eq_ignore_ascii_case("all-linear") => {
            Err(Error::Usage(format!(
                "`layers_to_transform` goes with names of modules, as in PEFT, and `target_modules` is the regular \
                 expression {pattern:?}"
            )))
        }
        _ => Ok(()),
    }
}

/// What a method may ask of `model`.
fn base_info(model: &dyn Model) -> BaseInfo {
    let path = |site: usize| model.sites()[site].path.clone();
    BaseInfo {
        sites: model.sites().to_vec(),
        head: model.head().layers().iter().map(|layer| path(layer.site.0)).collect(),
        is_language_model: model.lm_head().is_some(),
        kv_widths: model.info().kv_widths.clone(),
        kv_heads: model.info().kv_heads,
    }
}
