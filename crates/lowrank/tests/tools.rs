//! The commands on adapter files: the tour of `docs/tools.md`, command by command, and what their results do.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{lowrank_ok, tiny_data, tiny_model, words};
use lowrank::adapters::AdapterSet;
use lowrank::models::{Base, HeadKind, load_for};
use lowrank::tools::{Kind, Lora, Options, Pair, Tensor, formats};
use serde_json::{Map, Value, json};

fn ramp(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::new(shape.to_vec(), (0..count).map(|i| (i as f32 * 0.37).sin()).collect())
}

/// A LoRA for Stable Diffusion with an attention layer, a convolution and a text encoder's layer.
fn style(path: &Path) {
    let mut lora = Lora::default();
    let down = "unet.down_blocks.0";
    for (name, a, b) in [
        (format!("{down}.attentions.1.transformer_blocks.0.attn1.to_q"), &[2, 6][..], &[5, 2][..]),
        (format!("{down}.resnets.0.conv1"), &[2, 3, 3, 3], &[4, 2, 1, 1]),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj".into(), &[2, 6], &[5, 2]),
    ] {
        let pair = Pair::new(&name, ramp(a), ramp(b), 1.0, Kind::Linear).unwrap();
        lora.pairs.insert(name, pair);
    }
    formats::write(&lora, path, formats::kohya::FORMAT, &Options::default()).unwrap();
}

fn train(dir: &Path, name: &str, seed: &str) {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (model, data, out) = (text(&dir.join("base")), text(&dir.join("train.jsonl")), text(&dir.join(name)));
    lowrank_ok(&[
        "train",
        "--model",
        &model,
        "--data",
        &data,
        "--out",
        &out,
        "--r",
        "2",
        "--lora-alpha",
        "16",
        "--seed",
        seed,
        "--target-modules",
        "q_proj,v_proj",
        "--batch-size",
        "4",
        "--learning-rate",
        "0.02",
        "--max-steps",
        "4",
    ]);
}

#[test]
fn the_tour_runs() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    fs::rename(tiny_model(dir), dir.join("base")).unwrap();
    tiny_data(&dir.join("train.jsonl"), 20);
    train(dir, "poems", "1");
    train(dir, "letters", "2");
    style(&dir.join("style.safetensors"));

    let tour = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/tools.md")).unwrap();
    let run = |line: &str| {
        let args = words(line);
        let ran =
            Command::new(env!("CARGO_BIN_EXE_lowrank")).args(&args[1..]).current_dir(dir).output().unwrap();
        let out = String::from_utf8(ran.stdout).unwrap();
        assert!(ran.status.success(), "{line}\n{}", String::from_utf8_lossy(&ran.stderr));
        out
    };
    let commands: Vec<&str> = tour.lines().filter(|line| line.starts_with("lowrank ")).collect();
    assert!(commands.len() > 25, "the tour has its commands");
    for line in &commands {
        assert!(!run(line).is_empty(), "{line}: says something");
    }

    // What came back is what went.
    let same = |line: &str| -> Value { serde_json::from_str(&run(line)).unwrap() };
    for other in ["from-gguf", "from-mlx", "from-loralib"] {
        assert_eq!(same(&format!("lowrank diff poems {other} --json"))["same"], true, "{other}");
    }
    let again = same("lowrank diff poems again --json");
    for row in again["rows"].as_array().unwrap() {
        let (distance, norm) = (row["distance"].as_f64().unwrap(), row["norm left"].as_f64().unwrap());
        assert!(distance < 1e-4 * norm, "{row}");
    }
    // What PEFT's rules say of the compositions.
    let both = same("lowrank inspect both --spectrum --json");
    assert!(both["rows"].as_array().unwrap().iter().all(|row| row["r"] == 2));
    let chart = run("lowrank inspect poems --spectrum");
    assert!(chart.contains('█') && chart.contains("self_attn.q_proj"), "{chart}");
    let page = fs::read_to_string(dir.join("poems.html")).unwrap();
    assert!(
        page.contains("<svg") && page.contains("<table") && page.contains("lowrank inspect poems"),
        "{page}"
    );
    // Every adapter of the tour attaches to the base.
    for name in
        ["both", "without-letters", "ties", "dare", "small", "again", "part", "one", "most", "norm", "half"]
    {
        run(&format!("lowrank generate --model base --adapter {name} --prompt red --max-new-tokens 3"));
    }
    // Nothing is overwritten unasked.
    let refused = Command::new(env!("CARGO_BIN_EXE_lowrank"))
        .args(["convert", "poems", "--to", "mlx", "--out", "both"])
        .current_dir(dir)
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--force"));
}

/// A model of RoBERTa-base's shapes whose weights are zeros that take no room on the disk.
fn roberta_base(dir: &Path) {
    let config = json!({"model_type": "roberta", "architectures": ["RobertaForSequenceClassification"],
        "vocab_size": 50265, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 514, "type_vocab_size": 1,
        "pad_token_id": 1, "layer_norm_eps": 1e-5, "num_labels": 3,
        "id2label": {"0": "entailment", "1": "neutral", "2": "contradiction"},
        "label2id": {"entailment": 0, "neutral": 1, "contradiction": 2}});
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let (mut header, mut end) = (Map::new(), 0);
    let mut tensor = |name: &str, shape: &[usize]| {
        let bytes = 4 * shape.iter().product::<usize>();
        header
            .insert(name.into(), json!({"dtype": "F32", "shape": shape, "data_offsets": [end, end + bytes]}));
        end += bytes;
    };
    for (name, rows) in [("word", 50265), ("position", 514), ("token_type", 1)] {
        tensor(&format!("roberta.embeddings.{name}_embeddings.weight"), &[rows, 768]);
    }
    let mut names = vec![("roberta.embeddings.LayerNorm".to_owned(), vec![768])];
    for i in 0..12 {
        let at = |name: &str| format!("roberta.encoder.layer.{i}.{name}");
        for name in
            ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
        {
            names.push((at(name), vec![768, 768]));
        }
        names.push((at("attention.output.LayerNorm"), vec![768]));
        names.push((at("intermediate.dense"), vec![3072, 768]));
        names.push((at("output.dense"), vec![768, 3072]));
        names.push((at("output.LayerNorm"), vec![768]));
    }
    names.push(("classifier.dense".into(), vec![768, 768]));
    names.push(("classifier.out_proj".into(), vec![3, 768]));
    for (name, shape) in names {
        tensor(&format!("{name}.weight"), &shape);
        tensor(&format!("{name}.bias"), &shape[..1]);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let file = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
    fs::write(dir.join("model.safetensors"), &file).unwrap();
    let whole = fs::OpenOptions::new().write(true).open(dir.join("model.safetensors")).unwrap();
    whole.set_len((file.len() + end) as u64).unwrap();
}

/// The published MNLI checkpoint, converted, fits RoBERTa-base with its classification head.
#[test]
#[ignore = "reads public data sets: make data-test"]
fn the_papers_checkpoint_attaches_to_roberta_base() {
    let checkpoint = lowrank_testing::public_data("loralib/roberta_base_lora_mnli.bin");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("mnli");
    let (from, to) = (checkpoint.to_str().unwrap(), out.to_str().unwrap());
    let ran = lowrank_ok(&["convert", from, "--alpha", "16", "--to", "peft", "--out", to]);
    assert!(ran.out.contains("24 layers") && ran.out.contains("from loralib to peft"), "{}", ran.out);
    roberta_base(dir.path());
    let base = Base::open(dir.path().to_str().unwrap()).unwrap();
    let model = load_for(&base.config, &base.tensors, HeadKind::Sequence(3)).unwrap();
    let set = AdapterSet::load(&out, model.sites()).unwrap();
    let lora = set.layers.iter().filter(|l| l.site.path.contains("attention.self")).count();
    assert_eq!(lora, 24, "query and value of twelve layers");
    let has = |name: &str| set.params.iter().any(|(_, param)| param.name == name);
    assert!(has("classifier.dense.weight") && has("classifier.out_proj.bias"), "the classifier comes along");
    let query = set.layers.iter().find(|l| l.site.path.ends_with("layer.0.attention.self.query")).unwrap();
    assert_eq!((query.variant.rank(), query.variant.scaling()), (Some(8), Some(2.0)));
}

/// What each program needs lies in the folder, and the command is printed.
#[test]
fn adapters_are_exported_for_other_programs() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let model = common::tiny_model(place.path());
    let tokenizer = Path::new(&model).join("tokenizer.json");
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&tokenizer).unwrap()).unwrap();
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    // A tokenizer that GGUF has a form for.
    (json["pre_tokenizer"], json["decoder"]) = (level.clone(), level);
    fs::write(&tokenizer, json.to_string()).unwrap();
    common::tiny_data(Path::new(&path("data.jsonl")), 12);
    let run = path("my run");
    let train =
        ["train", "--model", &model, "--data", &path("data.jsonl"), "--out", &run, "--max-steps", "2"];
    common::lowrank_ok(&train);
    let export = |model: &str, to: &str, out: &str| {
        let args =
            ["export", "--model", model, "--adapter", &run, "--to", to, "--out", out, "--name", "mine"];
        common::lowrank_ok(&args).out
    };
    let out = path("ollama");
    assert_eq!(
        export(&model, "ollama", &out),
        format!("ollama create mine -f {out}/Modelfile && ollama run mine\n")
    );
    assert_eq!(fs::read_to_string(format!("{out}/Modelfile")).unwrap(), "FROM ./model.gguf\n");
    let gguf = format!("{out}/model.gguf");
    common::lowrank_ok(&["inspect", &gguf]);
    let out = path("llama");
    let command = export(&gguf, "llama.cpp", &out);
    assert!(command.contains(&format!("--lora {out}/mine.gguf")), "{command}");
    let data = path("data.jsonl");
    common::lowrank_ok(&[
        "eval",
        "--model",
        &gguf,
        "--adapter",
        &format!("{out}/mine.gguf"),
        "--data",
        &data,
    ]);
    let out = path("vllm");
    let command = export(&model, "vllm", &out);
    assert!(
        command.contains("--max-lora-rank 8") && command.contains(&format!("mine={out}/mine")),
        "{command}"
    );
    common::lowrank_ok(&["eval", "--model", &model, "--adapter", &format!("{out}/mine"), "--data", &data]);
    let out = path("mlx");
    let command = export(&model, "mlx", &out);
    assert!(command.contains(&format!("--adapter-path {out}/mine")), "{command}");
    assert!(Path::new(&out).join("mine/adapters.safetensors").is_file());
    let out = path("two words");
    assert!(export(&model, "mlx", &out).contains(&format!("--adapter-path '{out}'/mine ")));
    let out = path("folder");
    assert!(export(&gguf, "vllm", &out).starts_with(&format!("vllm serve {out}/model")));
    common::lowrank_ok(&["eval", "--model", &format!("{out}/model"), "--data", &data]);
    let wrong = [
        "export",
        "--model",
        &model,
        "--adapter",
        &run,
        "--to",
        "vllm",
        "--out",
        &path("x"),
        "--name",
        "a b;c",
    ];
    assert_eq!(common::lowrank(&wrong).code, 2);
    assert!(!Path::new(&path("x")).exists());
}
