//! `lowrank train`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lowrank::{Error, Result, Session, TrainOptions, finetune};

use super::Stdout;
use super::flags::options::{All, OptionFlags};

/// Train an adapter.
#[derive(clap::Args)]
pub struct Args {
    /// TOML file with any of the flags as keys; flags take precedence
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: OptionFlags<All>,
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
        table.extend(self.flags.given.clone());
        TrainOptions::from_table(table)
    }
}

/// Trains.
pub fn run(args: &Args, _: &mut Stdout) -> Result<ExitCode> {
    let options = args.options()?;
    options.check()?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            // The second time they mean it.
            std::process::exit(130);
        }
        note!("\nstopping after this step; again to stop at once");
    })
    .map_err(|e| Error::Failed(format!("cannot watch for Ctrl-C: {e}")))?;

    let summary =
        super::on_threads(options.threads, || finetune(&Session::for_run(&options)?, &options, &stop))?;
    let out = options.out.display();
    if summary.interrupted {
        note!("stopped after step {}; continue with --resume", summary.steps);
        return Ok(ExitCode::from(130));
    }
    for (name, value) in &summary.eval_metrics {
        note!("held-out {} {value:.4}", name.replace('_', " "));
    }
    let loss = summary.last_loss.map(|l| format!(", loss {l:.4}")).unwrap_or_default();
    let eval = summary.eval_loss.map(|l| format!(", held-out loss {l:.4}")).unwrap_or_default();
    note!("{} steps{loss}{eval}; adapter written to {out}", summary.steps);
    Ok(ExitCode::SUCCESS)
}
