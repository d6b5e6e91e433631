//! `lowrank eval`.

use std::path::PathBuf;
use std::process::ExitCode;

use lowrank::train::{DataFormat, StepOptions, Stepper, evaluate};
use lowrank::{Result, Session, TrainOptions};

/// What to score.
#[derive(clap::Args)]
pub struct Args {
    /// Base model: Hugging Face folder, GGUF file or hub id
    #[arg(long)]
    model: String,
    #[command(flatten)]
    base: super::base::Flags,
    /// Adapter folder
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Data: .jsonl, .csv or .tsv
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Examples scored at once
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    /// Longer examples lose their tail
    #[arg(long, default_value_t = 1024)]
    max_seq_len: usize,
    /// jsonl, csv or tsv, where the name does not tell
    #[arg(long)]
    data_format: Option<DataFormat>,
    /// Column or key of the prompt [default: prompt]
    #[arg(long)]
    prompt_column: Option<String>,
    /// Column or key of the completion [default: completion]
    #[arg(long)]
    completion_column: Option<String>,
    /// Column or key of a text without prompt
    #[arg(long)]
    text_column: Option<String>,
    /// What a prompt is made of, e.g. "{prompt}\n"
    #[arg(long)]
    prompt_template: Option<String>,
    /// Count and report lines that make no example
    #[arg(long)]
    skip_bad_lines: bool,
    /// Threads [default: all processors]
    #[arg(long)]
    threads: Option<usize>,
}

/// Evaluates.
pub fn run(args: &Args) -> Result<ExitCode> {
    super::on_threads(args.threads, || work(args))
}

fn work(args: &Args) -> Result<ExitCode> {
    let options = TrainOptions {
        max_seq_len: args.max_seq_len,
        data_format: args.data_format,
        prompt_column: args.prompt_column.clone(),
        completion_column: args.completion_column.clone(),
        text_column: args.text_column.clone(),
        prompt_template: args.prompt_template.clone(),
        skip_bad_lines: args.skip_bad_lines,
        ..TrainOptions::default()
    };
    let session = Session::open_as(&args.model, args.base.form())?;
    let adapters = session.adapter(args.adapter.as_deref())?;
    let data =
        lowrank::train::data::read(&args.data, &options.data_options(&*session.model)?, &session.encoder()?)?;
    eprintln!("{}", data.report);
    for warning in data.report.warnings() {
        eprintln!("  {warning}");
    }
    let step = StepOptions { checkpoint_activations: false, weight_decay: 0.0, max_grad_norm: 0.0, seed: 0 };
    let stepper = Stepper::new(&*session.model, adapters, session.device(), step);
    let result = evaluate(&stepper, &data.examples, args.batch_size, true);
    if args.json {
        println!("{}", serde_json::to_string(&result).expect("plain numbers"));
    } else {
        println!("loss            {:.4}", result.loss);
        println!("perplexity      {:.4}", result.perplexity);
        println!("token accuracy  {:.4}", result.token_accuracy);
        println!("exact match     {:.4}", result.exact_match);
        println!("({} tokens of {} examples in {:.1} s)", result.labels, result.examples, result.seconds);
    }
    Ok(ExitCode::SUCCESS)
}
