//! Every recipe is a configuration that `lowrank train --config` takes.

use std::path::Path;

use lowrank::TrainOptions;

#[test]
fn recipes_are_configurations() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/recipes");
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let table = text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let options = TrainOptions::from_table(table).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        options.check().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        options.read_options().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(text.starts_with("# ") && text.contains("# Source: "), "{}: says where from", path.display());
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert_eq!(options.out, Path::new("runs").join(name), "a folder of its own");
        seen += 1;
    }
    assert_eq!(
        seen, 36,
        "eight GLUE tasks on three models, three NLG tasks on two models, three tasks of GPT-3 at two ranks"
    );
}
