//! Losses: what a head is trained for. [`contract`] says what a loss is; each is a file of its own and a line of [`ALL`].

mod classes;
mod completions;
mod contract;
mod dual;
mod in_batch_negatives;
mod kto;
mod language;
mod masked;
mod multi_label;
mod options;
mod pair_losses;
mod policy;
mod preference;
mod reward;
mod squared_error;

use lowrank_models::Head;

pub(crate) use completions::{completion_logps, sample_logps};
pub(crate) use contract::{Means, Objective, Tally, known_name, positive};
pub use contract::{Metrics, Prediction, Scores};
pub use options::{ImportanceSamplingLevel, LossOptions, LossType};

use crate::pack::PackedBatch;
use crate::task::Task;

/// Every loss.
static ALL: [&dyn Objective; 10] = [
    &policy::Policy,
    &preference::Preference,
    &kto::Kto,
    &reward::Reward,
    &language::Language,
    &masked::Masked,
    &classes::Classes,
    &multi_label::MultiLabel,
    &squared_error::SquaredError,
    &in_batch_negatives::InBatchNegatives,
];

/// The loss of a batch under `head`.
///
/// # Panics
/// Where the model has no head.
pub(crate) fn of_batch(head: &Head, batch: &PackedBatch) -> &'static dyn Objective {
    let found = ALL.into_iter().find(|objective| objective.matches(head, batch));
    found.unwrap_or_else(|| panic!("a model with {} has no loss", head.name()))
}

/// The loss that `task` is trained with.
pub(crate) fn of_task(task: Task) -> &'static dyn Objective {
    let found = ALL.into_iter().find(|objective| objective.tasks().contains(&task));
    found.unwrap_or_else(|| panic!("no loss for the task {}", task.name()))
}
