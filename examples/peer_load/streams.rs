//! Event streams that are all open at once. When every one has had its first event, and another while has
//! passed, `{"event":"begin"}` is told and counting begins; at the end of the window
//! `{"event":"end", …}` is told. The streams stay open, so that the proxy's memory can be read, until this
//! is ended from outside.
//!
//! Events say when they were sent, by the clock of the same machine. Their *delay* is from then until this has
//! read them, its own and the backend's turns included: take what a run without a proxy has off it.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use clap::Args;
use forebay::runtime::clock;
use futures_util::future::try_join_all;
use serde_json::json;

use crate::connection::Connection;
use crate::wire::STAMP;
use crate::{Error, Target, spread, tell};

#[derive(Args, Clone)]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 500)]
    streams: usize,
    /// Between two events of a stream.
    #[arg(long, default_value_t = 50)]
    gap_ms: u64,
    #[arg(long, default_value_t = 190)]
    event_bytes: usize,
    /// How long they are watched.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Over how long they are opened.
    #[arg(long, default_value_t = 1.0)]
    ramp: f64,
    /// How long all are open before they are watched.
    #[arg(long, default_value_t = 1.0)]
    settle: f64,
}

#[derive(Default)]
struct Seen {
    open: Cell<usize>,
    watching: Cell<bool>,
    events: Cell<u64>,
    gaps: RefCell<Vec<u32>>,
    delays: RefCell<Vec<u32>>,
}

pub(crate) async fn run(options: Options) -> Result<(), Error> {
    let seen = Seen::default();
    let wish = format!("stream {} {}", options.gap_ms, options.event_bytes);
    let request = options.target.request(&wish, true, false);
    let streams =
        try_join_all((0..options.streams).map(|number| watch(&options, number, &request, &seen)));
    tokio::select! {
        ended = tokio::task::unconstrained(streams) => ended.map(drop),
        told = tell_the_window(&options, &seen) => told,
    }
}

async fn tell_the_window(options: &Options, seen: &Seen) -> Result<(), Error> {
    while seen.open.get() < options.streams {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_secs_f64(options.settle)).await;
    tell(&json!({ "event": "begin" }))?;
    let began = clock::monotonic();
    seen.watching.set(true);
    tokio::time::sleep(Duration::from_secs_f64(options.seconds)).await;
    seen.watching.set(false);
    tell(&json!({
        "event": "end",
        "seconds": began.elapsed().as_secs_f64(),
        "streams": options.streams,
        "events": seen.events.get(),
        "gap": spread(seen.gaps.take()),
        "delay": spread(seen.delays.take()),
    }))?;
    std::future::pending().await
}

/// One stream, for as long as this runs; its end is an error.
async fn watch(options: &Options, number: usize, request: &[u8], seen: &Seen) -> Result<(), Error> {
    let turn = number as f64 / options.streams as f64;
    tokio::time::sleep(Duration::from_secs_f64(options.ramp * turn)).await;
    let mut connection = Connection::open(options.target.address, number).await?;
    connection.send(request).await?;
    let mut head = connection.head().await?;
    if head.status != 200 {
        return Err(format!("a stream was answered with {}", head.status).into());
    }
    let (mut last, mut stamps) = (None, Stamps::default());
    loop {
        let mut events = 0;
        let read = |piece: &[u8]| {
            let now_us = clock::wall_nanos() / 1000;
            stamps.take(piece, |sent_us| {
                events += 1;
                if seen.watching.get() {
                    let delay = u32::try_from(now_us.saturating_sub(sent_us)).unwrap_or(u32::MAX);
                    seen.delays.borrow_mut().push(delay);
                }
            });
        };
        let more = connection.piece(&mut head.body, read).await?;
        if events > 0 {
            let now = clock::monotonic();
            match last.replace(now) {
                None => seen.open.set(seen.open.get() + 1),
                Some(last) if seen.watching.get() => {
                    seen.events.set(seen.events.get() + events as u64);
                    let gap = u32::try_from((now - last).as_micros()).unwrap_or(u32::MAX);
                    let mut gaps = seen.gaps.borrow_mut();
                    gaps.push(gap);
                    // What came together had no gap in between.
                    gaps.extend(std::iter::repeat_n(0, events - 1));
                }
                Some(_) => {}
            }
        }
        if !more {
            return Err("a stream ended".into());
        }
    }
}

/// Reads the times that events carry behind their `~`, wherever pieces of the stream are cut.
#[derive(Debug, Default)]
struct Stamps {
    /// Inside a time: what it says so far, and how many digits are still to come.
    inside: Option<(u64, usize)>,
}

impl Stamps {
    /// Each time that ends in `piece` goes to `each`.
    fn take(&mut self, mut piece: &[u8], mut each: impl FnMut(u64)) {
        loop {
            let Some((stamp, left)) = &mut self.inside else {
                let Some(at) = memchr::memchr(b'~', piece) else { return };
                piece = &piece[at + 1..];
                self.inside = Some((0, STAMP));
                continue;
            };
            let taken = piece.len().min(*left);
            for digit in &piece[..taken] {
                *stamp = *stamp * 10 + u64::from(digit.saturating_sub(b'0'));
            }
            *left -= taken;
            if *left > 0 {
                return;
            }
            piece = &piece[taken..];
            each(*stamp);
            self.inside = None;
        }
    }
}
