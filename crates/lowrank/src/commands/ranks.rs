//! The processes of a run: those that `mpirun` or `srun` started, or that `--processes` starts.

use std::ffi::OsString;
use std::fs;
use std::sync::{Arc, OnceLock};
use std::thread::available_parallelism;

use lowrank::comm::{
    Communicator, Local, Mpi, Single, agreed_to_end, announced, joins_local, process_rank, set_process_rank,
};
use lowrank::{Error, Result};

/// Those of this command, once they are connected.
static RANKS: OnceLock<Arc<dyn Communicator>> = OnceLock::new();

/// Connects the ranks of this command: none but itself where neither a launcher nor `processes` says otherwise.
pub fn connect(processes: Option<usize>) -> Result<Arc<dyn Communicator>> {
    let processes = processes.unwrap_or(1);
    let comm: Arc<dyn Communicator> = match (Local::join()?, announced()) {
        (Some(local), _) => Arc::new(local),
        (None, Some(launcher)) if processes > 1 => {
            let name = launcher.name;
            return Err(Error::Usage(format!(
                "`processes` starts processes, and {name} did so: use one of the two"
            )));
        }
        (None, Some(launcher)) => Arc::new(Mpi::join(launcher)?),
        (None, None) if processes > 1 => {
            let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
            Arc::new(Local::start(processes, &super::program::words()?, &arguments)?)
        }
        (None, None) => Arc::new(Single),
    };
    set_process_rank(comm.rank());
    let _ = RANKS.set(comm.clone());
    Ok(comm)
}

/// Notes which rank this process will be, before it is connected.
pub fn expect() {
    if let (false, Some(launcher)) = (joins_local(), announced()) {
        set_process_rank(launcher.rank);
    }
}

/// Prints an error: the first rank where all ranks know of it, else the rank that has it. Then ends the others.
pub fn end(code: u8, say: impl FnOnce()) {
    if agreed_to_end() {
        if process_rank() == 0 {
            say();
        }
        if let Some(comm) = RANKS.get() {
            // They end as this one does.
            let _ = comm.finish();
        }
        return;
    }
    if process_rank() > 0 {
        note_part!("rank {}: ", process_rank());
    }
    say();
    if let Some(comm) = RANKS.get() {
        // A launcher that ends the job may lose what it has not passed on yet.
        std::thread::sleep(std::time::Duration::from_millis(300));
        comm.abort(code);
    }
}

/// Prints a line of this rank, with its number where there are several.
pub fn note(comm: &dyn Communicator, line: &str) {
    match comm.size() {
        1 => super::say(line),
        _ => super::say(&format!("rank {}: {line}", comm.rank())),
    }
}

/// The threads of this rank: as many as are asked for, else its share of the processors it may use.
pub fn threads(comm: &dyn Communicator, asked: Option<usize>) -> Result<Option<usize>> {
    if comm.size() == 1 {
        return Ok(asked);
    }
    let local = joins_local() || announced().is_none();
    if local {
        super::affinity::bind(comm.rank(), comm.size(), asked);
    }
    let allowed = available_parallelism().map_or(1, usize::from);
    // The same machine and the same processors.
    let place = format!("{} {}", host(), allowed_list());
    let all = comm.all_gather(place.as_bytes())?;
    let sharing = all.iter().filter(|other| **other == place.as_bytes()).count();
    let here = all.iter().filter(|other| other.starts_with(host().as_bytes())).count();
    let threads = asked.unwrap_or((allowed / sharing).max(1));
    if comm.is_first() && !local {
        let online = online().unwrap_or(allowed);
        let unbind = "start with `mpirun --bind-to none` (Slurm: `srun --cpu-bind=none`)";
        if threads > allowed {
            note!(
                "warning: a process may use {allowed} of {online} processors and has {threads} threads: {unbind}"
            );
        } else if asked.is_none() && threads * here < online && allowed < online {
            note!("warning: {here} processes are bound to {allowed} of {online} processors each: {unbind}");
        }
    }
    Ok(Some(threads))
}

fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    name.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default().trim().replace(' ', "-")
}

/// The processors that this process may use, as Linux lists them.
fn allowed_list() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.unwrap_or_default().trim().to_owned()
}

/// Processors of the machine.
fn online() -> Option<usize> {
    let list = fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<usize>().ok()? + 1 - first.parse::<usize>().ok()?)
    };
    list.trim().split(',').map(count).sum()
}
