//! Storage formats of frozen weights and a borrowed view of one weight matrix.

/// Values in a block of [`Format::NF4`].
pub(crate) const NF4_BLOCK_LEN: usize = 64;
/// Bytes of such a block.
pub(crate) const NF4_BLOCK_BYTES: usize = 33;
/// Blocks whose scales are quantised together.
pub(crate) const NF4_GROUP_BLOCKS: usize = 256;

macro_rules! formats {
    ($($(#[doc = $doc:literal])? $name:ident: $len:expr, $bytes:expr, $halves:expr;)*) => {
        /// How the values of a frozen weight are stored.
        ///
        /// The block formats are GGUF's (`ggml-common.h` of llama.cpp gives their layout), but for the last five. A row
        /// of a matrix is a whole number of blocks, so every row can be read on its own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types, missing_docs)]
        pub enum Format {
            $($(#[doc = $doc])? $name,)*
        }

        impl Format {
            /// Every format, for tests and messages.
            pub const ALL: [Self; [$(stringify!($name)),*].len()] = [$(Self::$name),*];

            /// Values in one block (1 for the plain formats).
            pub const fn block_len(self) -> usize {
                match self {
                    $(Self::$name => $len,)*
                }
            }

            /// Bytes of one block.
            pub const fn block_bytes(self) -> usize {
                match self {
                    $(Self::$name => $bytes,)*
                }
            }

            /// Where in a block its scales lie that are f16.
            pub const fn half_scales(self) -> &'static [usize] {
                match self {
                    $(Self::$name => &$halves,)*
                }
            }

            /// The name used in messages and options (GGUF's spelling).
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

// Name, values and bytes of a block, where its f16 scales are.
formats! {
    F32: 1, 4, [];
    F16: 1, 2, [];
    BF16: 1, 2, [];
    Q4_0: 32, 18, [0];
    Q4_1: 32, 20, [0, 2];
    Q5_0: 32, 22, [0];
    Q5_1: 32, 24, [0, 2];
    Q8_0: 32, 34, [0];
    Q2_K: 256, 84, [80, 82];
    Q3_K: 256, 110, [108];
    Q4_K: 256, 144, [0, 2];
    Q5_K: 256, 176, [0, 2];
    Q6_K: 256, 210, [208];
    Q8_K: 256, 292, [];
    IQ1_S: 256, 50, [0];
    IQ1_M: 256, 56, [];
    IQ2_XXS: 256, 66, [0];
    IQ2_XS: 256, 74, [0];
    IQ2_S: 256, 82, [0];
    IQ3_XXS: 256, 98, [0];
    IQ3_S: 256, 110, [0];
    IQ4_NL: 32, 18, [0];
    IQ4_XS: 256, 136, [0];
    TQ1_0: 256, 54, [52];
    TQ2_0: 256, 66, [64];
    MXFP4: 32, 17, [];
    NVFP4: 64, 36, [];
    Q1_0: 128, 18, [0];
    Q2_0: 64, 18, [0];
    #[doc = "Integers of four bits in blocks of 32: a scale (f32), what is added to each, and the integers. What GPTQ and AWQ folders become in memory."]
    INT4: 32, 21, [];
    #[doc = "Integers of eight bits in blocks of 64 with a scale (f32). What 8-bit folders become in memory."]
    INT8: 64, 68, [];
    #[doc = "Floats of eight bits (E4M3) in blocks of 64 with a scale (f32). What FP8 folders become in memory."]
    F8_E4M3: 64, 68, [];
    #[doc = "The levels of [`Format::NF4`] in blocks of 64, each with its scale as f32. What bitsandbytes folders without double quantisation become in memory."]
    NF4_F32: 64, 36, [];
    #[doc = "QLoRA's 4-bit normal float in blocks of 64, the blocks' scales quantised to 8 bits (\"double quantisation\"). No file format: a dense base becomes this when it is loaded."]
    NF4: NF4_BLOCK_LEN, NF4_BLOCK_BYTES, [];
}

impl Format {
    /// Whether [`crate::quantize`] can write rows in it; the others are only read.
    pub const fn can_quantize(self) -> bool {
        use Format::*;
        matches!(self, F32 | F16 | BF16 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q4_K | Q5_K | Q6_K)
    }

    /// Bytes of a row of `cols` values, or `None` where a row is not a whole number of blocks or
    /// the size overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Bytes of a matrix, or `None` where [`Format::row_bytes`] says so: its rows, and for NF4 what the
    /// scales of all blocks share.
    pub fn matrix_bytes(self, rows: usize, cols: usize) -> Option<usize> {
        let bytes = self.row_bytes(cols)?.checked_mul(rows)?;
        match self {
            // The scales' groups and their offset, as f32, come after the blocks.
            Self::NF4 => bytes.checked_add(4 + 4 * (bytes / NF4_BLOCK_BYTES).div_ceil(NF4_GROUP_BLOCKS)),
            _ => Some(bytes),
        }
    }
}

/// The order in which a file keeps the rows of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// As Hugging Face names them.
    Plain,
    /// llama.cpp's order for the q and k projections of the Llama family: within each head the two
    /// halves of the rotary pairs are interleaved. Row `h*d + j*d/2 + i` (Hugging Face, `j` in 0..2)
    /// is stored at `h*d + 2*i + j`.
    RopeInterleaved {
        /// Rows in one head, `d`.
        head_dim: usize,
    },
    /// llama.cpp's order for GPT-NeoX's fused query, key and value: all queries, all keys, all values. Row
    /// `(3 h + p) d + i` (Hugging Face, `p` in 0..3) of `H` heads is stored at `(p H + h) d + i`.
    PartsApart {
        /// Rows in one head, `d`.
        head_dim: usize,
    },
}

impl RowOrder {
    /// A number of rows that such an order is of a multiple of; `None`: any number.
    pub fn multiple(self) -> Option<usize> {
        match self {
            Self::Plain => None,
            Self::RopeInterleaved { head_dim } => Some(head_dim),
            Self::PartsApart { head_dim } => Some(3 * head_dim),
        }
    }
}

/// A borrowed frozen matrix `W: rows x cols`, row-major, in any [`Format`].
#[derive(Clone, Copy, Debug)]
pub struct WeightRef<'a> {
    /// Storage format of `bytes`.
    pub format: Format,
    /// Output features `O`.
    pub rows: usize,
    /// Input features `K`.
    pub cols: usize,
    /// Order of the stored rows.
    pub order: RowOrder,
    /// Exactly `format.matrix_bytes(rows, cols)` bytes.
    pub bytes: &'a [u8],
}

impl<'a> WeightRef<'a> {
    /// An F32 matrix over a slice.
    pub fn from_f32(rows: usize, cols: usize, data: &'a [f32]) -> Self {
        assert_eq!(data.len(), rows * cols);
        // SAFETY: any f32 is four initialised bytes, and u8 has no alignment requirement.
        let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), data.len() * 4) };
        Self { format: Format::F32, rows, cols, order: RowOrder::Plain, bytes }
    }

    /// Where row `row` (Hugging Face order) lies in the file.
    #[inline]
    pub fn stored_row(&self, row: usize) -> usize {
        match self.order {
            RowOrder::Plain => row,
            RowOrder::RopeInterleaved { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                let half = head_dim / 2;
                head * head_dim + 2 * (within % half) + within / half
            }
            RowOrder::PartsApart { head_dim } => {
                let (head, part, within) = (row / (3 * head_dim), row / head_dim % 3, row % head_dim);
                (part * (self.rows / (3 * head_dim)) + head) * head_dim + within
            }
        }
    }

    /// The bytes of row `row` (Hugging Face order).
    #[inline]
    pub fn row(&self, row: usize) -> &'a [u8] {
        let size = self.cols / self.format.block_len() * self.format.block_bytes();
        let at = self.stored_row(row) * size;
        &self.bytes[at..at + size]
    }
}

/// `x` rounded to BF16, nearest, ties to even. (A NaN stays one: its payload is not worth a branch, but its exponent must
/// not overflow into the sign.)
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { bits >> 16 | 0x40 } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_the_nearest_even() {
        let mut all = vec![0.0; 1000];
        crate::normal(&mut all, 0.0, 1.0, 4, 0);
        let (max, one) = (f32::MAX, 1.0 / 256.0);
        all.extend([0.0, -0.0, max, -max, f32::INFINITY, f32::NEG_INFINITY, 1.0 + one, 1.0 + 3.0 * one]);
        for x in all {
            assert_eq!(bf16_bits(x), u32::from(half::bf16::from_f32(x).to_bits()), "{x}");
        }
        assert!(f32::from_bits(bf16_bits(f32::NAN) << 16).is_nan());
    }
}
