//! The `lowrank` command: what the program and the Python package's script run.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};
use lowrank::Result;
use lowrank::files::shortened;

use crate::commands::{self, Stdout};

/// LoRA fine-tuning on the machine you have.
///
/// Exit codes: 0 done, 1 failed while running (a file cannot be read or written, a check does not hold), 2 wrong usage,
/// configuration or input, 130 interrupted (state saved).
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
}

/// Runs the command with `arguments`, of which the first is its name, in a process that `start` (a program and its first
/// arguments) starts: that of an interpreter.
pub fn main_of_script(start: Vec<OsString>, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    commands::program::set(start);
    let code = main(arguments);
    // A program of Rust's does this as it ends. What cannot be written has been said.
    let _ = io::stdout().flush();
    code
}

/// Runs the command with `arguments`, of which the first is its name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    lowrank_engine::kernels::unmap_large_blocks_when_freed();
    #[cfg(unix)]
    lowrank_engine::name_files_that_are_cut();
    commands::ranks::expect();
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        // Help and version, or wrong usage.
        Err(error) => return usage(&error),
    };
    let name = matches.subcommand_name().unwrap_or_default().to_owned();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let result = catch_unwind(AssertUnwindSafe(|| run(&cli))).unwrap_or_else(|payload| {
        match payload.downcast::<lowrank_engine::Error>() {
            Ok(error) => Err(lowrank::Error::Failed(error.to_string())),
            Err(payload) => resume_unwind(payload),
        }
    });
    match result {
        Ok(code) => code,
        // Whoever read the output has seen enough.
        Err(error) if Stdout::is_closed(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.exit_code();
            let say = || commands::say_error(command().find_subcommand(&name), &error.to_string());
            commands::ranks::end(code, say);
            ExitCode::from(code)
        }
    }
}

/// The command line: every command and its flags.
pub(crate) fn command() -> clap::Command {
    commands::with_ranges(Cli::command())
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let mut out = Stdout::new();
    let code = cli.command.run(&mut out)?;
    out.flush()?;
    Ok(code)
}

/// Prints what clap has to say.
fn usage(error: &clap::Error) -> ExitCode {
    if !lowrank_comm::is_first_rank() {
        return ExitCode::from(error.exit_code() as u8);
    }
    let text = error.to_string();
    let short = shortened(&text);
    let printed = match error.use_stderr() && short != text {
        true => write!(io::stderr(), "{short}"),
        false => error.print(),
    };
    match printed {
        Ok(()) => ExitCode::from(error.exit_code() as u8),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => ExitCode::from(error.exit_code() as u8),
        Err(_) => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::error::ErrorKind;
    use clap::{Arg, Command};
    use lowrank::files::Range;

    use super::*;

    /// What a number may be written as, in range or not.
    const NUMBERS: [&str; 22] = [
        "-1",
        "-0.5",
        "0",
        "0.5",
        "1",
        "1.5",
        "2",
        "8",
        "9",
        "1024",
        "1025",
        "65536",
        "65537",
        "100000",
        "1e400",
        "1e30",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775809",
        "NaN",
        "inf",
        "",
    ];

    /// The error of the flag alone with `value`; none where it was accepted. (What else the command lacks is not asked.)
    fn refusal(path: &[&str], arg: &Arg, value: &str) -> Option<String> {
        let flag = format!("--{}", arg.get_long().expect("numbers are given with flags"));
        let value = format!("{flag}={value}");
        let error = command().try_get_matches_from([path, &[&value]].concat()).err()?;
        let refused = matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue);
        refused.then(|| {
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        })
    }

    fn walk(command: &Command, path: &[&str], seen: &mut BTreeSet<String>) {
        for sub in command.get_subcommands() {
            walk(sub, &[path, &[sub.get_name()]].concat(), seen);
        }
        for arg in command.get_arguments().filter(|arg| arg.get_long().is_some()) {
            let name = arg.get_id().as_str();
            let accepts = |value: &str| refusal(path, arg, value).is_none();
            let numeric =
                arg.get_action().takes_values() && !accepts("x") && (accepts("0.5") || accepts("2"));
            let declared = commands::range(name);
            let map = declared.is_some() && accepts("x=2");
            if !numeric && !map {
                assert_eq!(declared, None, "{path:?} --{name} has a range and is no number");
                continue;
            }
            seen.insert(name.to_owned());
            let range =
                declared.unwrap_or_else(|| panic!("{path:?} --{name} takes a number and states no range"));
            let help = arg.get_long_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&range.to_string()), "{path:?} --{name}: the help does not state {range}");
            for number in NUMBERS {
                let inside = match range {
                    Range::Whole(..) => number.parse::<i128>().is_ok_and(|n| range.contains_whole(n)),
                    _ => number.parse::<f64>().is_ok_and(|x| range.contains(x)),
                };
                let text = if map { format!("x={number}") } else { number.to_owned() };
                let refused = refusal(path, arg, &text);
                // Of a table, what is no number in JSON is text, which the adapter refuses.
                if map && serde_json::from_str::<f64>(number).is_err() {
                    continue;
                }
                assert_eq!(refused.is_none(), inside, "{path:?} --{name} {number}: {refused:?}");
                if let Some(error) = refused {
                    let flag = format!("--{}", arg.get_long().expect("a flag"));
                    let says = [&flag, &range.must_be(), number].map(|part| error.contains(part));
                    assert_eq!(says, [true; 3], "{path:?} --{name} {number}: {error}");
                }
            }
        }
    }

    #[test]
    fn every_number_has_a_range_which_help_and_errors_state() {
        let mut seen = BTreeSet::new();
        walk(&command(), &["lowrank"], &mut seen);
        for flag in
            ["r", "threads", "num_beams", "top_p", "temperature", "max_new_tokens", "density", "alpha"]
        {
            assert!(seen.contains(flag), "{flag} is not among {seen:?}");
        }
        assert!(seen.len() > 40, "{} flags take numbers: {seen:?}", seen.len());
    }
}
