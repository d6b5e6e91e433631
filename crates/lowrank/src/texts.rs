//! Many texts at a time: continuing prompts by greedy or beam search, and scoring what came out.

use std::path::Path;

use lowrank_adapters::AdapterSet;
use lowrank_files::{read_input, write_atomic};
use lowrank_models::{Decoder, DecoderOptions, Request, SearchOptions, Strategy};
use lowrank_train::PromptGroup;
use lowrank_train::nlg::Segment;
use serde_json::{Value, json};

use crate::{Error, Result, Session};

/// How to continue many prompts.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// The search.
    pub search: SearchOptions,
    /// Tokens of an answer at most.
    pub max_new_tokens: usize,
    /// Prompts followed at once.
    pub batch_size: usize,
    /// Texts that end an answer; they are not part of it.
    pub stop: Vec<String>,
}

/// Continues every prompt; `progress` hears how many are done. White space around an answer is left out.
///
/// # Errors
/// Where the model has no tokenizer or does not generate, or a prompt is longer than its positions reach.
pub fn continue_texts(
    session: &Session,
    adapters: &AdapterSet,
    prompts: &[&str],
    options: &TextOptions,
    mut progress: impl FnMut(usize),
) -> Result<Vec<String>> {
    let tokenizer = session.tokenizer()?;
    let device = session.device();
    let AdapterSet { params, active, .. } = adapters;
    let mut decoder = Decoder::new(&*session.model, &device, params, active, DecoderOptions::default())?;
    let ends = session.ends()?;
    let mut requests = Vec::new();
    for (i, prompt) in prompts.iter().enumerate() {
        let request = Request {
            prompt: session.prompt(prompt)?,
            max_new_tokens: options.max_new_tokens,
            stop_tokens: ends.clone(),
            strategy: Strategy::Search(options.search.clone()),
            ..Request::default()
        };
        // All prompts are checked before the first is continued.
        decoder.rows_needed(&request).map_err(|e| Error::Usage(format!("prompt {}: {e}", i + 1)))?;
        requests.push(request);
    }
    let mut texts = vec![String::new(); prompts.len()];
    let mut done = 0;
    decoder.complete(&requests, options.batch_size, |i, decoded| {
        let mut tokens = &decoded[0].tokens[..];
        if let Some((last, rest)) = tokens.split_last()
            && ends.contains(last)
        {
            tokens = rest;
        }
        let text = tokenizer.decode(tokens, true)?;
        let cut = options.stop.iter().filter(|s| !s.is_empty()).filter_map(|s| text.find(s.as_str())).min();
        texts[i] = text[..cut.unwrap_or(text.len())].trim().to_owned();
        done += 1;
        progress(done);
        Ok(())
    })?;
    Ok(texts)
}

/// Pairs every text with the references of its prompt.
///
/// # Errors
/// Where there are more or fewer texts than prompts.
pub fn segments(groups: &[PromptGroup], texts: &[String]) -> Result<Vec<Segment>> {
    if groups.len() != texts.len() {
        return Err(Error::Usage(format!(
            "{} texts for {} distinct prompts: one each is needed, in the order of the data",
            texts.len(),
            groups.len()
        )));
    }
    let pair = |(group, text): (&PromptGroup, &String)| Segment {
        hypothesis: text.clone(),
        references: group.references.clone(),
    };
    Ok(groups.iter().zip(texts).map(pair).collect())
}

/// Writes texts, one a line; where the name ends in `.jsonl`, objects `{"prompt", "prediction", "references"}`.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_texts(path: &Path, groups: &[PromptGroup], texts: &[String]) -> Result<()> {
    let mut out = String::new();
    for (group, text) in groups.iter().zip(texts) {
        if is_jsonl(path) {
            let PromptGroup { prompt, references } = group;
            out += &json!({"prompt": prompt, "prediction": text, "references": references}).to_string();
        } else {
            // A line is a text.
            out += &text.split_whitespace().collect::<Vec<_>>().join(" ");
        }
        out.push('\n');
    }
    Ok(write_atomic(path, out.as_bytes())?)
}

/// Bytes of a prompt, or of a file of texts.
pub const MAX_TEXT: u64 = 256 << 20;

/// Reads what [`write_texts`] writes; of an object only `prediction`.
///
/// # Errors
/// Where the file cannot be read or a line holds no text.
pub fn read_texts(path: &Path) -> Result<Vec<String>> {
    let bad = |what: String| Error::Usage(format!("{}: {what}", path.display()));
    let content = read_input(path, MAX_TEXT)?;
    let content = String::from_utf8(content).map_err(|e| bad(format!("is not UTF-8: {e}")))?;
    if !is_jsonl(path) {
        return Ok(content.lines().map(|line| line.trim().to_owned()).collect());
    }
    let text = |(i, line): (usize, &str)| {
        let object: Value = serde_json::from_str(line).map_err(|e| bad(format!("line {}: {e}", i + 1)))?;
        let text = object.get("prediction").and_then(Value::as_str);
        text.map(str::to_owned).ok_or_else(|| bad(format!("line {}: no text \"prediction\"", i + 1)))
    };
    content.lines().enumerate().map(text).collect()
}

fn is_jsonl(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl"))
}
/// `text` up to the first of `stops`.
pub(crate) fn until(text: &str, stops: &[String]) -> String {
    let cut = stops.iter().filter_map(|stop| text.find(stop.as_str())).min();
    text[..cut.unwrap_or(text.len())].to_owned()
}
