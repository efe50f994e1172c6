//! Tests of the controller, by theme, over the little [`world`].

mod basics;
mod crash;
mod machine;
mod people;
mod reload;
mod scarcity;
pub(crate) mod specs;
mod world;
mod zero;
