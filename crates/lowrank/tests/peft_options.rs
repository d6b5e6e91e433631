//! Fields of PEFT's configurations as options: each is honoured or refused, none is lost.

mod common;

use std::fs;
use std::path::Path;

use common::{lowrank, lowrank_ok, tiny_data, tiny_model};
use serde_json::{Value, json};

struct Place {
    dir: tempfile::TempDir,
    model: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(dir.path());
        tiny_data(&dir.path().join("train.jsonl"), 12);
        Self { dir, model }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn train(&self, out: &str, more: &[&str]) -> common::Ran {
        let (data, out) = (self.path("train.jsonl"), self.path(out));
        let args = ["train", "--model", &self.model, "--data", &data, "--out", &out, "--max-steps", "2"];
        lowrank(&[&args[..], &["--force", "--threads", "1"], more].concat())
    }

    /// Trains with `--peft-option` for each of `options` and `more`; what the folder says.
    fn config(&self, options: &[&str], more: &[&str]) -> Value {
        let set: Vec<&str> = options.iter().flat_map(|option| ["--peft-option", option]).collect();
        let ran = self.train("a", &[&set[..], more].concat());
        assert_eq!(ran.code, 0, "{options:?} {more:?}: {}", ran.err);
        // What was written is read again.
        let (data, out) = (self.path("train.jsonl"), self.path("a"));
        lowrank_ok(&["eval", "--model", &self.model, "--adapter", &out, "--data", &data]);
        serde_json::from_slice(&fs::read(Path::new(&out).join("adapter_config.json")).unwrap()).unwrap()
    }

    /// Names and shapes of the tensors of the last run.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let bytes = fs::read(self.path("a/adapter_model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut list: Vec<_> =
            file.tensors().into_iter().map(|(name, view)| (name, view.shape().to_vec())).collect();
        list.sort();
        list
    }

    fn refuses(&self, args: &[&str], words: &[&str]) {
        let ran = self.train("refused", args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.err);
        for word in words {
            assert!(ran.err.contains(word), "{args:?}: no {word:?} in {}", ran.err);
        }
        assert!(!Path::new(&self.path("refused/adapter_config.json")).exists(), "{args:?}");
    }
}

#[test]
fn known_fields_go_to_their_options() {
    let place = Place::new();
    let options = [
        "r=3",
        "lora_alpha=6",
        "target_modules=q_proj,up_proj",
        "layers_to_transform=[1]",
        "layers_pattern=layers",
        r#"rank_pattern={"up_proj": 5}"#,
        r#"alpha_pattern={"up_proj": 2}"#,
        "use_rslora=true",
        "bias=none",
        "init_lora_weights=gaussian",
        "fan_in_fan_out=false",
        "task_type=CAUSAL_LM",
    ];
    let config = place.config(&options, &[]);
    for (field, want) in [
        ("r", json!(3)),
        ("lora_alpha", json!(6.0)),
        ("layers_to_transform", json!([1])),
        ("layers_pattern", json!(["layers"])),
        ("rank_pattern", json!({"up_proj": 5})),
        ("alpha_pattern", json!({"up_proj": 2})),
        ("use_rslora", json!(true)),
        ("init_lora_weights", json!("gaussian")),
    ] {
        assert_eq!(config[field], want, "{field}");
    }
    let ranks: Vec<(String, usize)> = place
        .tensors()
        .into_iter()
        .filter(|(name, _)| name.contains("lora_A"))
        .map(|(name, shape)| (name.replace("base_model.model.model.layers.", ""), shape[0]))
        .collect();
    let want = [("1.mlp.up_proj.lora_A.weight", 5), ("1.self_attn.q_proj.lora_A.weight", 3)];
    assert_eq!(ranks, want.map(|(name, r)| (name.to_owned(), r)));

    let config = place.config(&["exclude_modules=v_proj", "modules_to_save=norm", "use_dora=true"], &[]);
    assert_eq!((&config["exclude_modules"], &config["use_dora"]), (&json!(["v_proj"]), &json!(true)));
    let names: Vec<String> = place.tensors().into_iter().map(|(name, _)| name).collect();
    assert!(names.iter().any(|name| name.ends_with("model.norm.weight")), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("v_proj")), "{names:?}");
}

/// PEFT reads no configuration with layers and a string for the modules.
#[test]
fn some_layers_of_all_linear_are_named() {
    let place = Place::new();
    let config = place.config(&[], &["--target-modules", "all-linear", "--layers-to-transform", "0"]);
    let names = config["target_modules"].as_array().unwrap();
    assert!(names.len() == 7 && names.contains(&json!("model.layers.0.mlp.down_proj")), "{names:?}");
    assert_eq!(config["layers_to_transform"], Value::Null);
    assert_eq!(place.tensors().len(), 14);
    let regex = ["--target-modules", r".*\.q_proj", "--layers-to-transform", "0"];
    place.refuses(&regex, &["--layers-to-transform goes with names"]);
}

#[test]
fn fields_of_other_methods_go_to_theirs() {
    let place = Place::new();
    let config = place.config(&["alpha=3", "rank_dropout=0.5"], &["--method", "loha"]);
    assert_eq!((&config["alpha"], &config["rank_dropout"]), (&json!(3), &json!(0.5)));
    let config = place.config(&["d_initial=0.5", "r=4"], &["--method", "vera", "--lora-dropout", "0.25"]);
    assert_eq!((&config["d_initial"], &config["vera_dropout"]), (&json!(0.5), &json!(0.25)));
    let config = place.config(&["target_r=2", "init_r=3", "peft_type=adalora"], &[]);
    assert_eq!((&config["target_r"], &config["init_r"]), (&json!(2), &json!(3)));
    let config = place.config(&[r#"eva_config={"rho": 1.0}"#, "r=2"], &["--init-lora-weights", "eva"]);
    assert_eq!(config["peft_type"], "LORA");
    let layers = ["--method", "adapter-d", "--layers-to-transform", "1"];
    let config = place.config(&["drop_layers=1"], &layers);
    assert_eq!(config["layers_to_transform"], json!([1]));
}

#[test]
fn what_nothing_acts_on_is_refused() {
    let place = Place::new();
    let option = |option: &str, words: &[&str]| place.refuses(&["--peft-option", option], words);
    option("layer_to_transform=[0]", &["LORA has no field", "did you mean layers_to_transform?"]);
    option("magic=1", &["LORA has no field `magic`"]);
    option("learning_rate=1", &["no field"]);
    option("target_r=4", &["target_r` is a field of ADALORA, not of LORA"]);
    option("alpha=4", &["alpha` is a field of LOHA"]);
    option("use_qalora=true", &["use_qalora` is not supported"]);
    option(r#"target_parameters=["w"]"#, &["target_parameters` is not supported"]);
    option(r#"kasa_config={"beta": 1}"#, &["not supported"]);
    option("inference_mode=false", &["follows from"]);
    option("fan_in_fan_out=true", &["fan_in_fan_out is true", "false here"]);
    option("task_type=SEQ_CLS", &["CAUSAL_LM\" here"]);
    option("r=zwei", &["--r: must be a whole number"]);
    option("use_rslora=True", &["not true or false"]);
    option("layers_to_transform=[7]", &["there is no layer 7; this model has layers 0 to 1"]);
    option("layers_pattern=blocks", &["layers_pattern needs layers_to_transform"]);
    option("exclude_modules=c_attn", &["exclude_modules", "c_attn", "q_proj"]);
    option(r#"rank_pattern={"c_attn": 4}"#, &["rank_pattern", "c_attn"]);
    option(r#"alpha_pattern={"lm_head": 4}"#, &["alpha_pattern", "lm_head"]);
    option(r#"eva_config={"rho": 2}"#, &["is for --init-lora-weights eva"]);
    place.refuses(
        &["--peft-option", r#"eva_config={"whitten": true}"#, "--init-lora-weights", "eva"],
        &["unknown field \"whitten\"", "did you mean whiten?"],
    );
    place.refuses(&["--r", "4", "--peft-option", "r=4"], &["--r is given twice"]);

    let method = |args: &[&str], words: &[&str]| place.refuses(&[&["--method"], args].concat(), words);
    method(&["ia3", "--r", "4"], &["--r does nothing for IA3"]);
    method(&["ia3", "--layers-to-transform", "0"], &["--layers-to-transform does nothing"]);
    method(&["full", "--lora-dropout", "0.1"], &["--lora-dropout does nothing for FULL"]);
    method(&["loha", "--use-rslora"], &["--use-rslora"]);
    method(&["vera", "--exclude-modules", "v_proj"], &["--exclude-modules"]);
    method(&["vera", "--use-dora"], &["--use-dora is a field of LORA"]);
    method(&["adalora", "--r", "4"], &["--r does nothing"]);
    method(&["adalora", "--rank-pattern", "q_proj=4"], &["--rank-pattern"]);
    method(&["prompt", "--modules-to-save", "lm_head"], &["--modules-to-save"]);
    method(&["prompt", "--peft-option", "prompt_tuning_init=TEXT"], &["SAMPLE_VOCAB or RANDOM"]);
    method(&["prompt", "--peft-option", "token_dim=7"], &["token_dim` follows"]);
    method(&["prefix", "--peft-option", "prefix_projection=true"], &["prefix_projection"]);
    method(&["lokr", "--peft-option", "init_weights=false"], &["init_weights is false"]);
    method(&["lokr", "--peft-option", "decompose_both=True"], &["decompose_both"]);
    method(&["top1", "--layers-to-transform", "0"], &["--layers-to-transform"]);
    method(&["ia3", "--lora-fa"], &["--lora-fa is for LoRA on linear layers"]);
    place.refuses(&["--lora-fa", "--use-dora"], &["--lora-fa is for LoRA"]);
    place.refuses(&["--lora-fa", "--target-modules", "embed_tokens"], &["--lora-fa is for LoRA"]);
    place.refuses(&["--lora-fa", "--loraplus-lr-ratio", "4"], &["two optimizers"]);
    place.refuses(&["--loraplus-lr-embedding", "0.1"], &["give --loraplus-lr-ratio"]);
    place.refuses(
        &["--loraplus-lr-ratio", "4", "--learning-rate", "0"],
        &["--learning-rate must be a number above 0"],
    );
    place.refuses(&["--use-dora", "--enable-lora", "true,false"], &["enable_lora with use_dora"]);
}

#[test]
fn an_adapter_to_start_from_decides() {
    let place = Place::new();
    place.config(&[], &["--r", "4", "--target-modules", "v_proj,q_proj"]);
    let from = place.path("a");
    for (args, words) in [
        (&["--r", "2"][..], &["--r is 2", "has 4"][..]),
        (&["--use-dora"], &["--use-dora"]),
        (&["--method", "ia3"], &["--peft-type is \"IA3\""]),
        (&["--peft-option", "rank_pattern={\"q_proj\": 2}"], &["--rank-pattern"]),
    ] {
        place.refuses(&[args, &["--init-adapter", &from]].concat(), words);
    }
    let same = ["--init-adapter", &from, "--r", "4", "--target-modules", "q_proj,v_proj"];
    assert_eq!(place.train("b", &same).code, 0);
}
