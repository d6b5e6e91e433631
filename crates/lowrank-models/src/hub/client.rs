//! Requests to the hub, as `huggingface_hub` makes them: the token goes to the hub alone, and a redirect to another host does not
//! carry it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use ureq::{Agent, Request, Response};
use url::Url;

const MOST_REDIRECTS: usize = 10;
/// A list of files is no larger.
const MOST_INFO_BYTES: u64 = 64 << 20;
/// How much of what the hub says of an error is read, and shown.
const MOST_ERROR_BYTES: u64 = 64 << 10;
const MOST_ERROR_CHARS: usize = 400;
/// How often a part of a file is sent where the storage fails for a moment.
const MOST_TRIES: u32 = 5;

/// The kinds of what is sent.
pub(super) const JSON: &str = "application/json";
pub(super) const LINES: &str = "application/x-ndjson";
pub(super) const LFS: &str = "application/vnd.git-lfs+json";

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The hub's answer, and what it says of it.
    Status(u16, String),
    /// No answer, or one that is not the hub's.
    Broken(String),
}

/// A file that the hub is about to send.
pub(super) struct Download {
    /// The commit of the revision.
    pub commit: String,
    /// What the bytes are called in the cache.
    pub etag: String,
    /// How many bytes there will be, where the hub says so.
    pub bytes: Option<u64>,
    /// The bytes.
    pub body: Box<dyn Read + Send + Sync>,
}

/// One hub, with or without a token.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    /// `models` or `datasets`.
    kind: &'static str,
    /// How long to wait before the second try; twice as long before each one after it.
    pub retry_after: Duration,
}

impl Client {
    pub fn new(endpoint: &str, token: Option<String>, kind: &'static str) -> Self {
        Self::waiting(endpoint, token, kind, Duration::from_secs(60))
    }

    /// For uploads, after which the storage may need minutes to put parts together.
    pub fn for_uploads(endpoint: &str, token: Option<String>) -> Self {
        Self::waiting(endpoint, token, "models", Duration::from_secs(600))
    }

    fn waiting(endpoint: &str, token: Option<String>, kind: &'static str, read: Duration) -> Self {
        let agent =
            ureq::builder().try_proxy_from_env(true).redirects(0).timeout_connect(Duration::from_secs(30));
        let agent = agent.timeout_read(read).user_agent("lowrank").build();
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Self { agent, endpoint, token, kind, retry_after: Duration::from_secs(1) }
    }

    /// What the hub says at a path of its API.
    pub fn info(&self, path: &str) -> Result<Value, Failure> {
        json(self.get(&format!("{}/{path}", self.endpoint))?.0)
    }

    /// Sends JSON (or lines of it) to an address: with the token where that is the hub's, and to no other host by a redirect.
    pub fn post(&self, address: &str, kind: &str, body: &[u8]) -> Result<Response, Failure> {
        let hub = parsed(&self.endpoint)?;
        let mut url = match address.starts_with('/') {
            true => parsed(&format!("{}{address}", self.endpoint))?,
            false => parsed(address)?,
        };
        for _ in 0..MOST_REDIRECTS {
            let token = self.token.as_deref().filter(|_| url.origin() == hub.origin());
            let request = with_token(self.agent.post(url.as_str()), token);
            let request = request.set("content-type", kind).set("accept", accept(kind));
            let response = self.answered(request.send_bytes(body))?;
            if !(300..400).contains(&response.status()) {
                return Ok(response);
            }
            let to = target_again(&url, &response)?;
            if to.origin() != url.origin() {
                let what = "a redirect leads to another host, which gets neither token nor files";
                return Err(Failure::Broken(what.into()));
            }
            url = to;
        }
        Err(Failure::Broken(format!("more than {MOST_REDIRECTS} redirects")))
    }

    /// Sends `length` bytes of a file from `start` on to where the storage takes them, an address that needs no token. Tries again
    /// where the storage fails for a moment. Returns the etag.
    pub fn put(
        &self,
        address: &str,
        file: &Path,
        start: u64,
        length: u64,
    ) -> Result<Option<String>, Failure> {
        let mut wait = self.retry_after;
        for _ in 1..MOST_TRIES {
            match self.put_once(address, file, start, length) {
                Err(Failure::Status(429 | 500 | 502..=504, _) | Failure::Broken(_)) => {
                    std::thread::sleep(wait);
                    wait *= 2;
                }
                settled => return settled,
            }
        }
        self.put_once(address, file, start, length)
    }

    fn put_once(
        &self,
        address: &str,
        file: &Path,
        start: u64,
        length: u64,
    ) -> Result<Option<String>, Failure> {
        let broken = |e: io::Error| Failure::Broken(format!("{}: {e}", file.display()));
        let mut url = parsed(address)?;
        for _ in 0..MOST_REDIRECTS {
            let mut part = File::open(file).map_err(broken)?;
            part.seek(SeekFrom::Start(start)).map_err(broken)?;
            let request = self.agent.put(url.as_str()).set("content-length", &length.to_string());
            let response = self.answered(request.send(part.take(length)))?;
            if !(300..400).contains(&response.status()) {
                return Ok(response.header("etag").map(str::to_owned));
            }
            url = target_again(&url, &response)?;
        }
        Err(Failure::Broken(format!("more than {MOST_REDIRECTS} redirects")))
    }

    /// The response, or why there is none that is good.
    fn answered(&self, answer: Result<Response, ureq::Error>) -> Result<Response, Failure> {
        match answer {
            Ok(response) => Ok(response),
            Err(ureq::Error::Status(status, response)) => Err(Failure::Status(status, self.said(response))),
            // The whole message would show the address with what it has of a password.
            Err(ureq::Error::Transport(e)) => {
                Err(Failure::Broken(e.message().map_or_else(|| e.kind().to_string(), str::to_owned)))
            }
        }
    }

    /// What the hub says of an error: in a header, else as `error` of its JSON. Never the token.
    fn said(&self, response: Response) -> String {
        let mut text = response.header("x-error-message").unwrap_or_default().to_owned();
        if text.is_empty() {
            let body = response.into_reader().take(MOST_ERROR_BYTES);
            let body: Value = serde_json::from_reader(body).unwrap_or_default();
            let said = body.get("error").or(body.get("message")).and_then(Value::as_str);
            text = said.unwrap_or_default().to_owned();
        }
        if let Some(token) = &self.token {
            text = text.replace(token, "[token]");
        }
        let text = text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty());
        text.collect::<Vec<_>>().join(" ").chars().take(MOST_ERROR_CHARS).collect()
    }

    /// The names of the repository's files, and the commit that they are of.
    pub fn files(&self, repo: &str, revision: &str) -> Result<(Vec<String>, String), Failure> {
        let url = format!("{}/api/{}/{repo}/revision/{}", self.endpoint, self.kind, encoded(revision));
        let (response, _) = self.get(&url)?;
        let info: Value = serde_json::from_reader(response.into_reader().take(MOST_INFO_BYTES))
            .map_err(|e| Failure::Broken(format!("its list of files: {e}")))?;
        let files = info.get("siblings").and_then(Value::as_array).into_iter().flatten();
        let names = files.filter_map(|file| Some(file.get("rfilename")?.as_str()?.to_owned())).collect();
        Ok((names, info.get("sha").and_then(Value::as_str).unwrap_or_default().to_owned()))
    }

    /// Begins to fetch a file.
    pub fn file(&self, repo: &str, revision: &str, name: &str) -> Result<Download, Failure> {
        let path: Vec<String> = name.split('/').map(encoded).collect();
        let folder = if self.kind == "models" { "" } else { "datasets/" };
        let (endpoint, revision) = (&self.endpoint, encoded(revision));
        let url = format!("{endpoint}/{folder}{repo}/resolve/{revision}/{}", path.join("/"));
        let (response, Told { commit, etag }) = self.get(&url)?;
        let missing = |what: &str| Failure::Broken(format!("the answer has no {what}"));
        Ok(Download {
            commit: commit.ok_or_else(|| missing("x-repo-commit"))?,
            etag: etag.ok_or_else(|| missing("etag"))?,
            bytes: response.header("content-length").and_then(|n| n.parse().ok()),
            body: response.into_reader(),
        })
    }

    /// Follows redirects by hand. What the hub itself says of a file comes before the redirect to where its bytes lie.
    fn get(&self, url: &str) -> Result<(Response, Told), Failure> {
        let (mut url, mut token, mut told) = (url.to_owned(), self.token.as_deref(), Told::default());
        for _ in 0..MOST_REDIRECTS {
            let response = self.answered(with_token(self.agent.get(&url), token).call())?;
            told.hear(&response);
            if !(300..400).contains(&response.status()) {
                return Ok((response, told));
            }
            let from = parsed(&url)?;
            let to = target(&from, &response)?;
            if to.origin() != from.origin() {
                token = None;
            }
            url = to.into();
        }
        Err(Failure::Broken(format!("more than {MOST_REDIRECTS} redirects")))
    }
}

fn with_token(request: Request, token: Option<&str>) -> Request {
    match token {
        Some(token) => request.set("authorization", &format!("Bearer {token}")),
        None => request,
    }
}

/// What is asked for in answer to `kind`: lines of JSON are answered in JSON.
fn accept(kind: &str) -> &str {
    if kind == LFS { LFS } else { JSON }
}

fn parsed(address: &str) -> Result<Url, Failure> {
    Url::parse(address).map_err(|e| Failure::Broken(e.to_string()))
}

/// Where a redirect leads that says to send the same again.
fn target_again(from: &Url, response: &Response) -> Result<Url, Failure> {
    match response.status() {
        307 | 308 => target(from, response),
        status => Err(Failure::Broken(format!(
            "it answers with a redirect ({status}), which does not take what is sent"
        ))),
    }
}

/// Where a redirect leads.
fn target(from: &Url, response: &Response) -> Result<Url, Failure> {
    let location = response.header("location");
    let location = location.ok_or_else(|| Failure::Broken("a redirect leads nowhere".into()))?;
    from.join(location).map_err(|e| Failure::Broken(format!("a redirect: {e}")))
}

/// The JSON of a response.
pub(super) fn json(response: Response) -> Result<Value, Failure> {
    serde_json::from_reader(response.into_reader().take(MOST_INFO_BYTES))
        .map_err(|e| Failure::Broken(format!("its answer is not JSON: {e}")))
}

/// What the hub says of a file in its headers; the first word counts.
#[derive(Default)]
struct Told {
    commit: Option<String>,
    etag: Option<String>,
}

impl Told {
    fn hear(&mut self, response: &Response) {
        let header =
            |name: &str| response.header(name).map(|value| value.trim_start_matches("W/").replace('"', ""));
        self.commit = self.commit.take().or_else(|| header("x-repo-commit"));
        self.etag = self.etag.take().or_else(|| header("x-linked-etag")).or_else(|| header("etag"));
    }
}

/// A part of a path, with `/` and all that is not plain written as `%XX`.
fn encoded(part: &str) -> String {
    let mut out = String::new();
    for byte in part.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
