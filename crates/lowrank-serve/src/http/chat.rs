//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::HeaderMap;
use axum::response::Response;
use lowrank_models::{Conversation, Message, Request};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::body;
use super::completions::AsJson;
use super::sampling::SamplingFields;
use super::sse::{Events, events};
use super::state::State;
use super::target::TargetFields;
use super::text::Texts;
use super::tools::{self, Choice, ToolFilter};
use super::usage::{StreamOptions, usage};
use crate::error::{Error, Result};
use crate::random;

/// New tokens where a request does not say: as many as the server allows.
const DEFAULT_TOKENS: usize = usize::MAX;

#[derive(Deserialize)]
struct Fields {
    #[serde(flatten)]
    target: TargetFields,
    #[serde(flatten)]
    sampling: SamplingFields,
    messages: Vec<Message>,
    #[serde(default)]
    tools: Option<Value>,
    tool_choice: Option<Value>,
    response_format: Option<ResponseFormat>,
    #[serde(default)]
    chat_template_kwargs: Option<Map<String, Value>>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
}

#[derive(Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<JsonSchema>,
}

#[derive(Deserialize)]
struct JsonSchema {
    schema: Option<Value>,
}

impl ResponseFormat {
    /// The schema of the answer, if it has to have one.
    fn schema(&self) -> Result<Option<Value>> {
        match self.kind.as_str() {
            "text" => Ok(None),
            "json_object" => Ok(Some(json!({"type": "object"}))),
            "json_schema" => {
                let schema = self.json_schema.as_ref().and_then(|json| json.schema.clone());
                schema
                    .map(Some)
                    .ok_or_else(|| Error::field("response_format", "json_schema.schema is missing"))
            }
            other => {
                let what = format!("type {other:?} is not \"text\", \"json_object\" or \"json_schema\"");
                Err(Error::field("response_format", what))
            }
        }
    }
}

/// Answers a conversation.
pub async fn create(Shared(state): Shared<Arc<State>>, headers: HeaderMap, body: Body) -> Result<Response> {
    let fields: Fields = body::json(&state, &headers, body).await?;
    if fields.messages.is_empty() {
        return Err(Error::field("messages", "is empty"));
    }
    if fields.top_logprobs.is_some_and(|count| count > 20) {
        return Err(Error::field("top_logprobs", "is not a whole number from 0 to 20"));
    }
    let target = Arc::new(fields.target.find(&state).await?);
    let tools = fields.tools.filter(|tools| tools.as_array().is_some_and(|tools| !tools.is_empty()));
    let choice = tools::choice(tools.as_ref(), fields.tool_choice.as_ref())?;
    let tools = tools.filter(|_| !matches!(choice, Choice::None));
    let has_tools = tools.is_some();
    let schema = match choice {
        Choice::Required(schema) => Some(schema),
        _ => fields.response_format.as_ref().map(ResponseFormat::schema).transpose()?.flatten(),
    };
    let talk = Conversation {
        prompt_turns: fields.messages.len(),
        untrained: Vec::new(),
        messages: fields.messages,
        tools,
        arguments: fields.chat_template_kwargs.unwrap_or_default(),
    };
    let (prompt, choosing, constraint) = {
        let (state, target, sampling) = (state.clone(), target.clone(), fields.sampling);
        let limit = state.options.max_new_tokens;
        let work = {
            let state = state.clone();
            move || {
                let (template, stops, stop_tokens) = target.chat(&state)?;
                let mut choosing = sampling.choosing(stop_tokens, DEFAULT_TOKENS, limit)?;
                choosing.stop.extend_from_slice(stops);
                // Marks of calls may be special tokens.
                choosing.show_special |= has_tools;
                let constraint = schema.map(|schema| state.grammars()?.json(schema)).transpose()?;
                Ok((state.host.chat_prompt(&talk, template)?, choosing, constraint))
            }
        };
        state.blocking(work).await?
    };
    let id = random::id("chatcmpl");
    state.note(&id, &target.name, &prompt);
    let prompt_tokens = prompt.len();
    let logprobs = (fields.logprobs == Some(true)).then(|| fields.top_logprobs.unwrap_or(0));
    let request = Request {
        prompt,
        max_new_tokens: choosing.max_new_tokens,
        stop_tokens: choosing.stop_tokens.clone(),
        strategy: choosing.strategy,
        choices: choosing.choices,
        logprobs,
        keep: true,
        adapter: target.lease.as_ref().map(|lease| lease.adapter()),
        constraint,
    };
    let ticket = state.engine.submit(request, target.lease.clone())?;
    let mut texts = Texts::new(
        ticket,
        state.host.tokenizer(),
        choosing.choices,
        &choosing.stop_tokens,
        &choosing.stop,
        choosing.show_special,
    );
    texts.joined().await?;
    let streams = fields.stream == Some(true);
    let object = if streams { "chat.completion.chunk" } else { "chat.completion" };
    let head = json!({"id": id, "object": object, "created": random::now(), "model": target.name});
    if streams {
        let (out, response) = events();
        let with_usage = fields.stream_options.is_some_and(|options| options.include_usage);
        let work = stream(head, texts, choosing.choices, prompt_tokens, out, with_usage, has_tools);
        tokio::spawn(state.limited(work));
        return Ok(response);
    }
    let mut done: Vec<Value> = (0..choosing.choices)
        .map(|index| {
            let message = json!({"role": "assistant", "content": "", "refusal": null});
            json!({"index": index, "message": message, "logprobs": null, "finish_reason": null})
        })
        .collect();
    let mut contents = vec![String::new(); choosing.choices];
    while let Some(piece) = texts.next().await? {
        let choice = &mut done[piece.choice];
        contents[piece.choice] += &piece.text;
        if logprobs.is_some() {
            if choice["logprobs"].is_null() {
                choice["logprobs"] = json!({"content": []});
            }
            if let Some(list) = choice["logprobs"]["content"].as_array_mut() {
                list.extend(piece.logprobs.iter().map(|token| token.chat()));
            }
        }
        if let Some(finish) = piece.finish {
            choice["finish_reason"] = finish.into();
        }
    }
    for (choice, content) in done.iter_mut().zip(contents) {
        let (content, calls) = if has_tools { tools::parse(&content) } else { (content, Vec::new()) };
        let message = &mut choice["message"];
        message["content"] =
            if calls.is_empty() || !content.is_empty() { content.into() } else { Value::Null };
        if !calls.is_empty() {
            message["tool_calls"] = calls.iter().map(|call| call.json(None)).collect();
            choice["finish_reason"] = "tool_calls".into();
        }
    }
    let mut answer = head;
    answer["choices"] = done.into();
    answer["usage"] = usage(prompt_tokens, texts.cached, texts.generated);
    Ok(Response::new(Body::from(answer.to_string())).json())
}

async fn stream(
    head: Value,
    mut texts: Texts,
    choices: usize,
    prompt_tokens: usize,
    out: Events,
    with_usage: bool,
    has_tools: bool,
) {
    let mut filters: Vec<ToolFilter> = (0..choices).map(|_| ToolFilter::default()).collect();
    let chunk = |index: usize, delta: Value, logprobs: Value, finish: Option<&str>| {
        let mut event = head.clone();
        event["choices"] =
            json!([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]);
        event
    };
    for index in 0..choices {
        if !out.send(&chunk(index, json!({"role": "assistant", "content": ""}), Value::Null, None)).await {
            return;
        }
    }
    loop {
        let next = tokio::select! {
            next = texts.next() => next,
            () = out.closed() => return,
        };
        match next {
            Ok(Some(mut piece)) => {
                let mut calls = Vec::new();
                if has_tools {
                    let filter = &mut filters[piece.choice];
                    piece.text = filter.push(&piece.text);
                    if piece.finish.is_some() {
                        let (rest, found) = filter.finish();
                        piece.text += &rest;
                        calls = found;
                    }
                }
                let logprobs = match piece.logprobs.is_empty() {
                    true => Value::Null,
                    false => {
                        json!({"content": piece.logprobs.iter().map(|token| token.chat()).collect::<Vec<_>>()})
                    }
                };
                if !piece.text.is_empty() || !logprobs.is_null() {
                    let event = chunk(piece.choice, json!({"content": piece.text}), logprobs, None);
                    if !out.send(&event).await {
                        return;
                    }
                }
                if !calls.is_empty() {
                    let list: Vec<Value> =
                        calls.iter().enumerate().map(|(at, call)| call.json(Some(at))).collect();
                    if !out.send(&chunk(piece.choice, json!({"tool_calls": list}), Value::Null, None)).await {
                        return;
                    }
                    piece.finish = Some("tool_calls");
                }
                if piece.finish.is_some()
                    && !out.send(&chunk(piece.choice, json!({}), Value::Null, piece.finish)).await
                {
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
    if with_usage {
        let mut event = head.clone();
        event["choices"] = json!([]);
        event["usage"] = usage(prompt_tokens, texts.cached, texts.generated);
        out.send(&event).await;
    }
    out.done().await;
}
