//! What the script does to the world.

use std::sync::Arc;

use std::time::Duration;

use super::setup::Happening;
use super::world::{Due, World};
use crate::decision::controller::Event;
use crate::types::spec::FleetSpec;
use crate::types::{InstanceId, InstanceTypeName, ProviderName, VariantKey};

impl World {
    /// One line of the script.
    pub(super) fn happen(&mut self, happening: Happening) {
        self.tell_story(|| show(&happening));
        match happening {
            Happening::Capacity(kind, available) => {
                self.cloud.set_available(&kind, Some(available));
            }
            Happening::SpotCapacity(kind, available, notice) => {
                self.shrink_spot(&kind, available, notice);
            }
            Happening::Outage(provider, lasts) => self.begin_outage(&provider, lasts),
            Happening::Rejecting(kind, true) => drop(self.cloud.rejecting.insert(kind)),
            Happening::Rejecting(kind, false) => drop(self.cloud.rejecting.remove(&kind)),
            Happening::Desired(key, count) => self.set_desired(&key, count),
            Happening::Drain { pick } => {
                if let Some(instance) = self.pick_recorded(pick) {
                    self.drain_instance(&instance);
                }
            }
            Happening::Reconfigure(fleet) => self.reconfigure(fleet),
            Happening::Crash { after, down } => self.crash = Some((after, down)),
            Happening::Kill { pick, noticed: true } => {
                if let Some(instance) = self.pick_living(pick) {
                    self.tell_story(|| format!("it is {instance}"));
                    self.machine_ends(&instance, "killed");
                }
            }
            Happening::Kill { pick, noticed: false } => {
                if let Some(instance) = self.pick_living(pick) {
                    self.fail_requests(&instance);
                    self.with_machine(&instance, |machine| machine.dead = true);
                }
            }
            Happening::Sicken { pick, lasts } => {
                if let Some(instance) = self.pick_living(pick) {
                    let until = self.now + lasts;
                    self.with_machine(&instance, |machine| machine.sick_until = until);
                }
            }
            Happening::Interrupt { pick, kind, notice } => {
                if let Some(instance) = self.pick_living_of(kind.as_ref(), pick) {
                    self.interrupt(instance, notice);
                }
            }
            Happening::Faults(faults) => self.setup.faults = faults,
            proxy => self.happen_to_proxy(&proxy),
        }
    }

    fn happen_to_proxy(&mut self, happening: &Happening) {
        match *happening {
            Happening::ProxyJoins => self.add_proxy(),
            Happening::ProxyRestart { pick, down, renamed } => {
                if let Some(proxy) = self.pick_proxy(pick) {
                    self.proxies[proxy].die();
                    // What it was asked for just now nobody will ever hear of.
                    let untold = self.setup.report_turn();
                    let now = self.now;
                    self.asked.retain(|_, (at, by)| *by != proxy || now.since(*at) > untold);
                    self.agenda.enter(self.now + down, Due::ProxyUp { proxy, renamed });
                }
            }
            Happening::ProxyLeaves { pick } => {
                let staying = self.proxies.iter().filter(|proxy| !proxy.leaving).count();
                if let Some(proxy) = self.pick_proxy(pick).filter(|_| staying > 1) {
                    self.proxies[proxy].leaving = true;
                    self.proxies[proxy].give_up();
                    self.let_go(proxy);
                }
            }
            Happening::ProxySilent { pick, lasts } => {
                if let Some(proxy) = self.pick_proxy(pick) {
                    self.proxies[proxy].silent_until = self.now + lasts;
                    self.agenda.enter(self.now + lasts, Due::ProxyUp { proxy, renamed: false });
                }
            }
            _ => {}
        }
    }

    /// The operator's command, and what must have come of it.
    pub(super) fn set_desired(&mut self, key: &VariantKey, count: u32) {
        let now = self.now;
        let Some(manager) = &mut self.manager else { return };
        let variant = Some(key.variant.as_str());
        let taken = manager.controller.set_desired(now, key.endpoint.as_str(), variant, count);
        let life = manager.life;
        let spec_alone = self.fleet.variant(key).is_none_or(|spec| spec.schedule.is_empty());
        let allowed = self.fleet.variant(key).is_some_and(|spec| {
            (spec.min_instance_count..=spec.max_instance_count).contains(&count)
        });
        // Other bounds may be in force just now.
        if spec_alone && taken.is_ok() != allowed {
            self.blame(format!("setting {key} to {count} gives {taken:?}"));
        }
        if let Err(error) = &taken {
            self.tell_story(|| format!("it is refused: {error}"));
        }
        let taken = taken.is_ok();
        self.commanding = true;
        self.turn();
        self.commanding = false;
        let same_life = self.manager.as_ref().is_some_and(|manager| manager.life == life);
        let durable = self.store.variants.get(key).map(|record| record.desired);
        if taken && same_life && durable != Some(count) {
            self.blame(format!("{key} was set to {count} and {durable:?} is durable"));
        }
    }

    /// The operator's new config, which a manager that is down finds when it starts.
    pub(super) fn reconfigure(&mut self, fleet: Arc<FleetSpec>) {
        self.fleet = Arc::clone(&fleet);
        self.commanding = true;
        self.tell(Event::Reconfigured(fleet));
        self.commanding = false;
    }

    /// A provider takes back what it has lent for a time, if that still runs.
    pub(super) fn reclaim(&mut self, instance: InstanceId) {
        let kind = self.cloud.machines().get(&instance).map(|machine| &machine.instance_type);
        let spot = kind.and_then(|kind| self.setup.spot.get(kind));
        if let Some(notice) = spot.map(|spot| spot.notice) {
            self.take_back(instance, notice);
        }
    }

    fn take_back(&mut self, instance: InstanceId, notice: Duration) {
        let machine = self.cloud.machines().get(&instance);
        if machine.is_some_and(|m| m.lives() && m.interruption_at.is_none()) {
            self.tell_story(|| format!("cloud: takes an instance away in {notice:?}"));
            self.interrupt(instance, notice);
        }
    }

    fn interrupt(&mut self, instance: InstanceId, notice: Duration) {
        let at = self.now + notice;
        self.with_machine(&instance, |machine| machine.interruption_at = Some(at));
        let reason = "interrupted";
        self.agenda.enter(at, Due::MachineEnds { instance, reason });
    }

    /// Fewer are lent from now on: the youngest go.
    fn shrink_spot(&mut self, kind: &InstanceTypeName, available: u32, notice: Duration) {
        self.cloud.set_available(kind, Some(available));
        let mut held: Vec<_> = self
            .cloud
            .machines()
            .iter()
            .filter(|(_, m)| m.lives() && m.interruption_at.is_none() && m.instance_type == *kind)
            .map(|(id, machine)| (machine.launched_at, id.clone()))
            .collect();
        held.sort();
        for (_, instance) in held.into_iter().skip(available as usize).rev() {
            self.take_back(instance, notice);
        }
    }

    fn begin_outage(&mut self, provider: &ProviderName, lasts: Duration) {
        self.cloud.out_until.insert(provider.clone(), self.now + lasts);
        let running = self.cloud.machines().iter().filter(|(_, m)| m.provider == *provider);
        let running: Vec<InstanceId> =
            running.filter(|(_, m)| m.runs()).map(|(id, _)| id.clone()).collect();
        for instance in running {
            self.machine_ends(&instance, "outage");
        }
    }

    fn with_machine(
        &mut self,
        instance: &InstanceId,
        change: impl FnOnce(&mut super::machines::Machine),
    ) {
        self.tell_story(|| format!("it is {instance}"));
        if let Some(machine) = self.cloud.machine_mut(instance) {
            change(machine);
        }
    }

    fn pick_living(&self, pick: u64) -> Option<InstanceId> {
        self.pick_living_of(None, pick)
    }

    fn pick_living_of(&self, kind: Option<&InstanceTypeName>, pick: u64) -> Option<InstanceId> {
        let living = self.cloud.machines().iter().filter(|(_, m)| {
            m.lives() && !m.dead && kind.is_none_or(|kind| m.instance_type == *kind)
        });
        choose(&living.map(|(id, _)| id.clone()).collect::<Vec<_>>(), pick)
    }

    fn pick_recorded(&self, pick: u64) -> Option<InstanceId> {
        let recorded = self.store.instances.values().filter(|r| !r.state.is_leaving());
        choose(&recorded.map(|r| r.id.clone()).collect::<Vec<_>>(), pick)
    }

    fn pick_proxy(&self, pick: u64) -> Option<usize> {
        let up = (0..self.proxies.len()).filter(|p| self.proxies[*p].up && !self.silent(*p));
        choose(&up.collect::<Vec<_>>(), pick)
    }
}

fn choose<T: Clone>(items: &[T], pick: u64) -> Option<T> {
    let at = pick.checked_rem(items.len() as u64)?;
    items.get(usize::try_from(at).ok()?).cloned()
}

fn show(happening: &Happening) -> String {
    match happening {
        Happening::Capacity(kind, count) => {
            format!("cloud: {count} x {kind} to be had from now on")
        }
        Happening::SpotCapacity(kind, count, _) => {
            format!("cloud: {count} x {kind} are lent from now on")
        }
        Happening::Outage(provider, lasts) => {
            format!("cloud: {provider} is gone for {}", humantime::format_duration(*lasts))
        }
        Happening::Rejecting(kind, true) => format!("cloud: launches of {kind} are rejected"),
        Happening::Rejecting(kind, false) => format!("cloud: launches of {kind} are taken again"),
        Happening::Desired(key, count) => format!("operator: scale {key} {count}"),
        Happening::Drain { .. } => "operator: drains an instance".into(),
        Happening::Reconfigure(fleet) => format!("operator: new config: {}", show_fleet(fleet)),
        Happening::Crash { after, down } => {
            format!("manager: dies after {after} more actions, for {down:?}")
        }
        Happening::Kill { noticed: true, .. } => "worker: one dies".into(),
        Happening::Kill { noticed: false, .. } => "worker: one dies and nobody notices".into(),
        Happening::Sicken { lasts, .. } => format!("worker: one is unhealthy for {lasts:?}"),
        Happening::Interrupt { notice, .. } => {
            format!("cloud: takes an instance away in {notice:?}")
        }
        Happening::ProxyRestart { down, .. } => format!("proxy: one dies, back in {down:?}"),
        Happening::ProxyLeaves { .. } => "proxy: one leaves".into(),
        Happening::ProxyJoins => "proxy: one joins".into(),
        Happening::ProxySilent { lasts, .. } => format!("proxy: one is cut off for {lasts:?}"),
        Happening::Faults(faults) => format!("cloud: faults are {faults:?}"),
    }
}

fn show_fleet(fleet: &FleetSpec) -> String {
    let variants = fleet.variants().map(|(endpoint, variant)| {
        let pools = variant.pools.iter();
        let pools: Vec<String> =
            pools.map(|pool| format!("{}@{}", pool.instance_type, pool.priority)).collect();
        format!("{}/{} [{}]", endpoint.name, variant.name, pools.join(" "))
    });
    variants.collect::<Vec<_>>().join(", ")
}
