//! Tests of the controller, by theme, over the little [`world`].

mod basics;
pub(crate) mod specs;
mod world;
