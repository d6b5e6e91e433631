//! Why a matrix could not be quantised.

use crate::format::Format;

/// Why a row could not be stored in a format.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QuantizeError {
    /// Rows of the format share their scales.
    #[error("{} is no format of single rows, and no file holds it: choose F16 or a format of GGUF", .0.name())]
    WholeMatrix(Format),
    /// The format is one of those that are only read.
    #[error("{} is read but not written here: choose Q8_0, Q6_K, Q5_K, Q4_K or a plain type", .0.name())]
    ReadOnly(Format),
    /// No scale makes a finite level of it.
    #[error("row {row} holds a value that is not finite")]
    NotFinite {
        /// The row of the matrix.
        row: usize,
    },
    /// A row must be a whole number of blocks.
    #[error("a row of {cols} values is not a multiple of the block of {}, {}", .format.name(), .format.block_len())]
    Cols {
        /// The format asked for.
        format: Format,
        /// Length of the row.
        cols: usize,
    },
}
