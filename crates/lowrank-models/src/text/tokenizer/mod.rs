//! Text to tokens and back, as the model's own tokenizer does it.

mod from_gguf;
mod stream;
mod texts;

pub(crate) use from_gguf::write_metadata;
pub use stream::StreamDecoder;
pub use texts::Texts;

use std::ops::Range;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use lowrank_files::{read_limited, read_optional_object};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer as Inner;
use tokenizers::normalizers::Precompiled;

use crate::config::GenerationConfig;
use crate::{Error, Result};

/// The largest tokenizers (a quarter million tokens) take about 35 MB of JSON.
const MAX_TOKENIZER: u64 = 256 << 20;

/// The special tokens that have a role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Roles {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub pad: Option<u32>,
    pub unk: Option<u32>,
}

/// A model's tokenizer: a `tokenizer.json`, or the same thing built from GGUF metadata.
///
/// The text of a special token inside the input becomes that token, as in Hugging Face's
/// `tokenizer(text)`; rendered chat templates rely on it.
pub struct Tokenizer {
    inner: Inner,
    roles: Roles,
    path: PathBuf,
    /// How many tokens it adds before and behind a text.
    added: [usize; 2],
    /// Rows of the model's embedding: ids from there on have no vector.
    embedding_rows: Option<usize>,
}

impl Tokenizer {
    /// The tokenizer of a Hugging Face folder: `tokenizer.json`, and `tokenizer_config.json` for the
    /// roles of its special tokens (else those of `generation`).
    ///
    /// # Errors
    /// Where `tokenizer.json` is missing or cannot be read.
    pub fn from_folder(folder: &Path, generation: &GenerationConfig) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            let what = "is missing; without it the folder's tokenizer cannot be read \
                        (transformers writes it: AutoTokenizer.from_pretrained(...).save_pretrained(...))";
            return Err(Error::file(&path, what));
        }
        let config = read_optional_object(&folder.join("tokenizer_config.json"))?;
        let mut tokenizer = Self::from_json(&path, &read_limited(&path, MAX_TOKENIZER)?)?;
        let named = |role: &str| -> Option<u32> {
            let text = special_text(config.as_ref()?.get(role)?)?;
            tokenizer.inner.token_to_id(text)
        };
        tokenizer.roles = Roles {
            bos: named("bos_token").or(generation.bos),
            eos: named("eos_token").or(generation.eos.first().copied()),
            pad: named("pad_token").or(generation.pad),
            unk: named("unk_token"),
        };
        Ok(tokenizer)
    }

    /// A `tokenizer.json` without roles; `path` is named in messages.
    ///
    /// # Errors
    /// Where the text is no tokenizer.
    pub fn from_json(path: &Path, json: &[u8]) -> Result<Self> {
        let text =
            std::str::from_utf8(json).map_err(|e| Error::tokenizer(path, format!("is not UTF-8: {e}")))?;
        Parts::check(text).map_err(Error::json(path))?;
        let inner = catch_unwind(|| Inner::from_bytes(text))
            .map_err(|_| Error::tokenizer(path, "the tokenizers library cannot make sense of a part of it"))?
            .map_err(|e| Error::tokenizer(path, e))?;
        Ok(Self::new(inner, Roles::default(), path))
    }

    pub(super) fn new(mut inner: Inner, roles: Roles, path: &Path) -> Self {
        // A saved tokenizer may cut and pad, which is nobody's wish here.
        inner.with_padding(None);
        inner.with_truncation(None).expect("no truncation cannot be too long");
        let added = added_around(&inner);
        Self { inner, roles, path: path.to_owned(), added, embedding_rows: None }
    }

    /// The same tokenizer for a model whose embedding has `rows` rows: a text with a token beyond them is an error.
    pub fn for_embedding_rows(self, rows: usize) -> Self {
        Self { embedding_rows: Some(rows), ..self }
    }

    /// The tokens of `text`, with nothing added before or after
    /// (`tokenizer(text, add_special_tokens=False)`).
    ///
    /// # Errors
    /// Where the tokenizer refuses the text (an unknown word and no token for it), or a token has no embedding.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.run(text, false)
    }

    /// The tokens of `text` with those that the model wants around a whole text, such as a begin token
    /// (`tokenizer(text)`).
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_special_tokens(&self, text: &str) -> Result<Vec<u32>> {
        self.run(text, true)
    }

    /// The tokens of a text that something may follow: with the begin tokens that the tokenizer adds, each once even
    /// where the text itself begins with them, and without an end token added behind.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_open(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, true).map_err(|e| Error::tokenizer(&self.path, e))?;
        let (ids, [begin, end]) = (encoding.get_ids(), self.added);
        let (begin, body) = ids.split_at(begin.min(ids.len()));
        let body = &body[..body.len().saturating_sub(end)];
        let body = if begin.is_empty() { body } else { body.strip_prefix(begin).unwrap_or(body) };
        self.known([begin, body].concat())
    }

    /// The tokens of a rendered conversation, encoded as a whole with nothing added, and whether each lies in one of
    /// `spans` (byte ranges in order, e.g. the assistant's turns), wholly or in part.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_spans(&self, text: &str, spans: &[Range<usize>]) -> Result<(Vec<u32>, Vec<bool>)> {
        let encoding = self.inner.encode(text, false).map_err(|e| Error::tokenizer(&self.path, e))?;
        let mut before = 0;
        let inside = |&(start, end): &(usize, usize)| {
            // Byte-level tokenizers leave white space out of a token's offsets.
            let start = start.min(before);
            before = end;
            let next = spans.partition_point(|span| span.end <= start);
            spans.get(next).is_some_and(|span| span.start < end)
        };
        let mask = encoding.get_offsets().iter().map(inside).collect();
        Ok((self.known(encoding.get_ids().to_vec())?, mask))
    }

    fn run(&self, text: &str, add: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, add).map_err(|e| Error::tokenizer(&self.path, e))?;
        self.known(encoding.get_ids().to_vec())
    }

    /// `ids`, where each has a row of the embedding.
    pub(super) fn known(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        let Some(rows) = self.embedding_rows else { return Ok(ids) };
        match ids.iter().find(|&&id| id as usize >= rows) {
            None => Ok(ids),
            Some(&id) => {
                let token = self.inner.id_to_token(id).unwrap_or_default();
                Err(Error::tokenizer(
                    &self.path,
                    format!(
                        "token {id} ({}) has no row in the model's embedding, which has {rows} rows: resize the \
                         model's embedding, or use the tokenizer the model was trained with",
                        lowrank_files::shown(&token)
                    ),
                ))
            }
        }
    }

    /// The text of `ids`; `skip_special` leaves out special tokens. Unknown ids give nothing.
    ///
    /// # Errors
    /// Where the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|e| Error::tokenizer(&self.path, e))
    }

    /// The id of a token given by its exact text in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of one token as the vocabulary spells it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Tokens in the vocabulary, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The first token of a text, where the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.roles.bos
    }

    /// The token that ends a text: what training appends to a completion.
    pub fn eos(&self) -> Option<u32> {
        self.roles.eos
    }

    /// The padding token, for files that other tools read.
    pub fn pad(&self) -> Option<u32> {
        self.roles.pad
    }

    /// As a `tokenizer.json`.
    ///
    /// # Errors
    /// Where the tokenizer cannot be written as JSON.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(false).map_err(|e| Error::tokenizer(&self.path, e))
    }

    /// As a `tokenizer_config.json` that transformers reads beside `tokenizer.json`.
    pub(crate) fn config_json(&self, chat_template: Option<&str>, max_length: Option<u64>) -> Value {
        let mut map = Map::new();
        map.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        map.insert("clean_up_tokenization_spaces".into(), json!(false));
        if let Some(length) = max_length {
            map.insert("model_max_length".into(), json!(length));
        }
        let Roles { bos, eos, pad, unk } = self.roles;
        for (name, id) in [("bos_token", bos), ("eos_token", eos), ("pad_token", pad), ("unk_token", unk)] {
            if let Some(text) = id.and_then(|id| self.inner.id_to_token(id)) {
                map.insert(name.into(), json!(text));
            }
        }
        if let Some(template) = chat_template {
            map.insert("chat_template".into(), json!(template));
        }
        Value::Object(map)
    }

    pub(crate) fn roles(&self) -> Roles {
        self.roles
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }
}

/// How many tokens the tokenizer adds before and behind a text.
fn added_around(inner: &Inner) -> [usize; 2] {
    let Ok(encoding) = catch_unwind(|| inner.encode_fast("a", true)) else { return [0; 2] };
    let added = encoding.as_ref().map_or(&[][..], |encoding| encoding.get_special_tokens_mask());
    let count = |added: &mut dyn Iterator<Item = &u32>| added.take_while(|&&added| added == 1).count();
    [count(&mut added.iter()), count(&mut added.iter().rev())]
}

/// The parts of a `tokenizer.json` in whose readers the library panics rather than fails: they are
/// read here first. (The library is still watched for panics: its state does not survive one.)
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default, rename = "decoder")]
    _decoder: Value,
}

impl Parts {
    fn check(text: &str) -> serde_json::Result<()> {
        let parts: Self = serde_json::from_str(text)?;
        let mut steps = vec![parts.normalizer];
        while let Some(mut step) = steps.pop() {
            if step["type"] == "Precompiled" {
                serde_json::from_value::<Precompiled>(step)?;
            } else if let Some(Value::Array(inner)) = step.get_mut("normalizers").map(Value::take) {
                steps.extend(inner);
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens, {})", self.vocab_size(), self.path.display())
    }
}

/// A special token in `tokenizer_config.json`: a string, or an object with `content`.
pub(crate) fn special_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}
