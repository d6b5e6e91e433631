//! Fine-tuning beside serving: files and jobs as OpenAI has them, kept in a folder.
//!
//! ```text
//! DIR/files/ID.json       what is known of a file      DIR/files/ID      its bytes
//! DIR/jobs/ID/job.json    a job and where it is        DIR/jobs/ID/run/  the run's folder: adapter, checkpoints, log
//! ```
//!
//! A job is a process of its own over the same mapped base, at the lowest priority: it computes while no request does. It saves its
//! state as every run, so that it continues bit-identically after a pause, a restart or a crash.

mod files;
mod record;
mod runner;

pub use record::{Hyperparameters, Job, Method, Status};
pub use runner::Jobs;
