//! `lowrank serve`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lowrank::adapters::{AdapterSet, read_task};
use lowrank::engine::Device;
use lowrank::files::write_atomic;
use lowrank::models::{ChatTemplate, Model, Tokenizer, base_name};
use lowrank::{Error, Result, Session, TaskModel, TrainOptions};
use lowrank_serve::{HeadModel, Host, HostError, ServeOptions, TrainRun, parse_adapter, serve};
use serde::Deserialize;
use toml::Value as Toml;

use super::flags::options::{Base, OptionFlags};
use super::flags::ranges;
use super::{Stdout, signals};

/// How long requests may go on after a request to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// Serve a model and its adapters to OpenAI's clients.
///
/// Requests name the base model or an adapter as their `model`; requests for different adapters are computed in one batch. The
/// server listens on this machine alone unless --host says otherwise, and has no TLS: put a proxy in front of it.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    base: OptionFlags<Base>,
    #[command(flatten)]
    flags: Flags,
    /// Read options from a TOML file, by their names with underscores; flags take precedence
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    config: Option<PathBuf>,
}

macro_rules! flags {
    ($($(#[$attribute:meta])* $name:ident: $kind:ty,)*) => {
        /// The options of the server itself.
        #[derive(clap::Args, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct Flags {
            $($(#[$attribute])* $name: $kind,)*
        }

        impl Flags {
            const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            /// These, or where they do not say, those of `other`.
            fn or(self, other: Self) -> Self {
                Self { $($name: if is_given(&self.$name) { self.$name } else { other.$name },)* }
            }
        }
    };
}

flags! {
    /// Load an adapter under a name; may be repeated
    #[arg(long, value_name = "NAME=DIR", value_parser = checked_adapter)]
    adapter: Vec<String>,
    /// Offer every adapter in this folder under its own name, new ones as they come; each is loaded when first asked for
    #[arg(long, value_name = "DIR")]
    adapters_dir: Option<PathBuf>,
    /// Address to listen on; 0.0.0.0 for all networks [default: 127.0.0.1]
    #[arg(long)]
    host: Option<IpAddr>,
    /// Port to listen on; 0 takes a free one [default: 8080]
    #[arg(long, value_parser = ranges::whole::<u16>("port"))]
    port: Option<u16>,
    /// Name of the base model in requests [default: its file name or hub id]
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    served_model_name: Option<String>,
    /// Offer fine-tuning, and keep uploaded files and jobs in this folder
    #[arg(long, value_name = "DIR")]
    jobs_dir: Option<PathBuf>,
    /// Require one of the keys in this file, one a line (also: LOWRANK_API_KEY)
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Maximum number of requests of one key at once; 0 for any number [default: 0]
    #[arg(long, value_name = "N", value_parser = ranges::whole::<usize>("max_requests_per_key"), hide_short_help = true)]
    max_requests_per_key: Option<usize>,
    /// Maximum number of texts decoded together [default: 32]
    #[arg(long, value_name = "N", value_parser = ranges::whole::<usize>("max_batch"))]
    max_batch: Option<usize>,
    /// Maximum number of waiting requests; more are answered with status 429 [default: 1024]
    #[arg(long, value_name = "N", value_parser = ranges::whole::<usize>("max_queue"), hide_short_help = true)]
    max_queue: Option<usize>,
    /// Maximum number of new tokens of a request [default: 1024]
    #[arg(long, value_name = "N", value_parser = ranges::whole::<usize>("max_new_tokens"), hide_short_help = true)]
    max_new_tokens: Option<usize>,
    /// Memory for keys and values, in MiB [default: 1024]
    #[arg(long, value_name = "MIB", value_parser = ranges::whole::<usize>("cache_mb"))]
    cache_mb: Option<usize>,
    /// Memory for loaded adapters, in MiB; those not used for longest are evicted [default: 1024]
    #[arg(long, value_name = "MIB", value_parser = ranges::whole::<usize>("adapter_mb"))]
    adapter_mb: Option<usize>,
    /// Maximum size of a request, in MiB [default: 8]
    #[arg(long, value_name = "MIB", value_parser = ranges::whole::<usize>("max_body_mb"), hide_short_help = true)]
    max_body_mb: Option<usize>,
    /// Let web pages of this origin use the server (* for all); may be repeated
    #[arg(long, value_name = "ORIGIN", hide_short_help = true)]
    cors_origin: Vec<String>,
    /// Seconds that a client may take to send a request [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = ranges::whole::<u64>("read_timeout"), hide_short_help = true)]
    read_timeout: Option<u64>,
    /// Seconds that a request may take [default: 1800]
    #[arg(long, value_name = "SECONDS", value_parser = ranges::whole::<u64>("request_timeout"), hide_short_help = true)]
    request_timeout: Option<u64>,
    /// Print prompts into the log
    #[arg(long, hide_short_help = true)]
    log_prompts: bool,
}

/// What tells an option that was given.
trait Given {
    fn is_given(&self) -> bool;
}

impl<T> Given for Option<T> {
    fn is_given(&self) -> bool {
        self.is_some()
    }
}

impl<T> Given for Vec<T> {
    fn is_given(&self) -> bool {
        !self.is_empty()
    }
}

impl Given for bool {
    fn is_given(&self) -> bool {
        *self
    }
}

fn is_given(value: &impl Given) -> bool {
    value.is_given()
}

fn checked_adapter(text: &str) -> std::result::Result<String, String> {
    parse_adapter(text).map(|_| text.to_owned())
}

/// A session, as the server uses it.
struct Served {
    session: Session,
    id: String,
    tokenizer: Arc<Tokenizer>,
    stop_tokens: Vec<u32>,
    /// How the base was opened: model and load options.
    base: toml::Table,
}

impl Host for Served {
    fn id(&self) -> &str {
        &self.id
    }

    fn model(&self) -> &dyn Model {
        &*self.session.model
    }

    fn device(&self) -> Device {
        self.session.device()
    }

    fn tokenizer(&self) -> Arc<Tokenizer> {
        self.tokenizer.clone()
    }

    fn chat_template(&self) -> Option<&ChatTemplate> {
        self.session.base.has_chat_template().then(|| self.session.base.chat().ok()).flatten()
    }

    fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    fn prompt(&self, text: &str) -> std::result::Result<Vec<u32>, HostError> {
        Ok(self.session.prompt(text)?)
    }

    fn load_adapter(&self, path: &Path) -> std::result::Result<AdapterSet, HostError> {
        Ok(self.session.adapter(Some(path))?)
    }

    fn has_head(&self, path: &Path) -> bool {
        read_task(path).is_ok_and(|task| task.is_some())
    }

    fn head(&self, path: &Path) -> std::result::Result<Box<dyn HeadModel>, HostError> {
        let options = TrainOptions::from_table(self.base.clone())?;
        Ok(Box::new(Head(TaskModel::open(&options.model, options.load_options(), path)?)))
    }

    fn train(&self, run: &TrainRun) -> std::result::Result<Command, HostError> {
        let mut table = self.base.clone();
        table.extend(TrainOptions::named(toml::Table::try_from(&run.options)?)?);
        let path = |path: &Path| Toml::String(path.to_string_lossy().into_owned());
        table.insert("data".into(), path(&run.data));
        table.insert("data_format".into(), "jsonl".into());
        table.insert("out".into(), path(&run.out));
        table.insert("seed".into(), Toml::Integer((run.seed >> 1) as i64));
        table.extend(run.eval_data.as_ref().map(|data| ("eval_data".into(), path(data))));
        table.extend(run.epochs.map(|epochs| ("epochs".into(), Toml::Float(epochs))));
        table.extend(run.batch_size.map(|size| ("batch_size".into(), Toml::Integer(size as i64))));
        if let Some(factor) = run.learning_rate_multiplier {
            let usual =
                TrainOptions::from_table(table.clone())?.resolved(self.model()).learning_rate.unwrap_or(0.0);
            table.insert("learning_rate".into(), Toml::Float(factor * usual));
        }
        TrainOptions::from_table(table.clone())?;
        write_atomic(&run.config, toml::to_string(&table)?.as_bytes())?;
        let mut command = super::program::command()?;
        command.arg("train").arg("--config").arg(&run.config);
        if run.resume {
            command.arg("--resume");
        }
        Ok(command)
    }
}

struct Head(TaskModel);

impl HeadModel for Head {
    fn labels(&self) -> &[String] {
        self.0.labels()
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn outputs(&self, texts: &[(String, Option<String>)]) -> std::result::Result<Vec<Vec<f32>>, HostError> {
        Ok(self.0.outputs(texts)?)
    }
}

/// Serves.
pub fn run(args: &Args, _: &mut Stdout) -> Result<ExitCode> {
    let (base, flags) = args.merged()?;
    let options = TrainOptions::from_table(base.clone())?;
    let serve_options = flags.options(options.threads)?;
    let session = Session::open_as(&options.model, options.load_options())?
        .with_chat_template(options.chat_template.as_deref(), [])?
        .on_device(options.device)?;
    let host = Served {
        id: flags
            .served_model_name
            .unwrap_or_else(|| base_name(&options.model).trim_end_matches(".gguf").to_owned()),
        tokenizer: session.tokenizer()?,
        stop_tokens: session.ends()?,
        session,
        base,
    };
    let stop = signals::count("waiting for requests to end; once more ends them")?;
    let name = host.id.clone();
    let server = serve(Arc::new(host), serve_options).map_err(|e| match e.status.is_server_error() {
        true => Error::Failed(e.to_string()),
        false => Error::Usage(e.to_string()),
    })?;
    note!("serving {name} on http://{}", server.address());
    while stop.load(Ordering::Relaxed) == 0 {
        std::thread::sleep(Duration::from_millis(50));
    }
    let again = stop.clone();
    std::thread::spawn(move || {
        while again.load(Ordering::Relaxed) < 2 {
            std::thread::sleep(Duration::from_millis(50));
        }
        std::process::exit(130);
    });
    server.drain(PATIENCE);
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// The options of the base and of the server, from flags and file.
    fn merged(&self) -> Result<(toml::Table, Flags)> {
        let flags = self.flags.copy();
        let Some(path) = &self.config else { return Ok((self.base.given.clone(), flags)) };
        let wrong = |what: String| Error::Usage(format!("{}: {what}", path.display()));
        let mut table: toml::Table =
            super::read_text(path)?.parse().map_err(|e: toml::de::Error| wrong(e.to_string()))?;
        let mut base = toml::Table::new();
        for name in <Base as super::flags::options::Known>::NAMES {
            base.extend(table.remove(*name).map(|value| ((*name).to_owned(), value)));
        }
        for (key, value) in &table {
            if let (Some(range), Some(number)) = (ranges::range(key), value.as_integer())
                && !range.contains_whole(number.into())
            {
                return Err(wrong(format!("{key}: {}", range.refusal(value))));
            }
            if !Flags::NAMES.contains(&key.as_str()) {
                let known = Flags::NAMES.iter().chain(<Base as super::flags::options::Known>::NAMES).copied();
                return Err(wrong(lowrank::files::unknown("option", key, known)));
            }
        }
        let file: Flags = table.try_into().map_err(|e: toml::de::Error| wrong(e.message().to_owned()))?;
        base.extend(self.base.given.clone());
        Ok((base, flags.or(file)))
    }
}

impl Flags {
    fn copy(&self) -> Self {
        Self {
            adapter: self.adapter.clone(),
            adapters_dir: self.adapters_dir.clone(),
            jobs_dir: self.jobs_dir.clone(),
            served_model_name: self.served_model_name.clone(),
            api_key_file: self.api_key_file.clone(),
            cors_origin: self.cors_origin.clone(),
            ..*self
        }
    }

    fn options(&self, threads: Option<usize>) -> Result<ServeOptions> {
        let default = ServeOptions::default();
        let mib = |given: Option<usize>, default: usize| given.map_or(default, |mib| mib << 20);
        let seconds = |given: Option<u64>, default| given.map_or(default, Duration::from_secs);
        let adapters: std::result::Result<Vec<_>, _> =
            self.adapter.iter().map(|text| parse_adapter(text)).collect();
        if let Some(folder) = self.adapters_dir.as_ref().filter(|folder| !folder.is_dir()) {
            return Err(Error::Usage(format!("`adapters_dir`: {} is not a folder", folder.display())));
        }
        let options = ServeOptions {
            host: self.host.unwrap_or(default.host),
            port: self.port.unwrap_or(default.port),
            adapters: adapters.map_err(Error::Usage)?,
            adapters_dir: self.adapters_dir.clone(),
            jobs_dir: self.jobs_dir.clone(),
            api_keys: self.api_keys()?,
            max_requests_per_key: self.max_requests_per_key.unwrap_or(default.max_requests_per_key),
            threads,
            max_batch: self.max_batch.unwrap_or(default.max_batch),
            max_queue: self.max_queue.unwrap_or(default.max_queue),
            max_new_tokens: self.max_new_tokens.unwrap_or(default.max_new_tokens),
            cache_bytes: mib(self.cache_mb, default.cache_bytes),
            adapter_bytes: mib(self.adapter_mb, default.adapter_bytes),
            max_body: mib(self.max_body_mb, default.max_body),
            cors_origins: self.cors_origin.clone(),
            read_timeout: seconds(self.read_timeout, default.read_timeout),
            request_timeout: seconds(self.request_timeout, default.request_timeout),
            log_prompts: self.log_prompts,
        };
        if !options.host.is_loopback() && options.api_keys.is_empty() {
            note!(
                "warning: everybody who reaches {} may use this server: --api-key-file names keys",
                options.host
            );
        }
        Ok(options)
    }

    fn api_keys(&self) -> Result<Vec<String>> {
        let mut keys: Vec<String> = std::env::var("LOWRANK_API_KEY").ok().into_iter().collect();
        if let Some(path) = &self.api_key_file {
            keys.extend(super::read_text(path)?.lines().map(|line| line.trim().to_owned()));
            keys.retain(|key| !key.is_empty());
            if keys.is_empty() {
                return Err(Error::Usage(format!("{}: has no key", path.display())));
            }
        }
        keys.retain(|key| !key.is_empty());
        Ok(keys)
    }
}
