//! LoRA fine-tuning on the machine you have.
//!
//! Open a base model, say how to train, get an adapter folder that PEFT loads:
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//! use lowrank::{Session, TrainOptions, finetune};
//!
//! # fn main() -> lowrank::Result<()> {
//! let session = Session::open("SmolLM2-135M-Instruct.Q4_1.gguf")?;
//! let options = TrainOptions {
//!     model: "SmolLM2-135M-Instruct.Q4_1.gguf".into(),
//!     data: "train.jsonl".into(),
//!     out: "adapter".into(),
//!     ..TrainOptions::default()
//! };
//! let summary = finetune(&session, &options, &AtomicBool::new(false))?;
//! println!("{} steps, loss {:?}", summary.steps, summary.last_loss);
//! # Ok(())
//! # }
//! ```
//!
//! The parts are crates of their own: [`adapters`] (LoRA and its files), [`models`] (model files,
//! architectures, generation), [`train`] (data and the trainer), [`engine`] (tensors and the tape).

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
mod error;
mod extraction;
mod fields;
mod finetune;
mod forecast;
mod generation;
mod merge_target;
mod merging;
mod options;
mod run_folder;
mod sample_prompts;
mod serve_plan;
mod session;
mod shape_plan;
mod task;
mod task_model;
mod texts;
mod training_args;

pub use data_files::{DataFile, DataFiles};
pub use describe::describe;
pub use error::{Error, Result};
pub use extraction::extract_adapter;
pub use fields::{Field, FieldKind};
pub use finetune::{Prepared, finetune, finetune_with, prepare};
pub use forecast::{Forecast, forecast};
pub use generation::{Generated, Limits, TextGenerator};
pub use lowrank_adapters as adapters;
pub use lowrank_engine as engine;
pub use lowrank_files as files;
pub use lowrank_models as models;
pub use lowrank_tools as tools;
pub use lowrank_train as train;
pub use merge_target::MergeTarget;
pub use merging::{Loss, MergeCheck, Merged, Verified, merge, merge_checked, unmerge, verify_merge};
pub use options::{ALIASES, Preset, SavedActivations, TrainOptions};
pub use run_folder::LOG_FILE;
pub use serve_plan::{ServeForecast, forecast_serving};
pub use session::{Encoder, Session};
pub use shape_plan::{Need, ShapePlan, plan_shapes};
pub use task_model::TaskModel;
pub use texts::{MAX_TEXT, TextOptions, continue_texts, read_texts, segments, write_texts};
pub use training_args::TrainingArgs;
