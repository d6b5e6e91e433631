//! The paper's comparisons on one's own model and data.
//!
//! A [`Spec`] says what to compare; [`plan`] turns it into runs of the trainer; [`run_all`] does those that are not
//! done yet, each in a process of its own, so that its peak memory is its own and its failure stops no other;
//! [`study_report`] reads what they left and makes a [`report::Report`].

mod adapter;
mod amplification;
mod error;
mod latency;
pub mod report;
mod run;
mod runner;
mod sections;
mod settings;
mod single;
mod spec;
mod subspace;

pub use adapter::adapter_report;
pub use amplification::{Amplification, amplification};
pub use error::{Error, Result};
pub use latency::{Timing, time_forward};
pub use run::{Run, RunLog, RunResult, SampleLog, StepLog};
pub use runner::{Outcome, run_all, wait_for_others};
pub use sections::study_report;
pub use settings::Setting;
pub use single::{Sample, SingleRun, single_report};
pub use spec::{Spec, plan};
pub use subspace::{pairs, phi, phi_gaussian};
