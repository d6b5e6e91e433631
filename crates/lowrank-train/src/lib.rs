//! From a data file to a trained adapter.
//!
//! [`data`] reads examples, [`mod@pack`] lays them out as batches without padding, [`schedule`] gives the
//! learning rate of a step, [`Stepper`] takes the step, [`run`] all of them, [`Scorer`] evaluates, [`SamplePrompts`]
//! are continued on the way, [`checkpoint`] keeps a run
//! able to go on, [`log`] writes what happened, [`memory`] says what it took.

pub mod batches;
pub mod calibration;
pub mod checkpoint;
pub mod data;
mod error;
mod evaluate;
pub mod log;
mod loop_options;
pub mod masking;
pub mod memory;
pub mod metrics;
pub mod nlg;
mod objective;
pub mod pack;
mod ranks;
pub mod reference;
pub mod rewards;
mod rollout;
mod samples;
pub mod schedule;
mod scorer;
mod shards;
mod step;
pub mod task;
mod task_spec;
mod trainer;

pub use batches::{BatchOptions, Batches, Step};
pub use calibration::TrainingInputs;
pub use checkpoint::RunState;
pub use data::{
    Conversation, DataFormat, DataOptions, DataReport, Dataset, Encode, Example, ExampleId, Examples,
    Message, PromptGroup, Sample, Target, Template, Texts, TrainOnTurns,
};
pub use error::{Error, Kept, NotFinite};
pub use evaluate::{Evaluation, evaluate};
pub use loop_options::LoopOptions;
pub use masking::Masking;
pub use objective::{ImportanceSamplingLevel, LossOptions, LossType, Metrics, Prediction, Scores};
pub use pack::{PackedBatch, PackedPair, PackedSample, pack};
pub use ranks::check_same;
pub use rollout::{
    Advantages, RolloutOptions, Rollouts, SamplingOptions, SamplingPlan, SavedRollout, ScaleRewards,
    advantages, learned,
};
pub use samples::{SamplePrompt, SamplePrompts, Samples, ToText};
pub use schedule::{LrScheduler, Schedule};
pub use scorer::Scorer;
pub use shards::{SHARD_TOKENS, Shard, split};
pub use step::{Outcome, StepOptions, Stepper};
pub use task::Task;
pub use task_spec::TaskSpec;
pub use trainer::{RunData, Summary, run};
