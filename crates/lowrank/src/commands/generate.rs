//! `lowrank generate`.

use std::fs;
use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lowrank::models::{Message, Sampling};
use lowrank::{Error, Limits, Result, Session, TextGenerator, TextOptions, continue_texts};

use super::Stdout;
use super::flags::options::{Base, OptionFlags};
use super::flags::search::SearchFlags;

/// What to continue and how.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    base: OptionFlags<Base>,
    /// Adapter folder, with its weight after a colon where it is not 1; may be given several times
    #[arg(long, value_name = "DIR[:WEIGHT]", value_parser = super::flags::weighted::weighted)]
    adapter: Vec<(PathBuf, f32)>,
    /// The text to continue [default: standard input]
    #[arg(long)]
    prompt: Option<String>,
    /// Read the text to continue from a file
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// Talk with the model: --prompt is the first message, then one message a line
    #[arg(long)]
    chat: bool,
    /// System message of a chat
    #[arg(long, requires = "chat")]
    system: Option<String>,
    /// Tokens at most
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// 0 takes the most likely token each time
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Only the k most likely; 0 for all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Only the most likely that together have this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Only those with at least this share of the best one's probability
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Above 1, tokens that occurred become less likely
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Text that ends the answer; may be given several times
    #[arg(long)]
    stop: Vec<String>,
    #[command(flatten)]
    search: SearchFlags,
    /// Random seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print the times of prompt and tokens, as JSON on standard error
    #[arg(long, conflicts_with = "chat")]
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
            (None, Some(path)) => {
                Some(fs::read_to_string(path).map_err(|e| Error::Usage(format!("{}: {e}", path.display())))?)
            }
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
    let session = Session::open_as(&options.model, options.load_options())?;
    let adapters = session.adapters(&args.adapter)?;
    let device = session.device();
    let stop = Arc::new(AtomicBool::new(false));
    let mut generator = TextGenerator::new(&session, &device, &adapters)?.stop_when(stop.clone());
    if args.chat {
        return chat(args, &session, &mut generator, &stop, out);
    }
    let prompt = match args.prompt()? {
        Some(text) => text,
        None => io::read_to_string(io::stdin()).map_err(|e| Error::Usage(format!("standard input: {e}")))?,
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

fn chat(
    args: &Args,
    session: &Session,
    generator: &mut TextGenerator<'_>,
    stop: &AtomicBool,
    out: &mut Stdout,
) -> Result<ExitCode> {
    let (sampling, limits) = (args.sampling()?, args.limits());
    let mut messages: Vec<Message> = args.system.iter().map(|s| Message::new("system", s)).collect();
    let mut lines = io::stdin().lock().lines();
    let mut next = args.prompt()?;
    loop {
        let said = match next.take() {
            Some(text) => text,
            None => {
                if io::stdin().is_terminal() {
                    note_part!("> ");
                }
                match lines.next() {
                    None => return Ok(ExitCode::SUCCESS),
                    Some(line) => line.map_err(|e| Error::Usage(format!("standard input: {e}")))?,
                }
            }
        };
        if said.trim().is_empty() {
            continue;
        }
        messages.push(Message::new("user", &said));
        let tokens = session.chat_prompt(&messages[..].into())?;
        let answer = generator.generate(&tokens, &sampling, &limits, |text| out.show(text, stop))?;
        writeln!(out)?;
        messages.push(Message::new("assistant", answer.text));
    }
}
