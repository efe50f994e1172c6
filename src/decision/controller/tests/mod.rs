//! Tests of the controller, by theme, over the little [`world`].

mod basics;
mod chaos;
mod crash;
mod look;
mod machine;
mod people;
mod probes;
mod races;
mod reload;
mod scaling;
mod scarcity;
mod signals;
pub(crate) mod specs;
mod world;
mod zero;
