//! What the runs of a study say, section by section.

mod inputs;
mod latency;
mod matrices;
mod methods;
mod subspaces;

use lowrank_engine::Device;
use lowrank_files::Provenance;
use lowrank_models::{Base, Model};

use crate::error::Result;
use crate::report::{Cell, Report, Section, Table};
use crate::run::{Run, RunResult};
use crate::spec::Spec;
use inputs::Study;

/// The report of what has been done so far of `runs`.
///
/// # Errors
/// Where a result or an adapter cannot be read.
pub fn study_report(
    spec: &Spec,
    runs: &[Run],
    base: &Base,
    model: &dyn Model,
    device: &Device,
) -> Result<Report> {
    let mut done = Vec::new();
    for run in runs {
        if let Some(result) = run.result(&spec.out)? {
            done.push((run, result));
        }
    }
    let study = Study { spec, base, model, device, done };
    let mut sections = Vec::new();
    if !spec.method.is_empty() {
        sections.push(methods::section(&study)?);
        sections.push(methods::settings(&study));
    }
    if let Some(matrices) = &spec.matrices {
        sections.push(matrices::choices(&study, matrices));
    }
    if let Some(ranks) = &spec.ranks {
        sections.push(matrices::ranks(&study, ranks));
    }
    if let Some(subspace) = &spec.subspace {
        sections.push(subspaces::similarity(&study, subspace)?);
    }
    if let Some(amplification) = &spec.amplification {
        sections.push(subspaces::amplification(&study, amplification)?);
    }
    if let Some(what) = &spec.latency {
        sections.push(latency::section(&study, what)?);
    }
    if let Some(sweep) = &spec.sweep {
        sections.push(methods::sweep(&study, sweep));
    }
    sections.push(all_runs(&study, runs));
    let (seeds, total) = (spec.seeds.len(), runs.len());
    let subtitle = format!(
        "{} on {}: {} of {total} runs done, {seeds} seed{}.",
        spec.model(),
        spec.files("data").join(", "),
        study.done.len(),
        if seeds == 1 { "" } else { "s" }
    );
    Ok(Report { title: spec.name.clone(), subtitle, made: Provenance::now(), sections })
}

fn all_runs(study: &Study<'_>, runs: &[Run]) -> Section {
    let metric = &study.spec.metric;
    let rows = runs.iter().map(|run| {
        let result = study.done.iter().find(|(r, _)| r.id == run.id).map(|(_, result)| result);
        let state = match result {
            None => "not done".to_owned(),
            Some(RunResult { error: Some(error), .. }) => format!("failed: {error}"),
            Some(_) => "done".to_owned(),
        };
        let value = result.and_then(|r| r.metric(metric));
        vec![
            Cell::text(&run.id),
            Cell::text(&run.name),
            Cell::text(run.options["seed"].to_string()),
            value.map_or_else(Cell::none, |v| Cell::number(v, format!("{v:.4}"))),
            Cell::text(state),
        ]
    });
    let table = Table {
        id: "all-runs".into(),
        title: "Every run; its folder under runs/ holds options, log, adapter and result".into(),
        columns: ["run", "name", "seed", metric, "state"].map(Into::into).to_vec(),
        rows: rows.collect(),
        folded: runs.len() > 12,
    };
    Section { title: "Runs".into(), tables: vec![table], ..Section::default() }
}
