//! Names inside files stay names: whatever a tensor, label, shard, component, run or model is called, nothing is written
//! outside the output.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{tiny_data, tiny_model};
use lowrank::tools::Tensor;
use lowrank::tools::tensor::{self, Named};
use serde_json::json;

/// A folder in which everything happens; outputs go to `out`.
struct Place {
    dir: tempfile::TempDir,
    model: String,
    data: String,
    succeeded: BTreeSet<String>,
}

fn tree(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            tree(&path, found);
        }
        found.insert(path);
    }
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Outputs and the working folder are two levels deep: `../../x` stays in sight.
        for folder in ["a/out", "a/cwd"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let (model, data) = (tiny_model(dir.path()), dir.path().join("train.jsonl"));
        tiny_data(&data, 12);
        Self { model, data: data.to_str().unwrap().to_owned(), dir, succeeded: BTreeSet::new() }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn out(&self, name: &str) -> String {
        self.path(&format!("a/out/{name}"))
    }

    /// Names that would be paths elsewhere.
    fn hostile(&self) -> Vec<String> {
        let absolute = self.path("escaped");
        [
            "../escaped",
            "../../escaped",
            &absolute,
            "a/../../../escaped",
            "C:\\escaped",
            "..\\..\\escaped",
            "nul\0escaped",
            "line\nescaped",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// Everything but the outputs.
    fn others(&self) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        tree(self.dir.path(), &mut found);
        let out = self.dir.path().join("a/out");
        found.retain(|path| !path.starts_with(&out));
        found
    }

    /// Runs a command, which may refuse, and looks around. What it wrote is removed.
    fn run(&mut self, args: &[&str]) {
        let before = self.others();
        let mut command = Command::new(env!("CARGO_BIN_EXE_lowrank"));
        let ran = command.args(args).current_dir(self.path("a/cwd")).output().unwrap();
        let err = String::from_utf8_lossy(&ran.stderr);
        assert!((0..=2).contains(&ran.status.code().unwrap_or(-1)), "{args:?}: {err}");
        assert_eq!(self.others(), before, "{args:?}: {err}");
        let mut written = BTreeSet::new();
        tree(&self.dir.path().join("a/out"), &mut written);
        let escaped = written.iter().find(|path| path.to_string_lossy().contains("escaped"));
        assert_eq!(escaped, None, "{args:?}");
        if ran.status.success() {
            self.succeeded.insert(args[0].to_owned());
        }
        fs::remove_dir_all(self.out("")).unwrap();
        fs::create_dir(self.out("")).unwrap();
    }
}

fn tensors(names: &[(String, [usize; 2])]) -> Named {
    let tensor = |(name, [rows, cols]): &(String, [usize; 2])| {
        (name.clone(), Tensor::new(vec![*rows, *cols], vec![0.5; rows * cols]))
    };
    names.iter().map(tensor).collect()
}

#[test]
fn names_of_adapters_write_nothing_outside() {
    let mut place = Place::new();
    let (folder, file) = (place.path("adapter"), place.path("pipeline.safetensors"));
    fs::create_dir(&folder).unwrap();
    for name in place.hostile() {
        let a = format!("base_model.model.{name}.lora_A.weight");
        let b = format!("base_model.model.{name}.lora_B.weight");
        let named = tensors(&[(a, [2, 8]), (b, [4, 2])]);
        tensor::write(&Path::new(&folder).join("adapter_model.safetensors"), &named, &[]).unwrap();
        let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [name],
            "base_model_name_or_path": name, "task_type": name, "revision": name});
        fs::write(Path::new(&folder).join("adapter_config.json"), config.to_string()).unwrap();
        let task = json!({"task": "classification", "labels": [name, "b"]});
        fs::write(Path::new(&folder).join("task.json"), task.to_string()).unwrap();
        // A file with the models of a pipeline, by a hostile component and by a hostile layer.
        let model = place.model.clone();
        for (prefix, layer) in [(&name[..], "mid.attn.to_q"), ("unet", &name[..])] {
            let half = |end: &str| format!("{prefix}.{layer}.{end}.weight");
            let named = tensors(&[(half("lora_A"), [2, 8]), (half("lora_B"), [4, 2])]);
            tensor::write(Path::new(&file), &named, &[]).unwrap();
            for source in [&folder[..], &file] {
                let (out, gguf) = (place.out("x"), place.out("x.gguf"));
                for to in ["peft", "mlx", "kohya", "diffusers", "loralib"] {
                    let file = place.out(if to == "loralib" { "x.bin" } else { "x.safetensors" });
                    let out = if ["peft", "mlx"].contains(&to) { &out } else { &file };
                    place.run(&["convert", source, "--to", to, "--out", out]);
                }
                place.run(&[
                    "convert",
                    source,
                    "--to",
                    "peft",
                    "--component",
                    &name.replace('\0', ""),
                    "--out",
                    &out,
                ]);
                place.run(&["convert", source, "--to", "gguf", "--base", &model, "--out", &gguf]);
                place.run(&["prune", source, "--density", "0.5", "--out", &out]);
                place.run(&["resize", source, "--rank", "1", "--out", &out]);
                place.run(&["dtype", source, "--to", "f16", "--out", &out]);
                place.run(&["rename", source, "--replace", "e", "--with", "../../e", "--out", &out]);
                place.run(&[
                    "compose",
                    "--adapter",
                    source,
                    "--adapter",
                    source,
                    "--how",
                    "linear",
                    "--out",
                    &out,
                ]);
            }
        }
    }
    for command in ["convert", "prune", "resize", "dtype", "rename", "compose"] {
        assert!(place.succeeded.contains(command), "{command} never wrote: {:?}", place.succeeded);
    }
}

#[test]
fn names_of_models_and_data_write_nothing_outside() {
    let mut place = Place::new();
    let (model, data, adapter) = (place.model.clone(), place.data.clone(), place.path("trained"));
    let train = |place: &Place, out: &str, more: &[&str]| {
        let mut args = ["train", "--model", &place.model, "--data", &data, "--out", out].to_vec();
        args.extend(["--r", "2", "--batch-size", "4", "--threads", "1", "--max-steps", "1"]);
        args.extend(more);
        args.into_iter().map(str::to_owned).collect::<Vec<String>>()
    };
    let first = train(&place, &adapter, &[]);
    assert!(Command::new(env!("CARGO_BIN_EXE_lowrank")).args(&first).output().unwrap().status.success());

    let config = fs::read_to_string(Path::new(&model).join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    for name in place.hostile() {
        // The model's own names, its shards and its generation settings.
        let mut odd = config.clone();
        for field in ["_name_or_path", "transformers_version", "tokenizer_class"] {
            odd[field] = json!(name);
        }
        odd["architectures"] = json!([name]);
        fs::write(Path::new(&model).join("config.json"), odd.to_string()).unwrap();
        let card = fs::read_to_string(Path::new(&adapter).join("adapter_config.json")).unwrap();
        let mut card: serde_json::Value = serde_json::from_str(&card).unwrap();
        card["base_model_name_or_path"] = json!(name);
        fs::write(Path::new(&adapter).join("adapter_config.json"), card.to_string()).unwrap();
        let (out, gguf) = (place.out("x"), place.out("x.gguf"));
        place.run(&["merge", "--model", &model, "--adapter", &adapter, "--out", &out]);
        place.run(&["merge", "--model", &model, "--adapter", &adapter, "--out", &gguf]);
        place.run(&["extract", "--model", &model, "--tuned", &model, "--rank", "1", "--out", &out]);
        place.run(&["report", &adapter, "--out", &out]);

        // Labels are the columns of predictions and the names of classes.
        let rows = place.path("rows.jsonl");
        let row = |label: &str| json!({"text": "red", "label": label}).to_string();
        fs::write(&rows, [row(&name), row("b"), row(&name), row("b")].join("\n")).unwrap();
        let labelled =
            train(&place, &out, &["--data", &rows, "--task", "classification", "--save-steps", "1"]);
        let labelled: Vec<&str> = labelled
            .iter()
            .enumerate()
            .filter(|(i, _)| ![3, 4].contains(i))
            .map(|(_, arg)| &arg[..])
            .collect();
        place.run(&labelled);

        // A study whose name, methods and modules are paths.
        if !name.contains('\0') {
            let spec = place.path("study.toml");
            let text = format!(
                "name = {name:?}\nout = {out:?}\n[train]\nmodel = {model:?}\ndata = {data:?}\neval-data = {data:?}\n\
                 max-steps = 1\nbatch-size = 4\nthreads = 1\ntarget-modules = [\"q_proj\"]\n[[method]]\nname = {name:?}\n\
                 r = 1\n[matrices]\nparameters = 64\nchoices = [[\"q_proj\"]]\n"
            );
            fs::write(&spec, text).unwrap();
            place.run(&["study", &spec]);
        }

        // An index that names a shard elsewhere.
        let whole = Path::new(&model).join("model.safetensors");
        let (aside, index) = (place.dir.path().join("kept"), whole.with_extension("safetensors.index.json"));
        fs::rename(&whole, &aside).unwrap();
        let map = json!({"metadata": {"total_size": 1}, "weight_map": {"model.embed_tokens.weight": name, name.clone(): "a"}});
        fs::write(&index, map.to_string()).unwrap();
        place.run(&["merge", "--model", &model, "--adapter", &adapter, "--out", &out]);
        fs::remove_file(index).unwrap();
        fs::rename(aside, whole).unwrap();
    }
    for command in ["merge", "report", "train", "study"] {
        assert!(place.succeeded.contains(command), "{command} never wrote: {:?}", place.succeeded);
    }
}
