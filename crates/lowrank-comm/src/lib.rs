//! Messages between the processes (ranks) of a run.
//!
//! [`Communicator`] is what a run needs of them: [`Single`] has one rank, [`Mpi`] those that `mpirun` or `srun` started, and
//! [`Local`] processes of one machine that this program started itself. [`all_reduce_sum`] adds gradients in a fixed tree, so
//! that the sum has the same bits for any number of ranks.

mod agree;
mod callback;
mod communicator;
mod error;
mod launcher;
mod local;
mod mpi;
mod rank;
mod reduce;
mod single;

pub use agree::{Failure, agreed_to_end, all_well};
pub use callback::{AllGather, Callback};
pub use communicator::Communicator;
pub use error::{Error, Result};
pub use launcher::{Launcher, announced, start_alone};
pub use local::{Local, joins_local};
pub use mpi::Mpi;
pub use rank::{is_first_rank, process_rank, set_process_rank};
pub use reduce::{SumTree, all_reduce_sum};
pub use single::Single;
