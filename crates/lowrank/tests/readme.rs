//! The commands of `README.md`, as they stand there, on tiny models under the names it uses.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{WORDS, tiny_bert, tiny_data, tiny_model, words};

#[test]
fn the_commands_run() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    fs::rename(tiny_model(dir), dir.join("model.gguf")).unwrap();
    fs::rename(tiny_bert(dir), dir.join("minilm")).unwrap();
    tiny_data(&dir.join("train.jsonl"), 12);
    tiny_data(&dir.join("eval.jsonl"), 3);
    let restaurants = "mr,ref\n\"name[Alimentum], area[centre]\",Alimentum is central.\n\
                       \"name[Alimentum], area[centre]\",A place in the centre.\nname[Zizzi],Zizzi is a pub.\n";
    fs::write(dir.join("e2e.csv"), restaurants).unwrap();
    fs::write(dir.join("testset_w_refs.csv"), restaurants).unwrap();
    fs::create_dir(dir.join("sst2")).unwrap();
    let reviews: String = WORDS
        .iter()
        .take(6)
        .enumerate()
        .map(|(i, word)| format!("the film was {word}\t{}\n", i / 3))
        .collect();
    for name in ["train.tsv", "dev.tsv"] {
        fs::write(dir.join("sst2").join(name), format!("sentence\tlabel\n{reviews}")).unwrap();
    }

    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    let readme = readme.replace("\\\n", "");
    let commands: Vec<&str> = readme.lines().filter(|line| line.starts_with("lowrank ")).collect();
    assert!(commands.len() >= 5, "{commands:?}");
    for line in commands {
        let args: Vec<String> = words(line).into_iter().filter(|word| !word.is_empty()).collect();
        let ran =
            Command::new(env!("CARGO_BIN_EXE_lowrank")).args(&args[1..]).current_dir(dir).output().unwrap();
        assert!(ran.status.success(), "{line}\n{}", String::from_utf8_lossy(&ran.stderr));
    }
    for made in ["adapter", "adapter2", "sentiment"] {
        assert!(dir.join(made).join("adapter_model.safetensors").exists(), "{made}");
    }
    assert_eq!(
        fs::read_to_string(dir.join("texts.txt")).unwrap().lines().count(),
        2,
        "one text for each prompt"
    );
}
