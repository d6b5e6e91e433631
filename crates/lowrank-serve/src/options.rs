//! The options of the server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port; 0 takes one that is free.
    pub port: u16,
    /// Adapters to load at the start: name and path. They are never evicted.
    pub adapters: Vec<(String, PathBuf)>,
    /// A folder whose folders and files are adapters under their own names, read when first asked for.
    pub adapters_dir: Option<PathBuf>,
    /// A folder for uploaded files and fine-tuning jobs; without it there are none.
    pub jobs_dir: Option<PathBuf>,
    /// Keys of which a request must have one; none for no check.
    pub api_keys: Vec<String>,
    /// Requests that one key may have at once; 0 for any number.
    pub max_requests_per_key: usize,
    /// Threads that compute; as many as there are processors where it does not say.
    pub threads: Option<usize>,
    /// Sequences that are decoded together at most.
    pub max_batch: usize,
    /// Requests that wait at most; more get 429.
    pub max_queue: usize,
    /// New tokens of a request at most, and where it does not say.
    pub max_new_tokens: usize,
    /// Bytes of keys and values at most.
    pub cache_bytes: usize,
    /// Bytes of loaded adapters at most.
    pub adapter_bytes: usize,
    /// Bytes of a request's body at most.
    pub max_body: usize,
    /// Web pages of these origins may use the server.
    pub cors_origins: Vec<String>,
    /// How long a client may take to send its request.
    pub read_timeout: Duration,
    /// How long a request may take altogether.
    pub request_timeout: Duration,
    /// Print prompts and answers into the log.
    pub log_prompts: bool,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 8080,
            adapters: Vec::new(),
            adapters_dir: None,
            jobs_dir: None,
            api_keys: Vec::new(),
            max_requests_per_key: 0,
            threads: None,
            max_batch: 32,
            max_queue: 1024,
            max_new_tokens: 1024,
            cache_bytes: 1 << 30,
            adapter_bytes: 1 << 30,
            max_body: 8 << 20,
            cors_origins: Vec::new(),
            read_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(1800),
            log_prompts: false,
        }
    }
}

impl ServeOptions {
    /// Where to listen.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }
}

/// Reads `NAME=PATH`.
///
/// # Errors
/// Says what is wrong with it.
pub fn parse_adapter(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !path.is_empty() => {
            check_name(name)?;
            Ok((name.to_owned(), path.into()))
        }
        _ => Err(format!("{text:?} is not NAME=DIR")),
    }
}

/// Names are what stands in requests and paths: no characters that mean something there.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_alphanumeric() || "._-:@".contains(c);
    match name {
        "" => Err("the name of an adapter is empty".into()),
        name if name.chars().count() > 200 => {
            Err("the name of an adapter is longer than 200 characters".into())
        }
        name if name.starts_with('.') || !name.chars().all(plain) => {
            Err(format!("{name:?}: names of adapters consist of letters, digits and . _ - : @"))
        }
        _ => Ok(()),
    }
}
