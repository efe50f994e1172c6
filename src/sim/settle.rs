//! What follows a script: the trouble ends, and the fleet must become exactly what it should be, stay
//! so, survive one more restart unchanged, and wake what sleeps.

use std::sync::Arc;
use std::time::Duration;

use super::setup::{Faults, Load};
use super::world::World;
use crate::types::spec::{EndpointSpec, Fallback, FleetSpec, Rebalance, VariantSpec};
use crate::types::{InstanceTypeName, VariantKey};

/// How long the fleet may take to settle: back-offs, windows and hold-offs included.
const SETTLE_LIMIT: Duration = Duration::from_secs(5400);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(20);
/// For how long it must stay as it is.
const STILL: Duration = Duration::from_secs(75);

impl World {
    /// Plays everything that comes after the script.
    pub(super) fn settle(&mut self) {
        if self.fault.is_some() {
            return;
        }
        let plenty = self.calm_down();
        self.advance(self.now + Duration::from_secs(30));
        self.setup.load.burst = 0;
        self.wait_settled(plenty, "after the trouble");
        self.stay_still(plenty);
        self.note(|| "one more restart, of a fleet that is as it should be".into());
        self.crash_now(Duration::from_secs(1));
        self.stay_still(plenty);
        self.frozen = false;
        self.wait_settled(plenty, "after the last restart");
        self.wake();
    }

    /// Ends all trouble; whether there is capacity of every type.
    fn calm_down(&mut self) -> bool {
        self.note(|| "the trouble ends".into());
        self.setup.faults = Faults::default();
        self.setup.load = Load { burst: self.setup.load.burst.min(2), ..self.setup.load };
        self.crash = None;
        self.cloud.rejecting.clear();
        let now = self.now;
        for id in self.cloud.machines().iter().map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            if let Some(machine) = self.cloud.machine_mut(&id) {
                machine.sick_until = now;
            }
        }
        for proxy in 0..self.proxies.len() {
            if self.silent(proxy) {
                self.proxies[proxy].silent_until = now;
                self.connect(proxy);
            }
        }
        let plenty = self.rng.chance(600);
        let kinds: Vec<InstanceTypeName> = self.fleet.instance_types.keys().cloned().collect();
        let spared: Vec<InstanceTypeName> = self
            .fleet
            .variants()
            .filter_map(|(_, v)| {
                let at = usize::try_from(self.rng.below(v.pools.len() as u64)).unwrap_or(0);
                v.pools.get(at).map(|pool| pool.instance_type.clone())
            })
            .collect();
        for kind in kinds {
            if plenty || spared.contains(&kind) {
                self.cloud.set_available(&kind, None);
            }
        }
        self.end_policies();
        plenty
    }

    /// From now on nothing changes a size by itself: the last one is to be reached.
    fn end_policies(&mut self) {
        if self.fleet.variants().all(|(_, variant)| variant.scaling.is_empty()) {
            return;
        }
        let mut fleet = FleetSpec::clone(&self.fleet);
        let variants = fleet.endpoints.iter_mut().flat_map(|endpoint| &mut endpoint.variants);
        variants.for_each(|variant| variant.scaling.clear());
        self.reconfigure(Arc::new(fleet));
    }

    fn wait_settled(&mut self, plenty: bool, when: &str) {
        let limit = self.now + SETTLE_LIMIT;
        loop {
            if self.fault.is_some() {
                return;
            }
            let Some(why) = self.unsettled(plenty) else { return };
            self.advance(self.now + LOOK);
            if self.now > limit {
                return self.blame(format!("{when}, {SETTLE_LIMIT:?} were not enough: {why}"));
            }
        }
    }

    /// Nothing may happen; unless there is a reason to look for better capacity now and then: none of it is
    /// there, or a fallback that was asked side by side still holds a preferred one's place.
    fn stay_still(&mut self, plenty: bool) {
        let looks = |spec: &VariantSpec| {
            spec.rebalance.mode == Rebalance::Active || spec.fallback == Fallback::Parallel
        };
        let holds_fallback = |endpoint: &EndpointSpec, spec: &VariantSpec| {
            let best = spec.pools.first().map_or(1, |pool| pool.priority);
            self.store.instances.values().any(|record| {
                record.variant.endpoint == endpoint.name
                    && record.variant.variant == spec.name
                    && record.priority > best
            })
        };
        let restless = self.fleet.variants().any(|(endpoint, spec)| {
            looks(spec)
                && (!plenty
                    || spec.fallback == Fallback::Parallel && holds_fallback(endpoint, spec))
        });
        self.frozen = !restless;
        self.advance(self.now + STILL);
    }

    /// Asks for everything that sleeps, all at once, and waits for the answers.
    fn wake(&mut self) {
        let asleep: Vec<VariantKey> = self
            .store
            .variants
            .values()
            .filter(|record| record.desired == 0)
            .map(|record| record.variant.clone())
            .filter(|key| {
                self.fleet.variant(key).is_some_and(|spec| spec.scale_to_zero_after.is_some())
            })
            .collect();
        let Some(proxy) = (0..self.proxies.len()).find(|p| self.proxies[*p].up) else { return };
        if asleep.is_empty() || self.fault.is_some() {
            return;
        }
        let refused = self.tally.refused;
        self.served.clear();
        for key in &asleep {
            self.request(proxy, key, 3);
        }
        if self.tally.refused > refused {
            self.blame(format!("requests for {asleep:?}, which sleep, are refused"));
        }
        let limit = self.now + SETTLE_LIMIT;
        while let (None, Some(key)) =
            (&self.fault, asleep.iter().find(|key| !self.served.contains(*key)))
        {
            if self.now > limit {
                return self.blame(format!("{key} was asked for and never woke"));
            }
            self.advance(self.now + LOOK);
        }
    }
}
