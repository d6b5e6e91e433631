//! Standard output and standard error.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use lowrank::files::IoError;
use lowrank::{Error, Result};

const NAME: &str = "standard output";

/// Standard output; `writeln!` to it gives an error of this program, which `main` leaves unsaid where the reader is gone.
pub struct Stdout(io::Stdout);

impl Stdout {
    /// The process's.
    pub fn new() -> Self {
        Self(io::stdout())
    }

    /// Whether `error` says that the reader is gone.
    pub fn is_closed(error: &Error) -> bool {
        let Error::Io(IoError { path, source }) = error else { return false };
        path == Path::new(NAME) && source.kind() == ErrorKind::BrokenPipe
    }

    /// What `write!` and `writeln!` call.
    ///
    /// # Errors
    /// Where the text cannot be written.
    pub fn write_fmt(&mut self, text: Arguments<'_>) -> Result<()> {
        self.0.write_fmt(text).map_err(failed)
    }

    /// Shows a piece of text at once. Sets `stop` where that fails; the next write returns the error.
    pub fn show(&mut self, text: &str, stop: &AtomicBool) {
        if self.0.write_all(text.as_bytes()).and_then(|()| self.0.flush()).is_err() {
            stop.store(true, Ordering::Relaxed);
        }
    }

    /// Hands on what is buffered.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.0.flush().map_err(failed)
    }
}

fn failed(source: io::Error) -> Error {
    IoError { path: NAME.into(), source }.into()
}

/// Prints a line on standard error, on the first rank of a run. A run does not end because nobody can read its messages.
macro_rules! note {
    ($($text:tt)*) => {
        if lowrank::comm::is_first_rank() {
            $crate::commands::say(&format!($($text)*));
        }
    };
}

/// The same for a part of a line.
macro_rules! note_part {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = write!(std::io::stderr(), "{}", lowrank::files::shortened(&format!($($text)*)));
    }};
}

/// Prints a line on standard error.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{}", lowrank::files::shortened(text));
}

/// Prints an error. Libraries write options in backticks, by their names as fields: `learning_rate`; here they become
/// the flags of `command`: --learning-rate.
pub fn say_error(command: Option<&clap::Command>, message: &str) {
    let flag = |name: &str| {
        let mut flags = command?.get_arguments().filter(|arg| arg.get_id() == name);
        flags.find_map(|arg| arg.get_long())
    };
    let mut text = String::new();
    for (i, part) in message.split('`').enumerate() {
        match flag(part).filter(|_| i % 2 == 1) {
            Some(flag) => text += &format!("--{flag}"),
            // What was between two backticks and is not a flag keeps them.
            None if i % 2 == 1 => text += &format!("`{part}`"),
            None => text += part,
        }
    }
    say(&format!("error: {text}"));
}
