//! Large files: Git LFS's batch API says where the bytes of each go, in one piece or in parts.

use std::path::Path;

use serde_json::{Value, json};

use super::ENDPOINT;
use super::client::{Client, Failure, JSON, LFS, json as read_json};

/// A large file and its hash.
pub(super) struct Object<'a> {
    /// Its name in the repository, for messages.
    pub name: &'a str,
    /// The file.
    pub path: &'a Path,
    /// In bytes, above 0.
    pub size: u64,
    /// SHA-256 in hexadecimal digits.
    pub oid: &'a str,
}

/// Uploads what the storage does not have yet; `endpoint` is the hub's.
pub(super) fn upload(client: &Client, endpoint: &str, repo: &str, objects: &[Object]) -> Result<(), Failure> {
    let asked: Vec<Value> = objects.iter().map(|o| json!({"oid": o.oid, "size": o.size})).collect();
    let batch = json!({
        "operation": "upload",
        "transfers": ["basic", "multipart"],
        "objects": asked,
        "hash_algo": "sha256",
        "ref": {"name": "main"},
    });
    let answer =
        client.post(&format!("/{repo}.git/info/lfs/objects/batch"), LFS, batch.to_string().as_bytes())?;
    let answer = read_json(answer)?;
    for object in objects {
        let found =
            answer["objects"].as_array().into_iter().flatten().find(|found| found["oid"] == object.oid);
        let found =
            found.ok_or_else(|| Failure::Broken(format!("it does not say where {} goes", object.name)))?;
        if let Some(error) = found.get("error").filter(|error| !error.is_null()) {
            let code = error["code"].as_u64().and_then(|code| code.try_into().ok()).unwrap_or(400);
            return Err(Failure::Status(code, format!("{}: {}", object.name, text(&error["message"]))));
        }
        let upload = &found["actions"]["upload"];
        // Without an action, the storage has the bytes.
        if upload["href"].is_string() {
            if object.size > 1_000_000 {
                eprintln!("uploading {repo}: {}, {} MB", object.name, object.size / 1_000_000);
            }
            send(client, endpoint, object, upload)?;
            let verify = &found["actions"]["verify"]["href"];
            if verify.is_string() {
                let what = json!({"oid": object.oid, "size": object.size});
                client.post(&on_endpoint(text(verify), endpoint), JSON, what.to_string().as_bytes())?;
            }
        }
    }
    Ok(())
}

/// Sends one file, in parts where the storage names addresses of parts.
fn send(client: &Client, endpoint: &str, object: &Object, upload: &Value) -> Result<(), Failure> {
    let (address, header) = (on_endpoint(text(&upload["href"]), endpoint), &upload["header"]);
    let chunk = match &header["chunk_size"] {
        Value::Null => {
            client.put(&address, object.path, 0, object.size)?;
            return Ok(());
        }
        Value::String(size) => size.parse().ok(),
        size => size.as_u64(),
    };
    let mut parts: Vec<(u64, &str)> = header
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(number, address)| Some((number.parse().ok()?, address.as_str()?)))
        .collect();
    parts.sort_unstable();
    let chunk = chunk.filter(|&chunk| chunk > 0 && object.size.div_ceil(chunk) == parts.len() as u64);
    let chunk = chunk.ok_or_else(|| {
        Failure::Broken(format!("the parts that it asks for are not those of {}", object.name))
    })?;
    let mut done = Vec::new();
    for (index, (_, part)) in parts.iter().enumerate() {
        let start = index as u64 * chunk;
        let etag = client.put(part, object.path, start, chunk.min(object.size - start))?;
        let etag = etag.filter(|etag| !etag.is_empty());
        let etag = etag.ok_or_else(|| Failure::Broken("the storage names no etag of a part".into()))?;
        done.push(json!({"partNumber": index + 1, "etag": etag}));
    }
    client.post(&address, LFS, json!({"oid": object.oid, "parts": done}).to_string().as_bytes())?;
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A mirror's answers may name addresses of the hub itself.
fn on_endpoint(address: &str, endpoint: &str) -> String {
    match address.strip_prefix(ENDPOINT) {
        Some(rest) if rest.starts_with('/') => format!("{}{rest}", endpoint.trim_end_matches('/')),
        _ => address.to_owned(),
    }
}
