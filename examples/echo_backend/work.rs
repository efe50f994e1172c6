//! Work that takes its time on one of a worker's slots.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

use forebay::runtime::clock;
use tokio::sync::Semaphore;

/// One address's slots.
pub(crate) struct Desk {
    address: SocketAddr,
    slots: Semaphore,
    slowness: f64,
    /// By how much work took too long so far: the timer counts in whole milliseconds. It is taken off the
    /// next, so that the capacity is what the options say.
    overrun: Cell<Duration>,
}

impl Desk {
    pub(crate) fn new(address: SocketAddr, slots: usize, slowness: f64) -> Self {
        let slots = Semaphore::new(slots);
        Self { address, slots, slowness, overrun: Cell::default() }
    }

    /// The whole answer to a request for so much work, when it is done: 128 bytes of body that say who did it
    /// and when it began, in microseconds since 1970.
    pub(crate) async fn work(&self, work: Duration) -> Vec<u8> {
        let slot = self.slots.acquire().await;
        let (began, started_us) = (clock::monotonic(), clock::wall_nanos() / 1000);
        let takes = work.mul_f64(self.slowness);
        let overrun = self.overrun.take();
        let planned = takes.saturating_sub(overrun);
        self.overrun.set(overrun.saturating_sub(takes));
        tokio::time::sleep(planned).await;
        drop(slot);
        self.overrun.set(self.overrun.get() + began.elapsed().saturating_sub(planned));
        let text = format!("{{\"worker\":{},\"started_us\":{started_us}}}", self.address.port());
        let head =
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 128\r\n\r\n";
        format!("{head}{text:128}").into_bytes()
    }
}
