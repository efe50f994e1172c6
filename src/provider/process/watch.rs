//! The task that follows one instance to its end: it waits for the leading process to exit, uses force
//! when the time to stop has passed, and then ends what the leader has left behind. Only when no process
//! is left does the instance count as ended, because until then a left-over child may hold the device
//! or the port that the next instance needs.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::scan::{self, ProcessKey};
use super::table::StopDeadline;
use super::{Shared, locked, signal};
use crate::types::InstanceId;

/// How often a process is looked at where the kernel does not tell of its end.
const POLL: Duration = Duration::from_millis(100);
/// How often force is repeated: a process that forked in just that moment may have been missed.
const FORCE_AGAIN: Duration = Duration::from_millis(200);
/// The first and the longest pause between looks at what a leader has left behind.
const REST_POLL: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// The process that was launched for an instance.
#[derive(Debug)]
pub(super) struct Leader {
    key: ProcessKey,
    /// Only where it is our own child; only then its exit status can be had.
    child: Option<Child>,
    handle: Option<OwnedFd>,
}

impl Leader {
    /// Takes hold of a process while `key` is known to be right.
    pub(super) fn new(key: ProcessKey, child: Option<Child>) -> Self {
        Self { key, child, handle: signal::handle(key) }
    }
}

/// Follows an instance until nothing of it is left, and notes that in the table.
pub(super) async fn watch(
    shared: Arc<Shared>,
    id: InstanceId,
    leader: Option<Leader>,
    mut stop: watch::Receiver<StopDeadline>,
) {
    let key = leader.as_ref().map(|leader| leader.key);
    let reason = match leader {
        Some(leader) => watch_leader(&shared, &id, leader, &mut stop).await,
        None => "its leading process had ended".to_owned(),
    };
    end_rest(&shared, &id, key, &mut stop).await;
    tracing::info!(instance = %id, %reason, "a worker has ended");
    locked(&shared.table).end(&id, reason);
    shared.nudge.notify_one();
}

async fn watch_leader(
    shared: &Arc<Shared>,
    id: &InstanceId,
    leader: Leader,
    stop: &mut watch::Receiver<StopDeadline>,
) -> String {
    let Leader { key, child, handle } = leader;
    let mut exit = std::pin::pin!(exited(key, child, handle));
    loop {
        tokio::select! {
            reason = &mut exit => return reason,
            () = due(stop) => {
                tracing::warn!(instance = %id, "a worker has not ended in its grace time; using force");
                signal_all(shared, id, Some(key), Signal::KILL).await;
            }
        }
        tokio::select! {
            reason = &mut exit => return reason,
            () = sleep(FORCE_AGAIN) => {}
        }
    }
}

/// Resolves when the process has ended, with how.
async fn exited(key: ProcessKey, mut child: Option<Child>, handle: Option<OwnedFd>) -> String {
    // A handle of this kind becomes readable when its process ends, and stays so.
    match handle.map(registered) {
        Some(Ok(handle)) if handle.readable().await.is_ok() => {}
        _ => {
            while scan::is_alive(key) {
                sleep(POLL).await;
            }
        }
    }
    let Some(child) = &mut child else {
        return format!(
            "process {} ended; an earlier manager started it, so how is not known",
            key.pid
        );
    };
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return describe(status),
            Ok(None) => sleep(POLL).await,
            Err(error) => return format!("process {} ended; how is not known: {error}", key.pid),
        }
    }
}

#[expect(deprecated, reason = "its replacement is unsafe for types that are less than an OwnedFd")]
fn registered(handle: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(handle, Interest::READABLE)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(number)) => format!("signal {number} ({})", signal::name(number)),
        (None, None) => status.to_string(),
    }
}

/// Ends what is left after the leader: at once if it ended by itself, at the deadline if it was told to
/// stop, so that its children too may finish in time.
async fn end_rest(
    shared: &Arc<Shared>,
    id: &InstanceId,
    leader: Option<ProcessKey>,
    stop: &mut watch::Receiver<StopDeadline>,
) {
    let mut pause = REST_POLL.0;
    let mut was_told = false;
    loop {
        let deadline = *stop.borrow_and_update();
        let is_due = deadline.is_none_or(|deadline| Instant::from_std(deadline) <= Instant::now());
        let left = if is_due {
            signal_all(shared, id, leader, Signal::KILL).await
        } else {
            members(shared, id, leader).await.len()
        };
        if left == 0 {
            return;
        }
        if !was_told {
            was_told = true;
            tracing::warn!(instance = %id, left, "a worker's leading process ended and left others");
            locked(&shared.table).mark_stopping(id);
            shared.nudge.notify_one();
        }
        tokio::select! {
            () = sleep(pause) => {}
            _ = stop.changed() => {}
        }
        pause = (pause * 2).min(REST_POLL.1);
    }
}

/// Signals every process of an instance; how many there were.
async fn signal_all(
    shared: &Arc<Shared>,
    id: &InstanceId,
    leader: Option<ProcessKey>,
    signal: Signal,
) -> usize {
    let members = members(shared, id, leader).await;
    for member in &members {
        signal::send(*member, signal);
    }
    members.len()
}

async fn members(
    shared: &Arc<Shared>,
    id: &InstanceId,
    leader: Option<ProcessKey>,
) -> Vec<ProcessKey> {
    let (shared, id) = (shared.clone(), id.clone());
    let scanned = tokio::task::spawn_blocking(move || shared.members(&id, leader)).await;
    // It fails only when the runtime is going away, and this task with it.
    scanned.unwrap_or_else(|_| leader.into_iter().collect())
}

/// Resolves when a deadline has been set and has passed.
async fn due(stop: &mut watch::Receiver<StopDeadline>) {
    loop {
        let deadline = *stop.borrow_and_update();
        let passed = async {
            match deadline {
                Some(deadline) => sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = passed => return,
            changed = stop.changed() => {
                if changed.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}
