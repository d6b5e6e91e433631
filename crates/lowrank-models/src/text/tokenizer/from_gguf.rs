//! A tokenizer out of GGUF metadata, and back into it.
//!
//! `tokenizer.ggml.model` is `gpt2` (byte-level BPE; `tokenizer.ggml.pre` names how text is cut into
//! words first), `llama` (SentencePiece BPE, whose merges follow from the scores), `t5` (SentencePiece Unigram) or `bert`
//! (WordPiece). The rules are llama.cpp's (`llama-vocab.cpp`); where Hugging Face's tokenizer of the same model does
//! more, such as Qwen's normalisation, Hugging Face's is followed: the model was trained with it.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, BpeBuilder, Merges, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer as Inner};

use super::pieces::{self, BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED};
use super::pre_tokenizers::{self, DIGIT, GPT2, PRES, Pre};
use super::{Roles, Tokenizer};
use crate::{Error, Result};
use lowrank_files::{Gguf, GgufWriter, shown};

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
    let mut roles = roles(gguf)?;
    let (mut inner, bos) = match model {
        "gpt2" | "gemma4" => bpe(gguf, roles)?,
        "llama" => sentencepiece(gguf, roles)?,
        "t5" => (pieces::unigram(gguf, roles)?, false),
        "bert" => {
            // Where the file does not say: those of BERT, as llama.cpp takes them.
            roles.bos = roles.bos.or(gguf_id(gguf, "cls")?).or(Some(101));
            roles.unk = roles.unk.or(Some(100));
            (pieces::word_piece(gguf, roles)?, true)
        }
        other => {
            let what = format!("{} is not supported (gpt2, llama, t5 and bert are)", shown(other));
            return Err(Error::field(path, key, what));
        }
    };
    add_special(gguf, &mut inner)?;
    let add_bos = gguf.boolean("tokenizer.ggml.add_bos_token")?.unwrap_or(bos);
    let add_eos = gguf.boolean("tokenizer.ggml.add_eos_token")?.unwrap_or(model == "t5");
    let around = |wanted: bool, id: Option<u32>| {
        id.filter(|_| wanted).and_then(|id| Some((inner.id_to_token(id)?, id)))
    };
    // GGUF spells it so.
    let separator = gguf_id(gguf, "seperator")?.or((model == "bert").then_some(102));
    let last = match model {
        "bert" => around(true, separator),
        _ => around(add_eos, roles.eos),
    };
    let first = around(add_bos, roles.bos);
    if first.is_some() || last.is_some() {
        let processor = template(first, last).map_err(|e| Error::tokenizer(path, e))?;
        inner.with_post_processor(Some(processor));
    }
    Ok((inner, roles))
}

fn roles(gguf: &Gguf) -> Result<Roles> {
    let id = |name: &str| gguf_id(gguf, name);
    Ok(Roles { bos: id("bos")?, eos: id("eos")?, pad: id("padding")?, unk: id("unknown")? })
}

fn gguf_id(gguf: &Gguf, name: &str) -> Result<Option<u32>> {
    let value = gguf.integer(&format!("tokenizer.ggml.{name}_token_id"))?;
    Ok(value.and_then(|id| u32::try_from(id).ok()))
}

/// What a user should know of the tokenizer of a GGUF file.
pub(crate) fn gguf_note(gguf: &Gguf) -> Result<Option<String>> {
    let lacks =
        gguf.string("tokenizer.ggml.model")? == Some("gpt2") && gguf.string("tokenizer.ggml.pre")?.is_none();
    Ok(lacks.then(|| {
        "tokenizer.ggml.pre is missing: text is cut into words by llama.cpp's default, which may not be the model's own way; \
         convert the model again"
            .to_owned()
    }))
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

/// BPE with its merges; returns also whether texts begin with `bos` by default.
fn bpe(gguf: &Gguf, roles: Roles) -> Result<(Inner, bool)> {
    let path = gguf.path();
    let name = match gguf.string("tokenizer.ggml.model")? {
        Some("gemma4") => "gemma4",
        _ => gguf.string("tokenizer.ggml.pre")?.unwrap_or("default"),
    };
    let pre = PRES.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
        let known = pre_tokenizers::names().join(", ");
        let what = format!("{} is not supported; supported: {known}", shown(name));
        Error::field(path, "tokenizer.ggml.pre", what)
    })?;
    let failed = |e: tokenizers::Error| Error::tokenizer(path, e);
    let model =
        BPE::builder().vocab_and_merges(vocabulary(gguf)?, merges(gguf)?).ignore_merges(pre.ignore_merges);
    if pre.characters {
        let model =
            with_unknown(gguf, roles, model.fuse_unk(true).byte_fallback(true))?.build().map_err(failed)?;
        let mut inner = Inner::new(model);
        inner.with_normalizer(Some(Replace::new(" ", SPACE).map_err(failed)?));
        inner.with_pre_tokenizer(Some(PreTokenizers::new(steps(pre, path)?)));
        let to_space = Replace::new(SPACE, " ").map_err(failed)?;
        let steps = vec![to_space.into(), ByteFallback::new().into(), Fuse::new().into()];
        inner.with_decoder(Some(Decoders::new(steps)));
        return Ok((inner, pre.bos));
    }
    let mut inner = Inner::new(model.build().map_err(failed)?);
    let prefix = gguf.boolean("tokenizer.ggml.add_space_prefix")?.unwrap_or(false);
    let mut steps = steps(pre, path)?;
    steps.push(ByteLevel::new(prefix, false, pre.cuts.last() == Some(&GPT2)).into());
    inner.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
    if gguf.boolean("tokenizer.ggml.normalizer.nfc")?.unwrap_or(pre.nfc) {
        inner.with_normalizer(Some(NFC));
    }
    inner.with_decoder(Some(ByteLevel::default()));
    Ok((inner, pre.bos))
}

/// The cuts of a pre-tokenizer, without GPT-2's at the end, which byte-level BPE brings along.
fn steps(pre: &Pre, path: &Path) -> Result<Vec<PreTokenizerWrapper>> {
    let cuts = pre.cuts.strip_suffix(&[GPT2]).unwrap_or(pre.cuts);
    let step = |cut: &&'static str| -> Result<PreTokenizerWrapper> {
        if *cut == DIGIT {
            return Ok(Digits::new(true).into());
        }
        let split = Split::new(SplitPattern::Regex((*cut).into()), SplitDelimiterBehavior::Isolated, false);
        Ok(split.map_err(|e| Error::tokenizer(path, e))?.into())
    };
    cuts.iter().map(step).collect()
}

fn merges(gguf: &Gguf) -> Result<Merges> {
    let (path, key) = (gguf.path(), "tokenizer.ggml.merges");
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
    Ok(merges)
}

/// Names the unknown token.
fn with_unknown(gguf: &Gguf, roles: Roles, builder: BpeBuilder) -> Result<BpeBuilder> {
    let unknown = roles.unk.unwrap_or(0);
    Ok(match gguf.strings("tokenizer.ggml.tokens")?.and_then(|mut t| t.nth(unknown as usize)) {
        Some(token) => builder.unk_token(token?.to_owned()),
        None => builder,
    })
}

/// SentencePiece BPE as Hugging Face's conversion of Llama tokenizers makes it.
fn sentencepiece(gguf: &Gguf, roles: Roles) -> Result<(Inner, bool)> {
    let path = gguf.path();
    let key = "tokenizer.ggml.scores";
    let scores = gguf.numbers(key)?.ok_or_else(|| Error::field(path, key, "is missing"))?;
    let vocab = vocabulary(gguf)?;
    let merges = merges_of(&vocab, &scores);
    let builder = with_unknown(gguf, roles, BPE::builder().fuse_unk(true).byte_fallback(true))?;
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
    let cut = |step: &'_ Value| -> Option<String> {
        match step["type"].as_str()? {
            "Split" => Some(step["pattern"]["Regex"].as_str()?.to_owned()),
            "Digits" if step["individual_digits"] == true => Some(DIGIT.to_owned()),
            "Digits" => Some(r"\p{N}+".to_owned()),
            "ByteLevel" if step["use_regex"] != false => Some(GPT2.to_owned()),
            _ => None,
        }
    };
    let cuts: Option<Vec<String>> = steps
        .iter()
        .filter(|step| step["type"] != "ByteLevel" || step["use_regex"] != false)
        .map(cut)
        .collect();
    let nfc = mentions(&json["normalizer"], "NFC");
    // llama.cpp has no normalisation for GPT-2's words.
    let same = |pre: &&Pre| !pre.characters && (pre.nfc == nfc || pre.cuts.last() == Some(&GPT2));
    let found = cuts.and_then(|cuts| PRES.iter().filter(same).find(|pre| pre.cuts.iter().eq(&cuts)));
    found.map(|pre| pre.names[0]).ok_or_else(|| {
        Error::tokenizer(
            path,
            "cuts text into words in a way that GGUF has no name for; write a Hugging Face folder",
        )
    })
}
