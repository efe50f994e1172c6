//! Signals from outside: `SIGTERM` and `SIGINT` end the process after a drain, a second one at once;
//! `SIGHUP` reloads the config.

use std::io;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// Drain and end.
    End,
    /// Read the config again.
    Reload,
}

/// The signals that we listen to.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Stream,
    interrupt: Stream,
    hangup: Stream,
}

impl Signals {
    pub(super) fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::End,
            _ = self.interrupt.recv() => Signal::End,
            _ = self.hangup.recv() => Signal::Reload,
        }
    }

    /// From now on whoever asks again does not want to wait for the drain.
    #[allow(
        clippy::disallowed_methods,
        reason = "it outlives every group of tasks, and ends the process"
    )]
    pub(super) fn second_ends_the_process(mut self) {
        tokio::spawn(async move {
            while self.next().await != Signal::End {}
            tracing::warn!("told to end a second time: ending at once");
            std::process::exit(1);
        });
    }
}
