//! Text to tokens and back, as the model's own tokenizer does it.

mod bounds;
mod from_gguf;
mod pieces;
mod pre_tokenizers;
mod stream;
mod texts;

pub(crate) use from_gguf::{gguf_note, write_metadata};
pub use stream::StreamDecoder;
pub use texts::Texts;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bounds::Bounds;
use lowrank_files::{read_limited, read_optional_object, shown_at_most};
use serde_json::{Map, Value, json};
use tokenizers::{Encoding, ModelWrapper, Tokenizer as Inner};

use super::limits::{Stopped, bounded, catch};
use crate::config::GenerationConfig;
use crate::{Error, Result};

/// The largest tokenizers (a quarter million tokens) take about 35 MB of JSON.
const MAX_TOKENIZER: u64 = 256 << 20;

/// Bytes of one text: a book has one million.
const LONGEST_TEXT: usize = 256 << 20;

/// How long one text may take where a tokenizer may take for ever.
const TIME: Duration = Duration::from_secs(20);

/// Bytes of stack of the thread that does it: as a main thread's.
const STACK: usize = 8 << 20;

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
    inner: Arc<Inner>,
    roles: Roles,
    path: PathBuf,
    /// Whether a text may take for ever: it is then encoded on a thread that is waited for only so long.
    watched: bool,
    /// A text took too long and may still be worked on: no other is begun.
    stuck: AtomicBool,
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
        let bounds: Bounds = serde_json::from_str(text).map_err(Error::json(path))?;
        bounds.check().map_err(|what| Error::tokenizer(path, what))?;
        let inner = catch(|| Inner::from_bytes(text)).map_err(|e| Error::tokenizer(path, e))?;
        let inner = inner.map_err(|e| Error::tokenizer(path, shown_at_most(&e.to_string(), 500)))?;
        Ok(Self { watched: bounds.may_take_for_ever(), ..Self::new(inner, Roles::default(), path) })
    }

    pub(super) fn new(mut inner: Inner, roles: Roles, path: &Path) -> Self {
        // A saved tokenizer may cut and pad, which is nobody's wish here.
        inner.with_padding(None);
        inner.with_truncation(None).expect("no truncation cannot be too long");
        let added = added_around(&inner);
        let (inner, stuck) = (Arc::new(inner), AtomicBool::new(false));
        Self { inner, roles, path: path.to_owned(), watched: false, stuck, added, embedding_rows: None }
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
        let encoding = self.encoding(text, true, false)?;
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
        let encoding = self.encoding(text, false, true)?;
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

    /// What the library makes of `text`; with offsets only where they are asked for, since they take time.
    fn encoding(&self, text: &str, add: bool, offsets: bool) -> Result<Encoding> {
        if text.len() > LONGEST_TEXT {
            let what = format!("a text of {} bytes; at most {LONGEST_TEXT} are encoded at once", text.len());
            return Err(Error::tokenizer(&self.path, what));
        }
        let text = text.to_owned();
        self.call(move |inner| match offsets {
            true => inner.encode(text, add),
            false => inner.encode_fast(text, add),
        })
    }

    /// Lets the library work: a panic of it is an error, and so is more than [`TIME`] where that may be.
    fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> tokenizers::Result<T> + Send + 'static,
    ) -> Result<T> {
        let fail = |what: &dyn std::fmt::Display| {
            Error::tokenizer(&self.path, shown_at_most(&what.to_string(), 500))
        };
        if self.stuck.load(Ordering::Relaxed) {
            return Err(fail(&"an earlier text took too long"));
        }
        let result = match self.watched {
            false => catch(|| work(&self.inner)),
            true => {
                let inner = self.inner.clone();
                bounded(STACK, TIME, move || work(&inner))
            }
        };
        match result {
            Ok(result) => result.map_err(|e| fail(&e)),
            Err(stopped) => {
                self.stuck.fetch_or(matches!(stopped, Stopped::TimedOut(_)), Ordering::Relaxed);
                Err(fail(&stopped))
            }
        }
    }

    fn run(&self, text: &str, add: bool) -> Result<Vec<u32>> {
        let encoding = self.encoding(text, add, false)?;
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
        let ids = ids.to_vec();
        self.call(move |inner| inner.decode(&ids, skip_special))
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

    /// How it makes tokens of words: BPE, Unigram, WordPiece or WordLevel.
    pub fn kind(&self) -> &'static str {
        match self.inner.get_model() {
            ModelWrapper::BPE(_) => "BPE",
            ModelWrapper::Unigram(_) => "Unigram",
            ModelWrapper::WordPiece(_) => "WordPiece",
            ModelWrapper::WordLevel(_) => "WordLevel",
        }
    }

    /// How many tokens it adds before and behind a text.
    pub fn added(&self) -> [usize; 2] {
        self.added
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
    let Ok(encoding) = catch(|| inner.encode_fast("a", true)) else { return [0; 2] };
    let added = encoding.as_ref().map_or(&[][..], |encoding| encoding.get_special_tokens_mask());
    let count = |added: &mut dyn Iterator<Item = &u32>| added.take_while(|&&added| added == 1).count();
    [count(&mut added.iter()), count(&mut added.iter().rev())]
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
