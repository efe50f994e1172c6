//! From what a scenario file says to the world that is played: its cloud, its clients, and its script.

use std::sync::Arc;
use std::time::Duration;

use super::file::{CapacityLine, FaultShares, ServiceLine, SpotLine};
use super::{Scenario, variant_of};
use crate::sim::rng::Rng;
use crate::sim::setup::{CloudSetup, Faults, Happening, Load, Setup, Span, Spot};
use crate::sim::traffic::TrafficSetup;
use crate::sim::traffic::service::ServiceTime;

/// Told apart from every other use of a seed.
const CAPACITY: u64 = 0xca9a_c177_0000_0000;

impl Scenario {
    /// The world that the file describes. Only how many instances are lent depends on the seed already here.
    pub(in crate::sim) fn setup(&self, seed: u64) -> Setup {
        let world = &self.world;
        let capacities = self.fleet.instance_types.iter();
        let (second, rarely) = (Duration::from_secs(1), Duration::from_secs(3600));
        Setup {
            fleet: Arc::clone(&self.fleet),
            cloud: CloudSetup {
                available: capacities
                    .filter_map(|(name, kind)| Some((name.clone(), kind.capacity?)))
                    .collect(),
                latency: halved(world.provider_latency.into()),
                startup_by_type: world
                    .startup_delay_of
                    .iter()
                    .map(|(kind, range)| (kind.clone(), (*range).into()))
                    .collect(),
                startup: world.startup_delay.into(),
                stop: world.stop_delay.into(),
                remembered: (Duration::ZERO, Duration::from_secs(60)),
                address_at_grant: false,
                quota_share: 0,
            },
            faults: per_mille(world.faults),
            troubled: true,
            checked: false,
            proxies: world.proxies,
            report_every: world.report_every.0,
            message: (Duration::from_millis(1), Duration::from_millis(20)),
            load: Load { every: (rarely, rarely), burst: 0, service: (second, second) },
            traffic: TrafficSetup {
                sources: self.sources.clone(),
                service: service(world.service),
                service_of: world
                    .service_of
                    .iter()
                    .map(|(kind, line)| (kind.clone(), service(*line)))
                    .collect(),
            },
            spot: world
                .spot
                .iter()
                .map(|line| {
                    let mean_life = line.mean_life.map(|length| length.0);
                    let spot = Spot { mean_life, notice: line.notice.0 };
                    (line.instance_type.clone(), spot)
                })
                .collect(),
            script: self.script(seed),
            length: world.duration.0,
        }
    }

    fn script(&self, seed: u64) -> Vec<(Duration, Happening)> {
        let world = &self.world;
        let capacity = world.capacity.iter().flat_map(|line| self.repeated(line));
        let lent = (1_u64..).zip(&world.spot).flat_map(|(n, line)| {
            self.walk(line, Rng::new(Rng::new(seed ^ CAPACITY.wrapping_mul(n)).next()))
        });
        let outages = world
            .outage
            .iter()
            .map(|line| (line.at.0, Happening::Outage(line.provider.clone(), line.lasts.0)));
        let actions = world.action.iter().filter_map(|line| {
            let variant = variant_of(&self.fleet, line).ok()?;
            Some((line.at.0, Happening::Desired(variant, line.scale)))
        });
        let crashes = world
            .crash
            .iter()
            .map(|line| (line.at.0, Happening::Crash { after: 0, down: line.down.0 }));
        // Which worker it hits follows from the time, so that a seed is not needed to say which.
        let kills = world.kill.iter().map(|line| {
            (line.at.0, Happening::Kill { pick: line.at.0.as_secs(), noticed: line.noticed })
        });
        let interruptions = world.interrupt.iter().map(|line| {
            let (pick, kind) = (line.at.0.as_secs(), line.instance_type.clone());
            (line.at.0, Happening::Interrupt { pick, kind, notice: line.notice.0 })
        });
        let mut script: Vec<_> = capacity
            .chain(lent)
            .chain(outages)
            .chain(actions)
            .chain(crashes)
            .chain(kills)
            .chain(interruptions)
            .collect();
        script.sort_by_key(|(at, _)| *at);
        script
    }

    fn repeated(&self, line: &CapacityLine) -> impl Iterator<Item = (Duration, Happening)> {
        let (kind, available) = (line.instance_type.clone(), line.available);
        let happening = match line.notice {
            Some(notice) => Happening::SpotCapacity(kind, available, notice.0),
            None => Happening::Capacity(kind, available),
        };
        let times = moments(line.at.0, line.every.map(|every| every.0), self.world.duration.0);
        times.map(move |at| (at, happening.clone()))
    }

    /// How many are lent, drawn anew again and again.
    fn walk(&self, line: &SpotLine, mut rng: Rng) -> impl Iterator<Item = (Duration, Happening)> {
        let end = line.available.map_or(Duration::ZERO, |_| self.world.duration.0);
        let (low, high) = line.available.unwrap_or_default();
        let (kind, notice) = (line.instance_type.clone(), line.notice.0);
        let times = moments(Duration::ZERO, Some(line.changes_every.0), end);
        times.map(move |at| {
            let count = rng.between(low.min(high), high.max(low));
            (at, Happening::SpotCapacity(kind.clone(), count, notice))
        })
    }
}

/// `at`, and then every so often, up to `end`.
fn moments(at: Duration, every: Option<Duration>, end: Duration) -> impl Iterator<Item = Duration> {
    let next = move |at: &Duration| every.map(|every| *at + every);
    std::iter::successors(Some(at), next).take_while(move |at| *at < end)
}

fn service(line: ServiceLine) -> ServiceTime {
    let ServiceLine { mean, mean_full, sigma } = line;
    ServiceTime { mean: mean.0, mean_full: mean_full.unwrap_or(mean).0, sigma }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "shares are checked to be 0 to 1"
)]
fn per_mille(shares: FaultShares) -> Faults {
    let [lost_before, lost_after, hangs, late, slow, never_healthy, dies_young] =
        shares.named().map(|(_, share)| (share * 1000.0).round() as u32);
    Faults { lost_before, lost_after, hangs, late, slow, never_healthy, dies_young }
}

fn halved((low, high): Span) -> Span {
    (low / 2, high / 2)
}
