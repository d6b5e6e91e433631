//! LoRA fine-tuning on the machine you have.
//!
//! Open a base model, with an adapter or without, and generate:
//!
//! ```no_run
//! # fn main() -> lowrank::Result<()> {
//! let session = lowrank::Session::open("model.gguf")?.with_adapter("adapter")?;
//! println!("{}", session.generate("Once upon a time")?);
//! println!("{}", session.chat("What is the Wi-Fi password?")?);
//! # Ok(())
//! # }
//! ```
//!
//! Say how to train, and get an adapter folder that PEFT loads:
//!
//! ```no_run
#![doc = include_str!("../examples/train.rs")]
//! ```
//!
//! Generate piece by piece:
//!
//! ```no_run
#![doc = include_str!("../examples/generate.rs")]
//! ```
//!
//! Merge an adapter into its base:
//!
//! ```no_run
#![doc = include_str!("../examples/merge.rs")]
//! ```
//!
//! Combine two adapters:
//!
//! ```no_run
#![doc = include_str!("../examples/compose.rs")]
//! ```
//!
//! The parts are crates of their own: [`adapters`] (LoRA and its files), [`models`] (model files,
//! architectures, generation), [`train`] (data and the trainer), [`tools`] (adapter files), [`engine`] (tensors and the tape).

// The commands name the library as everyone does.
#[cfg(feature = "cli")]
extern crate self as lowrank;

mod adapter_source;
mod card;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
mod commands;
mod data_files;
mod describe;
mod device;
mod error;
mod extraction;
mod fields;
mod finetune;
mod forecast;
mod generation;
mod merge_target;
mod merging;
mod options;
mod push;
mod push_option;
mod ranks;
mod reference;
mod reward_funcs;
mod reward_model;
mod rollouts;
mod rounding;
mod run_folder;
mod same_run;
mod sample_prompts;
mod serve_plan;
mod session;
mod shape_plan;
mod speed;
mod task;
mod task_model;
mod texts;
mod training_args;

pub use data_files::{DataFile, DataFiles};
pub use describe::describe;
pub use device::DeviceChoice;
pub use error::{Error, Result};
pub use extraction::extract_adapter;
pub use fields::{Field, FieldKind};
pub use finetune::{Prepared, finetune, finetune_with, prepare};
pub use forecast::{Forecast, forecast};
pub use generation::{Generated, Limits, TextGenerator};
pub use lowrank_adapters as adapters;
pub use lowrank_comm as comm;
pub use lowrank_engine as engine;
pub use lowrank_files as files;
#[cfg(feature = "gpu")]
pub use lowrank_gpu as gpu;
pub use lowrank_models as models;
pub use lowrank_tools as tools;
pub use lowrank_train as train;
pub use merge_target::MergeTarget;
pub use merging::{MergeCheck, Merged, Verified, merge, merge_checked, unmerge, verify_merge};
pub use options::{ALIASES, Preset, SavedActivations, TrainOptions};
pub use push::{Pushed, push};
pub use push_option::PushToHub;
pub use ranks::all_well;
pub use reference::attach_reference;
pub use reward_funcs::RewardFuncs;
pub use rounding::Loss;
pub use run_folder::LOG_FILE;
pub use serve_plan::{ServeForecast, forecast_serving};
pub use session::{Encoder, Session};
pub use shape_plan::{Need, ShapePlan, plan_shapes};
pub use speed::{Speed, measure_speed};
pub use task_model::{TaskModel, softmax};
pub use texts::{MAX_TEXT, TextOptions, continue_texts, read_texts, segments, write_texts};
pub use training_args::TrainingArgs;
