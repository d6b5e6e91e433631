//! From a data file to a trained adapter.
//!
//! [`data`] reads examples, [`pack`] lays them out as batches without padding, [`schedule`] gives the
//! learning rate of a step, [`log`] writes what happened, [`memory`] says what it took.

pub mod batches;
pub mod data;
mod error;
pub mod log;
pub mod memory;
pub mod pack;
pub mod schedule;

pub use batches::{BatchOptions, Batches, Step};
pub use data::{DataFormat, DataOptions, DataReport, Dataset, Encode, Example, ExampleId, Message, Template};
pub use error::Error;
pub use pack::{PackedBatch, pack};
pub use schedule::{LrScheduler, Schedule};
