//! A new binary takes the listening sockets over from the one that runs: not a connection is refused, since
//! the sockets, with whatever waits in them, are never closed. Both speak over a Unix socket (`[proxy]
//! takeover`), whose file only their user can use. For a manager alone the sockets are the admin listener's:
//!
//! 1. the successor connects; it gets each listening socket, then the routing table as it is;
//! 2. it starts, accepts on them, and says so. Up to here the old process goes on as if nothing were, and if
//!    the successor fails nothing has happened;
//! 3. the old process accepts nothing more, says so, and drains; it gives up the fleet's lease, which the
//!    successor waits for.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::net::UnixListener;

use crate::types::table::RoutingTable;

/// What is said. Another version of the dialogue would say something else.
const ASKS: u8 = b'1';
const SOCKET: u8 = b'S';
const TABLE: u8 = b'T';
const READY: u8 = b'R';
const CLOSED: u8 = b'C';
/// How long a successor may take to start.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long anything else may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// As [`crate::proxy::link`] has it.
const LARGEST_TABLE: u64 = 64 << 20;

/// What a successor has been given.
#[derive(Debug)]
pub(super) struct Inherited {
    stream: UnixStream,
    /// Every listening socket of the process before.
    pub(super) sockets: Vec<TcpListener>,
    /// What it routed by.
    pub(super) table: Option<RoutingTable>,
}

impl Inherited {
    /// What the process that listens at `path` gives; `None` when there is none.
    ///
    /// # Errors
    /// When there is one, but it does not give anything.
    pub(super) fn ask(path: &Path) -> io::Result<Option<Self>> {
        let mut stream = match UnixStream::connect(path) {
            Ok(stream) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        stream.write_all(&[ASKS])?;
        let mut sockets = Vec::new();
        while let Some(socket) = receive(&stream)? {
            sockets.push(socket.into());
        }
        let mut length = [0; 8];
        stream.read_exact(&mut length)?;
        let mut table = Vec::new();
        let length = u64::from_be_bytes(length).min(LARGEST_TABLE);
        Read::by_ref(&mut stream).take(length).read_to_end(&mut table)?;
        let table = if table.is_empty() { None } else { Some(serde_json::from_slice(&table)?) };
        Ok(Some(Self { stream, sockets, table }))
    }

    /// The sockets are accepted on: the process before may stop.
    pub(super) fn ready(mut self) {
        // Whether it still lives makes no difference: the sockets are ours.
        drop(self.stream.write_all(&[READY]));
        drop(self.stream.read_exact(&mut [0]));
    }
}

/// Where successors ask.
#[derive(Debug)]
pub(super) struct Takeover {
    listener: UnixListener,
    path: PathBuf,
    sockets: Vec<TcpListener>,
}

impl Takeover {
    /// Listens at `path` for whoever wants `sockets`. A file that nobody listens at any more is replaced.
    ///
    /// # Errors
    /// When it cannot be listened there.
    pub(super) fn open(path: &Path, sockets: Vec<TcpListener>) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path: path.to_owned(), sockets })
    }

    /// Resolves once a successor accepts on the sockets. `table` tells what is routed by.
    pub(super) async fn successor(&self, table: impl Fn() -> Option<Vec<u8>>) -> Successor {
        loop {
            match self.talk(&table).await {
                Ok(stream) => return Successor { stream },
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "a successor did not take over; going on");
                }
            }
        }
    }

    async fn talk(&self, table: impl Fn() -> Option<Vec<u8>>) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept().await?;
        let stream = stream.into_std()?;
        let sockets: Vec<_> =
            self.sockets.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?;
        tracing::info!(sockets = sockets.len(), "a successor starts");
        // The newest there is now.
        let table = table().unwrap_or_default();
        let talk = move || give(stream, &sockets, &table);
        tokio::task::spawn_blocking(talk).await.map_err(io::Error::other)?
    }
}

/// Accepts on the sockets from now on.
#[derive(Debug)]
pub(super) struct Successor {
    stream: UnixStream,
}

impl Successor {
    /// This process accepts nothing more, and its place at the path is free.
    pub(super) fn closed(mut self) {
        // One that has died meanwhile is no reason to go on: its sockets are closed with it.
        drop(self.stream.write_all(&[CLOSED]));
    }
}

fn give(mut stream: UnixStream, sockets: &[TcpListener], table: &[u8]) -> io::Result<UnixStream> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    expect(&mut stream, ASKS)?;
    for socket in sockets {
        send(&stream, socket)?;
    }
    stream.write_all(&[TABLE])?;
    stream.write_all(&(table.len() as u64).to_be_bytes())?;
    stream.write_all(table)?;
    stream.set_read_timeout(Some(START_LIMIT))?;
    expect(&mut stream, READY)?;
    Ok(stream)
}

fn expect(stream: &mut UnixStream, wanted: u8) -> io::Result<()> {
    let mut said = [0];
    stream.read_exact(&mut said)?;
    if said == [wanted] { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn send(stream: &UnixStream, socket: &TcpListener) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let sockets = [socket.as_fd()];
    let fits = control.push(SendAncillaryMessage::ScmRights(&sockets));
    debug_assert!(fits, "the space is for one");
    sendmsg(stream, &[IoSlice::new(&[SOCKET])], &mut control, SendFlags::empty())?;
    Ok(())
}

/// The next socket; `None` once all have come. Each comes with a byte of its own, which the kernel never
/// merges with others.
fn receive(stream: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut said = [0];
    let got =
        recvmsg(stream, &mut [IoSliceMut::new(&mut said)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let socket = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    match (got.bytes, said, socket) {
        (1, [SOCKET], Some(socket)) if !got.flags.contains(ReturnFlags::CTRUNC) => Ok(Some(socket)),
        (1, [TABLE], None) => Ok(None),
        (0, ..) => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
