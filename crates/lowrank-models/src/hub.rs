//! Models of the Hugging Face hub, by id, through its cache.
//!
//! `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean to
//! `huggingface_hub`. A model that is whole in the cache is used without asking the network.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use lowrank_files::folder::{INDEX, SINGLE, shards};

use crate::{Error, Result};

/// Files beside the weights; the model can do without all but the first.
const SMALL: [&str; 5] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
];

/// `org/name`, `org/name@revision`, and either with `:file.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// A GGUF file of the repository.
    pub file: Option<String>,
}

impl HubId {
    /// Reads an id; `None` for what can be none (a path, say).
    pub fn parse(text: &str) -> Option<Self> {
        let (text, file) = match text.split_once(':') {
            Some((text, file)) if file.to_ascii_lowercase().ends_with(".gguf") => (text, Some(file)),
            Some(_) => return None,
            None => (text, None),
        };
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (org, name) = repo.split_once('/')?;
        let plain = |part: &str, more: &str| {
            let letters =
                part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c) || more.contains(c));
            letters
                && !part.is_empty()
                && !part.starts_with('.')
                && !part.contains("..")
                && !part.starts_with('/')
        };
        let good =
            plain(org, "") && plain(name, "") && plain(revision, "/") && file.is_none_or(|f| plain(f, "/ +"));
        // `models/llama.gguf` is a file that is not there, not a repository.
        let is_path =
            file.is_none() && [".gguf", ".safetensors", ".json"].iter().any(|end| name.ends_with(end));
        (good && !is_path).then(|| Self {
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }
}

impl std::fmt::Display for HubId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.repo)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

/// What the environment says about the hub.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub cache: PathBuf,
    pub endpoint: Option<String>,
    pub token: Option<String>,
    pub offline: bool,
}

impl Settings {
    fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = || std::env::home_dir().unwrap_or_default().join(".cache/huggingface");
        let cache = match set("HF_HUB_CACHE") {
            Some(folder) => PathBuf::from(folder),
            None => set("HF_HOME").map_or_else(home, PathBuf::from).join("hub"),
        };
        let offline = set("HF_HUB_OFFLINE")
            .is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"));
        Self { cache, endpoint: set("HF_ENDPOINT"), token: set("HF_TOKEN"), offline }
    }
}

/// The folder (or GGUF file) of a hub model in the cache, downloading what is missing.
///
/// # Errors
/// Where files are missing and the hub is off, unreachable or refuses; the message names them and says
/// what to do.
pub fn fetch(id: &HubId) -> Result<PathBuf> {
    fetch_with(id, &Settings::from_env())
}

pub(crate) fn fetch_with(id: &HubId, settings: &Settings) -> Result<PathBuf> {
    let repo = Repo::with_revision(id.repo.clone(), RepoType::Model, id.revision.clone());
    let cached = Cache::new(settings.cache.clone()).repo(repo.clone());
    let missing = match in_cache(id, &cached)? {
        Ok(path) => return Ok(path),
        Err(missing) => missing,
    };
    let fail = |why: String, what_to_do: &str| Error::Hub {
        repo: id.to_string(),
        what: format!(
            "{why}; not in the cache {}: {}. {what_to_do}",
            settings.cache.display(),
            missing.join(", ")
        ),
    };
    if settings.offline {
        let advice = "Unset HF_HUB_OFFLINE to download it, set HF_HOME to the cache that holds it, \
                      or name a local folder or .gguf file";
        return Err(fail("HF_HUB_OFFLINE is set".into(), advice));
    }
    let mut builder = ApiBuilder::from_cache(Cache::new(settings.cache.clone()));
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    if let Some(token) = &settings.token {
        builder = builder.with_token(Some(token.clone()));
    }
    let refused = |e: ApiError| fail(describe(&e), advice_for(&e));
    let api = builder.build().map_err(refused)?.repo(repo);
    let available: Vec<String> =
        api.info().map_err(refused)?.siblings.into_iter().map(|s| s.rfilename).collect();
    let has = |name: &str| available.iter().any(|have| have == name);
    let get =
        |name: &str| api.get(name).map_err(|e| fail(format!("{name}: {}", describe(&e)), advice_for(&e)));

    if let Some(file) = &id.file {
        if !has(file) {
            let there: Vec<&str> =
                available.iter().map(String::as_str).filter(|f| f.ends_with(".gguf")).collect();
            return Err(fail(
                format!("the repository has no such file (it has {})", there.join(", ")),
                "Name one of them",
            ));
        }
        return get(file);
    }
    if !has(SMALL[0]) {
        let gguf = available.iter().find(|name| name.ends_with(".gguf"));
        let advice = match gguf {
            Some(file) => format!("It holds GGUF files: name one, as in {}:{file}", id.repo),
            None => "Name a repository with config.json and .safetensors files".into(),
        };
        return Err(fail("the repository has no config.json".into(), &advice));
    }
    if !has(INDEX) && !has(SINGLE) {
        let advice = "Convert the model with save_pretrained(..., safe_serialization=True)";
        return Err(fail(format!("the repository has neither {SINGLE} nor {INDEX}"), advice));
    }
    let config = get(SMALL[0])?;
    for name in SMALL[1..].iter().filter(|name| has(name)) {
        get(name)?;
    }
    if has(INDEX) {
        let index = get(INDEX)?;
        for shard in shards(&index)? {
            get(&shard)?;
        }
    } else {
        get(SINGLE)?;
    }
    Ok(folder_of(&config))
}

/// The model in the cache, or the names of the files it lacks.
fn in_cache(id: &HubId, cached: &CacheRepo) -> Result<std::result::Result<PathBuf, Vec<String>>> {
    if let Some(file) = &id.file {
        return Ok(cached.get(file).ok_or_else(|| vec![file.clone()]));
    }
    let mut missing = Vec::new();
    // Without them one could neither build the model nor feed it; the other small files are optional.
    for name in &SMALL[..2] {
        if cached.get(name).is_none() {
            missing.push((*name).to_owned());
        }
    }
    match cached.get(INDEX) {
        Some(index) => {
            missing.extend(shards(&index)?.into_iter().filter(|shard| cached.get(shard).is_none()))
        }
        None if cached.get(SINGLE).is_none() => missing.push(SINGLE.to_owned()),
        None => {}
    }
    match cached.get(SMALL[0]) {
        Some(config) if missing.is_empty() => Ok(Ok(folder_of(&config))),
        _ => Ok(Err(missing)),
    }
}

fn folder_of(config: &Path) -> PathBuf {
    config.parent().map(Path::to_owned).unwrap_or_default()
}

fn status_of(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(inner) => {
            inner.to_string().split("status code ").nth(1)?.get(..3)?.parse().ok()
        }
        ApiError::TooManyRetries(inner) => status_of(inner),
        _ => None,
    }
}

fn describe(error: &ApiError) -> String {
    match status_of(error) {
        Some(401 | 403) => "the hub refuses access".into(),
        Some(404) => "the hub has no such repository, revision or file".into(),
        _ => format!("the hub cannot be reached ({error})"),
    }
}

fn advice_for(error: &ApiError) -> &'static str {
    match status_of(error) {
        Some(401 | 403) => "Accept the model's licence on its page and set HF_TOKEN to your access token",
        Some(404) => "Check the id; for a private repository set HF_TOKEN",
        _ => {
            "Connect to the network, set HF_HOME to a cache that holds the model, or name a local folder or .gguf file"
        }
    }
}

#[cfg(test)]
mod tests;
