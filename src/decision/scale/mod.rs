//! Autoscaling, pure: what was measured becomes how many instances there should be.
//!
//! [`series`] keeps what was measured, [`expr`] is the language that a policy's signal may be written in.

pub mod expr;
pub mod series;
