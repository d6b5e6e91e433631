//! The formats against the values of the Python `gguf` package (`tools/reference/quant.py`).

use std::collections::HashMap;

use lowrank_kernels::{Format, QuantizeError, RowOrder, WeightRef, quantize};
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

#[test]
fn blocks_expand_to_the_numbers_of_the_reference() {
    let fixture = fixture();
    for format in Format::ALL.into_iter().filter(|f| ![Format::F32, Format::NF4].contains(f)) {
        let case = &fixture.decode[format.name()];
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

#[test]
fn what_cannot_be_quantised_says_so() {
    let mut out = vec![1];
    assert_eq!(
        quantize(Format::Q4_0, &[0.0; 33], &mut out),
        Err(QuantizeError::Cols { format: Format::Q4_0, cols: 33 })
    );
    assert_eq!(quantize(Format::Q6_K, &[0.0; 256], &mut out), Err(QuantizeError::Unsupported(Format::Q6_K)));
    assert_eq!(out, [1], "nothing is written");
}
