//! What the environment says of the program that started this process.

/// A program that starts the ranks of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launcher {
    /// Its name.
    pub name: &'static str,
    /// How many processes it started.
    pub size: usize,
    /// Which of them this is.
    pub rank: usize,
}

/// Names of launchers and of the variables in which they say how many processes they started and which this is. In a
/// batch script of Slurm the number of tasks is set for programs that `srun` does not start; these have no step.
const LAUNCHERS: [(&str, &str, &str); 3] = [
    ("Open MPI's mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("mpiexec", "PMI_SIZE", "PMI_RANK"),
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
];

/// Set for a process that is a run of its own, whoever started the one that starts it.
const ALONE: &str = "LOWRANK_ALONE";

/// The launcher of this process, where it started several.
pub fn announced() -> Option<Launcher> {
    let alone = std::env::var_os(ALONE).is_some();
    announced_in(|name| std::env::var(name).ok().filter(|_| !alone))
}

/// Makes `command` a run of its own: it joins no ranks.
pub fn start_alone(command: &mut std::process::Command) {
    command.env(ALONE, "1").env_remove(crate::local::VARIABLE);
}

fn announced_in(variable: impl Fn(&str) -> Option<String>) -> Option<Launcher> {
    let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
    let of_slurm = || {
        variable("SLURM_STEP_ID")?;
        Some(Launcher { name: "srun", size: number("SLURM_NTASKS")?, rank: number("SLURM_PROCID")? })
    };
    let found = LAUNCHERS
        .iter()
        .find_map(|(name, size, rank)| Some(Launcher { name, size: number(size)?, rank: number(rank)? }));
    found.or_else(of_slurm).filter(|launcher| launcher.size > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Option<(usize, usize)> {
        let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        announced_in(get).map(|launcher| (launcher.rank, launcher.size))
    }

    #[test]
    fn knows_the_launchers() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "2")]), Some((2, 4)));
        assert_eq!(of(&[("PMI_SIZE", "2"), ("PMI_RANK", "0")]), Some((0, 2)));
        assert_eq!(of(&[("PMI_SIZE", "1"), ("PMI_RANK", "0")]), None);
        let slurm = [("SLURM_NTASKS", "3"), ("SLURM_PROCID", "1")];
        assert_eq!(of(&slurm), None);
        assert_eq!(of(&[&slurm[..], &[("SLURM_STEP_ID", "0")]].concat()), Some((1, 3)));
    }
}
