//! What is known of each instance between scans: its tags, its leading process, whether it has been
//! told to stop, and, for a while, how it ended.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use super::scan::{ProcessKey, Tags};
use crate::types::launch::{ProviderInstance, ProviderStatus};
use crate::types::{InstanceId, InstanceTypeName};

/// Ended instances that are remembered, so that their reasons can be read; the oldest go first.
const ENDED_KEPT: usize = 256;

/// When a stopping instance is to be ended by force; `None` while it is not stopping.
pub(super) type StopDeadline = Option<Instant>;

#[derive(Debug)]
struct Entry {
    tags: Arc<Tags>,
    leader: Option<ProcessKey>,
    status: ProviderStatus,
    stop: watch::Sender<StopDeadline>,
}

impl Entry {
    fn is_live(&self) -> bool {
        !matches!(self.status, ProviderStatus::Ended { .. })
    }
}

/// The instances of one provider.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashMap<InstanceId, Entry>,
    ended: VecDeque<InstanceId>,
}

/// What [`Table::stop`] found.
pub(super) struct Stopped {
    pub(super) leader: Option<ProcessKey>,
    /// It had not been told to stop before.
    pub(super) is_first: bool,
}

impl Table {
    /// Puts in one that runs (`leader` is there) or whose descendants are all that is left. The
    /// receiver tells whoever watches it when to use force.
    pub(super) fn insert(
        &mut self,
        tags: Arc<Tags>,
        leader: Option<ProcessKey>,
    ) -> watch::Receiver<StopDeadline> {
        let (stop, receiver) = watch::channel(None);
        let status =
            if leader.is_some() { ProviderStatus::Running } else { ProviderStatus::Stopping };
        let id = tags.instance.clone();
        self.ended.retain(|ended| *ended != id);
        self.entries.insert(id, Entry { tags, leader, status, stop });
        receiver
    }

    /// The tags of an instance, whether it runs or has ended.
    pub(super) fn tags(&self, id: &InstanceId) -> Option<&Arc<Tags>> {
        self.entries.get(id).map(|entry| &entry.tags)
    }

    /// Whether any process of it is left.
    pub(super) fn is_live(&self, id: &InstanceId) -> bool {
        self.entries.get(id).is_some_and(Entry::is_live)
    }

    /// Notes that it is to be ended by force at `deadline`, or earlier if that was asked for before.
    /// `None` if it does not run.
    pub(super) fn stop(&mut self, id: &InstanceId, deadline: Instant) -> Option<Stopped> {
        let entry = self.entries.get_mut(id).filter(|entry| entry.is_live())?;
        let mut is_first = false;
        entry.stop.send_modify(|stop| {
            is_first = stop.is_none();
            *stop = Some(stop.map_or(deadline, |earlier| earlier.min(deadline)));
        });
        entry.status = ProviderStatus::Stopping;
        Some(Stopped { leader: entry.leader, is_first })
    }

    /// Its leading process is gone, others are left.
    pub(super) fn mark_stopping(&mut self, id: &InstanceId) {
        if let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.is_live()) {
            entry.status = ProviderStatus::Stopping;
        }
    }

    /// Nothing of it is left.
    pub(super) fn end(&mut self, id: &InstanceId, reason: String) {
        let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.is_live()) else { return };
        entry.status = ProviderStatus::Ended { reason };
        self.ended.push_back(id.clone());
        if self.ended.len() > ENDED_KEPT
            && let Some(oldest) = self.ended.pop_front()
        {
            self.entries.remove(&oldest);
        }
    }

    /// How many of a type take up capacity.
    pub(super) fn count_live(&self, instance_type: &InstanceTypeName) -> usize {
        let of_type =
            |entry: &&Entry| entry.is_live() && entry.tags.instance_type == *instance_type;
        self.entries.values().filter(of_type).count()
    }

    /// The ports that live instances listen on.
    pub(super) fn ports(&self) -> HashSet<u16> {
        self.entries
            .values()
            .filter(|entry| entry.is_live())
            .filter_map(|entry| Some(entry.tags.address.as_ref()?.port()))
            .collect()
    }

    /// All of them, by id.
    pub(super) fn list(&self) -> Vec<ProviderInstance> {
        let mut list: Vec<_> = self
            .entries
            .values()
            .map(|entry| ProviderInstance {
                id: entry.tags.instance.clone(),
                instance_type: entry.tags.instance_type.clone(),
                variant: entry.tags.variant.clone(),
                address: entry.tags.address.clone(),
                status: entry.status.clone(),
                interruption_at: None,
            })
            .collect();
        list.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        list
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::runtime::clock;

    fn tags(id: usize) -> Arc<Tags> {
        Arc::new(Tags {
            instance: InstanceId::new(format!("i-{id}")).expect("valid"),
            instance_type: InstanceTypeName::new("g6").expect("valid"),
            variant: None,
            address: Some(format!("http://127.0.0.1:{}", 1000 + id).parse().expect("valid")),
        })
    }

    #[test]
    fn the_memory_of_the_ended_is_bounded() {
        let mut table = Table::default();
        for id in 0..ENDED_KEPT + 10 {
            let tags = tags(id);
            drop(table.insert(tags.clone(), Some(ProcessKey { start_ticks: 1, pid: 2 })));
            table.end(&tags.instance, "exit code 0".to_owned());
            table.end(&tags.instance, "told twice".to_owned());
        }
        let list = table.list();
        assert_eq!(list.len(), ENDED_KEPT);
        assert!(table.tags(&tags(0).instance).is_none());
        assert!(list.iter().all(|instance| {
            instance.status == ProviderStatus::Ended { reason: "exit code 0".to_owned() }
        }));
        assert_eq!(table.count_live(&tags(0).instance_type), 0);
        assert!(table.ports().is_empty());
    }

    #[test]
    fn the_earliest_deadline_wins() {
        let mut table = Table::default();
        let stop = table.insert(tags(1), Some(ProcessKey { start_ticks: 1, pid: 2 }));
        let id = tags(1).instance.clone();
        let now = clock::monotonic();
        let (soon, later) = (now + Duration::from_secs(1), now + Duration::from_secs(9));
        assert!(table.stop(&id, later).is_some_and(|stopped| stopped.is_first));
        assert!(table.stop(&id, soon).is_some_and(|stopped| !stopped.is_first));
        assert!(table.stop(&id, later).is_some());
        assert_eq!(*stop.borrow(), Some(soon));
        assert_eq!(table.list()[0].status, ProviderStatus::Stopping);
        table.end(&id, "exit code 0".to_owned());
        assert!(table.stop(&id, now).is_none());
    }

    #[test]
    fn one_that_comes_back_is_live_again() {
        let mut table = Table::default();
        drop(table.insert(tags(1), None));
        assert_eq!(table.list()[0].status, ProviderStatus::Stopping);
        table.end(&tags(1).instance, "gone".to_owned());
        drop(table.insert(tags(1), Some(ProcessKey { start_ticks: 1, pid: 2 })));
        assert!(table.is_live(&tags(1).instance));
        assert_eq!(table.ports(), HashSet::from([1001]));
        assert!(table.ended.is_empty());
    }
}
