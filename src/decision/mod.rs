//! Verbs: every decision of both halves, as pure code. Plain data and `now` (and random draws) go in, a
//! value and its reason come out. No async, no sockets, no clock, no randomness.
//!
//! * [`route`] chooses a copy, [`ranking`] keeps many in order for it, [`session`] chooses the one that a session
//!   belongs to; [`admit`] orders those who wait, [`rate`] bounds what one caller may send.
//! * [`engine`] is what is known of each engine; [`outcome`] reads what a request's end says of its instance;
//!   [`eject`] leaves sick ones alone; [`budget`] bounds retries; [`ramp`] gives new ones their slots;
//!   [`predict`] learns how fast each is.
//! * [`controller`] is the manager's brain: events in, actions out. [`plan`] decides one round of it.
//! * [`scale`] turns what was measured into a size: the series, the expressions, the scaling policies.
//! * [`signals`] reads what instances tell of themselves.
//! * [`agenda`] keeps what is to happen by time.
//! * [`check`] validates any plan and routing table, apart from whoever made it.

pub mod admit;
pub mod agenda;
pub mod budget;
pub mod check;
pub mod controller;
pub mod eject;
pub mod engine;
pub mod outcome;
pub mod plan;
pub mod predict;
pub mod ramp;
pub mod ranking;
pub mod rate;
pub mod route;
pub mod scale;
pub mod session;
pub mod signals;
