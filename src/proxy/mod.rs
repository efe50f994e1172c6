//! The data plane's shell: listeners, the life of a request, connections to workers.
//!
//! Start with [`request`], which tells the life of a request from top to bottom; [`admission`] has the one
//! place that chooses, reserves and counts; [`router`] the published table. The proxy never calls the
//! manager and never waits for it: it is handed tables ([`Router::apply`]) and tells what it counts
//! ([`Router::report`]).
//!
//! From a client to a worker: [`listener`] accepts, [`downstream`] finds out what is spoken ([`crate::tls`] before it,
//! [`strict`] below HTTP/1.1, [`calm`] below HTTP/2), [`request`] checks the head ([`head`]) and who asks ([`keys`]), finds the variant ([`resolve`]) and a
//! slot ([`admission`]), [`attempt`] sends it on a connection of [`upstream`], [`exchange`] holds the slot, and
//! [`answer`] passes on what comes back, without what is for us ([`told`]).
//!
//! # What it is built on, and why
//!
//! * **hyper** on one single-threaded runtime per core (tokio's `LocalRuntime`), each with its own listener:
//!   tasks never move between threads, so connections and pools need no lock. Its HTTP/1.1 is the cheapest
//!   of the well-kept ones: about 16 µs of CPU a request in this shape, where the pingora proxy crate takes
//!   31 to 36 and HAProxy 16.
//! * **pingora's smaller crates** were looked at one by one. `pingora-runtime`'s no-steal runtime is what
//!   `LocalRuntime` gives without a dependency, and more strictly. `pingora-timeout`'s coarse timers pay
//!   where every request arms several timers; a request here arms one only when it has to connect or wait.
//!   `pingora-limits` estimates what we must count exactly. `pingora-ketama` is for sticky routing, when that
//!   comes. So none of them is taken yet.
//! * **Who parses is kept apart from what a request is**: [`request`] and [`exchange`] deal in heads, body
//!   frames, upgrades and ends; only [`downstream`] and [`upstream`] name hyper's connections.

mod admission;
mod answer;
mod attempt;
pub mod bench;
mod body;
mod calm;
mod client_io;
mod deadline;
mod downstream;
mod drain_rate;
mod ending;
mod exchange;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod head;
mod headers;
mod identity;
mod keys;
mod limits;
pub mod link;
mod listener;
mod model_field;
mod origin;
mod pinned;
mod refusal;
mod request;
mod resolve;
mod retry;
mod router;
mod slot;
mod snapshot;
mod sticky;
mod strict;
mod taking;
mod told;
mod upstream;
mod vitals;

pub use identity::Identity;
pub use keys::ApiKeys;
pub use limits::{ClientLimits, Clients};
pub use listener::{Listening, ProxyOptions, listen};
pub use router::Router;
