//! Flags that several commands share, and what they open, read and check. A flag of a training run is a line of
//! [`lowrank::TrainOptions`]; [`options`] makes flags of them.

pub mod adapter_files;
pub mod options;
pub mod ranges;
pub mod scoring;
pub mod search;
pub mod texts;
pub mod weighted;
