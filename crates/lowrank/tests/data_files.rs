//! Several data files, their weights, and rows of other trainers, through the command.

mod common;

use std::fs;

use common::{lowrank, lowrank_ok, tiny_data, tiny_model};

const ALPACA: &str = r#"[
    {"instruction": "red", "input": "gold", "output": "blue"},
    {"instruction": "grey", "output": "green"}
]"#;

#[test]
fn several_files_make_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (model, a, b) = (tiny_model(dir.path()), path("a.jsonl"), path("b.json"));
    tiny_data(dir.path().join("a.jsonl").as_path(), 20);
    fs::write(&b, ALPACA).unwrap();
    let (half, twice) = (format!("{a}:0.5"), format!("{b}:2"));
    let run = |command: &str, out: &str, data: &[&str], more: &[&str]| {
        let mut args = vec![command, "--model", &model, "--out", out, "--threads", "1", "--r", "2"];
        args.extend(["--batch-size", "4", "--max-seq-len", "64"]);
        data.iter().for_each(|file| args.extend(["--data", file]));
        lowrank(&[&args[..], more].concat())
    };
    let out = path("out");
    let trained = run("train", &out, &[&half, &twice], &["--max-steps", "3"]);
    assert_eq!(trained.code, 0, "{}", trained.err);
    for said in ["14 examples", "a.jsonl: 10 of 20 examples", "b.json: 4 of 2 examples"] {
        assert!(trained.err.contains(said), "{said}: {}", trained.err);
    }
    assert!(trained.err.contains("Alpaca's rows, as turns of the chat template"), "{}", trained.err);
    let card = fs::read_to_string(dir.path().join("out/README.md")).unwrap();
    assert!(card.contains("| a.jsonl:0.5, b.json:2: 14 examples"), "{card}");
    // The same files go on, others do not.
    assert_eq!(run("train", &out, &[&half, &twice], &["--max-steps", "5", "--resume"]).code, 0);
    let other = run("train", &out, &[&a, &twice], &["--max-steps", "6", "--resume"]);
    assert!(other.code == 2 && other.err.contains("`data`") || other.err.contains("data"), "{}", other.err);
    assert_ne!(other.code, 0);
    let plan = run("plan", &path("x"), &[&half, &twice], &[]);
    assert!(plan.code == 0 && plan.out.contains("4 an epoch"), "{}{}", plan.out, plan.err);
    // In TOML a list.
    let (config, listed) = (path("run.toml"), path("listed"));
    let text = format!("model = {model:?}\ndata = [{half:?}, {twice:?}]\nout = {listed:?}\nmax_steps = 5\n");
    let rest = "threads = 1\nr = 2\nbatch_size = 4\nmax_seq_len = 64\n";
    fs::write(&config, text + rest).unwrap();
    lowrank_ok(&["train", "--config", &config]);
    let adapter = |name: &str| fs::read(dir.path().join(name).join("adapter_model.safetensors")).unwrap();
    let straight = run("train", &path("straight"), &[&half, &twice], &["--max-steps", "5"]);
    assert_eq!(straight.code, 0, "{}", straight.err);
    assert!(adapter("listed") == adapter("straight"));
    let eval = ["eval", "--model", &model, "--adapter", &listed, "--data", &a, "--data", &b, "--json"];
    assert!(lowrank_ok(&eval).err.contains("22 examples"));
    // Loss on prompts has more labels.
    let all = run("train", &path("all"), &[&a], &["--max-steps", "1", "--train-on-inputs"]);
    assert_eq!(all.code, 0, "{}", all.err);
    let wrong = run("train", &path("y"), &[&format!("{a}:-1")], &[]);
    assert!(wrong.code == 2 && wrong.err.contains("the weight"), "{}", wrong.err);
    let output = run("train", dir.path().to_str().unwrap(), &[&a, &b], &["--log-json", &b]);
    assert_ne!(output.code, 0);
    assert_eq!(fs::read_to_string(&b).unwrap(), ALPACA);
}
