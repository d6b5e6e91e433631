//! Files made to hurt their readers: never a panic, never memory that the file's size does not justify.

mod common;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use common::counting::{Counting, measured};
use common::{raw_safetensors, safetensors, small_gguf, small_gguf_with};
use lowrank_files::GgufWriter;
use lowrank_models::{Base, ChatTemplate, Message, Tokenizer};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LIMIT: usize = 4 << 20;

/// Runs a reader; the result as text. Panics only where the reader does what it must not.
fn read<T>(what: &str, reader: impl FnOnce() -> lowrank_models::Result<T>) -> Result<(), String> {
    let (result, _, took) =
        measured(|| catch_unwind(AssertUnwindSafe(|| reader().map(drop).map_err(|e| e.to_string()))));
    assert!(took < LIMIT, "{what}: took {took} bytes");
    let result = result.unwrap_or_else(|_| panic!("{what}: the reader panicked"));
    if let Err(message) = &result {
        assert!(message.len() < 2000, "{what}: an endless message: {message}");
        assert!(!message.contains('\n'), "{what}: a message of many lines: {message}");
    }
    result
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        // Thousands of small files: in memory where the system has such a place.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let folder = folder.unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Reads everything a base offers with `bytes` as the file `name`.
    fn with(&self, what: &str, name: &str, bytes: &[u8]) -> Result<(), String> {
        fs::write(self.path(name), bytes).unwrap();
        let path = if name.ends_with(".gguf") { self.path(name) } else { self.0.path().to_owned() };
        read(what, || use_everything(&path))
    }
}

fn use_everything(path: &Path) -> lowrank_models::Result<()> {
    let base = Base::open_path(path)?;
    for name in base.tensors.names() {
        // A tensor of a number type we do not read is no fault of the file.
        let _ = base.tensors.weight(name).map(|w| w.byte_len());
        let _ = base.tensors.vector(name);
    }
    if let Ok(chat) = base.chat() {
        let _ =
            chat.render_with_spans(&[Message::new("user", "a"), Message::new("assistant", "b")][..].into());
    }
    if !path.is_dir() || path.join("tokenizer.json").exists() {
        let tokenizer = base.tokenizer()?;
        let ids = tokenizer.encode("ab <e> é 12")?;
        tokenizer.decode(&ids, true)?;
    }
    Ok(())
}

fn good_safetensors() -> Vec<u8> {
    safetensors(&[("a", &[2, 2], &[1.0, 2.0, 3.0, 4.0]), ("b", &[3], &[5.0, 6.0, 7.0])])
}

#[test]
fn safetensors_cut_anywhere() {
    let folder = Folder::new();
    let good = good_safetensors();
    folder.with("whole", "model.safetensors", &good).unwrap();
    for length in 0..good.len() {
        let error =
            folder.with(&format!("cut at {length}"), "model.safetensors", &good[..length]).unwrap_err();
        assert!(error.contains("model.safetensors"), "{error}");
    }
}

#[test]
fn safetensors_with_any_byte_wrong() {
    let folder = Folder::new();
    let good = good_safetensors();
    for at in 0..good.len() {
        for value in [0, 0xff, good[at] ^ 1, good[at] ^ 0x80, b'9'] {
            let mut bad = good.clone();
            bad[at] = value;
            let _ = folder.with(&format!("byte {at} is {value}"), "model.safetensors", &bad);
        }
    }
}

#[test]
fn safetensors_that_lie() {
    let folder = Folder::new();
    let one = |info: &str| raw_safetensors(&format!("{{\"w\":{info}}}"), &[0; 16]);
    let long = |n: u64| [&n.to_le_bytes()[..], b"{}"].concat();
    let deep = format!("{{\"w\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (long(u64::MAX), "header length"),
        (long(1 << 40), "header length"),
        (long(100_000_001), "header length"),
        (long(3), "header length"),
        (raw_safetensors("", &[]), "header"),
        (raw_safetensors("[]", &[]), "header"),
        (raw_safetensors("\u{7f}", &[]), "header"),
        ([&4u64.to_le_bytes()[..], &[0xff; 4]].concat(), "header"),
        (raw_safetensors("{} {}", &[]), "header"),
        (raw_safetensors(&deep, &[]), "tensor w: "),
        (one(&deep.replace("{\"w\":", "{\"dtype\":\"F32\",\"data_offsets\":[0,4],\"shape\":")), "tensor w: "),
        (
            one(r#"{"dtype":"F32","shape":[2,2],"data_offsets":[0,17]}"#),
            "tensor w: data_offsets [0, 17] lie outside",
        ),
        (one(r#"{"dtype":"F32","shape":[2,2],"data_offsets":[16,0]}"#), "lie outside"),
        (one(r#"{"dtype":"F32","shape":[2,2],"data_offsets":[0,12]}"#), "takes 16 bytes"),
        (one(r#"{"dtype":"F32","shape":[2,2],"data_offsets":[-1,12]}"#), "tensor w: invalid value"),
        (one(r#"{"dtype":"F32","shape":[2,2],"data_offsets":[0,18446744073709551615]}"#), "lie outside"),
        (
            one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}"#),
            "more than any file's",
        ),
        (
            one(r#"{"dtype":"F32","shape":[9223372036854775808,2],"data_offsets":[0,0]}"#),
            "more than any file's",
        ),
        (
            one(
                r#"{"dtype":"F32","shape":[0,18446744073709551615,18446744073709551615],"data_offsets":[0,0]}"#,
            ),
            "w",
        ),
        (one(r#"{"dtype":"F33","shape":[2,2],"data_offsets":[0,16]}"#), "unknown dtype F33"),
        (one(r#"{"dtype":"F32","shape":[2,2]}"#), "tensor w: missing field `data_offsets`"),
        (one(r#"{"dtype":"F32","shape":"big","data_offsets":[0,16]}"#), "tensor w: invalid type"),
        (
            raw_safetensors(
                r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#,
                &[0; 16],
            ),
            "tensor w: appears twice",
        ),
        (
            raw_safetensors(
                r#"{"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
                &[0; 16],
            ),
            "tensor w: its bytes overlap those of v",
        ),
    ];
    for (number, (bytes, message)) in cases.iter().enumerate() {
        let error = folder.with(&format!("case {number}"), "model.safetensors", bytes).unwrap_err();
        assert!(error.contains(message), "case {number}: {error}");
    }
}

#[test]
fn gguf_cut_anywhere() {
    let folder = Folder::new();
    small_gguf(&folder.path("good.gguf"));
    let good = fs::read(folder.path("good.gguf")).unwrap();
    folder.with("whole", "m.gguf", &good).unwrap();
    for length in 0..good.len() {
        let error = folder.with(&format!("cut at {length}"), "m.gguf", &good[..length]).unwrap_err();
        assert!(error.contains("m.gguf"), "{error}");
    }
}

#[test]
fn gguf_with_any_byte_wrong() {
    let folder = Folder::new();
    small_gguf(&folder.path("good.gguf"));
    let good = fs::read(folder.path("good.gguf")).unwrap();
    // The last bytes are numbers of tensors: any will do there.
    for at in 0..good.len() - 400 {
        for value in [0xff, good[at] ^ 1] {
            let mut bad = good.clone();
            bad[at] = value;
            let _ = folder.with(&format!("byte {at} is {value}"), "m.gguf", &bad);
        }
        // Eight bytes of a length or count at once.
        if at + 8 <= good.len() {
            let mut bad = good.clone();
            bad[at..at + 8].fill(0xff);
            let _ = folder.with(&format!("bytes from {at} are 255"), "m.gguf", &bad);
            bad[at..at + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
            let _ = folder.with(&format!("bytes from {at} say a terabyte"), "m.gguf", &bad);
        }
    }
}

/// A GGUF file by hand: version 3, these metadata entries and tensor descriptions, `data` zero bytes.
fn gguf(metadata: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((metadata.len() as u64).to_le_bytes());
    metadata.iter().chain(tensors).for_each(|part| file.extend(part));
    file.resize(file.len().next_multiple_of(32) + data, 0);
    file
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), value].concat()
}

fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut out = text(name);
    out.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
    out.extend(kind.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

#[test]
fn gguf_that_lies() {
    let folder = Folder::new();
    let counts = |tensors: u64, metadata: u64| {
        [b"GGUF\x03\0\0\0".as_slice(), &tensors.to_le_bytes(), &metadata.to_le_bytes(), &[0; 64]].concat()
    };
    let array =
        |of: u32, count: u64, rest: &[u8]| [&of.to_le_bytes()[..], &count.to_le_bytes(), rest].concat();
    let max = u64::MAX;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"GGML\x03\0\0\0".to_vec(), "no GGUF file"),
        (b"GGUF\x01\0\0\0".to_vec(), "version 1"),
        (b"GGUF\0\0\0\x03".to_vec(), "big-endian"),
        (b"GGUF\x63\0\0\0".to_vec(), "version 99"),
        (counts(max, 0), "tensor count: says 18446744073709551615"),
        (counts(0, max), "metadata count: says 18446744073709551615"),
        (counts(0, 1 << 40), "metadata count"),
        (gguf(&[entry("k", 13, &[0; 8])], &[], 0), "k: has the unknown value type 13"),
        (gguf(&[entry("k", 8, &max.to_le_bytes())], &[], 0), "k: takes 18446744073709551615 bytes"),
        (gguf(&[entry("k", 9, &array(4, max, &[]))], &[], 0), "k: says 18446744073709551615"),
        (gguf(&[entry("k", 9, &array(10, 1 << 61, &[]))], &[], 0), "k: says"),
        (gguf(&[entry("k", 9, &array(8, 2, &text("a")))], &[], 0), "k: "),
        (gguf(&[entry("k", 9, &array(9, 1, &array(9, 1, &[])))], &[], 64), "array of arrays"),
        (gguf(&[entry("k", 0, &[1]), entry("k", 0, &[2])], &[], 0), "k: appears twice"),
        (gguf(&[[&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat()], &[], 64), "not UTF-8"),
        (gguf(&[entry("general.alignment", 4, &0u32.to_le_bytes())], &[], 0), "power of two"),
        (gguf(&[entry("general.alignment", 4, &48u32.to_le_bytes())], &[], 0), "power of two"),
        (gguf(&[entry("general.alignment", 8, &text("x"))], &[], 0), "expected a whole number, found string"),
        (gguf(&[], &[tensor("t", &[8], 0, 1)], 64), "not a multiple of the alignment"),
        (gguf(&[], &[tensor("t", &[8], 0, 64)], 64), "tensor t: its 32 bytes at offset 64 lie outside"),
        (gguf(&[], &[tensor("t", &[8], 0, max - 31)], 64), "lie outside"),
        (gguf(&[], &[tensor("t", &[1 << 40], 0, 0)], 64), "lie outside"),
        (gguf(&[], &[tensor("t", &[1 << 32, 1 << 32], 0, 0)], 64), "overflows"),
        (gguf(&[], &[tensor("t", &[max, max, max, max], 0, 0)], 64), "overflows"),
        (gguf(&[], &[tensor("t", &[0, 4], 0, 0)], 64), "an axis of 0"),
        (gguf(&[], &[tensor("t", &[], 0, 0)], 64), "has 0 axes"),
        (gguf(&[], &[tensor("t", &[1; 5], 0, 0)], 64), "has 5 axes"),
        (gguf(&[], &[tensor("t", &[33], 8, 0)], 64), "not a whole number of Q8_0 blocks"),
        (gguf(&[], &[tensor("t", &[256], 9, 0)], 288), "tensor t: is stored as Q8_1 (type 9)"),
        (gguf(&[], &[tensor("t", &[256], 999, 0)], 256), "unknown (type 999)"),
        (gguf(&[], &[tensor("t", &[8], 0, 0), tensor("u", &[8], 0, 0)], 64), "overlap"),
        (gguf(&[], &[], 0), "general.architecture: is missing"),
        (gguf(&[entry("general.architecture", 8, &text("bert"))], &[], 0), "bert is not supported"),
        (
            gguf(&[entry("general.architecture", 8, &text("llama"))], &[], 0),
            "llama.embedding_length: is missing",
        ),
    ];
    for (number, (bytes, message)) in cases.iter().enumerate() {
        let error = folder.with(&format!("case {number}"), "m.gguf", bytes).unwrap_err();
        assert!(error.contains(message), "case {number}: {error}");
    }
}

#[test]
fn json_files_that_hurt() {
    let folder = Folder::new();
    fs::write(folder.path("model.safetensors"), good_safetensors()).unwrap();
    let deep = "[".repeat(200_000);
    let texts = ["", "{", "null", "7", "\u{0}", "{\"a\":1e999}", "{\"a\":\"\\ud800\"}", &deep];
    for name in
        ["config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors.index.json"]
    {
        let good = fs::read(folder.path(name)).ok();
        for text in texts {
            let error = folder.with(name, name, text.as_bytes()).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
        folder.with(name, name, &[0xff, 0xfe]).unwrap_err();
        match good {
            Some(good) => fs::write(folder.path(name), good).unwrap(),
            None => fs::remove_file(folder.path(name)).unwrap(),
        }
    }
    for text in texts {
        read("tokenizer.json", || Tokenizer::from_json(Path::new("t.json"), text.as_bytes())).unwrap_err();
    }
    folder.with("index", "model.safetensors.index.json", b"{\"weight_map\":{\"a\":{}}}").unwrap_err();
    fs::remove_file(folder.path("model.safetensors.index.json")).unwrap();
    // Fields of other types than they should have are passed over or refused, never trusted.
    let odd = r#"{"eos_token_id": [-1, "x", 5, 99999999999], "bos_token_id": {}, "top_k": -3, "temperature": "hot"}"#;
    folder.with("odd", "generation_config.json", odd.as_bytes()).unwrap();
}

/// A tokenizer of single bytes with this part of `tokenizer.json`.
fn tokenizer_with(part: &str) -> Result<Tokenizer, String> {
    let json = format!(
        r#"{{"version": "1.0", "added_tokens": [], {part}
            "model": {{"type": "BPE", "unk_token": "u", "vocab": {{"u": 0, "a": 1, "b": 2}}, "merges": []}}}}"#
    );
    Tokenizer::from_json(Path::new("dir/tokenizer.json"), json.as_bytes()).map_err(|e| e.to_string())
}

#[test]
fn tokenizers_that_hurt() {
    // What the library panics on, when it is loaded or when it is used.
    for part in [
        r#""normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "b"},"#,
        r#""normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "b"},"#,
        r#""pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false},"#,
        r#""pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(?<=a"}, "behavior": "Isolated", "invert": false},"#,
        r#""decoder": {"type": "Replace", "pattern": {"String": ""}, "content": "b"},"#,
    ] {
        let used = tokenizer_with(part).and_then(|tokenizer| {
            let ids = tokenizer.encode("aab").map_err(|e| e.to_string())?;
            tokenizer.encode_with_spans("aab", std::slice::from_ref(&(0..1))).map_err(|e| e.to_string())?;
            tokenizer.decode(&ids, false).map_err(|e| e.to_string())
        });
        if let Err(error) = used {
            assert!(error.contains("dir/tokenizer.json"), "{part}: {error}");
        }
    }
    let chain: Vec<&str> = vec![r#"{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}"#; 40];
    let chain = format!(r#""normalizer": {{"type": "Sequence", "normalizers": [{}]}},"#, chain.join(","));
    let error = tokenizer_with(&chain).unwrap_err();
    assert!(error.contains("normalizer has 40 replacements that may make a text"), "{error}");
    // A pattern that tries every way to split a text.
    let slow = r#""pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|a)+\\1(?=c)"}, "behavior": "Isolated", "invert": false},"#;
    let started = std::time::Instant::now();
    let _ = tokenizer_with(slow).unwrap().encode(&"a".repeat(3000));
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
    let long = "a".repeat(5 << 20);
    assert_eq!(tokenizer_with("").unwrap().encode(&long).unwrap().len(), 5 << 20);
}

/// The configuration of a tiny Llama with a field changed.
fn config_error(field: &str, value: serde_json::Value) -> String {
    config_error_of("llama", field, value)
}

fn config_error_of(kind: &str, field: &str, value: serde_json::Value) -> String {
    let mut config = serde_json::json!({
        "model_type": kind, "vocab_size": 8, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5, "rope_theta": 1e4, "rope_scaling": null,
    });
    let what = format!("{field}: {value}");
    config[field] = value;
    let folder = Folder::new();
    fs::write(folder.path("config.json"), config.to_string()).unwrap();
    let base = Base::open_to_plan(folder.0.path().to_str().unwrap()).unwrap();
    let error = lowrank_models::load(&base.config, &base.tensors).map(|_| ()).expect_err(&what);
    base.explain(error).to_string()
}

#[test]
fn configurations_that_overflow() {
    let sizes = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "head_dim",
        "max_position_embeddings",
    ];
    for field in sizes {
        for number in ["9223372036854775808", "18446744073709551615", "0", "-1", "1.5", "1e300", "4294967297"]
        {
            let error = config_error(field, serde_json::from_str(number).unwrap());
            assert!(error.contains("config.json: ") && error.contains(field), "{field} {number}: {error}");
        }
    }
    for (field, numbers) in [
        ("rope_theta", &["0", "-1", "1e300", "1e-60"][..]),
        ("rms_norm_eps", &["-1e-5", "1e300"]),
        ("num_key_value_heads", &["0", "3", "9223372036854775808"]),
    ] {
        for number in numbers {
            let error = config_error(field, serde_json::from_str(number).unwrap());
            assert!(error.contains("config.json: ") && error.contains(field), "{field} {number}: {error}");
        }
    }
    // Llama has no window.
    for number in ["-1", "1e300"] {
        let error = config_error_of("mistral", "sliding_window", serde_json::from_str(number).unwrap());
        assert!(error.contains("config.json: ") && error.contains("sliding_window"), "{number}: {error}");
    }
    for (scaling, part) in [
        (r#"{"rope_type": "linear", "factor": 0}"#, "factor"),
        (r#"{"rope_type": "linear", "factor": -2}"#, "factor"),
        (
            r#"{"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 0}"#,
            "original_max_position_embeddings",
        ),
        (r#"{"rope_type": "yarn", "factor": 4, "attention_factor": -1}"#, "rope of type yarn"),
        (
            r#"{"rope_type": "longrope", "factor": 4, "short_factor": [1, 0], "long_factor": [1, 1]}"#,
            "rope of type longrope",
        ),
        (r#"{"rope_type": "linear", "factor": 1e-60}"#, "rope of type linear"),
        (
            r#"{"rope_type": "llama3", "factor": 4, "low_freq_factor": 0, "high_freq_factor": 4}"#,
            "low_freq_factor",
        ),
        (&format!(r#"{{"rope_type": "{}"}}"#, "x".repeat(1000)), "is not known"),
    ] {
        let error = config_error("rope_scaling", serde_json::from_str(scaling).unwrap());
        assert!(
            error.contains("config.json: ") && error.contains(part) && error.len() < 500,
            "{scaling}: {error}"
        );
    }
}

#[test]
fn gguf_numbers_that_make_no_model() {
    let folder = Folder::new();
    let wrong = |name: &str, write: &dyn Fn(&mut GgufWriter, &str)| {
        let key = format!("llama.{name}");
        small_gguf_with(&folder.path("m.gguf"), |writer| write(writer, &key));
        let error = Base::open_path(&folder.path("m.gguf")).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("m.gguf") && error.contains(&key), "{name}: {error}");
        error
    };
    for (rotated, what) in [(0, "is 0"), (3, "is 3"), (4096, "is 4096")] {
        let error = wrong("rope.dimension_count", &|writer, key| writer.u32(key, rotated).unwrap());
        assert!(error.contains(&format!("{what} of heads of 4")), "{error}");
    }
    for (value, what) in [(f32::NAN, "is NaN"), (0.0, "is 0"), (-1.0, "is -1"), (f32::INFINITY, "is inf")] {
        let error = wrong("rope.freq_base", &|writer, key| writer.f32(key, value).unwrap());
        assert!(error.contains(what), "{error}");
    }
    for (value, what) in [(f32::NAN, "is NaN"), (-1.0, "is -1")] {
        let error = wrong("rope.scaling.factor", &|writer, key| writer.f32(key, value).unwrap());
        assert!(error.contains(what), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn what_is_no_regular_file_is_refused() {
    let pipes = tempfile::tempdir().unwrap();
    let pipe = pipes.path().join("pipe");
    // Nobody ever writes to it: opening it would wait for ever.
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for name in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "model.safetensors",
        "chat_template.jinja",
    ] {
        for device in [Path::new("/dev/zero"), Path::new("/dev/full"), &pipe] {
            let folder = Folder::new();
            fs::write(folder.path("model.safetensors"), good_safetensors()).unwrap();
            let _ = fs::remove_file(folder.path(name));
            std::os::unix::fs::symlink(device, folder.path(name)).unwrap();
            let _ = read(name, || use_everything(folder.0.path()));
        }
    }
    for reader in [lowrank_files::regular, |path: &Path| lowrank_files::Tensors::open(path).map(|_| ())] {
        let error = reader(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(error.contains("/dev/zero: is not a regular file"), "{error}");
    }
}

#[test]
fn templates_that_hurt() {
    let run = |source: &str| {
        read(&source[..source.len().min(60)], || {
            ChatTemplate::new(source, "", "")?.render_with_spans(&[Message::new("user", "a")][..].into())
        })
    };
    run(&format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000))).unwrap_err();
    run("{% generation %}").unwrap_err();
    run("{% endgeneration %}").unwrap_err();
    run("{%").unwrap_err();
    run("\u{FDD1}{{ messages[0].content }}\u{FDD0}").unwrap();
}

/// Every file of the fuzzers' corpus: `tests/corpus/<reader>/`.
#[test]
fn the_fuzzers_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut seen = 0;
    for (reader, name) in [
        ("safetensors", "model.safetensors"),
        ("gguf", "m.gguf"),
        ("index", "model.safetensors.index.json"),
        ("config", "config.json"),
        ("tokenizer", "tokenizer.json"),
    ] {
        for item in fs::read_dir(corpus.join(reader)).unwrap() {
            let path = item.unwrap().path();
            let folder = Folder::new();
            fs::write(folder.path("model.safetensors"), good_safetensors()).unwrap();
            let _ = folder.with(&path.display().to_string(), name, &fs::read(&path).unwrap());
            seen += 1;
        }
    }
    for item in fs::read_dir(corpus.join("template")).unwrap() {
        let source = String::from_utf8_lossy(&fs::read(item.unwrap().path()).unwrap()).into_owned();
        let _ = read(&source, || {
            ChatTemplate::new(&source, "<s>", "</s>")?
                .render_with_spans(&[Message::new("user", "a")][..].into())
        });
        seen += 1;
    }
    assert!(seen >= 30, "the corpus has {seen} files");
}
