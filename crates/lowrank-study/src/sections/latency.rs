//! Latency of inference (the paper's table 1).

use lowrank_adapters::AdapterSet;
use lowrank_models::Model;

use super::inputs::Study;
use crate::error::Result;
use crate::latency::time_forward;
use crate::report::{Cell, Section, Table};
use crate::run::Role;
use crate::spec::Latency;

pub(super) fn section(study: &Study<'_>, what: &Latency) -> Result<Section> {
    // Adapters as they are (not merged), each once: the first run of each method.
    let mut subjects: Vec<(String, AdapterSet)> =
        vec![("base, or merged into it".into(), AdapterSet::none())];
    for (i, method) in study.spec.method.iter().enumerate() {
        if let Some((run, _)) = study.with(&Role::Method(i)).next() {
            let dir = run.dir(&study.spec.out).join("adapter");
            subjects.push((method.name.clone(), AdapterSet::load(&dir, study.model.sites())?));
        }
    }
    let models: Vec<(&dyn Model, &AdapterSet)> = subjects.iter().map(|(_, set)| (study.model, set)).collect();
    let mut rows: Vec<Vec<Cell>> = subjects.iter().map(|(name, _)| vec![Cell::text(name)]).collect();
    let mut columns = vec!["model".to_owned()];
    for &batch in &what.batch_sizes {
        for &length in &what.lengths {
            columns.push(format!("{batch} × {length}"));
            let timings = time_forward(study.device, &models, batch, length, what.repeats);
            let base = timings[0].median;
            for (row, timing) in rows.iter_mut().zip(&timings) {
                let more = 100.0 * (timing.median / base - 1.0);
                let ms = 1e3 * timing.median;
                let text = format!("{ms:.1} ms ({more:+.1} %)").replace('-', "−");
                row.push(Cell::number(ms, text));
            }
        }
    }
    let table = Table {
        id: "latency".into(),
        title: format!(
            "A forward pass of sequences × tokens up to the next token's logits: median of {} in turns.",
            what.repeats
        ),
        columns,
        rows,
        folded: false,
    };
    let text = vec![
        "A merged adapter is part of the base's weights, so that its model has the base's latency by construction; \
         the other rows are adapters left beside the base. The paper's table 1 finds 2 to 30 % more for adapter layers \
         at small batches."
            .into(),
    ];
    Ok(Section { title: "Latency".into(), text, tables: vec![table], ..Section::default() })
}
