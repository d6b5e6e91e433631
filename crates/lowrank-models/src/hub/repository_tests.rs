//! Uploads to a hub and a storage that are little servers on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lowrank_testing::http::{Answer, Asked, serve};
use serde_json::{Value, json};

use super::{Repository, Settings};

fn sent(asked: &Asked) -> Value {
    serde_json::from_slice(&asked.body).unwrap()
}

fn good(text: &Value) -> Answer {
    (200, String::new(), text.to_string())
}

/// A storage that keeps what is put, part by part, and gives etags. Fails at the first `failures` requests.
fn storage(mut failures: usize) -> (String, Arc<Mutex<Vec<Asked>>>) {
    serve(move |asked| {
        if failures > 0 {
            failures -= 1;
            return (503, String::new(), String::new());
        }
        (200, format!("etag: \"of{}\"\r\n", asked.path.replace('/', "-")), String::new())
    })
}

/// A hub that sends files that end in `.safetensors` to `storage`, in parts of `chunk` bytes where there is one.
fn hub(storage: String, chunk: Option<usize>) -> (String, Arc<Mutex<Vec<Asked>>>) {
    serve(move |asked| match (asked.method.as_str(), asked.path.as_str()) {
        ("POST", "/api/repos/create") => good(&json!({"url": "http://hub/org/tiny"})),
        ("GET", "/api/whoami-v2") => good(&json!({"name": "me"})),
        ("GET", "/api/models/org/tiny") => good(&json!({"private": true})),
        ("POST", path) if path.ends_with("/preupload/main") => {
            let asked = sent(asked);
            let mode = |name: &str| if name.ends_with(".safetensors") { "lfs" } else { "regular" };
            let files = asked["files"].as_array().unwrap().iter();
            let files = files.map(|file| json!({"path": file["path"], "uploadMode": mode(file["path"].as_str().unwrap()), "shouldIgnore": false}));
            good(&json!({"files": files.collect::<Vec<_>>()}))
        }
        ("POST", path) if path.ends_with(".git/info/lfs/objects/batch") => {
            let objects = sent(asked)["objects"].as_array().unwrap().clone();
            let objects = objects.into_iter().map(|object| {
                let (oid, size) =
                    (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap() as usize);
                let header = chunk.map(|chunk| {
                    let parts = (1..=size.div_ceil(chunk))
                        .map(|n| (format!("{n:05}"), json!(format!("{storage}/{oid}/{n}"))));
                    let mut header: serde_json::Map<String, Value> = parts.collect();
                    header.insert("chunk_size".into(), chunk.to_string().into());
                    header
                });
                json!({"oid": oid, "size": size, "actions": {
                    "upload": {"href": format!("{storage}/{oid}?signature=s"), "header": header},
                    "verify": {"href": "https://huggingface.co/verify"},
                }})
            });
            good(&json!({"transfer": "basic", "objects": objects.collect::<Vec<_>>()}))
        }
        ("POST", path) if path.ends_with("/commit/main") => {
            good(&json!({"commitUrl": "u", "commitOid": "c0ffee"}))
        }
        ("POST", "/verify") => good(&json!({})),
        _ => (404, String::new(), String::new()),
    })
}

fn settings(endpoint: &str) -> Settings {
    Settings {
        cache: PathBuf::new(),
        endpoint: endpoint.into(),
        token: Some("secret".into()),
        offline: false,
        retry_after: Some(Duration::from_millis(1)),
    }
}

/// A folder with these files, and what a repository calls them.
fn files(dir: &tempfile::TempDir, files: &[(&str, &[u8])]) -> Vec<(String, PathBuf)> {
    let put = |(name, bytes): &(&str, &[u8])| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        ((*name).to_owned(), path)
    };
    files.iter().map(put).collect()
}

const WEIGHTS: &[u8] = b"0123456789";
/// Of these bytes, as `sha256sum` gives it.
const OID: &str = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882";

/// What a commit says that a repository holds: contents, and hashes of what lies in the storage.
fn committed(asked: &Asked) -> BTreeMap<String, String> {
    let lines = String::from_utf8(asked.body.clone()).unwrap();
    assert!(asked.headers.contains("content-type: application/x-ndjson"), "{}", asked.headers);
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let file = |line: Value| {
        let (name, value) = (line["value"]["path"].as_str()?.to_owned(), &line["value"]);
        Some((
            name,
            match line["key"].as_str().unwrap() {
                "file" => {
                    assert_eq!(value["encoding"], "base64");
                    String::from_utf8(BASE64.decode(value["content"].as_str().unwrap()).unwrap()).unwrap()
                }
                "lfsFile" => {
                    assert_eq!(value["algo"], "sha256");
                    format!("{} {}", value["oid"].as_str().unwrap(), value["size"])
                }
                other => panic!("{other}"),
            },
        ))
    };
    lines.filter_map(file).collect()
}

#[test]
fn small_files_go_into_the_commit_and_large_ones_to_the_storage() {
    let dir = tempfile::tempdir().unwrap();
    let all = files(
        &dir,
        &[("adapter_config.json", b"{}"), ("adapter_model.safetensors", WEIGHTS), ("empty.safetensors", b"")],
    );
    let (there, stored) = storage(0);
    let (address, asked) = hub(there, None);
    let repository = Repository::create_with("org/tiny", false, &settings(&address)).unwrap();
    repository.commit(&all, "End of training").unwrap();
    assert_eq!((repository.id(), repository.page()), ("org/tiny", format!("{address}/org/tiny")));

    let asked = asked.lock().unwrap();
    let paths: Vec<&str> = asked.iter().map(|a| a.path.as_str()).collect();
    let api = "/api/models/org/tiny";
    assert_eq!(
        paths,
        [
            "/api/repos/create",
            &format!("{api}/preupload/main"),
            "/org/tiny.git/info/lfs/objects/batch",
            "/verify",
            &format!("{api}/commit/main")
        ]
    );
    assert!(
        asked.iter().all(|a| a.headers.contains("authorization: Bearer secret")),
        "the hub knows who asks"
    );
    assert_eq!(sent(&asked[0]), json!({"name": "tiny", "organization": "org", "type": "model"}));
    let sample = json!({"path": "adapter_model.safetensors", "sample": BASE64.encode(WEIGHTS), "size": 10});
    assert_eq!(sent(&asked[1])["files"][1], sample);
    let batch = sent(&asked[2]);
    assert_eq!(
        (&batch["objects"], &batch["operation"]),
        (&json!([{"oid": OID, "size": 10}]), &json!("upload"))
    );
    assert!(asked[2].headers.contains("accept: application/vnd.git-lfs+json"), "{}", asked[2].headers);
    assert_eq!(sent(&asked[3]), json!({"oid": OID, "size": 10}));
    let header: Value = serde_json::from_slice(asked[4].body.split(|b| *b == b'\n').next().unwrap()).unwrap();
    assert_eq!(header["value"]["summary"], "End of training");
    let weights = format!("{OID} 10");
    let want =
        [("adapter_config.json", "{}"), ("adapter_model.safetensors", &weights), ("empty.safetensors", "")];
    assert_eq!(committed(&asked[4]), want.map(|(name, what)| (name.to_owned(), what.to_owned())).into());

    let stored = stored.lock().unwrap();
    assert_eq!((stored.len(), stored[0].method.as_str(), &stored[0].body[..]), (1, "PUT", WEIGHTS));
    assert_eq!(stored[0].path, format!("/{OID}?signature=s"));
    assert!(!stored[0].headers.contains("secret"), "the storage gets no token: {}", stored[0].headers);
}

#[test]
fn parts_are_sent_where_the_hub_asks_for_parts() {
    let dir = tempfile::tempdir().unwrap();
    let all = files(&dir, &[("model.safetensors", WEIGHTS)]);
    // The storage fails for a moment.
    let (there, stored) = storage(2);
    let (address, asked) = hub(there, Some(4));
    let repository = Repository::create_with("org/tiny", false, &settings(&address)).unwrap();
    repository.commit(&all, "parts").unwrap();
    let stored = stored.lock().unwrap();
    let seen: Vec<(&str, &[u8])> = stored.iter().map(|a| (a.method.as_str(), &a.body[..])).collect();
    let first = ("PUT", &b"0123"[..]);
    assert_eq!(seen[..5], [first, first, first, ("PUT", b"4567"), ("PUT", b"89")]);
    let parts = [1, 2, 3].map(|n| json!({"partNumber": n, "etag": format!("\"of-{OID}-{n}\"")}));
    assert_eq!(sent(&stored[5]), json!({"oid": OID, "parts": parts}));
    assert_eq!((stored.len(), stored[5].path.as_str()), (6, format!("/{OID}?signature=s").as_str()));
    assert!(stored.iter().all(|a| !a.headers.contains("secret")));
    assert_eq!(committed(asked.lock().unwrap().last().unwrap())["model.safetensors"], format!("{OID} 10"));
}

#[test]
fn a_storage_that_stays_broken_or_refuses_commits_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let all = files(&dir, &[("model.safetensors", WEIGHTS)]);
    for (status, tries) in [(503, 5), (403, 1)] {
        let (there, stored) = serve(move |_| (status, String::new(), String::new()));
        let (address, asked) = hub(there, None);
        let repository = Repository::create_with("org/tiny", false, &settings(&address)).unwrap();
        let error = repository.commit(&all, "x").unwrap_err().to_string();
        assert!(error.starts_with("org/tiny: ") && !error.contains("signature"), "{error}");
        assert_eq!(stored.lock().unwrap().len(), tries);
        assert!(!asked.lock().unwrap().iter().any(|a| a.path.ends_with("/commit/main")));
    }
    // Parts that are not the file's.
    let (there, stored) = storage(0);
    let (address, _) = serve(move |asked| match asked.path.as_str() {
        path if path.ends_with("/batch") => {
            good(&json!({"objects": [{"oid": OID, "size": 10, "actions": {"upload": {
                "href": there, "header": {"chunk_size": "4", "1": there, "2": there},
            }}}]}))
        }
        path if path.ends_with("/preupload/main") => {
            good(&json!({"files": [{"path": "model.safetensors", "uploadMode": "lfs"}]}))
        }
        _ => good(&json!({})),
    });
    let repository = Repository::create_with("org/tiny", false, &settings(&address)).unwrap();
    let error = repository.commit(&all, "x").unwrap_err().to_string();
    assert!(error.contains("not those of model.safetensors"), "{error}");
    assert!(stored.lock().unwrap().is_empty());
}

#[test]
fn what_the_storage_has_is_not_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let all = files(&dir, &[("model.safetensors", WEIGHTS)]);
    let (address, asked) = serve(|asked| match asked.path.as_str() {
        path if path.ends_with("/batch") => good(&json!({"objects": [{"oid": OID, "size": 10}]})),
        path if path.ends_with("/preupload/main") => {
            good(&json!({"files": [{"path": "model.safetensors", "uploadMode": "lfs"}]}))
        }
        _ => good(&json!({})),
    });
    Repository::create_with("org/tiny", false, &settings(&address)).unwrap().commit(&all, "x").unwrap();
    let asked = asked.lock().unwrap();
    assert!(asked.iter().all(|a| a.method == "POST") && asked.len() == 4);
    assert_eq!(committed(&asked[3])["model.safetensors"], format!("{OID} 10"));
}

/// What the hub answers to making a repository and to its facts, and the error or the requests.
fn create(made: (u16, &str), facts: (u16, Value), private: bool) -> Result<usize, String> {
    let (made, said) = (made.0, made.1.to_owned());
    let (address, asked) = serve(move |asked| match asked.path.as_str() {
        "/api/repos/create" => (made, String::new(), json!({"error": said}).to_string()),
        _ => (facts.0, String::new(), facts.1.to_string()),
    });
    match Repository::create_with("org/tiny", private, &settings(&address)) {
        Ok(_) => Ok(asked.lock().unwrap().len()),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn repositories_that_are_there_are_used() {
    let public = || (200, json!({"private": false}));
    assert_eq!(create((200, ""), public(), false), Ok(1));
    assert_eq!(create((409, "You already created this model repo"), public(), false), Ok(1));
    assert_eq!(
        create((403, "no"), public(), false),
        Ok(2),
        "a token may write to a repository and make none"
    );
    assert_eq!(create((200, ""), (200, json!({"private": true})), true), Ok(2));
    let error = create((409, ""), public(), true).unwrap_err();
    assert!(error.contains("org/tiny: exists and is public"), "{error}");
    let error = create((403, "You may not"), (404, json!({})), false).unwrap_err();
    assert!(
        error.contains("may not write here (You may not)") && error.contains("write access to org"),
        "{error}"
    );
    let error = create((401, "Invalid\n username"), public(), false).unwrap_err();
    assert!(error.contains("(Invalid username)") && error.contains("HF_TOKEN"), "{error}");
    let error = create((409, "another conflicting operation is in progress"), public(), false).unwrap_err();
    assert!(error.contains("try again"), "{error}");
}

#[test]
fn commits_that_are_refused_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let all = files(&dir, &[("README.md", b"x")]);
    for (status, part) in [
        (401, "does not accept the access token"),
        (403, "may not write here"),
        (404, "no such repository"),
        (409, "something else is changing the repository"),
        (429, "so many requests"),
        (400, "status 400 (it says secretly no)"),
    ] {
        let (address, _) = serve(move |asked| match asked.path.as_str() {
            path if path.ends_with("/preupload/main") => {
                good(&json!({"files": [{"path": "README.md", "uploadMode": "regular"}]}))
            }
            path if path.ends_with("/commit/main") => {
                (status, "x-error-message: it says secretly no\r\n".into(), String::new())
            }
            _ => good(&json!({})),
        });
        let settings = Settings { token: Some("hf_secret".into()), ..settings(&address) };
        let repository = Repository::create_with("org/tiny", false, &settings).unwrap();
        let error = repository.commit(&all, "x").unwrap_err().to_string();
        assert!(error.contains(part) && error.starts_with("org/tiny: "), "{error}");
    }
}

#[test]
fn redirects_stay_on_the_hub() {
    for (status, host, works) in [(307, "", true), (308, "", true), (302, "", false), (307, "other", false)] {
        let (other, seen) = serve(|_| good(&json!({})));
        let to = if host.is_empty() { "/moved".to_owned() } else { format!("{other}/moved") };
        let (address, asked) = serve(move |asked| match asked.path.as_str() {
            "/api/repos/create" => (status, format!("location: {to}\r\n"), String::new()),
            _ => good(&json!({})),
        });
        let made = Repository::create_with("org/tiny", false, &settings(&address));
        assert_eq!(made.as_ref().err().is_none(), works, "{status} {host}");
        let asked = asked.lock().unwrap();
        if works {
            assert_eq!((asked.len(), asked[1].body.clone()), (2, asked[0].body.clone()));
            assert!(asked[1].headers.contains("Bearer secret"));
        }
        assert!(seen.lock().unwrap().is_empty(), "another host gets nothing");
    }
}

#[test]
fn storages_may_redirect_and_get_no_token() {
    let dir = tempfile::tempdir().unwrap();
    let all = files(&dir, &[("model.safetensors", WEIGHTS)]);
    let (region, stored) = storage(0);
    let (there, _) = serve(move |_| (307, format!("location: {region}/here\r\n"), String::new()));
    let (address, _) = hub(there, None);
    Repository::create_with("org/tiny", false, &settings(&address)).unwrap().commit(&all, "x").unwrap();
    let stored = stored.lock().unwrap();
    assert_eq!((stored.len(), stored[0].path.as_str(), &stored[0].body[..]), (1, "/here", WEIGHTS));
    assert!(!stored[0].headers.contains("secret"));
}

#[test]
fn uploads_need_a_token_a_network_and_a_name() {
    let (address, asked) = hub(String::new(), None);
    let error = |name: &str, settings: Settings| {
        Repository::create_with(name, false, &settings).err().unwrap().to_string()
    };
    let without = error("org/tiny", Settings { token: None, ..settings(&address) });
    assert!(without.contains("HF_TOKEN"), "{without}");
    let offline = error("org/tiny", Settings { offline: true, ..settings(&address) });
    assert!(offline.contains("HF_HUB_OFFLINE"), "{offline}");
    let odd = error("org/tiny", Settings { token: Some("hf_se\u{e9}cret".into()), ..settings(&address) });
    assert!(odd.contains("access token") && !odd.contains("cret"), "{odd}");
    for name in ["", "a/b/c", "../b", "a b", "a/", "/b", ".a"] {
        assert!(error(name, settings(&address)).contains("is not a name of a repository"), "{name}");
    }
    assert!(asked.lock().unwrap().is_empty());
    for endpoint in ["http://me:pass-word@127.0.0.1:1", "me:pass-word@nothing", "http://me:pass-word@["] {
        let text = error("org/tiny", settings(endpoint));
        assert!(!text.contains("pass-word") && !text.contains("secret"), "{text}");
    }
    // A name alone is the token owner's.
    let repository = Repository::create_with("tiny", false, &settings(&address)).unwrap();
    assert_eq!(repository.id(), "me/tiny");
    assert!(sent(asked.lock().unwrap().last().unwrap())["organization"] == "me");
}

/// What a server says may hold the token: it is not shown.
#[test]
fn errors_of_the_hub_do_not_show_the_token() {
    let (address, _) =
        serve(|_| (500, String::new(), json!({"error": "you sent Bearer hf_token-1"}).to_string()));
    let settings = Settings { token: Some("hf_token-1".into()), ..settings(&address) };
    let error = Repository::create_with("org/tiny", false, &settings).err().unwrap();
    let text = format!("{error} {error:?}");
    assert!(text.contains("you sent Bearer [token]") && !text.contains("hf_token"), "{text}");
}
