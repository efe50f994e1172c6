//! Workers as child processes on this machine.
//!
//! **What runs is asked of the operating system, not of a memory of ours.** Every worker has our owner
//! tag and its own description in its environment, and a scan of `/proc` finds it there (`scan.rs`); so a
//! manager that starts finds, adopts and can end what a killed one left. This works on Linux only.
//!
//! A worker runs in its own process group, has no pipe to us, and outlives us however we end. Each has a
//! task (`watch.rs`) that notices its end at once, whether it is our child or an adopted process, and then
//! ends what it left behind. What we ask of a command, therefore: it stays in the foreground, since a
//! process that goes on after the launched one has ended is taken for a left-over and ended; and it keeps
//! its environment, since a worker without it cannot be adopted after a restart.
//!
//! Launches are serialised, so that counting and starting are one step and capacity is never exceeded.
//! Reading `/proc` can block on a process that the kernel holds, so the calls run on threads that may
//! block; wrap this provider in [`super::limited::Limited`] for the time limits the trait asks for.

mod command;
mod ports;
mod scan;
mod signal;
mod table;
mod watch;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use rustix::process::Signal;
use tokio::sync::Notify;

use self::scan::{ProcessKey, Scanner, Tags};
use self::table::Table;
use self::watch::Leader;
use super::Provider;
use crate::runtime::clock;
use crate::runtime::tasks::Tasks;
use crate::types::launch::{Grant, LaunchBatch, LaunchOutcome, ProviderInstance};
use crate::types::{Address, InstanceId, InstanceTypeName, ProviderError, ProviderName};

pub use self::command::{PLACEHOLDERS, unknown_placeholders};

/// Worker logs that are kept beyond those of the running ones.
const LOGS_KEPT: usize = 256;
/// How long a started process may take to show its environment to a scan.
const EXEC_LIMIT: Duration = Duration::from_millis(200);
/// In place of a grace time that is too long for the clock.
const LONGEST_GRACE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How workers are started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessConfig {
    /// The provider's name.
    pub name: ProviderName,
    /// Marks our processes among all on this machine. The same after a restart of the manager, and
    /// different for managers with different stores; without NUL bytes.
    pub owner: String,
    /// The program and its arguments, with [`PLACEHOLDERS`] in braces. `{address}` is `host:port`.
    pub command: Vec<String>,
    /// Further environment variables.
    pub env: BTreeMap<String, String>,
    /// What `{forebay}` stands for: our own binary.
    pub forebay: PathBuf,
    /// The instance types there are, with how many of each; `None`: no limit.
    pub capacity: BTreeMap<InstanceTypeName, Option<u32>>,
    /// The address that workers listen on.
    pub listen_host: IpAddr,
    /// The folder for what workers write, `<instance>.log` each, the newest 256 kept after their
    /// workers ended. `None`: their standard output is dropped and their standard error is ours.
    pub logs: Option<PathBuf>,
}

impl ProcessConfig {
    /// An empty configuration: no command, no instance types, listening on 127.0.0.1.
    #[must_use]
    pub fn new(name: ProviderName, owner: String) -> Self {
        Self {
            name,
            owner,
            command: Vec::new(),
            env: BTreeMap::new(),
            forebay: PathBuf::from("forebay"),
            capacity: BTreeMap::new(),
            listen_host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            logs: None,
        }
    }
}

/// Runs instances as child processes. Clones are the same provider.
#[derive(Debug, Clone)]
pub struct ProcessProvider {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: ProcessConfig,
    capacity: Mutex<BTreeMap<InstanceTypeName, Option<u32>>>,
    scanner: Scanner,
    /// Held over the whole of each call, and waited for without a thread: if the kernel holds up one
    /// call, the others that pile up behind it cost nothing.
    call: Arc<tokio::sync::Mutex<()>>,
    table: Mutex<Table>,
    nudge: Arc<Notify>,
    tasks: Tasks,
}

/// Every invariant here holds between any two statements, so a panic elsewhere leaves nothing broken.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProcessProvider {
    /// A provider of processes. `nudge` is notified whenever one ends. The tasks that watch processes
    /// belong to `tasks`; when that ends, processes live on, and one that is being terminated is no
    /// longer ended by force.
    #[must_use]
    pub fn new(config: ProcessConfig, nudge: Arc<Notify>, tasks: Tasks) -> Self {
        let scanner = Scanner::new(config.owner.clone(), config.name.clone());
        let shared = Shared {
            capacity: Mutex::new(config.capacity.clone()),
            config,
            scanner,
            call: Arc::default(),
            table: Mutex::default(),
            nudge,
            tasks,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Replaces the instance types there are and how many of each. Nothing that runs is ended.
    pub fn set_capacity(&self, capacity: BTreeMap<InstanceTypeName, Option<u32>>) {
        *locked(&self.shared.capacity) = capacity;
    }

    /// Runs `work` where it may block, one after the other. Once begun, it goes on to its end even if
    /// the caller stops waiting.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Shared>) -> T + Send + 'static,
    ) -> Result<T, ProviderError> {
        let shared = self.shared.clone();
        let call = shared.call.clone().lock_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&shared);
            drop(call);
            done
        });
        done.await.map_err(|error| ProviderError::unavailable(format!("call broke off: {error}")))
    }
}

impl Provider for ProcessProvider {
    fn list(&self) -> BoxFuture<'_, Result<Vec<ProviderInstance>, ProviderError>> {
        Box::pin(async {
            self.blocking(|shared| {
                shared.adopt()?;
                Ok(locked(&shared.table).list())
            })
            .await?
        })
    }

    fn launch(&self, batch: LaunchBatch) -> BoxFuture<'_, Vec<LaunchOutcome>> {
        Box::pin(async move {
            let ids = batch.instances.clone();
            self.blocking(move |shared| shared.launch(&batch))
                .await
                .unwrap_or_else(|error| super::all_failed(&ids, &error))
        })
    }

    fn terminate(
        &self,
        instance: InstanceId,
        grace: Duration,
    ) -> BoxFuture<'_, Result<(), ProviderError>> {
        let now = clock::monotonic();
        let deadline = now.checked_add(grace).unwrap_or_else(|| now + LONGEST_GRACE);
        Box::pin(async move {
            self.blocking(move |shared| shared.terminate(&instance, deadline)).await?
        })
    }
}

impl Shared {
    /// Scans, and takes in what was not known.
    fn adopt(self: &Arc<Self>) -> Result<(), ProviderError> {
        let snapshot = self.scanner.scan().map_err(|error| {
            ProviderError::unavailable(format!("cannot read the processes in /proc: {error}"))
        })?;
        for (id, found) in snapshot.instances() {
            // The second look: since the scan, its end may have been noticed and noted.
            if locked(&self.table).is_live(&id)
                || !found.processes.iter().any(|process| scan::is_alive(*process))
            {
                continue;
            }
            let pid = found.leader.map(|leader| leader.pid);
            tracing::info!(instance = %id, pid, "adopted a worker that an earlier manager started");
            self.follow(found.tags, found.leader, None);
        }
        Ok(())
    }

    /// Puts an instance into the table and starts the task that watches it.
    fn follow(self: &Arc<Self>, tags: Arc<Tags>, leader: Option<ProcessKey>, child: Option<Child>) {
        let id = tags.instance.clone();
        let stop = locked(&self.table).insert(tags, leader);
        let leader = leader.map(|key| Leader::new(key, child));
        self.tasks.spawn_until_stopped("worker", watch::watch(self.clone(), id, leader, stop));
    }

    fn launch(self: &Arc<Self>, batch: &LaunchBatch) -> Vec<LaunchOutcome> {
        if let Err(error) = self.adopt() {
            return super::all_failed(&batch.instances, &error);
        }
        let outcomes = batch
            .instances
            .iter()
            .map(|id| LaunchOutcome { instance: id.clone(), result: self.launch_one(batch, id) })
            .collect();
        if let Some(folder) = &self.config.logs {
            command::prune_logs(folder, LOGS_KEPT, |name| {
                InstanceId::new(name).is_ok_and(|id| locked(&self.table).is_live(&id))
            });
        }
        outcomes
    }

    fn launch_one(
        self: &Arc<Self>,
        batch: &LaunchBatch,
        id: &InstanceId,
    ) -> Result<Grant, ProviderError> {
        // Also one that has ended since: it was granted, and the list says how it ended.
        if let Some(tags) = locked(&self.table).tags(id) {
            return Ok(Grant { address: tags.address.clone() });
        }
        self.check_capacity(&batch.instance_type)?;
        let taken = locked(&self.table).ports();
        let host = self.config.listen_host;
        let port = ports::find(host, &taken).map_err(|error| {
            ProviderError::unavailable(format!("cannot find a free port on {host}: {error}"))
        })?;
        let socket = SocketAddr::new(host, port);
        let mut command = command::build(&self.config, batch, id, socket)?;
        let child = command.spawn().map_err(|error| command::spawn_failed(&command, &error))?;
        let address = Address::http(socket);
        let tags = Tags {
            instance: id.clone(),
            instance_type: batch.instance_type.clone(),
            variant: Some(batch.variant.clone()),
            address: Some(address.clone()),
        };
        let pid = i32::try_from(child.id()).unwrap_or_default();
        tracing::info!(instance = %id, pid, %address, "started a worker");
        wait_for_exec(pid);
        // It is not waited for yet, so its id is its own even if it has ended.
        let key = scan::key_of(pid).unwrap_or(ProcessKey { start_ticks: u64::MAX, pid });
        self.follow(Arc::new(tags), Some(key), Some(child));
        Ok(Grant { address: Some(address) })
    }

    fn check_capacity(&self, instance_type: &InstanceTypeName) -> Result<(), ProviderError> {
        let capacity = locked(&self.capacity).get(instance_type).copied();
        let Some(capacity) = capacity else {
            let reason =
                format!("provider {} has no instance type {instance_type}", self.config.name);
            return Err(ProviderError::Rejected { reason });
        };
        let in_use = locked(&self.table).count_live(instance_type);
        match capacity {
            Some(capacity) if in_use >= capacity as usize => {
                let reason = format!(
                    "{in_use} of {capacity} {instance_type} of provider {} are in use",
                    self.config.name
                );
                Err(ProviderError::InsufficientCapacity { reason })
            }
            _ => Ok(()),
        }
    }

    fn terminate(
        self: &Arc<Self>,
        id: &InstanceId,
        deadline: Instant,
    ) -> Result<(), ProviderError> {
        if !locked(&self.table).is_live(id) {
            self.adopt()?;
        }
        let stopped = locked(&self.table).stop(id, deadline).ok_or(ProviderError::NotFound)?;
        // Once only: many servers take a second signal as the wish to end without finishing.
        if stopped.is_first {
            for member in self.members(id, stopped.leader) {
                signal::send(member, Signal::TERM);
            }
        }
        Ok(())
    }

    /// Every process of an instance now; its leader alone where `/proc` cannot be read.
    fn members(&self, id: &InstanceId, leader: Option<ProcessKey>) -> Vec<ProcessKey> {
        match self.scanner.scan() {
            Ok(snapshot) => snapshot.members(id, leader),
            Err(error) => {
                tracing::warn!(instance = %id, %error, "cannot read the processes in /proc");
                leader.filter(|leader| scan::is_alive(*leader)).into_iter().collect()
            }
        }
    }
}

/// A process is started before it shows its environment. Waiting for that moment (microseconds) makes
/// what was granted visible to every scan, also to that of the next manager.
fn wait_for_exec(pid: i32) {
    let give_up_at = clock::monotonic() + EXEC_LIMIT;
    while scan::key_of(pid).is_some()
        && !scan::shows_environment(pid)
        && clock::monotonic() < give_up_at
    {
        std::thread::sleep(Duration::from_micros(200));
    }
}
