//! A report: sections of text, tables and figures, written as one HTML file with the figures and their numbers
//! beside it.

mod axis;
mod colors;
mod content;
mod figure;
mod html;
mod markdown;
mod png;
mod table;
mod typeset;

use std::fs;
use std::path::{Path, PathBuf};

use lowrank_files::write_atomic;

pub use axis::{Scale, power_of_ten};
pub use content::{Report, Samples, Section};
pub use figure::{Figure, Label, Plot, Series, bounds_of};
pub use table::{Cell, Table};

use crate::error::{Error, Result};

/// What every page says, by which it is known again.
const MADE_BY: &str = "Made by lowrank";

/// What [`Report::write`] wrote.
#[derive(Clone, Debug)]
pub struct Written {
    /// The report to open.
    pub html: PathBuf,
    /// The summary.
    pub markdown: PathBuf,
    /// Figures whose PNG has no letters, because no font was found on this machine.
    pub no_fonts: bool,
}

impl Report {
    /// The report as one page, complete in itself.
    ///
    /// # Errors
    /// Where a figure cannot be drawn.
    pub fn page(&self) -> Result<String> {
        html::render(self)
    }

    /// Writes `report.html` (complete in itself), `report.md`, and `figures/` and `data/` with each figure as SVG and
    /// PNG and each figure's and table's numbers as CSV.
    ///
    /// # Errors
    /// Where a file cannot be written or a figure cannot be drawn, or where such files are there that are of no report and not
    /// to be replaced (`force`).
    pub fn write(&self, dir: &Path, force: bool) -> Result<Written> {
        let (figures, data) = (dir.join("figures"), dir.join("data"));
        let page = dir.join("report.html");
        let ours = fs::read_to_string(&page).is_ok_and(|text| text.contains(MADE_BY));
        if !ours && !force {
            let there = [page, dir.join("report.md"), figures.clone(), data.clone()];
            if let Some(path) = there.into_iter().find(|path| path.exists()) {
                let what = "is there already and of no report: choose another `out`";
                return Err(Error::file(&path, what));
            }
        }
        for folder in [&figures, &data] {
            fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        let put = |path: PathBuf, bytes: &[u8]| -> Result<PathBuf> {
            write_atomic(&path, bytes)?;
            Ok(path)
        };
        let painter = png::Painter::new();
        for figure in self.sections.iter().flat_map(|s| &s.figures) {
            let svg = figure.svg()?;
            put(figures.join(format!("{}.png", figure.id)), &painter.png(&svg)?)?;
            put(figures.join(format!("{}.svg", figure.id)), svg.as_bytes())?;
            put(data.join(format!("{}.csv", figure.id)), figure.csv().as_bytes())?;
        }
        for table in self.sections.iter().flat_map(|s| &s.tables) {
            put(data.join(format!("{}.csv", table.id)), table.csv().as_bytes())?;
        }
        Ok(Written {
            html: put(dir.join("report.html"), self.page()?.as_bytes())?,
            markdown: put(dir.join("report.md"), markdown::render(self).as_bytes())?,
            no_fonts: painter.no_fonts(),
        })
    }
}
