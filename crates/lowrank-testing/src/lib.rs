//! What the tests of all crates share.
//!
//! No test is skipped in silence: what a test needs and does not find goes through [`skipped`], which `make test` prints
//! at its end, and which fails the test where `CI=true`. What depends on the processor goes through [`not_here`] and never
//! fails. Tests that read public data sets are ignored unless asked for (`make data-test DATA=DIR`).

pub mod http;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// SmolLM2-135M-Instruct (Q4_1), which `LOWRANK_TEST_GGUF` names; `None`, said aloud, where it is absent.
#[must_use]
pub fn smollm2() -> Option<PathBuf> {
    model("LOWRANK_TEST_GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// Gemma 3 270M (Q4_K_M), which `LOWRANK_TEST_GEMMA` names; `None`, said aloud, where it is absent.
#[must_use]
pub fn gemma3() -> Option<PathBuf> {
    model("LOWRANK_TEST_GEMMA", "gemma-3-270m-q4_k_m.gguf")
}

/// The program that starts ranks of Open MPI, in the search path; `None`, said aloud, where it is absent.
#[must_use]
pub fn open_mpi() -> Option<PathBuf> {
    let found = launcher("mpirun".into(), "Open MPI");
    if found.is_none() {
        skipped("Open MPI's mpirun is not installed (apt-get install openmpi-bin)");
    }
    found
}

/// The program that starts ranks of MPICH, which `LOWRANK_TEST_MPICH` names or the search path has; `None`, said aloud, where it is
/// absent.
#[must_use]
pub fn mpich() -> Option<PathBuf> {
    let named = std::env::var_os("LOWRANK_TEST_MPICH").map(PathBuf::from);
    let found = launcher(named.unwrap_or_else(|| "mpiexec".into()), "HYDRA");
    if found.is_none() {
        skipped(
            "MPICH is not installed (pip install mpich) and LOWRANK_TEST_MPICH does not name its mpiexec",
        );
    }
    found
}

fn launcher(program: PathBuf, kind: &str) -> Option<PathBuf> {
    let output = std::process::Command::new(&program).arg("--version").output().ok()?;
    String::from_utf8_lossy(&output.stdout).contains(kind).then_some(program)
}

fn model(variable: &str, name: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_file());
    if path.is_none() {
        skipped(&format!("{variable} does not name {name} (make model downloads it)"));
    }
    path
}

/// A file or folder of the public data sets. Tests that call this are `#[ignore]`d: `make data-test DATA=DIR` runs them.
///
/// # Panics
/// Where `LOWRANK_TEST_DATA` names no folder that has it.
#[must_use]
pub fn public_data(name: &str) -> PathBuf {
    let root =
        std::env::var_os("LOWRANK_TEST_DATA").expect("LOWRANK_TEST_DATA names the folder of the data sets");
    let path = Path::new(&root).join(name);
    assert!(path.exists(), "{} is absent", path.display());
    path
}

/// Notes that the calling test did not run, and why.
///
/// # Panics
/// Where `CI=true`: there a skip is a failure.
pub fn skipped(why: &str) {
    note(&format!("skipped: {}: {why}", test()));
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "skipped where CI=true: {why}");
}

/// Notes that the calling test has no meaning on this machine: an instruction that its processor lacks.
pub fn not_here(why: &str) {
    note(&format!("not for this machine: {}: {why}", test()));
}

/// The test harness names a test's thread after the test.
fn test() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}

/// On standard error, and in the file that `make test` prints at its end.
fn note(line: &str) {
    eprintln!("{line}");
    if let Some(list) = std::env::var_os("LOWRANK_SKIPPED") {
        let mut file =
            OpenOptions::new().create(true).append(true).open(list).expect("the list of skipped tests");
        writeln!(file, "{line}").expect("the list of skipped tests");
    }
}
