use std::io;
use std::path::PathBuf;

/// What can go wrong, from any part.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of tensors, or one that cannot be written.
    #[error(transparent)]
    Files(#[from] lowrank_files::Error),
    /// A base model.
    #[error(transparent)]
    Model(#[from] lowrank_models::Error),
    /// An adapter.
    #[error(transparent)]
    Adapter(#[from] lowrank_adapters::Error),
    /// Data or training.
    #[error(transparent)]
    Train(#[from] lowrank_train::Error),
    /// A study or a report.
    #[cfg(feature = "cli")]
    #[error(transparent)]
    Study(#[from] lowrank_study::Error),
    /// Another rank of the run does not answer.
    #[error(transparent)]
    Comm(#[from] lowrank_comm::Error),
    /// An adapter's file.
    #[error(transparent)]
    Tools(#[from] lowrank_tools::Error),
    /// Options that make no sense.
    #[error("{0}")]
    Usage(String),
    /// A file that cannot be read or written.
    #[error(transparent)]
    Io(#[from] lowrank_files::IoError),
    /// A run that is complete and could not be uploaded.
    #[error("{what}")]
    NotPushed {
        /// What came of the run.
        summary: Box<lowrank_train::Summary>,
        /// Why it was not uploaded, and how to do so.
        what: String,
    },
    /// A check that was asked for and did not hold.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// The command's exit code: 2 for wrong usage, configuration or input, 1 for a failure while running, which a file
    /// that cannot be read or written is.
    pub fn exit_code(&self) -> u8 {
        match self {
            _ if self.io_error().is_some_and(|e| e.kind() != io::ErrorKind::InvalidData) => 1,
            Self::Model(lowrank_models::Error::Hub { .. } | lowrank_models::Error::NotFinite) => 1,
            Self::Train(e) => u8::from(e.is_input()) + 1,
            #[cfg(feature = "cli")]
            Self::Study(e) => u8::from(e.is_usage()) + 1,
            Self::Failed(_) | Self::NotPushed { .. } => 1,
            Self::Comm(lowrank_comm::Error::NoLibrary { .. } | lowrank_comm::Error::OtherLibrary { .. }) => 2,
            Self::Comm(_) => 1,
            _ => 2,
        }
    }

    /// The error of the operating system behind this one.
    pub fn io_error(&self) -> Option<&io::Error> {
        type Link<'a> = &'a (dyn std::error::Error + 'static);
        let mut chain = std::iter::successors(Some(self as Link<'_>), |error| error.source());
        chain.find_map(|error| error.downcast_ref())
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| lowrank_files::IoError { path, source }.into()
    }
}

impl From<lowrank_comm::Failure> for Error {
    fn from(failure: lowrank_comm::Failure) -> Self {
        lowrank_train::Error::from(failure).into()
    }
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
