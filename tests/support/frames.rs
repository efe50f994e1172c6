//! HTTP/2 as bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::by_hand;

/// Kinds of frames (RFC 9113, 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const PADDED: u8 = 8;
pub const END_HEADERS: u8 = 4;

/// `:status: 200`, from the static table (RFC 7541, A).
pub const OK: &[u8] = &[0x88];

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A field as a literal that is not indexed (RFC 7541, 6.2.2); short enough for lengths of one byte.
pub fn literal(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name.as_ref(), value.as_ref()] {
        bytes.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("short"));
        bytes.extend_from_slice(text);
    }
    bytes
}

/// What every request has: POST, http, a path and an authority.
pub fn request(path: impl AsRef<[u8]>) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    block.extend(literal(":path", path));
    block.extend(literal(":authority", "e.example"));
    block
}

/// A connection of raw frames.
pub struct Raw(pub TcpStream);

impl Raw {
    pub fn connect(proxy: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(proxy).expect("connects");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("sent");
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).expect("sent");
        stream.write_all(&frame(SETTINGS, 1, 0, &[])).expect("sent");
        stream.set_read_timeout(Some(super::DEADLINE)).expect("timeout");
        Self(stream)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("sent");
    }

    /// The next frame: its kind, its stream and what it holds; `None` at the end of the connection.
    pub fn next(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).ok()?;
        Some((head[3], stream, payload))
    }

    /// The next frame of this stream, or that ends the connection.
    pub fn next_of(&mut self, stream: u32) -> (u8, Vec<u8>) {
        loop {
            match self.next() {
                Some((GOAWAY, _, payload)) => return (GOAWAY, payload),
                Some((kind, of, payload)) if of == stream => return (kind, payload),
                Some(_) => {}
                None => return (GOAWAY, Vec::new()),
            }
        }
    }
}

/// A worker of raw frames. Requests without a body, health checks among them, get a 200; the stream of any other
/// is left to `answer`, which tells whether the connection goes on.
pub fn worker(answer: impl Fn(u32, &mut TcpStream) -> bool + Send + Sync + 'static) -> SocketAddr {
    by_hand::listen(move |stream| {
        serve(stream, &answer);
    })
}

fn serve(mut stream: TcpStream, answer: &dyn Fn(u32, &mut TcpStream) -> bool) -> Option<()> {
    stream.read_exact(&mut [0; 24]).ok()?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).ok()?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        stream.read_exact(&mut vec![0; length as usize]).ok()?;
        match (head[3], head[4]) {
            (SETTINGS, 0) => stream.write_all(&frame(SETTINGS, ACK, 0, &[])).ok()?,
            (HEADERS, flags) if flags & END_STREAM != 0 => {
                stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, id, OK)).ok()?;
            }
            (HEADERS, _) if !answer(id, &mut stream) => return None,
            _ => {}
        }
    }
}
