//! The formats against the values of the Python `gguf` package (`tools/reference/quant.py`).

use std::collections::HashMap;

use lowrank_kernels::{
    Format, QuantizeError, RowOrder, WeightRef, e4m3_to_f32, nf4_tables, pack_codes, pack_nf4, quantize,
    quantize_matrix, row_levels,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    decode: HashMap<String, Decoded>,
    rows: String,
    encode: HashMap<String, String>,
}

#[derive(Deserialize)]
struct Decoded {
    blocks: String,
    numbers: String,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("fixtures/quant.json")).expect("the fixture is valid")
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect()
}

fn numbers(hex: &str) -> Vec<f32> {
    bytes(hex).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four"))).collect()
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    // Zeros compare equal whatever their sign: numpy and C differ on 0 * -8.
    numbers.iter().map(|x| if *x == 0.0 { 0 } else { x.to_bits() }).collect()
}

/// Whether files hold the format; the others are made while loading.
fn of_file(format: Format) -> bool {
    use Format::*;
    !matches!(format, INT4 | INT8 | F8_E4M3 | NF4_F32 | NF4)
}

#[test]
fn blocks_expand_to_the_numbers_of_the_reference() {
    let mut cases = fixture().decode;
    let ggml: Ggml = serde_json::from_str(include_str!("fixtures/ggml_quants.json")).unwrap();
    cases.extend(ggml.read);
    for format in Format::ALL.into_iter().filter(|f| *f != Format::F32 && of_file(*f)) {
        let case = &cases[format.name()];
        let (blocks, want) = (bytes(&case.blocks), numbers(&case.numbers));
        let w = WeightRef { format, rows: 1, cols: want.len(), order: RowOrder::Plain, bytes: &blocks };
        let mut all = vec![f32::NAN; want.len()];
        w.expand(0, 0..want.len(), &mut all);
        assert_eq!(bits(&all), bits(&want), "{}", format.name());
        // Ranges that cut blocks anywhere.
        for (start, end) in [(0, 1), (1, 31), (5, 64), (17, 50), (31, 33), (33, want.len()), (60, 60)] {
            let mut part = vec![f32::NAN; end - start];
            w.expand(0, start..end, &mut part);
            assert_eq!(bits(&part), bits(&want[start..end]), "{} {start}..{end}", format.name());
        }
        if let Some((quants, scales)) = row_levels(&w, 0) {
            let runs = quants.chunks_exact(16).zip(scales);
            let levels: Vec<f32> =
                runs.flat_map(|(q, scale)| q.iter().map(move |q| f32::from(*q) * scale)).collect();
            assert_eq!(bits(&levels), bits(&want), "{}", format.name());
        }
    }
}

#[test]
fn rows_come_in_hugging_face_order() {
    let data: Vec<f32> = (0..16).map(|i| i as f32).collect();
    let plain = WeightRef::from_f32(16, 1, &data);
    let w = WeightRef { order: RowOrder::RopeInterleaved { head_dim: 8 }, ..plain };
    let mut got = [0.0; 16];
    (0..16).for_each(|row| w.expand(row, 0..1, &mut got[row..row + 1]));
    assert_eq!(got, [0., 2., 4., 6., 1., 3., 5., 7., 8., 10., 12., 14., 9., 11., 13., 15.]);
}

#[test]
fn quantisers_round_as_the_reference_does() {
    let fixture = fixture();
    let rows = numbers(&fixture.rows);
    for (name, want) in &fixture.encode {
        let format = *Format::ALL.iter().find(|f| f.name() == name).expect("a known format");
        let mut got = Vec::new();
        for row in rows.chunks_exact(32) {
            quantize(format, row, &mut got).expect("a whole block");
        }
        let (got, want) = (got, bytes(want));
        let size = format.row_bytes(32).expect("one block");
        for (i, (got, want)) in got.chunks(size).zip(want.chunks(size)).enumerate() {
            assert_eq!(got, want, "{name}, row {i}");
        }
        assert_eq!(got.len(), want.len());
    }
}

/// Codes of quantized folders stand for the same values in the blocks that they are packed into.
#[test]
fn packed_codes_are_what_they_were() {
    let levels = nf4_tables().0;
    let code = |format: Format, i: usize| -> i16 {
        match format {
            // Four bits less a zero that is another in each block.
            Format::INT4 => (i * 7 % 16) as i16 - (i / 32 % 17) as i16,
            Format::INT8 => (i * 37 % 256) as i16 - 128,
            Format::F8_E4M3 => (i * 37 % 127) as i16 + 128 * (i % 2) as i16,
            _ => (i * 5 % 16) as i16,
        }
    };
    for format in [Format::INT4, Format::INT8, Format::F8_E4M3, Format::NF4_F32] {
        let (cols, len) = (17 * 64, format.block_len());
        let codes: Vec<i16> = (0..cols).map(|i| code(format, i)).collect();
        let scales: Vec<f32> = (0..cols / len).map(|i| 0.37 + i as f32).collect();
        let mut bytes = vec![0; format.row_bytes(cols).unwrap()];
        pack_codes(format, &codes, &scales, &mut bytes);
        let w = WeightRef { format, rows: 1, cols, order: RowOrder::Plain, bytes: &bytes };
        let mut got = vec![f32::NAN; cols];
        w.expand(0, 0..cols, &mut got);
        for (i, got) in got.iter().enumerate() {
            let value = match format {
                Format::F8_E4M3 => e4m3_to_f32(codes[i] as u8),
                Format::NF4_F32 => levels[codes[i] as usize],
                _ => f32::from(codes[i]),
            };
            assert_eq!(*got, value * scales[i / len], "{} value {i}", format.name());
        }
    }
    let (cols, rows) = (128, 300);
    let mut bytes = vec![0; Format::NF4.matrix_bytes(rows, cols).unwrap()];
    let codes: Vec<u8> = (0..rows * 2).map(|i| (i * 11) as u8).collect();
    let groups = [1.5, 0.25, 3.0];
    pack_nf4(&codes, 0.125, &groups, |i| (i * 3 % 16) as u8, &mut bytes);
    let w = WeightRef { format: Format::NF4, rows, cols, order: RowOrder::Plain, bytes: &bytes };
    let mut got = vec![f32::NAN; cols];
    for row in 0..rows {
        w.expand(row, 0..cols, &mut got);
        for (col, got) in got.iter().enumerate() {
            let block = row * 2 + col / 64;
            let scale = nf4_tables().1[usize::from(codes[block])] * groups[block / 256] + 0.125;
            assert_eq!(*got, levels[(row * cols + col) * 3 % 16] * scale, "NF4 {row}, {col}");
        }
    }
}

#[derive(Deserialize)]
struct Ggml {
    rows: String,
    blocks: HashMap<String, String>,
    read: HashMap<String, Decoded>,
}

/// Every block format against ggml's own quantisers (`tools/reference/ggml_quants.py`).
#[test]
fn blocks_are_ggmls_to_the_bit() {
    let fixture: Ggml = serde_json::from_str(include_str!("fixtures/ggml_quants.json")).unwrap();
    let rows = numbers(&fixture.rows);
    let blocks = Format::ALL.into_iter().filter(|f| f.block_len() > 1 && f.can_quantize());
    assert_eq!(blocks.clone().count(), fixture.blocks.len());
    for format in blocks {
        let (want, size) = (bytes(&fixture.blocks[format.name()]), format.row_bytes(256).unwrap());
        assert_eq!(want.len(), rows.len() / 256 * size);
        for (i, (row, want)) in rows.chunks_exact(256).zip(want.chunks_exact(size)).enumerate() {
            let mut got = Vec::new();
            quantize(format, row, &mut got).unwrap();
            assert_eq!(got, want, "{}, row {i}", format.name());
        }
        // A matrix is its rows, whatever the threads.
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut got = vec![0; want.len()];
            let fill = |row: usize, out: &mut [f32]| out.copy_from_slice(&rows[row * 256..][..256]);
            pool.install(|| quantize_matrix(format, rows.len() / 256, 256, fill, &mut got)).unwrap();
            assert!(got == want, "{} on {threads} threads", format.name());
        }
    }
}

/// What is read again is as near as the bits allow: the root mean square error of normal values, over theirs.
#[test]
fn more_bits_lose_less() {
    let mut values = vec![0.0; 64 * 256];
    lowrank_kernels::normal(&mut values, 0.0, 0.02, 5, 0);
    let error = |format: Format| {
        let mut bytes = Vec::new();
        quantize(format, &values, &mut bytes).unwrap();
        let cols = values.len();
        let w = WeightRef { format, rows: 1, cols, order: RowOrder::Plain, bytes: &bytes };
        let mut read = vec![f32::NAN; cols];
        w.expand(0, 0..cols, &mut read);
        let lost: f64 = read.iter().zip(&values).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        (lost / values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()).sqrt()
    };
    let bounds = [
        (Format::Q4_0, 0.088),
        (Format::Q4_1, 0.080),
        (Format::Q4_K, 0.073),
        (Format::Q5_0, 0.044),
        (Format::Q5_1, 0.039),
        (Format::Q5_K, 0.037),
        (Format::Q6_K, 0.018),
        (Format::Q8_0, 0.0055),
    ];
    for (format, most) in bounds {
        let error = error(format);
        assert!((most * 0.9..most).contains(&error), "{}: {error}", format.name());
    }
}

#[test]
fn what_cannot_be_quantised_says_so() {
    let mut out = vec![1];
    assert_eq!(
        quantize(Format::Q4_0, &[0.0; 33], &mut out),
        Err(QuantizeError::Cols { format: Format::Q4_0, cols: 33 })
    );
    assert_eq!(quantize(Format::NF4, &[0.0; 256], &mut out), Err(QuantizeError::WholeMatrix(Format::NF4)));
    for format in Format::ALL.into_iter().filter(|f| !f.can_quantize() && *f != Format::NF4) {
        assert_eq!(quantize(format, &[0.0; 256], &mut out), Err(QuantizeError::ReadOnly(format)));
    }
    assert_eq!(out, [1], "nothing is written");
}
