//! Tests of the controller, by theme, over the little [`world`].

mod basics;
mod specs;
mod world;
