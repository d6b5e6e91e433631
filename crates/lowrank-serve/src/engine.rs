//! The engine: one thread that owns the decoder.
//!
//! Commands reach it in order, so a request always finds the routed set that its adapter is in.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;
use std::time::Instant;

use lowrank_engine::{ActiveAdapters, Params};
use lowrank_models::decode::{Event, Finish, Logprobs, RequestId};
use lowrank_models::{Decoder, DecoderOptions, Request};
use tokio::sync::{mpsc as channel, oneshot};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::lease::Lease;
use crate::metrics::Metrics;
use crate::options::ServeOptions;

/// What happened to a request.
#[derive(Clone, Debug)]
pub enum Update {
    /// It is being computed; so many tokens of its prompt were in the cache.
    Joined { cached: usize },
    /// A text got its next token.
    Token { choice: usize, token: u32, logprobs: Option<Logprobs> },
    /// A text ended.
    Finished { choice: usize, reason: Finish },
    /// It is over.
    Failed(Error),
}

enum Command {
    Route(ActiveAdapters),
    /// Keys and values of these contents are of no use any more.
    Forget(u64),
    Submit(Box<Job>),
    EndChoice {
        ticket: u64,
        choice: usize,
    },
    Leave {
        ticket: u64,
    },
    Compute(Box<dyn FnOnce() + Send>),
    End,
}

struct Job {
    ticket: u64,
    request: Request,
    updates: channel::UnboundedSender<Update>,
    lease: Option<Lease>,
}

/// A request that joined the decoder.
struct Running {
    ticket: u64,
    id: RequestId,
    updates: channel::UnboundedSender<Update>,
    /// Texts that go on.
    left: usize,
    /// Its adapter keeps its place in the routed set as long as this.
    _lease: Option<Lease>,
}

/// A handle to the engine.
#[derive(Clone)]
pub struct Engine {
    commands: Sender<Command>,
    tickets: Arc<AtomicU64>,
    /// Requests that wait or go on.
    load: Arc<AtomicUsize>,
    max_load: usize,
}

/// A request on its way: it ends when this is dropped.
pub struct Ticket {
    engine: Engine,
    ticket: u64,
    updates: channel::UnboundedReceiver<Update>,
}

impl Ticket {
    /// What happens next; nothing after the end.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }

    /// Ends one of the texts.
    pub fn end_choice(&self, choice: usize) {
        let _ = self.engine.commands.send(Command::EndChoice { ticket: self.ticket, choice });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let _ = self.engine.commands.send(Command::Leave { ticket: self.ticket });
    }
}

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// Where there are no threads.
    pub fn start(
        host: Arc<dyn Host>,
        metrics: Arc<Metrics>,
        options: &ServeOptions,
    ) -> Result<(Self, JoinHandle<()>)> {
        let ServeOptions { threads, cache_bytes, max_batch, max_queue, .. } = *options;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.unwrap_or(0))
            .build()
            .map_err(|e| Error::failed(format!("cannot start threads: {e}")))?;
        let (commands, receiver) = mpsc::channel();
        let engine =
            Self { commands, tickets: Arc::default(), load: Arc::default(), max_load: max_batch + max_queue };
        let load = engine.load.clone();
        let work = move || {
            let (device, params) = (host.device(), Params::default());
            let info = host.model().info();
            let row_bytes = 2 * size_of::<f32>() * info.kv_widths.iter().sum::<usize>();
            let cache_rows = (cache_bytes / row_bytes.max(1)).max(1);
            metrics.cache_capacity_rows.set(cache_rows as u64);
            let options = DecoderOptions { cache_rows, ..DecoderOptions::default() };
            let decoder =
                Decoder::new(host.model(), &device, &params, &ActiveAdapters::default(), options).ok();
            let mut thread = Thread {
                decoder,
                receiver,
                metrics,
                load,
                max_batch,
                waiting: VecDeque::new(),
                running: Vec::new(),
                ending: false,
            };
            if let Some(decoder) = &mut thread.decoder {
                decoder.set_adapters(ActiveAdapters::default());
            }
            thread.run();
        };
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || pool.install(work))
            .map_err(|e| Error::failed(format!("cannot start the engine's thread: {e}")))?;
        Ok((engine, thread))
    }

    /// From now on these are the adapters.
    pub fn route(&self, adapters: ActiveAdapters) {
        let _ = self.commands.send(Command::Route(adapters));
    }

    /// Drops the keys and values that are kept for these contents.
    pub fn forget(&self, contents: u64) {
        let _ = self.commands.send(Command::Forget(contents));
    }

    /// Hands a request over.
    ///
    /// # Errors
    /// Where too many wait.
    pub fn submit(&self, request: Request, lease: Option<Lease>) -> Result<Ticket> {
        if self.load.fetch_add(1, Ordering::Relaxed) >= self.max_load {
            self.load.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::busy("too many requests wait: try again later"));
        }
        let (updates, receiver) = channel::unbounded_channel();
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let job = Job { ticket, request, updates, lease };
        self.commands.send(Command::Submit(Box::new(job))).map_err(|_| Error::ending())?;
        Ok(Ticket { engine: self.clone(), ticket, updates: receiver })
    }

    /// Runs `work` on the engine's thread, between two steps.
    ///
    /// # Errors
    /// Where the engine has ended.
    pub async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        let work = move || {
            let _ = sender.send(work());
        };
        self.commands.send(Command::Compute(Box::new(work))).map_err(|_| Error::ending())?;
        receiver.await.map_err(|_| Error::ending())
    }

    /// Requests that wait or go on.
    pub fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Ends the thread, and with it all requests.
    pub fn end(&self) {
        let _ = self.commands.send(Command::End);
    }
}

struct Thread<'m> {
    /// None of a model that does not generate.
    decoder: Option<Decoder<'m>>,
    receiver: Receiver<Command>,
    metrics: Arc<Metrics>,
    load: Arc<AtomicUsize>,
    max_batch: usize,
    waiting: VecDeque<Job>,
    running: Vec<Running>,
    ending: bool,
}

impl Thread<'_> {
    fn run(&mut self) {
        while !self.ending {
            let idle = self.running.is_empty() && self.waiting.is_empty();
            if idle {
                match self.receiver.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => return,
                }
            }
            loop {
                match self.receiver.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.admit();
            self.step();
            self.metrics.running.set(self.running.len() as u64);
            self.metrics.waiting.set(self.waiting.len() as u64);
        }
        for running in std::mem::take(&mut self.running) {
            let _ = running.updates.send(Update::Failed(Error::ending()));
        }
        for job in std::mem::take(&mut self.waiting) {
            let _ = job.updates.send(Update::Failed(Error::ending()));
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Route(adapters) => {
                if let Some(decoder) = &mut self.decoder {
                    decoder.set_adapters(adapters);
                }
            }
            Command::Forget(contents) => {
                if let Some(decoder) = &mut self.decoder {
                    decoder.forget(contents);
                }
            }
            Command::Submit(job) => self.waiting.push_back(*job),
            Command::EndChoice { ticket, choice } => {
                if let Some(at) = self.running.iter().position(|running| running.ticket == ticket)
                    && let Some(decoder) = &mut self.decoder
                {
                    let running = &mut self.running[at];
                    decoder.end_choice(running.id, choice);
                    running.left = running.left.saturating_sub(1);
                    if running.left == 0 {
                        self.end(at);
                    }
                }
            }
            Command::Leave { ticket } => {
                if let Some(at) = self.waiting.iter().position(|job| job.ticket == ticket) {
                    self.waiting.remove(at);
                    self.load.fetch_sub(1, Ordering::Relaxed);
                }
                if let Some(at) = self.running.iter().position(|running| running.ticket == ticket) {
                    self.end(at);
                }
            }
            Command::Compute(work) => work(),
            Command::End => self.ending = true,
        }
    }

    /// Takes a request out of the decoder.
    fn end(&mut self, at: usize) {
        let running = self.running.remove(at);
        if let Some(decoder) = &mut self.decoder {
            decoder.leave(running.id);
        }
        self.load.fetch_sub(1, Ordering::Relaxed);
    }

    /// Lets requests join in the order they came, as long as there is room.
    fn admit(&mut self) {
        let Some(decoder) = &mut self.decoder else {
            for job in self.waiting.drain(..) {
                let _ = job.updates.send(Update::Failed(Error::request("this model does not generate text")));
                self.load.fetch_sub(1, Ordering::Relaxed);
            }
            return;
        };
        let texts = |running: &[Running]| running.iter().map(|running| running.left).sum::<usize>();
        while let Some(job) = self.waiting.front() {
            let fits =
                self.running.is_empty() || texts(&self.running) + job.request.choices <= self.max_batch;
            if !fits {
                break;
            }
            let cached = decoder.cached(&job.request);
            match decoder.join(&job.request) {
                Ok(id) => {
                    let Some(job) = self.waiting.pop_front() else { return };
                    let (left, prompt) = (job.request.choices, job.request.prompt.len());
                    self.metrics.prompt_tokens.add(prompt as u64);
                    self.metrics.cached_tokens.add(cached as u64);
                    let _ = job.updates.send(Update::Joined { cached });
                    self.running.push(Running {
                        ticket: job.ticket,
                        id,
                        updates: job.updates,
                        left,
                        _lease: job.lease,
                    });
                }
                Err(lowrank_models::Error::NoRoom { needed, capacity, .. }) if needed <= capacity => break,
                Err(error) => {
                    let Some(job) = self.waiting.pop_front() else { return };
                    let what = match error {
                        lowrank_models::Error::NoRoom { needed, capacity, .. } => format!(
                            "prompt and new tokens need {needed} rows of the cache, which has {capacity}: ask for fewer tokens, or \
                             start the server with more --cache-mb"
                        ),
                        error => error.to_string(),
                    };
                    let _ = job.updates.send(Update::Failed(Error::request(what)));
                    self.load.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
        self.metrics.cache_rows.set(self.metrics.cache_capacity_rows.get() - decoder.free_rows() as u64);
    }

    fn step(&mut self) {
        let Some(decoder) = &mut self.decoder else { return };
        if self.running.is_empty() {
            return;
        }
        let begin = Instant::now();
        let events = decoder.step();
        self.metrics.steps.add(1);
        self.metrics.step_microseconds.add(begin.elapsed().as_micros() as u64);
        for (id, event) in events {
            let Some(running) = self.running.iter_mut().find(|running| running.id == id) else { continue };
            let update = match event {
                Event::Token { choice, token, logprobs } => {
                    self.metrics.generated_tokens.add(1);
                    Update::Token { choice, token, logprobs }
                }
                Event::Finished { choice, reason } => {
                    running.left = running.left.saturating_sub(1);
                    Update::Finished { choice, reason }
                }
                Event::NotFinite => {
                    running.left = 0;
                    Update::Failed(Error::failed(lowrank_models::Error::NotFinite.to_string()))
                }
                Event::Found(_) => continue,
            };
            // Whoever asked may be gone; its ticket says so too.
            let _ = running.updates.send(update);
        }
        for at in (0..self.running.len()).rev() {
            if self.running[at].left == 0 {
                self.end(at);
            }
        }
    }
}
