//! The Hugging Face hub: models and data sets by id, through its cache, and repositories to upload to.
//!
//! `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH` and `HF_HUB_OFFLINE` mean what they mean to
//! `huggingface_hub`. A model that is whole in the cache is used without asking the network.

mod cache;
mod client;
mod dataset;
mod id;
mod lfs;
mod repository;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lowrank_files::folder::{INDEX, SINGLE, shards};
use lowrank_files::{AtomicFile, gguf_parts};

use self::cache::Cache;
use self::client::{Client, Failure};
pub use self::dataset::DatasetId;
use self::dataset::{shard_count, train_files};
use self::id::is_plain as plain;
pub use self::repository::Repository;

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

const ENDPOINT: &str = "https://huggingface.co";

/// What the environment says about the hub. It holds secrets, so it has no `Debug`.
#[derive(Clone)]
pub(crate) struct Settings {
    pub cache: PathBuf,
    pub endpoint: String,
    pub token: Option<String>,
    pub offline: bool,
    /// How long to wait before a request is tried again, where that is not a second.
    pub retry_after: Option<Duration>,
}

impl Settings {
    fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = || std::env::home_dir().unwrap_or_default().join(".cache/huggingface");
        let home = set("HF_HOME").map_or_else(home, PathBuf::from);
        let cache = set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from);
        let stored = || {
            let file = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
            std::fs::read_to_string(file).ok()
        };
        // As huggingface_hub cleans it.
        let clean =
            |token: String| Some(token.replace(['\r', '\n'], "").trim().to_owned()).filter(|t| !t.is_empty());
        let token = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN")).or_else(stored).and_then(clean);
        let offline = set("HF_HUB_OFFLINE")
            .is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"));
        Self {
            cache,
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()),
            token,
            offline,
            retry_after: None,
        }
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
    let cached = Cache::new(&settings.cache, "models", &id.repo, &id.revision);
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
    if settings.token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
        let advice = "Copy it again from the hub's settings";
        return Err(fail("the access token holds characters that no token has".into(), advice));
    }
    let client = Client::new(&settings.endpoint, settings.token.clone(), "models");
    let refused = |e: Failure| fail(describe(&e), advice_for(&e));
    let (available, _) = client.files(&id.repo, &id.revision).map_err(refused)?;
    let has = |name: &str| available.iter().any(|have| have == name);
    let get = |name: &str| {
        let failed = |e: Failure| fail(format!("{name}: {}", describe(&e)), advice_for(&e));
        download(&client, &cached, (&id.repo, &id.revision), name).map_err(failed)
    };

    if let Some(file) = &id.file {
        if !has(file) {
            let there: Vec<&str> =
                available.iter().map(String::as_str).filter(|f| f.ends_with(".gguf")).collect();
            return Err(fail(
                format!("the repository has no such file (it has {})", there.join(", ")),
                "Name one of them",
            ));
        }
        let parts = gguf_parts(file);
        if let Some(part) = parts.iter().find(|part| !has(part)) {
            return Err(fail(format!("the repository lacks {part}"), "Name another file"));
        }
        let paths = parts.iter().map(|part| get(part)).collect::<Result<Vec<_>>>()?;
        return Ok(paths[0].clone());
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

/// The files of a data set's train split in the cache, downloading what is missing. Without a network, those that the cache has.
///
/// # Errors
/// Where there are none, files are missing, or the hub is off, unreachable or refuses.
pub fn fetch_dataset(id: &DatasetId) -> Result<Vec<PathBuf>> {
    fetch_dataset_with(id, &Settings::from_env())
}

pub(crate) fn fetch_dataset_with(id: &DatasetId, settings: &Settings) -> Result<Vec<PathBuf>> {
    let cached = Cache::new(&settings.cache, "datasets", &id.repo, &id.revision);
    let fail = |what: String| Error::Hub { repo: id.to_string(), what };
    let client = Client::new(&settings.endpoint, settings.token.clone(), "datasets");
    let good_token = settings.token.as_ref().is_none_or(|token| token.bytes().all(|b| b.is_ascii_graphic()));
    let listed = match (settings.offline, good_token) {
        (true, _) => Err("HF_HUB_OFFLINE is set".to_owned()),
        (_, false) => return Err(fail("the access token holds characters that no token has".into())),
        _ => match client.files(&id.repo, &id.revision) {
            Ok(listed) => Ok(listed),
            Err(failure @ Failure::Broken(_)) => Err(describe(&failure)),
            Err(failure @ Failure::Status(..)) => {
                let advice = "check the id, accept the terms on the data set's page, and set HF_TOKEN to your access token";
                return Err(fail(format!("{}: {advice}", describe(&failure))));
            }
        },
    };
    let (names, commit) = match listed {
        Ok(listed) => listed,
        Err(why) => {
            let chosen = train_files(&cached.files(), id.file.as_deref()).unwrap_or_default();
            let whole = chosen.first().and_then(|name| shard_count(name)).is_none_or(|n| n == chosen.len());
            let paths: Vec<PathBuf> = chosen.iter().filter_map(|name| cached.get(name)).collect();
            if paths.is_empty() || !whole || paths.len() < chosen.len() {
                let (have, cache) = (paths.len(), settings.cache.display());
                return Err(fail(format!(
                    "{why}, and the cache {cache} has {have} files of the train split, not all: connect to the network, set \
                     HF_HOME to a cache that holds them, or name a local file"
                )));
            }
            return Ok(paths);
        }
    };
    let get = |name: String| match cached.at_commit(&commit, &name) {
        Some(path) => Ok(path),
        None => download(&client, &cached, (&id.repo, &id.revision), &name)
            .map_err(|failure| fail(format!("{name}: {}", describe(&failure)))),
    };
    train_files(&names, id.file.as_deref()).map_err(&fail)?.into_iter().map(get).collect()
}

/// Fetches a file into the cache.
fn download(
    client: &Client,
    cached: &Cache,
    (repo, revision): (&str, &str),
    name: &str,
) -> std::result::Result<PathBuf, Failure> {
    let mut file = client.file(repo, revision, name)?;
    let (broken, wrong) = (
        |e: io::Error| Failure::Broken(e.to_string()),
        |e: lowrank_files::Error| Failure::Broken(e.to_string()),
    );
    let blob = cached.blob(&file.etag).map_err(broken)?;
    if !blob.exists() {
        if let Some(bytes) = file.bytes.filter(|bytes| *bytes > 1_000_000) {
            eprintln!("downloading {repo}: {name}, {} MB", bytes / 1_000_000);
        }
        let mut out = AtomicFile::create(&blob).map_err(wrong)?;
        let bytes = io::copy(&mut file.body, &mut out).map_err(broken)?;
        if file.bytes.is_some_and(|promised| promised != bytes) {
            return Err(Failure::Broken(format!("the connection ended after {bytes} bytes")));
        }
        out.flush().map_err(broken)?;
        out.commit().map_err(wrong)?;
    }
    cached.link(&file.commit, name, &file.etag).map_err(broken)
}

/// The model in the cache, or the names of the files it lacks.
fn in_cache(id: &HubId, cached: &Cache) -> Result<std::result::Result<PathBuf, Vec<String>>> {
    if let Some(file) = &id.file {
        let (there, missing): (Vec<_>, Vec<_>) =
            gguf_parts(file).into_iter().partition(|part| cached.get(part).is_some());
        return Ok(match (there.first(), missing.is_empty()) {
            (Some(first), true) => cached.get(first).ok_or(there),
            _ => Err(missing),
        });
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

fn describe(failure: &Failure) -> String {
    match failure {
        Failure::Status(401 | 403, _) => "the hub refuses access".into(),
        Failure::Status(404, _) => "the hub has no such repository, revision or file".into(),
        Failure::Status(status, _) => format!("the hub answers with status {status}"),
        Failure::Broken(why) => format!("the hub cannot be reached ({why})"),
    }
}

fn advice_for(failure: &Failure) -> &'static str {
    match failure {
        Failure::Status(401 | 403, _) => {
            "Accept the model's licence on its page and set HF_TOKEN to your access token"
        }
        Failure::Status(404, _) => "Check the id; for a private repository set HF_TOKEN",
        _ => {
            "Connect to the network, set HF_HOME to a cache that holds the model, or name a local folder or .gguf file"
        }
    }
}

#[cfg(test)]
mod repository_tests;
#[cfg(test)]
mod tests;
