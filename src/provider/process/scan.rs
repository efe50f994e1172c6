//! Which processes on this machine are ours, as the operating system tells it: every process whose
//! environment names our owner tag and provider. Linux only: it reads `/proc`.
//!
//! Two things make the answer right where a naive scan is wrong. A process between `fork` and `exec`
//! still shows its parent's environment, and one in the middle of `exec` shows none; both are read again
//! at the next scan and never remembered. And a worker's descendants inherit its environment, so a tag
//! alone does not make a worker: see [`Snapshot::instances`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::getpgrp;

use crate::types::{Address, InstanceId, InstanceTypeName, ProviderName, VariantKey};

pub(super) const OWNER: &str = "FOREBAY_OWNER";
pub(super) const PROVIDER: &str = "FOREBAY_PROVIDER";
pub(super) const INSTANCE: &str = "FOREBAY_INSTANCE";
pub(super) const INSTANCE_TYPE: &str = "FOREBAY_INSTANCE_TYPE";
pub(super) const ENDPOINT: &str = "FOREBAY_ENDPOINT";
pub(super) const VARIANT: &str = "FOREBAY_VARIANT";
pub(super) const ADDRESS: &str = "FOREBAY_ADDRESS";

/// Flags of `/proc/PID/stat` (the kernel's `include/linux/sched.h`).
const FORKED_WITHOUT_EXEC: u64 = 0x40;
const KERNEL_THREAD: u64 = 0x0020_0000;

/// One process for its whole life: process ids come back, but not with the same start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ProcessKey {
    /// Clock ticks from the machine's boot to the process' start.
    pub(super) start_ticks: u64,
    pub(super) pid: i32,
}

/// What a worker's environment says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tags {
    pub(super) instance: InstanceId,
    pub(super) instance_type: InstanceTypeName,
    pub(super) variant: Option<VariantKey>,
    pub(super) address: Option<Address>,
}

#[derive(Debug)]
struct Process {
    key: ProcessKey,
    group: i32,
    session: i32,
    has_execed: bool,
    tags: Option<Arc<Tags>>,
}

/// The live processes of our user at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    processes: Vec<Process>,
    /// The process group that we are in ourselves.
    own_group: i32,
}

/// An instance as a snapshot shows it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) tags: Arc<Tags>,
    /// The process that was launched; `None` when only descendants of it are left.
    pub(super) leader: Option<ProcessKey>,
    /// All that carry its tags; at least one.
    pub(super) processes: Vec<ProcessKey>,
}

impl Snapshot {
    /// Every instance that has at least one process. The one that was launched leads a process group
    /// and no session (who leads a group cannot become the leader of a session), has called `exec`, and
    /// is older than all that it started.
    pub(super) fn instances(&self) -> BTreeMap<InstanceId, Found> {
        let mut found: BTreeMap<InstanceId, Found> = BTreeMap::new();
        for process in &self.processes {
            let Some(tags) = &process.tags else { continue };
            let entry = found.entry(tags.instance.clone()).or_insert_with(|| Found {
                tags: tags.clone(),
                leader: None,
                processes: Vec::new(),
            });
            entry.processes.push(process.key);
            let leads = process.has_execed
                && process.group == process.key.pid
                && process.session != process.key.pid;
            if leads && entry.leader.is_none_or(|leader| process.key < leader) {
                entry.leader = Some(process.key);
                entry.tags = tags.clone();
            }
        }
        found
    }

    /// The processes that belong to an instance: those with its tags, wherever they went, and those in
    /// a process group with one of them or in its leader's group, whatever their environment.
    pub(super) fn members(
        &self,
        instance: &InstanceId,
        leader: Option<ProcessKey>,
    ) -> Vec<ProcessKey> {
        let has_tags =
            |p: &&Process| p.tags.as_ref().is_some_and(|tags| tags.instance == *instance);
        let mut groups: HashSet<i32> =
            self.processes.iter().filter(has_tags).map(|p| p.group).collect();
        // A process group outlives its leader, and its id is not given out again while it does. Once
        // it is empty, the id may come back as another process' group, which that process leads.
        let is_another = |p: &Process, leader: ProcessKey| {
            p.key.pid == leader.pid && p.key.start_ticks != leader.start_ticks
        };
        if let Some(leader) = leader
            && !self.processes.iter().any(|p| is_another(p, leader))
        {
            groups.insert(leader.pid);
        }
        // A descendant may have joined our group; that does not make us one of its family.
        groups.remove(&self.own_group);
        let belongs = |p: &&Process| groups.contains(&p.group) || has_tags(p);
        self.processes.iter().filter(belongs).map(|p| p.key).collect()
    }
}

/// Reads `/proc`; remembers between scans what it has read of each process.
#[derive(Debug)]
pub(super) struct Scanner {
    owner: String,
    provider: ProviderName,
    seen: Mutex<HashMap<ProcessKey, Option<Arc<Tags>>>>,
}

impl Scanner {
    pub(super) fn new(owner: String, provider: ProviderName) -> Self {
        Self { owner, provider, seen: Mutex::default() }
    }

    /// All live processes of our user. Costs a directory listing and one small read for each, and a
    /// further read for each that is new.
    pub(super) fn scan(&self) -> io::Result<Snapshot> {
        let own_uid = fs::metadata("/proc/self")?.uid();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut still_seen = HashMap::with_capacity(seen.len());
        let mut processes = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
            else {
                continue;
            };
            // What cannot be read has just ended, or is not ours.
            if !entry.metadata().is_ok_and(|meta| meta.uid() == own_uid) {
                continue;
            }
            let Some(stat) = Stat::read(pid).filter(Stat::is_live) else { continue };
            let known = seen.get(&stat.key).filter(|_| stat.has_execed());
            let environ = if known.is_some() { None } else { read_environ(pid) };
            let tags = match known {
                Some(known) => known.clone(),
                None => environ.as_deref().and_then(|environ| self.tags(environ)),
            };
            if stat.has_execed() && (known.is_some() || environ.is_some()) {
                still_seen.insert(stat.key, tags.clone());
            }
            processes.push(Process {
                key: stat.key,
                group: stat.group,
                session: stat.session,
                has_execed: stat.has_execed(),
                tags,
            });
        }
        *seen = still_seen;
        Ok(Snapshot { processes, own_group: getpgrp().as_raw_nonzero().get() })
    }

    fn tags(&self, environ: &[u8]) -> Option<Arc<Tags>> {
        let value = |name: &str| {
            environ.split(|byte| *byte == 0).find_map(|line| {
                let text = std::str::from_utf8(line).ok()?;
                text.strip_prefix(name)?.strip_prefix('=')
            })
        };
        if value(OWNER)? != self.owner || value(PROVIDER)? != self.provider.as_str() {
            return None;
        }
        let variant = || {
            Some(VariantKey {
                endpoint: value(ENDPOINT)?.parse().ok()?,
                variant: value(VARIANT)?.parse().ok()?,
            })
        };
        Some(Arc::new(Tags {
            instance: value(INSTANCE)?.parse().ok()?,
            instance_type: value(INSTANCE_TYPE)?.parse().ok()?,
            variant: variant(),
            address: value(ADDRESS).and_then(|text| text.parse().ok()),
        }))
    }
}

/// The key of the live process that has this id now.
pub(super) fn key_of(pid: i32) -> Option<ProcessKey> {
    Stat::read(pid).filter(Stat::is_live).map(|stat| stat.key)
}

/// Whether the process still runs; one that has ended and was not waited for does not.
pub(super) fn is_alive(key: ProcessKey) -> bool {
    key_of(key.pid) == Some(key)
}

/// Whether a scan by anybody would see the environment that the process was started with.
pub(super) fn shows_environment(pid: i32) -> bool {
    read_environ(pid).is_some()
}

/// `None` if there is nothing to read: it has ended, is in the middle of `exec`, or has no environment.
fn read_environ(pid: i32) -> Option<Vec<u8>> {
    match fs::read(format!("/proc/{pid}/environ")) {
        Ok(environ) if environ.is_empty() => None,
        Ok(environ) => Some(environ),
        // Ours by user id but closed to us: not tagged, but it may belong to a group that is ours.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Some(Vec::new()),
        Err(_) => None,
    }
}

/// What is needed of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    key: ProcessKey,
    state: u8,
    group: i32,
    session: i32,
    flags: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The fields are those of `proc_pid_stat(5)`. The second one, the command's name in parentheses,
    /// may itself hold blanks and parentheses: counting starts after the last one.
    fn parse(pid: i32, stat: &[u8]) -> Option<Self> {
        let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
        let rest = std::str::from_utf8(&stat[after_name..]).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        Some(Self {
            key: ProcessKey { pid, start_ticks: fields.get(19)?.parse().ok()? },
            state: *fields.first()?.as_bytes().first()?,
            group: fields.get(2)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            flags: fields.get(6)?.parse().ok()?,
        })
    }

    fn is_live(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x') && self.flags & KERNEL_THREAD == 0
    }

    fn has_execed(&self) -> bool {
        self.flags & FORKED_WITHOUT_EXEC == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanner() -> Scanner {
        Scanner::new("me".to_owned(), ProviderName::new("local").expect("valid"))
    }

    fn process(pid: i32, start_ticks: u64, group: i32, tags: Option<&Arc<Tags>>) -> Process {
        Process {
            key: ProcessKey { start_ticks, pid },
            group,
            session: 1,
            has_execed: true,
            tags: tags.cloned(),
        }
    }

    fn snapshot(processes: Vec<Process>) -> Snapshot {
        Snapshot { processes, own_group: 7 }
    }

    fn tags(instance: &str) -> Arc<Tags> {
        let environ = format!(
            "FOREBAY_OWNER=me\0FOREBAY_PROVIDER=local\0FOREBAY_INSTANCE={instance}\0\
             FOREBAY_INSTANCE_TYPE=g6\0FOREBAY_ENDPOINT=e\0FOREBAY_VARIANT=v\0\
             FOREBAY_ADDRESS=http://127.0.0.1:9\0"
        );
        scanner().tags(environ.as_bytes()).expect("ours")
    }

    #[test]
    fn stat_is_read_past_a_hostile_name() {
        let text = b"42 (a) R 7 (b) S 1 41 40 0 -1 4194368 1 2 3 4 5 6 7 8 20 0 1 0 777 9 9\n";
        let stat = Stat::parse(42, text).expect("well-formed");
        assert_eq!(stat.key, ProcessKey { pid: 42, start_ticks: 777 });
        assert_eq!((stat.state, stat.group, stat.session), (b'S', 41, 40));
        assert!(!stat.has_execed());
        assert!(Stat::parse(42, b"42 (a) S 1").is_none());
    }

    #[test]
    fn tags_are_those_of_this_owner_and_provider() {
        let found = tags("i-1");
        assert_eq!(found.instance.as_str(), "i-1");
        assert_eq!(found.variant.as_ref().map(ToString::to_string).as_deref(), Some("e/v"));
        for other in [
            "FOREBAY_OWNER=you\0FOREBAY_PROVIDER=local\0FOREBAY_INSTANCE=i\0FOREBAY_INSTANCE_TYPE=g\0",
            "FOREBAY_OWNER=me\0FOREBAY_PROVIDER=far\0FOREBAY_INSTANCE=i\0FOREBAY_INSTANCE_TYPE=g\0",
            "FOREBAY_OWNER=me\0FOREBAY_PROVIDER=local\0FOREBAY_INSTANCE=a b\0FOREBAY_INSTANCE_TYPE=g\0",
            "XFOREBAY_OWNER=me\0FOREBAY_OWNERX=me\0",
        ] {
            assert_eq!(scanner().tags(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn the_oldest_group_leader_is_the_worker() {
        let ours = tags("i-1");
        let whole = snapshot(vec![
            process(30, 9, 30, Some(&ours)), // a descendant that made itself a group
            process(20, 5, 20, Some(&ours)), // the worker
            process(21, 5, 20, Some(&ours)), // its child
        ]);
        let found = whole.instances();
        let leader = found.values().next().expect("one").leader.expect("leads");
        assert_eq!(leader.pid, 20);
        let a_session = Process { session: 22, ..process(22, 6, 22, Some(&ours)) };
        let only_children = snapshot(vec![process(21, 5, 20, Some(&ours)), a_session]);
        assert!(only_children.instances().values().all(|found| found.leader.is_none()));
    }

    #[test]
    fn members_are_the_tagged_and_the_group() {
        let ours = tags("i-1");
        let leader = ProcessKey { start_ticks: 5, pid: 20 };
        let pids = |snapshot: &Snapshot| {
            let id = InstanceId::new("i-1").expect("valid");
            let members = snapshot.members(&id, Some(leader));
            members.into_iter().map(|key| key.pid).collect::<Vec<_>>()
        };
        let mut snapshot = snapshot(vec![
            process(20, 5, 20, Some(&ours)),
            process(21, 6, 20, None), // dropped its environment
            process(22, 6, 22, Some(&ours)),
            process(23, 6, 23, None), // a stranger
        ]);
        assert_eq!(pids(&snapshot), [20, 21, 22]);
        // Joining our own group draws nobody in it along.
        snapshot.processes =
            vec![process(20, 5, 7, Some(&ours)), process(7, 1, 7, None), process(8, 1, 7, None)];
        assert_eq!(pids(&snapshot), [20]);
        // The group is gone and its id has come back as a stranger's.
        snapshot.processes = vec![process(20, 800, 20, None), process(22, 6, 22, Some(&ours))];
        assert_eq!(pids(&snapshot), [22]);
    }

    #[test]
    fn sees_this_very_process() {
        let snapshot = scanner().scan().expect("/proc");
        let own = i32::try_from(std::process::id()).expect("a pid");
        assert!(snapshot.processes.iter().any(|process| process.key.pid == own));
        assert_eq!(key_of(own).map(|key| key.pid), Some(own));
        assert!(!is_alive(ProcessKey { start_ticks: 0, pid: own }));
    }
}
