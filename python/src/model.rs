//! The engine: a base model with at most one adapter. `lowrank/_model.py` gives it its Python face.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use lowrank::adapters::AdapterSet;
use lowrank::comm::{Callback, set_process_rank};
use lowrank::engine::{DropoutKey, LmHead, Record, Scope, Segment, SiteKind, Tape, Tensor};
use lowrank::models::{Message, Sampling, TokenBatch, Tokenizer};
use lowrank::train::Scorer;
use lowrank::train::log::{Progress, Report};
use lowrank::{Error, Limits, MergeCheck, MergeTarget, Session, TextGenerator, TrainOptions};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use serde_json::json;

use crate::array::{Array, from_dlpack};
use crate::error::to_python;
use crate::interrupt::{self, Caller};
use crate::threads::pool;

/// A base model, mapped and not read, and the adapter that is on it.
#[pyclass(frozen, module = "lowrank")]
pub struct Engine {
    source: String,
    session: Session,
    adapter: RwLock<Arc<AdapterSet>>,
}

/// A conversation or a text.
#[derive(FromPyObject)]
enum Prompt {
    Text(String),
    /// Messages as JSON.
    Messages((String,)),
}

/// What training says on the way: its kind and its record in JSON.
type Told = (&'static str, String);

/// This process's rank, how many there are, and a function from bytes to the list of all ranks' bytes.
type Ranks = (usize, usize, Py<PyAny>);

fn communicator((rank, size, gather): Ranks) -> PyResult<Callback> {
    if rank >= size {
        return Err(PyValueError::new_err(format!("rank {rank} is not one of {size}: ranks begin at 0")));
    }
    set_process_rank(rank);
    let all_gather = move |message: &[u8]| {
        Python::attach(|py| gather.call1(py, (PyBytes::new(py, message),))?.extract::<Vec<Vec<u8>>>(py))
            .map_err(|error| error.to_string())
    };
    Ok(Callback::new(rank, size, Box::new(all_gather)))
}

fn options(text: &str) -> lowrank::Result<TrainOptions> {
    let table: toml::Table = serde_json::from_str(text).map_err(|e| Error::Usage(e.to_string()))?;
    TrainOptions::from_table(table)
}

fn tell(caller: &Caller<Told>, report: Report<'_>) {
    let json = |record| serde_json::to_string(record).expect("a record is plain numbers");
    caller.tell(match report {
        Report::Step(record) => ("step", json(&serde_json::to_value(record).expect("as above"))),
        Report::Eval(record) => ("eval", json(&serde_json::to_value(record).expect("as above"))),
        Report::Message(text) => ("message", text.to_owned()),
    });
}

impl Engine {
    fn adapter(&self) -> Arc<AdapterSet> {
        self.adapter.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_adapter(&self, adapter: AdapterSet) {
        *self.adapter.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(adapter);
    }

    /// Runs `work` on the threads, with the GIL free and Ctrl-C looked for.
    fn work<T: Send>(
        &self,
        py: Python<'_>,
        threads: usize,
        work: impl FnOnce() -> lowrank::Result<T> + Send,
    ) -> PyResult<T> {
        let (result, raised) = interrupt::run(py, &*pool(threads)?, |_: Caller<()>| work(), |_, ()| Ok(true));
        raised.map_or_else(|| result.map_err(to_python), Err)
    }

    fn lm_head(&self) -> lowrank::Result<&LmHead> {
        let none = || Error::Usage(format!("{}: the model has no language-model head", self.source));
        self.session.model.lm_head().ok_or_else(none)
    }

    /// The hidden states `[N,D]` of one sequence, or its logits `[N,V]`.
    fn pass(&self, tokens: &[u32], logits: bool) -> lowrank::Result<Tensor> {
        let model = &*self.session.model;
        if tokens.is_empty() {
            return Err(Error::Usage("there are no tokens".into()));
        }
        let adapter = self.adapter();
        // A prompt or a prefix takes the first positions; its rows are not shown.
        let first = adapter.active.virtual_tokens;
        let n = first + tokens.len();
        if let Some(limit) = model.info().position_limit.filter(|limit| n > *limit) {
            return Err(Error::Usage(format!("{n} tokens; the model's positions end at {limit}")));
        }
        if let Some(token) = tokens.iter().find(|t| **t as usize >= model.info().vocab) {
            return Err(Error::Usage(format!(
                "token {token} is not one of the model's {}",
                model.info().vocab
            )));
        }
        let virtual_ids = (model.info().vocab as u32..).take(first);
        let tokens: Vec<u32> = virtual_ids.chain(tokens.iter().copied()).collect();
        let device = self.session.device();
        let dropout: Option<DropoutKey> = None;
        let scope = Scope { device: &device, params: &adapter.params, dropout, noise: None, rows: None };
        let positions: Vec<u32> = (0..n as u32).collect();
        let lengths = vec![n as u32; n];
        let output_rows: Vec<usize> = (first..n).collect();
        let segments = [Segment { q: 0..n, prefix: 0..0, own: 0..n }];
        let batch = TokenBatch {
            tokens: &tokens,
            positions: &positions,
            lengths: &lengths,
            token_types: &[],
            segments: &segments,
            output_rows: Some(&output_rows),
            adapters: None,
        };
        let mut tape = Tape::new(scope, &adapter.active, Record::Nothing);
        let h = model.hidden(&mut tape, &batch);
        Ok(if logits { tape.logits(self.lm_head()?, &h) } else { h.tensor })
    }
}

fn array(tensor: Tensor) -> Array {
    let shape = vec![tensor.rows(), tensor.cols()];
    let owner = Arc::new(tensor);
    Array::new(owner.clone(), owner.values(), shape, false)
}

#[pymethods]
impl Engine {
    /// Opens a Hugging Face folder, a GGUF file or a hub id. `form` has the options that say in which form its
    /// weights are held, in JSON. With `ranks` it is one of several processes that train together.
    #[new]
    #[pyo3(signature = (source, form, ranks=None))]
    fn new(py: Python<'_>, source: String, form: &str, ranks: Option<Ranks>) -> PyResult<Self> {
        let form = options(form).map_err(to_python)?.load_options();
        let pool = pool(0)?;
        let mut session =
            py.detach(|| pool.install(|| Session::open_as(&source, form))).map_err(to_python)?;
        if let Some(ranks) = ranks {
            session = session.with_communicator(Arc::new(communicator(ranks)?));
        }
        Ok(Self { source, session, adapter: RwLock::default() })
    }

    /// What it was opened with.
    #[getter]
    fn source(&self) -> &str {
        &self.source
    }

    /// The configuration of the base model, in JSON.
    fn config(&self) -> String {
        self.session.base.config.to_string()
    }

    /// Module paths that can have an adapter, each with its input and output features.
    fn sites(&self) -> Vec<(String, usize, usize)> {
        let sites = self.session.sites().iter().filter(|s| s.kind != SiteKind::Norm);
        sites.map(|s| (s.path.clone(), s.in_features, s.out_features)).collect()
    }

    /// Puts the adapter in a folder on the model, or takes it off.
    #[pyo3(signature = (folder))]
    fn load_adapter(&self, py: Python<'_>, folder: Option<PathBuf>) -> PyResult<()> {
        let adapter = py.detach(|| self.session.adapter(folder.as_deref())).map_err(to_python)?;
        self.set_adapter(adapter);
        Ok(())
    }

    /// Writes the adapter folder.
    fn save_adapter(&self, py: Python<'_>, folder: PathBuf) -> PyResult<()> {
        let adapter = self.adapter();
        if adapter.params.is_empty() {
            return Err(PyValueError::new_err("the model has no adapter"));
        }
        py.detach(|| adapter.save(&folder)).map_err(|e| to_python(e.into()))
    }

    /// The configuration of the adapter, in JSON; none where there is no adapter.
    fn adapter_config(&self) -> Option<String> {
        let adapter = self.adapter();
        let json = || serde_json::to_string(&adapter.config).expect("a configuration is plain data");
        (!adapter.params.is_empty()).then(json)
    }

    /// The adapter's numbers by name, read-only, where they lie.
    fn adapter_weights<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let adapter = self.adapter();
        let weights = PyDict::new(py);
        for (_, param) in adapter.params.iter() {
            let shape = param.shape.clone();
            weights.set_item(&param.name, Array::new(adapter.clone(), param.values(), shape, true))?;
        }
        Ok(weights)
    }

    /// Trains; `hear(kind, text)` gets what it says on the way and answers whether to go on. Returns a summary in JSON.
    fn train(
        &self,
        py: Python<'_>,
        config: &str,
        threads: usize,
        hear: Bound<'_, PyAny>,
    ) -> PyResult<String> {
        let options = options(config).map_err(to_python)?;
        let hear = hear.unbind();
        let work = |caller: Caller<Told>| {
            let stop = caller.stop.clone();
            let progress = |total, done| {
                caller.tell(("start", json!({ "total": total, "done": done }).to_string()));
                Progress::call(move |report| tell(&caller, report))
            };
            let summary = lowrank::finetune_with(&self.session, &options, &stop, progress)?;
            // The first rank alone writes; another machine may not see its files.
            if self.session.communicator().is_first() || options.out.exists() {
                self.set_adapter(self.session.adapter(Some(&options.out))?);
            }
            Ok(summary)
        };
        let (result, raised) = interrupt::run(py, &*pool(threads)?, work, |py, told: Told| {
            let go_on = hear.call1(py, told)?.extract(py)?;
            py.check_signals()?;
            Ok(go_on)
        });
        // A run that failed is worth more than what stopped it.
        let summary = match (result, raised) {
            (Err(error), None) => return Err(to_python(error)),
            (_, Some(raised)) => return Err(raised),
            (Ok(summary), None) => summary,
        };
        Ok(json!({
            "steps": summary.steps,
            "first_loss": summary.first_loss,
            "last_loss": summary.last_loss,
            "eval_loss": summary.eval_loss,
            "best": summary.best,
            "train_s": summary.train_s,
            "tokens": summary.tokens,
            "examples": summary.examples,
            "interrupted": summary.interrupted,
            "out": options.out,
        })
        .to_string())
    }

    /// Memory and work of the run that `config` describes, in JSON.
    fn plan(&self, py: Python<'_>, config: &str, threads: usize) -> PyResult<String> {
        let options = options(config).map_err(to_python)?;
        let plan = self.work(py, threads, || lowrank::forecast(&self.session, &options))?;
        Ok(serde_json::to_string(&plan).expect("plain numbers"))
    }

    /// Loss, perplexity, token accuracy and exact match on data, in JSON.
    fn evaluate(&self, py: Python<'_>, config: &str, threads: usize) -> PyResult<String> {
        let options = options(config).map_err(to_python)?;
        let adapter = AdapterSet::clone(&self.adapter());
        let result = self.work(py, threads, || {
            let model = &*self.session.model;
            let data = self.session.read_data(&options.data, &options, false)?;
            let device = self.session.device();
            let scorer = Scorer::new(model, &adapter, &device);
            Ok(lowrank::train::evaluate(&scorer, &data.examples, options.batch_size, true)?)
        })?;
        Ok(serde_json::to_string(&result).expect("plain numbers"))
    }

    /// Writes base and adapter as one model and compares both on `probe`; the comparison in JSON.
    fn merge(
        &self,
        py: Python<'_>,
        out: PathBuf,
        dtype: Option<&str>,
        probe: &str,
        threads: usize,
    ) -> PyResult<String> {
        let adapter = self.adapter();
        let verified = self.work(py, threads, || {
            let target = MergeTarget::choose(&self.session, &adapter, &out, dtype)?;
            let check = MergeCheck { probe: probe.to_owned(), tolerance: None };
            lowrank::merge_checked(&self.session, &adapter, &out, target, Some(&check))
        })?;
        let verified = verified.verified.expect("it was asked for");
        Ok(json!({
            "max_difference": verified.max_difference,
            "max_logit": verified.max_logit,
            "same_best": verified.same_best,
            "positions": verified.positions,
        })
        .to_string())
    }

    /// Continues a text, or answers a conversation; `show` gets the pieces.
    #[allow(clippy::too_many_arguments)]
    fn generate(
        &self,
        py: Python<'_>,
        prompt: Prompt,
        max_new_tokens: usize,
        temperature: f32,
        top_k: usize,
        top_p: f32,
        min_p: f32,
        repetition_penalty: f32,
        stop: Vec<String>,
        seed: u64,
        threads: usize,
        show: Option<Bound<'_, PyAny>>,
    ) -> PyResult<(String, Vec<u32>)> {
        let sampling =
            Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed, ..Sampling::default() };
        sampling.check().map_err(|e| to_python(e.into()))?;
        let limits = Limits { max_new_tokens, stop };
        let adapter = self.adapter();
        let listens = show.is_some();
        let show = show.map(Bound::unbind);
        let work = |caller: Caller<String>| {
            let device = self.session.device();
            let generator = TextGenerator::new(&self.session, &device, &adapter)?;
            let mut generator = generator.stop_when(caller.stop.clone());
            let tokens = match prompt {
                Prompt::Text(text) => generator.prompt(&text)?,
                Prompt::Messages((json,)) => {
                    let messages: Vec<Message> =
                        serde_json::from_str(&json).map_err(|e| Error::Usage(format!("messages: {e}")))?;
                    self.session.chat_prompt(&messages[..].into())?
                }
            };
            generator.generate(&tokens, &sampling, &limits, |piece| {
                if listens {
                    caller.tell(piece.to_owned());
                }
            })
        };
        let (result, raised) = interrupt::run(py, &*pool(threads)?, work, |py, piece: String| {
            if let Some(show) = &show {
                show.call1(py, (piece,))?;
            }
            py.check_signals()?;
            Ok(true)
        });
        let generated = raised.map_or_else(|| result.map_err(to_python), Err)?;
        Ok((generated.text, generated.tokens))
    }

    /// Logits `[T,V]` after each token.
    fn logits(&self, py: Python<'_>, tokens: Vec<u32>, threads: usize) -> PyResult<Array> {
        self.work(py, threads, || self.pass(&tokens, true)).map(array)
    }

    /// Hidden states `[T,D]` after the last norm.
    fn hidden_states(&self, py: Python<'_>, tokens: Vec<u32>, threads: usize) -> PyResult<Array> {
        self.work(py, threads, || self.pass(&tokens, false)).map(array)
    }

    /// Logits `[T,V]` of hidden states `[T,D]` in anybody's memory, by the head of the base model.
    fn head(&self, py: Python<'_>, hidden: &Bound<'_, PyAny>, threads: usize) -> PyResult<Array> {
        let hidden = from_dlpack(hidden)?;
        let head = self.lm_head().map_err(to_python)?;
        let (weight, bias) = (&head.linear.weight, &head.linear.bias);
        let &[n, d] = hidden.axes() else {
            return Err(PyValueError::new_err("hidden states have two axes: tokens and features"));
        };
        if d != weight.cols() {
            let want = weight.cols();
            return Err(PyValueError::new_err(format!(
                "the hidden states have {d} features, the head takes {want}"
            )));
        }
        let logits = self.work(py, threads, || {
            use lowrank::engine::kernels;
            let mut logits = vec![0.0; n * weight.rows()];
            kernels::linear(&mut logits, hidden.numbers(), &weight.view(), n, 0.0);
            if let Some(bias) = bias {
                kernels::add_bias(&mut logits, bias.values(), n, weight.rows());
            }
            if let Some(cap) = head.softcap {
                kernels::softcap(&mut logits, cap);
            }
            Ok(logits)
        })?;
        Ok(Array::owned(logits, vec![n, weight.rows()]))
    }

    /// The tokens of a text: with the begin token where the tokenizer adds one, or with nothing added.
    fn encode(&self, text: &str, add_special_tokens: bool) -> PyResult<Vec<u32>> {
        let encode =
            |t: Arc<Tokenizer>| Ok(if add_special_tokens { t.encode_open(text)? } else { t.encode(text)? });
        self.session.tokenizer().and_then(encode).map_err(to_python)
    }

    /// The text of tokens.
    fn decode(&self, tokens: Vec<u32>, skip_special_tokens: bool) -> PyResult<String> {
        self.session.tokenizer().and_then(|t| Ok(t.decode(&tokens, skip_special_tokens)?)).map_err(to_python)
    }
}
