//! JSON lines: one object a line, blank lines between them ignored.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::fields::{Raw, Row};
use crate::Error;

pub(super) struct Lines {
    path: PathBuf,
    input: BufReader<File>,
    line: u64,
}

impl Lines {
    pub fn new(path: &Path, mut input: BufReader<File>) -> Result<Self, Error> {
        let start = input.fill_buf().map_err(Error::io(path))?;
        if start.trim_ascii_start().first() == Some(&b'[') {
            return Err(Error::DataFile {
                path: path.into(),
                reason: "it is one JSON list: write one object a line (`jq -c '.[]' old.json > new.jsonl`)"
                    .into(),
            });
        }
        Ok(Self { path: path.into(), input, line: 0 })
    }
}

impl Iterator for Lines {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut bytes = Vec::new();
            match self.input.read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(_) => self.line += 1,
                Err(source) => return Some(Err(Error::io(&self.path)(source))),
            }
            if !bytes.trim_ascii().is_empty() {
                return Some(Ok(Row { line: self.line, raw: Raw::Json(bytes) }));
            }
        }
    }
}
