//! Autoscaling, pure: what was measured becomes how many instances there should be.
//!
//! [`series`] keeps what was measured in `slots`, [`signal`] makes one value a period of it, by a built-in metric or by
//! an expression ([`expr`]), and [`policy`] a size of the values. The controller samples, asks at the end of
//! each period, and carries out what is decided. [`schedule`] says within which bounds, and [`held`] what keeps a
//! policy from having what it wants.

pub mod expr;
pub mod held;
pub mod policy;
pub mod schedule;
pub mod series;
pub mod signal;
mod slots;
