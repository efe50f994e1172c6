//! This machine as a place where workers run, looked at without the code under test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;

use forebay::provider::Provider;
use forebay::provider::fake::batch;
use forebay::provider::process::{ProcessConfig, ProcessProvider};
use forebay::runtime::rng;
use forebay::runtime::tasks::Tasks;
use forebay::types::InstanceId;
use forebay::types::launch::ProviderInstance;
use rustix::process::{Pid, Signal, getpgrp, kill_process};
use tokio::sync::Notify;

use super::{LIMIT, World, granted, id, instance_type, provider_name, until};

/// This machine with one process provider, and every process that it started.
pub(super) struct Machine {
    pub(super) provider: ProcessProvider,
    pub(super) nudge: Arc<Notify>,
    pub(super) tasks: Tasks,
    pub(super) config: ProcessConfig,
    pub(super) folder: tempfile::TempDir,
}

impl Machine {
    /// A provider whose workers run `command` and write into logs.
    pub(super) fn new(command: &[&str]) -> Self {
        Self::owned_by(&format!("conformance-{}", rng::unique_suffix()), command)
    }

    pub(super) fn owned_by(owner: &str, command: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = ProcessConfig {
            command: command.iter().map(ToString::to_string).collect(),
            env: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
            capacity: BTreeMap::from([
                (instance_type("three"), Some(3)),
                (instance_type("five"), Some(5)),
                (instance_type("any"), None),
            ]),
            logs: Some(folder.path().to_owned()),
            ..ProcessConfig::new(provider_name(), owner.to_owned())
        };
        let (nudge, tasks) = (Arc::new(Notify::new()), Tasks::new());
        let provider = ProcessProvider::new(config.clone(), nudge.clone(), tasks.clone());
        Self { provider, nudge, tasks, config, folder }
    }

    pub(super) async fn launch(&self, name: &str) -> InstanceId {
        granted(&self.provider.launch(batch("any", &[name])).await);
        id(name)
    }

    /// Launches and waits until the worker has written `ready`.
    pub(super) async fn launch_ready(&self, name: &str) -> InstanceId {
        let id = self.launch(name).await;
        until("the worker is ready", || async { self.log(&id).contains("ready") }).await;
        id
    }

    pub(super) fn log(&self, id: &InstanceId) -> String {
        fs::read_to_string(self.folder.path().join(format!("{id}.log"))).unwrap_or_default()
    }

    /// The live processes with our owner tag.
    pub(super) fn tagged(&self) -> Vec<Process> {
        let tag = format!("FOREBAY_OWNER={}", self.config.owner);
        processes(|environ| environ.split(|byte| *byte == 0).any(|line| line == tag.as_bytes()))
    }

    /// The process of the only instance.
    pub(super) fn leader(&self) -> Process {
        let mut leaders = self.tagged();
        leaders.retain(|process| process.group == process.pid);
        assert_eq!(leaders.len(), 1, "{leaders:?}");
        leaders.remove(0)
    }

    pub(super) async fn until_all_gone(&self, group: i32) {
        until("every process is gone", || async {
            self.tagged().is_empty() && processes(|_| true).iter().all(|p| p.group != group)
        })
        .await;
    }
}

impl World for Machine {
    fn provider(&self) -> &dyn Provider {
        &self.provider
    }

    async fn restart(&mut self, _granted: &[ProviderInstance]) {
        assert!(self.tasks.stop(LIMIT).await);
        (self.nudge, self.tasks) = (Arc::new(Notify::new()), Tasks::new());
        self.provider =
            ProcessProvider::new(self.config.clone(), self.nudge.clone(), self.tasks.clone());
    }

    fn really_running(&self) -> usize {
        self.tagged().len()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let tagged = self.tagged();
        let mut groups: BTreeSet<_> = tagged.iter().map(|process| process.group).collect();
        groups.remove(&getpgrp().as_raw_nonzero().get());
        let family = processes(|_| true).into_iter().filter(|p| groups.contains(&p.group));
        for pid in tagged.iter().map(|process| process.pid).chain(family.map(|p| p.pid)) {
            kill(pid, Signal::KILL);
        }
    }
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) group: i32,
}

/// The live processes whose environment `is_ours` accepts, read from `/proc` by itself, without the
/// code under test.
pub(super) fn processes(is_ours: impl Fn(&[u8]) -> bool) -> Vec<Process> {
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let environ = fs::read(entry.path().join("environ")).ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let is_alive = fields.next()? != "Z";
        let group = fields.nth(1)?.parse().ok()?;
        (is_alive && is_ours(&environ)).then_some(Process { pid, group })
    };
    fs::read_dir("/proc").expect("/proc").filter_map(read).collect()
}

pub(super) fn kill(pid: i32, signal: Signal) {
    let _ended_meanwhile = kill_process(Pid::from_raw(pid).expect("a pid"), signal);
}
