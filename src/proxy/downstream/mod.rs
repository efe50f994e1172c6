//! A client's connection, from its first byte to its close: HTTP/2 ([`http2`]) for those who begin with its preface
//! (RFC 9113, 3.3) or agree on it in the TLS handshake, HTTP/1.1 ([`http1`]) for all others. Whatever it speaks,
//! each of its requests enters by [`super::request::serve`].

mod client;
mod client_io;
mod date;
mod http1;
mod http2;
mod leaving;
mod outgoing;
mod taking;

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::RecvFlags;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::ending::Ending;
use super::origin::Origin;
use super::request::Thread;
use super::socket::Socket;
use crate::tls::Tls;

pub(super) use client::ClientBody;
pub(super) use client_io::ClientIo;

/// How an HTTP/2 connection begins (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a socket is silent before the client's host is asked, and how long between asking again.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Serves all requests of a connection, until the proxy ends.
pub(super) async fn serve_connection(
    (stream, peer): (TcpStream, SocketAddr),
    tls: Option<Arc<Tls>>,
    thread: Rc<Thread>,
    ending: Ending,
) {
    // Failing to set it costs latency, nothing else.
    drop(stream.set_nodelay(true));
    // One whose host has gone must not hold a silent stream for ever.
    drop(
        SockRef::from(&stream).set_tcp_keepalive(
            &TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE),
        ),
    );
    let origin = Rc::new(Origin::new(peer, tls.is_some(), &thread.clients.limits.trusted));
    let begins = begin(stream, tls.as_deref());
    let begins = tokio::time::timeout(thread.clients.limits.idle_timeout, begins);
    let begun = tokio::select! {
        begun = begins => begun,
        () = ending.at_once() => return,
    };
    match begun {
        Ok(Ok((socket, true))) => {
            // In a place of its own, that a connection of HTTP/1.1 has no need of.
            Box::pin(http2::serve_connection(socket, origin, thread, ending)).await;
        }
        Ok(Ok((socket, false))) => http1::serve_connection(socket, origin, thread, ending).await,
        // Nothing of a request has come: nobody is owed an answer.
        Ok(Err(_)) | Err(_) if tls.is_none() => {}
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            thread.clients.handshake_failed();
        }
        Err(_) => thread.clients.handshake_failed(),
    }
}

/// The connection, and whether it speaks HTTP/2.
async fn begin(stream: TcpStream, tls: Option<&Tls>) -> io::Result<(Socket, bool)> {
    let Some(tls) = tls else {
        let http2 = speaks_http2(&stream).await?;
        return Ok((Socket::Plain(stream), http2));
    };
    let (stream, http2) = Box::pin(tls.accept(stream)).await?;
    Ok((Socket::Tls(Box::new(stream.into())), http2))
}

/// Looks at the first bytes and leaves them where they are.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    loop {
        let is_all = stream.ready(Interest::READABLE).await?.is_read_closed();
        match stream.try_io(Interest::READABLE, || first_bytes_tell(stream, is_all)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            told => return told,
        }
    }
}

/// Whether what is here begins an HTTP/2 connection; `is_all`: no more will come.
fn first_bytes_tell(stream: &TcpStream, is_all: bool) -> io::Result<bool> {
    let mut first = [0; PREFACE.len()];
    let (length, _) = rustix::net::recv(stream, &mut first[..], RecvFlags::PEEK)?;
    match length {
        _ if first[..length] != PREFACE[..length] => Ok(false),
        _ if length == PREFACE.len() => Ok(true),
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ if is_all => Err(io::ErrorKind::UnexpectedEof.into()),
        // "P" begins a POST too. This is as good as nothing: the socket is ready again when more comes.
        _ => Err(io::ErrorKind::WouldBlock.into()),
    }
}
