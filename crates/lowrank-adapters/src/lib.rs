//! LoRA: configuration in PEFT's words, attachment by module path, merging, and PEFT's files.
//!
//! The method itself is [`Lora`], on one screen.

pub mod calibrate;
mod config;
mod conv;
mod error;
mod file;
mod init;
pub mod linalg;
mod regime;
mod set;
mod store;
mod target;
pub mod variants;

pub use config::{LoraConfig, OneOrMany, Targets};
pub use conv::{ConvConfig, ConvGrads, ConvLora};
pub use error::Error;
pub use file::{CONFIG_FILE, Numbers, TASK_FILE, TENSORS_FILE, TrainingState, read_task, write_tensors};
pub use init::InitLoraWeights;
pub use regime::Regime;
pub use set::{AdaptedSite, AdapterSet};
pub use store::AdapterStore;
pub use target::{Target, layer_count, targets};
pub use variants::lora::Lora;
pub use variants::saved::{CLASSIFIERS, Saved};
pub use variants::{BaseWeights, Method, NoBase, Variant};
