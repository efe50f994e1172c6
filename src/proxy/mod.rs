//! The data plane's shell: listeners, the life of a request, connections to workers.
//!
//! Start with [`request`], which tells the life of a request from top to bottom; [`admission`] has the one
//! place that chooses, reserves and counts; [`router`] the published table. The proxy never calls the
//! manager and never waits for it: it is handed tables ([`Router::apply`]) and tells what it counts
//! ([`Router::report`]).
//!
//! From a client to a worker: [`listener`] accepts, [`downstream`] finds out what is spoken ([`crate::tls`] before it,
//! [`calm`] below HTTP/2) and reads requests, [`request`] checks the head ([`head`]) and who asks ([`keys`]), finds
//! the variant ([`resolve`]) and a slot ([`admission`]; of which copy says [`choice`]), makes it a worker's
//! ([`draft`]), [`attempt`] sends it on a connection of [`upstream`],
//! [`exchange`] holds the slot, and [`answer`] passes on what comes back, without what is for us ([`told`]), or
//! [`tunnel`] whatever else both sides agree on. HTTP/1.1 as bytes is [`http1`]'s, for both sides.
//!
//! # What it is built on, and why
//!
//! * One single-threaded runtime per core (tokio's `LocalRuntime`), each with its own listener: tasks never move
//!   between threads, so connections and pools need no lock.
//! * **HTTP/1.1 by code of our own** on httparse and http, since that is where a request's time goes and where
//!   messages must mean one thing; **HTTP/2 by hyper** and h2, TLS by rustls. A thread reads what has come on all
//!   its connections before it writes ([`http1`]); the binary's memory is mimalloc's.
//! * **pingora's smaller crates** were looked at one by one. `pingora-runtime`'s no-steal runtime is what
//!   `LocalRuntime` gives without a dependency, and more strictly. `pingora-timeout`'s coarse timers pay
//!   where every request arms several timers; here a task has one for all its requests ([`alarm`]).
//!   `pingora-limits` estimates what we must count exactly. `pingora-ketama` is for sticky routing, when that
//!   comes. So none of them is taken yet.
//! * **Who parses is kept apart from what a request is**: [`request`] and [`exchange`] deal in heads, body
//!   frames, tunnels and ends; only [`downstream`] and [`upstream`] know connections.

mod admission;
mod alarm;
mod answer;
mod attempt;
pub mod bench;
mod body;
mod calm;
mod choice;
mod deadline;
mod downstream;
mod draft;
mod drain_rate;
mod ending;
mod exchange;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod head;
mod headers;
mod http1;
mod identity;
mod incoming;
mod keys;
mod limits;
pub mod link;
mod listener;
mod model_field;
mod names;
mod origin;
mod own;
mod pinned;
mod refusal;
mod request;
mod resolve;
mod response;
mod retry;
mod roster;
mod router;
mod slot;
mod snapshot;
mod socket;
mod sticky;
mod told;
mod tunnel;
mod upstream;
mod vitals;

pub use identity::Identity;
pub use keys::ApiKeys;
pub use limits::{ClientLimits, Clients};
pub use listener::{Listening, ProxyOptions, listen};
pub use router::Router;
