use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::library::{Mpilib, Request};
use crate::{Communicator, Error, Launcher, Result, error};

/// Bytes of one message at most: MPI counts in 32 bits.
const CHUNK: usize = 1 << 30;

/// The tag of all messages.
const TAG: i32 = 7;

/// Ranks of an MPI job.
pub struct Mpi {
    library: Mpilib,
    rank: usize,
    size: usize,
    timeout: Duration,
    /// MPI is asked for serialised calls.
    calls: Mutex<()>,
}

impl Mpi {
    /// Joins the job of `launcher`.
    ///
    /// # Errors
    /// Where no library can be opened, it fails, or it is not the launcher's: then it would see one rank only.
    pub fn join(launcher: Launcher) -> Result<Self> {
        let Launcher { name, size: announced, .. } = launcher;
        let library = Mpilib::open(launcher).map_err(|what| Error::NoLibrary {
            launcher: name,
            size: announced,
            what,
        })?;
        let timeout = error::timeout();
        let mut mpi = Self { library, rank: 0, size: 1, timeout, calls: Mutex::new(()) };
        let Mpilib { call, handles, .. } = &mpi.library;
        let (mut provided, mut rank, mut size) = (0, 0, 0);
        // SAFETY: MPI is initialised once in a process; arguments of the program are not needed; the numbers are written.
        unsafe {
            let null = std::ptr::null_mut();
            mpi.check(
                "MPI_Init_thread",
                (call.init_thread)(null, null.cast(), handles.serialized, &raw mut provided),
            )?;
            mpi.check("MPI_Comm_rank", (call.comm_rank)(handles.world, &raw mut rank))?;
            mpi.check("MPI_Comm_size", (call.comm_size)(handles.world, &raw mut size))?;
            mpi.check(
                "MPI_Comm_set_errhandler",
                (call.set_errhandler)(handles.world, handles.errors_return),
            )?;
        }
        if provided < handles.serialized {
            let what = format!("{} allows no calls from several threads", mpi.library.name);
            return Err(Error::Call { call: "MPI_Init_thread", what });
        }
        let count = |number: i32| usize::try_from(number).unwrap_or(0);
        (mpi.rank, mpi.size) = (count(rank), count(size));
        if mpi.size != announced {
            let (library, size) = (mpi.library.name.clone(), mpi.size);
            return Err(Error::OtherLibrary { launcher: name, announced, library, size });
        }
        Ok(mpi)
    }

    /// What the library calls itself.
    pub fn library(&self) -> &str {
        &self.library.name
    }

    fn check(&self, call: &'static str, code: i32) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let (mut text, mut length) = ([0u8; 8192], 0);
        // SAFETY: the text is longer than the longest of any library.
        unsafe { (self.library.call.error_string)(code, text.as_mut_ptr().cast(), &raw mut length) };
        let text = &text[..usize::try_from(length).unwrap_or(0).min(text.len())];
        Err(Error::Call { call, what: String::from_utf8_lossy(text).into_owned() })
    }

    /// Starts the messages of an exchange, in an order that spreads them over the ranks.
    ///
    /// # Safety
    /// The buffers stay where they are, and what is received is not read, until the requests are done.
    unsafe fn start(&self, send: &[&[u8]], receive: &mut [&mut [u8]]) -> Result<Vec<(usize, Request)>> {
        let Mpilib { call, handles, .. } = &self.library;
        let mut requests = Vec::new();
        for step in 1..self.size {
            let from = (self.rank + self.size - step) % self.size;
            for chunk in receive[from].chunks_mut(CHUNK) {
                let mut request = 0;
                // SAFETY: as this function's; a chunk's length fits 32 bits.
                let code = unsafe {
                    (call.irecv)(
                        chunk.as_mut_ptr(),
                        chunk.len() as i32,
                        handles.byte,
                        from as i32,
                        TAG,
                        handles.world,
                        &raw mut request,
                    )
                };
                self.check("MPI_Irecv", code)?;
                requests.push((from, request));
            }
        }
        for step in 1..self.size {
            let to = (self.rank + step) % self.size;
            for chunk in send[to].chunks(CHUNK) {
                let mut request = 0;
                // SAFETY: as above.
                let code = unsafe {
                    (call.isend)(
                        chunk.as_ptr(),
                        chunk.len() as i32,
                        handles.byte,
                        to as i32,
                        TAG,
                        handles.world,
                        &raw mut request,
                    )
                };
                self.check("MPI_Isend", code)?;
                requests.push((to, request));
            }
        }
        Ok(requests)
    }

    /// Waits for requests, with a limit of time that MPI itself lacks.
    fn wait(&self, mut requests: Vec<(usize, Request)>) -> Result<()> {
        let started = Instant::now();
        let mut idle = 0u32;
        while !requests.is_empty() {
            let before = requests.len();
            let mut failed = None;
            requests.retain_mut(|(_, request)| {
                let (mut done, mut status) = (0, [0; 32]);
                // SAFETY: a request that was started and is not done.
                let code =
                    unsafe { (self.library.call.test)(&raw mut *request, &raw mut done, &raw mut status) };
                failed = failed.take().or(self.check("MPI_Test", code).err());
                done == 0
            });
            if let Some(error) = failed {
                return Err(error);
            }
            if requests.len() < before {
                idle = 0;
                continue;
            }
            if started.elapsed() > self.timeout {
                let ranks = requests.iter().map(|(rank, _)| *rank);
                return Err(error::timed_out(ranks, self.timeout));
            }
            // Others compute on these processors: a short wait is polled, a long one slept.
            idle += 1;
            match idle {
                ..200 => std::thread::yield_now(),
                _ => std::thread::sleep(Duration::from_micros(u64::from(idle.min(1200) - 180))),
            }
        }
        Ok(())
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&self, send: &[&[u8]], receive: &mut [&mut [u8]]) -> Result<()> {
        let _serialised = self.calls.lock();
        receive[self.rank].copy_from_slice(send[self.rank]);
        let sent: Vec<Vec<u8>> = send.iter().map(|part| part.to_vec()).collect();
        let mut received: Vec<Vec<u8>> = receive.iter().map(|place| vec![0; place.len()]).collect();
        let parts: Vec<&[u8]> = sent.iter().map(Vec::as_slice).collect();
        let mut places: Vec<&mut [u8]> = received.iter_mut().map(Vec::as_mut_slice).collect();
        // SAFETY: the buffers are read and freed below only where all requests are done.
        let started = unsafe { self.start(&parts, &mut places) };
        let done = started.and_then(|requests| self.wait(requests));
        if done.is_err() {
            // MPI may still read and write them.
            std::mem::forget((sent, received));
            return done;
        }
        for (rank, (place, bytes)) in receive.iter_mut().zip(&received).enumerate() {
            if rank != self.rank {
                place.copy_from_slice(bytes);
            }
        }
        Ok(())
    }

    fn abort(&self, code: u8) {
        // SAFETY: ends the processes of the job.
        unsafe { (self.library.call.abort)(self.library.handles.world, i32::from(code)) };
    }

    fn finish(&self) -> Result<()> {
        self.barrier()?;
        // SAFETY: the last call.
        self.check("MPI_Finalize", unsafe { (self.library.call.finalize)() })
    }
}
