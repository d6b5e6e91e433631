//! The hub as a little server on this machine.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use super::*;
use crate::Base;

/// Serves the repository `org/tiny`; returns its address and the paths that were asked for.
fn serve(files: &[(&str, &[u8])], status: u16) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let files: HashMap<String, Vec<u8>> = files.iter().map(|(n, b)| ((*n).to_owned(), b.to_vec())).collect();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let request = lines.next().unwrap_or_default();
            let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            let header = |name: &str| {
                let of = |line: &String| {
                    let (key, value) = line.split_once(':')?;
                    key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
                };
                headers.iter().find_map(of)
            };
            log.lock().unwrap().push(format!("{path} {}", header("authorization").unwrap_or_default()));
            let mut answer = |status: u16, more: &str, body: &[u8]| {
                let head = format!(
                    "HTTP/1.1 {status} X\r\nx-repo-commit: c0ffee\r\nconnection: close\r\ncontent-length: {}\r\n{more}\r\n",
                    body.len()
                );
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
            };
            if status != 200 {
                answer(status, "", b"no");
            } else if path == "/api/models/org/tiny/revision/main" {
                let names: Vec<_> = files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
                let info = serde_json::json!({"siblings": names, "sha": "c0ffee"}).to_string();
                answer(200, "", info.as_bytes());
            } else if let Some(bytes) =
                path.strip_prefix("/org/tiny/resolve/main/").and_then(|n| files.get(n))
            {
                let range = header("range").and_then(|r| {
                    let (from, to) = r.strip_prefix("bytes=")?.split_once('-')?;
                    let from: usize = from.parse().ok()?;
                    Some(from..to.parse().map_or(bytes.len(), |to: usize| to + 1).min(bytes.len()))
                });
                let range = range.unwrap_or(0..bytes.len());
                let more = format!(
                    "etag: \"{}\"\r\ncontent-range: bytes {}-{}/{}\r\n",
                    path.replace('/', "_"),
                    range.start,
                    range.end,
                    bytes.len()
                );
                answer(206, &more, &bytes[range]);
            } else {
                answer(404, "", b"no");
            }
        }
    });
    (address, asked)
}

fn settings(cache: &Path, endpoint: &str) -> Settings {
    Settings {
        cache: cache.to_owned(),
        endpoint: Some(endpoint.into()),
        token: Some("secret".into()),
        offline: false,
    }
}

const WEIGHTS: &[u8] =
    b"\x3b\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1],\"data_offsets\":[0,4]}}   \0\0\x80\x3f";

#[test]
fn ids_are_told_from_paths() {
    let id = |text: &str| {
        HubId::parse(text).map(|id| (id.repo.clone(), id.revision.clone(), id.file.clone(), id.to_string()))
    };
    let plain = |s: &str| s.to_owned();
    assert_eq!(id("org/name"), Some((plain("org/name"), plain("main"), None, plain("org/name"))));
    assert_eq!(id("org/name@v1.0"), Some((plain("org/name"), plain("v1.0"), None, plain("org/name@v1.0"))));
    assert_eq!(
        id("a/b-GGUF:b.Q4_1.gguf"),
        Some((plain("a/b-GGUF"), plain("main"), Some(plain("b.Q4_1.gguf")), plain("a/b-GGUF:b.Q4_1.gguf")))
    );
    for none in [
        "name",
        "./a/b",
        "/a/b",
        "a/b/c",
        "../b",
        "a/..",
        "models/x.gguf",
        "a/b:c.bin",
        "a/b:../c.gguf",
        "a b/c",
        "",
    ] {
        assert_eq!(HubId::parse(none), None, "{none}");
    }
}

#[test]
fn a_model_is_downloaded_once_and_then_found_offline() {
    let cache = tempfile::tempdir().unwrap();
    let files: [(&str, &[u8]); 4] = [
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors", WEIGHTS),
        ("pytorch_model.bin", b"x"),
    ];
    let (address, asked) = serve(&files, 200);
    let id = HubId::parse("org/tiny").unwrap();
    let folder = fetch_with(&id, &settings(cache.path(), &address)).unwrap();
    assert_eq!(Base::open_path(&folder).unwrap().tensors.weight("a").unwrap().rows(), 1);
    let requests = asked.lock().unwrap().len();
    assert!(asked.lock().unwrap().iter().all(|line| line.ends_with("Bearer secret")));
    assert!(!folder.join("pytorch_model.bin").exists());

    let offline = Settings { offline: true, ..settings(cache.path(), &address) };
    assert_eq!(fetch_with(&id, &offline).unwrap(), folder);
    assert_eq!(fetch_with(&id, &settings(cache.path(), &address)).unwrap(), folder);
    assert_eq!(asked.lock().unwrap().len(), requests, "what is whole in the cache needs no network");

    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let error = fetch_with(&id, &offline).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE is set") && error.contains(": model.safetensors."), "{error}");
}

#[test]
fn shards_and_gguf_files_are_fetched_by_name() {
    let cache = tempfile::tempdir().unwrap();
    let index = br#"{"weight_map": {"a": "one.safetensors"}}"#;
    let files: [(&str, &[u8]); 5] = [
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("one.safetensors", WEIGHTS),
        ("m.Q8_0.gguf", b"GGUF"),
    ];
    let (address, _) = serve(&files, 200);
    let settings = settings(cache.path(), &address);
    let folder = fetch_with(&HubId::parse("org/tiny").unwrap(), &settings).unwrap();
    assert!(Base::open_path(&folder).unwrap().tensors.contains("a"));
    let file = fetch_with(&HubId::parse("org/tiny:m.Q8_0.gguf").unwrap(), &settings).unwrap();
    assert_eq!(fs::read(file).unwrap(), b"GGUF");
    let error = fetch_with(&HubId::parse("org/tiny:other.gguf").unwrap(), &settings).unwrap_err().to_string();
    assert!(error.contains("no such file (it has m.Q8_0.gguf)"), "{error}");
}

#[test]
fn what_the_hub_lacks_or_refuses_is_said() {
    let cache = tempfile::tempdir().unwrap();
    let id = HubId::parse("org/tiny").unwrap();
    let (address, _) = serve(&[("m.gguf", b"GGUF")], 200);
    let error = fetch_with(&id, &settings(cache.path(), &address)).unwrap_err().to_string();
    assert!(error.contains("org/tiny:m.gguf"), "{error}");
    let (address, _) = serve(&[], 403);
    let error = fetch_with(&id, &settings(cache.path(), &address)).unwrap_err().to_string();
    assert!(error.contains("refuses access") && error.contains("HF_TOKEN"), "{error}");
    let (address, _) = serve(&[], 404);
    let error = fetch_with(&id, &settings(cache.path(), &address)).unwrap_err().to_string();
    assert!(error.contains("no such repository"), "{error}");
    let error = fetch_with(&id, &settings(cache.path(), "http://127.0.0.1:1")).unwrap_err().to_string();
    assert!(
        error.contains("cannot be reached")
            && error.contains("config.json, tokenizer.json, model.safetensors"),
        "{error}"
    );
    assert!(error.contains("local folder"), "{error}");
}
