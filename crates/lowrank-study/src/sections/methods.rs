//! Methods side by side (the paper's tables 2 to 4, figure 2) and their learning rates.

use super::inputs::Study;
use crate::error::Result;
use crate::report::{Cell, Figure, Label, Plot, Scale, Section, Series, Table, power_of_ten};
use crate::run::{Role, RunLog};
use crate::settings::{self, Setting};
use crate::single::smooth;
use crate::spec::Sweep;

pub(super) fn section(study: &Study<'_>) -> Result<Section> {
    let metric = &study.spec.metric;
    let base = study.base.tensors.names().filter_map(|name| study.base.tensors.shape(name));
    let base: u64 = base.map(|shape| shape.iter().product::<usize>() as u64).sum();
    let untrained = study.with(&Role::Base).next().map(|_| {
        let mut row = vec![Cell::text("base model (not trained)"), Cell::count(0)];
        row.resize(7, Cell::none());
        row.push(study.metric(&Role::Base));
        row
    });
    let rows = study.spec.method.iter().enumerate().map(|(i, method)| {
        let role = Role::Method(i);
        let results: Vec<_> = study.with(&role).map(|(_, r)| r).collect();
        let Some(first) = results.first() else {
            let mut row = vec![Cell::text(&method.name), Cell::text(study.state(&role))];
            row.resize(8, Cell::none());
            return row;
        };
        let mean = |of: &dyn Fn(&&crate::RunResult) -> f64| {
            results.iter().map(of).sum::<f64>() / results.len() as f64
        };
        let share = 100.0 * first.parameters as f64 / base as f64;
        let (speed, time) = (mean(&|r| r.tokens_per_s), mean(&|r| r.train_s));
        vec![
            Cell::text(&method.name),
            Cell::count(first.parameters),
            Cell::number(share, format!("{share:.3} %")),
            Cell::bytes(first.bytes),
            Cell::bytes(results.iter().map(|r| r.peak_rss_bytes).max().unwrap_or_default()),
            Cell::number(speed, format!("{speed:.0}")),
            Cell::number(time, format!("{time:.0} s")),
            study.metric(&role),
        ]
    });
    let columns = ["method", "trainable", "of the base", "saved", "peak memory", "tokens/s", "time", metric];
    let table = Table {
        id: "methods".into(),
        title: "Methods. The metric is a mean over seeds with its 95 % confidence interval.".into(),
        columns: columns.map(Into::into).to_vec(),
        rows: untrained.into_iter().chain(rows).collect(),
        folded: false,
    };
    let text = vec![format!(
        "The base has {} parameters. Hu et al. (2021, tables 2 to 4) compare the same columns: LoRA trains a thousandth \
         or less of the parameters at full fine-tuning's quality.",
        Cell::count(base).text
    )];
    let figures = vec![loss_curves(study)?, against_parameters(study)];
    Ok(Section { title: "Methods".into(), text, tables: vec![table], figures, ..Section::default() })
}

/// What the methods are: what differs between them, then what they share.
pub(super) fn settings(study: &Study<'_>) -> Section {
    let text = |value: &toml::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let setting = |(key, value): (&String, &toml::Value)| Setting {
        key: key.replace('-', "_"),
        value: text(value),
        given: true,
    };
    let methods: Vec<(&str, Vec<Setting>)> = study
        .spec
        .method
        .iter()
        .enumerate()
        .map(|(i, method)| {
            // What the run was really given; the method's own words where it is not done.
            let options =
                study.with(&Role::Method(i)).next().map_or(&method.options, |(run, _)| &run.options);
            (method.name.as_str(), options.iter().map(setting).collect())
        })
        .collect();
    let methods: Vec<(&str, &[Setting])> = methods.iter().map(|(name, list)| (*name, &list[..])).collect();
    Section { title: "Settings".into(), tables: settings::tables(&methods), ..Section::default() }
}

fn loss_curves(study: &Study<'_>) -> Result<Figure> {
    let mut series = Vec::new();
    for (i, method) in study.spec.method.iter().enumerate() {
        let Some((run, _)) = study.with(&Role::Method(i)).next() else { continue };
        let log = RunLog::read(&run.dir(&study.spec.out).join("log.jsonl"))?;
        let points: Vec<_> = log.steps.iter().map(|s| (s.step as f64, s.loss)).collect();
        series.push(Series { name: method.name.clone(), points: smooth(&points), marks: false });
    }
    let plot = Plot::Lines { x: Label::linear("step"), y: "training loss".into(), series };
    let caption = "Running means, the first seed of each.".into();
    Ok(Figure { id: "loss".into(), title: "Training loss.".into(), caption, plot })
}

fn against_parameters(study: &Study<'_>) -> Figure {
    let series = study.spec.method.iter().enumerate().filter_map(|(i, method)| {
        let role = Role::Method(i);
        let parameters = study.with(&role).next()?.1.parameters;
        let value = study.metric(&role).value?;
        Some(Series { name: method.name.clone(), points: vec![(parameters as f64, value)], marks: true })
    });
    let plot = Plot::Lines {
        x: Label { text: "trainable parameters".into(), scale: Scale::Log },
        y: study.spec.metric.as_str().into(),
        series: series.collect(),
    };
    let title = format!("{} against trainable parameters.", study.spec.metric);
    let caption = "As the paper's figure 2.".into();
    Figure { id: "metric-parameters".into(), title, caption, plot }
}

pub(super) fn sweep(study: &Study<'_>, sweep: &Sweep) -> Section {
    let lower_is_better = matches!(study.spec.metric.as_str(), "loss" | "perplexity" | "mse");
    let (mut series, mut rows) = (Vec::new(), Vec::new());
    for (i, method) in study.spec.method.iter().enumerate() {
        let values: Vec<(f64, Cell)> = (0..sweep.learning_rates.len())
            .map(|j| (sweep.learning_rates[j], study.metric(&Role::Sweep(i, j))))
            .collect();
        let mut points: Vec<(f64, f64)> = values.iter().filter_map(|(x, c)| Some((*x, c.value?))).collect();
        if points.is_empty() {
            continue;
        }
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let sign = if lower_is_better { 1.0 } else { -1.0 };
        let finite = points.iter().filter(|p| p.1.is_finite());
        let best = finite.min_by(|a, b| (sign * a.1).total_cmp(&(sign * b.1))).map(|p| p.0);
        let mut row = vec![Cell::text(&method.name)];
        row.extend(values.into_iter().map(|(_, cell)| cell));
        row.push(best.map_or_else(Cell::none, |b| Cell::number(b, power_of_ten(b))));
        rows.push(row);
        series.push(Series { name: method.name.clone(), points, marks: true });
    }
    let mut columns = vec!["method".to_owned()];
    columns.extend(sweep.learning_rates.iter().map(|rate| power_of_ten(*rate)));
    columns.push("best".into());
    let title = format!("{} at each learning rate.", study.spec.metric);
    let table = Table { id: "learning-rates".into(), title: title.clone(), columns, rows, folded: false };
    let x = Label { text: "learning rate".into(), scale: Scale::Log };
    let plot = Plot::Lines { x, y: study.spec.metric.as_str().into(), series };
    let figure = Figure { id: "learning-rate-sweep".into(), title, caption: String::new(), plot };
    let text = vec![
        "A rule of thumb says that LoRA's best learning rate is about ten times that of full fine-tuning; the last \
         column shows what holds here."
            .into(),
    ];
    let title = "Learning rates".into();
    Section { title, text, tables: vec![table], figures: vec![figure], ..Section::default() }
}
