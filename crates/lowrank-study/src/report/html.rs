//! The report as one HTML file: nothing is loaded from elsewhere.

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value, context};
use serde::Serialize;

use super::content::{Report, Samples, Section};
use super::figure::Width;
use super::table::Table;
use super::typeset;
use crate::error::{Error, Result};

const TEMPLATE: &str = include_str!("report.html");

/// Texts are HTML already, but those of samples and commands.
#[derive(Serialize)]
struct SectionView<'a> {
    title: String,
    text: Vec<String>,
    commands: &'a [(String, String)],
    tables: Vec<TableView<'a>>,
    figures: Vec<FigureView<'a>>,
    samples: Vec<SamplesView<'a>>,
}

#[derive(Serialize)]
struct TableView<'a> {
    id: &'a str,
    title: String,
    folded: bool,
    rows_shown: usize,
    columns: Vec<(String, bool)>,
    rows: Vec<Vec<(String, Option<f64>)>>,
    csv: String,
}

#[derive(Serialize)]
struct FigureView<'a> {
    id: &'a str,
    title: String,
    caption: String,
    wide: String,
    narrow: String,
    csv: String,
}

#[derive(Serialize)]
struct SamplesView<'a> {
    prompt: &'a str,
    last: Option<&'a (String, String)>,
    earlier: &'a [(String, String)],
}

pub(super) fn render(report: &Report) -> Result<String> {
    let sections = report.sections.iter().map(section).collect::<Result<Vec<_>>>()?;
    let sections = Value::from(Serde(sections));
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let page = context! {
        name => &report.title,
        title => typeset::html(&report.title),
        subtitle => typeset::html(&report.subtitle),
        date => &report.made.date,
        version => &report.made.lowrank_version,
        command => report.made.command_line(),
        sections
    };
    environment
        .render_str(TEMPLATE, page)
        .map_err(|e| Error::Failed(format!("the report cannot be written: {e:#}")))
}

fn section(section: &Section) -> Result<SectionView<'_>> {
    let figures = section.figures.iter().map(|f| {
        Ok(FigureView {
            id: &f.id,
            title: typeset::html(&f.title),
            caption: typeset::html(&f.caption),
            wide: f.themed_svg(Width::Wide)?,
            narrow: f.themed_svg(Width::Narrow)?,
            csv: data_uri(&f.csv()),
        })
    });
    Ok(SectionView {
        title: typeset::html(&section.title),
        text: section.text.iter().map(|text| typeset::html(text)).collect(),
        commands: &section.commands,
        tables: section.tables.iter().map(table).collect(),
        figures: figures.collect::<Result<_>>()?,
        samples: section.samples.iter().map(samples).collect(),
    })
}

fn table(table: &Table) -> TableView<'_> {
    let numeric = |i: usize| table.rows.iter().any(|r| r.get(i).is_some_and(|c| c.value.is_some()));
    TableView {
        id: &table.id,
        title: typeset::html(&table.title),
        folded: table.folded,
        rows_shown: table.rows.len(),
        columns: table.columns.iter().enumerate().map(|(i, c)| (typeset::html(c), numeric(i))).collect(),
        rows: table
            .rows
            .iter()
            .map(|r| r.iter().map(|c| (typeset::html(&c.text), c.value)).collect())
            .collect(),
        csv: data_uri(&table.csv()),
    }
}

fn samples(samples: &Samples) -> SamplesView<'_> {
    let (last, earlier) =
        samples.texts.split_last().map_or((None, &[][..]), |(last, rest)| (Some(last), rest));
    SamplesView { prompt: &samples.prompt, last, earlier }
}

/// The numbers travel inside the page.
fn data_uri(csv: &str) -> String {
    let mut out = String::from("data:text/csv;charset=utf-8,");
    for byte in csv.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use lowrank_files::Provenance;

    use super::*;
    use crate::report::{Cell, Figure, Plot};

    fn report() -> Report {
        let command = ["lowrank", "report", "my run"].map(str::to_owned).to_vec();
        let plot = Plot::Lines { x: "step".into(), y: "loss".into(), series: Vec::new() };
        Report {
            title: "A <report>".into(),
            subtitle: "ΔW = (α/r)·BA".into(),
            made: Provenance {
                date: "2026-01-31 12:00:00 +01:00".into(),
                lowrank_version: "9.8.7".into(),
                command,
            },
            sections: vec![Section {
                title: "One".into(),
                text: vec!["W₀ & ‖UᵀV‖²".into()],
                commands: vec![("run".into(), "lowrank train <x>".into())],
                tables: vec![
                    Table {
                        id: "open".into(),
                        title: "Open.".into(),
                        columns: vec!["layer".into(), "σ₁".into()],
                        rows: vec![vec![Cell::text("a<b"), Cell::number(0.5, "0.5")]],
                        folded: false,
                    },
                    Table {
                        id: "closed".into(),
                        title: "Closed.".into(),
                        columns: vec!["x".into()],
                        rows: vec![vec![Cell::text("y")]; 3],
                        folded: true,
                    },
                ],
                figures: vec![Figure { id: "f".into(), title: "F.".into(), caption: "of x²".into(), plot }],
                samples: vec![Samples {
                    prompt: "<p>".into(),
                    texts: ["one", "two", "three"].map(|t| (format!("step {t}"), format!("{t}₀"))).to_vec(),
                }],
            }],
        }
    }

    #[test]
    fn a_page_says_what_made_it() {
        let page = render(&report()).unwrap();
        assert!(page.contains("2026-01-31 12:00:00 +01:00") && page.contains("lowrank 9.8.7"));
        assert!(
            page.contains("lowrank report &#x27;my run&#x27;") || page.contains("lowrank report 'my run'"),
            "{page}"
        );
        assert!(page.contains("lowrank train &lt;x&gt;"));
    }

    #[test]
    fn formulas_are_set_and_names_escaped() {
        let page = render(&report()).unwrap();
        assert!(page.contains("A &lt;report&gt;") && page.contains("a&lt;b") && !page.contains("a<b"));
        assert!(page.contains("W<sub>0</sub> &amp; ‖U<sup>T</sup>V‖<sup>2</sup>"));
        assert!(page.contains("σ<sub>1</sub>") && page.contains("of x<sup>2</sup>"));
        // What a model wrote stays as it wrote it.
        assert!(page.contains("three₀"));
    }

    #[test]
    fn what_is_folded_is_shown_on_demand() {
        let page = render(&report()).unwrap();
        let (open, closed) = (page.find("id=\"open\"").unwrap(), page.find("id=\"closed\"").unwrap());
        let details: Vec<usize> = page.match_indices("<details").map(|(at, _)| at).collect();
        assert_eq!(details.len(), 2, "a table and the earlier samples");
        assert!(open < details[0] && details[0] < closed);
        let (last, earlier) = (page.find("three₀").unwrap(), page.find("one₀").unwrap());
        assert!(last < details[1] && details[1] < earlier);
    }

    #[test]
    fn a_phone_gets_figures_and_tables_of_its_width() {
        let page = render(&report()).unwrap();
        assert!(page.contains("class=\"wide\"") && page.contains("class=\"narrow\""));
        assert!(page.contains("viewBox=\"0 0 540 ") && page.contains("viewBox=\"0 0 350 "));
        assert!(page.contains("name=\"viewport\"") && page.contains(".scroll { overflow-x: auto"));
        // Nothing is as wide as no phone is.
        assert!(!page.contains("min-width: 31rem"));
    }
}
