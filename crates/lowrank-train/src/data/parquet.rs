//! Parquet files: each row becomes a JSON object, and goes the way of a line of JSONL. Null fields are left out, as they are
//! where a file of structs has a field for some rows only.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lowrank_files::catch_panic;
use parquet::column::page::Page;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, Length};
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
        let opened = Arc::new(AtomicBool::new(false));
        let reader = SerializedFileReader::new(PageChecked { file, opened: opened.clone() })?;
        opened.store(true, Ordering::Relaxed);
        check_dictionaries(&reader)?;
        Ok(RowIter::from_file_into(Box::new(reader)))
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

/// A file whose pages are looked at before the parser makes room for what they say they hold. Once the file is opened, a reader
/// is asked for at the start of each page only.
struct PageChecked {
    file: File,
    opened: Arc<AtomicBool>,
}

impl Length for PageChecked {
    fn len(&self) -> u64 {
        self.file.len()
    }
}

impl ChunkReader for PageChecked {
    type T = BufReader<File>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        if self.opened.load(Ordering::Relaxed) {
            check_page(self.file.get_read(start)?, start)?;
        }
        self.file.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<bytes::Bytes, ParquetError> {
        self.file.get_bytes(start, length)
    }
}

/// No page of this size is refused, and none that unpacks to `MOST_UNPACKED` times its bytes or less: Deflate's limit is 1032,
/// Snappy's 21, and what Zstandard packs better has no reason to be in pages of this size.
const PAGE_BYTES: u64 = 16 << 20;
const MOST_UNPACKED: u64 = 1100;

/// Refuses a page that says it unpacks to more than its bytes can hold. Its header is a Thrift structure in the compact form whose
/// first three fields, in this order, are its type and its two sizes.
fn check_page(mut header: impl Read, start: u64) -> Result<(), ParquetError> {
    let mut field = || -> Result<u64, ParquetError> {
        const NEXT_FIELD_I32: u64 = 0x15;
        let tag = varint(&mut header)?;
        let number = varint(&mut header)?;
        // Zigzag: the lowest bit is the sign.
        if tag != NEXT_FIELD_I32 || number & 1 == 1 {
            return Err(ParquetError::General(format!(
                "the page at byte {start} has a header of an unknown form"
            )));
        }
        Ok(number >> 1)
    };
    let (_, unpacked, packed) = (field()?, field()?, field()?);
    if unpacked > PAGE_BYTES.max(packed.saturating_mul(MOST_UNPACKED)) {
        let reason = format!("the page at byte {start} says that its {packed} bytes unpack to {unpacked}");
        return Err(ParquetError::General(reason));
    }
    Ok(())
}

/// A number of seven bits a byte, lowest first.
fn varint(bytes: &mut impl Read) -> Result<u64, ParquetError> {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let mut byte = [0];
        bytes.read_exact(&mut byte)?;
        value |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(ParquetError::General("a number in a page's header is too long".into()))
}

/// Refuses dictionaries that say they have more values than bytes: room is made for as many as they say.
fn check_dictionaries(reader: &SerializedFileReader<PageChecked>) -> Result<(), ParquetError> {
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
