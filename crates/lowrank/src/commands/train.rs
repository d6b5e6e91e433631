//! `lowrank train`.

use std::path::PathBuf;
use std::process::ExitCode;

use lowrank::train::Summary;
use lowrank::{Error, Result, Session, TrainOptions, all_well, finetune};

use super::flags::options::{All, OptionFlags};
use super::{Stdout, ranks};

/// Train an adapter.
#[derive(clap::Args)]
pub struct Args {
    /// TOML file with any of the flags as keys; flags take precedence, those with KEY=VALUE key by key
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Show the run as it goes on a page of this machine; with a port, there (0 takes a free one)
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true, default_missing_value = "6006", value_parser = super::flags::ranges::whole::<u16>("port"))]
    dashboard: Option<u16>,
    /// Start this number of processes on this machine and share the work; mpirun and srun start them on several
    #[arg(long, value_name = "N", value_parser = super::flags::ranges::whole::<usize>("processes"))]
    processes: Option<usize>,
    #[command(flatten)]
    flags: OptionFlags<All>,
}

impl Args {
    /// The options that the file and the flags make.
    pub fn options(&self) -> Result<TrainOptions> {
        let mut table = match &self.config {
            Some(path) => super::config_file::read(path)?,
            None => toml::Table::new(),
        };
        for (key, given) in self.flags.given.clone() {
            match (table.get_mut(&key), given) {
                // Tables of options take precedence entry by entry.
                (Some(toml::Value::Table(table)), toml::Value::Table(given)) => table.extend(given),
                (_, given) => {
                    table.insert(key, given);
                }
            }
        }
        TrainOptions::from_table(table)
    }
}

/// Trains.
pub fn run(args: &Args, _: &mut Stdout) -> Result<ExitCode> {
    let comm = ranks::connect(args.processes)?;
    let checked = || {
        let options = args.options()?;
        options.check()?;
        Ok(options)
    };
    let options = all_well(&*comm, checked())?;
    if let Some(port) = args.dashboard.filter(|_| comm.is_first()) {
        let log = options.log_json.clone().unwrap_or_else(|| options.out.join(lowrank::LOG_FILE));
        let (url, _) = super::dashboard::serve(&log, port)?;
        note!("{url} shows the run as it goes");
    }
    let stop = super::signals::stop("stopping after this step; again to stop at once")?;
    let threads = ranks::threads(&*comm, options.threads)?;
    let trained = super::on_threads(threads, || {
        let session = all_well(&*comm, Session::for_run(&options))?.with_communicator(comm.clone());
        finetune(&session, &options, &stop)
    });
    if trained.is_ok() {
        comm.finish()?;
    }
    match trained {
        Err(Error::NotPushed { summary, what }) => {
            say(&summary, &options);
            Err(Error::NotPushed { summary, what })
        }
        trained => Ok(say(&trained?, &options)),
    }
}

/// Says what came of a run.
fn say(summary: &Summary, options: &TrainOptions) -> ExitCode {
    let out = options.out.display();
    if summary.interrupted {
        note!("stopped after step {}; continue with --resume", summary.steps);
        return ExitCode::from(130);
    }
    if summary.stopped_early {
        note!("stopped early: the held-out loss falls no more");
    }
    if let (true, Some(first), Some(last)) = (summary.loss_rose, summary.first_loss, summary.last_loss) {
        note!(
            "warning: the loss rose from {first:.4} to {last:.4}: try a lower --learning-rate, such as {:e}",
            summary.learning_rate / 10.0
        );
    }
    if let (true, Some(first), Some(last)) = (summary.loss_stayed, summary.first_loss, summary.last_loss) {
        note!(
            "warning: hardly anything was learned, the loss went from {first:.4} to {last:.4}: try a higher \
             --learning-rate, such as {:e}, --target-modules all-linear, or more --epochs",
            summary.learning_rate * 5.0
        );
    }
    if let (Some((step, best)), Some(now)) = (summary.best, summary.eval_loss)
        && now > 1.05 * best
        && !summary.wrote_best
    {
        note!(
            "warning: the held-out loss was lowest at step {step}, {best:.4}, and is {now:.4} now: the data is being \
             memorised. Try --load-best-model-at-end, --early-stopping-patience 3, or fewer --epochs"
        );
    } else if let (Some(last), Some(now)) = (summary.last_loss, summary.eval_loss)
        && now > 1.0
        && last < 0.1 * now
    {
        note!(
            "warning: the training loss, {last:.4}, is far below the held-out one, {now:.4}: the data is being memorised. \
             Try fewer --epochs, or --eval-steps with --early-stopping-patience 3"
        );
    }
    if let (true, Some((step, best))) = (summary.wrote_best, summary.best) {
        note!("the adapter is that of step {step}, whose held-out loss was lowest: {best:.4}");
    }
    let of_last = summary.final_loss.map(|l| format!(" (last step {l:.4})")).unwrap_or_default();
    let loss = summary.last_loss.map(|l| format!(", loss {l:.4}{of_last}")).unwrap_or_default();
    let eval = summary.eval_loss.map(|l| format!(", held-out loss {l:.4}")).unwrap_or_default();
    let metrics: String = summary
        .eval_metrics
        .iter()
        .map(|(name, value)| format!(", {} {value:.4}", name.replace('_', " ")))
        .collect();
    note!("{} steps{loss}{eval}{metrics}; adapter written to {out}", summary.steps);
    ExitCode::SUCCESS
}
