//! The coarse operations: each in a file with its formula, forward and backward.

mod activate;
mod add;
mod attention;
mod checkpoint;
mod columns;
mod cross_entropy;
mod disentangled;
mod dropout;
mod embedding;
mod gated;
mod linear;
mod norm;
mod prefix;
mod rows;
mod scale;
mod split;
#[cfg(test)]
mod tests;
mod unfold;

pub use attention::{Attention, Rope};
pub use cross_entropy::{Label, LmHead, Scores, TokenLoss};
pub use disentangled::Disentangled;
pub use embedding::Embedding;
pub use norm::{LayerNorm, RmsNorm};
