//! `docs/models.md` names every model that is supported, and no other.

use std::collections::BTreeSet;

/// The code spans of column `column` of all tables whose head has a `model_type`.
fn spans(page: &str, column: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut at = None;
    for line in page.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if cells.len() < 3 {
            at = None;
            continue;
        }
        if cells.contains(&"`model_type`") {
            at = cells.iter().position(|cell| *cell == column);
            continue;
        }
        let Some(cell) = at.and_then(|at| cells.get(at)) else { continue };
        found.extend(cell.split('`').skip(1).step_by(2).map(str::to_owned));
    }
    found
}

#[test]
fn the_page_of_models_has_them_all() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/models.md");
    let page = std::fs::read_to_string(path).unwrap();
    let known = |names: Vec<&'static str>| names.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(spans(&page, "`model_type`"), known(lowrank::models::model_types()));
    assert_eq!(spans(&page, "GGUF"), known(lowrank::models::gguf_architectures()));
    // What a text model may be is a model itself.
    assert!(spans(&page, "text model").is_subset(&known(lowrank::models::model_types())));
}
