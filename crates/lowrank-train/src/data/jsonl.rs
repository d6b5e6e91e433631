//! JSON: one object a line, blank lines between them ignored; or one list of objects.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::fields::{Raw, Row, Rows, read_line, row_error, too_long};
use crate::Error;

/// The rows of a file. It is a list where its first character says so.
pub(super) fn rows(path: &Path, input: BufReader<File>, max_row_bytes: usize) -> Result<Rows, Error> {
    let mut bytes = Bytes { input, line: 1 };
    let first = bytes.after_spaces().map_err(Error::io(path))?;
    let path = path.into();
    Ok(match first {
        Some(b'[') => {
            bytes.input.consume(1);
            Box::new(List { path, bytes, max_row_bytes, count: 0, line: 1, ended: false })
        }
        _ => Box::new(Lines { path, input: bytes.input, line: bytes.line - 1, max_row_bytes }),
    })
}

struct Lines {
    path: PathBuf,
    input: BufReader<File>,
    line: u64,
    max_row_bytes: usize,
}

impl Iterator for Lines {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut bytes = Vec::new();
            match read_line(&mut self.input, self.max_row_bytes, &mut bytes) {
                Ok(0) => return None,
                Ok(_) => self.line += 1,
                Err(source) => return Some(Err(row_error(&self.path, self.line + 1, source))),
            }
            if !bytes.trim_ascii().is_empty() {
                return Some(Ok(Row { line: self.line, raw: Raw::Json(bytes) }));
            }
        }
    }
}

/// The entries of a list, behind its bracket. An entry is found by its brackets, and parsed later.
struct List {
    path: PathBuf,
    bytes: Bytes,
    max_row_bytes: usize,
    count: u64,
    /// Where the last entry begins.
    line: u64,
    ended: bool,
}

impl List {
    /// The next entry, or none behind the last one.
    fn entry(&mut self) -> io::Result<Option<Result<Row, String>>> {
        let cut = |line| Ok(Some(Err(format!("the list is not closed: the file ends in line {line}"))));
        let bad = |what: &str, byte: u8| Ok(Some(Err(format!("{what}, not {:?}", byte as char))));
        let mut next = self.bytes.after_spaces()?;
        if next == Some(b']') {
            self.bytes.input.consume(1);
            return match self.bytes.after_spaces()? {
                Some(byte) => bad("nothing follows the list of a JSON file", byte),
                None => Ok(None),
            };
        }
        if self.count > 0 {
            match next {
                Some(b',') => self.bytes.input.consume(1),
                Some(byte) => return bad("a comma or ] follows an entry of a list", byte),
                None => return cut(self.bytes.line),
            }
            next = self.bytes.after_spaces()?;
        }
        self.count += 1;
        self.line = self.bytes.line;
        let (mut entry, mut depth, mut quoted, mut escaped) = (Vec::new(), 0usize, false, false);
        let nested = matches!(next, Some(b'{' | b'[' | b'"'));
        loop {
            let Some(byte) = self.bytes.peek()? else { return cut(self.bytes.line) };
            if !nested && matches!(byte, b',' | b']' | b'}' | b' ' | b'\t' | b'\r' | b'\n') {
                if entry.is_empty() {
                    return bad("an entry of a list is an object", byte);
                }
                break;
            }
            self.bytes.take(byte);
            entry.push(byte);
            if entry.len() > self.max_row_bytes {
                return Err(too_long(self.max_row_bytes));
            }
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ if quoted => {}
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if nested && depth == 0 && !quoted {
                break;
            }
        }
        Ok(Some(Ok(Row { line: self.line, raw: Raw::Json(entry) })))
    }
}

impl Iterator for List {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let entry = match self.entry() {
            Ok(None) => None,
            Ok(Some(Ok(row))) => return Some(Ok(row)),
            Ok(Some(Err(what))) => {
                let (line, reason) = (self.bytes.line, format!("not JSON: {what}"));
                Some(Err(Error::DataFile {
                    path: self.path.clone(),
                    reason: format!("line {line}: {reason}"),
                }))
            }
            Err(source) => Some(Err(row_error(&self.path, self.line, source))),
        };
        self.ended = true;
        entry
    }
}

/// A file byte by byte, and the line that it stands at.
struct Bytes {
    input: BufReader<File>,
    line: u64,
}

impl Bytes {
    fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.input.fill_buf()?.first().copied())
    }

    /// Goes behind `byte`, which is the next one.
    fn take(&mut self, byte: u8) {
        self.input.consume(1);
        self.line += u64::from(byte == b'\n');
    }

    /// The next byte that is no white space.
    fn after_spaces(&mut self) -> io::Result<Option<u8>> {
        loop {
            match self.peek()? {
                Some(byte) if byte.is_ascii_whitespace() => self.take(byte),
                other => return Ok(other),
            }
        }
    }
}
