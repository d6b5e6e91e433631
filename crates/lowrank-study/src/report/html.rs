//! The report as one HTML file: nothing is loaded from elsewhere.

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value, context};
use serde::Serialize;

use super::content::{Report, Section};
use super::table::Table;
use crate::error::{Error, Result};

const TEMPLATE: &str = include_str!("report.html");

#[derive(Serialize)]
struct SectionView<'a> {
    title: &'a str,
    text: &'a [String],
    tables: Vec<TableView<'a>>,
    figures: Vec<FigureView<'a>>,
    samples: &'a [(String, String)],
}

#[derive(Serialize)]
struct TableView<'a> {
    id: &'a str,
    title: &'a str,
    columns: Vec<(&'a str, bool)>,
    rows: Vec<Vec<(&'a str, Option<f64>)>>,
    csv: String,
}

#[derive(Serialize)]
struct FigureView<'a> {
    id: &'a str,
    title: &'a str,
    caption: &'a str,
    svg: String,
    csv: String,
}

pub(super) fn render(report: &Report) -> Result<String> {
    let sections = report.sections.iter().map(section).collect::<Result<Vec<_>>>()?;
    let sections = Value::from(Serde(sections));
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment
        .render_str(TEMPLATE, context! { title => &report.title, subtitle => &report.subtitle, sections })
        .map_err(|e| Error::Failed(format!("the report cannot be written: {e:#}")))
}

fn section(section: &Section) -> Result<SectionView<'_>> {
    let figures = section.figures.iter().map(|f| {
        Ok(FigureView {
            id: &f.id,
            title: &f.title,
            caption: &f.caption,
            svg: f.themed_svg()?,
            csv: data_uri(&f.csv()),
        })
    });
    Ok(SectionView {
        title: &section.title,
        text: &section.text,
        tables: section.tables.iter().map(table).collect(),
        figures: figures.collect::<Result<_>>()?,
        samples: &section.samples,
    })
}

fn table(table: &Table) -> TableView<'_> {
    let numeric = |i: usize| table.rows.iter().any(|r| r.get(i).is_some_and(|c| c.value.is_some()));
    TableView {
        id: &table.id,
        title: &table.title,
        columns: table.columns.iter().enumerate().map(|(i, c)| (c.as_str(), numeric(i))).collect(),
        rows: table.rows.iter().map(|r| r.iter().map(|c| (c.text.as_str(), c.value)).collect()).collect(),
        csv: data_uri(&table.csv()),
    }
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
