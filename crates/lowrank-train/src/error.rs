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
    /// Options that contradict each other or say nothing sensible.
    #[error("{0}")]
    Options(String),
    /// A loss or gradient that is no number any more.
    #[error(
        "step {step}: the loss is {loss} and the gradient norm {grad_norm}; the last checkpoint is as it was. \
         The examples of this step: {}. Lower `learning_rate` or set `max_grad_norm`",
        examples.join(", ")
    )]
    NotFinite {
        /// Optimiser step, from 1.
        step: u64,
        /// Mean loss of the step.
        loss: f64,
        /// L2 norm of its gradient.
        grad_norm: f64,
        /// What it saw.
        examples: Vec<String>,
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
    /// Of the adapter.
    #[error(transparent)]
    Adapter(#[from] lowrank_adapters::Error),
}

impl Error {
    /// Whether the cause is what the user gave, and not what happened on the way.
    pub fn is_input(&self) -> bool {
        !matches!(self, Self::Io(_) | Self::NotFinite { .. } | Self::NoNumbers { .. })
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
