//! Models and adapters: OpenAI's list, vLLM's loading, llama-server's weights.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State as Shared};
use axum::http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body;
use super::state::State;
use super::target::Scale;
use crate::error::{Error, Result};
use crate::registry::AdapterInfo;

/// `GET /v1/models`.
pub async fn models(Shared(state): Shared<Arc<State>>) -> Json<Value> {
    state.registry.scan();
    let adapters = state.registry.list();
    let base = std::iter::once(state.base_model());
    let data: Vec<Value> = base.chain(adapters.iter().map(|info| state.adapter_model(info))).collect();
    Json(json!({"object": "list", "data": data}))
}

/// `GET /v1/models/NAME`.
pub async fn model(Shared(state): Shared<Arc<State>>, Path(name): Path<String>) -> Result<Json<Value>> {
    state.registry.scan();
    if name == state.host.id() {
        return Ok(Json(state.base_model()));
    }
    let list = state.registry.list();
    let names = || std::iter::once(state.host.id().to_owned()).chain(list.iter().map(|a| a.name.clone()));
    let found = list.iter().find(|info| info.name == name);
    let found = found.ok_or_else(|| Error::no_model(&name, &names().take(20).collect::<Vec<_>>()))?;
    Ok(Json(state.adapter_model(found)))
}

#[derive(Deserialize)]
struct Load {
    lora_name: String,
    lora_path: PathBuf,
}

/// `POST /v1/load_lora_adapter`.
pub async fn load(Shared(state): Shared<Arc<State>>, headers: HeaderMap, body: Body) -> Result<String> {
    let fields: Load = body::json(&state, &headers, body).await?;
    state.check_path(&fields.lora_path)?;
    state.registry.add(&fields.lora_name, &fields.lora_path, false).await?;
    Ok(format!("Success: LoRA adapter '{}' added successfully.", fields.lora_name))
}

#[derive(Deserialize)]
struct Unload {
    lora_name: String,
}

/// `POST /v1/unload_lora_adapter`: answers when the last request that uses it has ended.
pub async fn unload(Shared(state): Shared<Arc<State>>, headers: HeaderMap, body: Body) -> Result<String> {
    let fields: Unload = body::json(&state, &headers, body).await?;
    state.registry.remove(&fields.lora_name).await?;
    state.forget_default(&fields.lora_name);
    Ok(format!("Success: LoRA adapter '{}' removed successfully.", fields.lora_name))
}

/// `GET /lora-adapters`: every adapter with its number and its weight in requests that name the base.
pub async fn weights(Shared(state): Shared<Arc<State>>) -> Json<Value> {
    let mixture = state.default_mixture();
    let weight = |name: &str| mixture.iter().find(|(of, _)| of == name).map_or(0.0, |(_, weight)| *weight);
    let list = state.registry.list();
    let one = |(id, info): (usize, &AdapterInfo)| json!({"id": id, "name": info.name, "path": info.path, "scale": weight(&info.name)});
    Json(list.iter().enumerate().map(one).collect())
}

/// `POST /lora-adapters`: sets the weights in requests that name the base.
pub async fn set_weights(
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>> {
    let fields: Vec<Scale> = body::json(&state, &headers, body).await?;
    let mixture = state.scaled(&fields)?;
    if !mixture.is_empty() {
        state.registry.mix(&mixture).await?;
    }
    state.set_default_mixture(mixture);
    Ok(Json(json!({"success": true})))
}

impl State {
    fn base_model(&self) -> Value {
        let info = self.host.model().info();
        json!({
            "id": self.host.id(), "object": "model", "created": self.started, "owned_by": "lowrank",
            "root": self.host.id(), "parent": null, "max_model_len": info.position_limit,
        })
    }

    fn adapter_model(&self, info: &AdapterInfo) -> Value {
        let (kind, rank, bytes) = match &info.loaded {
            Some((kind, rank, bytes)) => (Some(kind), *rank, Some(*bytes)),
            None => (None, None, None),
        };
        json!({
            "id": info.name, "object": "model", "created": info.created, "owned_by": "lowrank",
            "root": info.path, "parent": self.host.id(), "max_model_len": self.host.model().info().position_limit,
            "lowrank": {"loaded": info.loaded.is_some(), "peft_type": kind, "rank": rank, "bytes": bytes,
                "pinned": info.pinned},
        })
    }

    /// Whether a path of a request may be read: on this machine any, from elsewhere those of the adapters folder.
    fn check_path(&self, path: &std::path::Path) -> Result<()> {
        if self.options.host.is_loopback() {
            return Ok(());
        }
        let inside = || {
            let folder = self.options.adapters_dir.as_ref()?.canonicalize().ok()?;
            Some(path.canonicalize().ok()?.starts_with(folder))
        };
        match inside() {
            Some(true) => Ok(()),
            _ => Err(Error::forbidden(
                "lora_path is not inside --adapters-dir, which a server for other machines needs",
            )),
        }
    }
}
