//! Weights for tests, also those of other crates. The parent has the name `Format`.

use super::Format;

/// A weight in blocks: random bytes, but with scales that keep every value modest.
pub fn random_blocks(format: Format, rows: usize, cols: usize, mut bits: impl FnMut() -> u32) -> Vec<u8> {
    let blocks = rows * format.row_bytes(cols).expect("whole blocks");
    let mut bytes: Vec<u8> = (0..blocks).map(|_| bits() as u8).collect();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        for &at in format.half_scales() {
            let scale = 0x1c00 + (bits() % 0x800) as u16 + ((bits() % 2) << 15) as u16;
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
        match format {
            Format::INT4 => {
                block[..4].copy_from_slice(&((bits() % 64) as f32 / 8192.0 - 0.004).to_le_bytes());
                block[4] = 0u8.wrapping_sub(block[4] % 17);
            }
            Format::F8_E4M3 => {
                block[..4].copy_from_slice(&((bits() % 64) as f32 / 8192.0 - 0.004).to_le_bytes());
                // No NaN.
                block[4..].iter_mut().for_each(|byte| *byte &= 0xbf);
            }
            Format::Q8_K | Format::INT8 | Format::NF4_F32 => {
                block[..4].copy_from_slice(&((bits() % 64) as f32 / 8192.0 - 0.004).to_le_bytes())
            }
            // The exponent of its scale.
            Format::IQ1_M => block[55] = block[55] & 0x8f | 0x10,
            Format::MXFP4 => block[0] = 116 + block[0] % 8,
            Format::NVFP4 => block[..4].iter_mut().for_each(|scale| *scale %= 16),
            _ => {}
        }
    }
    if format == Format::NF4 {
        bytes.extend(0.05f32.to_le_bytes());
        let groups = (format.matrix_bytes(rows, cols).expect("whole blocks") - bytes.len()) / 4;
        bytes.extend((0..groups).flat_map(|i| (0.04 + 0.01 * i as f32).to_le_bytes()));
    }
    bytes
}
