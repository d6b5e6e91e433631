//! LoRA and related methods: configuration in PEFT's words, attachment by module path, merging, and PEFT's files.
//!
//! From the ground up: [`LoraConfig`] is what `adapter_config.json` says; [`contract`] is what a method is; [`methods`] has
//! the methods, one file each ([`Lora`] is on one screen), and [`beside`] what is trained with any of them; [`method`] finds
//! the method of a configuration; an [`AdapterSet`] is made from a configuration and attached, trained, saved, merged.

pub mod base;
pub mod beside;
pub mod calibrate;
mod config;
pub mod contract;
mod error;
mod file;
mod init;
pub mod linalg;
pub mod low_rank;
pub mod methods;
mod mixture;
mod names;
mod optimizer;
mod pattern;
mod registry;
mod routed;
mod set;
mod store;
mod target;
mod tied;
mod training_hook;

pub use base::{BaseWeights, NoBase};
pub use beside::saved::{CLASSIFIERS, Saved};
pub use config::{LoraConfig, OneOrMany, Targets};
pub use contract::{AdaptedSite, BaseInfo, InitContext, Method, Target, Variant, WeightRows};
pub use error::Error;
pub use file::{
    CHAT_TEMPLATE_FILE, CONFIG_FILE, TASK_FILE, TENSORS_FILE, TensorView, TrainingState, adapter_folder,
    read_task, tensors_file, write_tensors,
};
pub use init::InitLoraWeights;
pub use methods::lora::Lora;
pub use names::{PeftNames, peft_names};
pub use optimizer::LoraPlus;
pub use pattern::Pattern;
pub use registry::{NamedMethod, method, targets};
pub use set::AdapterSet;
pub use store::AdapterStore;
pub use target::layer_count;
pub use training_hook::TrainingHook;
