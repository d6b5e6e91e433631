//! Requests to the hub, as `huggingface_hub` makes them: the token goes to the hub alone, and a redirect to another host does not
//! carry it.

use std::io::Read;
use std::time::Duration;

use serde_json::Value;
use ureq::{Agent, Response};

const MOST_REDIRECTS: usize = 10;
/// A list of files is no larger.
const MOST_INFO_BYTES: u64 = 64 << 20;

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The hub's answer.
    Status(u16),
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
}

impl Client {
    pub fn new(endpoint: &str, token: Option<String>, kind: &'static str) -> Self {
        let agent =
            ureq::builder().try_proxy_from_env(true).redirects(0).timeout_connect(Duration::from_secs(30));
        let agent = agent.timeout_read(Duration::from_secs(60)).user_agent("lowrank").build();
        Self { agent, endpoint: endpoint.trim_end_matches('/').to_owned(), token, kind }
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
            let mut request = self.agent.get(&url);
            if let Some(token) = token {
                request = request.set("authorization", &format!("Bearer {token}"));
            }
            let response = match request.call() {
                Ok(response) => response,
                Err(ureq::Error::Status(status, _)) => return Err(Failure::Status(status)),
                // The whole message would show the address with what it has of a password.
                Err(ureq::Error::Transport(e)) => {
                    return Err(Failure::Broken(
                        e.message().map_or_else(|| e.kind().to_string(), str::to_owned),
                    ));
                }
            };
            told.hear(&response);
            if !(300..400).contains(&response.status()) {
                return Ok((response, told));
            }
            let Some(location) = response.header("location") else {
                return Err(Failure::Broken("a redirect leads nowhere".into()));
            };
            let from = url::Url::parse(&url).map_err(|e| Failure::Broken(e.to_string()))?;
            let to = from.join(location).map_err(|e| Failure::Broken(format!("a redirect: {e}")))?;
            if to.origin() != from.origin() {
                token = None;
            }
            url = to.into();
        }
        Err(Failure::Broken(format!("more than {MOST_REDIRECTS} redirects")))
    }
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
