//! A tokenizer out of GGUF metadata, and back into it.
//!
//! `tokenizer.ggml.model` is `gpt2` (byte-level BPE; `tokenizer.ggml.pre` names how text is cut into
//! words first) or `llama` (SentencePiece BPE, whose merges follow from the scores). The rules are
//! llama.cpp's (`llama-vocab.cpp`); where Hugging Face's tokenizer of the same model does more, such as
//! Qwen's normalisation, Hugging Face's is followed: the model was trained with it.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer as Inner};

use super::{Roles, Tokenizer};
use crate::{Error, Result};
use lowrank_files::{Gguf, GgufWriter, shown};

/// SentencePiece's visible space.
const SPACE: &str = "▁";

/// Token types of `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// How text is cut into words before byte-level BPE.
struct Pre {
    /// Values of `tokenizer.ggml.pre`; the first is what we write.
    names: &'static [&'static str],
    /// Pattern of the words; `None`: GPT-2's.
    words: Option<&'static str>,
    /// Every digit a word of its own, before the pattern.
    digits: bool,
    /// Unicode normal form C first.
    nfc: bool,
    /// A word that is a token is taken whole, whatever the merges say.
    ignore_merges: bool,
    /// Whether a text begins with `bos` where the metadata does not say.
    bos: bool,
}

const PRES: [Pre; 6] = [
    Pre {
        names: &["gpt-2", "phi-2", "olmo", "mpt", "jais", "default"],
        words: None,
        digits: false,
        nfc: false,
        ignore_merges: false,
        bos: false,
    },
    Pre {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        words: None,
        digits: true,
        nfc: false,
        ignore_merges: false,
        bos: false,
    },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"],
        words: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        digits: false,
        nfc: false,
        ignore_merges: true,
        bos: true,
    },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan"],
        words: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        digits: false,
        nfc: true,
        ignore_merges: false,
        bos: false,
    },
    Pre {
        names: &["qwen35"],
        words: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        digits: false,
        nfc: true,
        ignore_merges: false,
        bos: false,
    },
    Pre {
        names: &["tekken"],
        words: Some(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        digits: false,
        nfc: false,
        ignore_merges: true,
        bos: true,
    },
];

impl Tokenizer {
    /// The tokenizer inside a GGUF file.
    ///
    /// # Errors
    /// Where the metadata lacks it or its kind is not supported.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let (inner, roles) = build(gguf)?;
        Ok(Self::new(inner, roles, gguf.path()))
    }
}

/// The tokenizer of a GGUF file.
fn build(gguf: &Gguf) -> Result<(Inner, Roles)> {
    let path = gguf.path();
    let key = "tokenizer.ggml.model";
    let model =
        gguf.string(key)?.ok_or_else(|| Error::field(path, key, "is missing: the file has no tokenizer"))?;
    let roles = roles(gguf)?;
    let (mut inner, bos) = match model {
        "gpt2" => byte_level(gguf)?,
        "llama" => sentencepiece(gguf, roles)?,
        other => {
            let what = format!("{} is not supported (gpt2 and llama are)", shown(other));
            return Err(Error::field(path, key, what));
        }
    };
    add_special(gguf, &mut inner)?;
    let add_bos = gguf.boolean("tokenizer.ggml.add_bos_token")?.unwrap_or(bos);
    let add_eos = gguf.boolean("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let around = |wanted: bool, id: Option<u32>| {
        id.filter(|_| wanted).and_then(|id| Some((inner.id_to_token(id)?, id)))
    };
    let (first, last) = (around(add_bos, roles.bos), around(add_eos, roles.eos));
    if first.is_some() || last.is_some() {
        let processor = template(first, last).map_err(|e| Error::tokenizer(path, e))?;
        inner.with_post_processor(Some(processor));
    }
    Ok((inner, roles))
}

fn roles(gguf: &Gguf) -> Result<Roles> {
    let id = |name: &str| -> Result<Option<u32>> {
        let value = gguf.integer(&format!("tokenizer.ggml.{name}_token_id"))?;
        Ok(value.and_then(|id| u32::try_from(id).ok()))
    };
    Ok(Roles { bos: id("bos")?, eos: id("eos")?, pad: id("padding")?, unk: id("unknown")? })
}

fn template(first: Option<(String, u32)>, last: Option<(String, u32)>) -> Result<TemplateProcessing, String> {
    let mut pieces: Vec<&str> = Vec::new();
    pieces.extend(first.iter().map(|(token, _)| token.as_str()));
    pieces.push("$A");
    pieces.extend(last.iter().map(|(token, _)| token.as_str()));
    let special: Vec<(String, u32)> = first.iter().chain(&last).cloned().collect();
    let mut builder = TemplateProcessing::builder();
    builder.try_single(pieces)?.special_tokens(special);
    builder.build().map_err(|e| e.to_string())
}

/// Text to id. Where a file repeats a text, the first id counts.
fn vocabulary(gguf: &Gguf) -> Result<Vocab> {
    let key = "tokenizer.ggml.tokens";
    let tokens = gguf.strings(key)?.ok_or_else(|| Error::field(gguf.path(), key, "is missing"))?;
    let mut vocab = Vocab::with_capacity(tokens.len());
    for (id, token) in tokens.enumerate() {
        let id = u32::try_from(id).map_err(|_| Error::field(gguf.path(), key, "holds too many tokens"))?;
        vocab.entry(token?.to_owned()).or_insert(id);
    }
    Ok(vocab)
}

/// Byte-level BPE; returns also whether texts begin with `bos` by default.
fn byte_level(gguf: &Gguf) -> Result<(Inner, bool)> {
    let path = gguf.path();
    let name = gguf.string("tokenizer.ggml.pre")?.unwrap_or("default");
    let pre = PRES.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = PRES.iter().flat_map(|pre| pre.names).copied().collect();
        let what = format!("{} is not supported; supported: {}", shown(name), known.join(", "));
        Error::field(path, "tokenizer.ggml.pre", what)
    })?;
    let key = "tokenizer.ggml.merges";
    let lines = gguf.strings(key)?.ok_or_else(|| Error::field(path, key, "is missing"))?;
    let mut merges = Merges::with_capacity(lines.len());
    for (number, line) in lines.enumerate() {
        let line = line?;
        // The left part may itself begin with a space.
        let cut = line.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let cut = cut.ok_or_else(|| {
            Error::field(path, key, format!("element {number} is not a pair: {}", shown(line)))
        })?;
        merges.push((line[..cut].to_owned(), line[cut + 1..].to_owned()));
    }
    let model =
        BPE::builder().vocab_and_merges(vocabulary(gguf)?, merges).ignore_merges(pre.ignore_merges).build();
    let mut inner = Inner::new(model.map_err(|e| Error::tokenizer(path, e))?);

    let prefix = gguf.boolean("tokenizer.ggml.add_space_prefix")?.unwrap_or(false);
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    if pre.digits {
        steps.push(Digits::new(true).into());
    }
    if let Some(words) = pre.words {
        let split = Split::new(SplitPattern::Regex(words.into()), SplitDelimiterBehavior::Isolated, false);
        steps.push(split.map_err(|e| Error::tokenizer(path, e))?.into());
    }
    steps.push(ByteLevel::new(prefix, false, pre.words.is_none()).into());
    inner.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
    if pre.nfc {
        inner.with_normalizer(Some(NFC));
    }
    inner.with_decoder(Some(ByteLevel::default()));
    Ok((inner, pre.bos))
}

/// SentencePiece BPE as Hugging Face's conversion of Llama tokenizers makes it.
fn sentencepiece(gguf: &Gguf, roles: Roles) -> Result<(Inner, bool)> {
    let path = gguf.path();
    let key = "tokenizer.ggml.scores";
    let scores = gguf.numbers(key)?.ok_or_else(|| Error::field(path, key, "is missing"))?;
    let vocab = vocabulary(gguf)?;
    let merges = merges_of(&vocab, &scores);
    let mut builder = BPE::builder().fuse_unk(true).byte_fallback(true);
    let unknown = roles.unk.unwrap_or(0);
    if let Some(token) = gguf.strings("tokenizer.ggml.tokens")?.and_then(|mut t| t.nth(unknown as usize)) {
        builder = builder.unk_token(token?.to_owned());
    }
    let model = builder.vocab_and_merges(vocab, merges).build().map_err(|e| Error::tokenizer(path, e))?;
    let mut inner = Inner::new(model);
    let prefix = gguf.boolean("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let failed = |e: tokenizers::Error| Error::tokenizer(path, e);
    let to_mark = Replace::new(" ", SPACE).map_err(failed)?;
    let to_space = Replace::new(SPACE, " ").map_err(failed)?;
    if prefix {
        inner
            .with_normalizer(Some(Normalizers::new(vec![Prepend::new(SPACE.into()).into(), to_mark.into()])));
    } else {
        inner.with_normalizer(Some(Normalizers::new(vec![to_mark.into()])));
    }
    let mut steps = vec![to_space.into(), ByteFallback::new().into(), Fuse::new().into()];
    if prefix {
        steps.push(Strip::new(' ', 1, 0).into());
    }
    inner.with_decoder(Some(Decoders::new(steps)));
    Ok((inner, true))
}

/// SentencePiece merges any two neighbours that together are a token, best score first. As a list of
/// merges: every way to cut every token into two, in order of the token's score.
fn merges_of(vocab: &Vocab, scores: &[f64]) -> Merges {
    // Pieces are at most some dozen characters; a longer one only comes from a damaged file.
    const LONGEST: usize = 256;
    let mut cuts: Vec<(f64, u32, u32, &str, usize)> = Vec::new();
    for (token, &id) in vocab.iter().filter(|(token, _)| token.len() <= LONGEST) {
        let score = scores.get(id as usize).copied().unwrap_or(f64::MIN);
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&left), Some(&right)) = (vocab.get(left), vocab.get(right)) {
                cuts.push((score, left, right, token, at));
            }
        }
    }
    cuts.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))));
    cuts.into_iter().map(|(.., token, at)| (token[..at].to_owned(), token[at..].to_owned())).collect()
}

fn add_special(gguf: &Gguf, inner: &mut Inner) -> Result<()> {
    let Some(types) = gguf.numbers("tokenizer.ggml.token_type")? else { return Ok(()) };
    let Some(tokens) = gguf.strings("tokenizer.ggml.tokens")? else { return Ok(()) };
    let mut special = Vec::new();
    for (token, kind) in tokens.zip(types) {
        let token = token?;
        match kind as i32 {
            _ if token.is_empty() => {}
            CONTROL | UNKNOWN => special.push(AddedToken::from(token, true)),
            USER_DEFINED => special.push(AddedToken::from(token, false).normalized(false)),
            _ => {}
        }
    }
    inner.add_tokens(&special);
    Ok(())
}

/// Writes `tokenizer`, which came from a `tokenizer.json`, as GGUF metadata. `vocab_size` is the number
/// of rows of the embedding, which may exceed the tokenizer's.
pub(crate) fn write_metadata(
    tokenizer: &Tokenizer,
    chat_template: Option<&str>,
    vocab_size: usize,
    out: &mut GgufWriter,
) -> Result<()> {
    let path = tokenizer.path.as_path();
    // The library keeps merges to itself; its JSON has them.
    let json: Value = serde_json::from_str(&tokenizer.to_json()?).map_err(|e| Error::tokenizer(path, e))?;
    let model = &json["model"];
    let refuse = |what: &str| Err(Error::tokenizer(path, format!("{what}; GGUF has no place for it")));
    if model["type"] != "BPE" {
        return refuse("is not a BPE tokenizer");
    }
    let byte_level = ["pre_tokenizer", "decoder"].iter().any(|part| mentions(&json[part], "ByteLevel"));
    let merges: Vec<String> =
        model["merges"].as_array().into_iter().flatten().filter_map(merge_line).collect();

    let mut tokens = vec![None; vocab_size];
    for (token, id) in tokenizer.inner().get_vocab(true) {
        match tokens.get_mut(id as usize) {
            Some(place) => *place = Some(token),
            None => {
                let what = format!("token {id} is beyond the {vocab_size} rows of the embedding");
                return Err(Error::tokenizer(path, what));
            }
        }
    }
    let added = tokenizer.inner().get_added_tokens_decoder();
    let roles = tokenizer.roles();
    let kind = |id: usize, text: &str| -> i32 {
        match added.get(&(id as u32)) {
            Some(_) if roles.unk == Some(id as u32) => UNKNOWN,
            Some(token) if token.special => CONTROL,
            Some(_) => USER_DEFINED,
            None if !byte_level && is_byte(text) => BYTE,
            None => NORMAL,
        }
    };
    // Rows of the embedding beyond the vocabulary, as llama.cpp's own converter names them.
    const UNUSED: i32 = 5;
    let mut types = Vec::with_capacity(vocab_size);
    let texts: Vec<String> = tokens
        .into_iter()
        .enumerate()
        .map(|(id, token)| match token {
            Some(text) => {
                types.push(kind(id, &text));
                text
            }
            None => {
                types.push(UNUSED);
                format!("[PAD{id}]")
            }
        })
        .collect();

    if byte_level {
        out.string("tokenizer.ggml.model", "gpt2")?;
        out.string("tokenizer.ggml.pre", pre_name(path, &json)?)?;
        out.strings("tokenizer.ggml.tokens", texts.iter().map(String::as_str))?;
        out.i32s("tokenizer.ggml.token_type", &types)?;
        out.strings("tokenizer.ggml.merges", merges.iter().map(String::as_str))?;
    } else {
        if model["byte_fallback"] != true {
            return refuse("is neither byte-level nor SentencePiece BPE");
        }
        out.string("tokenizer.ggml.model", "llama")?;
        out.string("tokenizer.ggml.pre", "default")?;
        out.strings("tokenizer.ggml.tokens", texts.iter().map(String::as_str))?;
        out.f32s("tokenizer.ggml.scores", &scores_of(&texts, &merges))?;
        out.i32s("tokenizer.ggml.token_type", &types)?;
        let prefix = mentions(&json["normalizer"], "Prepend")
            || json["pre_tokenizer"]["prepend_scheme"].as_str().is_some_and(|scheme| scheme != "never");
        out.boolean("tokenizer.ggml.add_space_prefix", prefix)?;
    }
    for (name, id) in [("bos", roles.bos), ("eos", roles.eos), ("unknown", roles.unk), ("padding", roles.pad)]
    {
        if let Some(id) = id {
            out.u32(&format!("tokenizer.ggml.{name}_token_id"), id)?;
        }
    }
    let around = tokenizer.encode_with_special_tokens("a")?;
    out.boolean("tokenizer.ggml.add_bos_token", roles.bos.is_some() && around.first().copied() == roles.bos)?;
    if roles.eos.is_some() && around.last().copied() == roles.eos {
        out.boolean("tokenizer.ggml.add_eos_token", true)?;
    }
    if let Some(template) = chat_template {
        out.string("tokenizer.chat_template", template)?;
    }
    Ok(())
}

fn merge_line(merge: &Value) -> Option<String> {
    match merge {
        Value::String(line) => Some(line.clone()),
        Value::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        _ => None,
    }
}

fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Scores that give the merges in their order: the earlier a token is made, the higher.
fn scores_of(tokens: &[String], merges: &[String]) -> Vec<f32> {
    let mut rank: HashMap<String, usize> = HashMap::new();
    for (number, merge) in merges.iter().enumerate() {
        rank.entry(merge.replacen(' ', "", 1)).or_insert(number);
    }
    tokens.iter().map(|token| rank.get(token).map_or(0.0, |rank| -(*rank as f32))).collect()
}

/// Whether a part of a tokenizer, or a step of its sequence, is of this type.
fn mentions(part: &Value, kind: &str) -> bool {
    let steps = ["pretokenizers", "normalizers", "decoders"].iter().filter_map(|list| part[list].as_array());
    part["type"] == kind || steps.flatten().any(|step| step["type"] == kind)
}

/// The `tokenizer.ggml.pre` that cuts words like this tokenizer.
fn pre_name(path: &Path, json: &Value) -> Result<&'static str> {
    let part = &json["pre_tokenizer"];
    let one = [part.clone()];
    let steps = part["pretokenizers"].as_array().map_or(one.as_slice(), Vec::as_slice);
    let pattern = steps.iter().find_map(|step| step["pattern"]["Regex"].as_str());
    let digits = steps.iter().any(|step| step["type"] == "Digits" && step["individual_digits"] == true);
    let nfc = mentions(&json["normalizer"], "NFC");
    let found = PRES.iter().find(|pre| match (pre.words, pattern) {
        (None, None) => pre.digits == digits,
        (Some(a), Some(b)) => a == b && pre.nfc == nfc && !digits,
        _ => false,
    });
    found.map(|pre| pre.names[0]).ok_or_else(|| {
        Error::tokenizer(
            path,
            "cuts text into words in a way that GGUF has no name for; write a Hugging Face folder",
        )
    })
}
