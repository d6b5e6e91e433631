//! `lowrank plan`.

use std::process::ExitCode;

use lowrank::{Error, Need, Result, Session, TrainOptions, forecast, plan_shapes};

/// The flags of `lowrank train`, and how to print.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    train: super::train::Args,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Plans: a run over data, or without `--data` a step by the model's shape.
pub fn run(args: &Args) -> Result<ExitCode> {
    let options = args.train.options()?;
    if options.data.as_os_str().is_empty() {
        return by_shape(args, &options);
    }
    let plan = super::on_threads(options.threads, || forecast(&Session::for_plan(&options)?, &options))?;
    if args.json {
        println!("{}", serde_json::to_string(&plan).expect("plain numbers"));
        return Ok(ExitCode::SUCCESS);
    }
    let share = 100.0 * plan.trainable_parameters as f64 / plan.base_parameters as f64;
    let mb = |bytes: usize| format!("{:>9.1} MB", bytes as f64 / 1e6);
    println!("parameters      {:>12}", plan.base_parameters);
    println!("trainable       {:>12}  ({share:.3} %)", plan.trainable_parameters);
    println!();
    println!("base weights    {}", mb(plan.base_bytes));
    println!("adapter + AdamW {}", mb(plan.adapter_bytes));
    println!("activations     {}", mb(plan.activation_bytes));
    println!("scratch         {}", mb(plan.scratch_bytes));
    println!("process, data   {}", mb(plan.process_bytes));
    println!("peak memory     {}", mb(plan.peak_bytes));
    println!();
    println!("steps           {:>12}  ({} an epoch)", plan.steps, plan.steps_per_epoch);
    println!("tokens an epoch {:>12}  ({} rows computed)", plan.tokens_per_epoch, plan.rows_per_epoch);
    println!("work an epoch   {:>12.1} TFLOP", plan.flops_per_epoch as f64 / 1e12);
    Ok(ExitCode::SUCCESS)
}

fn by_shape(args: &Args, options: &TrainOptions) -> Result<ExitCode> {
    if options.model.is_empty() {
        return Err(Error::Usage("--model is missing".to_owned()));
    }
    let plan = super::on_threads(options.threads, || {
        plan_shapes(&Session::open_to_plan(&options.model, options.load_options())?, options)
    })?;
    if args.json {
        println!("{}", serde_json::to_string(&plan).expect("plain numbers"));
        return Ok(ExitCode::SUCCESS);
    }
    let mb = |bytes: usize| format!("{:>14.1} MB", bytes as f64 / 1e6);
    let row = |name: &str, of: fn(&Need) -> usize| {
        println!("{name:<22}{}{}", mb(of(&plan.full)), mb(of(&plan.lora)));
    };
    println!("{:<22}{:>17}{:>17}", "", "full fine-tuning", "LoRA");
    println!(
        "{:<22}{:>17}{:>17}",
        "trainable parameters", plan.full.trainable_parameters, plan.lora.trainable_parameters
    );
    row("weights", |need| need.weight_bytes);
    row("trained and gradients", |need| need.gradient_bytes);
    row("AdamW's moments", |need| need.moment_bytes);
    row("together", |need| need.total_bytes);
    row("checkpoint", |need| need.checkpoint_bytes);
    let (sequences, tokens) = plan.batch;
    println!();
    println!("a LoRA step over {sequences} x {tokens} tokens");
    println!("{:<22}{}", "activations", mb(plan.activation_bytes));
    println!("{:<22}{}", "scratch", mb(plan.scratch_bytes));
    println!("{:<22}{:>17.1}", "TFLOP", plan.flops_per_step as f64 / 1e12);
    Ok(ExitCode::SUCCESS)
}
