//! An HTTP/1.1 connection of a client, by a server of our own: one task reads a head, has the request answered,
//! looks meanwhile whether the client is still there, and passes the answer on, its head and what is here of
//! its body in one write. hyper's server keeps 16 KiB of buffers for each connection and the future that answers
//! for as long as the answer lasts; here a stream that is silent holds neither. Nor can it be told what to refuse:
//! it hides lines that end in LF alone, lengths that are said twice, a length beside chunks.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::header::CONNECTION;
use http::request::Parts;
use http::{Method, Response, Version};

use super::client::{Client, Seen};
use super::client_io::ClientIo;
use super::leaving::Leaving;
use super::outgoing::{Answer, Asked, Shape, write_head, write_signature};
use crate::proxy::alarm::Alarm;
use crate::proxy::body::{Incoming, ResponseBody};
use crate::proxy::ending::Ending;
use crate::proxy::headers;
use crate::proxy::http1::{Framing, HeadError, RequestHead, write_fields, write_status};
use crate::proxy::origin::{Mark, Origin};
use crate::proxy::refusal::{Dialect, Refusal};
use crate::proxy::request::{Thread, serve};
use crate::proxy::socket::Socket;
use crate::runtime::clock;

/// A connection that is closed while its client still sends is read from for a while, so that the answer is not
/// lost in a reset (RFC 9112, 9.6).
const LINGER: Duration = Duration::from_secs(2);
const MOST_LINGERING: usize = 16 << 20;

/// What follows an answer.
enum Next {
    Request,
    /// The connection's clean end.
    Close,
    /// The connection is over, or its end is to be seen as one that is not clean.
    Nothing,
}

/// Serves all requests of a connection, until the proxy ends.
pub(super) async fn serve_connection(
    socket: Socket,
    origin: Rc<Origin>,
    thread: Rc<Thread>,
    ending: Ending,
) {
    let client = Client::new(ClientIo::new(socket, &thread.clients), &thread.clients);
    let leaving = Leaving::new(ending);
    let mut driver = Driver { client, origin, thread, leaving, alarm: Rc::default() };
    if let Err(error) = driver.run().await {
        tracing::debug!(%error, "a client's connection ended early");
    }
}

/// Whoever drives a connection. Its drop is the connection's end.
struct Driver {
    client: Client,
    origin: Rc<Origin>,
    thread: Rc<Thread>,
    leaving: Leaving,
    alarm: Rc<Alarm>,
}

impl Driver {
    async fn run(&mut self) -> io::Result<()> {
        loop {
            let (request, mark, asked) = match self.next_request().await {
                Ok(Some(next)) => next,
                Ok(None) => break,
                Err(error) => {
                    Box::pin(self.refuse(error)).await?;
                    break;
                }
            };
            let Some(response) = self.answer(request, mark).await else { return Ok(()) };
            match self.pass_on(response, &asked).await? {
                Next::Request => {}
                Next::Close => break,
                Next::Nothing => return Ok(()),
            }
        }
        self.close().await
    }

    /// `None` where none will come.
    async fn next_request(
        &mut self,
    ) -> Result<Option<((Parts, Incoming), Option<Mark>, Asked)>, HeadError> {
        let since = clock::monotonic();
        let head = poll_fn(|cx| {
            self.client.state().driven_by(cx.waker());
            self.poll_head(cx, since)
        });
        let Some(head) = head.await? else { return Ok(None) };
        let mut parts = head.parts;
        let mark = self.origin.mark(&mut parts.headers, head.names, parts.version);
        let asked = Asked {
            version: parts.version,
            is_head: parts.method == Method::HEAD,
            // Where an upgrade is not made, a proxy in front of us may believe that it was.
            keeps_alive: head.keeps_alive
                && headers::wanted_upgrade(&parts.headers, head.names).is_none(),
            takes_trailers: headers::takes_trailers(&parts.headers, head.names),
        };
        let body = if head.framing.is_over() {
            Incoming::Nothing
        } else {
            self.client.state().expect_body(head.framing, head.expects_continue);
            Incoming::Http1(self.client.body())
        };
        Ok(Some(((parts, body), mark, asked)))
    }

    /// The next head; `None` where none will come.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        since: Instant,
    ) -> Poll<Result<Option<RequestHead>, HeadError>> {
        loop {
            let mut client = self.client.state();
            if let Some(head) = client.take_head()? {
                return Poll::Ready(Ok(Some(head)));
            }
            let Poll::Ready(filled) = client.poll_fill(cx) else {
                // One who may be sending a request is not closed.
                let is_idle = client.is_idle();
                drop(client);
                if is_idle && self.leaving.poll(cx).is_ready() {
                    return Poll::Ready(Ok(None));
                }
                ready!(self.alarm.poll(cx, since + self.thread.clients.limits.idle_timeout));
                return Poll::Ready(Ok(None));
            };
            if !matches!(filled, Ok(1..)) {
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// The answer to a request; `None` if its client leaves before.
    async fn answer(
        &mut self,
        request: (Parts, Incoming),
        mark: Option<Mark>,
    ) -> Option<Response<ResponseBody>> {
        let (thread, alarm) = (Rc::clone(&self.thread), Rc::clone(&self.alarm));
        // In a place of its own, which is given back before the answer is passed on.
        let mut answer = Box::pin(serve(thread, alarm, mark, request));
        let client = &self.client;
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(Ok(response)) = answer.as_mut().poll(cx) {
                    return Poll::Ready(Some(response));
                }
                if ready!(client.state().poll_watch(cx)) == Seen::Left {
                    return Poll::Ready(None);
                }
            }
        })
        .await
    }

    /// Passes an answer on.
    async fn pass_on(
        &mut self,
        response: Response<ResponseBody>,
        asked: &Asked,
    ) -> io::Result<Next> {
        let (mut parts, body) = response.into_parts();
        if let ResponseBody::Tunnel(tunnel) = body {
            self.client.state().out.write_with(|into| {
                write_status(asked.version, parts.status, into);
                write_fields(&parts.headers, into);
                write_signature(tunnel.exchange.backend().signature(), into);
                into.extend_from_slice(b"\r\n");
            });
            poll_fn(|cx| self.client.state().poll_send(cx)).await?;
            let client = self.client.state().take_socket();
            if let Some((socket, said_already)) = client {
                Box::pin(tunnel.run(socket, said_already)).await;
            }
            return Ok(Next::Nothing);
        }
        let shape = Shape::of(&parts, &body, asked);
        // Of these there are only our own.
        let says_close = parts.headers.remove(CONNECTION).is_some();
        let is_last = poll_fn(|cx| Poll::Ready(self.leaving.is_last(cx))).await;
        let keeps_alive = asked.keeps_alive
            && !(says_close || is_last || shape == Shape::UntilClose)
            && self.body_is_no_obstacle();
        let connection = match (keeps_alive, asked.version) {
            (false, _) => Some("close"),
            (true, Version::HTTP_10) => Some("keep-alive"),
            (true, _) => None,
        };
        {
            let mut client = self.client.state();
            client.end_by_reset(shape == Shape::UntilClose);
            client.out.write_with(|into| {
                write_head(into, (asked.version, &parts), (shape, &body), connection);
            });
        }
        drop(parts);
        let mut answer = Answer::new(body, shape);
        let whole = poll_fn(|cx| answer.poll_pass_on(cx, &self.client)).await?;
        // Its slot is free from here on.
        drop(answer);
        if !whole {
            return Ok(Next::Nothing);
        }
        self.client.state().end_by_reset(false);
        Ok(if keeps_alive && self.read_off().await { Next::Request } else { Next::Close })
    }

    /// Whether the rest of the request's body, as far as is known now, lets the connection be kept.
    fn body_is_no_obstacle(&self) -> bool {
        let client = self.client.state();
        client.is_body_over() || client.may_read_off() || !self.client.is_body_dropped()
    }

    /// Reads what is left of the request's body, for nobody. Whether another request may come behind it.
    async fn read_off(&mut self) -> bool {
        let (is_over, may) = {
            let client = self.client.state();
            (client.is_body_over(), client.may_read_off() && self.client.is_body_dropped())
        };
        if is_over || !may {
            return is_over;
        }
        let read = poll_fn(|cx| self.client.state().poll_read_off(cx));
        matches!(tokio::time::timeout(LINGER, read).await, Ok(Ok(())))
    }

    /// Tells a client why its head is none, as far as there is something to tell.
    async fn refuse(&mut self, error: HeadError) -> io::Result<()> {
        let refusal = match error {
            HeadError::Malformed(why) => Refusal::Malformed(why),
            HeadError::TooLarge => Refusal::HeadTooLarge,
        };
        let asked = Asked {
            version: Version::HTTP_11,
            is_head: false,
            keeps_alive: false,
            takes_trailers: false,
        };
        let response = refusal.into_response(Dialect::OpenAi);
        // Whatever follows is the next request of nobody's.
        self.client.state().expect_body(Framing::UntilClose, false);
        self.pass_on(response, &asked).await.map(drop)
    }

    /// Ends the connection so that all that was sent arrives, and the client knows that it is all.
    async fn close(&mut self) -> io::Result<()> {
        let (says_its_end, has_unread) = {
            let client = self.client.state();
            (client.is_tls(), client.has_unread())
        };
        if says_its_end || has_unread {
            poll_fn(|cx| self.client.state().poll_shutdown(cx)).await?;
        }
        if has_unread {
            let mut most = MOST_LINGERING;
            let discarded = poll_fn(|cx| self.client.state().poll_discard(cx, &mut most));
            drop(tokio::time::timeout(LINGER, discarded).await);
        }
        Ok(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.client.state().close();
    }
}
