//! `lowrank man`.

use std::path::PathBuf;
use std::process::ExitCode;

use lowrank::Result;
use lowrank::files::{IoError, write_atomic};

use super::Stdout;

/// Print the manual page, or write those of all commands to a folder.
///
/// To read it: lowrank man | man -l -
#[derive(clap::Args)]
pub struct Args {
    /// Folder to write lowrank.1, lowrank-train.1 and the others to
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints or writes pages.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    let command = crate::cli::command();
    let page = |command: clap::Command| {
        let mut text = Vec::new();
        clap_mangen::Man::new(command).render(&mut text).map_err(IoError::at("the manual page"))?;
        Ok::<_, lowrank::Error>(text)
    };
    let Some(folder) = &args.out else {
        write!(out, "{}", String::from_utf8_lossy(&page(command)?))?;
        return Ok(ExitCode::SUCCESS);
    };
    std::fs::create_dir_all(folder).map_err(IoError::at(folder))?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = format!("lowrank-{}", sub.get_name());
        let path = folder.join(format!("{name}.1"));
        write_atomic(&path, &page(sub.clone().name(name))?)?;
    }
    write_atomic(&folder.join("lowrank.1"), &page(command)?)?;
    Ok(ExitCode::SUCCESS)
}
