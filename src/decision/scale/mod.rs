//! Autoscaling, pure: what was measured becomes how many instances there should be.
//!
//! [`expr`] is the language that a policy's metric may be written in.

pub mod expr;
