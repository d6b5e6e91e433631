//! Which adapter a request uses.

use std::collections::BTreeMap;
use std::sync::Arc;

use lowrank_models::ChatTemplate;
use serde::Deserialize;

use super::state::State;
use crate::error::{Error, Result};
use crate::lease::Lease;

/// The fields of a request that name a model.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct TargetFields {
    model: Option<String>,
    /// A mixture: names and weights.
    adapters: Option<BTreeMap<String, f32>>,
    /// The same in llama-server's words.
    lora: Option<Vec<Scale>>,
}

/// An adapter by its number in `GET /lora-adapters`, and its weight.
#[derive(Clone, Debug, Deserialize)]
pub struct Scale {
    id: usize,
    scale: f32,
}

impl State {
    /// The adapters of these numbers whose weight is not 0.
    ///
    /// # Errors
    /// Where there is no such number, or a weight is not finite.
    pub fn scaled(&self, scales: &[Scale]) -> Result<Vec<(String, f32)>> {
        let list = self.registry.list();
        let mut mixture = Vec::new();
        for Scale { id, scale } in scales {
            let info = list
                .get(*id)
                .ok_or_else(|| Error::field("id", format!("there is no adapter number {id}")))?;
            if !scale.is_finite() {
                return Err(Error::field("scale", format!("{scale} is not a finite number")));
            }
            if *scale != 0.0 {
                mixture.push((info.name.clone(), *scale));
            }
        }
        Ok(mixture)
    }
}

/// The base or adapters of a request.
pub struct Target {
    /// As the answer names it.
    pub name: String,
    /// None for the base alone.
    pub lease: Option<Lease>,
}

impl TargetFields {
    /// The base or the adapter of this name.
    pub fn named(model: &str) -> Self {
        Self { model: Some(model.to_owned()), ..Self::default() }
    }

    /// Finds the base, the adapter or the mixture.
    ///
    /// # Errors
    /// Where there is none of that name.
    pub async fn find(&self, state: &Arc<State>) -> Result<Target> {
        let base = state.host.id();
        let name = self.model.clone().unwrap_or_else(|| base.to_owned());
        let mixture = match (&self.adapters, &self.lora) {
            (Some(_), Some(_)) => return Err(Error::field("lora", "and adapters are both given")),
            (Some(parts), None) => Some(parts.iter().map(|(name, weight)| (name.clone(), *weight)).collect()),
            (None, Some(scales)) => Some(state.scaled(scales)?),
            (None, None) => None,
        };
        if let Some(parts) = mixture {
            let parts: Vec<(String, f32)> = parts;
            if let Some((part, weight)) = parts.iter().find(|(_, weight)| !weight.is_finite()) {
                return Err(Error::field("adapters", format!("the weight of {part:?} is {weight}")));
            }
            if name != base {
                return Err(Error::field(
                    "adapters",
                    format!("is for the model {base:?}, and the model here is {name:?}"),
                ));
            }
            let used: Vec<(String, f32)> = parts.into_iter().filter(|(_, weight)| *weight != 0.0).collect();
            let lease = if used.is_empty() { None } else { Some(state.registry.mix(&used).await?) };
            return Ok(Target { name, lease });
        }
        if name == base {
            let parts = state.default_mixture();
            let lease = if parts.is_empty() { None } else { Some(state.registry.mix(&parts).await?) };
            return Ok(Target { name, lease });
        }
        let lease = match state.registry.lease(&name).await {
            Err(error) if error.status == 404 => {
                // It may be new in the folder.
                state.registry.scan();
                state.registry.lease(&name).await?
            }
            lease => lease?,
        };
        Ok(Target { name, lease: Some(lease) })
    }
}

impl Target {
    /// The chat template, what ends a turn besides tokens, and the tokens that end it.
    ///
    /// # Errors
    /// Where neither adapter nor base has a template.
    pub fn chat<'a>(&'a self, state: &'a State) -> Result<(&'a ChatTemplate, &'a [String], &'a [u32])> {
        if let Some(chat) = self.lease.as_ref().and_then(|lease| lease.loaded().chat.as_ref()) {
            return Ok((&chat.template, &chat.stops, &chat.stop_tokens));
        }
        let template = state.host.chat_template().ok_or_else(|| {
            Error::request("the model has no chat template: use /v1/completions, or start the server with --chat-template")
        })?;
        Ok((template, &state.stops, state.host.stop_tokens()))
    }
}
