//! Work on files that nobody vouches for: its panics become errors, and it may be bounded in time and stack.

use std::fmt;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use lowrank_files::catch_panic;

/// Why there is no result.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// It panicked, with this message.
    Panicked(String),
    /// It was not done in time. Its thread goes on until it is: nothing can stop it.
    TimedOut(Duration),
    /// The system gave no thread for it.
    NoThread(std::io::Error),
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(why) => write!(f, "a part of it makes no sense ({why})"),
            Self::TimedOut(limit) => write!(f, "it takes more than {} s", limit.as_secs()),
            Self::NoThread(why) => write!(f, "a thread to work on it cannot be started: {why}"),
        }
    }
}

/// Runs `work`. A panic of it prints nothing and is its result.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Stopped> {
    catch_panic(work).map_err(Stopped::Panicked)
}

/// [`catch`] on a thread of its own with `stack` bytes, for at most `time`.
pub(crate) fn bounded<T: Send + 'static>(
    stack: usize,
    time: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Stopped> {
    let (send, receive) = sync_channel(1);
    let thread = thread::Builder::new().name("bounded".into()).stack_size(stack).spawn(move || {
        // Nobody listens any more where it took too long.
        let _ = send.send(catch(work));
    });
    let thread = thread.map_err(Stopped::NoThread)?;
    match receive.recv_timeout(time) {
        Ok(result) => {
            // Its stack is given back before the next one is asked for.
            let _ = thread.join();
            result
        }
        Err(RecvTimeoutError::Timeout) => Err(Stopped::TimedOut(time)),
        Err(RecvTimeoutError::Disconnected) => Err(Stopped::Panicked("its thread ended".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_and_endless_work_are_errors() {
        assert!(matches!(catch(|| 3), Ok(3)));
        let said = catch(|| -> i32 { panic!("of {}", 5) }).unwrap_err().to_string();
        assert_eq!(said, "a part of it makes no sense (of 5)");
        let time = Duration::from_millis(50);
        let endless = bounded(1 << 16, time, || {
            loop {
                thread::sleep(Duration::from_secs(1));
            }
        });
        let endless: Result<(), Stopped> = endless;
        assert!(matches!(endless, Err(Stopped::TimedOut(_))), "{endless:?}");
        let long = Duration::from_secs(60);
        let panicked = bounded(1 << 16, long, || -> i32 { panic!("inside") });
        assert!(matches!(panicked, Err(Stopped::Panicked(_))), "{panicked:?}");
        // More than any address space.
        let none = bounded(1 << 60, long, || 1);
        assert!(matches!(none, Err(Stopped::NoThread(_))), "{none:?}");
    }
}
