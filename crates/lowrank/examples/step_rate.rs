//! How fast training steps are, and what the threads did meanwhile.
//!
//! `step_rate MODEL [--batch 8] [--length 128] [--labels ALL] [--steps 5] [--threads 2] [--targets q_proj,v_proj]
//! [--precision f32] [--checkpoint]`
//!
//! Rows of random tokens; the last `--labels` of each carry loss. For every step: seconds on the wall and
//! of processor time, GFLOP/s of the operations a step needs, on the wall and for each second of one
//! processor, the share of the threads' time spent working, ready to run but not running (other work on
//! the machine), and neither (waiting for each other), and fresh pages.

use std::time::Instant;

use lowrank::adapters::{AdapterSet, LoraConfig, Targets};
use lowrank::engine::{Device, SavedDtype};
use lowrank::files::LoadOptions;
use lowrank::train::{Example, ExampleId, PackedBatch, StepOptions, Stepper, pack};
use lowrank::{Error, Result, Session};

struct Options {
    model: String,
    batch: usize,
    length: usize,
    labels: usize,
    steps: usize,
    threads: usize,
    targets: String,
    form: LoadOptions,
    checkpoint: bool,
}

fn options() -> Result<Options> {
    let mut args = std::env::args().skip(1);
    let usage = || Error::Usage("usage: step_rate MODEL [options], as in its first lines".into());
    let mut o = Options {
        model: args.next().ok_or_else(usage)?,
        batch: 8,
        length: 128,
        labels: usize::MAX,
        steps: 5,
        threads: 2,
        targets: "q_proj,v_proj".into(),
        form: LoadOptions::default(),
        checkpoint: false,
    };
    while let Some(arg) = args.next() {
        if arg == "--checkpoint" {
            o.checkpoint = true;
            continue;
        }
        let value = args.next().ok_or_else(usage)?;
        let number = || value.parse().map_err(|_| usage());
        match arg.as_str() {
            "--batch" => o.batch = number()?,
            "--length" => o.length = number()?,
            "--labels" => o.labels = number()?,
            "--steps" => o.steps = number()?,
            "--threads" => o.threads = number()?,
            "--targets" => o.targets = value,
            "--precision" => o.form.precision = value.parse().map_err(|_| usage())?,
            _ => return Err(usage()),
        }
    }
    Ok(o)
}

/// Rows of `length` inputs (and the token after them).
fn batch(o: &Options, step: usize, vocabulary: u64) -> PackedBatch {
    let examples: Vec<Example> = (0..o.batch)
        .map(|row| {
            let mut x = (1 + step * o.batch + row) as u64;
            let mut next = || {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                ((x >> 33) % vocabulary) as u32
            };
            let tokens: Vec<u32> = (0..=o.length).map(|_| next()).collect();
            let loss_mask = (0..=o.length).map(|i| i > 0 && i + o.labels.min(o.length) > o.length).collect();
            let id = ExampleId { file: "random".into(), line: row as u64 };
            Example { tokens, loss_mask, id, ..Example::default() }
        })
        .collect();
    pack(&examples.iter().collect::<Vec<_>>(), false)
}

/// Seconds all threads of this process ran, seconds they were ready to but did not, fresh pages.
#[cfg(target_os = "linux")]
fn spent() -> [f64; 3] {
    let mut sums = [0.0; 3];
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        for (sum, word) in sums.iter_mut().zip(text.split_whitespace().take(2)) {
            *sum += word.parse::<f64>().unwrap_or(0.0) * 1e-9;
        }
    }
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let faults = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(7));
    sums[2] = faults.and_then(|n| n.parse().ok()).unwrap_or(0.0);
    sums
}

#[cfg(not(target_os = "linux"))]
fn spent() -> [f64; 3] {
    [f64::NAN; 3]
}

fn run(o: &Options) -> Result<()> {
    let session = Session::open_as(&o.model, o.form)?;
    let config = LoraConfig {
        r: 8,
        lora_alpha: 16.0,
        target_modules: Some(Targets::parse(&o.targets)),
        ..LoraConfig::default()
    };
    let adapters = AdapterSet::new(config, session.sites(), 1)?;
    let vocabulary = session.base.config["vocab_size"].as_u64().unwrap_or(1000);
    let options =
        StepOptions { checkpoint_activations: o.checkpoint, weight_decay: 0.0, max_grad_norm: 1.0, seed: 1 };
    let mut stepper =
        Stepper::new(&*session.model, adapters, Device::cpu().with_saved_dtype(SavedDtype::Int16), options);
    println!("   wall s  cpu s  GFLOP/s  /cpu s   tokens/s   work  ready  idle   pages  loss");
    for step in 0..o.steps {
        let batch = batch(o, step, vocabulary);
        let rows = batch.tokens.len();
        let (flops, before, start) = (stepper.device().flops(), spent(), Instant::now());
        let outcome = stepper.step(&[batch], 2e-4)?;
        let wall = start.elapsed().as_secs_f64();
        let after = spent();
        let [cpu, ready, pages] = std::array::from_fn(|i| after[i] - before[i]);
        let gflop = (stepper.device().flops() - flops) as f64 / 1e9;
        let all = wall * o.threads as f64;
        println!(
            "{wall:>9.3} {cpu:>6.2} {:>8.1} {:>7.1} {:>10.1}   {:>3.0}%   {:>3.0}%  {:>3.0}% {pages:>7}  {:.6}",
            gflop / wall,
            gflop / cpu,
            rows as f64 / wall,
            100.0 * cpu / all,
            100.0 * ready / all,
            100.0 * (all - cpu - ready) / all,
            outcome.loss,
        );
    }
    Ok(())
}

fn main() -> Result<()> {
    let options = options()?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build().expect("a pool");
    pool.install(|| run(&options))
}
