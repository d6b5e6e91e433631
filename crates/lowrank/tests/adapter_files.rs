//! Adapters by file and in any format where a base model runs with them, and what `inspect` says of any file.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{lowrank, lowrank_ok, tiny_data, tiny_model};
use lowrank::files::{PytorchTensor, write_pytorch};
use serde_json::Value;

struct Place {
    dir: tempfile::TempDir,
    model: String,
}

impl Place {
    /// A base model and an adapter with different ranks and alphas.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(dir.path());
        tiny_data(&dir.path().join("data.jsonl"), 12);
        let place = Self { dir, model };
        let (data, out) = (place.text("data.jsonl"), place.text("adapter"));
        lowrank_ok(&[
            "train",
            "--model",
            &place.model,
            "--data",
            &data,
            "--out",
            &out,
            "--max-steps",
            "3",
            "--r",
            "2",
            "--lora-alpha",
            "16",
            "--learning-rate",
            "0.05",
            "--target-modules",
            "q_proj,v_proj,down_proj",
            "--layers-to-transform",
            "1",
            "--rank-pattern",
            "v_proj=3",
            "--alpha-pattern",
            "down_proj=8",
        ]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The loss on the data with an adapter.
    fn loss(&self, adapter: &str) -> f64 {
        let data = self.text("data.jsonl");
        let ran =
            lowrank_ok(&["eval", "--model", &self.model, "--data", &data, "--json", "--adapter", adapter]);
        serde_json::from_str::<Value>(&ran.out).unwrap()["loss"].as_f64().unwrap()
    }

    fn inspected(&self, path: &str) -> Value {
        let ran = lowrank_ok(&["inspect", path, "--json"]);
        serde_json::from_str::<Value>(&ran.out).unwrap()["summary"].clone()
    }
}

#[test]
fn an_adapter_may_be_a_file_and_in_another_format() {
    let place = Place::new();
    let folder = place.text("adapter");
    let want = place.loss(&folder);
    let data = place.text("data.jsonl");
    let base = lowrank_ok(&["eval", "--model", &place.model, "--data", &data, "--json"]);
    let base = serde_json::from_str::<Value>(&base.out).unwrap()["loss"].as_f64().unwrap();
    assert!((want - base).abs() > 1e-3, "the adapter does something");

    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        assert_eq!(place.loss(&format!("{folder}/{file}")), want, "{file}");
    }
    fs::copy(place.path("adapter/adapter_model.safetensors"), place.path("adapter/mine.safetensors"))
        .unwrap();
    assert_eq!(place.loss(&format!("{folder}/mine.safetensors")), want);
    for (format, name) in [("gguf", "a.gguf"), ("mlx", "mlx")] {
        let out = place.text(name);
        lowrank_ok(&["convert", &folder, "--to", format, "--base", &place.model, "--out", &out]);
        let loss = place.loss(&out);
        assert!((loss - want).abs() < 1e-5 * want, "{format}: {loss} for {want}");
    }
    // It runs with a weight, merges and starts a training run as any other.
    let (gguf, merged, again) = (place.text("a.gguf"), place.text("merged"), place.text("again"));
    let weighted = format!("{gguf}:0.5");
    lowrank_ok(&[
        "generate",
        "--model",
        &place.model,
        "--adapter",
        &weighted,
        "--prompt",
        "red",
        "--max-new-tokens",
        "2",
    ]);
    lowrank_ok(&["merge", "--model", &place.model, "--adapter", &gguf, "--out", &merged, "--dtype", "f32"]);
    lowrank_ok(&[
        "train",
        "--model",
        &place.model,
        "--data",
        &data,
        "--out",
        &again,
        "--max-steps",
        "1",
        "--init-adapter",
        &gguf,
    ]);

    // What a file does not say is asked for.
    let alone = place.text("alone.safetensors");
    fs::copy(place.path("adapter/adapter_model.safetensors"), &alone).unwrap();
    let loralib = place.text("a.bin");
    lowrank_ok(&["convert", &folder, "--to", "loralib", "--out", &loralib]);
    for (file, words) in
        [(&alone, ["adapter_config.json", "folder"]), (&loralib, ["alpha", "lowrank convert"])]
    {
        let ran = lowrank(&["eval", "--model", &place.model, "--data", &data, "--adapter", file]);
        assert_ne!(ran.code, 0);
        words.iter().for_each(|word| assert!(ran.err.contains(word), "{}", ran.err));
    }
}

/// A LoRA of a pipeline that is not known here.
fn flux(path: &Path) {
    let mut tensors = Vec::new();
    for module in ["lora_unet_double_blocks_0_img_attn_qkv", "lora_te1_text_model_encoder_layers_0_mlp_fc1"] {
        let ramp = |n: usize| (0..n).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
        tensors.push((format!("{module}.lora_down.weight"), vec![4, 6], ramp(24)));
        tensors.push((format!("{module}.lora_up.weight"), vec![5, 4], ramp(20)));
        tensors.push((format!("{module}.alpha"), vec![], vec![2.0]));
    }
    let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let data: Vec<Vec<u8>> = tensors.iter().map(|(_, _, values)| bytes(values)).collect();
    let views = tensors.iter().zip(&data).map(|((name, shape, _), data)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data);
        (name.clone(), view.unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn the_tools_take_pipelines_that_they_do_not_know() {
    let dir = tempfile::tempdir().unwrap();
    let text = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let file = text("flux.safetensors");
    flux(Path::new(&file));
    let names = |path: &str| {
        let bytes = fs::read(path).unwrap();
        let mut names: Vec<String> = safetensors::SafeTensors::deserialize(&bytes)
            .unwrap()
            .names()
            .into_iter()
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    };
    for (command, more) in
        [("resize", &["--rank", "2"][..]), ("prune", &["--density", "0.5"]), ("dtype", &["--to", "bf16"])]
    {
        let out = text(&format!("{command}.safetensors"));
        lowrank_ok(&[&[command, &file, "--out", &out], more].concat());
        assert_eq!(names(&out), names(&file), "{command}");
    }
    let (one, both) = (text("one.safetensors"), text("both.safetensors"));
    lowrank_ok(&["resize", &file, "--rank", "2", "--component", "text_encoder", "--out", &one]);
    assert_eq!(names(&one), names(&file)[..3]);
    let (half, minus) = (format!("{file}:0.5"), format!("{file}:-0.5"));
    lowrank_ok(&["compose", "--how", "cat", "--adapter", &half, "--adapter", &minus, "--out", &both]);
    assert_eq!(names(&both), names(&file));
    let diff = lowrank_ok(&["diff", &file, &text("dtype.safetensors"), "--json"]);
    assert!(diff.out.contains("double_blocks") && diff.out.contains("\"same\":false"), "{}", diff.out);
    assert!(lowrank_ok(&["inspect", &file]).out.contains("double_blocks"));
    let refused = lowrank(&["convert", &file, "--to", "peft", "--component", "unet", "--out", &text("peft")]);
    assert!(refused.code != 0 && refused.err.contains("double_blocks"), "{}", refused.err);
    for wrong in [format!("{file}:x"), format!("{file}:nan"), format!("{file}:")] {
        let ran = lowrank(&["compose", "--adapter", &wrong, "--out", &text("never")]);
        assert!(ran.code == 2 && ran.err.contains("is not a weight"), "{}", ran.err);
    }
}

#[test]
fn inspect_says_what_anything_is() {
    let place = Place::new();
    let write = |name: &str, bytes: &[u8]| {
        fs::write(place.path(name), bytes).unwrap();
        place.text(name)
    };
    let is = |path: &str, what: &str| {
        let summary = place.inspected(path);
        assert!(summary["what"].as_str().unwrap().contains(what), "{path}: {summary}");
        summary
    };
    is(&place.model, "base model");
    let adapter = place.text("adapter");
    assert_eq!(is(&adapter, "adapter")["format"], "peft");
    for (format, name) in [("gguf", "a.gguf"), ("mlx", "mlx"), ("loralib", "a.bin")] {
        let out = place.text(name);
        lowrank_ok(&["convert", &adapter, "--to", format, "--base", &place.model, "--out", &out]);
    }
    assert_eq!(is(&place.text("mlx"), "adapter")["format"], "mlx");
    is(common::fixture("gemma2_caps").join("model.gguf").to_str().unwrap(), "base model");
    let last = format!("{adapter}/checkpoints/last");
    is(&last, "checkpoint");
    is(&format!("{last}/optimizer.safetensors"), "optimiser state");
    is(&format!("{last}/trainer_state.json"), "state of a training run");
    is(&format!("{adapter}/log.jsonl"), "data");
    let data = is(&place.text("data.jsonl"), "data");
    assert_eq!((&data["rows"], &data["columns"][0]), (&12.into(), &"prompt".into()));
    assert_eq!(is(&write("x.csv", b"text,label\na,1\nb,0\n"), "data")["columns"][1], "label");
    assert_eq!(is(&write("x.json", b"[{\"a\": 1}, {\"a\": 2}]"), "data")["rows"], 2);
    is(&format!("{}/tokenizer.json", place.model), "tokenizer");
    is(&format!("{}/config.json", place.model), "configuration of a base model");
    is(&format!("{}/model.safetensors", place.model), "weights of a base model");
    fs::create_dir(place.path("words")).unwrap();
    fs::copy(format!("{}/tokenizer.json", place.model), place.path("words/tokenizer.json")).unwrap();
    is(&place.text("words"), "tokenizer");
    fs::create_dir(place.path("shape")).unwrap();
    fs::copy(format!("{}/config.json", place.model), place.path("shape/config.json")).unwrap();
    is(&place.text("shape"), "without weights");
    fs::copy(place.path("adapter/adapter_model.safetensors"), place.path("alone.safetensors")).unwrap();
    is(&place.text("alone.safetensors"), "without its configuration");
    let values = [0u8; 16];
    let one =
        |name| [PytorchTensor { name, shape: &[4], format: lowrank::engine::Format::F32, bytes: &values }];
    write_pytorch(&place.path("moments.pt"), &one("0.exp_avg")).unwrap();
    is(&place.text("moments.pt"), "optimiser state");
    write_pytorch(&place.path("odd.pt"), &one("x")).unwrap();
    is(&place.text("odd.pt"), "unknown tensors");
    is(&write("x.parquet", b"PAR1...."), "Parquet");
    is(&write("notes.md", "# Überschrift".as_bytes()), "text");
    is(&write("noise", &[0xff, 0xfe, 0x00, 0x9c]), "unknown");
    is(&write("nothing", b""), "empty file");
    is(place.dir.path().to_str().unwrap(), "unknown folder");
    fs::create_dir(place.path("empty")).unwrap();
    is(&place.text("empty"), "empty folder");
}
