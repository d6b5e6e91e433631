//! A program that rewards completions: it reads a JSON object a line and answers each with a line, a number or null.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::contract::{Completion, Reward};

/// The program. It is started when it is first needed, and again where it ended or did not answer in time.
pub(super) struct Program {
    name: String,
    command: String,
    timeout: Duration,
    running: Option<Running>,
}

struct Running {
    child: Child,
    /// What is written to it; none once it takes no more.
    input: std::sync::mpsc::Sender<Vec<u8>>,
    lines: Receiver<std::io::Result<String>>,
}

/// Why a program gave no rewards.
enum Failure {
    /// It ended or was too slow: another try may help.
    Gone(String),
    /// It said something wrong.
    Wrong(String),
}

impl Program {
    pub fn new(name: String, command: &str, timeout: Duration) -> Self {
        Self { name, command: command.to_owned(), timeout, running: None }
    }

    fn start(&self) -> Result<Running, String> {
        let failed = |e: std::io::Error| format!("`{}` cannot be started: {e}", self.command);
        // In place of the shell, so that ending it ends the program.
        let mut shell = if cfg!(windows) { Command::new("cmd") } else { Command::new("sh") };
        match cfg!(windows) {
            true => shell.args(["/C", &self.command]),
            false => shell.args(["-c", &format!("exec {}", self.command)]),
        };
        let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let (mut stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let (input, to_write) = channel::<Vec<u8>>();
        let (to_read, lines) = channel();
        std::thread::spawn(move || {
            for bytes in to_write {
                // A program that has ended is noticed where its answers are read.
                if stdin.write_all(&bytes).and_then(|()| stdin.flush()).is_err() {
                    return;
                }
            }
        });
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                if to_read.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Running { child, input, lines })
    }

    fn ask(&mut self, completions: &[Completion<'_>]) -> Result<Vec<Option<f64>>, Failure> {
        if self.running.is_none() {
            self.running = Some(self.start().map_err(Failure::Wrong)?);
        }
        let running = self.running.as_mut().expect("it was started");
        let mut bytes = Vec::new();
        for completion in completions {
            let mut row = completion.row.clone();
            row.insert("completion".into(), completion.text.into());
            bytes.extend(Value::Object(row).to_string().bytes());
            bytes.push(b'\n');
        }
        let deadline = Instant::now() + self.timeout;
        // A writer that is gone says so where the answers are read.
        let _ = running.input.send(bytes);
        let mut rewards = Vec::new();
        let count = completions.len();
        while rewards.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = match running.lines.recv_timeout(left) {
                Ok(Ok(line)) => line,
                Err(RecvTimeoutError::Timeout) => {
                    let (have, seconds) = (rewards.len(), self.timeout.as_secs_f64());
                    return Err(Failure::Gone(format!(
                        "answered {have} of {count} lines in {seconds} seconds (`reward_timeout`)"
                    )));
                }
                Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => {
                    let have = rewards.len();
                    let ended = match running.child.wait() {
                        Ok(status) => status.to_string(),
                        Err(e) => e.to_string(),
                    };
                    return Err(Failure::Gone(format!("ended ({ended}) after {have} of {count} lines")));
                }
            };
            rewards.push(reward(&line).map_err(Failure::Wrong)?);
        }
        Ok(rewards)
    }

    fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            // It may have ended already.
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}

/// The number of a line: alone, or as `reward` of an object.
fn reward(line: &str) -> Result<Option<f64>, String> {
    let wrong = || format!("answered {line:?}: a line is a number, null or {{\"reward\": a number}}");
    let value: Value = serde_json::from_str(line.trim()).map_err(|_| wrong())?;
    let value = match &value {
        Value::Object(map) => map.get("reward").ok_or_else(wrong)?,
        value => value,
    };
    match value {
        Value::Null => Ok(None),
        value => value.as_f64().map(Some).ok_or_else(wrong),
    }
}

impl Reward for Program {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&mut self, completions: &[Completion<'_>]) -> Result<Vec<Option<f64>>, String> {
        let mut first = None;
        loop {
            let what = match self.ask(completions) {
                Ok(rewards) => return Ok(rewards),
                Err(Failure::Wrong(what)) => {
                    self.stop();
                    return Err(format!("`{}` {what}", self.command));
                }
                Err(Failure::Gone(what)) => what,
            };
            self.stop();
            if let Some(before) = first.replace(what.clone()) {
                let again =
                    if before == what { "twice".to_owned() } else { format!("and before that {before}") };
                return Err(format!("`{}` {what}, {again}", self.command));
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn ask(command: &str, timeout: f64, texts: &[&str]) -> Result<Vec<Option<f64>>, String> {
        let row = [("n".to_owned(), Value::from(3))].into_iter().collect();
        let completions: Vec<_> =
            texts.iter().map(|text| Completion { row: &row, text, tokens: 1 }).collect();
        Program::new("x".into(), command, Duration::from_secs_f64(timeout)).score(&completions)
    }

    #[test]
    fn lines_are_answered_with_lines() {
        // As many bytes as the line has: the row with its completion.
        let lengths = "sh -c 'while read -r line; do echo ${#line}; done'";
        let got = ask(lengths, 20.0, &["a", "bcd"]).unwrap();
        let line = |text: &str| Some(format!("{{\"n\":3,\"completion\":\"{text}\"}}").len() as f64);
        assert_eq!(got, [line("a"), line("bcd")]);
        assert_eq!(ask("sh -c 'while read -r line; do echo null; done'", 20.0, &["a"]).unwrap(), [None]);
        assert_eq!(
            ask(r#"sh -c 'while read -r line; do echo "{\"reward\": 0.5}"; done'"#, 20.0, &["a"]).unwrap(),
            [Some(0.5)]
        );
    }

    #[test]
    fn a_program_that_ends_is_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        // Ends the first time.
        let script = dir.path().join("reward.sh");
        std::fs::write(
            &script,
            format!(
                "if [ ! -e {0} ]; then touch {0}; exit 3; fi\nwhile read -r line; do echo 2; done\n",
                mark.display()
            ),
        )
        .unwrap();
        let command = format!("sh {}", script.display());
        assert_eq!(ask(&command, 20.0, &["a", "b"]).unwrap(), [Some(2.0); 2]);
    }

    #[test]
    fn what_goes_wrong_is_said() {
        for (command, timeout, what) in [
            ("false", 20.0, "ended (exit status: 1) after 0 of 2 lines"),
            ("sleep 100", 0.3, "answered 0 of 2 lines in 0.3 seconds (`reward_timeout`)"),
            ("sh -c 'while read -r line; do echo good; done'", 20.0, "answered \"good\": a line is a number"),
            ("no-such-program-here", 20.0, "ended (exit status: 127)"),
        ] {
            let error = ask(command, timeout, &["a", "b"]).unwrap_err();
            assert!(error.contains(what) && error.contains(command), "{error}");
        }
    }
}
