//! Repositories that take files: made where there is none, filled by commits, as `huggingface_hub` does it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::digest;
use serde_json::{Value, json};

use super::client::{Client, Failure, JSON, LINES, json as read_json};
use super::id::is_plain;
use super::lfs::{self, Object};
use super::{ENDPOINT, Settings};
use crate::{Error, Result};

/// Bytes of a file by which the hub tells text from data.
const SAMPLE: u64 = 512;
/// Files in one request.
const MOST_FILES: usize = 256;
/// A file that goes into the commit itself is no larger; the hub sends larger ones to its storage.
const MOST_INLINE: u64 = 64 << 20;
/// How often to ask again while the hub makes another repository of the same owner.
const MOST_TRIES: u32 = 5;

/// A repository of models on the hub, to which the access token may write. It holds the token, so it has no `Debug`.
pub struct Repository {
    client: Client,
    endpoint: String,
    id: String,
}

/// A file to upload.
struct Entry<'a> {
    name: &'a str,
    path: &'a Path,
    size: u64,
    sample: Vec<u8>,
    /// The hash, for a file that goes to the storage.
    oid: Option<String>,
}

impl Repository {
    /// Whether `name` can be one: `org/name`, or a name of the token's owner.
    ///
    /// # Errors
    /// Says what it may be.
    pub fn check_name(name: &str) -> Result<()> {
        let parts: Vec<&str> = name.split('/').collect();
        match name.len() <= 96 && parts.len() <= 2 && parts.iter().all(|part| is_plain(part, "")) {
            true => Ok(()),
            false => Err(Error::Config(format!(
                "{name:?} is not a name of a repository: write org/name, or a name of your own, with letters, digits, -, _ and ."
            ))),
        }
    }

    /// Makes the repository `name`, or takes the one that is there.
    ///
    /// # Errors
    /// Where there is no access token or the hub refuses it, and where the repository is to be private and is not.
    pub fn create(name: &str, private: bool) -> Result<Self> {
        Self::create_with(name, private, &Settings::from_env())
    }

    pub(super) fn create_with(name: &str, private: bool, settings: &Settings) -> Result<Self> {
        Self::check_name(name)?;
        let fail = |what: &str| Error::Hub { repo: name.to_owned(), what: what.to_owned() };
        if settings.offline {
            return Err(fail("HF_HUB_OFFLINE is set: unset it to upload"));
        }
        let Some(token) = &settings.token else {
            return Err(fail(
                "uploads need an access token with write access: set HF_TOKEN to yours (the hub's settings, Access Tokens)",
            ));
        };
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(fail(
                "the access token holds characters that no token has: copy it again from the hub's settings",
            ));
        }
        let mut client = Client::for_uploads(&settings.endpoint, Some(token.clone()));
        if let Some(wait) = settings.retry_after {
            client.retry_after = wait;
        }
        let mut repository = Self { client, endpoint: settings.endpoint.clone(), id: name.to_owned() };
        if !name.contains('/') {
            let me = repository.client.info("api/whoami-v2").map_err(|e| repository.refused(&e))?;
            let me = me["name"].as_str().filter(|me| is_plain(me, ""));
            repository.id = format!(
                "{}/{name}",
                me.ok_or_else(|| fail("the hub does not say whose the access token is"))?
            );
        }
        repository.make(private)?;
        Ok(repository)
    }

    fn make(&self, private: bool) -> Result<()> {
        let (owner, name) = self.id.split_once('/').expect("a full id");
        let mut what = json!({"name": name, "organization": owner, "type": "model"});
        if private {
            what["private"] = true.into();
        }
        let mut made = Ok(());
        for tried in 0..MOST_TRIES {
            made = self.client.post("/api/repos/create", JSON, what.to_string().as_bytes()).map(drop);
            match &made {
                Err(Failure::Status(409, said)) if said.contains("another conflicting operation") => {
                    std::thread::sleep(self.client.retry_after * 2u32.pow(tried));
                }
                _ => break,
            }
        }
        match made {
            // It is there.
            Ok(()) => {}
            Err(Failure::Status(409, said)) if !said.contains("another conflicting operation") => {}
            // The token may write to it and make none.
            Err(failure @ Failure::Status(403, _)) if self.info().is_err() => {
                return Err(self.refused(&failure));
            }
            Err(Failure::Status(403, _)) => {}
            Err(failure) => return Err(self.refused(&failure)),
        }
        if private && self.info().map_err(|e| self.refused(&e))?["private"] != true {
            return Err(self.fail(
                "exists and is public: make it private in its settings on the hub, choose another name, or drop the option",
            ));
        }
        Ok(())
    }

    fn info(&self) -> std::result::Result<Value, Failure> {
        self.client.info(&format!("api/models/{}", self.id))
    }

    /// `org/name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its page.
    pub fn page(&self) -> String {
        // An address may hold a password.
        let mut page =
            url::Url::parse(&self.endpoint).or_else(|_| url::Url::parse(ENDPOINT)).expect("a constant");
        let _ = page.set_password(None);
        let _ = page.set_username("");
        format!("{}/{}", page.as_str().trim_end_matches('/'), self.id)
    }

    /// Uploads files, each with its name in the repository, as one commit on `main`: what is small goes into it, what is large to
    /// the hub's storage, as the hub decides.
    ///
    /// # Errors
    /// Where a file cannot be read, or the hub refuses or cannot be reached. Then nothing is committed.
    pub fn commit(&self, files: &[(String, PathBuf)], message: &str) -> Result<()> {
        let mut entries =
            files.iter().map(|(name, path)| Entry::new(name, path)).collect::<Result<Vec<_>>>()?;
        for part in entries.chunks_mut(MOST_FILES) {
            self.decide(part)?;
        }
        let large: Vec<Object> = entries
            .iter()
            .filter_map(|e| Some(Object { name: e.name, path: e.path, size: e.size, oid: e.oid.as_deref()? }))
            .collect();
        for part in large.chunks(MOST_FILES) {
            lfs::upload(&self.client, &self.endpoint, &self.id, part).map_err(|e| self.refused(&e))?;
        }
        let mut lines =
            json!({"key": "header", "value": {"summary": message, "description": ""}}).to_string();
        for entry in &entries {
            let value = match &entry.oid {
                Some(oid) => json!({"key": "lfsFile", "value": {
                    "path": entry.name, "algo": "sha256", "oid": oid, "size": entry.size,
                }}),
                None => json!({"key": "file", "value": {
                    "content": BASE64.encode(fs::read(entry.path).map_err(Error::io(entry.path))?),
                    "path": entry.name, "encoding": "base64",
                }}),
            };
            lines += &format!("\n{value}");
        }
        lines.push('\n');
        let address = format!("/api/models/{}/commit/main", self.id);
        self.client.post(&address, LINES, lines.as_bytes()).map_err(|e| self.refused(&e))?;
        Ok(())
    }

    /// Asks which files go to the storage, and hashes these.
    fn decide(&self, entries: &mut [Entry]) -> Result<()> {
        let asked: Vec<Value> = entries
            .iter()
            .map(|e| json!({"path": e.name, "sample": BASE64.encode(&e.sample), "size": e.size}))
            .collect();
        let address = format!("/api/models/{}/preupload/main", self.id);
        let asked = json!({"files": asked}).to_string();
        let answer = self.client.post(&address, JSON, asked.as_bytes()).and_then(read_json);
        let answer = answer.map_err(|e| self.refused(&e))?;
        for entry in entries {
            let files = answer["files"].as_array().into_iter().flatten();
            let mode =
                files.filter(|file| file["path"] == entry.name).find_map(|file| file["uploadMode"].as_str());
            match mode {
                // The storage takes no empty file.
                Some("lfs") if entry.size > 0 => entry.oid = Some(hash(entry.path)?),
                Some("lfs" | "regular") if entry.size <= MOST_INLINE => {}
                _ => {
                    let what = format!("it does not say how to send {} ({} bytes)", entry.name, entry.size);
                    return Err(self.refused(&Failure::Broken(what)));
                }
            }
        }
        Ok(())
    }

    fn fail(&self, what: impl Into<String>) -> Error {
        Error::Hub { repo: self.id.clone(), what: what.into() }
    }

    /// What the hub refuses, what it says of it, and what to do.
    fn refused(&self, failure: &Failure) -> Error {
        let owner = self.id.split('/').next().unwrap_or_default();
        let (what, advice) = match failure {
            Failure::Status(401, _) => (
                "the hub does not accept the access token".into(),
                "set HF_TOKEN to a token with write access".into(),
            ),
            Failure::Status(403, _) => (
                "the access token may not write here".into(),
                format!(
                    "set HF_TOKEN to a token with write access to {owner}, or name a repository of your own"
                ),
            ),
            Failure::Status(404, _) => (
                "the hub has no such repository, or the access token may not see it".into(),
                "check the name and the token".to_owned(),
            ),
            Failure::Status(409 | 412, _) => {
                ("something else is changing the repository".into(), "try again".into())
            }
            Failure::Status(429, _) => {
                ("the hub refuses so many requests".into(), "try again in some minutes".into())
            }
            Failure::Status(status, _) => {
                (format!("the hub answers with status {status}"), "try again later".into())
            }
            Failure::Broken(why) => (
                format!("the upload failed ({why})"),
                "check the network and HF_ENDPOINT, and try again".into(),
            ),
        };
        let said = match failure {
            Failure::Status(_, said) if !said.is_empty() => format!(" ({said})"),
            _ => String::new(),
        };
        self.fail(format!("{what}{said}: {advice}"))
    }
}

impl<'a> Entry<'a> {
    fn new(name: &'a str, path: &'a Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let size = file.metadata().map_err(Error::io(path))?.len();
        let mut sample = Vec::new();
        file.take(SAMPLE).read_to_end(&mut sample).map_err(Error::io(path))?;
        Ok(Self { name, path, size, sample, oid: None })
    }
}

/// SHA-256 of a file in hexadecimal digits.
fn hash(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => context.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io(path)(e)),
        }
    }
    Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}
