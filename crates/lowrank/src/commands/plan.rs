//! `lowrank plan`.

use std::process::ExitCode;

use lowrank::{
    Error, Need, Result, Session, TrainOptions, forecast, forecast_serving, measure_speed, plan_shapes,
};

use super::Stdout;
use super::flags::ranges;

/// Plan the memory and work of a training run.
///
/// Takes the flags of `train`. Without --data, plans a step by the model's shape and compares it with full fine-tuning.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    train: super::train::Args,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Take steps of the run for five seconds and print its speed on this machine; needs the weights
    #[arg(long, conflicts_with = "serve")]
    speed: bool,
    /// Plan the memory of `serve` instead
    #[arg(long, help_heading = "Serving")]
    serve: bool,
    /// Maximum number of texts decoded together [default: 32]
    #[arg(long, value_name = "N", requires = "serve", value_parser = ranges::whole::<usize>("max_batch"), hide_short_help = true, help_heading = "Serving")]
    max_batch: Option<usize>,
    /// Memory for keys and values, in MiB [default: 1024]
    #[arg(long, value_name = "MIB", requires = "serve", value_parser = ranges::whole::<usize>("cache_mb"), hide_short_help = true, help_heading = "Serving")]
    cache_mb: Option<usize>,
    /// Memory for loaded adapters, in MiB [default: 1024]
    #[arg(long, value_name = "MIB", requires = "serve", value_parser = ranges::whole::<usize>("adapter_mb"), hide_short_help = true, help_heading = "Serving")]
    adapter_mb: Option<usize>,
}

/// Plans: a run over data, or without `--data` a step by the model's shape.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    let mut options = args.train.options()?;
    if options.out.as_os_str().is_empty() {
        // Nothing is written.
        options.out = "adapter".into();
    }
    if args.serve {
        return serving(args, &options, out);
    }
    if options.data.is_empty() {
        if args.speed {
            return Err(Error::Usage("`speed` times steps of a run, so `data` must be given".to_owned()));
        }
        return by_shape(args, &options, out);
    }
    let (plan, speed) = super::on_threads(options.threads, || {
        let plan = forecast(&Session::for_plan(&options)?, &options)?;
        let speed = args.speed.then(|| measure_speed(&Session::for_run(&options)?, &options, &plan));
        Ok((plan, speed.transpose()?))
    })?;
    if args.json {
        let mut all = serde_json::to_value(&plan).expect("plain numbers");
        if let Some(speed) = speed {
            all["speed"] = serde_json::to_value(speed).expect("plain numbers");
        }
        writeln!(out, "{all}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let share = 100.0 * plan.trainable_parameters as f64 / plan.base_parameters as f64;
    let mb = |bytes: usize| format!("{:>9.1} MB", bytes as f64 / 1e6);
    writeln!(out, "parameters      {:>12}", plan.base_parameters)?;
    writeln!(out, "trainable       {:>12}  ({share:.3} %)", plan.trainable_parameters)?;
    writeln!(out)?;
    writeln!(out, "base weights    {}", mb(plan.base_bytes))?;
    writeln!(out, "adapter + AdamW {}", mb(plan.adapter_bytes))?;
    writeln!(out, "activations     {}", mb(plan.activation_bytes))?;
    writeln!(out, "scratch         {}", mb(plan.scratch_bytes))?;
    writeln!(out, "process, data   {}", mb(plan.process_bytes))?;
    writeln!(out, "at start, saving{}", mb(plan.preparation_bytes))?;
    writeln!(out, "peak memory     {}", mb(plan.peak_bytes))?;
    writeln!(out)?;
    writeln!(out, "steps           {:>12}  ({} an epoch)", plan.steps, plan.steps_per_epoch)?;
    writeln!(out, "tokens an epoch {:>12}  ({} rows computed)", plan.tokens_per_epoch, plan.rows_per_epoch)?;
    writeln!(out, "work an epoch   {:>12.1} TFLOP", plan.flops_per_epoch as f64 / 1e12)?;
    if let Some(speed) = speed {
        let (steps, rate) = (speed.steps, speed.flops_per_s / 1e9);
        writeln!(out)?;
        writeln!(
            out,
            "speed           {:>12.1} tokens/s  ({rate:.1} GFLOP/s over {steps} steps)",
            speed.tokens_per_s
        )?;
        writeln!(out, "time an epoch   {:>12.0} s", speed.epoch_s)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn serving(args: &Args, options: &TrainOptions, out: &mut Stdout) -> Result<ExitCode> {
    let default = lowrank_serve::ServeOptions::default();
    let mib = |given: Option<usize>, default: usize| given.map_or(default, |mib| mib << 20);
    let (cache, adapters) =
        (mib(args.cache_mb, default.cache_bytes), mib(args.adapter_mb, default.adapter_bytes));
    let max_batch = args.max_batch.unwrap_or(default.max_batch);
    let plan = super::on_threads(options.threads, || {
        let session = Session::open_to_plan(&options.model, options.load_options())?;
        forecast_serving(&session, max_batch, cache, adapters)
    })?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&plan).expect("plain numbers"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mb = |bytes: usize| format!("{:>9.1} MB", bytes as f64 / 1e6);
    writeln!(out, "base weights    {}  (mapped, shared)", mb(plan.base_bytes))?;
    writeln!(out, "cache           {}  ({} tokens)", mb(plan.cache_bytes), plan.cache_rows)?;
    writeln!(out, "adapters        {}", mb(plan.adapter_bytes))?;
    writeln!(out, "activations     {}", mb(plan.activation_bytes))?;
    writeln!(out, "logits          {}", mb(plan.logit_bytes))?;
    writeln!(out, "scratch         {}", mb(plan.scratch_bytes))?;
    writeln!(out, "process         {}", mb(plan.process_bytes))?;
    writeln!(out, "peak memory     {}", mb(plan.peak_bytes))?;
    Ok(ExitCode::SUCCESS)
}

fn by_shape(args: &Args, options: &TrainOptions, out: &mut Stdout) -> Result<ExitCode> {
    if options.model.is_empty() {
        return Err(Error::Usage("`model` must be given".to_owned()));
    }
    let plan = super::on_threads(options.threads, || {
        plan_shapes(&Session::open_to_plan(&options.model, options.load_options())?, options)
    })?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&plan).expect("plain numbers"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mb = |bytes: usize| format!("{:>14.1} MB", bytes as f64 / 1e6);
    writeln!(out, "{:<22}{:>17}{:>17}", "", "full fine-tuning", "LoRA")?;
    writeln!(
        out,
        "{:<22}{:>17}{:>17}",
        "trainable parameters", plan.full.trainable_parameters, plan.lora.trainable_parameters
    )?;
    let bytes = |need: &Need| {
        [need.weight_bytes, need.gradient_bytes, need.moment_bytes, need.total_bytes, need.checkpoint_bytes]
    };
    let names = ["weights", "trained and gradients", "AdamW's moments", "together", "checkpoint"];
    for ((name, full), lora) in names.into_iter().zip(bytes(&plan.full)).zip(bytes(&plan.lora)) {
        writeln!(out, "{name:<22}{}{}", mb(full), mb(lora))?;
    }
    let (sequences, tokens) = plan.batch;
    writeln!(out)?;
    writeln!(out, "a LoRA step over {sequences} x {tokens} tokens")?;
    writeln!(out, "{:<22}{}", "activations", mb(plan.activation_bytes))?;
    writeln!(out, "{:<22}{}", "scratch", mb(plan.scratch_bytes))?;
    writeln!(out, "{:<22}{:>17.1}", "TFLOP", plan.flops_per_step as f64 / 1e12)?;
    Ok(ExitCode::SUCCESS)
}
