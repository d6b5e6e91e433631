//! NF4 against bitsandbytes (`tools/reference/nf4.py`), and what quantising a matrix refuses.

use lowrank_kernels::{Format, QuantizeError, RowOrder, WeightRef, quantize_matrix};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    rows: usize,
    cols: usize,
    packed: String,
    absmax: String,
    nested_absmax: String,
    offset: String,
    first: String,
    last: String,
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect()
}

fn numbers(hex: &str) -> Vec<f32> {
    bytes(hex).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four"))).collect()
}

/// Number `i` of the matrix of the fixture.
fn number(i: usize) -> f32 {
    let noise = (((i as u64 * 2654435761) % (1 << 32)) >> 8) as f32 * 2f32.powi(-24) - 0.5;
    let block = i / 64;
    noise * ((1.0 + (block * 37 % 64) as f32 / 64.0) * 2f32.powi(-((block % 5) as i32)))
}

fn quantized(
    rows: usize,
    cols: usize,
    number: impl Fn(usize) -> f32 + Sync,
) -> Result<Vec<u8>, QuantizeError> {
    let mut out = vec![0; Format::NF4.matrix_bytes(rows, cols).expect("whole blocks")];
    let fill = |row: usize, out: &mut [f32]| {
        out.iter_mut().enumerate().for_each(|(col, x)| *x = number(row * cols + col));
    };
    quantize_matrix(Format::NF4, rows, cols, fill, &mut out).map(|()| out)
}

#[test]
fn a_matrix_is_quantised_as_bitsandbytes_does() {
    let fixture: Fixture =
        serde_json::from_str(include_str!("fixtures/nf4.json")).expect("the fixture is valid");
    let (rows, cols) = (fixture.rows, fixture.cols);
    let ours = quantized(rows, cols, number).unwrap();
    let (blocks, tail) = ours.split_at(rows * cols / 64 * 33);
    let packed = bytes(&fixture.packed);
    let theirs = |i: usize| if i.is_multiple_of(2) { packed[i / 2] >> 4 } else { packed[i / 2] & 15 };
    let absmax = bytes(&fixture.absmax);
    assert_eq!(blocks.len() / 33, absmax.len());
    for (b, block) in blocks.chunks_exact(33).enumerate() {
        assert_eq!(block[0], absmax[b], "scale of block {b}");
        for (i, byte) in block[1..].iter().enumerate() {
            assert_eq!((byte & 15, byte >> 4), (theirs(64 * b + i), theirs(64 * b + 32 + i)), "block {b}");
        }
    }
    let tail: Vec<f32> = tail.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    // torch sums the mean in f32.
    let close = |a: f32, b: f32| (a - b).abs() <= 2e-7 * b.abs();
    assert!(close(tail[0], numbers(&fixture.offset)[0]), "{}", tail[0]);
    let groups = numbers(&fixture.nested_absmax);
    assert_eq!(tail.len() - 1, groups.len());
    assert!(tail[1..].iter().zip(&groups).all(|(a, b)| close(*a, *b)), "{tail:?} {groups:?}");

    // With their scales of scales, the values are theirs to the bit.
    let mut whole = blocks.to_vec();
    whole.extend(bytes(&fixture.offset));
    whole.extend(bytes(&fixture.nested_absmax));
    let w = WeightRef { format: Format::NF4, rows, cols, order: RowOrder::Plain, bytes: &whole };
    let mut back = vec![f32::NAN; rows * cols];
    back.chunks_exact_mut(cols).enumerate().for_each(|(row, out)| w.expand(row, 0..cols, out));
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&back[..256]), bits(&numbers(&fixture.first)));
    assert_eq!(bits(&back[back.len() - 256..]), bits(&numbers(&fixture.last)));
    // Ranges that cut blocks anywhere.
    for (start, end) in [(0, 1), (3, 64), (63, 65), (70, 200), (319, 320), (5, 5)] {
        let mut part = vec![f32::NAN; end - start];
        w.expand(7, start..end, &mut part);
        assert_eq!(bits(&part), bits(&back[7 * cols + start..7 * cols + end]), "{start}..{end}");
    }
}

#[test]
fn zeros_stay_zeros_and_no_number_is_refused() {
    let zeros = quantized(2, 64, |_| 0.0).unwrap();
    let w = WeightRef { format: Format::NF4, rows: 2, cols: 64, order: RowOrder::Plain, bytes: &zeros };
    let mut row = [f32::NAN; 64];
    w.expand(1, 0..64, &mut row);
    assert_eq!(row, [0.0; 64]);

    for bad in [f32::NAN, f32::INFINITY] {
        let refused = quantized(3, 64, |i| if i == 70 { bad } else { 1.0 });
        assert_eq!(refused, Err(QuantizeError::NotFinite { row: 1 }));
    }
    let mut out = [];
    let refused = quantize_matrix(Format::NF4, 1, 65, |_, _| (), &mut out);
    assert_eq!(refused, Err(QuantizeError::Cols { format: Format::NF4, cols: 65 }));
}

#[test]
fn other_formats_are_quantised_row_by_row() {
    let (rows, cols) = (5, 64);
    let fill = |row: usize, out: &mut [f32]| {
        out.iter_mut().enumerate().for_each(|(col, x)| *x = number(row * cols + col));
    };
    for format in [Format::F32, Format::BF16, Format::Q8_0] {
        let mut out = vec![0; format.matrix_bytes(rows, cols).unwrap()];
        quantize_matrix(format, rows, cols, fill, &mut out).unwrap();
        let mut want = Vec::new();
        for row in 0..rows {
            let mut numbers = vec![0.0; cols];
            fill(row, &mut numbers);
            lowrank_kernels::quantize(format, &numbers, &mut want).unwrap();
        }
        assert_eq!(out, want, "{}", format.name());
    }
}
