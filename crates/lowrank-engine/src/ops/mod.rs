//! The coarse operations: each in a file with its formula, forward and backward.

mod attention;
mod checkpoint;
mod cross_entropy;
mod embedding;
mod gated;
mod linear;
mod norm;

pub use attention::{Attention, Rope};
pub use cross_entropy::{Label, Scores};
pub use embedding::Embedding;
pub use linear::Linear;
pub use norm::RmsNorm;
