//! The report of single runs.

use lowrank_files::Provenance;
use lowrank_tools::compare::Spectrum;
use lowrank_tools::modules::natural_order;

use crate::adapter;
use crate::report::{Cell, Figure, Label, Plot, Report, Samples, Section, Series, Table};
use crate::run::RunLog;
use crate::settings::{self, Setting};

/// One run to report on.
#[derive(Clone, Debug, Default)]
pub struct SingleRun {
    /// What it is called.
    pub name: String,
    /// Its log.
    pub log: RunLog,
    /// What made it, where it says so.
    pub made: Option<Provenance>,
    /// Its options and those of its adapter.
    pub settings: Vec<Setting>,
    /// What the adapter adds to each module.
    pub spectra: Vec<Spectrum>,
    /// Texts that its adapter generated for the report.
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
    let mut runs: Vec<&SingleRun> = runs.iter().collect();
    runs.sort_by(|a, b| natural_order(&a.name, &b.name));
    let names: Vec<&str> = runs.iter().map(|r| r.name.as_str()).collect();
    let mut sections = vec![overview(&runs), training(&runs)];
    for run in &runs {
        let samples = samples(run);
        if !samples.is_empty() {
            let title = format!("Samples of {}", run.name);
            sections.push(Section { title, samples, ..Section::default() });
        }
    }
    for (i, run) in runs.iter().enumerate() {
        if !run.spectra.is_empty() {
            sections.push(adapter::section(&format!("Adapter of {}", run.name), &run.spectra, i));
        }
    }
    let command = |run: &&SingleRun| {
        let made = run.made.as_ref().filter(|made| !made.command.is_empty())?;
        let title = format!("{}: {}, lowrank {}", run.name, made.date, made.lowrank_version);
        Some((title, made.command_line()))
    };
    let commands: Vec<(String, String)> = runs.iter().filter_map(command).collect();
    if !commands.is_empty() {
        sections.push(Section { title: "Commands".into(), commands, ..Section::default() });
    }
    Report {
        title: if let [one] = &names[..] { format!("Run {one}") } else { "Runs".into() },
        subtitle: if names.len() > 1 { names.join(", ") } else { String::new() },
        made: Provenance::now(),
        sections,
    }
}

/// The texts that a run generated on its way, by prompt, and then those for the report.
fn samples(run: &SingleRun) -> Vec<Samples> {
    let mut out: Vec<Samples> = Vec::new();
    let on_the_way = run.log.samples.iter().map(|s| (&s.prompt, format!("Step {}", s.step), &s.text));
    let at_the_end = run.samples.iter().map(|s| (&s.prompt, "Now".to_owned(), &s.completion));
    for (prompt, when, text) in on_the_way.chain(at_the_end) {
        let at = out.iter().position(|samples| samples.prompt == *prompt).unwrap_or_else(|| {
            out.push(Samples { prompt: prompt.clone(), texts: Vec::new() });
            out.len() - 1
        });
        out[at].texts.push((when, text.clone()));
    }
    out
}

fn overview(runs: &[&SingleRun]) -> Section {
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
            Cell::count(steps.last().map_or(0, |s| s.step)),
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
        title: "Results; the last loss is the mean of ten records.".into(),
        columns,
        rows: rows.collect(),
        folded: false,
    };
    let known: Vec<(&str, &[Setting])> =
        runs.iter().filter(|r| !r.settings.is_empty()).map(|r| (r.name.as_str(), &r.settings[..])).collect();
    let tables = [table].into_iter().chain(settings::tables(&known)).collect();
    Section { title: "Overview".into(), tables, ..Section::default() }
}

fn last_ten(run: &SingleRun) -> Option<f64> {
    let steps = &run.log.steps;
    let tail = &steps[steps.len().saturating_sub(10)..];
    (!tail.is_empty()).then(|| tail.iter().map(|s| s.loss).sum::<f64>() / tail.len() as f64)
}

fn training(runs: &[&SingleRun]) -> Section {
    let curve = |id: &str, title: &str, y: Label, of: &dyn Fn(&RunLog) -> Vec<(f64, f64)>| {
        let series: Vec<Series> = runs
            .iter()
            .map(|r| Series { name: r.name.clone(), points: of(&r.log), marks: false })
            .filter(|s| !s.points.is_empty())
            .collect();
        let plot = Plot::Lines { x: Label::linear("step"), y, series };
        Figure { id: id.into(), title: title.into(), caption: String::new(), plot }
    };
    let steps = |log: &RunLog, of: &dyn Fn(&crate::StepLog) -> f64| -> Vec<(f64, f64)> {
        log.steps.iter().map(|s| (s.step as f64, of(s))).collect()
    };
    let mut figures =
        vec![curve("loss", "Training loss.", "loss".into(), &|log| smooth(&steps(log, &|s| s.loss)))];
    if runs.iter().any(|r| r.log.evaluations.len() > 1) {
        figures.push(curve("held-out-loss", "Held-out loss.", "loss".into(), &|log| {
            log.evaluations.iter().map(|&(step, loss)| (step as f64, loss)).collect()
        }));
    }
    figures.extend([
        curve("learning-rate", "Learning rate.", Label::linear("learning rate"), &|log| {
            steps(log, &|s| s.learning_rate)
        }),
        curve("gradient-norm", "Norm of the gradient before clipping.", "‖∇‖".into(), &|log| {
            steps(log, &|s| s.grad_norm)
        }),
        curve("speed", "Speed.", Label::linear("tokens/s"), &|log| smooth(&steps(log, &|s| s.tokens_per_s))),
        curve("memory", "Peak resident memory so far.", Label::linear("MB"), &|log| {
            let known =
                log.steps.iter().filter_map(|s| Some((s.step as f64, s.peak_rss_bytes? as f64 / 1e6)));
            known.collect()
        }),
    ]);
    let text = vec!["Training loss and speed are running means over a twentieth of the run.".into()];
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StepLog;
    use crate::run::SampleLog;

    fn run(name: &str, rate: &str) -> SingleRun {
        let step = |i: u64| StepLog {
            step: i,
            loss: 3.0 / i as f64,
            learning_rate: 1e-4,
            grad_norm: 1.0,
            tokens_per_s: 100.0,
            step_s: 0.5,
            peak_rss_bytes: Some(100_000_000 + i),
        };
        let setting = |key: &str, value: &str| Setting { key: key.into(), value: value.into(), given: true };
        let sample = |step: u64, text: &str| SampleLog { step, prompt: "Once".into(), text: text.into() };
        SingleRun {
            name: name.into(),
            log: RunLog {
                steps: (1..=30).map(step).collect(),
                evaluations: vec![(15, 1.0), (30, 0.5)],
                samples: vec![sample(15, "upon a"), sample(30, "upon a time")],
            },
            made: Some(Provenance {
                date: "2026-01-31 12:00:00 +01:00".into(),
                lowrank_version: "9.8.7".into(),
                command: ["lowrank", "train", "--out", name].map(str::to_owned).to_vec(),
            }),
            settings: vec![setting("r", "8"), setting("learning_rate", rate)],
            spectra: vec![adapter::tests::spectrum("model.layers.0.q_proj", &[2.0, 1.0, 0.0])],
            samples: vec![Sample { prompt: "<b>".into(), completion: "it & that".into() }],
        }
    }

    #[test]
    fn a_report_of_two_runs_is_written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let written =
            single_report(&[run("run10", "0.1"), run("run2", "0.2")]).write(dir.path(), false).unwrap();
        let html = std::fs::read_to_string(&written.html).unwrap();
        assert!(html.contains("&lt;b&gt;") && html.contains("it &amp; that"));
        assert_eq!(html.matches("<figure").count(), 6 + 2);
        assert!(!html.contains("http://") || html.matches("http://www.w3.org/2000/svg").count() > 0);
        let png = std::fs::read(dir.path().join("figures/loss.png")).unwrap();
        assert_eq!(&png[..4], b"\x89PNG");
        let markdown = std::fs::read_to_string(&written.markdown).unwrap();
        assert!(markdown.contains("| run2 | 30 |") && markdown.contains("(figures/loss.png)"), "{markdown}");
    }

    #[test]
    fn runs_are_counted_and_their_commands_said() {
        let report = single_report(&[run("run10", "0.1"), run("run2", "0.2")]);
        assert_eq!(report.subtitle, "run2, run10");
        let differs = &report.sections[0].tables[1];
        assert_eq!(differs.columns, ["setting", "run2", "run10"]);
        assert!(differs.rows.len() == 1 && differs.rows[0][1].text == "0.2", "{differs:?}");
        let commands = &report.sections.last().unwrap().commands;
        assert_eq!(commands[0].0, "run2: 2026-01-31 12:00:00 +01:00, lowrank 9.8.7");
        assert_eq!(commands[1].1, "lowrank train --out run10");
        assert!(!report.made.date.is_empty());
    }

    #[test]
    fn the_texts_of_a_prompt_stand_together() {
        let samples = samples(&run("a", "1"));
        assert_eq!(samples.len(), 2);
        let texts: Vec<&str> = samples[0].texts.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!((texts, samples[0].texts[1].0.as_str()), (vec!["upon a", "upon a time"], "Step 30"));
    }

    #[test]
    fn smoothing_keeps_a_straight_line_straight() {
        let line: Vec<(f64, f64)> = (0..200).map(|i| (f64::from(i), 2.0 * f64::from(i))).collect();
        for (a, b) in smooth(&line).iter().zip(&line) {
            assert!((a.1 - b.1).abs() < 1e-9);
        }
    }
}
