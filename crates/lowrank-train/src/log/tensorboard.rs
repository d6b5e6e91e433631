//! TensorBoard event files, scalars only.
//!
//! A file is a run of TFRecords: `length: u64`, `crc(length): u32`, `data`, `crc(data): u32`, all
//! little-endian, where `crc` is CRC-32C rotated and offset so that a record may hold records. The
//! data are `Event` messages of `tensorflow/core/util/event.proto`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::Error;

/// A writer of scalars that TensorBoard shows.
pub struct TensorBoard {
    path: PathBuf,
    file: File,
}

impl TensorBoard {
    /// A new event file in `dir`, which is made where missing. A run that resumes gives the steps
    /// it has done: TensorBoard then forgets what older files in the folder say of later ones.
    ///
    /// # Errors
    /// Where the folder or the file cannot be made.
    pub fn create(dir: &Path, resumed_after: Option<u64>) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let (path, file) = fresh_file(dir)?;
        let mut board = Self { path, file };
        board.event(0, &bytes_field(3, b"brain.Event:2"))?;
        if let Some(steps) = resumed_after {
            // SessionLog { status: START }
            board.event(steps + 1, &bytes_field(7, &[field_key(1, 0), 1]))?;
        }
        Ok(board)
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Records values of one step.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<(), Error> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = bytes_field(1, tag.as_bytes());
            entry.push(field_key(2, 5));
            entry.extend((*value as f32).to_le_bytes());
            summary.extend(bytes_field(1, &entry));
        }
        self.event(step, &bytes_field(5, &summary))
    }

    /// `Event { wall_time = 1, step = 2, … what }`
    fn event(&mut self, step: u64, what: &[u8]) -> Result<(), Error> {
        let mut event = vec![field_key(1, 1)];
        event.extend(now().to_le_bytes());
        event.push(field_key(2, 0));
        varint(step, &mut event);
        event.extend(what);
        let length = (event.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(&event);
        record.extend(masked_crc(&event).to_le_bytes());
        self.file.write_all(&record).map_err(Error::io(&self.path))
    }
}

/// TensorBoard reads the files of a folder in the order of their names, so a later one must sort
/// after the earlier even within a second.
fn fresh_file(dir: &Path) -> Result<(PathBuf, File), Error> {
    let seconds = now() as u64;
    let pid = std::process::id();
    let mut count = 0;
    loop {
        let path = dir.join(format!("events.out.tfevents.{seconds:010}.lowrank.{pid}.{count:03}"));
        match OpenOptions::new().append(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => count += 1,
            Err(source) => return Err(Error::io(path)(source)),
        }
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The key of a protobuf field below 16.
const fn field_key(number: u8, wire_type: u8) -> u8 {
    number << 3 | wire_type
}

fn bytes_field(number: u8, data: &[u8]) -> Vec<u8> {
    let mut out = vec![field_key(number, 2)];
    varint(data.len() as u64, &mut out);
    out.extend(data);
    out
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The records of a file, their checksums checked against a bit-by-bit CRC of its own.
    fn records(path: &Path) -> Vec<Vec<u8>> {
        fn crc(data: &[u8]) -> u32 {
            let mut crc = !0u32;
            for byte in data {
                crc ^= u32::from(*byte);
                for _ in 0..8 {
                    crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
                }
            }
            let crc = !crc;
            crc.rotate_right(15).wrapping_add(0xa282_ead8)
        }
        let bytes = fs::read(path).unwrap();
        let mut rest = &bytes[..];
        let mut out = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(u32::from_le_bytes(rest[8..12].try_into().unwrap()), crc(&rest[..8]));
            let data = &rest[12..12 + length];
            assert_eq!(u32::from_le_bytes(rest[12 + length..16 + length].try_into().unwrap()), crc(data));
            out.push(data.to_vec());
            rest = &rest[16 + length..];
        }
        out
    }

    /// `(field, wire type, payload)` of a protobuf message; numbers as their little-endian bytes.
    fn parse(mut data: &[u8]) -> Vec<(u8, Vec<u8>)> {
        fn take_varint(data: &mut &[u8]) -> u64 {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let byte = data[0];
                *data = &data[1..];
                value |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    return value;
                }
            }
            unreachable!()
        }
        let mut out = Vec::new();
        while !data.is_empty() {
            let key = take_varint(&mut data) as u8;
            let size = match key & 7 {
                0 => {
                    out.push((key >> 3, take_varint(&mut data).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => take_varint(&mut data) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            out.push((key >> 3, data[..size].to_vec()));
            data = &data[size..];
        }
        out
    }

    #[test]
    fn reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::create(&dir.path().join("runs"), Some(299)).unwrap();
        board.scalars(300, &[("train/loss", 2.5), ("a", -1.0)]).unwrap();
        let records = records(board.path());
        assert_eq!(records.len(), 3);

        let version = parse(&records[0]);
        assert_eq!(version[2], (3, b"brain.Event:2".to_vec()));
        let start = parse(&records[1]);
        assert_eq!(start[1], (2, 300u64.to_le_bytes().to_vec()));
        assert_eq!(parse(&start[2].1), [(1, 1u64.to_le_bytes().to_vec())]);

        let event = parse(&records[2]);
        let time = f64::from_le_bytes(event[0].1.as_slice().try_into().unwrap());
        assert!(event[0].0 == 1 && (now() - time).abs() < 60.0);
        assert_eq!(event[1], (2, 300u64.to_le_bytes().to_vec()));
        let values = parse(&event[2].1);
        assert_eq!(event[2].0, 5);
        let scalar = |(number, data): &(u8, Vec<u8>)| {
            assert_eq!(*number, 1);
            let entry = parse(data);
            let value = f32::from_le_bytes(entry[1].1.as_slice().try_into().unwrap());
            (String::from_utf8(entry[0].1.clone()).unwrap(), value)
        };
        let values: Vec<_> = values.iter().map(scalar).collect();
        assert_eq!(values, [("train/loss".to_string(), 2.5), ("a".to_string(), -1.0)]);
    }

    #[test]
    fn a_second_file_sorts_after_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = TensorBoard::create(dir.path(), None).unwrap();
        let second = TensorBoard::create(dir.path(), Some(3)).unwrap();
        assert!(first.path() < second.path());
    }
}
