//! Tagged sentences in CoNLL's form: a word and its tag a line, the first and last of its columns; a blank line ends a
//! sentence. `-DOCSTART-` lines are passed over.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::fields::{Raw, Row, not_utf8, read_line, row_error};
use crate::Error;

pub(super) struct Sentences {
    path: PathBuf,
    input: BufReader<File>,
    line: u64,
    max_row_bytes: usize,
}

impl Sentences {
    pub fn new(path: &Path, input: BufReader<File>, max_row_bytes: usize) -> Self {
        Self { path: path.into(), input, line: 0, max_row_bytes }
    }
}

impl Iterator for Sentences {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let (mut words, mut tags, mut start, mut left) = (Vec::new(), Vec::new(), 0, self.max_row_bytes);
        loop {
            let mut bytes = Vec::new();
            match read_line(&mut self.input, left, &mut bytes) {
                Err(source) => return Some(Err(row_error(&self.path, self.line + 1, source))),
                Ok(0) if words.is_empty() => return None,
                Ok(n) => {
                    self.line += u64::from(n > 0);
                    // A sentence is a row; between two there is none.
                    left = if words.is_empty() { self.max_row_bytes } else { left - n };
                }
            }
            let line = self.line;
            let bad = |reason: String| Some(Ok(Row { line, raw: Raw::Bad(reason) }));
            let text = match std::str::from_utf8(&bytes) {
                Ok(text) => text.trim(),
                Err(error) => return bad(not_utf8(&error)),
            };
            if text.is_empty() || text.starts_with("-DOCSTART-") {
                if words.is_empty() {
                    continue;
                }
                let row = json!({"tokens": words, "tags": tags});
                return Some(Ok(Row { line: start, raw: Raw::Json(row.to_string().into_bytes()) }));
            }
            let mut columns = text.split_whitespace();
            let word = columns.next().unwrap_or_default();
            let Some(tag) = columns.next_back() else {
                return bad("a word without tag: a line is a word, blanks, and its tag".into());
            };
            if words.is_empty() {
                start = line;
            }
            words.push(word.to_owned());
            tags.push(tag.to_owned());
        }
    }
}
