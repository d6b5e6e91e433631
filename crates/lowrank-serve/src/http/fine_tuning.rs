//! `/v1/files` and `/v1/fine_tuning/jobs`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Multipart, Path, Query, State as Shared};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::Write;

use super::body;
use super::state::State;
use crate::error::{Error, Result};
use crate::jobs::{Hyperparameters, Job, Jobs, Method, Status};
use crate::random;

/// Bytes of an uploaded file at most.
const MAX_UPLOAD: u64 = 4 << 30;
/// Entries of a list at most, and where a request does not say.
const MAX_LIST: usize = 10_000;
const DEFAULT_LIST: usize = 20;

/// Which part of a list.
#[derive(Deserialize)]
pub struct Page {
    limit: Option<usize>,
    after: Option<String>,
    purpose: Option<String>,
}

impl Page {
    fn list(&self, all: Vec<Value>, default: usize) -> Json<Value> {
        let limit = self.limit.unwrap_or(default).clamp(1, MAX_LIST);
        let after = self.after.as_deref().and_then(|after| all.iter().position(|one| one["id"] == after));
        let start = after.map_or(0, |at| at + 1);
        let page: Vec<Value> = all.iter().skip(start).take(limit).cloned().collect();
        let more = start + page.len() < all.len();
        let id = |one: Option<&Value>| one.map(|one| one["id"].clone());
        Json(json!({
            "object": "list", "first_id": id(page.first()), "last_id": id(page.last()), "has_more": more, "data": page,
        }))
    }
}

impl State {
    fn jobs(&self) -> Result<&Jobs> {
        self.jobs
            .as_ref()
            .ok_or_else(|| Error::not_found("this server does not fine-tune: start it with --jobs-dir"))
    }
}

/// `POST /v1/files`.
pub async fn upload(Shared(state): Shared<Arc<State>>, mut form: Multipart) -> Result<Json<Value>> {
    let wrong = |e: axum::extract::multipart::MultipartError| Error::request(format!("the upload: {e}"));
    let jobs = state.jobs()?;
    let (mut purpose, mut file) = (None, None);
    while let Some(mut field) = form.next_field().await.map_err(wrong)? {
        match field.name() {
            Some("purpose") => purpose = Some(field.text().await.map_err(wrong)?),
            Some("file") => {
                let name = field.file_name().unwrap_or("data.jsonl").to_owned();
                let (id, mut out) = jobs.files().create()?;
                let mut bytes = 0;
                loop {
                    let chunk = tokio::time::timeout(state.options.read_timeout, field.chunk()).await;
                    let Some(chunk) = chunk.map_err(|_| Error::too_slow())?.map_err(wrong)? else { break };
                    bytes += chunk.len() as u64;
                    if bytes > MAX_UPLOAD {
                        return Err(Error::too_long(format!("the file is longer than {MAX_UPLOAD} bytes")));
                    }
                    out.write_all(&chunk).map_err(|e| Error::failed(format!("cannot keep the file: {e}")))?;
                }
                out.commit().map_err(|e| Error::failed(e.to_string()))?;
                file = Some((id, bytes, name));
            }
            _ => {}
        }
    }
    let (id, bytes, name) = file.ok_or_else(|| Error::field("file", "is missing"))?;
    let purpose = purpose.ok_or_else(|| Error::field("purpose", "is missing"))?;
    if purpose != "fine-tune" {
        return Err(Error::field(
            "purpose",
            format!("{purpose:?} is not \"fine-tune\", which alone is of use here"),
        ));
    }
    Ok(Json(json!(jobs.files().add(id, bytes, name, purpose)?)))
}

/// `GET /v1/files`.
pub async fn files(Shared(state): Shared<Arc<State>>, Query(page): Query<Page>) -> Result<Json<Value>> {
    let list = state.jobs()?.files().list();
    let of = |purpose: &str| page.purpose.as_ref().is_none_or(|wanted| wanted == purpose);
    Ok(page
        .list(list.into_iter().filter(|file| of(&file.purpose)).map(|file| json!(file)).collect(), MAX_LIST))
}

/// `GET /v1/files/ID`.
pub async fn file(Shared(state): Shared<Arc<State>>, Path(id): Path<String>) -> Result<Json<Value>> {
    Ok(Json(json!(state.jobs()?.files().get(&id)?)))
}

/// `GET /v1/files/ID/content`.
pub async fn content(Shared(state): Shared<Arc<State>>, Path(id): Path<String>) -> Result<Response> {
    let files = state.jobs()?.files();
    files.get(&id)?;
    let path = files.path(&id);
    let read = state.blocking(move || std::fs::read(&path).map_err(|e| Error::failed(e.to_string()))).await?;
    Ok(([("content-type", "application/octet-stream")], read).into_response())
}

/// `DELETE /v1/files/ID`.
pub async fn remove(Shared(state): Shared<Arc<State>>, Path(id): Path<String>) -> Result<Json<Value>> {
    let jobs = state.jobs()?;
    let uses = |job: &Job| job.training_file == id || job.validation_file.as_ref() == Some(&id);
    if let Some(job) = jobs.list().iter().find(|job| !job.status.is_final() && uses(job)) {
        return Err(Error::conflict(format!("the job {} needs the file: cancel it first", job.id)));
    }
    jobs.files().remove(&id)?;
    Ok(Json(json!({"id": id, "object": "file", "deleted": true})))
}

#[derive(Deserialize)]
struct Create {
    model: String,
    training_file: String,
    validation_file: Option<String>,
    #[serde(default)]
    hyperparameters: Option<Hyperparameters>,
    method: Option<GivenMethod>,
    seed: Option<i64>,
    suffix: Option<String>,
    metadata: Option<Value>,
}

#[derive(Deserialize)]
struct GivenMethod {
    #[serde(rename = "type")]
    kind: String,
    supervised: Option<MethodFields>,
    dpo: Option<MethodFields>,
}

#[derive(Deserialize)]
struct MethodFields {
    hyperparameters: Option<Hyperparameters>,
}

impl GivenMethod {
    /// The method and its hyperparameters.
    fn read(self) -> Result<(Method, Option<Hyperparameters>)> {
        let (method, fields) = match self.kind.as_str() {
            "supervised" => (Method::Supervised, self.supervised),
            "dpo" => (Method::Dpo, self.dpo),
            other => {
                return Err(Error::field("method", format!("{other:?} is not \"supervised\" or \"dpo\"")));
            }
        };
        Ok((method, fields.and_then(|fields| fields.hyperparameters)))
    }
}

/// `POST /v1/fine_tuning/jobs`.
pub async fn create(
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>> {
    let fields: Create = body::json(&state, &headers, body).await?;
    let jobs = state.jobs()?;
    if fields.model != state.host.id() {
        return Err(Error::no_model(&fields.model, &[state.host.id().to_owned()]));
    }
    let (method, own) = fields.method.map(GivenMethod::read).transpose()?.unwrap_or_default();
    let mut hyperparameters = own.or(fields.hyperparameters).unwrap_or_default();
    // The clients may say so of any.
    hyperparameters.options.retain(|_, value| value != "auto");
    hyperparameters.check().map_err(|e| Error::field("hyperparameters", e))?;
    if fields.suffix.as_ref().is_some_and(|suffix| suffix.chars().count() > 64) {
        return Err(Error::field("suffix", "is longer than 64 characters"));
    }
    let job = jobs.create(Job {
        id: String::new(),
        created_at: 0,
        finished_at: None,
        model: fields.model,
        training_file: fields.training_file,
        validation_file: fields.validation_file,
        method,
        hyperparameters,
        seed: fields.seed.map_or_else(|| random::bits() >> 33, |seed| seed as u64),
        suffix: fields.suffix,
        metadata: fields.metadata,
        status: Status::Queued,
        fine_tuned_model: None,
        error: None,
        events: Vec::new(),
    })?;
    Ok(Json(job.json(None)))
}

fn described(jobs: &Jobs, job: &Job) -> Value {
    let tokens = || jobs.log(&job.id).iter().filter_map(|record| record["tokens"].as_u64()).sum();
    job.json(job.status.is_final().then(tokens))
}

/// `GET /v1/fine_tuning/jobs`.
pub async fn list(Shared(state): Shared<Arc<State>>, Query(page): Query<Page>) -> Result<Json<Value>> {
    let jobs = state.jobs()?;
    Ok(page.list(jobs.list().iter().map(|job| described(jobs, job)).collect(), DEFAULT_LIST))
}

/// `GET /v1/fine_tuning/jobs/ID`.
pub async fn job(Shared(state): Shared<Arc<State>>, Path(id): Path<String>) -> Result<Json<Value>> {
    let jobs = state.jobs()?;
    Ok(Json(described(jobs, &jobs.get(&id)?)))
}

/// `POST /v1/fine_tuning/jobs/ID/cancel`, `pause` and `resume`.
pub async fn turn(
    Shared(state): Shared<Arc<State>>,
    Path((id, to)): Path<(String, String)>,
) -> Result<Json<Value>> {
    let to = match to.as_str() {
        "cancel" => Status::Cancelled,
        "pause" => Status::Paused,
        "resume" => Status::Queued,
        _ => return Err(Error::not_found("a job can be cancelled, paused and resumed")),
    };
    let jobs = state.jobs()?;
    Ok(Json(described(jobs, &jobs.turn(&id, to)?)))
}

/// `GET /v1/fine_tuning/jobs/ID/events`, newest first.
pub async fn events(
    Shared(state): Shared<Arc<State>>,
    Path(id): Path<String>,
    Query(page): Query<Page>,
) -> Result<Json<Value>> {
    let jobs = state.jobs()?;
    let job = jobs.get(&id)?;
    let event = |number: usize, at: u64, kind: &str, message: String, data: Value| {
        json!({
            "id": format!("ftevent-{}-{number}", job.id), "object": "fine_tuning.job.event", "created_at": at,
            "level": if job.error.is_some() && kind == "message" { "error" } else { "info" },
            "type": kind, "message": message, "data": data,
        })
    };
    let records = jobs.log(&id);
    let (first, last) = job.events.split_at(job.events.len().min(2));
    let mut all = Vec::new();
    for (at, message) in first {
        all.push(event(all.len(), *at, "message", message.clone(), Value::Null));
    }
    let begun = first.last().map_or(job.created_at, |(at, _)| *at);
    let mut seconds = 0.0;
    for record in records {
        seconds += record["step_s"].as_f64().or(record["eval_s"].as_f64()).unwrap_or(0.0);
        let step = &record["step"];
        let message = match (record["loss"].as_f64(), record["eval_loss"].as_f64()) {
            (Some(loss), _) => format!("Step {step}: training loss={loss:.4}"),
            (None, Some(loss)) => format!("Step {step}: validation loss={loss:.4}"),
            (None, None) => continue,
        };
        let data = json!({
            "step": step, "train_loss": record["loss"], "valid_loss": record["eval_loss"],
            "train_mean_token_accuracy": null, "valid_mean_token_accuracy": record["eval_token_accuracy"],
            "learning_rate": record["learning_rate"], "tokens_per_s": record["tokens_per_s"],
        });
        all.push(event(all.len(), begun + seconds as u64, "metrics", message, data));
    }
    for (at, message) in last {
        all.push(event(all.len(), *at, "message", message.clone(), Value::Null));
    }
    all.reverse();
    Ok(page.list(all, DEFAULT_LIST))
}

/// `GET /v1/fine_tuning/jobs/ID/checkpoints`, newest first. Each is served under its name.
pub async fn checkpoints(
    Shared(state): Shared<Arc<State>>,
    Path(id): Path<String>,
    Query(page): Query<Page>,
) -> Result<Json<Value>> {
    let jobs = state.jobs()?;
    let job = jobs.get(&id)?;
    let log = jobs.log(&id);
    let one = |(step, path): (u64, std::path::PathBuf)| {
        let name = format!("ft:{}:ckpt-step-{step}", job.id);
        state.registry.offer(&name, &path);
        let metric =
            |key: &str| log.iter().rfind(|r| r["step"] == step && !r[key].is_null()).map(|r| r[key].clone());
        json!({
            "id": format!("ftckpt-{}-{step}", job.id), "object": "fine_tuning.job.checkpoint",
            "created_at": job.created_at, "fine_tuned_model_checkpoint": name, "fine_tuning_job_id": job.id,
            "step_number": step, "metrics": {"step": step, "train_loss": metric("loss"), "valid_loss": metric("eval_loss"),
                "valid_mean_token_accuracy": metric("eval_token_accuracy")},
        })
    };
    let mut all: Vec<Value> = jobs.checkpoints(&id).into_iter().map(one).collect();
    all.reverse();
    Ok(page.list(all, DEFAULT_LIST))
}
