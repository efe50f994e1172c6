//! When a client's connection over HTTP/1.1 is to end though its client would go on.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use crate::proxy::ending::Ending;

/// One connection's share in the end of the proxy. To be polled by one task only.
pub(super) struct Leaving {
    ending: Ending,
    /// Resolves when it must take no other request; before that it sets `takes_leave`.
    over: Option<Pin<Box<dyn Future<Output = ()>>>>,
    is_over: bool,
    takes_leave: Rc<Cell<bool>>,
}

impl Leaving {
    pub(super) fn new(ending: Ending) -> Self {
        Self { ending, over: None, is_over: false, takes_leave: Rc::default() }
    }

    /// Ready when no other request is to be waited for.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_over {
            return Poll::Ready(());
        }
        if self.over.is_some() && !self.ending.has_begun() {
            // It wakes this task, which is always the same, when it begins.
            return Poll::Pending;
        }
        let over = self.over.get_or_insert_with(|| {
            let (ending, takes_leave) = (self.ending.clone(), Rc::clone(&self.takes_leave));
            Box::pin(async move {
                ending.turn().await;
                takes_leave.set(true);
                ending.at_once().await;
            })
        });
        ready!(over.as_mut().poll(cx));
        self.is_over = true;
        Poll::Ready(())
    }

    /// Whether the answer that begins now is the last.
    pub(super) fn is_last(&mut self, cx: &mut Context<'_>) -> bool {
        self.ending.has_begun() && (self.poll(cx).is_ready() || self.takes_leave.get())
    }
}
