//! One HTTP/1.1 connection of a client.

use std::io::{Error, ErrorKind, Result};
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::wire::{self, Body};

pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer's head, read to its end.
pub(crate) struct Head {
    pub(crate) status: u64,
    pub(crate) body: Body,
    /// Whether the connection is good for another request.
    pub(crate) keep_alive: bool,
}

impl Connection {
    /// `number` picks one of many loopback addresses to come from, so that none runs out of ports.
    pub(crate) async fn open(address: SocketAddr, number: usize) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        let last = u8::try_from(number % 200).unwrap_or(0) + 2;
        socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into())?;
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(4096) })
    }

    pub(crate) async fn send(&mut self, request: &[u8]) -> Result<()> {
        self.stream.write_all(request).await
    }

    pub(crate) async fn head(&mut self) -> Result<Head> {
        let end = loop {
            if let Some(end) = wire::head_end(&self.buffer) {
                break end;
            }
            self.more().await?;
        };
        let head = &self.buffer[..end];
        let status = head.split(|&b| b == b' ').nth(1).and_then(wire::number).unwrap_or(0);
        let close =
            wire::field(head, "connection").is_some_and(|v| v.eq_ignore_ascii_case(b"close"));
        let found = Head { status, body: Body::of(head), keep_alive: !close };
        self.buffer.drain(..end);
        Ok(found)
    }

    /// The next piece of the body, to `content`. Whether there is more.
    pub(crate) async fn piece(
        &mut self,
        body: &mut Body,
        content: impl FnMut(&[u8]),
    ) -> Result<bool> {
        if self.buffer.is_empty() && !body.is_done() {
            self.more().await?;
        }
        let taken = body.take(&self.buffer, content);
        self.buffer.drain(..taken);
        Ok(!body.is_done())
    }

    /// Sends a request and reads its answer: the status, the body, whether there can be another.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<(u64, Vec<u8>, bool)> {
        self.send(request).await?;
        let mut head = self.head().await?;
        let mut content = Vec::new();
        while self.piece(&mut head.body, |piece| content.extend_from_slice(piece)).await? {}
        Ok((head.status, content, head.keep_alive))
    }

    async fn more(&mut self) -> Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(Error::new(ErrorKind::UnexpectedEof, "closed in the middle of an answer")),
            _ => Ok(()),
        }
    }
}
