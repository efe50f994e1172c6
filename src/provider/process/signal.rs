//! Signals to processes that may have ended, and whose ids may have come back as somebody else's.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use super::scan::{ProcessKey, is_alive};

/// A handle on exactly this process; `None` if it has ended or the kernel has no such handles
/// (before Linux 5.3, and some sandboxes).
pub(super) fn handle(key: ProcessKey) -> Option<OwnedFd> {
    let handle = pidfd_open(Pid::from_raw(key.pid)?, PidfdFlags::empty()).ok()?;
    // Between our reading the key and now the id may have changed hands; from now on it cannot.
    is_alive(key).then_some(handle)
}

/// Sends `signal` to exactly this process; nothing happens if it has ended.
pub(super) fn send(key: ProcessKey, signal: Signal) {
    let sent = match handle(key) {
        Some(handle) => pidfd_send_signal(handle, signal),
        None if is_alive(key) => match Pid::from_raw(key.pid) {
            Some(pid) => kill_process(pid, signal),
            None => return,
        },
        None => return,
    };
    if let Err(error) = sent
        && error != Errno::SRCH
    {
        tracing::warn!(pid = key.pid, signal = name(signal.as_raw()), %error, "cannot send a signal");
    }
}

/// The name of a signal that commonly ends a process.
pub(super) fn name(number: i32) -> &'static str {
    const NAMES: [(Signal, &str); 14] = [
        (Signal::HUP, "SIGHUP"),
        (Signal::INT, "SIGINT"),
        (Signal::QUIT, "SIGQUIT"),
        (Signal::ILL, "SIGILL"),
        (Signal::TRAP, "SIGTRAP"),
        (Signal::ABORT, "SIGABRT"),
        (Signal::BUS, "SIGBUS"),
        (Signal::FPE, "SIGFPE"),
        (Signal::KILL, "SIGKILL"),
        (Signal::SEGV, "SIGSEGV"),
        (Signal::PIPE, "SIGPIPE"),
        (Signal::ALARM, "SIGALRM"),
        (Signal::TERM, "SIGTERM"),
        (Signal::XCPU, "SIGXCPU"),
    ];
    NAMES.iter().find(|(signal, _)| signal.as_raw() == number).map_or("unnamed", |(_, name)| name)
}
