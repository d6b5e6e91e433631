//! `lowrank train`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lowrank::train::Task;
use lowrank::{Error, Result, SavedActivations, Session, TrainOptions, finetune};
use serde::{Serialize, Serializer};
use serde_json::Value;

/// Flags win over the file.
#[derive(clap::Args)]
pub struct Args {
    /// TOML file with the same keys as the flags
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

/// What the command line says; the rest comes from the file or from the defaults.
#[derive(clap::Args, Serialize)]
pub struct Flags {
    /// Base model: Hugging Face folder, GGUF file or hub id
    #[arg(long)]
    model: Option<String>,
    /// Training data: .jsonl, .csv or .tsv
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Folder for the adapter
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Held-out data
    #[arg(long, value_name = "FILE")]
    eval_data: Option<PathBuf>,
    /// lm, classification, pair-classification, regression, token-classification, mlm or embedding [default: lm]
    #[arg(long)]
    task: Option<Task>,

    #[command(flatten)]
    #[serde(flatten)]
    base: super::base::Flags,

    /// What is trained: lora, ia3, vera, loha, lokr, adalora, full, top2 (the last two blocks; or another number),
    /// bitfit (biases), linear-probe (the head), or adapter layers: adapter-h (Houlsby), adapter-p (Pfeiffer), adapter-l
    /// (Lin), adapter-d (AdapterDrop, `--peft-option drop_layers=5`), or virtual tokens: prompt (embeddings), prefix (keys and
    /// values; `--peft-option num_virtual_tokens=20`) [default: lora]
    #[arg(long, value_name = "NAME", help_heading = "Adapter")]
    method: Option<String>,
    /// Rank [default: 8]
    #[arg(long, help_heading = "Adapter")]
    r: Option<usize>,
    /// The adapter's output is scaled by alpha / r [default: 16]
    #[arg(long, help_heading = "Adapter")]
    lora_alpha: Option<f64>,
    /// Dropout on the adapter's input [default: 0]
    #[arg(long, help_heading = "Adapter")]
    lora_dropout: Option<f32>,
    /// Modules with an adapter: names, a regular expression, or all-linear [default: PEFT's for the model]
    #[arg(long, help_heading = "Adapter")]
    target_modules: Option<String>,
    /// Scale by alpha / sqrt(r)
    #[arg(long, help_heading = "Adapter")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    use_rslora: bool,
    /// The same in PEFT's words: LORA, IA3, VERA, LOHA, LOKR or ADALORA [default: LORA]
    #[arg(long, help_heading = "Adapter")]
    peft_type: Option<String>,
    /// Magnitude and direction apart (DoRA)
    #[arg(long, help_heading = "Adapter")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    use_dora: bool,
    /// How A and B start: true, gaussian, orthogonal, pissa, pissa_niter_N, olora, loftq or false [default: true]
    #[arg(long, value_name = "WORD", help_heading = "Adapter")]
    init_lora_weights: Option<String>,
    /// Another field of adapter_config.json, such as target_r=4; may be given several times
    #[arg(long = "peft-option", value_name = "FIELD=VALUE", value_parser = field, help_heading = "Adapter")]
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_map")]
    peft_options: Vec<(String, Value)>,
    /// LoRA+: B learns so many times as fast as A [default: 1]
    #[arg(long, value_name = "RATIO", help_heading = "Adapter")]
    loraplus_lr_ratio: Option<f64>,
    /// LoRA-FA: A is not trained
    #[arg(long, help_heading = "Adapter")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    lora_fa: bool,
    /// Biases trained beside the adapter: none, all, or lora_only for those of its layers [default: none]
    #[arg(long, value_name = "WORD", help_heading = "Adapter")]
    bias: Option<String>,
    /// Layers trained whole beside the adapter (the head of the task is anyway), by the end of their path
    #[arg(long, value_delimiter = ',', help_heading = "Adapter")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    modules_to_save: Vec<String>,
    /// Parts of fused layers with an adapter of rank r each, e.g. true,false,true for queries and values of c_attn
    #[arg(long, value_delimiter = ',', help_heading = "Adapter")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    enable_lora: Vec<bool>,
    /// Start from this adapter (its configuration holds)
    #[arg(long, value_name = "DIR", help_heading = "Adapter")]
    init_adapter: Option<PathBuf>,

    /// Peak learning rate [default: 2e-4]
    #[arg(long, help_heading = "Optimiser")]
    learning_rate: Option<f64>,
    /// linear, cosine or constant [default: linear]
    #[arg(long, help_heading = "Optimiser")]
    lr_scheduler: Option<String>,
    /// Steps until the peak [default: 0]
    #[arg(long, help_heading = "Optimiser")]
    warmup_steps: Option<u64>,
    /// The same as a share of all steps [default: 0]
    #[arg(long, help_heading = "Optimiser", conflicts_with = "warmup_steps")]
    warmup_ratio: Option<f64>,
    /// Decoupled weight decay [default: 0]
    #[arg(long, help_heading = "Optimiser")]
    weight_decay: Option<f64>,
    /// Longest gradient; 0 does not clip [default: 1]
    #[arg(long, help_heading = "Optimiser")]
    max_grad_norm: Option<f64>,
    /// Examples in a micro-batch [default: 8]
    #[arg(long, help_heading = "Optimiser")]
    batch_size: Option<usize>,
    /// Micro-batches in a step [default: 1]
    #[arg(long, help_heading = "Optimiser")]
    gradient_accumulation_steps: Option<usize>,
    /// Times through the data [default: 3]
    #[arg(long, help_heading = "Optimiser")]
    epochs: Option<f64>,
    /// Steps in all, in place of --epochs
    #[arg(long, help_heading = "Optimiser")]
    max_steps: Option<u64>,
    /// Random seed [default: 42]
    #[arg(long, help_heading = "Optimiser")]
    seed: Option<u64>,

    /// Longer examples lose their tail [default: 1024]
    #[arg(long, help_heading = "Data")]
    max_seq_len: Option<usize>,
    /// Keep the order of the file
    #[arg(long, help_heading = "Data")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    no_shuffle: bool,
    /// Compute a prompt anew for each of its completions
    #[arg(long, help_heading = "Data")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    no_share_prefix: bool,
    /// Most examples of one prompt that a shuffle keeps together [default: 4]
    #[arg(long, help_heading = "Data")]
    prompt_group: Option<usize>,
    /// jsonl, csv, tsv, conll or glue:TASK (cola, sst2, mrpc, rte, qnli, qqp, mnli, stsb), where the name and the
    /// columns do not tell
    #[arg(long, help_heading = "Data")]
    data_format: Option<String>,
    /// Column or key of the prompt [default: prompt]
    #[arg(long, help_heading = "Data")]
    prompt_column: Option<String>,
    /// Column or key of the completion [default: completion]
    #[arg(long, help_heading = "Data")]
    completion_column: Option<String>,
    /// Column or key of a text without prompt, or of the (first) text that a label is for
    #[arg(long, help_heading = "Data")]
    text_column: Option<String>,
    /// Column or key of a pair's second text [default: the usual names]
    #[arg(long, help_heading = "Data")]
    pair_column: Option<String>,
    /// Column or key of the label [default: the usual names]
    #[arg(long, help_heading = "Data")]
    label_column: Option<String>,
    /// The classes, in the order of their scores [default: those of the data]
    #[arg(long, value_delimiter = ',', help_heading = "Data")]
    labels: Option<Vec<String>>,
    /// What a prompt is made of, e.g. "{prompt}\n"
    #[arg(long, help_heading = "Data")]
    prompt_template: Option<String>,
    /// Count and report lines that make no example
    #[arg(long, help_heading = "Data")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    skip_bad_lines: bool,

    /// Evaluate after every so many steps; 0 only at the end [default: 0]
    #[arg(long, help_heading = "Run")]
    eval_steps: Option<u64>,
    /// Save a checkpoint after every so many steps; 0 only at the end [default: 500]
    #[arg(long, help_heading = "Run")]
    save_steps: Option<u64>,
    /// Go on with the run in --out
    #[arg(long, help_heading = "Run")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    resume: bool,
    /// Replace the run in --out
    #[arg(long, help_heading = "Run")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    force: bool,
    /// Keep only the inputs of blocks and compute the rest again: less memory, about a third slower
    #[arg(long, help_heading = "Run")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    checkpoint_activations: bool,
    /// What the backward pass needs, kept in int16 with a scale for each 128, or exactly, as f32, in twice the memory
    /// [default: int16]
    #[arg(long, value_name = "TYPE", help_heading = "Run")]
    saved_activations: Option<SavedActivations>,
    /// Threads [default: all processors]
    #[arg(long, help_heading = "Run")]
    threads: Option<usize>,
    /// Write one JSON line a step here [default: log.jsonl in --out]
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    log_json: Option<PathBuf>,
    /// Write TensorBoard events
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    tensorboard: Option<PathBuf>,
}

/// `field=value`, the value as JSON where it is JSON, else as text.
fn field(text: &str) -> std::result::Result<(String, Value), String> {
    let (field, value) = text.split_once('=').ok_or("FIELD=VALUE is expected")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((field.trim().to_owned(), value))
}

fn as_map<S: Serializer>(fields: &[(String, Value)], to: S) -> std::result::Result<S::Ok, S::Error> {
    to.collect_map(fields.iter().map(|(field, value)| (field, value)))
}

impl Args {
    /// The options that the file and the flags make.
    pub fn options(&self) -> Result<TrainOptions> {
        let mut table = match &self.config {
            Some(path) => {
                let text =
                    fs::read_to_string(path).map_err(|e| Error::Usage(format!("{}: {e}", path.display())))?;
                let table: toml::Table =
                    text.parse().map_err(|e| Error::Usage(format!("{}: {e}", path.display())))?;
                table.into_iter().map(|(key, value)| (key.replace('-', "_"), value)).collect()
            }
            None => toml::Table::new(),
        };
        let flags = toml::Table::try_from(&self.flags).map_err(|e| Error::Usage(e.to_string()))?;
        table.extend(flags);
        TrainOptions::from_table(table)
    }
}

/// Trains.
pub fn run(args: &Args) -> Result<ExitCode> {
    let options = args.options()?;
    options.check()?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            // The second time they mean it.
            std::process::exit(130);
        }
        eprintln!("\nstopping after this step; again to stop at once");
    })
    .map_err(|e| Error::Failed(format!("cannot watch for Ctrl-C: {e}")))?;

    let summary =
        super::on_threads(options.threads, || finetune(&Session::for_run(&options)?, &options, &stop))?;
    let out = options.out.display();
    if summary.interrupted {
        eprintln!("stopped after step {}; lowrank train ... --resume goes on from there", summary.steps);
        return Ok(ExitCode::from(130));
    }
    for (name, value) in &summary.eval_metrics {
        eprintln!("held-out {} {value:.4}", name.replace('_', " "));
    }
    let loss = summary.last_loss.map(|l| format!(", loss {l:.4}")).unwrap_or_default();
    let eval = summary.eval_loss.map(|l| format!(", held-out loss {l:.4}")).unwrap_or_default();
    eprintln!("{} steps{loss}{eval}; adapter written to {out}", summary.steps);
    Ok(ExitCode::SUCCESS)
}
