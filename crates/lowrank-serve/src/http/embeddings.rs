//! `/v1/embeddings`: the mean of the last hidden states over a text's tokens, of length 1.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::HeaderMap;
use lowrank_engine::{ActiveAdapters, Params, RowAdapters, Scope, Segment, Tape};
use lowrank_models::TokenBatch;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body;
use super::state::State;
use super::target::TargetFields;
use crate::error::{Error, Result};
use crate::lease::Lease;

/// Texts of one request at most, as OpenAI has it.
const MAX_TEXTS: usize = 2048;
/// Tokens that are computed together.
const TOKENS_AT_ONCE: usize = 2048;

#[derive(Deserialize)]
struct Fields {
    #[serde(flatten)]
    target: TargetFields,
    input: Input,
    encoding_format: Option<String>,
    dimensions: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    ManyTokens(Vec<Vec<u32>>),
}

/// Embeds texts.
pub async fn create(
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>> {
    let fields: Fields = body::json(&state, &headers, body).await?;
    let base64 = match fields.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(Error::field("encoding_format", format!("{other:?} is not float or base64")));
        }
    };
    let width = state.host.model().info().width;
    let dimensions = fields.dimensions.unwrap_or(width);
    if dimensions == 0 || dimensions > width {
        return Err(Error::field(
            "dimensions",
            format!("{dimensions} is not a whole number from 1 to {width}"),
        ));
    }
    let target = fields.target.find(&state).await?;
    let texts = {
        let (state, input) = (state.clone(), fields.input);
        state.clone().blocking(move || tokens(&state, input)).await?
    };
    let count = texts.iter().map(Vec::len).sum::<usize>();
    let mut data = Vec::new();
    for mut row in vectors(&state, texts, target.lease).await? {
        row.truncate(dimensions);
        normalize(&mut row);
        let embedding = if base64 { json!(encode(&row)) } else { json!(row) };
        data.push(json!({"object": "embedding", "index": data.len(), "embedding": embedding}));
    }
    let usage = json!({"prompt_tokens": count, "total_tokens": count});
    Ok(Json(json!({"object": "list", "data": data, "model": target.name, "usage": usage})))
}

/// The embeddings of texts by the base or an adapter, of length 1.
pub async fn of_texts(state: &Arc<State>, model: &str, texts: Vec<String>) -> Result<Vec<Vec<f32>>> {
    let target = TargetFields::named(model).find(state).await?;
    let of = state.clone();
    let texts = state.blocking(move || tokens(&of, Input::Texts(texts))).await?;
    let mut rows = vectors(state, texts, target.lease).await?;
    rows.iter_mut().for_each(|row| normalize(row));
    Ok(rows)
}

fn normalize(row: &mut [f32]) {
    let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    row.iter_mut().for_each(|x| *x /= length);
}

/// The mean hidden states of texts, some texts at a time.
async fn vectors(state: &Arc<State>, texts: Vec<Vec<u32>>, lease: Option<Lease>) -> Result<Vec<Vec<f32>>> {
    let mut vectors = Vec::new();
    let mut rest = &texts[..];
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = |text: &&Vec<u32>| {
            tokens += text.len();
            tokens <= TOKENS_AT_ONCE
        };
        let take = rest.iter().take_while(fits).count().max(1);
        let (batch, later) = rest.split_at(take);
        rest = later;
        let (batch, lease, of) = (batch.to_vec(), lease.clone(), state.clone());
        vectors.extend(state.engine.compute(move || embed(&of, &batch, lease.as_ref())).await??);
    }
    Ok(vectors)
}

fn tokens(state: &State, input: Input) -> Result<Vec<Vec<u32>>> {
    let whole = |texts: Vec<String>| -> Result<Vec<Vec<u32>>> {
        let tokenizer = state.host.tokenizer();
        let one = |text: &String| {
            tokenizer.encode_with_special_tokens(text).map_err(|e| Error::field("input", e.to_string()))
        };
        texts.iter().map(one).collect()
    };
    let texts = match input {
        Input::Text(text) => whole(vec![text])?,
        Input::Texts(texts) => whole(texts)?,
        Input::Tokens(tokens) => vec![tokens],
        Input::ManyTokens(texts) => texts,
    };
    let info = state.host.model().info();
    let limit = info.position_limit.unwrap_or(usize::MAX);
    match texts.iter().find(|text| text.is_empty() || text.len() > limit) {
        Some(text) => {
            Err(Error::field("input", format!("a text has {} tokens: it must have 1 to {limit}", text.len())))
        }
        None if texts.is_empty() || texts.len() > 2 * MAX_TEXTS => {
            Err(Error::field("input", format!("has not 1 to {MAX_TEXTS} texts")))
        }
        None => match texts.iter().flatten().find(|token| **token as usize >= info.vocab) {
            Some(token) => {
                Err(Error::field("input", format!("has token {token}; the vocabulary has {}", info.vocab)))
            }
            None => Ok(texts),
        },
    }
}

fn embed(state: &State, texts: &[Vec<u32>], lease: Option<&Lease>) -> Result<Vec<Vec<f32>>> {
    let model = state.host.model();
    let (mut tokens, mut positions, mut lengths, mut segments) = (vec![], vec![], vec![], vec![]);
    for text in texts {
        let start = tokens.len();
        tokens.extend_from_slice(text);
        positions.extend(0..text.len() as u32);
        lengths.resize(tokens.len(), text.len() as u32);
        let rows = start..tokens.len();
        segments.push(Segment { q: rows.clone(), prefix: 0..0, own: rows });
    }
    let (active, index) = match lease {
        Some(lease) => {
            let adapter = lease.adapter();
            if adapter.virtual_tokens > 0 {
                return Err(Error::request(
                    "adapters of virtual tokens are for generating, not for embeddings",
                ));
            }
            (state.registry.routed(), Some(adapter.index))
        }
        None => (ActiveAdapters::default(), None),
    };
    let (device, params) = (state.host.device(), Params::default());
    let rows = index.map(|index| RowAdapters::new(tokens.len(), &[(0..tokens.len(), index)]));
    let mut tape = Tape::new(Scope::inference(&device, &params), &active, lowrank_engine::Record::Nothing);
    let batch = TokenBatch {
        tokens: &tokens,
        positions: &positions,
        lengths: &lengths,
        token_types: &[],
        segments: &segments,
        output_rows: None,
        adapters: rows.as_ref(),
    };
    let hidden = model.hidden(&mut tape, &batch);
    let ranges: Vec<_> = segments.iter().map(|segment| segment.q.clone()).collect();
    let mean = tape.mean_rows(&hidden, &ranges);
    let values = device.to_vec(&mean.tensor);
    Ok(values.chunks_exact(values.len() / texts.len()).map(<[f32]>::to_vec).collect())
}

/// Little-endian f32 in base64, as OpenAI's clients ask for.
fn encode(values: &[f32]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().chain([&0, &0]).take(3).fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        for at in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * at)) as usize & 63];
            text.push(if at > chunk.len() { '=' } else { char::from(digit) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        assert_eq!(encode(&[1.0]), "AACAPw==");
        assert_eq!(encode(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(encode(&[1.0, -2.5, 3.25]), "AACAPwAAIMAAAFBA");
    }
}
