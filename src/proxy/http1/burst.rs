//! When to write. What is written to a socket wakes whoever reads from it, and that costs more than anything else
//! about a small message; of wakes in a row the first does the work for those behind it, since its process is up by
//! then. So a thread reads all that has come before it writes any of what follows from it.

use std::task::{Context, Poll};

/// One connection's way into the thread's next burst of writes.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Burst {
    is_due: bool,
}

impl Burst {
    /// Ready once all tasks that were to run before have run.
    pub(in crate::proxy) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_due {
            return Poll::Ready(());
        }
        self.is_due = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// It is over: what comes next is for another.
    pub(in crate::proxy) fn end(&mut self) {
        self.is_due = false;
    }
}
