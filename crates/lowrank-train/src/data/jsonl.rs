//! JSON lines: one object a line, blank lines between them ignored.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::fields::{Raw, Row, read_line, row_error};
use crate::Error;

pub(super) struct Lines {
    path: PathBuf,
    input: BufReader<File>,
    line: u64,
    max_row_bytes: usize,
}

impl Lines {
    pub fn new(path: &Path, mut input: BufReader<File>, max_row_bytes: usize) -> Result<Self, Error> {
        let start = input.fill_buf().map_err(Error::io(path))?;
        if start.trim_ascii_start().first() == Some(&b'[') {
            return Err(Error::DataFile {
                path: path.into(),
                reason: "it is one JSON list: write one object a line (`jq -c '.[]' old.json > new.jsonl`)"
                    .into(),
            });
        }
        Ok(Self { path: path.into(), input, line: 0, max_row_bytes })
    }
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
