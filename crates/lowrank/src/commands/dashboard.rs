//! A page that shows a run as it goes: loss, learning rate, speed, memory and samples out of its log. It is served to this machine alone.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::thread::JoinHandle;

use lowrank::{Error, Result};
use tiny_http::{Header, Request, Response, Server};

const PAGE: &str = include_str!("dashboard.html");
/// Bytes of the log that one answer has at most.
const MOST: u64 = 4 << 20;

/// A port to serve on; 0 takes one that is free.
pub const PORT: u16 = 6006;

/// Serves the page of the run whose log is at `log`, from a thread of its own.
///
/// # Errors
/// Where the port is taken.
pub fn serve(log: &Path, port: u16) -> Result<(String, JoinHandle<()>)> {
    let failed =
        |what: String| Error::Failed(format!("the dashboard on port {port}: {what}; choose another port"));
    let server = Server::http(("127.0.0.1", port)).map_err(|e| failed(e.to_string()))?;
    let address = server.server_addr().to_ip().ok_or_else(|| failed("has no address".into()))?;
    let log = log.to_owned();
    let thread = std::thread::spawn(move || {
        for request in server.incoming_requests() {
            // Whoever asked may be gone.
            let _ = answer(request, &log);
        }
    });
    Ok((format!("http://{address}/"), thread))
}

fn answer(request: Request, log: &Path) -> std::io::Result<()> {
    // A page of another site could have its name point here.
    let local = |host: &str| {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        name == "localhost" || name == "127.0.0.1"
    };
    let host =
        request.headers().iter().find(|header| header.field.equiv("Host")).map(|h| h.value.to_string());
    if !host.is_some_and(|host| local(&host)) {
        return request.respond(Response::from_string("only for this machine\n").with_status_code(403));
    }
    let header = |name: &str, value: &str| Header::from_bytes(name, value).expect("plain text");
    let (path, query) = request.url().split_once('?').unwrap_or((request.url(), ""));
    match path {
        "/" => {
            let kind = header("Content-Type", "text/html; charset=utf-8");
            let policy = header("Content-Security-Policy", "default-src 'self' 'unsafe-inline'");
            request.respond(Response::from_string(PAGE).with_header(kind).with_header(policy))
        }
        "/log" => {
            let from = query.strip_prefix("from=").and_then(|from| from.parse().ok()).unwrap_or(0);
            let (text, next) = lines(log, from);
            let kind = header("Content-Type", "application/x-ndjson");
            let next = header("X-Next", &next.to_string());
            request.respond(Response::from_data(text).with_header(kind).with_header(next))
        }
        _ => request.respond(Response::from_string("not found\n").with_status_code(404)),
    }
}

/// The whole lines of the log from byte `from` on, and where the next one begins. A log that is shorter began anew.
fn lines(log: &Path, from: u64) -> (Vec<u8>, u64) {
    let read = || {
        let mut file = File::open(log)?;
        let from = if file.metadata()?.len() < from { 0 } else { from };
        file.seek(SeekFrom::Start(from))?;
        let mut text = Vec::new();
        file.take(MOST).read_to_end(&mut text)?;
        text.truncate(text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1));
        let next = from + text.len() as u64;
        Ok::<_, std::io::Error>((text, next))
    };
    // A run that has not begun has no log.
    read().unwrap_or_default()
}
