//! The log-probabilities of completions under a reference model: computed once before training, and kept beside the checkpoints.

use std::collections::HashMap;
use std::path::Path;

use lowrank_adapters::{TensorView, write_tensors};
use safetensors::tensor::{Dtype, SafeTensors};

use crate::scorer::Scorer;
use crate::{Error, Examples};

/// Their file in the folder of a run.
pub const FILE: &str = "reference_logps.safetensors";

const KEY: &str = "of";

/// `[log p(first), log p(second)]` of each example, under what `scorer` has.
pub fn log_probabilities(
    scorer: &Scorer<'_>,
    examples: &Examples,
    batch_size: usize,
    share_prefix: bool,
) -> Vec<[f32; 2]> {
    let mut all = Vec::new();
    for chunk in examples.batches(batch_size) {
        let batch = scorer.pack(&chunk.iter().collect::<Vec<_>>(), share_prefix, 0);
        all.extend(scorer.completion_logps(&batch));
    }
    all
}

/// The examples with these log-probabilities.
pub fn with_reference(examples: &Examples, logps: &[[f32; 2]]) -> Examples {
    let with = |(mut example, logps): (crate::Example, &[f32; 2])| {
        example.reference = logps.to_vec();
        example
    };
    examples.iter().zip(logps).map(with).collect()
}

/// Writes log-probabilities by the name of their data; `key` says of which data and model they are.
///
/// # Errors
/// Where the file cannot be written.
pub fn save(dir: &Path, key: &str, parts: &[(&str, &[[f32; 2]])]) -> Result<(), Error> {
    let tensors = parts.iter().map(|(name, logps)| {
        let value: &[f32] = logps.as_flattened();
        ((*name).to_owned(), TensorView { shape: vec![logps.len(), 2], value })
    });
    let metadata = HashMap::from([(KEY.to_owned(), key.to_owned())]);
    Ok(write_tensors(&dir.join(FILE), tensors, metadata)?)
}

/// The log-probabilities that [`save`] wrote under this name, where they are of the same data and model.
pub fn load(dir: &Path, key: &str, name: &str, examples: usize) -> Option<Vec<[f32; 2]>> {
    let bytes = lowrank_files::read_limited(&dir.join(FILE), u64::MAX).ok()?;
    let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
    if header.metadata().as_ref()?.get(KEY)? != key {
        return None;
    }
    let file = SafeTensors::deserialize(&bytes).ok()?;
    let view = file.tensor(name).ok()?;
    if view.dtype() != Dtype::F32 || view.shape() != [examples, 2] {
        return None;
    }
    let floats = |pair: &[u8]| {
        [0, 4].map(|at| f32::from_le_bytes(pair[at..at + 4].try_into().expect("four bytes of eight")))
    };
    Some(view.data().chunks_exact(8).map(floats).collect())
}
