//! `lowrank serve` as clients use it, on a tiny model.
#![cfg(unix)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{lowrank_ok, tiny_data, tiny_model};
use serde_json::{Value, json};

/// A folder with a model and two adapters.
struct Place {
    dir: tempfile::TempDir,
    model: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(dir.path());
        let place = Self { dir, model };
        tiny_data(&place.path_buf("train.jsonl"), 30);
        for (name, more) in [("poems", ["--r", "3"]), ("code", ["--method", "ia3"])] {
            let (data, out) = (place.path("train.jsonl"), place.path(name));
            let mut args = vec!["train", "--model", &place.model, "--data", &data, "--out", &out];
            args.extend([
                "--batch-size",
                "4",
                "--learning-rate",
                "0.05",
                "--max-steps",
                "6",
                "--threads",
                "1",
            ]);
            args.extend(more);
            lowrank_ok(&args);
        }
        place
    }

    fn path_buf(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn path(&self, name: &str) -> String {
        self.path_buf(name).to_str().unwrap().to_owned()
    }

    /// What `lowrank generate` prints.
    fn generate(&self, adapter: Option<&str>, prompt: &str, more: &[&str]) -> String {
        let mut args = vec!["generate", "--model", &self.model, "--prompt", prompt, "--max-new-tokens", "24"];
        let adapter = adapter.map(|name| self.path(name));
        args.extend(adapter.iter().flat_map(|dir| ["--adapter", dir.as_str()]));
        args.extend(more);
        lowrank_ok(&args).out
    }
}

/// A server and its address.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(place: &Place, more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lowrank"))
            .args([
                "serve",
                "--model",
                &place.model,
                "--port",
                "0",
                "--served-model-name",
                "tiny",
                "--threads",
                "1",
            ])
            .args(more)
            .env_remove("LOWRANK_API_KEY")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut text = String::new();
        let address = loop {
            let mut line = String::new();
            assert!(said.read_line(&mut line).unwrap() > 0, "the server ended: {text}");
            if let Some((_, address)) = line.trim().split_once("http://") {
                break address.to_owned();
            }
            text += &line;
        };
        // What else it says must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { child, address }
    }

    /// Sends bytes; returns the status, the head and the body.
    fn raw(&self, request: &[u8]) -> (u16, String, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request).unwrap();
        read_answer(stream)
    }

    fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
        let (address, length) = (&self.address, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n"
        );
        self.raw(format!("{head}{body}").as_bytes())
    }

    fn get(&self, path: &str) -> Value {
        let (status, _, body) = self.request("GET", path, "", "");
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|_| json!(body))
    }

    fn try_post(&self, path: &str, body: &Value) -> (u16, Value) {
        let json = "Content-Type: application/json\r\n";
        let (status, _, body) = self.request("POST", path, json, &body.to_string());
        (status, serde_json::from_str(&body).unwrap_or_else(|_| json!(body)))
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.try_post(path, body);
        assert_eq!(status, 200, "{path} {body}: {answer}");
        answer
    }

    /// The events of a stream.
    fn stream(&self, path: &str, mut body: Value) -> Vec<Value> {
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let json = "Content-Type: application/json\r\n";
        let (status, head, body) = self.request("POST", path, json, &body.to_string());
        assert_eq!(status, 200, "{body}");
        assert!(head.contains("text/event-stream"), "{head}");
        let mut events: Vec<&str> =
            body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        assert_eq!(events.pop(), Some("[DONE]"));
        events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    fn complete(&self, model: &str, prompt: &str, more: Value) -> String {
        let mut body = json!({"model": model, "prompt": prompt, "max_tokens": 24, "temperature": 0});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.post("/v1/completions", &body)["choices"][0]["text"].as_str().unwrap().to_owned()
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics");
        let line = text.as_str().unwrap().lines().find(|line| line.starts_with(&format!("{name} ")));
        line.and_then(|line| line.split_once(' ')).and_then(|(_, n)| n.parse().ok()).unwrap()
    }

    fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !done() {
            assert!(begin.elapsed() < Duration::from_secs(120), "{what} takes too long");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
    }

    fn ended(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_answer(mut stream: TcpStream) -> (u16, String, String) {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return (0, text.into_owned(), String::new());
    };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let mut whole = String::new();
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        let mut rest = body;
        while let Some((size, after)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16).unwrap();
            whole += &after[..size];
            rest = after[size..].trim_start_matches("\r\n");
            if size == 0 {
                break;
            }
        }
    } else {
        whole += body;
    }
    (status, head.to_owned(), whole)
}

/// The text of `lowrank generate` without its line end.
fn text(printed: &str) -> &str {
    printed.strip_suffix('\n').unwrap_or(printed)
}

#[test]
fn every_answer_is_that_of_the_adapter_alone() {
    let place = Place::new();
    let (poems, code) = (format!("poems={}", place.path("poems")), format!("code={}", place.path("code")));
    let server = Server::start(&place, &["--adapter", &poems, "--adapter", &code]);
    let ids: Vec<Value> = server.get("/v1/models")["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].clone())
        .collect();
    assert_eq!(ids, ["tiny", "code", "poems"]);
    let cases: Vec<(&str, Option<&str>)> =
        vec![("tiny", None), ("poems", Some("poems")), ("code", Some("code"))];
    let prompts = ["red and", "blue and gold", "a"];
    let mut wanted = Vec::new();
    for (model, adapter) in &cases {
        for prompt in prompts {
            let greedy = place.generate(*adapter, prompt, &[]);
            let drawn = place.generate(*adapter, prompt, &["--temperature", "0.9", "--seed", "7"]);
            wanted.push((*model, prompt, text(&greedy).to_owned(), text(&drawn).to_owned()));
        }
    }
    assert_ne!(wanted[0].2, wanted[3].2, "the adapter changes the text");
    // All at once, and each twice: the second finds its prompt in the cache.
    std::thread::scope(|scope| {
        for (model, prompt, greedy, drawn) in wanted.iter().chain(&wanted) {
            let server = &server;
            scope.spawn(move || {
                assert_eq!(server.complete(model, prompt, json!({})), *greedy, "{model} {prompt}");
                let sampled = json!({"temperature": 0.9, "seed": 7});
                assert_eq!(server.complete(model, prompt, sampled), *drawn, "{model} {prompt}");
            });
        }
    });
    assert!(server.metric("lowrank_cached_tokens_total") > 0);
    // Mixtures: of one adapter, of none, and of two in any order.
    let mixed = |adapters: Value| server.complete("tiny", "red and", json!({"adapters": adapters}));
    assert_eq!(mixed(json!({"poems": 1})), wanted[3].2);
    assert_eq!(mixed(json!({"poems": 0})), wanted[0].2);
    let both = place.generate(
        None,
        "red and",
        &[
            "--adapter",
            &format!("{}:0.5", place.path("code")),
            "--adapter",
            &format!("{}:0.5", place.path("poems")),
        ],
    );
    assert_eq!(mixed(json!({"poems": 0.5, "code": 0.5})), text(&both));
}

#[test]
fn chats_and_streams() {
    let place = Place::new();
    let poems = format!("poems={}", place.path("poems"));
    let server = Server::start(&place, &["--adapter", &poems]);
    let body = json!({"model": "poems", "messages": [{"role": "user", "content": "red and"}], "temperature": 0,
        "max_tokens": 20, "n": 2, "logprobs": true, "top_logprobs": 3});
    let answer = server.post("/v1/chat/completions", &body);
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("poems")));
    let choice = &answer["choices"][1];
    assert_eq!((&choice["message"]["role"], &choice["index"]), (&json!("assistant"), &json!(1)));
    let content = choice["message"]["content"].as_str().unwrap();
    assert_eq!(choice["message"], answer["choices"][0]["message"], "greedy texts are equal");
    let printed = lowrank_ok(&[
        "generate",
        "--model",
        &place.model,
        "--adapter",
        &place.path("poems"),
        "--prompt",
        "[user]red and</s>[assistant]",
        "--max-new-tokens",
        "20",
    ]);
    assert_eq!(content, text(&printed.out));
    let logprobs = choice["logprobs"]["content"].as_array().unwrap();
    let tokens: String = logprobs.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(tokens, content);
    assert!(logprobs.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 3));
    assert_eq!(logprobs[0]["top_logprobs"][0]["token"], logprobs[0]["token"], "greedy takes the first");
    let usage = &answer["usage"];
    let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);

    let events = server.stream("/v1/chat/completions", body.clone());
    let mut texts = [String::new(), String::new()];
    let mut reasons = [Value::Null, Value::Null];
    for event in &events {
        assert_eq!(event["object"], "chat.completion.chunk");
        for choice in event["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap() as usize;
            texts[index] += choice["delta"]["content"].as_str().unwrap_or("");
            if !choice["finish_reason"].is_null() {
                reasons[index] = choice["finish_reason"].clone();
            }
        }
    }
    assert_eq!(texts, [content, content]);
    assert_eq!(reasons, [choice["finish_reason"].clone(), choice["finish_reason"].clone()]);
    let last = events.last().unwrap();
    let whole = ["prompt_tokens", "completion_tokens", "total_tokens"];
    assert_eq!(
        (last["choices"].as_array().unwrap().len(), whole.map(|key| &last["usage"][key])),
        (0, whole.map(|key| &usage[key]))
    );

    // A text ends before a stop string, also in the middle of a stream.
    let whole = server.complete("poems", "red and", json!({"ignore_eos": true}));
    assert!(whole.len() > 6, "{whole}");
    let stop = &whole[3..5];
    let before = &whole[..whole.find(stop).unwrap()];
    assert_eq!(server.complete("poems", "red and", json!({"stop": stop, "ignore_eos": true})), before);
    let body = json!({"model": "poems", "prompt": ["red and", "blue"], "max_tokens": 24, "temperature": 0, "stop": [stop],
        "ignore_eos": true});
    let events = server.stream("/v1/completions", body.clone());
    let streamed = |index: u64| -> String {
        let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
        choices
            .filter(|choice| choice["index"] == index)
            .map(|choice| choice["text"].as_str().unwrap())
            .collect()
    };
    let answer = server.post("/v1/completions", &body);
    for index in 0..2 {
        assert_eq!(answer["choices"][index as usize]["text"], streamed(index).as_str());
    }
    assert_eq!((streamed(0).as_str(), &answer["choices"][0]["finish_reason"]), (before, &json!("stop")));
}

#[test]
fn wrong_requests_are_the_clients_errors() {
    let place = Place::new();
    let key_file = place.path("keys");
    fs::write(&key_file, "first\nsecond\n").unwrap();
    let server = Server::start(
        &place,
        &[
            "--api-key-file",
            &key_file,
            "--max-body-mb",
            "1",
            "--cache-mb",
            "1",
            "--cors-origin",
            "http://page.example",
        ],
    );
    let with = |key: &str| format!("Content-Type: application/json\r\nAuthorization: Bearer {key}\r\n");
    let fine = json!({"model": "tiny", "prompt": "a", "max_tokens": 2}).to_string();
    let post = |headers: &str, body: &str| server.request("POST", "/v1/completions", headers, body);
    assert_eq!(post(&with("second"), &fine).0, 200);
    for headers in [with("thirds"), with(""), "Content-Type: application/json\r\n".into()] {
        let (status, head, body) = post(&headers, &fine);
        assert_eq!(status, 401, "{body}");
        assert!(head.to_ascii_lowercase().contains("www-authenticate"), "{head}");
        assert!(!body.contains("first") && !body.contains("thirds"), "{body}");
    }
    let error = |body: Value, status: u16, words: &str| {
        let (got, _, text) = post(&with("first"), &body.to_string());
        assert!(got == status && text.contains(words), "{body}: {got} {text}");
        let error: Value = serde_json::from_str(&text).unwrap();
        assert!(error["error"]["message"].is_string() && error["error"]["type"].is_string(), "{error}");
    };
    error(json!({"model": "other", "prompt": "a"}), 404, "tiny");
    error(json!({"model": "tiny"}), 400, "prompt");
    error(json!({"model": "tiny", "prompt": {"a": 1}}), 400, "JSON");
    error(json!({"model": "tiny", "prompt": [100_000]}), 400, "vocabulary");
    error(json!({"model": "tiny", "prompt": "a", "temperature": -1}), 400, "temperature");
    error(json!({"model": "tiny", "prompt": "a", "top_p": 2}), 400, "top_p");
    error(json!({"model": "tiny", "prompt": "a", "n": 0}), 400, "n:");
    error(json!({"model": "tiny", "prompt": "a", "n": 1_000_000}), 400, "n:");
    error(json!({"model": "tiny", "prompt": "a", "max_tokens": 0}), 400, "max_tokens");
    error(json!({"model": "tiny", "prompt": "a", "logit_bias": {"x": 1}}), 400, "logit_bias");
    error(json!({"model": "tiny", "prompt": "a", "adapters": {"none": 1}}), 404, "none");
    error(json!({"model": "tiny", "prompt": "a".repeat(9000)}), 400, "--cache-mb");
    for (headers, body, status) in [
        (with("first"), "{", 400),
        (with("first"), "", 400),
        (with("first"), "\u{0}", 400),
        ("Content-Type: text/plain\r\nAuthorization: Bearer first\r\n".into(), fine.as_str(), 400),
        (with("first"), &"[".repeat(100_000), 400),
    ] {
        let (got, _, text) = post(&headers, body);
        assert_eq!(got, status, "{text}");
    }
    let long = json!({"model": "tiny", "prompt": "a".repeat(2 << 20)}).to_string();
    // The server may answer and close before all is sent.
    let (status, _, text) = post(&with("first"), &long);
    assert!(status == 413 || status == 0, "{status} {text}");
    assert_eq!(server.request("GET", "/nothing", "", "").0, 404);
    assert_eq!(server.request("GET", "/v1/completions", &with("first"), "").0, 405);
    assert_eq!(server.request("GET", "/health", "", "").0, 200);
    let from = |origin: &str| format!("{}Origin: {origin}\r\n", with("first"));
    assert_eq!(post(&from("http://evil.example"), &fine).0, 403);
    let (status, head, _) = post(&from("http://page.example"), &fine);
    assert!(status == 200 && head.contains("http://page.example"), "{head}");
    assert_eq!(server.raw(b"GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").0, 403);
    assert_eq!(server.raw(b"nonsense\r\n\r\n").0, 400);
    assert_eq!(post(&with("first"), &fine).0, 200, "it serves on");
    assert_eq!(server.metric_with("first", "lowrank_running"), 0);
}

impl Server {
    fn metric_with(&self, key: &str, name: &str) -> u64 {
        let (_, _, text) = self.request("GET", "/metrics", &format!("Authorization: Bearer {key}\r\n"), "");
        let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.split_once(' ').unwrap().1.parse().unwrap()
    }
}

#[test]
fn adapters_come_and_go() {
    let place = Place::new();
    let folder = place.path("adapters");
    fs::create_dir(&folder).unwrap();
    let server = Server::start(&place, &["--adapters-dir", &folder]);
    let alone = text(&place.generate(Some("poems"), "red and", &[])).to_owned();
    let base = text(&place.generate(None, "red and", &[])).to_owned();
    let load = json!({"lora_name": "mine", "lora_path": place.path("poems")});
    assert!(server.post("/v1/load_lora_adapter", &load).as_str().unwrap().starts_with("Success"));
    assert_eq!(server.try_post("/v1/load_lora_adapter", &load).0, 409);
    for (wrong, status) in [
        (json!({"lora_name": "x", "lora_path": place.path("nothing")}), 400),
        (json!({"lora_name": "../x", "lora_path": place.path("poems")}), 400),
        (json!({"lora_name": "tiny", "lora_path": place.path("poems")}), 409),
        (json!({"lora_name": "x", "lora_path": place.model}), 400),
    ] {
        assert_eq!(server.try_post("/v1/load_lora_adapter", &wrong).0, status, "{wrong}");
    }
    assert_eq!(server.complete("mine", "red and", json!({})), alone);
    let model = server.get("/v1/models/mine");
    assert_eq!((&model["parent"], &model["lowrank"]["rank"]), (&json!("tiny"), &json!(3)));

    // Weights of requests that name the base, as llama-server has them.
    let list = server.get("/lora-adapters");
    assert_eq!((&list[0]["id"], &list[0]["scale"]), (&json!(0), &json!(0.0)));
    server.post("/lora-adapters", &json!([{"id": 0, "scale": 1.0}]));
    assert_eq!(server.complete("tiny", "red and", json!({})), alone);
    assert_eq!(server.try_post("/lora-adapters", &json!([{"id": 9, "scale": 1.0}])).0, 400);
    // The same for one request.
    let name = list[0]["name"].as_str().unwrap();
    let own = server.complete("tiny", "red and", json!({"lora": [{"id": 0, "scale": 1.0}]}));
    assert_eq!(own, server.complete(name, "red and", json!({})));
    let wrong = json!({"model": "tiny", "prompt": "a", "lora": [{"id": 9, "scale": 1.0}]});
    assert_eq!(server.try_post("/v1/completions", &wrong).0, 400);
    server.post("/lora-adapters", &json!([]));
    assert_eq!(server.complete("tiny", "red and", json!({})), base);

    // Unloading waits for the request that uses it, which gets its whole text.
    std::thread::scope(|scope| {
        let long = scope.spawn(|| {
            let more = json!({"max_tokens": 100, "ignore_eos": true});
            server.complete("mine", "red and", more)
        });
        server.wait("the request", || server.metric("lowrank_running") > 0 || long.is_finished());
        server.post("/v1/unload_lora_adapter", &json!({"lora_name": "mine"}));
        let whole = long.join().unwrap();
        assert!(whole.starts_with(&alone) && whole.len() > alone.len(), "{whole}");
    });
    let body = json!({"model": "mine", "prompt": "red and"});
    assert_eq!(server.try_post("/v1/completions", &body).0, 404);
    assert_eq!(server.metric("lowrank_adapters"), 0);
    assert_eq!(server.try_post("/v1/unload_lora_adapter", &json!({"lora_name": "mine"})).0, 404);

    // The folder: new adapters are found, those that are gone are forgotten.
    copy(&place.path_buf("poems"), &Path::new(&folder).join("found"));
    assert_eq!(server.complete("found", "red and", json!({})), alone);
    fs::remove_dir_all(Path::new(&folder).join("found")).unwrap();
    server.wait("forgetting", || server.get("/v1/models")["data"].as_array().unwrap().len() == 1);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let place = Place::new();
    let poems = format!("poems={}", place.path("poems"));
    let server =
        Server::start(&place, &["--adapter", &poems, "--max-new-tokens", "4000", "--read-timeout", "1"]);
    let body = json!({"model": "poems", "prompt": "red and", "max_tokens": 4000, "ignore_eos": true, "stream": true}).to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        server.address,
        body.len()
    );
    for take in [0, 1, 300] {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut some = vec![0; take];
        stream.read_exact(&mut some).unwrap();
    }
    server.wait("leaving", || server.metric("lowrank_running") + server.metric("lowrank_waiting") == 0);
    // A request that is never finished ends by the clock.
    for part in [&head[..20], &head, &format!("{head}{{")] {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(part.as_bytes()).unwrap();
        let (status, ..) = read_answer(stream);
        assert!(status == 408 || status == 0, "{status} after {part:?}");
    }
    assert_eq!(server.complete("tiny", "a", json!({"max_tokens": 1})).len(), 1);
}

#[test]
fn answers_follow_schemas_and_call_tools() {
    let place = Place::new();
    // The tokenizer has all of JSON but the closing brace.
    let tokenizer = place.path("model/tokenizer.json");
    let text = fs::read_to_string(&tokenizer).unwrap();
    assert!(text.contains("\"`\""));
    fs::write(&tokenizer, text.replace("\"`\"", "\"}\"")).unwrap();
    let server = Server::start(&place, &[]);
    let ask = |more: Value| {
        let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 300, "seed": 1});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        (server.post("/v1/chat/completions", &body), server.stream("/v1/chat/completions", body))
    };
    let schema = json!({"type": "object", "properties": {
        "colour": {"enum": ["RED", "BLUE"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["colour", "count"], "additionalProperties": false});
    for seed in 0..4 {
        let format =
            json!({"type": "json_schema", "json_schema": {"name": "c", "schema": schema, "strict": true}});
        let (answer, events) = ask(json!({"response_format": format, "seed": seed}));
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
        let value: Value = serde_json::from_str(content).unwrap();
        assert!(["RED", "BLUE"].contains(&value["colour"].as_str().unwrap()), "{value}");
        assert!(value["count"].as_u64().unwrap() < 100 && value.as_object().unwrap().len() == 2, "{value}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let streamed: String =
            events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(streamed, content);
    }
    let tools = json!([{"type": "function", "function": {"name": "paint", "parameters": schema}}]);
    for choice in [json!("required"), json!({"type": "function", "function": {"name": "paint"}})] {
        let (answer, events) = ask(json!({"tools": tools, "tool_choice": choice}));
        let call = &answer["choices"][0]["message"]["tool_calls"][0];
        assert_eq!(
            (&call["type"], &call["function"]["name"]),
            (&json!("function"), &json!("paint")),
            "{answer}"
        );
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!(arguments["colour"].is_string(), "{arguments}");
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
        let streamed =
            events.iter().find_map(|event| event["choices"][0]["delta"].get("tool_calls")).unwrap();
        assert_eq!(streamed[0]["function"], call["function"]);
    }
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}],
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}});
    let (status, answer) = server.try_post("/v1/chat/completions", &body);
    assert!(status == 400 && answer.to_string().contains("schema"), "{answer}");
}

#[test]
fn embeddings_have_length_one_and_know_adapters() {
    let place = Place::new();
    let poems = format!("poems={}", place.path("poems"));
    let server = Server::start(&place, &["--adapter", &poems]);
    let embed =
        |model: &str, input: Value| server.post("/v1/embeddings", &json!({"model": model, "input": input}));
    let answer = embed("tiny", json!(["red", "blue and", "red"]));
    let vector = |at: usize| -> Vec<f64> {
        answer["data"][at]["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let length: f64 = vector(0).iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
    assert_eq!(vector(0), vector(2));
    assert_ne!(vector(0), vector(1));
    assert_ne!(embed("poems", json!("red"))["data"][0]["embedding"], answer["data"][0]["embedding"]);
    let base64 = json!({"model": "tiny", "input": "red", "encoding_format": "base64"});
    assert!(server.post("/v1/embeddings", &base64)["data"][0]["embedding"].is_string());
    assert_eq!(server.try_post("/v1/embeddings", &json!({"model": "tiny", "input": []})).0, 400);
    assert_eq!(server.try_post("/v1/embeddings", &json!({"model": "tiny", "input": ""})).0, 400);
}

/// An encoder as base: classes, values and cosines.
#[test]
fn heads_classify_score_and_rerank() {
    let mut place = Place::new();
    place.model = common::tiny_bert(place.dir.path());
    let (data, out) = (place.path("labels.jsonl"), place.path("mood"));
    let rows = ["good film", "bad plot", "great story", "awful actor"].iter().enumerate();
    let lines =
        rows.map(|(i, text)| json!({"text": text, "label": (["up", "down"][i % 2])}).to_string() + "\n");
    fs::write(&data, lines.collect::<String>()).unwrap();
    let mut args =
        vec!["train", "--task", "classification", "--model", &place.model, "--data", &data, "--out", &out];
    args.extend(["--epochs", "10", "--learning-rate", "0.05", "--threads", "1"]);
    lowrank_ok(&args);
    let printed = lowrank_ok(&["predict", "--model", &place.model, "--adapter", &out, "--data", &data]).out;
    let wanted: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mood = format!("mood={out}");
    let server = Server::start(&place, &["--adapter", &mood]);
    let texts = json!(["good film", "bad plot", "great story", "awful actor"]);
    let answer = server.post("/v1/classify", &json!({"model": "mood", "input": texts}));
    for (got, want) in answer["data"].as_array().unwrap().iter().zip(&wanted) {
        assert_eq!(got["label"], want["label"]);
        let best = got["probs"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).fold(0.0, f64::max);
        let same = want["scores"][want["label"].as_str().unwrap()].as_f64().unwrap();
        assert!((best - same).abs() < 1e-6, "{got} {want}");
    }
    let body = json!({"model": "tiny", "text_1": "good film", "text_2": ["good film", "bad plot"]});
    let scores = server.post("/v1/score", &body);
    let score = |at: usize| scores["data"][at]["score"].as_f64().unwrap();
    assert!((score(0) - 1.0).abs() < 1e-5 && score(1) < 0.9999, "{scores}");
    let ranked = server.post(
        "/v1/rerank",
        &json!({"model": "tiny", "query": "good film", "documents": ["bad plot", "good film"], "top_n": 1}),
    );
    assert_eq!((ranked["results"].as_array().unwrap().len(), &ranked["results"][0]["index"]), (1, &json!(1)));
    assert_eq!(server.try_post("/v1/classify", &json!({"model": "tiny", "input": "x"})).0, 404);
    let body = json!({"model": "tiny", "prompt": "good"});
    let (status, answer) = server.try_post("/v1/completions", &body);
    assert!(status == 400 && answer.to_string().contains("does not generate"), "{answer}");
}

#[test]
fn a_request_to_stop_lets_requests_end() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let address = server.address.clone();
    let body = json!({"model": "tiny", "prompt": "a", "max_tokens": 100, "ignore_eos": true}).to_string();
    let going = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(&address).unwrap();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        read_answer(stream)
    });
    server.wait("the request", || server.metric("lowrank_running") > 0 || going.is_finished());
    server.signal("TERM");
    assert_eq!(going.join().unwrap().0, 200);
    assert_eq!(server.ended(), Some(0));
}

#[test]
fn options_of_a_file_and_wrong_ones() {
    let place = Place::new();
    let file = place.path("serve.toml");
    fs::write(
        &file,
        format!("adapter = ['poems={}']\nmax_batch = 2\nhost = '127.0.0.1'\n", place.path("poems")),
    )
    .unwrap();
    let server = Server::start(&place, &["--config", &file]);
    assert_eq!(server.get("/v1/models")["data"].as_array().unwrap().len(), 2);
    drop(server);
    for (text, words) in
        [("max_bach = 2", "max_batch"), ("max_batch = 0", "max_batch"), ("max_batch = 'x'", "invalid type")]
    {
        fs::write(&file, text).unwrap();
        let ran = common::lowrank(&["serve", "--model", &place.model, "--port", "0", "--config", &file]);
        assert!(
            ran.code == 2 && ran.err.contains(words) && ran.err.contains("serve.toml"),
            "{text}: {}",
            ran.err
        );
    }
    for (more, code, words) in [
        (["--adapter", "poems"], 2, "NAME=DIR"),
        (["--adapter", "x=/nothing"], 2, "/nothing"),
        (["--adapters-dir", "/nothing"], 2, "/nothing"),
        (["--host", "nowhere"], 2, "host"),
    ] {
        let args = [&["serve", "--model", place.model.as_str(), "--port", "0"], &more[..]].concat();
        let ran = common::lowrank(&args);
        assert!(ran.code == code && ran.err.contains(words), "{more:?}: {} {}", ran.code, ran.err);
    }
}

#[test]
fn the_plan_of_a_server_is_the_sum_of_its_parts() {
    let place = Place::new();
    let plan = |more: &[&str]| -> Value {
        let args = [&["plan", "--serve", "--json", "--model", place.model.as_str()], more].concat();
        serde_json::from_str(&lowrank_ok(&args).out).unwrap()
    };
    let (small, large) =
        (plan(&["--cache-mb", "1", "--max-batch", "2"]), plan(&["--cache-mb", "2", "--max-batch", "64"]));
    let bytes = |plan: &Value, key: &str| plan[key].as_u64().unwrap();
    assert_eq!(bytes(&large, "cache_rows"), 2 * bytes(&small, "cache_rows"));
    assert!(bytes(&large, "activation_bytes") >= bytes(&small, "activation_bytes"));
    assert!(bytes(&large, "logit_bytes") > bytes(&small, "logit_bytes"));
    let parts = ["base", "cache", "adapter", "activation", "logit", "scratch", "process"];
    assert_eq!(
        parts.iter().map(|part| bytes(&small, &format!("{part}_bytes"))).sum::<u64>(),
        bytes(&small, "peak_bytes")
    );
    assert_eq!(common::lowrank(&["plan", "--cache-mb", "1", "--model", &place.model]).code, 2);
}

/// A job from upload to use: its adapter is bit for bit that of `lowrank train` with the same seed, whatever happens to the
/// server meanwhile.
#[test]
fn fine_tuning_survives_pauses_and_kills() {
    let place = Place::new();
    let jobs = place.path("jobs");
    let server = Server::start(&place, &["--jobs-dir", &jobs]);
    let data = fs::read_to_string(place.path("train.jsonl")).unwrap();
    let upload = |server: &Server, text: &str| {
        let body = format!(
            "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--b\r\nContent-Disposition: form-data; \
             name=\"file\"; filename=\"../train.jsonl\"\r\nContent-Type: application/octet-stream\r\n\r\n{text}\r\n--b--\r\n"
        );
        let (status, _, answer) =
            server.request("POST", "/v1/files", "Content-Type: multipart/form-data; boundary=b\r\n", &body);
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str::<Value>(&answer).unwrap()["id"].as_str().unwrap().to_owned()
    };
    let file = upload(&server, &data);
    assert_eq!(server.request("GET", &format!("/v1/files/{file}/content"), "", "").2, data);
    let hyperparameters = json!({"n_epochs": "auto", "batch_size": 4, "learning_rate_multiplier": "auto", "r": 2,
        "max_steps": 60, "save_steps": 5, "learning_rate": 0.05});
    let create = |server: &Server, file: &str, suffix: &str| {
        let method = json!({"type": "supervised", "supervised": {"hyperparameters": hyperparameters}});
        let body =
            json!({"model": "tiny", "training_file": file, "seed": 8, "suffix": suffix, "method": method});
        server.post("/v1/fine_tuning/jobs", &body)["id"].as_str().unwrap().to_owned()
    };
    let plain = create(&server, &file, "plain");
    let path = |id: &str| format!("/v1/fine_tuning/jobs/{id}");
    let until = |server: &Server, id: &str, status: &str| {
        server.wait(&format!("{id} {status}"), || {
            let job = server.get(&path(id));
            assert!(job["status"] == status || job["status"] != "failed", "{job}");
            job["status"] == status
        });
    };
    until(&server, &plain, "succeeded");
    let job = server.get(&path(&plain));
    let name = job["fine_tuned_model"].as_str().unwrap();
    assert!(name.starts_with("ft:tiny:lowrank:plain:"), "{name}");
    assert!(job["trained_tokens"].as_u64().unwrap() > 0);
    assert_ne!(server.complete(name, "red and", json!({})), server.complete("tiny", "red and", json!({})));
    let events = server.get(&format!("{}/events?limit=100", path(&plain)));
    let metrics: Vec<&Value> =
        events["data"].as_array().unwrap().iter().filter(|event| event["type"] == "metrics").collect();
    assert_eq!((metrics.len(), &metrics[0]["data"]["step"]), (60, &json!(60)), "newest first");
    let checkpoints = server.get(&format!("{}/checkpoints", path(&plain)));
    let step = checkpoints["data"][0]["fine_tuned_model_checkpoint"].as_str().unwrap();
    assert!(!server.complete(step, "red and", json!({})).is_empty());
    let weights = |id: &str| fs::read(format!("{jobs}/jobs/{id}/run/adapter_model.safetensors")).unwrap();

    // Preferences in OpenAI's form.
    let turn = |role: &str, content: &str| json!([{"role": role, "content": content}]);
    let row = |i: usize| {
        let input = json!({"messages": turn("user", &format!("is it {i}?"))});
        let (yes, no) = (turn("assistant", "yes"), turn("assistant", "no"));
        json!({"input": input, "preferred_output": yes, "non_preferred_output": no}).to_string() + "\n"
    };
    let preferences = upload(&server, &(0..8).map(row).collect::<String>());
    let of = json!({"hyperparameters": {"beta": "auto", "n_epochs": 1, "batch_size": 4}});
    let body = json!({"model": "tiny", "training_file": preferences, "method": {"type": "dpo", "dpo": of}});
    let dpo = server.post("/v1/fine_tuning/jobs", &body)["id"].as_str().unwrap().to_owned();
    until(&server, &dpo, "succeeded");
    assert_eq!(server.get(&path(&dpo))["method"]["type"], "dpo");
    let log = fs::read_to_string(format!("{jobs}/jobs/{dpo}/run/log.jsonl")).unwrap();
    assert!(log.contains("rewards/margins"), "{log}");
    let wrong = json!({"model": "tiny", "training_file": preferences, "method": {"type": "grow"}});
    assert_eq!(server.try_post("/v1/fine_tuning/jobs", &wrong).0, 400);

    // Paused and resumed.
    let paused = create(&server, &file, "");
    server.wait("a checkpoint", || Path::new(&format!("{jobs}/jobs/{paused}/run/checkpoints/last")).exists());
    if server.try_post(&format!("{}/pause", path(&paused)), &json!({})).0 == 200 {
        assert_eq!(server.get(&path(&paused))["status"], "paused");
        server.post(&format!("{}/resume", path(&paused)), &json!({}));
    }
    until(&server, &paused, "succeeded");
    assert_eq!(weights(&paused), weights(&plain));

    // Killed, the server and its training with it.
    let killed = create(&server, &file, "");
    server.wait("a checkpoint", || Path::new(&format!("{jobs}/jobs/{killed}/run/checkpoints/last")).exists());
    let training = Command::new("pgrep").args(["-f", &format!("{jobs}/jobs/{killed}")]).output().unwrap();
    server.signal("KILL");
    for id in String::from_utf8(training.stdout).unwrap().lines() {
        let _ = Command::new("kill").args(["-KILL", id]).status();
    }
    assert_eq!(server.ended(), None);
    let server = Server::start(&place, &["--jobs-dir", &jobs]);
    until(&server, &killed, "succeeded");
    assert_eq!(weights(&killed), weights(&plain));
    assert!(!server.complete(name, "red and", json!({})).is_empty(), "what was trained before is served");

    // Cancelled, and failed by its data.
    let cancelled = create(&server, &file, "");
    server.post(&format!("{}/cancel", path(&cancelled)), &json!({}));
    assert_eq!(server.get(&path(&cancelled))["status"], "cancelled");
    assert_eq!(server.try_post(&format!("{}/resume", path(&cancelled)), &json!({})).0, 409);
    let broken = upload(&server, "{\"prompt\": \"a\", \"completion\": \"b\"}\n{broken\n");
    let failed = create(&server, &broken, "");
    server.wait("failing", || server.get(&path(&failed))["status"] == "failed");
    let message = server.get(&path(&failed))["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("line 2") || message.contains(":2"), "{message}");
    assert_eq!(server.request("DELETE", &format!("/v1/files/{broken}"), "", "").0, 200);
    assert_eq!(server.request("GET", &format!("/v1/files/{broken}"), "", "").0, 404);
    assert_eq!(server.request("GET", "/v1/files/..%2f..%2ftrain.jsonl/content", "", "").0, 404);
    let wrong = json!({"model": "tiny", "training_file": "file-0123"});
    assert_eq!(server.try_post("/v1/fine_tuning/jobs", &wrong).0, 404);
    let wrong = json!({"model": "tiny", "training_file": file, "hyperparameters": {"n_epochs": -1}});
    assert_eq!(server.try_post("/v1/fine_tuning/jobs", &wrong).0, 400);
}
