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
            } else if ["models", "datasets"]
                .iter()
                .any(|kind| path == format!("/api/{kind}/org/tiny/revision/main"))
            {
                let names: Vec<_> = files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
                let info = serde_json::json!({"siblings": names, "sha": "c0ffee"}).to_string();
                answer(200, "", info.as_bytes());
            } else if let Some(bytes) = path
                .trim_start_matches("/datasets")
                .strip_prefix("/org/tiny/resolve/main/")
                .and_then(|n| files.get(n))
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
        endpoint: endpoint.into(),
        token: Some("secret".into()),
        offline: false,
        retry_after: None,
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

/// Naming the first part of a split model fetches all of them.
#[test]
fn a_split_gguf_file_is_fetched_whole() {
    let cache = tempfile::tempdir().unwrap();
    let files: [(&str, &[u8]); 3] = [
        ("q/m-00001-of-00002.gguf", b"GGUF1"),
        ("q/m-00002-of-00002.gguf", b"GGUF2"),
        ("n-00001-of-00002.gguf", b"GGUF"),
    ];
    let (address, asked) = serve(&files, 200);
    let settings = settings(cache.path(), &address);
    let id = HubId::parse("org/tiny:q/m-00001-of-00002.gguf").unwrap();
    let first = fetch_with(&id, &settings).unwrap();
    assert_eq!(fs::read(&first).unwrap(), b"GGUF1");
    assert_eq!(fs::read(first.with_file_name("m-00002-of-00002.gguf")).unwrap(), b"GGUF2");
    let requests = asked.lock().unwrap().len();
    assert_eq!(fetch_with(&id, &settings).unwrap(), first);
    assert_eq!(asked.lock().unwrap().len(), requests, "what is whole in the cache needs no network");
    fs::remove_file(first.with_file_name("m-00002-of-00002.gguf")).unwrap();
    let offline = Settings { offline: true, ..settings.clone() };
    let error = fetch_with(&id, &offline).unwrap_err().to_string();
    assert!(error.contains(": q/m-00002-of-00002.gguf."), "{error}");
    let half = HubId::parse("org/tiny:n-00001-of-00002.gguf").unwrap();
    let error = fetch_with(&half, &settings).unwrap_err().to_string();
    assert!(error.contains("the repository lacks n-00002-of-00002.gguf"), "{error}");
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

/// Answers every request of a path with these bytes, and keeps the requests' lines.
fn answer(answers: Vec<(String, String)>) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let lines: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let path = lines[0].split(' ').nth(1).unwrap_or_default().to_owned();
            log.lock().unwrap().push(lines.join("\n"));
            let found = answers.iter().find(|(at, _)| *at == path);
            let none = "HTTP/1.1 404 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(found.map_or(none, |(_, text)| text.as_str()).as_bytes());
        }
    });
    (port, asked)
}

fn with_body(more: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n{more}\r\n{body}", body.len())
}

fn redirect(more: &str, to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nconnection: close\r\ncontent-length: 0\r\nlocation: {to}\r\n{more}\r\n")
}

const INFO: &str = "/api/models/org/tiny/revision/main";
const FILE: &str = "/org/tiny/resolve/main/m.gguf";
const TOLD: &str = "x-repo-commit: c0ffee\r\nx-linked-etag: \"abc\"\r\n";

fn list(name: &str) -> String {
    with_body("", &serde_json::json!({"siblings": [{"rfilename": name}]}).to_string())
}

/// The token goes along with a redirect on the hub, and not to where the bytes lie.
#[test]
fn another_host_never_sees_the_token() {
    let (elsewhere, asked_there) = answer(vec![("/bytes".into(), with_body("etag: \"other\"\r\n", "GGUF"))]);
    for host in ["127.0.0.1", "localhost"] {
        let cache = tempfile::tempdir().unwrap();
        let there = format!("http://{host}:{elsewhere}/bytes");
        let (hub, asked) = answer(vec![
            (INFO.into(), list("m.gguf")),
            (FILE.into(), redirect("", "/moved")),
            ("/moved".into(), redirect(TOLD, &there)),
        ]);
        let settings = settings(cache.path(), &format!("http://127.0.0.1:{hub}"));
        let file = fetch_with(&HubId::parse("org/tiny:m.gguf").unwrap(), &settings).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"GGUF");
        assert!(file.ends_with("models--org--tiny/snapshots/c0ffee/m.gguf"), "{}", file.display());
        assert!(cache.path().join("models--org--tiny/blobs/abc").is_file());
        let asked = asked.lock().unwrap();
        assert_eq!(asked.len(), 3);
        assert!(asked.iter().all(|request| request.contains("Bearer secret")), "{asked:?}");
        let there = asked_there.lock().unwrap();
        assert!(!there.is_empty() && there.iter().all(|request| !request.contains("secret")), "{there:?}");
    }
}

#[test]
fn secrets_are_never_printed() {
    let cache = tempfile::tempdir().unwrap();
    let id = HubId::parse("org/tiny").unwrap();
    for token in ["hf_se\rcret", "hf_se\ncret", "hf_secret\u{7f}", "hf_s\u{e9}cret"] {
        let settings = Settings { token: Some(token.into()), ..settings(cache.path(), "http://127.0.0.1:1") };
        let error = fetch_with(&id, &settings).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("token") && !text.contains("cret"), "{text}");
    }
    for endpoint in [
        "http://me:pass-word@127.0.0.1:1",
        "http://me:pass-word@no.such.host.invalid",
        "me:pass-word@nothing",
        "http://me:pass-word@[",
    ] {
        let error = fetch_with(&id, &settings(cache.path(), endpoint)).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains("pass-word") && text.contains("cannot be reached"), "{text}");
    }
}

/// What the hub names leads nowhere outside its part of the cache.
#[test]
fn names_of_the_hub_stay_in_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let inside = cache.path().join("hub");
    for (commit, etag) in [
        ("../../../out", "abc"),
        ("c0ffee", "../../../out"),
        ("/out", "abc"),
        ("c0ffee", "/out"),
        ("..", "abc"),
    ] {
        let told = format!("x-repo-commit: {commit}\r\netag: \"{etag}\"\r\n");
        let (hub, _) = answer(vec![(INFO.into(), list("m.gguf")), (FILE.into(), with_body(&told, "GGUF"))]);
        let settings = settings(&inside, &format!("http://127.0.0.1:{hub}"));
        let error = fetch_with(&HubId::parse("org/tiny:m.gguf").unwrap(), &settings).unwrap_err().to_string();
        assert!(error.contains("outside its folder"), "{error}");
        assert!(fs::read_dir(cache.path()).unwrap().all(|entry| entry.unwrap().file_name() == "hub"));
    }
    let weights = r#"{"weight_map": {"a": "../../../../../out.safetensors"}}"#;
    let (hub, _) =
        serve(&[("config.json", b"{}"), ("model.safetensors.index.json", weights.as_bytes())], 200);
    let error =
        fetch_with(&HubId::parse("org/tiny").unwrap(), &settings(&inside, &hub)).unwrap_err().to_string();
    assert!(error.contains("out.safetensors"), "{error}");
}

/// A connection that ends early leaves nothing in the cache.
#[test]
fn half_a_file_is_no_file() {
    let cache = tempfile::tempdir().unwrap();
    let half = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 100\r\n{TOLD}\r\nGGUF");
    let (hub, _) = answer(vec![(INFO.into(), list("m.gguf")), (FILE.into(), half)]);
    let settings = settings(cache.path(), &format!("http://127.0.0.1:{hub}"));
    let id = HubId::parse("org/tiny:m.gguf").unwrap();
    let error = fetch_with(&id, &settings).unwrap_err().to_string();
    assert!(error.contains("m.gguf"), "{error}");
    assert!(fetch_with(&id, &Settings { offline: true, ..settings }).is_err());
    assert!(fs::read_dir(cache.path().join("models--org--tiny/blobs")).unwrap().next().is_none());
}

#[test]
fn a_data_set_is_downloaded_once_and_then_found_offline() {
    let cache = tempfile::tempdir().unwrap();
    let files: [(&str, &[u8]); 4] = [
        ("README.md", b"x"),
        ("data/train-00000-of-00002.jsonl", b"one"),
        ("data/train-00001-of-00002.jsonl", b"two"),
        ("data/test-00000-of-00001.jsonl", b"x"),
    ];
    let (address, asked) = serve(&files, 200);
    let on = settings(cache.path(), &address);
    let id = DatasetId::parse("hub:org/tiny").unwrap();
    let texts = |settings: &Settings| {
        let paths = fetch_dataset_with(&id, settings).unwrap();
        paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(texts(&on), ["one", "two"]);
    let log = asked.lock().unwrap().clone();
    assert!(log[0].starts_with("/api/datasets/org/tiny/revision/main"), "{log:?}");
    assert!(log[1].starts_with("/datasets/org/tiny/resolve/main/data/train-00000-of-00002.jsonl"), "{log:?}");
    assert_eq!(log.len(), 3, "{log:?}");
    assert!(cache.path().join("datasets--org--tiny/snapshots/c0ffee/data").is_dir());
    // What is there is not sent again.
    assert_eq!(texts(&on), ["one", "two"]);
    assert_eq!(asked.lock().unwrap().len(), 4);
    let offline = Settings { offline: true, ..settings(cache.path(), &address) };
    assert_eq!(texts(&offline), ["one", "two"]);
    let gone = settings(cache.path(), "http://127.0.0.1:1");
    assert_eq!(texts(&gone), ["one", "two"]);
    // A shard that is missing is not passed over.
    fs::remove_file(
        cache.path().join("datasets--org--tiny/snapshots/c0ffee/data/train-00001-of-00002.jsonl"),
    )
    .unwrap();
    let error = fetch_dataset_with(&id, &offline).unwrap_err().to_string();
    assert!(
        error.contains("hub:org/tiny") && error.contains("has 1 files of the train split, not all"),
        "{error}"
    );
    let none = DatasetId::parse("hub:org/tiny:x.csv").unwrap();
    let error = fetch_dataset_with(&none, &on).unwrap_err().to_string();
    assert!(error.contains("has no x.csv"), "{error}");
    let (address, _) = serve(&[], 403);
    let error = fetch_dataset_with(&id, &settings(cache.path(), &address)).unwrap_err().to_string();
    assert!(error.contains("refuses access") && error.contains("HF_TOKEN"), "{error}");
}
