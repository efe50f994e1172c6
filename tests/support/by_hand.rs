//! Workers made by hand: they answer each request with what a test writes, byte by byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

/// Gets the head of each request in lower case, and the connection behind its body. Connections are kept
/// until either side closes.
pub fn start(answer: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> SocketAddr {
    listen(move |stream| serve(stream, &answer))
}

/// Gets each connection, on a thread of its own.
pub fn listen(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("address");
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

/// The same for a worker that is healthy: `answer` gets everything but health checks.
pub fn healthy(answer: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> SocketAddr {
    start(move |head, stream| {
        if head.starts_with("get /ping") {
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
        } else {
            answer(head, stream);
        }
    })
}

fn serve(mut stream: TcpStream, answer: &dyn Fn(&str, &mut TcpStream)) {
    let mut buffer = Vec::new();
    let mut piece = [0; 4096];
    let mut more = |buffer: &mut Vec<u8>, stream: &mut TcpStream| match stream.read(&mut piece) {
        Ok(length @ 1..) => {
            buffer.extend_from_slice(&piece[..length]);
            true
        }
        _ => false,
    };
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|w: &[u8]| w == b"\r\n\r\n") {
                break at + 4;
            }
            if !more(&mut buffer, &mut stream) {
                return;
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok())
            .unwrap_or(0);
        while buffer.len() < end + length {
            if !more(&mut buffer, &mut stream) {
                return;
            }
        }
        buffer.drain(..end + length);
        answer(&head, &mut stream);
    }
}
