use crate::{Communicator, Error, Launcher, Result};

/// MPI, which is opened on Unix only.
pub enum Mpi {}

impl Mpi {
    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn join(launcher: Launcher) -> Result<Self> {
        let what = "MPI libraries are opened on Unix only".to_owned();
        Err(Error::NoLibrary { launcher: launcher.name, size: launcher.size, what })
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        match *self {}
    }

    fn size(&self) -> usize {
        match *self {}
    }

    fn exchange(&self, _: &[&[u8]], _: &mut [&mut [u8]]) -> Result<()> {
        match *self {}
    }

    fn abort(&self, _: u8) {
        match *self {}
    }

    fn finish(&self) -> Result<()> {
        match *self {}
    }
}
