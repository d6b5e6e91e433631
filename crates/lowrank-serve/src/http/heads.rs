//! `/v1/classify`, `/v1/score` and `/v1/rerank`, as vLLM has them: adapters with trained heads, and cosines of embeddings.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};

use super::state::State;
use super::{body, embeddings};
use crate::error::{Error, Result};
use crate::random;

/// Texts of one request at most.
const MAX_TEXTS: usize = 2048;

/// One text or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    fn list(self, field: &str) -> Result<Vec<String>> {
        let list = match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        };
        match list.len() {
            1..=MAX_TEXTS => Ok(list),
            _ => Err(Error::field(field, format!("has not 1 to {MAX_TEXTS} texts"))),
        }
    }
}

#[derive(Deserialize)]
struct Classify {
    model: String,
    input: Texts,
}

/// The classes of texts.
pub async fn classify(
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>> {
    let fields: Classify = body::json(&state, &headers, body).await?;
    let texts = fields.input.list("input")?.into_iter().map(|text| (text, None)).collect();
    let (labels, outputs) = state.outputs(&fields.model, texts).await?;
    if labels.is_empty() {
        return Err(Error::request(format!("{} gives values and no classes: use /v1/score", fields.model)));
    }
    let one = |(index, probs): (usize, Vec<f32>)| {
        let best = (0..probs.len()).max_by(|a, b| probs[*a].total_cmp(&probs[*b])).unwrap_or(0);
        json!({"index": index, "label": labels[best], "probs": probs, "num_classes": labels.len(), "labels": labels})
    };
    let data: Vec<Value> = outputs.into_iter().enumerate().map(one).collect();
    let (id, created) = (random::id("classify"), random::now());
    Ok(Json(json!({"id": id, "object": "list", "created": created, "model": fields.model, "data": data})))
}

#[derive(Deserialize)]
struct Score {
    model: String,
    text_1: Texts,
    text_2: Texts,
}

/// How well texts go together.
pub async fn score(Shared(state): Shared<Arc<State>>, headers: HeaderMap, body: Body) -> Result<Json<Value>> {
    let fields: Score = body::json(&state, &headers, body).await?;
    let (first, second) = (fields.text_1.list("text_1")?, fields.text_2.list("text_2")?);
    let pairs: Vec<(String, String)> = match (first.len(), second.len()) {
        (1, _) => second.into_iter().map(|second| (first[0].clone(), second)).collect(),
        (a, b) if a == b => first.into_iter().zip(second).collect(),
        (a, b) => {
            return Err(Error::field(
                "text_2",
                format!("has {b} texts, and text_1 has {a}: one, or as many"),
            ));
        }
    };
    let scores = state.scores(&fields.model, pairs).await?;
    let one = |(index, score): (usize, f32)| json!({"index": index, "object": "score", "score": score});
    let data: Vec<Value> = scores.into_iter().enumerate().map(one).collect();
    let (id, created) = (random::id("score"), random::now());
    Ok(Json(json!({"id": id, "object": "list", "created": created, "model": fields.model, "data": data})))
}

#[derive(Deserialize)]
struct Rerank {
    model: String,
    query: String,
    documents: Texts,
    top_n: Option<usize>,
}

/// Documents, the best for a query first.
pub async fn rerank(
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>> {
    let fields: Rerank = body::json(&state, &headers, body).await?;
    let documents = fields.documents.list("documents")?;
    let pairs = documents.iter().map(|document| (fields.query.clone(), document.clone())).collect();
    let scores = state.scores(&fields.model, pairs).await?;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(fields.top_n.unwrap_or(order.len()));
    let one = |&at: &usize| json!({"index": at, "document": {"text": documents[at]}, "relevance_score": scores[at]});
    let results: Vec<Value> = order.iter().map(one).collect();
    Ok(Json(json!({"id": random::id("rerank"), "model": fields.model, "results": results})))
}

impl State {
    /// What the head of adapter `name` gives for texts or pairs, and the names of its classes.
    async fn outputs(
        self: &Arc<Self>,
        name: &str,
        texts: Vec<(String, Option<String>)>,
    ) -> Result<(Vec<String>, Vec<Vec<f32>>)> {
        let model = self.registry.head(name).await?;
        let labels = model.labels().to_vec();
        let work = move || model.outputs(&texts).map_err(|e| Error::request(e.to_string()));
        Ok((labels, self.engine.compute(work).await??))
    }

    /// A number for each pair: the value of an adapter for values, the probability of the last of an adapter's classes, or the
    /// cosine of the embeddings of the base or of another adapter.
    async fn scores(self: &Arc<Self>, name: &str, pairs: Vec<(String, String)>) -> Result<Vec<f32>> {
        if name != self.host.id() && self.registry.is_head(name)? {
            let texts = pairs.into_iter().map(|(first, second)| (first, Some(second))).collect();
            let (_, outputs) = self.outputs(name, texts).await?;
            return Ok(outputs
                .into_iter()
                .map(|output| output.last().copied().unwrap_or(f32::NAN))
                .collect());
        }
        let texts = pairs.into_iter().flat_map(|(first, second)| [first, second]).collect();
        let vectors = embeddings::of_texts(self, name, texts).await?;
        let cosine = |pair: &[Vec<f32>]| pair[0].iter().zip(&pair[1]).map(|(a, b)| a * b).sum();
        Ok(vectors.chunks_exact(2).map(cosine).collect())
    }
}
