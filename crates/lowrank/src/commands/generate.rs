//! `lowrank generate`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lowrank::models::Sampling;
use lowrank::{Error, Limits, Result, Session, TextGenerator, TextOptions, continue_texts};

use super::Stdout;
use super::flags::options::{Base, OptionFlags};
use super::flags::search::SearchFlags;
use super::flags::weighted::Adapter;

/// Generate text or chat.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    base: OptionFlags<Base>,
    /// Adapter (folder, or file in any format) and its weight (1 by default); may be repeated. Those with a name are choices of a chat
    #[arg(long, value_name = "[NAME=]DIR[:WEIGHT]", value_parser = super::flags::weighted::named)]
    adapter: Vec<Adapter>,
    /// Text to continue [default: standard input]
    #[arg(long)]
    prompt: Option<String>,
    /// Read the text to continue from a file
    #[arg(long, value_name = "FILE", conflicts_with = "prompt", hide_short_help = true)]
    prompt_file: Option<PathBuf>,
    /// Chat with the model: --prompt is the first message, then each line of standard input is one, or a command (/help)
    #[arg(long)]
    chat: bool,
    /// System message of a chat
    #[arg(long, requires = "chat")]
    system: Option<String>,
    /// Maximum number of new tokens
    #[arg(long, value_parser = super::flags::ranges::whole::<usize>("max_new_tokens"), default_value_t = 256)]
    max_new_tokens: usize,
    /// Sampling temperature; 0 always takes the most likely token
    #[arg(long, value_parser = super::flags::ranges::real_f32("temperature"), default_value_t = 0.0, help_heading = "Sampling")]
    temperature: f32,
    /// Sample from the K most likely tokens; 0 turns this off
    #[arg(long, value_parser = super::flags::ranges::whole::<usize>("top_k"), default_value_t = 0, hide_short_help = true, help_heading = "Sampling")]
    top_k: usize,
    /// Sample from the most likely tokens whose probabilities add up to P
    #[arg(long, value_parser = super::flags::ranges::real_f32("top_p"), default_value_t = 1.0, help_heading = "Sampling")]
    top_p: f32,
    /// Sample from tokens with at least this share of the most likely one's probability
    #[arg(long, value_parser = super::flags::ranges::real_f32("min_p"), default_value_t = 0.0, hide_short_help = true, help_heading = "Sampling")]
    min_p: f32,
    /// Penalty on tokens that have occurred, above 1 to repeat less
    #[arg(long, value_parser = super::flags::ranges::real_f32("repetition_penalty"), default_value_t = 1.0, hide_short_help = true, help_heading = "Sampling")]
    repetition_penalty: f32,
    /// Stop at this text, which is left out; may be repeated
    #[arg(long, hide_short_help = true)]
    stop: Vec<String>,
    #[command(flatten)]
    search: SearchFlags,
    /// Random seed
    #[arg(long, value_parser = super::flags::ranges::whole::<u64>("seed"), default_value_t = 0, hide_short_help = true, help_heading = "Sampling")]
    seed: u64,
    /// Print the times of prompt and tokens as JSON on standard error
    #[arg(long, conflicts_with = "chat", hide_short_help = true)]
    timings: bool,
}

impl Args {
    fn sampling(&self) -> Result<Sampling> {
        let sampled = self.temperature > 0.0 || self.repetition_penalty != 1.0;
        if self.search.is_search() && (sampled || self.chat) {
            return Err(Error::Usage(
                "--num-beams and --no-repeat-ngram-size search for the likeliest text: drop --temperature, \
                 --repetition-penalty and --chat"
                    .into(),
            ));
        }
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            ..Sampling::default()
        };
        sampling.check()?;
        Ok(sampling)
    }

    fn limits(&self) -> Limits {
        Limits { max_new_tokens: self.max_new_tokens, stop: self.stop.clone() }
    }

    fn prompt(&self) -> Result<Option<String>> {
        Ok(match (&self.prompt, &self.prompt_file) {
            (Some(text), _) => Some(text.clone()),
            (None, Some(path)) => Some(super::read_text(path)?),
            (None, None) => None,
        })
    }
}

/// Generates.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    super::on_threads(args.base.options()?.threads, || work(args, out))
}

fn work(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    let (options, sampling) = (args.base.options()?, args.sampling()?);
    let dirs = args.adapter.iter().map(|adapter| &adapter.dir);
    let session = Session::open_as(&options.model, options.load_options())?
        .with_chat_template(options.chat_template.as_deref(), dirs)?
        .on_device(options.device)?;
    if args.chat {
        let (first, system) = (args.prompt()?, args.system.clone());
        let talk = super::chat::Talk { session: &session, sampling, limits: args.limits(), first, system };
        return super::chat::chat(talk, &args.adapter, out);
    }
    if let Some(named) = args.adapter.iter().find_map(|adapter| adapter.name.as_ref()) {
        return Err(Error::Usage(format!(
            "`adapter` has a name, {named}: names are for a chat, where /adapter {named} chooses it; give `chat`, or the folder alone"
        )));
    }
    let adapters: Vec<_> = args.adapter.iter().map(|adapter| (adapter.dir.clone(), adapter.weight)).collect();
    let adapters = session.adapters(&adapters)?;
    let device = session.device();
    let stop = Arc::new(AtomicBool::new(false));
    let mut generator = TextGenerator::new(&session, &device, &adapters)?.stop_when(stop.clone());
    let prompt = match args.prompt()? {
        Some(text) => text,
        None => super::read_standard_input(false)?.unwrap_or_default(),
    };
    if args.search.is_search() {
        let how = TextOptions {
            search: args.search.options()?,
            max_new_tokens: args.max_new_tokens,
            batch_size: 1,
            stop: args.stop.clone(),
        };
        writeln!(out, "{}", continue_texts(&session, &adapters, &[&prompt], &how, |_| {})?[0])?;
        return Ok(ExitCode::SUCCESS);
    }
    let tokens = generator.prompt(&prompt)?;
    let made = generator.generate(&tokens, &sampling, &args.limits(), |text| out.show(text, &stop))?;
    writeln!(out)?;
    if args.timings {
        let timings = serde_json::json!({
            "prompt_tokens": tokens.len(),
            "prompt_s": made.prompt_time.as_secs_f64(),
            // The first came with the prompt.
            "tokens": made.tokens.len().saturating_sub(1),
            "decode_s": made.decode_time.as_secs_f64(),
        });
        note!("{timings}");
    }
    Ok(ExitCode::SUCCESS)
}
