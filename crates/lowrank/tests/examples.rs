//! The programs in `examples/` that use the library, on a tiny model, and the page that shows them.

mod common;

#[allow(dead_code)]
#[path = "../examples/compose.rs"]
mod compose;
#[allow(dead_code)]
#[path = "../examples/generate.rs"]
mod generate;
#[allow(dead_code)]
#[path = "../examples/merge.rs"]
mod merge;
#[allow(dead_code)]
#[path = "../examples/train.rs"]
mod train;

use std::path::Path;

use common::{tiny_data, tiny_model};
use lowrank::Session;

#[test]
fn trains_generates_merges_and_composes() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (model, data) = (tiny_model(dir.path()), path("train.jsonl"));
    tiny_data(Path::new(&data), 24);
    let (one, two, both) = (path("one"), path("two"), path("both"));
    train::train(&model, &data, &one).unwrap();
    train::train(&model, &data, &two).unwrap();
    let text = generate::generate(&model, &one, "red and").unwrap();
    let base = Session::open(&model).unwrap();
    assert_ne!(text, base.generate("red and").unwrap(), "the adapter counts");

    // What rounding the merged weights costs shows far on.
    let start = |text: String| text.chars().take(10).collect::<String>();
    merge::merge(&model, &one, &path("merged")).unwrap();
    let merged = Session::open(&path("merged")).unwrap();
    assert_eq!(start(merged.generate("red and").unwrap()), start(text.clone()));
    let adapted = base.with_adapter(&one).unwrap();
    assert_eq!(start(merged.chat("red").unwrap()), start(adapted.chat("red").unwrap()));

    // Half of each of two that are the same is the same.
    compose::compose(&one, &two, &both).unwrap();
    let both = Session::open(&model).unwrap().with_adapter(&both).unwrap();
    assert_eq!(start(both.generate("red and").unwrap()), start(text));
}

#[test]
fn the_page_shows_them_and_they_are_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("../../docs/start/rust.md")).unwrap();
    for name in ["train", "generate", "merge", "compose"] {
        let text = std::fs::read_to_string(root.join(format!("examples/{name}.rs"))).unwrap();
        assert!(text.lines().count() <= 40, "examples/{name}.rs is longer than 40 lines");
        assert!(page.contains(&text), "docs/start/rust.md does not show examples/{name}.rs as it is");
    }
}
