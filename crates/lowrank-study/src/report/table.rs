//! Tables: what is shown, and what is sorted by.

use std::fmt::Write as _;

/// A table.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Its name in files: letters, digits and dashes.
    pub id: String,
    /// Its caption.
    pub title: String,
    /// Heads of the columns.
    pub columns: Vec<String>,
    /// Rows of as many cells.
    pub rows: Vec<Vec<Cell>>,
    /// Whether it is shown on demand only.
    pub folded: bool,
}

/// A cell: a text, and for a number its value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    /// What is shown.
    pub text: String,
    /// What is sorted by and written to CSV.
    pub value: Option<f64>,
}

impl Cell {
    /// A text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), value: None }
    }

    /// A number, shown as `text`.
    pub fn number(value: f64, text: impl Into<String>) -> Self {
        Self { text: text.into(), value: Some(value) }
    }

    /// A count with its thousands apart.
    pub fn count(value: u64) -> Self {
        let digits = value.to_string();
        let mut text = String::new();
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                text.push('\u{202f}');
            }
            text.push(digit);
        }
        Self::number(value as f64, text)
    }

    /// Bytes in a unit that fits.
    pub fn bytes(value: u64) -> Self {
        let mut scaled = value as f64;
        let mut unit = "B";
        for next in ["kB", "MB", "GB", "TB"] {
            if scaled < 1000.0 {
                break;
            }
            scaled /= 1000.0;
            unit = next;
        }
        let decimals = usize::from(unit != "B" && scaled < 100.0);
        Self::number(value as f64, format!("{scaled:.decimals$} {unit}"))
    }

    /// Nothing to show.
    pub fn none() -> Self {
        Self::text("–")
    }
}

impl Table {
    /// The table as CSV: numbers in full.
    pub fn csv(&self) -> String {
        let mut out = String::new();
        line(&mut out, self.columns.iter().map(String::as_str));
        for row in &self.rows {
            let cells: Vec<String> =
                row.iter().map(|c| c.value.map_or_else(|| c.text.clone(), |v| v.to_string())).collect();
            line(&mut out, cells.iter().map(String::as_str));
        }
        out
    }
}

/// Appends one line of CSV.
pub(super) fn line<'a>(out: &mut String, cells: impl Iterator<Item = &'a str>) {
    for (i, cell) in cells.enumerate() {
        if i > 0 {
            out.push(',');
        }
        if cell.contains([',', '"', '\n']) {
            let _ = write!(out, "\"{}\"", cell.replace('"', "\"\""));
        } else {
            out.push_str(cell);
        }
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_quotes_what_needs_it_and_keeps_numbers_whole() {
        let table = Table {
            columns: vec!["name".into(), "loss".into()],
            rows: vec![vec![Cell::text("a, \"b\""), Cell::number(1.23456789, "1.23")]],
            ..Table::default()
        };
        assert_eq!(table.csv(), "name,loss\n\"a, \"\"b\"\"\",1.23456789\n");
    }

    #[test]
    fn numbers_are_shown_in_fitting_units() {
        assert_eq!(Cell::count(1234567).text, "1\u{202f}234\u{202f}567");
        assert_eq!(Cell::count(123).text, "123");
        assert_eq!(Cell::bytes(999).text, "999 B");
        assert_eq!(Cell::bytes(1_850_000).text, "1.9 MB");
        assert_eq!(Cell::bytes(871_000_000).text, "871 MB");
    }
}
