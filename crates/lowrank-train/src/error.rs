use std::fmt;
use std::path::PathBuf;

/// What can go wrong between a data file and a trained adapter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that cannot be read or written.
    #[error(transparent)]
    Io(#[from] lowrank_files::IoError),
    /// A data file that is wrong as a whole: its format, its header, or nothing in it.
    #[error("{}: {reason}", path.display())]
    DataFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, and how to put it right.
        reason: String,
    },
    /// A line of a data file that makes no example.
    #[error("{}:{line}: {reason} (use `skip_bad_lines` to skip such lines)", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: u64,
        /// What is wrong, and how to put it right.
        reason: String,
    },
    /// A row of a data file that is longer than rows may be. It is not skipped: where it ends is not known.
    #[error("{}:{line}: {what}", path.display())]
    RowTooLong {
        /// The file.
        path: PathBuf,
        /// The line that it begins with, from 1.
        line: u64,
        /// How long it may be.
        what: String,
    },
    /// Options that contradict each other or say nothing sensible.
    #[error("{0}")]
    Options(String),
    /// A loss or gradient that is no number any more.
    #[error(transparent)]
    NotFinite(Box<NotFinite>),
    /// A reward that cannot be computed.
    #[error("reward {name}: {what}")]
    Reward {
        /// The reward.
        name: String,
        /// What went wrong.
        what: String,
    },
    /// A value of the adapter that is no number any more.
    #[error(
        "step {step}: {name} is not finite any more, so it is not saved; the last checkpoint is as it was. Lower \
         `learning_rate` or set `max_grad_norm`"
    )]
    NotFiniteParameter {
        /// Optimiser steps done.
        step: u64,
        /// The parameter's name.
        name: String,
    },
    /// A model that gives no numbers for examples that were to be scored.
    #[error(
        "the model gives NaN or infinity for {}: its weights or the adapter's hold NaN or infinity, or are too large \
         (`lowrank inspect` names the tensors)",
        shown(examples)
    )]
    NoNumbers {
        /// The examples of the batch.
        examples: Vec<String>,
    },
    /// A run that cannot go on because it has no checkpoint.
    #[error("{}: no checkpoint to resume from; drop `resume` to start a run", run.display())]
    NoCheckpoint {
        /// The folder of the run.
        run: PathBuf,
    },
    /// A file of a checkpoint that is wrong.
    #[error("{}: {what}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Another rank does not answer.
    #[error(transparent)]
    Comm(#[from] lowrank_comm::Error),
    /// Another rank failed.
    #[error("rank {}: {}", .0.rank, .0.what)]
    OtherRank(lowrank_comm::Failure),
    /// Of the adapter.
    #[error(transparent)]
    Adapter(#[from] lowrank_adapters::Error),
}

/// A loss or gradient that is no number any more, and what became of the run.
#[derive(Debug, thiserror::Error)]
pub struct NotFinite {
    /// Optimiser step, from 1.
    pub step: u64,
    /// Mean loss of the step.
    pub loss: f64,
    /// L2 norm of its gradient.
    pub grad_norm: f64,
    /// What it saw.
    pub examples: Vec<String>,
    /// What is left to go on from.
    pub checkpoint: Kept,
    /// The tensor that made it so, where it is not the training.
    pub cause: Option<String>,
}

/// What is left to go on from after a step that gave no finite loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// No checkpoint was written.
    NoCheckpoint,
    /// The last checkpoint, with which finite losses were computed.
    Last,
    /// The last checkpoint gave no finite loss; that of this step took its place.
    Former(u64),
    /// The last checkpoint gave no finite loss, and there is none before it.
    None,
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, loss, grad_norm, examples, checkpoint, cause } = self;
        write!(f, "step {step}: the loss is {loss} and the gradient norm {grad_norm}")?;
        match checkpoint {
            Kept::NoCheckpoint => {}
            Kept::Last => f.write_str("; the last checkpoint is as it was")?,
            Kept::Former(step) => {
                write!(f, "; the last checkpoint leads here, so that of step {step} is the last one now")?;
            }
            Kept::None => f.write_str("; the only checkpoint leads here: use `force` to start again")?,
        }
        write!(f, ". The examples of this step: {}. ", examples.join(", "))?;
        match cause {
            Some(cause) => f.write_str(cause),
            None => {
                f.write_str("Lower `learning_rate` or set `max_grad_norm`")?;
                match checkpoint {
                    Kept::Last | Kept::Former(_) => {
                        f.write_str(", in a run that starts from the checkpoint (`init_adapter`)")
                    }
                    Kept::None | Kept::NoCheckpoint => Ok(()),
                }
            }
        }
    }
}

impl Error {
    /// Whether the cause is what the user gave, and not what happened on the way.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Io(_) | Self::NotFinite(_) | Self::NotFiniteParameter { .. } => false,
            Self::NoNumbers { .. } | Self::Comm(_) | Self::Reward { .. } => false,
            Self::OtherRank(failure) => failure.code == 2,
            _ => true,
        }
    }

    /// For `map_err`: an I/O error of `path`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| lowrank_files::IoError { path, source }.into()
    }
}

/// The first few of a list.
fn shown(examples: &[String]) -> String {
    match examples {
        [first, second, third, _, ..] => {
            format!("{first}, {second}, {third} or one of {} more", examples.len() - 3)
        }
        few => few.join(", "),
    }
}

impl From<lowrank_comm::Failure> for Error {
    fn from(failure: lowrank_comm::Failure) -> Self {
        Self::OtherRank(failure)
    }
}
