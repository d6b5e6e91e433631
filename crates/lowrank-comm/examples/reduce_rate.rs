//! How long the sum of gradients takes: `mpirun -n 2 reduce_rate [VALUES]`, or `reduce_rate VALUES PROCESSES`.

use std::ffi::OsString;
use std::time::Instant;

use lowrank_comm::{Communicator, Local, Mpi, SumTree, all_reduce_sum, announced};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let number = |at: usize| arguments.get(at).and_then(|text| text.to_str()?.parse::<usize>().ok());
    let (values, processes) = (number(0).unwrap_or(500_000), number(1).unwrap_or(2));
    let comm: Box<dyn Communicator> = match (Local::join()?, announced()) {
        (Some(local), _) => Box::new(local),
        (None, Some(launcher)) => Box::new(Mpi::join(launcher)?),
        (None, None) => {
            let program = std::env::current_exe()?.into_os_string();
            Box::new(Local::start(processes, &[program], &arguments)?)
        }
    };
    let (tree, mut sum) = (SumTree::new(8), vec![0.0; values]);
    let own = vec![vec![1.0; values]; tree.nodes(comm.rank(), comm.size()).len()];
    let mut times = Vec::new();
    for _ in 0..50 {
        comm.barrier()?;
        let started = Instant::now();
        all_reduce_sum(&*comm, tree, &own, &mut sum)?;
        times.push(started.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    if comm.is_first() {
        println!("{} ranks, {} bytes: {:.3} ms (median of 50)", comm.size(), 4 * values, 1e3 * times[25]);
    }
    Ok(comm.finish()?)
}
