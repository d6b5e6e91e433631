//! What must be the same on all ranks of a run, and whether there is work for all.

use lowrank_comm::Communicator;
use lowrank_engine::{Params, kernels};
use lowrank_train::{Batches, Examples, LoopOptions, RunState, SHARD_TOKENS, check_same, split};
use serde_json::Value;

use crate::Result;

/// Checks that all ranks run the same program on the same model, data and options, from the same values.
///
/// # Errors
/// Names the first difference.
pub(crate) fn check(
    comm: &dyn Communicator,
    state: &RunState,
    options: &LoopOptions,
    params: &Params,
) -> Result<()> {
    if comm.size() == 1 {
        return Ok(());
    }
    let values = params.iter().flat_map(|(_, param)| param.values());
    let checksum = values.fold(0, |sum, x| crc32c::crc32c_append(sum, &x.to_le_bytes()));
    let instructions = format!("{} (bf16 {})", kernels::level_name(), kernels::rounds_to_bf16());
    let mut same = vec![
        ("program".to_owned(), program()),
        ("processor instructions (LOWRANK_KERNEL sets them)".to_owned(), instructions),
    ];
    same.extend(state.fingerprint.iter().map(|(key, value)| (format!("`{key}`"), value.to_string())));
    let eval_data = state.eval_data.as_ref().map(Value::to_string).unwrap_or_default();
    same.push(("`eval_data`".into(), eval_data));
    same.push(("options of the run".into(), format!("{options:?}")));
    same.push(("checkpoint".into(), format!("step {}", state.step)));
    same.push(("values of the adapter".into(), format!("checksum {checksum:08x}")));
    let same: Vec<(&str, String)> = same.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    Ok(check_same(comm, &same)?)
}

/// The version and a checksum of this program's file.
fn program() -> String {
    let bytes = std::env::current_exe().and_then(std::fs::read).unwrap_or_default();
    format!("version {} with checksum {:08x}", env!("CARGO_PKG_VERSION"), crc32c::crc32c(&bytes))
}

/// How many ranks share a run of several, and how many of them would have nothing to do in the largest of the steps from `step` on.
pub(crate) fn report(
    comm: &dyn Communicator,
    (train, batches): (&Examples, &Batches),
    options: &LoopOptions,
    step: u64,
) -> Vec<String> {
    let size = comm.size();
    if size == 1 {
        return Vec::new();
    }
    let examples = |batch: &Vec<usize>| train.batch(batch.iter().copied());
    let shards = batches.starting_at(step).take(8).map(|step| {
        let micro_batches: Vec<_> = step.micro_batches.iter().map(examples).collect();
        split(&micro_batches, options.share_prefix, options.shards).len()
    });
    let most = shards.max().unwrap_or(0);
    let mut lines = vec![format!("{size} processes share each step")];
    if most < size {
        lines.push(format!(
            "warning: a step has {most} parts of at least {SHARD_TOKENS} tokens, so {} of {size} processes have nothing to \
             do: raise `batch_size` or `gradient_accumulation_steps` (or `shards`)",
            size - most
        ));
    }
    lines
}
