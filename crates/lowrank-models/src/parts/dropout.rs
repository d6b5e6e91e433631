//! The dropouts that a base model was trained with: their probabilities in `config.json`, and the place of each in the model,
//! which decides its random numbers.

use crate::{Error, Result};

/// The place of the dropout of the embeddings.
pub(crate) const EMBEDDINGS: u64 = 0;

/// The place of the dropout of a convolution behind the first block.
pub(crate) const CONVOLUTION: u64 = 1;

/// The place of the dropout before layer `i` of a head is this and `i`.
pub(crate) const HEAD: u64 = 1 << 20;

/// The places in block `layer`: attention's probabilities, attention's output, the MLP's output.
pub(crate) fn places(layer: usize) -> [u64; 3] {
    [0, 1, 2].map(|place| 4 * (layer as u64 + 1) + place)
}

/// The place of the dropout of the table of distances in block `layer`.
pub(crate) fn distances(layer: usize) -> u64 {
    4 * (layer as u64 + 1) + 3
}

/// Checks probabilities, which have the names of their fields.
pub(crate) fn check(fields: &[(&str, f32)]) -> Result<()> {
    match fields.iter().find(|(_, p)| !(0.0..1.0).contains(p)) {
        Some((name, p)) => {
            Err(Error::Config(format!("config.json: {name} is {p}; a probability below 1 is needed")))
        }
        None => Ok(()),
    }
}

/// Probabilities before the layers of a head.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadDropout {
    /// Before the dense layer of a sequence's head.
    pub dense: f32,
    /// Before the scores of a sequence.
    pub output: f32,
    /// Before the scores of tokens.
    pub token: f32,
}
