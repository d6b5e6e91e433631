//! `/v1/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use lowrank_models::Request;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body;
use super::sampling::SamplingFields;
use super::sse::{Events, events};
use super::state::State;
use super::target::TargetFields;
use super::text::{Piece, Texts, TokenLogprobs};
use super::usage::{StreamOptions, usage};
use crate::error::{Error, Result};
use crate::random;

/// Prompts of one request at most.
const MAX_PROMPTS: usize = 256;
/// New tokens where a request does not say, as OpenAI has it.
const DEFAULT_TOKENS: usize = 16;

#[derive(Deserialize)]
struct Fields {
    #[serde(flatten)]
    target: TargetFields,
    #[serde(flatten)]
    sampling: SamplingFields,
    prompt: Prompts,
    logprobs: Option<usize>,
    echo: Option<bool>,
    suffix: Option<String>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompts {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    ManyTokens(Vec<Vec<u32>>),
}

/// A prompt on its way.
struct Going {
    texts: Texts,
    prompt_tokens: usize,
    /// Of its first choice among all.
    first: usize,
}

/// Continues texts.
pub async fn create(Shared(state): Shared<Arc<State>>, headers: HeaderMap, body: Body) -> Result<Response> {
    let fields: Fields = body::json(&state, &headers, body).await?;
    if fields.echo == Some(true) {
        return Err(Error::field("echo", "is not supported: leave it out"));
    }
    if fields.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(Error::field("suffix", "is not supported: leave it out"));
    }
    if fields.logprobs.is_some_and(|count| count > 20) {
        return Err(Error::field("logprobs", "is not a whole number from 0 to 20"));
    }
    let prompts = state.prompts(fields.prompt).await?;
    let target = fields.target.find(&state).await?;
    let stop_tokens = state.host.stop_tokens();
    let limit = state.options.max_new_tokens;
    let mut going = Vec::new();
    let id = random::id("cmpl");
    let created = random::now();
    let head = json!({"id": id, "object": "text_completion", "created": created, "model": target.name});
    for prompt in prompts {
        let choosing = fields.sampling.choosing(stop_tokens, DEFAULT_TOKENS, limit)?;
        state.note(&id, &target.name, &prompt);
        let prompt_tokens = prompt.len();
        let request = Request {
            prompt,
            max_new_tokens: choosing.max_new_tokens,
            stop_tokens: choosing.stop_tokens.clone(),
            strategy: choosing.strategy,
            choices: choosing.choices,
            logprobs: fields.logprobs,
            keep: true,
            adapter: target.lease.as_ref().map(|lease| lease.adapter()),
            ..Request::default()
        };
        let ticket = state.engine.submit(request, target.lease.clone())?;
        let texts = Texts::new(
            ticket,
            state.host.tokenizer(),
            choosing.choices,
            &choosing.stop_tokens,
            &choosing.stop,
            choosing.show_special,
        );
        going.push(Going { texts, prompt_tokens, first: going.len() * choosing.choices });
    }
    for one in &mut going {
        one.texts.joined().await?;
    }
    if fields.stream == Some(true) {
        let (out, response) = events();
        let with_usage = fields.stream_options.is_some_and(|options| options.include_usage);
        tokio::spawn(state.clone().limited(stream(head, going, out, with_usage)));
        return Ok(response);
    }
    let mut choices = Vec::new();
    let (mut prompt_tokens, mut cached, mut generated) = (0, 0, 0);
    for mut one in going {
        let mut done: Vec<Done> = Vec::new();
        while let Some(piece) = one.texts.next().await? {
            if done.len() <= piece.choice {
                done.resize_with(piece.choice + 1, Done::default);
            }
            done[piece.choice].take(piece);
        }
        choices.extend(
            done.into_iter().enumerate().map(|(at, done)| done.json(one.first + at, fields.logprobs)),
        );
        prompt_tokens += one.prompt_tokens;
        cached += one.texts.cached;
        generated += one.texts.generated;
    }
    let mut answer = head;
    answer["choices"] = choices.into();
    answer["usage"] = usage(prompt_tokens, cached, generated);
    Ok(axum::response::Response::new(Body::from(answer.to_string())).json())
}

/// A text that has ended, or is on its way there.
#[derive(Default)]
struct Done {
    text: String,
    logprobs: Vec<TokenLogprobs>,
    finish: Option<&'static str>,
}

impl Done {
    fn take(&mut self, piece: Piece) {
        self.text += &piece.text;
        self.logprobs.extend(piece.logprobs);
        self.finish = self.finish.or(piece.finish);
    }

    fn json(&self, index: usize, logprobs: Option<usize>) -> Value {
        let logprobs = logprobs.map(|_| legacy_logprobs(&self.logprobs));
        json!({"index": index, "text": self.text, "logprobs": logprobs, "finish_reason": self.finish})
    }
}

/// As text completions have them.
fn legacy_logprobs(tokens: &[TokenLogprobs]) -> Value {
    let mut offset = 0;
    let offsets = tokens.iter().map(|token| {
        let at = offset;
        offset += token.token.chars().count();
        at
    });
    let offsets: Vec<usize> = offsets.collect();
    let top =
        tokens.iter().map(|token| token.top.iter().cloned().collect::<std::collections::BTreeMap<_, _>>());
    json!({
        "tokens": tokens.iter().map(|token| &token.token).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
        "top_logprobs": top.collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

async fn stream(head: Value, mut going: Vec<Going>, out: Events, with_usage: bool) {
    let (mut prompt_tokens, mut cached, mut generated) = (0, 0, 0);
    for one in &mut going {
        loop {
            let next = tokio::select! {
                next = one.texts.next() => next,
                () = out.closed() => return,
            };
            match next {
                Ok(Some(piece)) => {
                    let mut event = head.clone();
                    let done = Done { text: piece.text, logprobs: piece.logprobs, finish: piece.finish };
                    let logprobs = (!done.logprobs.is_empty()).then_some(0);
                    event["choices"] = json!([done.json(one.first + piece.choice, logprobs)]);
                    if !out.send(&event).await {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    out.send(&error.json()).await;
                    return;
                }
            }
        }
        prompt_tokens += one.prompt_tokens;
        cached += one.texts.cached;
        generated += one.texts.generated;
    }
    if with_usage {
        let mut event = head;
        event["choices"] = json!([]);
        event["usage"] = usage(prompt_tokens, cached, generated);
        out.send(&event).await;
    }
    out.done().await;
}

impl State {
    /// The prompts of a request as tokens.
    async fn prompts(self: &Arc<Self>, prompts: Prompts) -> Result<Vec<Vec<u32>>> {
        let texts = match prompts {
            Prompts::Tokens(tokens) => return Ok(vec![tokens]),
            Prompts::ManyTokens(many) if many.len() > MAX_PROMPTS => {
                return Err(Error::field("prompt", format!("has more than {MAX_PROMPTS} prompts")));
            }
            Prompts::ManyTokens(many) => return Ok(many),
            Prompts::Text(text) => vec![text],
            Prompts::Texts(texts) if texts.is_empty() || texts.len() > MAX_PROMPTS => {
                return Err(Error::field("prompt", format!("has not 1 to {MAX_PROMPTS} prompts")));
            }
            Prompts::Texts(texts) => texts,
        };
        let state = self.clone();
        self.blocking(move || texts.iter().map(|text| Ok(state.host.prompt(text)?)).collect()).await
    }
}

/// An answer in JSON.
pub trait AsJson {
    /// With the header that says so.
    fn json(self) -> Response;
}

impl AsJson for Response {
    fn json(self) -> Response {
        ([("content-type", "application/json")], self.into_body()).into_response()
    }
}
