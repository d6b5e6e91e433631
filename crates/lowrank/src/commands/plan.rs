//! `lowrank plan`.

use std::process::ExitCode;

use lowrank::models::files::Form;
use lowrank::{Result, Session, forecast};

/// The flags of `lowrank train`, and how to print.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    train: super::train::Args,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Plans.
pub fn run(args: &Args) -> Result<ExitCode> {
    let options = args.train.options()?;
    let form = Form { shapes_only: true, ..options.form() };
    let plan =
        super::on_threads(options.threads, || forecast(&Session::open_as(&options.model, form)?, &options))?;
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
