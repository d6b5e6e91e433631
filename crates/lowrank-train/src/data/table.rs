//! CSV and TSV: a header line, then rows.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use super::contract::DataOptions;
use super::fields::{NAME_COLUMNS, Raw, Roles, Row, missing_column, not_utf8, row_error, too_long};
use super::labelled::Columns;
use crate::Error;
use crate::task::Task;

pub(super) struct Rows {
    path: PathBuf,
    reader: csv::Reader<Tee>,
    behind: Rc<RefCell<Behind>>,
    names: Arc<[String]>,
    quoting: bool,
    /// The first row, where there was no header.
    first: Option<csv::ByteRecord>,
}

impl Rows {
    pub fn new(
        path: &Path,
        input: BufReader<File>,
        delimiter: u8,
        options: &DataOptions,
    ) -> Result<Self, Error> {
        let quoting = delimiter != b'\t';
        let max_row_bytes = options.row_limit();
        let behind = Behind { bytes: VecDeque::new(), at: 0, line: 1, ended: false, max_row_bytes };
        let behind = Rc::new(RefCell::new(behind));
        // The header is read as a row like any other.
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .quoting(quoting)
            .has_headers(false)
            .flexible(true)
            .from_reader(Tee { input, behind: behind.clone() });
        let mut header = csv::ByteRecord::new();
        reader.read_byte_record(&mut header).map_err(|e| csv_error(path, 1, e))?;
        let names: Result<Vec<String>, _> =
            header.iter().map(|name| std::str::from_utf8(name).map(|n| n.trim().to_string())).collect();
        let bad = |reason: String| Error::DataFile { path: path.into(), reason };
        let names = names.map_err(|e| bad(format!("header: {}", not_utf8(&e))))?;
        if names.is_empty() {
            return Err(bad("it holds no example: the file is empty".into()));
        }
        let headless = options.glue().and_then(|glue| glue.layout().headless);
        let headless = headless.filter(|columns| !names.iter().any(|name| columns.contains(&name.as_str())));
        let (names, first) = match headless {
            Some(columns) => (columns.iter().map(ToString::to_string).collect(), Some(header)),
            None => (names, None),
        };
        check_header(&names, options).map_err(bad)?;
        Ok(Self { path: path.into(), reader, behind, names: names.into(), quoting, first })
    }

    fn row(&self, record: csv::ByteRecord) -> Row {
        let mut behind = self.behind.borrow_mut();
        let line = behind.line_of(&record);
        if self.quoting && behind.open_quote(&record) {
            return Row { line, raw: Raw::Bad("a quote opens here and is never closed".into()) };
        }
        if record.len() != self.names.len() {
            let quote = if self.quoting {
                "; a field that holds commas, quotes or line ends needs quotes"
            } else {
                ""
            };
            let reason = format!("{} fields, the header has {}{quote}", record.len(), self.names.len());
            return Row { line, raw: Raw::Bad(reason) };
        }
        Row { line, raw: Raw::Table(self.names.clone(), record) }
    }
}

/// Bytes that the parser reads at a time, and one row more.
const READ_AHEAD: usize = 1 << 16;

/// Passes the file on to the CSV parser and keeps what it has not accounted for.
struct Tee {
    input: BufReader<File>,
    behind: Rc<RefCell<Behind>>,
}

impl Read for Tee {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut behind = self.behind.borrow_mut();
        // What was read ahead may be of rows to come, but not much.
        if behind.bytes.len() > behind.max_row_bytes.saturating_add(READ_AHEAD) {
            return Err(too_long(behind.max_row_bytes));
        }
        let n = self.input.read(buffer)?;
        behind.bytes.extend(&buffer[..n]);
        behind.ended = n == 0 && !buffer.is_empty();
        Ok(n)
    }
}

/// The bytes from the start of a record on. The parser's own line numbers are no use in messages: a
/// record begins, for it, before the blank lines and the second half of a CRLF that it skips.
struct Behind {
    bytes: VecDeque<u8>,
    /// Offset of the first of them in the file, and its line.
    at: u64,
    line: u64,
    /// The parser has seen the end of the file.
    ended: bool,
    max_row_bytes: usize,
}

impl Behind {
    /// Moves on to a record and gives its line.
    fn line_of(&mut self, record: &csv::ByteRecord) -> u64 {
        let start = record.position().map_or(self.at, csv::Position::byte);
        while let Some(&byte) = self.bytes.front()
            && (self.at < start || matches!(byte, b'\r' | b'\n'))
        {
            self.bytes.pop_front();
            self.at += 1;
            self.line += u64::from(byte == b'\n');
        }
        self.line
    }

    /// Moves on to the line of a record that could not be read: the bytes begin with the record before, if there is one.
    fn skip_record(&mut self) {
        self.line += u64::from(self.bytes.contains(&b'\n'));
    }

    /// Whether the record it stands at was ended by the end of the file within quotes: it then holds
    /// all lines from the stray quote on, which nobody meant. A record of several lines has quoted
    /// fields, and in those quotes come in pairs.
    fn open_quote(&self, record: &csv::ByteRecord) -> bool {
        self.ended
            && record.as_slice().contains(&b'\n')
            && self.bytes.iter().filter(|&&byte| byte == b'"').count() % 2 == 1
    }
}

impl Iterator for Rows {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(first) = self.first.take() {
            return Some(Ok(self.row(first)));
        }
        let mut record = csv::ByteRecord::new();
        match self.reader.read_byte_record(&mut record) {
            Ok(true) => Some(Ok(self.row(record))),
            Ok(false) => None,
            Err(error) => {
                let mut behind = self.behind.borrow_mut();
                behind.skip_record();
                Some(Err(csv_error(&self.path, behind.line, error)))
            }
        }
    }
}

/// Every column that will be read exists, once.
fn check_header(names: &[String], options: &DataOptions) -> Result<(), String> {
    let unique = |name: &str| match names.iter().filter(|n| *n == name).count() {
        0 => Err(missing_column(name, names)),
        1 => Ok(()),
        n => Err(format!("{n} columns are called {name:?}: rename all but one")),
    };
    if options.task.compares() || options.task == Task::Grpo {
        // Each row says what it lacks.
        return Ok(());
    }
    if options.task != Task::Lm {
        let columns = Columns::find(options, &|name| names.iter().any(|n| n == name))
            .map_err(|reason| format!("{reason}; the columns are {names:?}"))?;
        return columns.names().try_for_each(unique);
    }
    let roles = Roles::find(options, false, |name| names.iter().any(|n| n == name))
        .map_err(|reason| format!("{reason} among the columns {names:?}: {NAME_COLUMNS}"))?;
    let mut wanted = Vec::new();
    match roles {
        Roles::Text(text) => wanted.push(text),
        Roles::Messages(_) => {}
        Roles::Alpaca => wanted.extend(["instruction", "output"]),
        Roles::Pair { prompt, completion } => {
            wanted.push(completion);
            match &options.prompt_template {
                Some(template) => {
                    wanted.extend(template.columns().map(|c| if c == "prompt" { prompt } else { c }));
                }
                None => wanted.push(prompt),
            }
        }
    }
    wanted.into_iter().try_for_each(unique)
}

/// An error of the record that begins at `line`.
fn csv_error(path: &Path, line: u64, error: csv::Error) -> Error {
    let line = error.position().map_or(line, csv::Position::line);
    let reason = error.to_string();
    match error.into_kind() {
        csv::ErrorKind::Io(source) => row_error(path, line, source),
        _ => Error::Line { path: path.into(), line, reason },
    }
}
