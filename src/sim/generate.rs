//! Worlds out of seeds: which fleet is asked for, and what happens to it. A [`Profile`] says which kinds
//! of trouble there are; everything else is drawn.

use std::sync::Arc;
use std::time::Duration;

use super::fleets;
use super::rng::Rng;
use super::setup::{CloudSetup, Faults, Happening, Load, Setup, Span};
use super::traffic::TrafficSetup;
use crate::types::spec::FleetSpec;
use crate::types::{InstanceTypeName, VariantKey};

/// Which kinds of trouble a generated world has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Fixed capacity, an operator who scales now and then.
    Calm,
    /// Capacity comes and goes, and is granted in part.
    Scarcity,
    /// Providers fail, hang, answer late; workers never get healthy, die, fall ill.
    Faults,
    /// The manager dies at any point, again and again.
    Crashes,
    /// Operators scale, drain and change the config all the time.
    Operators,
    /// Proxies come, go, restart and are cut off.
    Proxies,
    /// Variants sleep at zero and are woken.
    Zero,
    /// Providers take instances away after a notice.
    Interruptions,
    /// All of it.
    Everything,
}

impl Profile {
    /// Every profile.
    pub const ALL: [Self; 9] = [
        Self::Calm,
        Self::Scarcity,
        Self::Faults,
        Self::Crashes,
        Self::Operators,
        Self::Proxies,
        Self::Zero,
        Self::Interruptions,
        Self::Everything,
    ];

    /// The profile that a seed is played with when none is named.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let count = Self::ALL.len() as u64;
        Self::ALL[usize::try_from(seed % count).unwrap_or(0)]
    }

    fn trouble(self) -> Trouble {
        let calm = Trouble { scale: 6, ..Trouble::default() };
        match self {
            Self::Calm => calm,
            Self::Scarcity => Trouble { capacity: 25, ..calm },
            Self::Faults => Trouble { capacity: 4, faults: true, workers: 10, ..calm },
            Self::Crashes => Trouble { capacity: 6, crashes: 12, ..calm },
            Self::Operators => Trouble { scale: 15, drains: 8, configs: 6, ..calm },
            Self::Proxies => Trouble { proxies: 12, scale: 15, drains: 4, ..calm },
            Self::Zero => Trouble { zero: true, capacity: 4, scale: 2, ..calm },
            Self::Interruptions => Trouble { interruptions: 10, capacity: 6, ..calm },
            Self::Everything => Trouble {
                scale: 8,
                capacity: 12,
                faults: true,
                workers: 6,
                crashes: 8,
                drains: 4,
                configs: 3,
                proxies: 5,
                zero: true,
                interruptions: 4,
            },
        }
    }
}

/// How many of each kind of happening there are.
#[derive(Debug, Default, Clone, Copy)]
struct Trouble {
    scale: u32,
    capacity: u32,
    faults: bool,
    workers: u32,
    crashes: u32,
    drains: u32,
    configs: u32,
    proxies: u32,
    zero: bool,
    interruptions: u32,
}

/// The world of a seed.
pub(super) fn setup(seed: u64, profile: Profile) -> Setup {
    let rng = &mut Rng::new(seed ^ 0x5eed_f04e_ba71_0000);
    let trouble = profile.trouble();
    let fleet = Arc::new(fleets::draw(rng, trouble.zero));
    let length = seconds(rng, 240, 720);
    let mut script = Script { length, lines: Vec::new() };
    write_script(&mut script, &fleet, trouble, rng);
    script.lines.sort_by_key(|(at, _)| *at);
    let scarce = if trouble.capacity > 0 { 700 } else { 300 };
    let mut limits = Rng::new(rng.next());
    let available = fleet
        .instance_types
        .keys()
        .map(|kind| (kind.clone(), rng.between(0, 4)))
        .filter(|_| limits.chance(scarce))
        .collect();
    let quick = u64::from(rng.between(1, 300));
    Setup {
        cloud: CloudSetup {
            available,
            latency: (Duration::from_millis(1), Duration::from_millis(1 + quick * 10)),
            startup_by_type: std::collections::BTreeMap::new(),
            startup: span(rng, 1, 20),
            stop: span(rng, 0, 20),
            remembered: span(rng, 0, 120),
            quota_share: 150,
            address_at_grant: rng.chance(500),
        },
        faults: if trouble.faults { faults(rng) } else { Faults::default() },
        checked: true,
        troubled: trouble.faults || trouble.workers > 0 || trouble.configs > 0,
        proxies: rng.between(1, if trouble.proxies > 0 { 3 } else { 2 }),
        report_every: Duration::from_millis(rng.between(1000, 2600).into()),
        message: (Duration::from_millis(1), Duration::from_millis(1 + quick)),
        load: load(rng, trouble.zero),
        traffic: TrafficSetup::default(),
        spot: std::collections::BTreeMap::new(),
        script: script.lines,
        length,
        fleet,
    }
}

struct Script {
    length: Duration,
    lines: Vec<(Duration, Happening)>,
}

impl Script {
    /// Writes `count` lines (or a few less) at random times.
    fn write(&mut self, count: u32, rng: &mut Rng, mut line: impl FnMut(&mut Rng) -> Happening) {
        if count == 0 {
            return;
        }
        for _ in 0..rng.between(count.div_ceil(2), count) {
            let at = rng.span((Duration::ZERO, self.length));
            self.lines.push((at, line(rng)));
        }
    }
}

fn write_script(script: &mut Script, fleet: &Arc<FleetSpec>, trouble: Trouble, rng: &mut Rng) {
    let kinds: Vec<InstanceTypeName> = fleet.instance_types.keys().cloned().collect();
    let keys: Vec<(VariantKey, u32)> = fleet
        .variants()
        .map(|(e, v)| {
            let key = VariantKey { endpoint: e.name.clone(), variant: v.name.clone() };
            (key, v.max_instance_count)
        })
        .collect();
    let one = |rng: &mut Rng| rng.pick(&kinds).unwrap_or(&kinds[0]).clone();
    script.write(trouble.scale, rng, |rng| {
        let (key, max) = rng.pick(&keys).unwrap_or(&keys[0]);
        Happening::Desired(key.clone(), rng.between(0, max + 1))
    });
    script.write(trouble.capacity, rng, |rng| Happening::Capacity(one(rng), rng.between(0, 6)));
    script.write(trouble.workers, rng, worker_trouble);
    if trouble.faults {
        script.write(3, rng, |rng| Happening::Rejecting(one(rng), rng.chance(500)));
        script.write(2, rng, |rng| Happening::Faults(faults(rng)));
    }
    script.write(trouble.crashes, rng, |rng| {
        let most = if rng.chance(300) { 60 } else { 2 };
        Happening::Crash { after: rng.between(0, 12), down: seconds(rng, 0, most) }
    });
    script.write(trouble.drains, rng, |rng| Happening::Drain { pick: rng.next() });
    script.write(trouble.interruptions, rng, |rng| {
        let notice = seconds(rng, 0, 120);
        Happening::Interrupt { pick: rng.next(), kind: None, notice }
    });
    script.write(trouble.proxies, rng, proxy_trouble);
    write_configs(script, fleet, trouble.configs, rng);
}

/// Each config is made from the one before it, so they are made in the order of their times.
fn write_configs(script: &mut Script, fleet: &FleetSpec, count: u32, rng: &mut Rng) {
    let mut fleet = fleet.clone();
    let original = fleet.clone();
    let mut times: Vec<Duration> =
        (0..count).map(|_| rng.span((Duration::ZERO, script.length))).collect();
    times.sort();
    for at in times {
        fleets::change(&mut fleet, &original, rng);
        script.lines.push((at, Happening::Reconfigure(Arc::new(fleet.clone()))));
    }
}

fn worker_trouble(rng: &mut Rng) -> Happening {
    let pick = rng.next();
    match rng.below(3) {
        0 => Happening::Kill { pick, noticed: true },
        1 => Happening::Kill { pick, noticed: false },
        _ => Happening::Sicken { pick, lasts: seconds(rng, 1, 90) },
    }
}

fn proxy_trouble(rng: &mut Rng) -> Happening {
    let pick = rng.next();
    match rng.below(6) {
        0 => Happening::ProxyJoins,
        1 => Happening::ProxyLeaves { pick },
        2 | 3 => {
            Happening::ProxyRestart { pick, down: seconds(rng, 0, 60), renamed: rng.chance(500) }
        }
        _ => Happening::ProxySilent { pick, lasts: seconds(rng, 1, 120) },
    }
}

fn faults(rng: &mut Rng) -> Faults {
    let most = [20, 100, 300][usize::try_from(rng.below(3)).unwrap_or(0)];
    Faults {
        lost_before: rng.between(0, most),
        lost_after: rng.between(0, most),
        hangs: rng.between(0, most),
        late: rng.between(0, most),
        slow: rng.between(0, most),
        never_healthy: rng.between(0, most),
        dies_young: rng.between(0, most),
    }
}

fn load(rng: &mut Rng, zero: bool) -> Load {
    // Variants can only fall asleep between bursts that are far apart.
    let every = if zero { span(rng, 20, 240) } else { span(rng, 2, 30) };
    Load { every, burst: rng.between(0, 6), service: span(rng, 0, 60) }
}

/// A number of seconds from `low` to `high`.
pub(super) fn seconds(rng: &mut Rng, low: u64, high: u64) -> Duration {
    rng.span((Duration::from_secs(low), Duration::from_secs(high)))
}

/// A range within `low` to `high` seconds.
fn span(rng: &mut Rng, low: u64, high: u64) -> Span {
    let first = seconds(rng, low, high);
    let second = seconds(rng, low, high);
    (first.min(second), first.max(second))
}
