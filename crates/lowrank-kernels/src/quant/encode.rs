//! f32 to the formats a merged model is written in, rounding as ggml's reference quantisers do.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::error::QuantizeError;
use super::{k_quants, nf4, small_blocks};
use crate::format::{Format, bf16_bits};

/// Appends `row` to `out` in `format`: `format.row_bytes(row.len())` bytes.
///
/// F32, F16 and BF16 (nearest, ties to even), and the block formats of GGUF for which [`Format::can_quantize`] holds
/// (`quantize_row_*_ref` of `ggml-quants.c`).
///
/// # Errors
/// For the other formats, and where the row is not a whole number of blocks.
pub fn quantize(format: Format, row: &[f32], out: &mut Vec<u8>) -> Result<(), QuantizeError> {
    let bytes = format.row_bytes(row.len()).ok_or(QuantizeError::Cols { format, cols: row.len() })?;
    out.reserve(bytes);
    match format {
        Format::F32 => put(row, out, f32::to_le_bytes),
        Format::F16 => {
            let mut halves = vec![f16::ZERO; row.len()];
            // By the processor's own conversion where it has one.
            halves.convert_from_f32_slice(row);
            put(&halves, out, f16::to_le_bytes);
        }
        Format::BF16 => put(row, out, |x| (bf16_bits(x) as u16).to_le_bytes()),
        Format::Q8_0 => row.chunks_exact(32).for_each(|block| small_blocks::q8_0(block, out)),
        Format::Q4_0 => row.chunks_exact(32).for_each(|block| small_blocks::q4_0(block, out)),
        Format::Q4_1 => row.chunks_exact(32).for_each(|block| small_blocks::q4_1(block, out)),
        Format::Q5_0 => row.chunks_exact(32).for_each(|block| small_blocks::q5_0(block, out)),
        Format::Q5_1 => row.chunks_exact(32).for_each(|block| small_blocks::q5_1(block, out)),
        Format::Q4_K => k_quants::q4_k(row, out),
        Format::Q5_K => k_quants::q5_k(row, out),
        Format::Q6_K => k_quants::q6_k(row, out),
        Format::NF4 => return Err(QuantizeError::WholeMatrix(format)),
        _ => return Err(QuantizeError::ReadOnly(format)),
    }
    Ok(())
}

/// Quantises a whole matrix into `out` on the threads of the current pool: `fill(i, row)` writes row `i`. The
/// formats of [`quantize`], and NF4.
///
/// # Errors
/// As [`quantize`], and for NF4 where a value is not finite.
///
/// # Panics
/// Where `out` is not [`Format::matrix_bytes`] long.
pub fn quantize_matrix(
    format: Format,
    rows: usize,
    cols: usize,
    fill: impl Fn(usize, &mut [f32]) + Sync,
    out: &mut [u8],
) -> Result<(), QuantizeError> {
    let bytes = format.row_bytes(cols).ok_or(QuantizeError::Cols { format, cols })?;
    assert_eq!(
        Some(out.len()),
        format.matrix_bytes(rows, cols),
        "bytes of {rows} x {cols} {}",
        format.name()
    );
    if out.is_empty() {
        return Ok(());
    }
    if format == Format::NF4 {
        return nf4::quantize(rows, cols, fill, out);
    }
    out.par_chunks_exact_mut(bytes).enumerate().try_for_each(|(row, out)| {
        let (mut numbers, mut packed) = (vec![0.0; cols], Vec::new());
        fill(row, &mut numbers);
        quantize(format, &numbers, &mut packed)?;
        out.copy_from_slice(&packed);
        Ok(())
    })
}

/// Appends the bytes of each value, in a loop that can be vectorised.
fn put<T: Copy, const N: usize>(numbers: &[T], out: &mut Vec<u8>, bytes: impl Fn(T) -> [u8; N]) {
    let at = out.len();
    out.resize(at + N * numbers.len(), 0);
    let places = out[at..].chunks_exact_mut(N).zip(numbers);
    places.for_each(|(place, number)| place.copy_from_slice(&bytes(*number)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_types_are_rounded_as_half_rounds_them() {
        let odd =
            [0.0, -0.0, 1.0, f32::MAX, f32::MIN_POSITIVE, 1e-45, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        let mut numbers: Vec<f32> = (0..40_000u32).map(|i| f32::from_bits(i.wrapping_mul(107_377))).collect();
        numbers.extend(odd);
        numbers.extend((0..64).map(|i| f32::from_bits(0x3f80_8000 + (i << 15))));
        let bytes = |format| {
            let mut out = vec![7];
            quantize(format, &numbers, &mut out).unwrap();
            out
        };
        let want = |one: &dyn Fn(f32) -> Vec<u8>| -> Vec<u8> {
            std::iter::once(7).chain(numbers.iter().flat_map(|x| one(*x))).collect()
        };
        assert_eq!(bytes(Format::F32), want(&|x| x.to_le_bytes().to_vec()));
        assert_eq!(bytes(Format::F16), want(&|x| f16::from_f32(x).to_le_bytes().to_vec()));
        assert_eq!(bytes(Format::BF16), want(&|x| half::bf16::from_f32(x).to_le_bytes().to_vec()));
    }
}
