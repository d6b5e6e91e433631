//! Models of several kinds of input (images, sound) around a text model: `config.json` has the text model's fields in
//! `text_config`. Only the text model is built; the tensors of the others stay as they are. Module paths are
//! transformers': `model.language_model.layers...`, whatever the files call them.

use lowrank_files::Tensors;
use serde_json::{Map, Value, json};

use crate::Result;
use crate::parts::fields;
use crate::tied;

/// One `model_type` of them.
pub(crate) struct Wrapper {
    pub model_type: &'static str,
    /// The text model's module below `model.`.
    module: &'static str,
    /// The text model's `model_type` where `text_config` gives none.
    text: &'static str,
    /// `tie_word_embeddings` of a configuration without it.
    tied: bool,
}

/// The field of a flattened configuration with the `model_type` of the whole model.
pub(crate) const FIELD: &str = "wrapper_model_type";

const LANGUAGE: &str = "language_model";
const TEXT: &str = "text_model";

const fn wrapper(model_type: &'static str, module: &'static str, text: &'static str, tied: bool) -> Wrapper {
    Wrapper { model_type, module, text, tied }
}

const WRAPPERS: &[Wrapper] = &[
    wrapper("gemma3", LANGUAGE, "gemma3_text", true),
    wrapper("idefics3", TEXT, "llama", false),
    wrapper("internvl", LANGUAGE, "qwen2", true),
    wrapper("llava", LANGUAGE, "llama", false),
    wrapper("llava_next", LANGUAGE, "llama", false),
    wrapper("llava_onevision", LANGUAGE, "qwen2", false),
    wrapper("mistral3", LANGUAGE, "mistral", true),
    wrapper("qwen2_5_vl", LANGUAGE, "qwen2_5_vl_text", false),
    wrapper("qwen2_vl", LANGUAGE, "qwen2_vl_text", false),
    wrapper("qwen3_vl", LANGUAGE, "qwen3_vl_text", false),
    wrapper("smolvlm", TEXT, "llama", false),
];

/// Text models that compute what another does: with text alone, the three positions of a token are one.
const SAME: &[(&str, &str)] =
    &[("qwen2_vl_text", "qwen2"), ("qwen2_5_vl_text", "qwen2"), ("qwen3_vl_text", "qwen3")];

/// Fields of the whole model that hold for its text model where that does not give them.
const SHARED: &[&str] = &[
    "architectures",
    "_name_or_path",
    "torch_dtype",
    "dtype",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "quantization_config",
];

/// The `model_type`s that are read for their text model, in alphabetical order.
pub(crate) fn known() -> impl Iterator<Item = &'static str> {
    WRAPPERS.iter().map(|wrapper| wrapper.model_type)
}

/// The wrapper that a configuration names, or that a flattened one came from.
pub(crate) fn of(config: &Map<String, Value>) -> Option<&'static Wrapper> {
    let name = config.get(FIELD).or(config.get("model_type")).and_then(Value::as_str)?;
    WRAPPERS.iter().find(|wrapper| wrapper.model_type == name)
}

impl Wrapper {
    /// Puts the text model's configuration in the place of the whole one; `known` says whether there is a `model_type`.
    ///
    /// # Errors
    /// Where it is not an object, or of a `model_type` that is not known.
    pub fn flatten(&self, config: &mut Map<String, Value>, known: impl Fn(&str) -> bool) -> Result<()> {
        let mut text = match config.get("text_config").or(config.get("llm_config")) {
            Some(Value::Object(text)) => text.clone(),
            Some(other) => return Err(fields::wrong(format!("text_config is {other}; an object is needed"))),
            // Qwen2-VL's files have all fields side by side.
            None => {
                let mut text = config.clone();
                text.remove("model_type");
                text.remove("vision_config");
                text
            }
        };
        let kind = text.get("model_type").and_then(Value::as_str).unwrap_or(self.text).to_owned();
        let same = SAME.iter().find(|(own, _)| *own == kind).map_or(kind.as_str(), |(_, other)| other);
        if !known(same) {
            let what = format!(
                "text_config.model_type \"{}\" is not known; {} is read for its text model",
                lowrank_files::shown(&kind),
                self.model_type
            );
            return Err(fields::wrong(what));
        }
        text.insert("model_type".into(), json!(same));
        for field in SHARED {
            if let Some(value) = config.get(*field).filter(|value| !value.is_null()) {
                text.entry(*field).or_insert_with(|| value.clone());
            }
        }
        let ties = |config: &Map<String, Value>| config.get(tied::FIELD).and_then(Value::as_bool);
        // The whole model's counts. Before transformers 5 some files said it of the text model.
        let tie = ties(config).unwrap_or(self.tied) || !self.tied && ties(&text) == Some(true);
        text.insert(tied::FIELD.into(), json!(tie));
        if kind != same {
            one_position(&mut text);
        }
        text.insert(FIELD.into(), json!(self.model_type));
        *config = text;
        Ok(())
    }

    /// What module paths of its text model begin with, in place of `model.`.
    fn prefix(&self) -> String {
        format!("model.{}.", self.module)
    }

    /// The whole model's name of a module or tensor of the text model.
    pub fn whole(&self, name: &str) -> String {
        let prefix = self.prefix();
        match name.strip_prefix("model.") {
            Some(rest) if !name.starts_with(&prefix) => format!("{prefix}{rest}"),
            _ => name.to_owned(),
        }
    }

    /// Whether a tensor of the whole model is one of its text model.
    pub fn holds(&self, name: &str) -> bool {
        name.starts_with(&self.prefix()) || name.starts_with("lm_head.")
    }

    /// Gives the text model's tensors their names in transformers' whole model, and says which beginnings of names were
    /// others in the files.
    pub fn rename(&self, tensors: &mut Tensors) -> Vec<Renamed> {
        let (whole, old) = (self.prefix(), format!("{}.", self.module));
        let has = |prefix: &str| tensors.names().any(|name| name.starts_with(prefix));
        let renamed = if has(&format!("{old}model.")) {
            vec![
                Renamed::new(&whole, &format!("{old}model.")),
                Renamed::new("lm_head.", &format!("{old}lm_head.")),
            ]
        } else if !has(&whole) && has("model.layers.") {
            vec![Renamed::new(&whole, "model.")]
        } else {
            Vec::new()
        };
        rename(tensors, &renamed);
        renamed
    }

    /// What a user should know.
    pub fn note(&self) -> String {
        format!(
            "a model of type {} reads more than text: its text model is trained and used, on text alone; all other weights \
             stay as they are",
            self.model_type
        )
    }
}

/// A rope of three positions for each token, which are the same in a text.
fn one_position(text: &mut Map<String, Value>) {
    for section in ["rope_scaling", "rope_parameters"] {
        let Some(Value::Object(rope)) = text.get_mut(section) else { continue };
        for field in ["mrope_section", "mrope_interleaved"] {
            rope.remove(field);
        }
        for field in ["type", "rope_type"] {
            if rope.get(field).and_then(Value::as_str) == Some("mrope") {
                rope.insert(field.into(), json!("default"));
            }
        }
    }
}

/// A beginning of names: transformers' and that of the files.
#[derive(Clone, Debug)]
pub(crate) struct Renamed {
    whole: String,
    file: String,
}

/// Gives tensors transformers' names.
fn rename(tensors: &mut Tensors, renamed: &[Renamed]) {
    let names: Vec<String> = tensors.names().map(str::to_owned).collect();
    for name in names {
        if let Some(new) = renamed.iter().find_map(|renamed| renamed.of_file(&name)) {
            tensors.rename(&name, &new);
        }
    }
}

/// Gives tensors transformers' names where files have others: `known` pairs of beginnings. Says which they have.
pub(crate) fn rename_known(known: &[(&str, &str)], tensors: &mut Tensors) -> Vec<Renamed> {
    let has = |file: &str| tensors.names().any(|name| name.starts_with(file));
    let renamed = known.iter().filter(|(_, file)| has(file)).map(|(whole, file)| Renamed::new(whole, file));
    let renamed: Vec<Renamed> = renamed.collect();
    rename(tensors, &renamed);
    renamed
}

impl Renamed {
    fn new(whole: &str, file: &str) -> Self {
        Self { whole: whole.to_owned(), file: file.to_owned() }
    }

    fn of_file(&self, name: &str) -> Option<String> {
        name.strip_prefix(&self.file).map(|rest| format!("{}{rest}", self.whole))
    }

    /// The name in the files.
    pub fn to_file(&self, name: &str) -> Option<String> {
        name.strip_prefix(&self.whole).map(|rest| format!("{}{rest}", self.file))
    }
}
