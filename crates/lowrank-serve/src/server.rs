//! The server: the engine's thread, and connections.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::http::{State, router};
use crate::jobs::Jobs;
use crate::metrics::Metrics;
use crate::options::ServeOptions;
use crate::registry::Registry;

/// Connections at once; more wait.
const MAX_CONNECTIONS: usize = 4096;
/// How often the adapters folder is looked into.
const SCAN_EVERY: Duration = Duration::from_secs(2);
/// Threads for connections: the work is the engine's.
const THREADS: usize = 2;

/// A server that runs.
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    runtime: Option<Runtime>,
    connections: Option<tokio::task::JoinHandle<()>>,
    engine: Engine,
    thread: Option<JoinHandle<()>>,
}

/// Starts to serve `host`.
///
/// # Errors
/// Where the port is taken or an adapter of the options cannot be read.
pub fn serve(host: Arc<dyn Host>, options: ServeOptions) -> Result<Server> {
    let failed = |what: String| Error::failed(what);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("http")
        .enable_io()
        .enable_time()
        .build()
        .map_err(|e| failed(format!("cannot start threads: {e}")))?;
    let address = options.address();
    let listener = runtime
        .block_on(TcpListener::bind(address))
        .map_err(|e| failed(format!("cannot listen on {address}: {e}; choose another --port")))?;
    let address = listener.local_addr().map_err(|e| failed(format!("the port has no address: {e}")))?;
    let metrics = Arc::new(Metrics::default());
    let (engine, thread) = Engine::start(host.clone(), metrics.clone(), &options)?;
    let folder = options.adapters_dir.clone();
    let registry =
        Arc::new(Registry::new(host.clone(), engine.clone(), metrics.clone(), options.adapter_bytes, folder));
    registry.scan();
    for (name, path) in &options.adapters {
        runtime.block_on(registry.add(name, path, true))?;
    }
    runtime.spawn(registry.clone().collect_returned());
    if options.adapters_dir.is_some() {
        let registry = registry.clone();
        runtime.spawn(async move {
            loop {
                tokio::time::sleep(SCAN_EVERY).await;
                let registry = registry.clone();
                let _ = tokio::task::spawn_blocking(move || registry.scan()).await;
            }
        });
    }
    let (stop, stopped) = watch::channel(false);
    let open = |folder: &PathBuf| Jobs::open(folder.clone(), host.clone(), registry.clone());
    let jobs = options.jobs_dir.as_ref().map(open).transpose()?;
    let state = Arc::new(State::new(host, engine.clone(), registry, metrics, jobs, options));
    let connections = runtime.spawn(accept(listener, state, stopped));
    Ok(Server {
        address,
        stop,
        runtime: Some(runtime),
        connections: Some(connections),
        engine,
        thread: Some(thread),
    })
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections, waits up to `patience` for requests to end, then ends.
    pub fn drain(mut self, patience: Duration) {
        let _ = self.stop.send(true);
        if let (Some(runtime), Some(connections)) = (&self.runtime, self.connections.take()) {
            let _ = runtime.block_on(async { tokio::time::timeout(patience, connections).await });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        self.engine.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

async fn accept(listener: TcpListener, state: Arc<State>, mut stopped: watch::Receiver<bool>) {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(state.options.read_timeout);
    let router = router(state);
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned();
        let accepted = tokio::select! {
            accepted = async { (place.await, listener.accept().await) } => accepted,
            _ = stopped.changed() => break,
        };
        let (Ok(place), accepted) = accepted else { break };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(_) => {
                // No more files, most likely: others have to end first.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // A client that goes away is no fault of ours.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}
