//! A loaded base model with what belongs to it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use lowrank_adapters::{AdapterSet, AdapterStore, BaseWeights, adapter_folder, read_task};
use lowrank_comm::{Communicator, Single};
use lowrank_engine::{Backend, Device, Format, Site, SiteKind};
use lowrank_files::LoadOptions;
use lowrank_models::{Base, ChatTemplate, Head, Model, Texts, Tokenizer, templates};
use lowrank_train::{Conversation, DataOptions, Dataset, Encode, Masking, Scorer, Task, TaskSpec};

use crate::adapter_source::PeftFolder;
use crate::data_files::DataFiles;
use crate::device::{self, DeviceChoice};
use crate::options::TrainOptions;
use crate::{Error, Result, ranks, task};

/// A base model, its tokenizer and its chat template. Weights are mapped, not read.
pub struct Session {
    /// The files.
    pub base: Base,
    /// The model over them, with the head that the task needs.
    pub model: Box<dyn Model>,
    /// What it is for.
    pub task: TaskSpec,
    tokenizer: Mutex<Option<Arc<Tokenizer>>>,
    /// What [`Session::generate`] and [`Session::chat`] answer with.
    pub(crate) adapter: AdapterSet,
    pub(crate) comm: Arc<dyn Communicator>,
    /// What computes, where that is not the processor.
    backend: Option<Arc<dyn Backend>>,
}

impl Session {
    /// Opens a Hugging Face folder, a GGUF file or a hub id (`org/name`).
    ///
    /// # Errors
    /// Where files are missing or wrong, or the architecture is unknown.
    pub fn open(model: &str) -> Result<Self> {
        Self::open_as(model, LoadOptions::default())
    }

    /// The same, with the matrices in the form asked for. Dense matrices are converted one after the other, so
    /// no more than one of them is ever in memory twice.
    ///
    /// # Errors
    /// As [`Session::open`], and where the base has no dense linear layer that could be quantised.
    pub fn open_as(model: &str, options: LoadOptions) -> Result<Self> {
        Self::over(Base::open(model)?, options, |_| Ok(TaskSpec::default()))
    }

    /// The session that a run of training needs: with the head of its task, for the labels of its data.
    ///
    /// # Errors
    /// As [`Session::open_as`], and where the labels or the task do not fit the data or the model.
    pub fn for_run(options: &TrainOptions) -> Result<Self> {
        let session = Self::over(Base::open(&options.model)?, options.load_options(), |base| {
            task::of_run(options, base)
        })?;
        session
            .with_chat_template(options.chat_template.as_deref(), options.init_adapter.iter())?
            .on_device(options.device)
    }

    /// The same for the plan of a run, which needs no weights.
    ///
    /// # Errors
    /// As [`Session::for_run`].
    pub fn for_plan(options: &TrainOptions) -> Result<Self> {
        let shapes = LoadOptions { shapes_only: true, ..options.load_options() };
        let session =
            Self::over(Base::open_to_plan(&options.model)?, shapes, |base| task::of_run(options, base))?;
        session.with_chat_template(options.chat_template.as_deref(), options.init_adapter.iter())
    }

    /// The same with the chat template that is `named` (a file or a name), else the one that the folders of `adapters`
    /// hold, else the model's.
    ///
    /// # Errors
    /// Where there is no such template or it does not parse, it has no use for the task, or two adapters have two.
    pub fn with_chat_template<'a>(
        mut self,
        named: Option<&str>,
        adapters: impl IntoIterator<Item = &'a PathBuf>,
    ) -> Result<Self> {
        if !self.task.task.is_language() && self.task.task != Task::Reward {
            let task = self.task.task.name();
            return match named {
                Some(_) => {
                    Err(Error::Usage(format!("`chat_template` is for conversations, not for `task` {task}")))
                }
                None => Ok(self),
            };
        }
        let mut found: Option<(&Path, String)> = None;
        if named.is_none() {
            for dir in adapters {
                let dir = adapter_folder(dir);
                match (templates::of_folder(dir)?, &found) {
                    (Some(text), Some((other, same))) if text != *same => {
                        return Err(Error::Usage(format!(
                            "{} and {} have two chat templates: choose with `chat_template`",
                            other.display(),
                            dir.display()
                        )));
                    }
                    (Some(text), _) => found = Some((dir, text)),
                    (None, _) => {}
                }
            }
        }
        let source = match (named, found) {
            (Some(named), _) => templates::named_or_file(named)?,
            (None, Some((_, source))) => source,
            (None, None) => return Ok(self),
        };
        let tokenizer = self.tokenizer()?;
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id)).unwrap_or_default();
        let template = ChatTemplate::new(&source, &text(tokenizer.bos()), &text(tokenizer.eos()))?;
        self.base.replace_chat_template(template);
        Ok(self)
    }

    /// The same with the adapter in `dir`, and its chat template where it has one, for [`Session::generate`] and
    /// [`Session::chat`].
    ///
    /// # Errors
    /// As [`Session::adapter`].
    pub fn with_adapter(self, dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref().to_owned();
        let mut session = self.with_chat_template(None, [&dir])?;
        session.adapter = session.adapter(Some(&dir))?;
        Ok(session)
    }

    /// The same as one of several ranks, which share the work of training and evaluation.
    pub fn with_communicator(self, comm: Arc<dyn Communicator>) -> Self {
        Self { comm, ..self }
    }

    /// The ranks that share its work.
    pub fn communicator(&self) -> &Arc<dyn Communicator> {
        &self.comm
    }

    /// The text of the chat template that took the place of the model's own.
    pub fn chat_template(&self) -> Option<&str> {
        self.base.replaced_chat_template().map(ChatTemplate::source)
    }

    /// What ends a turn of the assistant in that template, if that is not the end token.
    fn turn_end(&self) -> Option<String> {
        self.base.replaced_chat_template()?.turn_end()
    }

    /// The texts that end a generated answer besides tokens.
    ///
    /// # Errors
    /// Where the model has no tokenizer.
    pub fn stops(&self) -> Result<Vec<String>> {
        let tokenizer = self.tokenizer()?;
        Ok(self.turn_end().filter(|end| tokenizer.token_to_id(end).is_none()).into_iter().collect())
    }

    /// The session that the adapter in `dir` needs: with the head of the task that it was trained for. Without
    /// adapter, the base's own head is for `task`. `labels` are for an adapter that does not name its own.
    ///
    /// # Errors
    /// As [`Session::open_as`], and where task or labels are not those of the adapter.
    pub fn for_adapter(
        model: &str,
        options: LoadOptions,
        dir: Option<&Path>,
        task: Option<Task>,
        labels: Option<Vec<String>>,
    ) -> Result<Self> {
        let base = Base::open(model)?;
        let session = Self::over(base, options, |base| task::of_adapter(dir, task, labels, base))?;
        let dirs = dir.map(Path::to_owned);
        let session = session.with_chat_template(None, dirs.iter())?;
        if let (None, Some(path)) = (dir, session.model.info().new_layers.first()) {
            let (source, task) = (session.base.source.display(), session.task.task.name());
            return Err(Error::Usage(format!(
                "{source} has no {path}, so no head for the task {task}: give an `adapter` that was trained for it"
            )));
        }
        Ok(session)
    }

    /// The session that several adapters at once need: with the head of the first one's task.
    ///
    /// # Errors
    /// As [`Session::for_adapter`].
    pub fn for_adapters(model: &str, list: &[(PathBuf, f32)], chat_template: Option<&str>) -> Result<Self> {
        match list.first() {
            Some((dir, _)) => Self::for_adapter(model, LoadOptions::default(), Some(dir), None, None)?
                .with_chat_template(chat_template, list.iter().map(|(dir, _)| dir)),
            None => Self::open(model)?.with_chat_template(chat_template, []),
        }
    }

    /// The model that [`crate::merge`] wrote of this one to `path`, for the same task.
    ///
    /// # Errors
    /// As [`Session::for_adapter`].
    pub fn merged(&self, path: &Path) -> Result<Self> {
        let (task, labels) = (self.task.task, self.task.labels.clone());
        let labels = (!labels.is_empty()).then_some(labels);
        Self::for_adapter(&path.to_string_lossy(), LoadOptions::default(), None, Some(task), labels)
    }

    fn over(
        mut base: Base,
        options: LoadOptions,
        task: impl FnOnce(&Base) -> Result<TaskSpec>,
    ) -> Result<Self> {
        base.tensors.set_load_options(options);
        base.notes.iter().for_each(|note| ranks::say(&format!("warning: {note}")));
        let task = task(&base)?;
        let model = build(&base, &task)?;
        let session = Self {
            base,
            model,
            task,
            tokenizer: Mutex::default(),
            adapter: AdapterSet::none(),
            backend: None,
            comm: Arc::new(Single),
        };
        session.check_quantised()?;
        if options.stream && (session.base.tensors.converted() > 0 || session.base.tensors.has_packed()) {
            return Err(Error::Usage(
                "`stream_base` reads weights from their file as they are; `quantize`, `precision` bf16 and quantized \
                 folders keep converted ones in memory"
                    .into(),
            ));
        }
        Ok(session)
    }

    /// The same, which runs on another device than the processor.
    ///
    /// # Errors
    /// Where there is no such device, or it cannot be opened.
    pub fn on_device(self, choice: DeviceChoice) -> Result<Self> {
        let bytes = self.base.tensors.weight_bytes();
        Ok(Self { backend: device::open(choice, bytes)?, ..self })
    }

    /// The device for this model.
    pub fn device(&self) -> Device {
        let device = self.backend.clone().map_or_else(Device::cpu, Device::with_backend);
        device.streaming(self.base.tensors.stream())
    }

    /// The same for a plan, which needs no weights: also a `config.json`, a folder with one, or a size of GPT-3
    /// (`gpt3:175b`).
    ///
    /// # Errors
    /// As [`Session::open_as`].
    pub fn open_to_plan(model: &str, options: LoadOptions) -> Result<Self> {
        Self::over(Base::open_to_plan(model)?, LoadOptions { shapes_only: true, ..options }, |_| {
            Ok(TaskSpec::default())
        })
    }

    /// Builds the model again from the tensors as they are now.
    pub(crate) fn rebuild(&mut self) -> Result<()> {
        self.model = build(&self.base, &self.task)?;
        Ok(())
    }

    fn check_quantised(&self) -> Result<()> {
        let tensors = &self.base.tensors;
        let Some(quantize) = tensors.load_options().quantize else { return Ok(()) };
        let (name, file) = (quantize.format().name(), self.base.source.display());
        let left = tensors.left_dense();
        if tensors.converted() > 0 {
            if let Some(first) = left.first() {
                let count = left.len();
                ranks::say(&format!(
                    "{count} matrices stay dense: their rows are not a whole number of {name} blocks ({first})"
                ));
            }
            return Ok(());
        }
        let why = match left.first() {
            Some(first) => format!("rows of {first} are not a whole number of {name} blocks"),
            None => "its linear layers are quantised already".to_owned(),
        };
        Err(Error::Usage(format!("{file}: `quantize` has nothing to quantize: {why}")))
    }

    /// The name in the files of a tensor that the model's sites call `name`: a bare model's lack the prefix.
    pub fn tensor_name(&self, name: &str) -> String {
        let kind = self.base.config["model_type"].as_str().unwrap_or_default();
        match lowrank_models::base_prefix(kind) {
            Some(prefix) if !self.base.tensors.contains(name) => format!("{prefix}.{name}"),
            _ => name.to_owned(),
        }
    }

    /// Every place an adapter can attach to.
    pub fn sites(&self) -> &[Site] {
        self.model.sites()
    }

    /// The adapter in `dir`, or none.
    ///
    /// # Errors
    /// Where the folder holds no adapter for this model.
    pub fn adapter(&self, dir: Option<&Path>) -> Result<AdapterSet> {
        Ok(match dir {
            Some(dir) => {
                if let (true, Some(task)) = (self.task.task.is_language(), read_task(dir)?) {
                    let (dir, task) = (dir.display(), task["task"].as_str().unwrap_or_default().to_owned());
                    return Err(Error::Usage(format!(
                        "{dir} was trained for the task {task}: use it with eval and predict; this is for language models"
                    )));
                }
                self.load_adapter(dir)?
            }
            None => AdapterSet::none(),
        })
    }

    /// Reads an adapter for this model, in PEFT's format or another, and says what PEFT would warn of.
    ///
    /// # Errors
    /// As [`AdapterSet::load`].
    pub fn load_adapter(&self, dir: &Path) -> Result<AdapterSet> {
        let folder = PeftFolder::of(dir, &self.base.source)?;
        let set = AdapterSet::load_on(&folder.path, self.sites(), self)?;
        set.notes.iter().for_each(|note| ranks::say(&format!("warning: {note}")));
        Ok(set)
    }

    /// Several adapters at once, each with its weight; one with weight 1 as it is.
    ///
    /// # Errors
    /// As [`Session::adapter`].
    pub fn adapters(&self, list: &[(PathBuf, f32)]) -> Result<AdapterSet> {
        if let [] | [(_, 1.0)] = list {
            return self.adapter(list.first().map(|(dir, _)| dir.as_path()));
        }
        let mut store = AdapterStore::default();
        let mut parts = Vec::new();
        for (number, (dir, weight)) in list.iter().enumerate() {
            parts.push((number.to_string(), *weight));
            store.insert(&parts[number].0, self.load_adapter(dir)?);
        }
        let parts: Vec<(&str, f32)> = parts.iter().map(|(name, weight)| (name.as_str(), *weight)).collect();
        Ok(store.mix(&parts)?)
    }

    /// The tokenizer, built when first asked for.
    ///
    /// # Errors
    /// Where the model has none.
    pub fn tokenizer(&self) -> Result<Arc<Tokenizer>> {
        let mut slot = self.tokenizer.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match &mut *slot {
            Some(tokenizer) => tokenizer.clone(),
            empty => empty
                .insert(Arc::new(self.base.tokenizer()?.for_embedding_rows(self.model.info().vocab)))
                .clone(),
        })
    }

    /// Gives back what only preparing needed: the tokenizer's memory (tens of megabytes) until it is asked for again, and
    /// pages of the program.
    pub fn forget_tokenizer(&self) {
        self.tokenizer.lock().unwrap_or_else(PoisonError::into_inner).take();
        lowrank_engine::kernels::trim_heap();
        lowrank_engine::kernels::evict_program_pages();
    }

    /// The tokens that end a generated text.
    ///
    /// # Errors
    /// Where the model has no tokenizer.
    pub fn ends(&self) -> Result<Vec<u32>> {
        let mut ends = self.base.generation.eos.clone();
        let tokenizer = self.tokenizer()?;
        ends.extend(tokenizer.eos());
        ends.extend(self.turn_end().and_then(|end| tokenizer.token_to_id(&end)));
        ends.sort_unstable();
        ends.dedup();
        Ok(ends)
    }

    /// The tokens of a text to continue. Something must predict the first token of an empty one: what begins a
    /// text, or what ended the one before.
    ///
    /// # Errors
    /// Where the model has no tokenizer, or the text is empty and no such token is named.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer()?;
        let mut tokens = tokenizer.encode_open(text)?;
        if tokens.is_empty() {
            tokens.extend(tokenizer.bos().or(tokenizer.eos()));
        }
        if tokens.is_empty() {
            let what = "the prompt is empty, and the model names no token that begins a text";
            return Err(Error::Usage(what.into()));
        }
        Ok(tokens)
    }

    /// The tokens of a conversation that the assistant is to answer. The chat template writes all of it: nothing is added.
    ///
    /// # Errors
    /// Where the model has no tokenizer or chat template, or the template refuses the messages.
    pub fn chat_prompt(&self, talk: &Conversation) -> Result<Vec<u32>> {
        Ok(self.tokenizer()?.encode(&self.base.chat()?.render_conversation(talk, true)?)?)
    }

    /// What the data readers need.
    ///
    /// # Errors
    /// Where there is no tokenizer.
    pub fn encoder(&self) -> Result<Encoder<'_>> {
        Ok(Encoder { session: self, tokenizer: self.tokenizer()? })
    }

    /// Reads data files for the session's task.
    ///
    /// # Errors
    /// Where the model has no head for it, or the data are wrong.
    pub fn read_data(
        &self,
        files: impl Into<DataFiles>,
        options: &TrainOptions,
        unlabelled: bool,
    ) -> Result<Dataset> {
        let files = files.into().resolve()?;
        let seed = options.seed;
        if let Head::None = self.model.head() {
            return Err(Error::Usage(format!(
                "{}: an encoder has no language-model head: choose `task` mlm, embedding or one of classification",
                self.base.source.display()
            )));
        }
        if self.task.task == Task::Reward && self.model.info().is_encoder {
            let source = self.base.source.display();
            return Err(Error::Usage(format!(
                "{source}: `task` reward needs a decoder, and this is an encoder"
            )));
        }
        let options = DataOptions {
            task: self.task.task,
            labels: self.task.labels.clone(),
            outputs: self.task.outputs,
            unlabelled,
            ..options.data_options(&*self.model)?
        };
        Ok(lowrank_train::data::read_files(&files, seed, &options, &self.encoder()?)?)
    }

    /// How tokens are hidden, where that is the task.
    ///
    /// # Errors
    /// Where the tokenizer has no token for it.
    pub fn masking(&self, seed: u64) -> Result<Option<Masking>> {
        if self.task.task != Task::Mlm {
            return Ok(None);
        }
        let tokenizer = self.tokenizer()?;
        let token = ["[MASK]", "<mask>"].iter().find_map(|name| tokenizer.token_to_id(name));
        let token = token.ok_or_else(|| {
            Error::Usage(format!("{}: the tokenizer has no mask token", self.base.source.display()))
        })?;
        Ok(Some(Masking { token, vocab: self.model.info().vocab, seed }))
    }

    /// The model with `adapters`, to score its task with.
    ///
    /// # Errors
    /// As [`Session::masking`].
    pub fn scorer<'a>(&'a self, adapters: &'a AdapterSet, device: &'a Device) -> Result<Scorer<'a>> {
        let scorer = Scorer::new(&*self.model, adapters, device).with_communicator(&*self.comm);
        Ok(scorer.for_task(&self.task, self.masking(0)?))
    }
}

/// The model over the files of `base`, with the head of the task.
fn build(base: &Base, task: &TaskSpec) -> Result<Box<dyn Model>> {
    let model = match task.task {
        task if task.is_language() => lowrank_models::load(&base.config, &base.tensors),
        _ => lowrank_models::load_for(&base.config, &base.tensors, task.head()),
    };
    Ok(model.map_err(|error| base.explain(error))?)
}

impl BaseWeights for Session {
    fn read_rows(
        &self,
        path: &str,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), lowrank_adapters::Error> {
        if let Some(layer) = self.model.head_layer(path) {
            // Tied to the embedding, or new, a layer of the head need not have a tensor of its own.
            let cols = layer.weight.cols();
            for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
                layer.weight.view().expand(row, 0..cols, out);
            }
            return Ok(());
        }
        let name = self.tensor_name(&format!("{path}.weight"));
        self.base.tensors.read_rows(&name, rows, out).map_err(base_error)
    }

    fn quantised(&self, site: &Site) -> Option<Format> {
        let format = self.base.tensors.load_options().quantize?.format();
        let stored = self.base.tensors.format(&self.tensor_name(&format!("{}.weight", site.path)))?;
        let dense = matches!(stored, Format::F32 | Format::F16 | Format::BF16);
        let linear = matches!(site.kind, SiteKind::Linear | SiteKind::TransposedLinear);
        (dense && linear && site.in_features.is_multiple_of(format.block_len())).then_some(format)
    }

    fn read_bias(&self, path: &str, out: &mut [f32]) -> Result<(), lowrank_adapters::Error> {
        match self.model.head_layer(path).and_then(|layer| layer.bias.as_ref()) {
            Some(bias) => out.copy_from_slice(bias.values()),
            None => {
                let name = self.tensor_name(&format!("{path}.bias"));
                self.base.tensors.read_rows(&name, 0..out.len(), out).map_err(base_error)?;
            }
        }
        Ok(())
    }
}

fn base_error(error: lowrank_files::Error) -> lowrank_adapters::Error {
    lowrank_adapters::Error::Base(error.into())
}

/// Turns text into tokens for the data readers.
pub struct Encoder<'a> {
    session: &'a Session,
    tokenizer: Arc<Tokenizer>,
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;

impl Encode for Encoder<'_> {
    fn encode(&self, text: &str) -> Result<Vec<u32>, Boxed> {
        Ok(self.tokenizer.encode_open(text)?)
    }

    fn encode_chat(&self, talk: &Conversation) -> Result<(Vec<u32>, Vec<bool>), Boxed> {
        let rendered = self.session.base.chat()?.render_with_spans(talk)?;
        Ok(self.tokenizer.encode_with_spans(&rendered.text, &rendered.assistant)?)
    }

    fn encode_chat_prompt(&self, talk: &Conversation) -> Result<Vec<u32>, Boxed> {
        Ok(self.tokenizer.encode(&self.session.base.chat()?.render_conversation(talk, true)?)?)
    }

    fn has_chat_template(&self) -> bool {
        self.session.base.has_chat_template()
    }

    fn eos(&self) -> Option<u32> {
        self.tokenizer.eos()
    }

    fn texts(&self, first: &str, second: Option<&str>, max: Option<usize>) -> Result<Texts, Boxed> {
        Ok(self.tokenizer.encode_texts(first, second, max)?)
    }

    fn words(&self, words: &[&str], max: Option<usize>) -> Result<Texts, Boxed> {
        Ok(self.tokenizer.encode_words(words, max)?)
    }
}
