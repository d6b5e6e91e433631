//! Parquet files: each row becomes a JSON object, and goes the way of a line of JSONL. Null fields are left out, as they are
//! where a file of structs has a field for some rows only.

use std::fs::File;
use std::path::{Path, PathBuf};

use lowrank_files::catch_panic;
use parquet::column::page::Page;
use parquet::errors::ParquetError;
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row as ParquetRow};
use serde_json::{Map, Value};

use super::fields::{Raw, Row, Rows, row_error, too_long};
use crate::Error;

/// The rows of a file, numbered from 1.
pub(super) fn rows(path: &Path, max_row_bytes: usize) -> Result<Rows, Error> {
    let file = File::open(path).map_err(Error::io(path))?;
    let made = guarded(|| {
        let reader = SerializedFileReader::new(file)?;
        check_dictionaries(&reader)?;
        Ok(reader.into_iter())
    });
    let rows = made.map_err(|reason| Error::DataFile { path: path.into(), reason })?;
    Ok(Box::new(ParquetRows { path: path.into(), rows, number: 0, max_row_bytes, ended: false }))
}

struct ParquetRows {
    path: PathBuf,
    rows: RowIter<'static>,
    number: u64,
    max_row_bytes: usize,
    ended: bool,
}

impl Iterator for ParquetRows {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = guarded(|| self.rows.next().transpose());
        self.number += 1;
        let line = self.number;
        match next {
            Ok(Some(row)) => {
                let bytes = object(row).to_string().into_bytes();
                if bytes.len() > self.max_row_bytes {
                    self.ended = true;
                    return Some(Err(row_error(&self.path, line, too_long(self.max_row_bytes))));
                }
                Some(Ok(Row { line, raw: Raw::Json(bytes) }))
            }
            Ok(None) => None,
            Err(reason) => {
                self.ended = true;
                let reason = format!("row {line}: {reason}");
                Some(Err(Error::DataFile { path: self.path.clone(), reason }))
            }
        }
    }
}

/// Refuses dictionaries that say they have more values than bytes: room is made for as many as they say.
fn check_dictionaries(reader: &SerializedFileReader<File>) -> Result<(), ParquetError> {
    for number in 0..reader.num_row_groups() {
        let group = reader.get_row_group(number)?;
        for column in 0..group.num_columns() {
            let first = group.get_column_page_reader(column)?.get_next_page()?;
            if let Some(Page::DictionaryPage { buf, num_values, .. }) = first
                && num_values as usize > buf.len()
            {
                return Err(ParquetError::General(format!(
                    "column {column} of row group {number} has a dictionary of {num_values} values in {} bytes",
                    buf.len()
                )));
            }
        }
    }
    Ok(())
}

/// What `work` gives. The parser is not made for damaged files everywhere: a panic is an error of the file.
fn guarded<T>(work: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    match catch_panic(work) {
        Ok(result) => result.map_err(|error| format!("not Parquet, or damaged: {error}")),
        Err(what) => Err(format!("not Parquet, or damaged: {what}")),
    }
}

fn object(row: ParquetRow) -> Value {
    let fields = row.into_columns().into_iter().map(|(name, field)| (name, value(&field)));
    Value::Object(fields.filter(|(_, value)| !value.is_null()).collect())
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(yes) => (*yes).into(),
        Field::Byte(n) => (*n).into(),
        Field::Short(n) => (*n).into(),
        Field::Int(n) => (*n).into(),
        Field::Long(n) => (*n).into(),
        Field::UByte(n) => (*n).into(),
        Field::UShort(n) => (*n).into(),
        Field::UInt(n) => (*n).into(),
        Field::ULong(n) => (*n).into(),
        // As short as it was written: 0.1, not 0.10000000149.
        Field::Float(x) => x.to_string().parse::<f64>().map_or(Value::Null, Value::from),
        Field::Double(x) => (*x).into(),
        Field::Str(text) => text.clone().into(),
        Field::Bytes(bytes) => {
            std::str::from_utf8(bytes.data()).map_or_else(|_| format!("{field}").into(), Value::from)
        }
        Field::Group(row) => object(row.clone()),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let key = |key: &Field| match value(key) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            let entries: Map<String, Value> =
                map.entries().iter().map(|(name, entry)| (key(name), value(entry))).collect();
            entries.into()
        }
        // Times, dates and decimals as they are printed.
        other => other.to_string().into(),
    }
}
