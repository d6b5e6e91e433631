//! Ranks that `mpirun`, `mpiexec` or `srun` started, over an MPI library that is opened at run time.

#[cfg(unix)]
mod library;

#[cfg(unix)]
mod ranks;
#[cfg(unix)]
pub use ranks::Mpi;

#[cfg(not(unix))]
mod absent;
#[cfg(not(unix))]
pub use absent::Mpi;
