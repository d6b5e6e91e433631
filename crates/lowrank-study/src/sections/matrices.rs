//! Which matrices under one budget (the paper's table 5), and which rank (table 6).

use super::inputs::Study;
use crate::report::{Cell, Section, Table};
use crate::run::Role;
use crate::spec::{Matrices, Ranks};

pub(super) fn choices(study: &Study<'_>, matrices: &Matrices) -> Section {
    let rows = matrices.choices.iter().enumerate().map(|(i, choice)| {
        let role = Role::Matrices(i);
        let first = study.with(&role).next();
        let r = first.and_then(|(run, _)| run.options.get("r")).and_then(toml::Value::as_integer);
        vec![
            Cell::text(choice.join(", ")),
            r.map_or_else(Cell::none, |r| Cell::count(r as u64)),
            first.map_or_else(Cell::none, |(_, result)| Cell::count(result.parameters)),
            study.metric(&role),
        ]
    });
    let table = Table {
        id: "matrices".into(),
        title: "The same number of parameters spent on different matrices.".into(),
        columns: ["matrices", "r", "trainable", &study.spec.metric].map(Into::into).to_vec(),
        rows: rows.collect(),
        folded: false,
    };
    let text = vec![
        "In the paper (table 5) a smaller rank on more kinds of matrices beats a larger one on a single kind; all on \
         the query or key alone is the weakest."
            .into(),
    ];
    Section { title: "Which matrices".into(), text, tables: vec![table], ..Section::default() }
}

pub(super) fn ranks(study: &Study<'_>, ranks: &Ranks) -> Section {
    let count = ranks.choices.len().max(1);
    let rows = (0..count).map(|i| {
        let name = ranks.choices.get(i).map_or_else(|| "the training's".to_owned(), |c| c.join(", "));
        let mut row = vec![Cell::text(name)];
        row.extend(ranks.r.iter().map(|&r| study.metric(&Role::Rank(i, r))));
        row
    });
    let mut columns = vec!["matrices".to_owned()];
    columns.extend(ranks.r.iter().map(|r| format!("r = {r}")));
    let table = Table {
        id: "ranks".into(),
        title: format!("{} at each rank, α = 2r throughout.", study.spec.metric),
        columns,
        rows: rows.collect(),
        folded: false,
    };
    let text = vec!["In the paper (table 6) a rank as small as one is nearly as good as 64.".into()];
    Section { title: "Which rank".into(), text, tables: vec![table], ..Section::default() }
}
