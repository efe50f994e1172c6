//! A client's HTTP/1.1 connection as two have it: the task that drives it ([`super::http1`]), and the body of the
//! request that is under way, which whoever sends that on reads from it ([`ClientBody`]). The task alone is woken
//! by the socket; a body that is read elsewhere is woken by the task.

use std::cell::{RefCell, RefMut};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use tokio::io::AsyncWrite;
use tokio::time::Sleep;

use super::client_io::ClientIo;
use crate::proxy::body::BodyError;
use crate::proxy::http1::{self, Burst, Framing, HeadError, ReadBuffer, RequestHead, WriteBuffer};
use crate::proxy::limits::Clients;

/// How often it is looked whether a client has gone that has sent more than is taken.
const LOOK: Duration = Duration::from_secs(1);
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// How much of a body that nobody wants is read so that the connection can be kept.
const MOST_UNWANTED: u64 = 64 << 10;

/// The connection. Clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct Client(Rc<RefCell<State>>);

/// What the task and the body share.
#[derive(Debug)]
pub(super) struct State {
    /// There is none once the connection is over.
    socket: Option<ClientIo>,
    read: ReadBuffer,
    /// How much of `read` was looked at for a head.
    seen: usize,
    /// What is left of the request's body.
    body: Framing,
    /// The client waits to be told that its body is wanted.
    expects_continue: bool,
    pub(super) out: WriteBuffer,
    burst: Burst,
    /// Some of what was written may be in the layer below.
    is_unflushed: bool,
    /// Until it is looked whether the client has gone.
    look: Option<Pin<Box<Sleep>>>,
    /// The task that drives it.
    driver: Waker,
    /// Whoever waits for the body elsewhere.
    reader: Option<Waker>,
    clients: Arc<Clients>,
}

/// What has come from a client whose request is being answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Bytes,
    /// It has closed the connection, or it broke off.
    Left,
}

impl Client {
    pub(super) fn new(socket: ClientIo, clients: &Arc<Clients>) -> Self {
        Self(Rc::new(RefCell::new(State {
            socket: Some(socket),
            read: ReadBuffer::default(),
            seen: 0,
            body: Framing::Over,
            expects_continue: false,
            out: WriteBuffer::default(),
            burst: Burst::default(),
            is_unflushed: false,
            look: None,
            driver: Waker::noop().clone(),
            reader: None,
            clients: Arc::clone(clients),
        })))
    }

    pub(super) fn state(&self) -> RefMut<'_, State> {
        self.0.borrow_mut()
    }

    /// The body of the request whose head was taken last.
    pub(super) fn body(&self) -> ClientBody {
        ClientBody(Self::clone(self))
    }

    /// Whether nobody is left to read the request's body.
    pub(super) fn is_body_dropped(&self) -> bool {
        Rc::strong_count(&self.0) == 1
    }
}

impl State {
    /// Takes the next request's head, once it is here.
    ///
    /// # Errors
    /// [`HeadError`].
    pub(super) fn take_head(&mut self) -> Result<Option<RequestHead>, HeadError> {
        if self.read.bytes.is_empty() {
            return Ok(None);
        }
        let longest = self.clients.limits.head as usize;
        let head = http1::read_request(&mut self.read.bytes, self.seen, longest)?;
        self.seen = self.read.bytes.len();
        let Some(head) = head else { return Ok(None) };
        self.seen = 0;
        Ok(Some(head))
    }

    /// What follows the head that was taken.
    pub(super) fn expect_body(&mut self, body: Framing, expects_continue: bool) {
        self.expects_continue = expects_continue && !body.is_over();
        self.body = body;
    }

    /// Whether nothing of a next request is here.
    pub(super) fn is_idle(&self) -> bool {
        self.read.bytes.is_empty()
    }

    /// Reads what there is; 0 is the end.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(socket) = &mut self.socket else { return Poll::Ready(Ok(0)) };
        self.read.poll_fill(socket.socket(), cx)
    }

    /// From now on this task drives the connection.
    pub(super) fn driven_by(&mut self, driver: &Waker) {
        self.driver.clone_from(driver);
    }

    /// Looks after the client while its request is answered.
    pub(super) fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<Seen> {
        if self.read.is_full() {
            // More is read once that is taken.
            return self.poll_gone(cx);
        }
        let filled = ready!(self.poll_fill(cx));
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(if matches!(filled, Ok(1..)) { Seen::Bytes } else { Seen::Left })
    }

    /// Looks now and then whether a client has gone of which nothing is read just now: the socket tells of that only
    /// behind what there is to read.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Seen> {
        while !self.socket.as_mut().is_none_or(ClientIo::has_gone) {
            let look = self.look.get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK)));
            ready!(look.as_mut().poll(cx));
            self.look = None;
        }
        Poll::Ready(Seen::Left)
    }

    /// Writes and flushes all that waits.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(socket) = &mut self.socket else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        while !self.out.is_empty() {
            if ready!(self.out.poll_write(socket, cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.is_unflushed = true;
        }
        if self.is_unflushed {
            ready!(Pin::new(socket).poll_flush(cx))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// The same, together with what else the thread has to write.
    pub(super) fn poll_send_in_burst(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.out.is_empty() {
            ready!(self.burst.poll(cx));
        }
        let sent = self.poll_send(cx);
        if self.out.is_empty() {
            self.burst.end();
        }
        sent
    }

    /// The next piece of the request's body, for a reader with this context.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            match self.body.take(&mut self.read.bytes) {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) if self.body.is_over() => return Poll::Ready(None),
                Ok(None) => {}
                Err(what) => {
                    // Nothing tells its end.
                    self.body = Framing::UntilClose;
                    return Poll::Ready(Some(Err(BodyError::Malformed(what))));
                }
            }
            if std::mem::take(&mut self.expects_continue) {
                self.out.copy(CONTINUE);
                // What does not go out at once goes with what comes next.
                let driver = self.driver.clone();
                let _ = self.poll_send(&mut Context::from_waker(&driver))?;
            }
            let Some(socket) = &mut self.socket else { return Poll::Ready(Some(Err(left()))) };
            if !self.driver.will_wake(cx.waker()) {
                self.reader = Some(cx.waker().clone());
            }
            match ready!(
                self.read.poll_fill(socket.socket(), &mut Context::from_waker(&self.driver))
            ) {
                Ok(1..) => {}
                _ => return Poll::Ready(Some(Err(left()))),
            }
        }
    }

    /// Whether all of the request's body has been taken.
    pub(super) fn is_body_over(&self) -> bool {
        self.body.is_over()
    }

    /// Whether the connection can be kept though nobody wants the rest of the body.
    pub(super) fn may_read_off(&self) -> bool {
        let is_little = self.body.rest().is_some_and(|rest| rest <= MOST_UNWANTED);
        is_little && !self.expects_continue
    }

    /// Reads the rest of the body for nobody.
    ///
    /// # Errors
    /// It did not come.
    pub(super) fn poll_read_off(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        loop {
            match ready!(self.poll_body(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Its end is to be a reset, so that it is not taken for the end of what was sent; or not.
    pub(super) fn end_by_reset(&mut self, ends_by_reset: bool) {
        if let Some(socket) = &mut self.socket {
            socket.end_by_reset(ends_by_reset);
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        self.socket.as_ref().is_some_and(ClientIo::is_tls)
    }

    /// Says that no more will be sent.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.as_mut().map_or(Poll::Ready(Ok(())), |it| Pin::new(it).poll_shutdown(cx))
    }

    /// Throws away what comes, up to so many bytes; ready at the end.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>, most: &mut usize) -> Poll<()> {
        while *most > 0 {
            self.read.bytes.clear();
            match ready!(self.poll_fill(cx)) {
                Ok(read @ 1..) => *most = most.saturating_sub(read),
                _ => break,
            }
        }
        Poll::Ready(())
    }

    /// Whether bytes are here that nobody has taken.
    pub(super) fn has_unread(&self) -> bool {
        !self.body.is_over() || !self.read.bytes.is_empty()
    }

    /// The bare connection, and what the client has said on it already.
    pub(super) fn take_socket(&mut self) -> Option<(ClientIo, Bytes)> {
        Some((self.socket.take()?, self.read.bytes.split().freeze()))
    }

    /// It is over: whoever still waits for the body is told.
    pub(super) fn close(&mut self) {
        self.socket = None;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

fn left() -> BodyError {
    BodyError::Io(io::ErrorKind::UnexpectedEof.into())
}

/// The body of a request over HTTP/1.1, still on its client's connection.
#[derive(Debug)]
pub(in crate::proxy) struct ClientBody(Client);

impl ClientBody {
    /// The next piece; `None` behind the last.
    pub(in crate::proxy) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.state().poll_body(cx)
    }

    pub(in crate::proxy) fn is_over(&self) -> bool {
        self.0.state().is_body_over()
    }

    /// How much more there is, where that is known.
    pub(in crate::proxy) fn rest(&self) -> Option<u64> {
        self.0.state().body.rest()
    }
}
