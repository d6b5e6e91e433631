//! What made a file: when, with which version, by which command.

use serde::{Deserialize, Serialize};

/// The date, the version and the command that made a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provenance {
    /// Local time with its distance from UTC, such as `2026-01-31 12:00:00 +01:00`.
    pub date: String,
    /// Version of Lowrank.
    pub lowrank_version: String,
    /// The command line, one word each; the program without its folder.
    pub command: Vec<String>,
}

impl Provenance {
    /// This process, now.
    pub fn now() -> Self {
        let mut command: Vec<String> =
            std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        if let Some(program) = command.first_mut() {
            let name = std::path::Path::new(&program).file_name();
            *program = name.map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        }
        Self {
            date: chrono::Local::now().format("%Y-%m-%d %H:%M:%S %:z").to_string(),
            lowrank_version: env!("CARGO_PKG_VERSION").to_owned(),
            command,
        }
    }

    /// The command as a shell reads it.
    pub fn command_line(&self) -> String {
        self.command.iter().map(|word| shell_quoted(word)).collect::<Vec<_>>().join(" ")
    }
}

/// A word as a shell reads it.
pub fn shell_quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@=,+%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        let command = ["lowrank", "train", "--r=8", "it's", ""].map(str::to_owned).to_vec();
        let made = Provenance { command, ..Provenance::default() };
        assert_eq!(made.command_line(), r"lowrank train --r=8 'it'\''s' ''");
    }

    #[test]
    fn a_process_knows_its_command() {
        let made = Provenance::now();
        assert!(!made.command[0].contains('/') && !made.command[0].is_empty(), "{made:?}");
        assert!(made.date.len() == "2026-01-31 12:00:00 +01:00".len(), "{made:?}");
        assert_eq!(made.lowrank_version, env!("CARGO_PKG_VERSION"));
    }
}
