//! Base models from a Hugging Face folder, a GGUF file or the hub, and writing them again.

use std::path::{Path, PathBuf};

use lowrank_files::{Gguf, Tensors, folder, is_gguf, read_object, read_optional_object, read_quantized};
use lowrank_kernels::Format;
use serde_json::{Map, Value};

use crate::arch::{base_prefix, complete, gguf_names, gguf_of, gpt3, renamed_of, tied_of};
use crate::config::GenerationConfig;
use crate::text::templates;
use crate::text::tokenizer::{gguf_note, special_text};
use crate::wrapper::{self, Renamed, Wrapper};
use crate::{ChatTemplate, Error, Result, Tokenizer, gguf, hub};

/// Where a base model came from.
pub enum Kind {
    /// A Hugging Face folder (also one in the hub's cache).
    Folder,
    /// A GGUF file.
    Gguf(Box<Gguf>),
    /// No weights and no tokenizer: a configuration to plan with.
    Config,
}

/// A base model's files, opened: configuration, tensors by Hugging Face name, tokenizer, chat template.
///
/// Nothing of the weights is read yet; [`Tensors`] maps them.
pub struct Base {
    /// The folder or the GGUF file.
    pub source: PathBuf,
    /// What kind of source it is.
    pub kind: Kind,
    /// `config.json`, completed as transformers completes it, or what GGUF metadata amounts to in its words; of a model
    /// that reads more than text, its text model's. Always an object.
    pub config: Value,
    /// The weights, by transformers' names.
    pub tensors: Tensors,
    /// What names begin with in the files, where that is not transformers'.
    renamed: Vec<Renamed>,
    /// The chat template, where the model has one. `Err` keeps why it does not parse, for whoever
    /// needs it.
    pub chat_template: Option<std::result::Result<ChatTemplate, String>>,
    template_replaced: bool,
    /// Begin and end tokens and recommended sampling.
    pub generation: GenerationConfig,
    /// What a user should know of the files.
    pub notes: Vec<String>,
}

impl Base {
    /// Opens a Hugging Face folder, a `.gguf` file, or a hub id: `org/name`, `org/name@revision`,
    /// `org/name:file.gguf`.
    ///
    /// # Errors
    /// Where nothing is there, or a file of it is missing or damaged.
    pub fn open(path_or_id: &str) -> Result<Self> {
        let path = Path::new(path_or_id);
        if path.exists() {
            return Self::open_path(path);
        }
        match hub::HubId::parse(path_or_id) {
            Some(id) => Self::open_path(&hub::fetch(&id)?),
            None => {
                let what = "no such file or folder, and not a hub id (org/name)";
                Err(Error::io(path)(std::io::Error::new(std::io::ErrorKind::NotFound, what)))
            }
        }
    }

    /// Opens a model to plan with, for which no weights are needed: a size of GPT-3 (`gpt3:175b`), a `config.json` or
    /// a folder with one, or whatever [`Base::open`] opens. Without weights [`Base::tensors`] has shapes only, in the
    /// configuration's `torch_dtype` (F32 where it says none).
    ///
    /// # Errors
    /// As [`Base::open`].
    pub fn open_to_plan(path_or_id: &str) -> Result<Self> {
        let path = Path::new(path_or_id);
        if let Some(size) = path_or_id.strip_prefix("gpt3:") {
            let config = gpt3::config(size).ok_or_else(|| {
                Error::Config(format!("{path_or_id} is not a size of GPT-3; there are {}", gpt3::sizes()))
            })?;
            return Self::from_config(path, config);
        }
        let file = match path.is_dir() {
            true => path.join("config.json"),
            false => path.to_owned(),
        };
        let alone = path.is_dir() && file.is_file() && !folder::has_weights(path)?;
        if alone || path.is_file() && path.extension().is_some_and(|e| e == "json") {
            let mut config = read_object(&file)?;
            let wrapper = flatten(&mut config)?;
            complete(&mut config);
            let base = Self::from_config(path, Value::Object(config))?;
            return Ok(Self { notes: wrapper.map(Wrapper::note).into_iter().collect(), ..base });
        }
        Self::open(path_or_id)
    }

    fn from_config(source: &Path, config: Value) -> Result<Self> {
        let dtype = config.get("torch_dtype").or(config.get("dtype")).and_then(Value::as_str);
        let format = match dtype {
            None | Some("float32") => Format::F32,
            Some("float16") => Format::F16,
            Some("bfloat16") => Format::BF16,
            Some(other) => {
                let what = format!("{other:?} is not known; known are float32, float16, bfloat16");
                return Err(Error::field(source, "torch_dtype", what));
            }
        };
        Ok(Self {
            source: source.to_owned(),
            kind: Kind::Config,
            config,
            tensors: Tensors::planned(format),
            renamed: Vec::new(),
            chat_template: None,
            template_replaced: false,
            generation: GenerationConfig::default(),
            notes: Vec::new(),
        })
    }

    /// Opens a folder or a GGUF file.
    ///
    /// # Errors
    /// As [`Base::open`].
    pub fn open_path(path: &Path) -> Result<Self> {
        if path.is_dir() {
            Self::open_folder(path)
        } else if is_gguf(path) {
            Self::open_gguf(path)
        } else {
            let what = "is neither a Hugging Face folder nor a GGUF file; \
                        for a .safetensors file name the folder that also holds its config.json";
            Err(Error::file(path, what))
        }
    }

    fn open_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        if !path.is_file() {
            return Err(Error::file(folder, "has no config.json: no Hugging Face model folder"));
        }
        let mut config = read_object(&path)?;
        let wrapper = flatten(&mut config)?;
        let mut tensors = folder::read_tensors(folder)?;
        read_quantized(&path, &config, &mut tensors)?;
        let kind = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let renamed = match (wrapper, base_prefix(kind)) {
            (Some(wrapper), _) => wrapper.rename(&mut tensors),
            (None, Some(prefix)) => {
                let renamed = wrapper::rename_known(renamed_of(kind), &mut tensors);
                tensors.complete_names(prefix);
                renamed
            }
            (None, None) => Vec::new(),
        };
        let mut notes: Vec<String> = wrapper.map(Wrapper::note).into_iter().collect();
        if let Some(tied) = tied_of(kind) {
            let at = |name: &str| wrapper.map_or_else(|| name.to_owned(), |wrapper| wrapper.whole(name));
            notes.extend(tied.settle(folder, &config, &mut tensors, at)?);
        }
        let generation = read_optional_object(&folder.join("generation_config.json"))?;
        let generation = GenerationConfig::read(generation.as_ref(), &config);
        complete(&mut config);
        let words = read_optional_object(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let chat_template = folder_template(folder, &words)?;
        Ok(Self {
            source: folder.to_owned(),
            kind: Kind::Folder,
            config: Value::Object(config),
            tensors,
            renamed,
            chat_template,
            template_replaced: false,
            generation,
            notes,
        })
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let config = gguf::hf_config(&gguf)?;
        let head_dim = config.get("head_dim").and_then(Value::as_u64).unwrap_or_default();
        let mut tensors = Tensors::default();
        gguf.add_tensors(&gguf_names(gguf.architecture()?), head_dim as usize, &mut tensors)?;
        let generation = gguf::generation(&gguf)?;
        let chat_template = gguf_template(&gguf, &generation)?;
        let notes = gguf_note(&gguf)?.into_iter().collect();
        Ok(Self {
            source: path.to_owned(),
            kind: Kind::Gguf(Box::new(gguf)),
            config: Value::Object(config),
            tensors,
            renamed: Vec::new(),
            chat_template,
            template_replaced: false,
            generation,
            notes,
        })
    }

    /// Builds the model's tokenizer. It takes some ten MB: build it once.
    ///
    /// # Errors
    /// Where its files are missing or damaged, or its kind is not supported.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.kind {
            Kind::Folder => Tokenizer::from_folder(&self.source, &self.generation),
            Kind::Gguf(gguf) => Tokenizer::from_gguf(gguf),
            Kind::Config => Err(Error::file(&self.source, "is a configuration alone: it has no tokenizer")),
        }
    }

    /// What the model is called in GGUF files, and the rows of one attention head, which decide the order of the
    /// rows of q and k there.
    ///
    /// # Errors
    /// Where GGUF has no word for the model here.
    pub fn gguf_layout(&self) -> Result<(String, usize)> {
        let wrong = |field: &str, what: &str| Error::field(&self.source, field, what);
        let architecture = match &self.kind {
            Kind::Gguf(gguf) => gguf.architecture()?.to_owned(),
            _ => {
                let kind = self.config.get("model_type").and_then(Value::as_str).unwrap_or_default();
                let found = gguf_of(kind).map(|gguf| gguf.architecture.to_owned());
                found.ok_or_else(|| wrong("model_type", &format!("{kind} has no form in GGUF here")))?
            }
        };
        let head_dim = gguf::head_dim(self.config_map()).and_then(|dim| usize::try_from(dim).ok());
        let head_dim = head_dim.filter(|dim| *dim > 0 && dim % 2 == 0);
        Ok((architecture, head_dim.ok_or_else(|| wrong("head_dim", "is missing or odd"))?))
    }

    /// The chat template.
    ///
    /// # Errors
    /// Where the model has none, or it does not parse.
    pub fn chat(&self) -> Result<&ChatTemplate> {
        match &self.chat_template {
            Some(Ok(template)) => Ok(template),
            Some(Err(why)) => Err(Error::file(&self.source, why.clone())),
            None => {
                let what = "has no chat template, so it is not a chat model: give one with `chat_template`";
                Err(Error::file(&self.source, what))
            }
        }
    }

    /// Whether there is one. It may still not parse.
    pub fn has_chat_template(&self) -> bool {
        self.chat_template.is_some()
    }

    /// Uses `template` in place of the model's own, also in what is written of the model.
    pub fn replace_chat_template(&mut self, template: ChatTemplate) {
        self.chat_template = Some(Ok(template));
        self.template_replaced = true;
    }

    /// The chat template that took the place of the model's own.
    pub fn replaced_chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref().filter(|_| self.template_replaced)?.as_ref().ok()
    }

    /// An error of the configuration, with the file that it is in.
    pub fn explain(&self, error: Error) -> Error {
        let Error::Config(what) = &error else { return error };
        let Some(what) = what.strip_prefix("config.json: ") else { return error };
        let folder = self.source.is_dir();
        let path = if folder { self.source.join("config.json") } else { self.source.clone() };
        Error::Config(format!("{}: {what}", path.display()))
    }

    /// The name in the files of one of its tensors.
    pub(crate) fn file_name(&self, name: &str) -> String {
        self.renamed.iter().find_map(|renamed| renamed.to_file(name)).unwrap_or_else(|| name.to_owned())
    }

    /// The model that its text model is a part of: it reads more than text.
    pub(crate) fn wrapper(&self) -> Option<&'static Wrapper> {
        wrapper::of(self.config_map())
    }

    /// Whether it reads more than text, of which only the text model is used.
    pub fn is_wrapped(&self) -> bool {
        self.wrapper().is_some()
    }

    /// `config` as an object.
    pub(crate) fn config_map(&self) -> &Map<String, Value> {
        self.config.as_object().expect("made from an object")
    }
}

/// Puts the text model's configuration in the place of one that reads more than text.
fn flatten(config: &mut Map<String, Value>) -> Result<Option<&'static Wrapper>> {
    let Some(wrapper) = wrapper::of(config) else { return Ok(None) };
    wrapper.flatten(config, |kind| base_prefix(kind).is_some())?;
    Ok(Some(wrapper))
}

/// What the world calls the base that [`Base::open`] opens: the id of a repository on the hub, also where the path lies in
/// the hub's cache, else the name of the file or folder. Where it lies on this machine is nobody's business.
pub fn base_name(path_or_id: &str) -> String {
    let path = Path::new(path_or_id);
    if !path.exists() {
        return hub::HubId::parse(path_or_id).map_or_else(|| path_or_id.to_owned(), |id| id.repo);
    }
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let cached = whole.ancestors().filter_map(Path::file_name).find_map(|name| {
        let repo = name.to_str()?.strip_prefix("models--")?;
        Some(repo.replace("--", "/"))
    });
    let name = || path.canonicalize().ok()?.file_name().map(|name| name.to_string_lossy().into_owned());
    let given = path.file_name().map(|name| name.to_string_lossy().into_owned());
    cached.or(given).or_else(name).unwrap_or_else(|| path_or_id.to_owned())
}

impl std::fmt::Debug for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Base({}, {:?})", self.source.display(), self.tensors)
    }
}

type MaybeTemplate = Option<std::result::Result<ChatTemplate, String>>;

fn folder_template(folder: &Path, words: &Map<String, Value>) -> Result<MaybeTemplate> {
    let Some(source) = templates::source(folder, words)? else { return Ok(None) };
    let special = |name: &str| words.get(name).and_then(special_text).unwrap_or_default();
    let template = ChatTemplate::new(&source, special("bos_token"), special("eos_token"));
    Ok(Some(template.map(|t| t.of_file(folder)).map_err(|e| e.to_string())))
}

fn gguf_template(gguf: &Gguf, generation: &GenerationConfig) -> Result<MaybeTemplate> {
    let Some(source) = gguf.string("tokenizer.chat_template")? else { return Ok(None) };
    let token = |id: Option<u32>| -> Result<&str> {
        let tokens = gguf.strings("tokenizer.ggml.tokens")?;
        let found = id.and_then(|id| tokens?.nth(id as usize));
        Ok(found.transpose()?.unwrap_or_default())
    };
    let template = ChatTemplate::new(source, token(generation.bos)?, token(generation.eos.first().copied())?);
    Ok(Some(template.map(|t| t.of_file(gguf.path())).map_err(|e| e.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_called_by_its_name_and_not_by_where_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = folder.path().join("models--org--tiny-1/snapshots/abc");
        let (plain, file) = (folder.path().join("my model"), folder.path().join("tiny.Q4_1.gguf"));
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir(&plain).unwrap();
        std::fs::write(&file, "").unwrap();
        let name = |path: &Path| base_name(path.to_str().unwrap());
        assert_eq!(name(&snapshot), "org/tiny-1");
        assert_eq!(name(&plain), "my model");
        assert_eq!(name(&plain.join("..").join("my model")), "my model");
        assert_eq!(name(&plain.join(".")), "my model");
        assert_eq!(name(&file), "tiny.Q4_1.gguf");
        assert_eq!(base_name("org/tiny"), "org/tiny");
        assert_eq!(base_name("org/tiny@main:x.gguf"), "org/tiny");
    }
}
