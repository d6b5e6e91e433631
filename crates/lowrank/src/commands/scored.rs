//! What `lowrank eval` and `lowrank predict` read: a model, an adapter and data.

use std::path::PathBuf;

use lowrank::adapters::AdapterSet;
use lowrank::train::{DataFormat, Dataset, StepOptions, Stepper, Task};
use lowrank::{Result, Session, TrainOptions};

/// Flags of both.
#[derive(clap::Args)]
pub struct Flags {
    /// Base model: Hugging Face folder, GGUF file or hub id
    #[arg(long)]
    model: String,
    #[command(flatten)]
    base: super::base::Flags,
    /// Adapter folder
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Data: .jsonl, .csv, .tsv, .conll, or the files of E2E, WebNLG and DART
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// What the adapter was trained for [default: what its folder says; else lm]
    #[arg(long)]
    task: Option<Task>,
    /// The classes in the order of their scores, for an adapter whose folder does not name them
    #[arg(long, value_delimiter = ',')]
    labels: Option<Vec<String>>,
    /// Examples scored (or prompts continued) at once
    #[arg(long, default_value_t = 8)]
    pub batch_size: usize,
    /// Longer examples lose their tail
    #[arg(long, default_value_t = 1024)]
    max_seq_len: usize,
    /// jsonl, csv, tsv, e2e, webnlg, dart, conll or glue:TASK, where the name and the columns do not tell
    #[arg(long)]
    data_format: Option<DataFormat>,
    /// Column or key of the prompt [default: prompt]
    #[arg(long)]
    prompt_column: Option<String>,
    /// Column or key of the completion [default: completion]
    #[arg(long)]
    completion_column: Option<String>,
    /// Column or key of a text without prompt, or of the (first) text that a label is for
    #[arg(long)]
    text_column: Option<String>,
    /// Column or key of a pair's second text [default: the usual names]
    #[arg(long)]
    pair_column: Option<String>,
    /// Column or key of the label [default: the usual names]
    #[arg(long)]
    label_column: Option<String>,
    /// What a prompt is made of, e.g. "{prompt}\n"
    #[arg(long)]
    prompt_template: Option<String>,
    /// Count and report lines that make no example
    #[arg(long)]
    skip_bad_lines: bool,
    /// Threads [default: all processors]
    #[arg(long)]
    pub threads: Option<usize>,
}

impl Flags {
    /// The base model with the head of the adapter's task.
    pub fn session(&self) -> Result<Session> {
        Session::for_adapter(
            &self.model,
            self.base.load_options(),
            self.adapter.as_deref(),
            self.task,
            self.labels.clone(),
        )
    }

    /// Model and adapter.
    pub fn open(&self) -> Result<(Session, AdapterSet)> {
        let session = self.session()?;
        let adapters = session.adapter(self.adapter.as_deref())?;
        Ok((session, adapters))
    }

    /// What the flags say of the data.
    pub fn options(&self, task: Task) -> TrainOptions {
        TrainOptions {
            task,
            max_seq_len: self.max_seq_len,
            data_format: self.data_format,
            prompt_column: self.prompt_column.clone(),
            completion_column: self.completion_column.clone(),
            text_column: self.text_column.clone(),
            pair_column: self.pair_column.clone(),
            label_column: self.label_column.clone(),
            prompt_template: self.prompt_template.clone(),
            skip_bad_lines: self.skip_bad_lines,
            init_adapter: self.adapter.clone(),
            ..TrainOptions::default()
        }
    }

    /// The data, for the session's task; reports on them.
    pub fn read(&self, session: &Session, unlabelled: bool) -> Result<Dataset> {
        let options = self.options(session.task.task);
        let data = session.read_data(&self.data, &options, unlabelled)?;
        eprintln!("{}", data.report);
        for warning in data.report.warnings() {
            eprintln!("  {warning}");
        }
        Ok(data)
    }

    /// The model with the adapter.
    pub fn stepper<'m>(&self, session: &'m Session) -> Result<Stepper<'m>> {
        let adapters = session.adapter(self.adapter.as_deref())?;
        let step =
            StepOptions { checkpoint_activations: false, weight_decay: 0.0, max_grad_norm: 0.0, seed: 0 };
        let stepper = Stepper::new(&*session.model, adapters, session.device(), step);
        Ok(stepper.for_task(session.task.clone(), session.masking(0)?))
    }
}
