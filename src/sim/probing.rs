//! Probes on their way from the manager to the pretend machines and back: nothing goes wrong with them but what the
//! machines do. Those that were asked for together travel together.

use std::sync::Arc;
use std::time::Duration;

use super::machines::TIMED_OUT;
use super::world::{Due, World};
use crate::decision::controller::{Event, Probe};

/// How long probes are on their way to the instances, and their answers back.
const LATENCY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(30));

/// Probes on their way, or their answer.
#[derive(Debug)]
pub(super) struct ProbeCall {
    life: u64,
    probes: Arc<[Probe]>,
    back: Duration,
}

impl World {
    /// Sends probes on their way.
    pub(super) fn probe(&mut self, probes: Arc<[Probe]>) {
        let life = self.manager.as_ref().map_or(0, |manager| manager.life);
        let (there, back) = (self.rng.span(LATENCY), self.rng.span(LATENCY));
        self.agenda.enter(self.now + there, Due::Probe(ProbeCall { life, probes, back }));
    }

    /// Probes reach their instances. The healthy ones answer together.
    pub(super) fn answer_probes(&mut self, call: ProbeCall) {
        if self.was_never_sent(call.life) {
            return;
        }
        let ProbeCall { life, probes, back } = call;
        let failed: Vec<(usize, String)> = probes
            .iter()
            .enumerate()
            .filter_map(|(at, probe)| Some((at, self.cloud.probe(self.now, &probe.address).err()?)))
            .collect();
        for (at, reason) in &failed {
            let probe = &probes[*at];
            let after = if reason == TIMED_OUT { probe.timeout } else { back };
            let call = ProbeCall { life, probes: [probe.clone()].into(), back };
            self.agenda.enter(self.now + after, Due::Probed { call, result: Err(reason.clone()) });
        }
        let mut healthy = probes;
        if !failed.is_empty() {
            let is_well = |at: usize| failed.iter().all(|(bad, _)| *bad != at);
            let well = healthy.iter().enumerate().filter(|(at, _)| is_well(*at));
            healthy = well.map(|(_, probe)| probe.clone()).collect();
        }
        if !healthy.is_empty() {
            let call = ProbeCall { life, probes: healthy, back };
            self.agenda.enter(self.now + back, Due::Probed { call, result: Ok(()) });
        }
    }

    /// An answer to probes reaches the manager.
    pub(super) fn probed(&mut self, call: ProbeCall, result: Result<(), String>) {
        if self.lives(call.life) {
            self.tell(Event::Probed { probes: call.probes, result });
        }
    }
}
