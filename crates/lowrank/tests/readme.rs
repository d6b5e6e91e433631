//! The commands of `README.md` and of the first pages of the book, as they stand there, on tiny models under the names they
//! use; every command line of all documentation is one that the command takes, and `docs/commands` is what its help says.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{WORDS, lowrank_ok, tiny_bert, tiny_data, tiny_model, words};

/// Pages whose commands run, each in a folder of its own.
const RUN: [&str; 5] =
    ["README.md", "docs/start/laptop.md", "docs/start/trl-peft.md", "docs/chat.md", "docs/text.md"];

/// Tiny models and data under the names that the pages use.
fn prepare(dir: &Path) {
    fs::rename(tiny_model(dir), dir.join("model.gguf")).unwrap();
    fs::rename(tiny_bert(dir), dir.join("minilm")).unwrap();
    tiny_data(&dir.join("train.jsonl"), 12);
    tiny_data(&dir.join("eval.jsonl"), 3);
    fs::write(dir.join("texts.jsonl"), "{\"text\": \"red and blue\"}\n".repeat(4)).unwrap();
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
}

#[test]
fn the_commands_run() {
    for page in RUN {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path();
        prepare(dir);
        let lines = command_lines(&fs::read_to_string(root().join(page)).unwrap());
        assert!(lines.len() >= 3, "{page}: {lines:?}");
        for line in &lines {
            let args = arguments(line);
            // GGUF has no place for a tokenizer of single characters.
            if args[1] == "merge" && line.contains(".gguf --dtype") {
                continue;
            }
            let mut command = Command::new(env!("CARGO_BIN_EXE_lowrank"));
            let ran = command.args(&args[1..]).current_dir(dir).stdin(Stdio::null()).output().unwrap();
            assert!(ran.status.success(), "{page}: {line}\n{}", String::from_utf8_lossy(&ran.stderr));
        }
        let made = |name: &str| dir.join(name).join("adapter_model.safetensors").exists();
        for line in lines.iter().filter(|line| line.starts_with("lowrank train ")) {
            let args = words(line);
            let out = args.iter().position(|word| word == "--out" || word == "--output-dir").unwrap();
            assert!(made(&args[out + 1]), "{page}: {line}");
        }
        if page == "docs/text.md" {
            let texts = fs::read_to_string(dir.join("texts.txt")).unwrap();
            assert_eq!(texts.lines().count(), 2, "one text for each prompt");
        }
    }
}

#[test]
fn the_table_of_other_trainers_has_every_alias() {
    let page = fs::read_to_string(root().join("docs/from-other-trainers.md")).unwrap();
    for (name, aliases) in lowrank::ALIASES {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/from-other-trainers.md has no row `{name}`"));
        for alias in *aliases {
            assert!(
                row.contains(&format!("`{alias}`")),
                "docs/from-other-trainers.md: `{name}` lacks `{alias}`"
            );
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The Markdown files below `dir`.
fn pages(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            pages(&path, found);
        } else if path.extension().is_some_and(|end| end == "md") {
            found.push(path);
        }
    }
}

/// The `lowrank` command lines in the `sh` blocks of a page.
fn command_lines(text: &str) -> Vec<String> {
    let text = text.replace("\\\n", "");
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            inside = !inside && language == "sh";
        } else if inside && line.trim_start().starts_with("lowrank ") {
            found.push(line.trim_start().to_owned());
        }
    }
    found
}

/// The words of a command line up to a comment, a pipe or a redirection. Single quotes hold words together too.
fn arguments(line: &str) -> Vec<String> {
    let words = words(&line.replace('\'', "\"")).into_iter().filter(|word| !word.is_empty());
    words.take_while(|word| !word.starts_with('#') && !["|", ">", "<"].contains(&word.as_str())).collect()
}

#[test]
fn every_command_line_is_one_that_the_command_takes() {
    let mut found = vec![root().join("README.md"), root().join("python/README.md")];
    pages(&root().join("docs"), &mut found);
    pages(&root().join("bench"), &mut found);
    let mut count = 0;
    for page in found {
        for line in command_lines(&fs::read_to_string(&page).unwrap()) {
            let mut args = arguments(&line);
            if args.get(2).is_some_and(|word| word == "...") {
                args.remove(2);
            }
            // Asked for help last, the command reads all options before it, and does nothing.
            let ran =
                Command::new(env!("CARGO_BIN_EXE_lowrank")).args(&args[1..]).arg("--help").output().unwrap();
            let error = String::from_utf8_lossy(&ran.stderr);
            assert!(ran.status.success(), "{}: {line}\n{error}", page.display());
            count += 1;
        }
    }
    assert!(count > 60, "{count} command lines");
}

#[test]
fn the_pages_of_the_commands_are_what_their_help_says() {
    let listing = lowrank_ok(&["--help"]).out;
    let commands = listing.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let names: Vec<&str> = commands
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(names.len() > 15, "{names:?}");
    let advice = "run `python3 tools/book.py commands target/release/lowrank`";
    let index = fs::read_to_string(root().join("docs/commands/README.md")).unwrap();
    for name in &names {
        assert!(index.contains(&format!("({name}.md)")), "docs/commands has no page {name}: {advice}");
        let page = root().join("docs/commands").join(name).with_extension("md");
        let page = fs::read_to_string(page).unwrap_or_default().replace("\\<", "<");
        let help = lowrank_ok(&[name, "--help"]).out;
        for line in help.lines().map(|line| line.trim().trim_end_matches(':')) {
            assert!(page.contains(line), "docs/commands/{name}.md lacks {line:?}: {advice}");
        }
        let options =
            |text: &str, mark: &str| text.lines().filter(|line| line.trim().starts_with(mark)).count();
        let (there, said) = (options(&page, "- `-"), options(&help, "-"));
        assert_eq!(there, said, "options in docs/commands/{name}.md: {advice}");
    }
    assert_eq!(fs::read_dir(root().join("docs/commands")).unwrap().count(), names.len() + 1, "{advice}");
}
