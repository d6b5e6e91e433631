//! A run of several ranks: what must be the same, and how they fail together.

use lowrank_comm::Communicator;
use lowrank_engine::kernels;
use lowrank_train::log::Progress;
use lowrank_train::{SHARD_TOKENS, check_same};
use serde_json::Value;

use crate::finetune::Prepared;
use crate::options::TrainOptions;
use crate::{Error, Result, Session};

/// Ends all ranks where one failed.
///
/// # Errors
/// As [`lowrank_comm::all_well`].
pub fn all_well<T>(comm: &dyn Communicator, own: Result<T>) -> Result<T> {
    lowrank_comm::all_well(comm, own, Error::exit_code)
}

/// Checks that all ranks run the same program on the same model, data and options, from the same values.
pub(crate) fn check_same_run(
    session: &Session,
    options: &TrainOptions,
    prepared: &Prepared<'_>,
) -> Result<()> {
    let comm = &*session.comm;
    if comm.size() == 1 {
        return Ok(());
    }
    let Prepared { stepper, state, loop_options, .. } = prepared;
    let values = stepper.adapters.params.iter().flat_map(|(_, param)| param.values());
    let checksum = values.fold(0, |sum, x| crc32c::crc32c_append(sum, &x.to_le_bytes()));
    let mut same = vec![
        ("program".to_owned(), program()),
        (
            "processor instructions (set LOWRANK_KERNEL)".to_owned(),
            format!("{} (bf16 {})", kernels::level_name(), kernels::rounds_to_bf16()),
        ),
    ];
    same.extend(state.fingerprint.iter().map(|(key, value)| (format!("`{key}`"), value.to_string())));
    let eval_data = state.eval_data.as_ref().map(Value::to_string).unwrap_or_default();
    same.push(("`eval_data`".into(), eval_data));
    same.push(("options of the run".into(), format!("{loop_options:?} {:?}", options.sample_prompts)));
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

/// Says how many ranks there are, and where some would have nothing to do.
pub(crate) fn report(comm: &dyn Communicator, prepared: &Prepared<'_>, progress: &mut Progress) {
    let size = comm.size();
    if size == 1 {
        return;
    }
    progress.message(&format!("{size} processes share each step"));
    let steps = prepared.batches.starting_at(prepared.state.step).take(8);
    let examples = |batch: &Vec<usize>| prepared.train.examples.batch(batch.iter().copied());
    let shards = steps.map(|step| {
        let micro_batches: Vec<_> = step.micro_batches.iter().map(examples).collect();
        let options = &prepared.loop_options;
        lowrank_train::split(&micro_batches, options.share_prefix, options.shards).len()
    });
    let most = shards.max().unwrap_or(0);
    if most < size {
        progress.message(&format!(
            "warning: a step has {most} parts of at least {SHARD_TOKENS} tokens, so {} of {size} processes have nothing to do: \
             raise `batch_size` or `gradient_accumulation_steps` (or `shards`)",
            size - most
        ));
    }
}

/// Prints a line on standard error, on the first rank.
pub(crate) fn say(text: &str) {
    if lowrank_comm::is_first_rank() {
        eprintln!("{text}");
    }
}
