//! One command a file. A command is added by its file, its `mod` line and its row in [`commands!`]: its name is the
//! file's, its help text the documentation of its `Args`.

#[macro_use]
mod output;

mod affinity;
mod chat;
mod completions;
mod compose;
mod config_file;
mod convert;
mod dashboard;
mod devices;
mod diff;
mod dtype;
mod eval;
mod export;
mod extract;
mod flags;
mod generate;
mod inspect;
mod man;
mod merge;
mod plan;
mod predict;
pub mod program;
mod prune;
mod push;
pub mod ranks;
mod rename;
mod report;
mod resize;
mod serve;
mod signals;
mod study;
mod train;
mod wrap;

use std::io::{self, BufRead, IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;
use lowrank::files::{IoError, read_input};
use lowrank::{Error, MAX_TEXT, Result};

#[cfg(test)]
pub use flags::ranges::range;
pub use flags::ranges::stated as with_ranges;
pub use output::{Stdout, say, say_error};

macro_rules! commands {
    ($($Name:ident: $file:ident,)*) => {
        /// A command and what was given to it.
        #[derive(Subcommand)]
        pub enum Command {
            $($Name(Box<$file::Args>),)*
        }

        impl Command {
            /// Runs it.
            pub fn run(&self, out: &mut Stdout) -> Result<ExitCode> {
                match self {
                    $(Self::$Name(args) => $file::run(args, out),)*
                }
            }
        }
    };
}

// In the order of the help text.
commands! {
    Train: train,
    Generate: generate,
    Eval: eval,
    Predict: predict,
    Serve: serve,
    Merge: merge,
    Plan: plan,
    Inspect: inspect,
    Devices: devices,
    Study: study,
    Report: report,
    Export: export,
    Push: push,
    Convert: convert,
    Compose: compose,
    Extract: extract,
    Resize: resize,
    Prune: prune,
    Dtype: dtype,
    Rename: rename,
    Diff: diff,
    Completions: completions,
    Man: man,
}

/// The text of a file, or of a pipe.
fn read_text(path: &Path) -> Result<String> {
    let text = read_input(path, MAX_TEXT)?;
    String::from_utf8(text).map_err(|e| Error::Usage(format!("{}: is not UTF-8: {e}", path.display())))
}

/// All of standard input, or its next line; nothing at its end.
fn read_standard_input(line: bool) -> Result<Option<String>> {
    const NAME: &str = "standard input";
    let (mut text, mut input) = (Vec::new(), io::stdin().lock().take(MAX_TEXT + 1));
    let read = if line { input.read_until(b'\n', &mut text) } else { input.read_to_end(&mut text) };
    match read.map_err(IoError::at(NAME))? as u64 {
        0 => Ok(None),
        n if n > MAX_TEXT => Err(Error::Usage(format!("{NAME}: is longer than {MAX_TEXT} bytes"))),
        _ => match String::from_utf8(text) {
            Ok(text) if line => Ok(Some(text.trim_end_matches(['\n', '\r']).to_owned())),
            Ok(text) => Ok(Some(text)),
            Err(e) => Err(Error::Usage(format!("{NAME}: is not UTF-8: {e}"))),
        },
    }
}

/// Lines of standard input, edited and with a history where that is a terminal.
struct Lines {
    editor: Option<rustyline::DefaultEditor>,
}

impl Lines {
    fn new() -> Result<Self> {
        let terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
        let failed = |e: rustyline::error::ReadlineError| Error::Failed(format!("cannot read a line: {e}"));
        let config = rustyline::Config::builder().behavior(rustyline::Behavior::PreferTerm).build();
        let editor = terminal.then(|| rustyline::DefaultEditor::with_config(config).map_err(failed));
        Ok(Self { editor: editor.transpose()? })
    }

    /// Columns of the terminal that answers are shown on.
    fn width(&mut self) -> Option<usize> {
        let editor = self.editor.as_mut().filter(|_| io::stdout().is_terminal())?;
        editor.dimensions().map(|(columns, _)| usize::from(columns))
    }

    /// The next line; nothing at the end and after Ctrl-C.
    fn next(&mut self, prompt: &str) -> Result<Option<String>> {
        use rustyline::error::ReadlineError::{Eof, Interrupted};
        let Some(editor) = &mut self.editor else { return read_standard_input(true) };
        match editor.readline(prompt) {
            Ok(line) => {
                let _ = editor.add_history_entry(&line);
                Ok(Some(line))
            }
            Err(Eof | Interrupted) => Ok(None),
            Err(e) => Err(Error::Failed(format!("cannot read a line: {e}"))),
        }
    }
}

/// Runs `work` on a pool of `threads` threads, or of as many as there are processors. `work` itself is on
/// one of them, so that handing parts to the others needs no sleeping and waking.
fn on_threads<T: Send>(threads: Option<usize>, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let threads = threads.unwrap_or(0);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::Failed(format!("cannot start {threads} threads: {e}")))?;
    pool.install(work)
}
