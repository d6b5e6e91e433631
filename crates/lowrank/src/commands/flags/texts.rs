//! The part of `lowrank eval` that generates a text for every prompt and scores it against its references.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use lowrank::adapters::AdapterSet;
use lowrank::comm::Communicator;
use lowrank::train::data::read_groups_of;
use lowrank::train::nlg::NlgMetric;
use lowrank::{
    Error, Result, Session, TextOptions, TrainOptions, all_well, continue_texts, read_texts, segments,
    write_texts,
};
use serde_json::{Map, Value, json};

use super::adapter_files::Replace;
use super::search::SearchFlags;
use crate::commands::Stdout;

/// What to generate and score.
#[derive(clap::Args)]
pub struct TextFlags {
    /// Generate a text for every distinct prompt and score it: bleu, bleu-e2e, nist, meteor, rouge-l, cider
    #[arg(long, value_delimiter = ',', value_name = "NAMES", help_heading = "Generated texts")]
    metrics: Vec<NlgMetric>,
    /// Write the generated texts to this file: one a line, or .jsonl
    #[arg(long, value_name = "FILE", help_heading = "Generated texts", hide_short_help = true)]
    predictions: Option<PathBuf>,
    #[command(flatten)]
    replace: Replace,
    /// Score the texts in this file (one a line, or .jsonl) and generate none
    #[arg(long, value_name = "FILE", requires = "metrics", conflicts_with = "predictions")]
    #[arg(help_heading = "Generated texts", hide_short_help = true)]
    score: Option<PathBuf>,
    /// Use the first N distinct prompts only
    #[arg(long, value_parser = super::ranges::whole::<usize>("max_prompts"), value_name = "N", help_heading = "Generated texts", hide_short_help = true)]
    max_prompts: Option<usize>,
    /// Maximum number of new tokens in a text
    #[arg(long, value_parser = super::ranges::whole::<usize>("max_new_tokens"), default_value_t = 64, help_heading = "Generated texts")]
    max_new_tokens: usize,
    /// Stop at this text, which is left out; may be repeated
    #[arg(long, help_heading = "Generated texts", hide_short_help = true)]
    stop: Vec<String>,
    #[command(flatten)]
    search: SearchFlags,
}

impl TextFlags {
    /// Whether texts are wanted, and not the loss.
    pub fn wanted(&self) -> bool {
        !self.metrics.is_empty() || self.predictions.is_some()
    }

    /// Generates (or reads) and scores; `open` gives model and adapter. The first rank of `comm` prints and writes.
    pub fn generate_and_score(
        &self,
        options: &TrainOptions,
        json: bool,
        out: &mut Stdout,
        inputs: &[PathBuf],
        comm: &dyn Communicator,
        open: impl FnOnce() -> Result<(Session, AdapterSet)>,
    ) -> Result<ExitCode> {
        let read = || {
            self.replace.check(
                self.predictions.as_deref(),
                &inputs.iter().map(PathBuf::as_path).collect::<Vec<_>>(),
            )?;
            let mut groups = read_groups_of(&options.data.resolved_paths()?, &options.read_options()?)?;
            groups.truncate(self.max_prompts.unwrap_or(usize::MAX));
            match groups.is_empty() {
                true => Err(Error::Usage("`max_prompts` must be at least 1".into())),
                false => Ok(groups),
            }
        };
        let groups = all_well(comm, read())?;
        let references: usize = groups.iter().map(|g| g.references.len()).sum();
        note!("{} distinct prompts, {references} references", groups.len());
        let started = Instant::now();
        let texts = match &self.score {
            Some(path) => read_texts(path)?,
            None => {
                let how = TextOptions {
                    search: self.search.options()?,
                    max_new_tokens: self.max_new_tokens,
                    batch_size: options.batch_size,
                    stop: self.stop.clone(),
                };
                let (session, adapters) = all_well(comm, open())?;
                let prompts: Vec<&str> = groups.iter().map(|g| &g.prompt[..]).collect();
                continue_texts(&session, &adapters, &prompts, &how, |done| {
                    if comm.is_first() {
                        note_part!("\r{done} of {} texts", prompts.len());
                    }
                })?
            }
        };
        if self.score.is_none() {
            note!(" in {:.1} s", started.elapsed().as_secs_f64());
        }
        if !comm.is_first() {
            return Ok(ExitCode::SUCCESS);
        }
        let pairs = segments(&groups, &texts)?;
        if let Some(path) = &self.predictions {
            write_texts(path, &groups, &texts)?;
        }
        let scores =
            self.metrics.iter().map(|metric| (metric.name().to_owned(), json!(metric.score(&pairs))));
        let scores: Map<String, Value> = scores.collect();
        if json {
            writeln!(out, "{}", Value::Object(scores))?;
        } else {
            for (name, score) in &scores {
                writeln!(out, "{name:9} {:.4}", score.as_f64().unwrap_or(f64::NAN))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
