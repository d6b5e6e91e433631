//! The report of single runs.

use lowrank_tools::compare::Spectrum;

use crate::report::{Cell, Figure, Plot, Report, Section, Series, Table};
use crate::run::RunLog;

/// One run to report on.
#[derive(Clone, Debug, Default)]
pub struct SingleRun {
    /// What it is called.
    pub name: String,
    /// Its log.
    pub log: RunLog,
    /// Words and values of its configuration.
    pub config: Vec<(String, String)>,
    /// What the adapter adds to each module.
    pub spectra: Vec<Spectrum>,
    /// Texts it generated.
    pub samples: Vec<Sample>,
}

/// A text that a run's model generated.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What it was asked.
    pub prompt: String,
    /// What it answered.
    pub completion: String,
}

/// Loss, gradient norm, learning rate, speed and memory of runs, their adapters' spectra and samples.
pub fn single_report(runs: &[SingleRun]) -> Report {
    let names: Vec<&str> = runs.iter().map(|r| r.name.as_str()).collect();
    let mut sections = vec![overview(runs), training(runs)];
    for (i, run) in runs.iter().enumerate() {
        if !run.spectra.is_empty() {
            sections.push(spectrum(run, i));
        }
    }
    for run in runs {
        if !run.samples.is_empty() {
            let samples = run.samples.iter().map(|s| (s.prompt.clone(), s.completion.clone())).collect();
            sections.push(Section {
                title: format!("Samples of {}", run.name),
                samples,
                ..Section::default()
            });
        }
    }
    Report {
        title: if let [one] = &names[..] { format!("Run {one}") } else { "Runs".into() },
        subtitle: names.join(", "),
        sections,
    }
}

fn overview(runs: &[SingleRun]) -> Section {
    let mut columns = vec!["run".to_owned()];
    columns.extend(
        ["steps", "first loss", "last loss", "held-out loss", "tokens/s", "time", "peak memory"]
            .map(Into::into),
    );
    let rows = runs.iter().map(|run| {
        let steps = &run.log.steps;
        let loss = |x: Option<f64>| x.map_or_else(Cell::none, |x| Cell::number(x, format!("{x:.4}")));
        let mut speeds: Vec<f64> = steps.iter().map(|s| s.tokens_per_s).collect();
        speeds.sort_by(f64::total_cmp);
        let speed = speeds.get(speeds.len() / 2).copied();
        let seconds: f64 = steps.iter().map(|s| s.step_s).sum();
        let peak = steps.iter().filter_map(|s| s.peak_rss_bytes).max();
        vec![
            Cell::text(&run.name),
            Cell::count(steps.len() as u64),
            loss(steps.first().map(|s| s.loss)),
            loss(last_ten(run)),
            loss(run.log.evaluations.last().map(|e| e.1)),
            speed.map_or_else(Cell::none, |s| Cell::number(s, format!("{s:.0}"))),
            Cell::number(seconds, format!("{seconds:.0} s")),
            peak.map_or_else(Cell::none, Cell::bytes),
        ]
    });
    let table = Table {
        id: "runs".into(),
        title: "What the runs came to; the last loss is the mean of ten steps.".into(),
        columns,
        rows: rows.collect(),
    };
    let mut keys: Vec<&String> = runs.iter().flat_map(|r| r.config.iter().map(|(k, _)| k)).collect();
    keys.sort_unstable();
    keys.dedup();
    let value = |run: &SingleRun, key: &str| {
        run.config.iter().find(|(k, _)| k == key).map_or_else(Cell::none, |(_, v)| Cell::text(v))
    };
    let rows = keys.iter().map(|key| {
        let mut row = vec![Cell::text(*key)];
        row.extend(runs.iter().map(|run| value(run, key)));
        row
    });
    let mut columns = vec!["key".to_owned()];
    columns.extend(runs.iter().map(|r| r.name.clone()));
    let config =
        Table { id: "configuration".into(), title: "Configurations.".into(), columns, rows: rows.collect() };
    let tables = if keys.is_empty() { vec![table] } else { vec![table, config] };
    Section { title: "Overview".into(), tables, ..Section::default() }
}

fn last_ten(run: &SingleRun) -> Option<f64> {
    let steps = &run.log.steps;
    let tail = &steps[steps.len().saturating_sub(10)..];
    (!tail.is_empty()).then(|| tail.iter().map(|s| s.loss).sum::<f64>() / tail.len() as f64)
}

fn training(runs: &[SingleRun]) -> Section {
    let curve = |id: &str, title: &str, y_label: &str, of: &dyn Fn(&RunLog) -> Vec<(f64, f64)>| {
        let series: Vec<Series> = runs
            .iter()
            .map(|r| Series { name: r.name.clone(), points: of(&r.log), marks: false })
            .filter(|s| !s.points.is_empty())
            .collect();
        let plot = Plot::Lines { x_label: "step".into(), y_label: y_label.into(), log_x: false, series };
        Figure { id: id.into(), title: title.into(), caption: String::new(), plot }
    };
    let steps = |log: &RunLog, of: &dyn Fn(&crate::StepLog) -> f64| -> Vec<(f64, f64)> {
        log.steps.iter().map(|s| (s.step as f64, of(s))).collect()
    };
    let mut figures = vec![
        curve("loss", "Training loss.", "loss (nats)", &|log| smooth(&steps(log, &|s| s.loss))),
        curve("gradient-norm", "Norm of the gradient before clipping.", "norm", &|log| {
            steps(log, &|s| s.grad_norm)
        }),
        curve("learning-rate", "Learning rate.", "rate", &|log| steps(log, &|s| s.learning_rate)),
        curve("speed", "Speed.", "tokens/s", &|log| smooth(&steps(log, &|s| s.tokens_per_s))),
        curve("memory", "Peak resident memory so far.", "MB", &|log| {
            let known =
                log.steps.iter().filter_map(|s| Some((s.step as f64, s.peak_rss_bytes? as f64 / 1e6)));
            known.collect()
        }),
    ];
    if runs.iter().any(|r| r.log.evaluations.len() > 1) {
        figures.push(curve("held-out-loss", "Held-out loss.", "loss (nats)", &|log| {
            log.evaluations.iter().map(|&(step, loss)| (step as f64, loss)).collect()
        }));
    }
    let text =
        vec!["Loss and speed are running means, so that single batches do not hide the course.".into()];
    Section { title: "Training".into(), text, figures, ..Section::default() }
}

/// Each point the mean of those around it: a twentieth of the curve.
pub(crate) fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = points.len() / 40;
    let mean = |i: usize| {
        // As far to the left as to the right, so that the ends do not lean inwards.
        let reach = reach.min(i).min(points.len() - 1 - i);
        let window = &points[i - reach..=i + reach];
        window.iter().map(|p| p.1).sum::<f64>() / window.len() as f64
    };
    points.iter().enumerate().map(|(i, p)| (p.0, mean(i))).collect()
}

fn spectrum(run: &SingleRun, index: usize) -> Section {
    // The strongest modules: a legend of hundreds says nothing.
    let mut strongest: Vec<&Spectrum> = run.spectra.iter().collect();
    strongest.sort_by(|a, b| b.norm.total_cmp(&a.norm));
    let series = strongest.iter().take(8).map(|s| Series {
        name: s.path.trim_start_matches("model.layers.").to_owned(),
        points: s.singular_values.iter().enumerate().map(|(i, s)| (i as f64 + 1.0, f64::from(*s))).collect(),
        marks: true,
    });
    let plot = Plot::Lines {
        x_label: "direction".into(),
        y_label: "singular value".into(),
        log_x: false,
        series: series.collect(),
    };
    let figure = Figure {
        id: format!("spectrum-{}", index + 1),
        title: "Singular values of what the adapter adds.".into(),
        caption: "The eight modules with the largest change.".into(),
        plot,
    };
    let rows = run.spectra.iter().map(|s| {
        let largest = f64::from(s.singular_values.first().copied().unwrap_or_default());
        vec![
            Cell::text(&s.path),
            Cell::number(s.norm, format!("{:.4}", s.norm)),
            Cell::number(largest, format!("{largest:.4}")),
            Cell::number(s.effective_rank, format!("{:.2}", s.effective_rank)),
            Cell::count(s.rank as u64),
        ]
    });
    let table = Table {
        id: format!("modules-{}", index + 1),
        title: "Frobenius norm, largest singular value and effective rank of each module's change.".into(),
        columns: ["module", "norm", "largest", "effective rank", "rank"].map(Into::into).to_vec(),
        rows: rows.collect(),
    };
    Section {
        title: format!("Adapter of {}", run.name),
        tables: vec![table],
        figures: vec![figure],
        ..Section::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StepLog;

    #[test]
    fn a_report_of_two_runs_is_written_whole() {
        let step = |i: u64| StepLog {
            step: i,
            loss: 3.0 / i as f64,
            learning_rate: 1e-4,
            grad_norm: 1.0,
            tokens_per_s: 100.0,
            step_s: 0.5,
            peak_rss_bytes: Some(100_000_000 + i),
        };
        let run = |name: &str| SingleRun {
            name: name.into(),
            log: RunLog { steps: (1..=30).map(step).collect(), evaluations: vec![(15, 1.0), (30, 0.5)] },
            config: vec![("r".into(), "8".into())],
            spectra: vec![Spectrum {
                path: "model.layers.0.q_proj".into(),
                shape: (4, 4),
                rank: 3,
                scaling: 2.0,
                singular_values: vec![2.0, 1.0, 0.0],
                norm: 5f64.sqrt(),
                effective_rank: 1.9,
                rank_99: 2,
            }],
            samples: vec![Sample { prompt: "<b>".into(), completion: "it & that".into() }],
        };
        let dir = tempfile::tempdir().unwrap();
        let written = single_report(&[run("a"), run("b")]).write(dir.path(), false).unwrap();
        let html = std::fs::read_to_string(&written.html).unwrap();
        assert!(html.contains("&lt;b&gt;") && html.contains("it &amp; that"));
        assert_eq!(html.matches("<figure").count(), 6 + 2);
        assert!(!html.contains("http://") || html.matches("http://www.w3.org/2000/svg").count() > 0);
        let png = std::fs::read(dir.path().join("figures/loss.png")).unwrap();
        assert_eq!(&png[..4], b"\x89PNG");
        let markdown = std::fs::read_to_string(&written.markdown).unwrap();
        assert!(markdown.contains("| a | 30 |") && markdown.contains("(figures/loss.png)"), "{markdown}");
    }

    #[test]
    fn smoothing_keeps_a_straight_line_straight() {
        let line: Vec<(f64, f64)> = (0..200).map(|i| (f64::from(i), 2.0 * f64::from(i))).collect();
        for (a, b) in smooth(&line).iter().zip(&line) {
            assert!((a.1 - b.1).abs() < 1e-9);
        }
    }
}
