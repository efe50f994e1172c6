//! A server of many bytes: `GET /bytes/N` answers with N of them, any other request with how many it has
//! sent. Nothing is held in memory on its side.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const PIECE: usize = 64 << 10;

/// It lives as long as the test's process.
pub struct Bulk {
    pub address: SocketAddr,
    /// Answers that were cut off by their reader.
    pub broken: Arc<AtomicU64>,
}

impl Bulk {
    pub fn start() -> Self {
        let listener = TcpListener::bind(super::local(super::free_port())).expect("binds");
        let address = listener.local_addr().expect("an address");
        let broken = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&broken);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let counter = Arc::clone(&counter);
                std::thread::spawn(move || {
                    if serve(stream).is_err() {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        Self { address, broken }
    }
}

/// Requests one after the other, up to the connection's end; an error where an answer could not be written.
fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::with_capacity(PIECE, stream.try_clone()?);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) if line == "\r\n" => break,
                Ok(_) => head.push(line.trim_end().to_ascii_lowercase()),
            }
        }
        let field = |name: &str| head.iter().find_map(|line| line.strip_prefix(name));
        let length = field("content-length:").map_or(0, |v| v.trim().parse().expect("a length"));
        let received = std::io::copy(&mut (&mut reader).take(length), &mut std::io::sink())?;
        let wanted = field("get /bytes/").and_then(|rest| rest.split(' ').next()?.parse().ok());
        let Some(wanted) = wanted else {
            let text = received.to_string();
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len())?;
            continue;
        };
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {wanted}\r\n\r\n")?;
        let piece = vec![b'x'; PIECE];
        let mut left: usize = wanted;
        while left > 0 {
            let next = left.min(PIECE);
            stream.write_all(&piece[..next])?;
            left -= next;
        }
    }
}
