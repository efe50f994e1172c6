//! Whether the client of an HTTP/2 stream takes its answer. The connection's socket does not show it: a
//! client may read that for its other streams and leave one without window, and hyper asks for nothing
//! more of a body until there is some.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::proxy::answer::AnswerError;
use crate::proxy::body::ResponseBody;
use crate::proxy::limits::Presence;

/// Whose turn it is on a stream.
#[derive(Debug, Default)]
pub(super) struct Taking {
    /// It has something to take.
    is_clients_turn: Cell<bool>,
    /// Goes up with each piece that is asked for.
    turns: Cell<u64>,
}

impl Taking {
    /// The head of the answer is handed over, and this is its body, which may have to be empty. The stream is there
    /// until it has gone.
    pub(super) fn watch(
        self: Rc<Self>,
        body: ResponseBody,
        is_empty: bool,
        presence: Option<Presence>,
    ) -> Taken {
        self.is_clients_turn.set(true);
        Taken { body, is_empty, taking: self, _presence: presence }
    }

    /// Resolves once nothing was taken for `limit`, at the latest after twice that.
    pub(super) async fn stalled(&self, limit: Duration) {
        loop {
            let before = self.turns.get();
            tokio::time::sleep(limit).await;
            if self.is_clients_turn.get() && self.turns.get() == before {
                return;
            }
        }
    }
}

/// An answer's body that notes how it is taken.
#[derive(Debug)]
pub(super) struct Taken {
    body: ResponseBody,
    /// It has an end and nothing before that: whatever else comes is where the client's ends.
    is_empty: bool,
    taking: Rc<Taking>,
    _presence: Option<Presence>,
}

impl Body for Taken {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let mut frame = Pin::new(&mut self.body).poll_frame(cx);
        while self.is_empty
            && let Poll::Ready(Some(Ok(surplus))) = &frame
        {
            if surplus.data_ref().is_some_and(|data| !data.is_empty()) {
                self.body = ResponseBody::full(Bytes::new());
            }
            frame = Pin::new(&mut self.body).poll_frame(cx);
        }
        self.taking.is_clients_turn.set(frame.is_ready());
        self.taking.turns.set(self.taking.turns.get().wrapping_add(1));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Of what a HEAD would be about nothing is known.
        if self.is_empty { SizeHint::default() } else { self.body.size_hint() }
    }
}
