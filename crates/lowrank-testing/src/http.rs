//! A little HTTP server on this machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

/// A request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `GET`, `POST`, `PUT`.
    pub method: String,
    /// The path, and what is behind it.
    pub path: String,
    /// The whole head; names of headers are in lower case.
    pub headers: String,
    /// What was sent.
    pub body: Vec<u8>,
}

/// Status, further headers (each with its line's end), body.
pub type Answer = (u16, String, String);

/// Answers each request by `answer`, one after the other, and keeps the requests. Returns the address.
///
/// # Panics
/// Where there is no port.
pub fn serve(mut answer: impl FnMut(&Asked) -> Answer + Send + 'static) -> (String, Arc<Mutex<Vec<Asked>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("its address"));
    let log = Arc::new(Mutex::new(Vec::new()));
    let kept = log.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut input = BufReader::new(stream.try_clone().expect("the same connection"));
            let (mut headers, mut length) = (String::new(), 0);
            while !headers.ends_with("\r\n\r\n") {
                let mut line = String::new();
                if input.read_line(&mut line).expect("a line") == 0 {
                    break;
                }
                if let Some((name, value)) = line.split_once(':') {
                    let name = name.to_lowercase();
                    if name == "content-length" {
                        length = value.trim().parse().expect("a number");
                    }
                    line = format!("{name}:{value}");
                }
                headers += &line;
            }
            let mut body = vec![0; length];
            input.read_exact(&mut body).expect("the body");
            let mut first = headers.split(' ').map(str::to_owned);
            let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
            let asked = Asked { method, path, headers, body };
            kept.lock().expect("no panic").push(asked.clone());
            let (status, more, text) = answer(&asked);
            let length = text.len();
            let head = format!(
                "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n{more}\r\n{text}"
            );
            let _ = stream.write_all(head.as_bytes());
        }
    });
    (address, log)
}
