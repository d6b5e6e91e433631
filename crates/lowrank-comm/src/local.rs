//! Ranks on one machine that this program starts itself: `--processes N`.
//!
//! The first rank listens on the loopback address and starts the others with its own command line; what they need to find it is
//! in the environment. Every two ranks have a connection. A secret keeps other programs of the machine out.

use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::{Communicator, Error, Result, error};

/// `RANK SIZE PORT SECRET` of a process that another one started.
pub(crate) const VARIABLE: &str = "LOWRANK_LOCAL_RANK";

/// How long starting may take.
const START: Duration = Duration::from_secs(60);

/// Bytes that fit between two ranks without being read: such messages are sent before anything is received.
const SMALL: usize = 16 << 10;

type Secret = [u8; 32];

/// Ranks of this machine.
pub struct Local {
    rank: usize,
    /// One for each rank; none for this one.
    streams: Vec<Option<TcpStream>>,
    /// The processes that this one started.
    children: Mutex<Vec<Child>>,
    timeout: Duration,
}

/// Whether another process started this one as one of its ranks.
pub fn joins_local() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

impl Local {
    /// Starts `size - 1` processes of `program` (with its first arguments) with `arguments`, and is the first rank.
    ///
    /// # Errors
    /// Where a process cannot be started, or ends before it is connected.
    pub fn start(size: usize, program: &[OsString], arguments: &[OsString]) -> Result<Self> {
        let failed = |what: String| Error::Start { size, what };
        let io = |e: std::io::Error| failed(e.to_string());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(io)?;
        let port = listener.local_addr().map_err(io)?.port();
        let secret = new_secret();
        let text = String::from_utf8_lossy(&secret);
        let mut local =
            Self { rank: 0, streams: empty(size), children: Mutex::default(), timeout: error::timeout() };
        let (first, rest) = program.split_first().ok_or_else(|| failed("no program".into()))?;
        for rank in 1..size {
            let child = Command::new(first)
                .args(rest)
                .args(arguments)
                .env(VARIABLE, format!("{rank} {size} {port} {text}"))
                .stdin(Stdio::null())
                .spawn()
                .map_err(|e| failed(format!("{}: {e}", first.display())))?;
            local.children().push(child);
        }
        let ports = local.accept(&listener, &secret, size, 1..size)?;
        let table: Vec<u8> = ports.iter().flat_map(|port| port.to_le_bytes()).collect();
        for stream in local.streams.iter_mut().flatten() {
            stream.write_all(&table).map_err(io)?;
        }
        Ok(local)
    }

    /// Joins the process that started this one, if one did.
    ///
    /// # Errors
    /// Where it cannot be reached.
    pub fn join() -> Result<Option<Self>> {
        let Ok(text) = std::env::var(VARIABLE) else { return Ok(None) };
        let failed = |what: String| Error::Start { size: 0, what };
        let io = |e: std::io::Error| failed(e.to_string());
        let mut words = text.split(' ');
        let mut number = || words.next().and_then(|word| word.parse::<usize>().ok());
        let (Some(rank), Some(size), Some(port)) = (number(), number(), number()) else {
            return Err(failed(format!(
                "{VARIABLE} is {text:?}, which is for processes that this program starts"
            )));
        };
        let secret: Secret = words.next().and_then(|word| word.as_bytes().try_into().ok()).unwrap_or([0; 32]);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(io)?;
        let own = listener.local_addr().map_err(io)?.port();
        let mut local =
            Self { rank, streams: empty(size), children: Mutex::default(), timeout: error::timeout() };
        let hello = |to: u16| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, to))?;
            stream.write_all(&[&secret[..], &(rank as u32).to_le_bytes(), &own.to_le_bytes()].concat())?;
            Ok(stream)
        };
        let mut first = hello(port as u16).map_err(io)?;
        let mut table = vec![0; 2 * size];
        first.set_read_timeout(Some(START)).map_err(io)?;
        first.read_exact(&mut table).map_err(io)?;
        local.add(0, first).map_err(io)?;
        for other in 1..rank {
            let port = u16::from_le_bytes([table[2 * other], table[2 * other + 1]]);
            let stream = hello(port).map_err(io)?;
            local.add(other, stream).map_err(io)?;
        }
        local.accept(&listener, &secret, size, rank + 1..size)?;
        Ok(Some(local))
    }

    fn children(&self) -> std::sync::MutexGuard<'_, Vec<Child>> {
        self.children.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn add(&mut self, rank: usize, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        self.streams[rank] = Some(stream);
        Ok(())
    }

    /// Accepts the ranks `wanted`; gives the port on which each rank listens.
    fn accept(
        &mut self,
        listener: &TcpListener,
        secret: &Secret,
        size: usize,
        wanted: std::ops::Range<usize>,
    ) -> Result<Vec<u16>> {
        let failed = |what: String| Error::Start { size, what };
        let io = |e: std::io::Error| failed(e.to_string());
        let mut ports = vec![0; size];
        let started = Instant::now();
        listener.set_nonblocking(true).map_err(io)?;
        while self.streams[wanted.clone()].iter().any(Option::is_none) {
            match listener.accept() {
                Ok((stream, _)) => {
                    if let Some((rank, port)) = greeted(&stream, secret)
                        .filter(|(rank, _)| wanted.contains(rank) && self.streams[*rank].is_none())
                    {
                        ports[rank] = port;
                        self.add(rank, stream).map_err(io)?;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(2)),
                Err(e) => return Err(io(e)),
            }
            for (i, child) in self.children().iter_mut().enumerate() {
                if let Ok(Some(status)) = child.try_wait() {
                    return Err(failed(format!("process {} ended at once: {status}", i + 1)));
                }
            }
            if started.elapsed() > START {
                return Err(failed(format!("not all were connected after {} s", START.as_secs())));
            }
        }
        Ok(ports)
    }

    /// The error of a connection.
    fn lost(&self, rank: usize, e: &std::io::Error) -> Error {
        if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) {
            return error::timed_out([rank].into_iter(), self.timeout);
        }
        // A process that is about to end closes its connections first.
        std::thread::sleep(Duration::from_millis(20));
        let mut children = self.children();
        let status = rank.checked_sub(1).and_then(|i| children.get_mut(i)?.try_wait().ok()?);
        Error::Lost { rank, how: status.map(|status| format!(" ({status})")).unwrap_or_default() }
    }

    fn stream(&self, rank: usize) -> &TcpStream {
        self.streams[rank].as_ref().expect("a connection to every other rank")
    }
}

impl Communicator for Local {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.streams.len()
    }

    fn exchange(&self, send: &[&[u8]], receive: &mut [&mut [u8]]) -> Result<()> {
        receive[self.rank].copy_from_slice(send[self.rank]);
        let write = |rank: usize| {
            let mut stream = self.stream(rank);
            stream.write_all(send[rank]).map_err(|e| self.lost(rank, &e))
        };
        let others = || (1..self.size()).map(|step| (self.rank + step) % self.size());
        others().filter(|&rank| send[rank].len() <= SMALL).try_for_each(write)?;
        std::thread::scope(|scope| {
            let large = others().filter(|&rank| send[rank].len() > SMALL);
            let senders: Vec<_> = large.map(|rank| scope.spawn(move || write(rank))).collect();
            for from in others() {
                let mut stream = self.stream(from);
                stream.read_exact(receive[from]).map_err(|e| self.lost(from, &e))?;
            }
            senders.into_iter().try_for_each(|sender| sender.join().expect("a sender does not panic"))
        })
    }

    fn abort(&self, _: u8) {
        for child in self.children().iter_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn finish(&self) -> Result<()> {
        self.barrier()?;
        for (i, child) in self.children().iter_mut().enumerate() {
            match child.wait() {
                Ok(status) if !status.success() && status.code() != Some(130) => {
                    return Err(Error::Lost { rank: i + 1, how: format!(" ({status})") });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn empty(size: usize) -> Vec<Option<TcpStream>> {
    (0..size).map(|_| None).collect()
}

/// The rank and the port of a process that knows the secret.
fn greeted(mut stream: &TcpStream, secret: &Secret) -> Option<(usize, u16)> {
    let mut hello = [0; 38];
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.read_exact(&mut hello).ok()?;
    let rank = u32::from_le_bytes(hello[32..36].try_into().ok()?);
    (hello[..32] == *secret).then(|| (rank as usize, u16::from_le_bytes([hello[36], hello[37]])))
}

/// 128 random bits, from the system by way of the seeds of hash maps, as hexadecimal digits.
fn new_secret() -> Secret {
    let word = || RandomState::new().hash_one(std::process::id());
    let text = format!("{:016x}{:016x}", word(), word());
    text.as_bytes().try_into().expect("32 digits")
}
