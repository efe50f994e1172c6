//! Crash points: numbered places between deciding, recording, acting and confirming at which the process
//! can be told to die, so that a test can show that a restart finds every worker again.
//!
//! `FOREBAY_CRASH_AT=after_launch` aborts the process the first time that it passes the point,
//! `FOREBAY_CRASH_AT=after_launch:3` the third time. `FOREBAY_CRASH_AT=after_publish:1:panic` panics there instead,
//! which ends the task that passes it and not the process. Unset, a point costs one comparison.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use thiserror::Error;

use crate::types::InstanceState;
use crate::types::record::Change;

/// The environment variable that arms a point.
pub const VARIABLE: &str = "FOREBAY_CRASH_AT";

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// Where the manager can be made to die.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum CrashPoint {
            $($(#[$doc])* $point,)*
        }

        impl CrashPoint {
            /// Every point, in the order of an instance's life.
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            /// How [`VARIABLE`] spells it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)*
                }
            }
        }
    };
}

points! {
    /// 1. The lease is held, nothing has been loaded.
    AfterLease = "after_lease",
    /// 2. The state is loaded, no provider has been asked.
    AfterLoad = "after_load",
    /// 3. A provider has listed what runs, the controller does not know yet.
    AfterList = "after_list",
    /// 4. A launch is decided, its intent (`Pending`) not recorded.
    BeforeIntent = "before_intent",
    /// 5. The intent is recorded, nothing launched.
    AfterIntent = "after_intent",
    /// 6. About to call the provider.
    BeforeLaunch = "before_launch",
    /// 7. The provider has answered, its outcome is not recorded: what it started must be found again.
    AfterLaunch = "after_launch",
    /// 8. The grant (`Starting`) is about to be recorded.
    BeforeGrant = "before_grant",
    /// 9. The grant is recorded.
    AfterGrant = "after_grant",
    /// 10. Healthy, not recorded as `InService`.
    BeforeInService = "before_in_service",
    /// 11. Recorded as `InService`, not in any table.
    AfterInService = "after_in_service",
    /// 12. A table is made, not published.
    BeforePublish = "before_publish",
    /// 13. A table is published.
    AfterPublish = "after_publish",
    /// 14. An instance is to leave, which is not recorded.
    BeforeDraining = "before_draining",
    /// 15. Recorded as `Draining`.
    AfterDraining = "after_draining",
    /// 16. Drained, `Stopping` is not recorded.
    BeforeStopping = "before_stopping",
    /// 17. Recorded as `Stopping`, the provider has not been told.
    AfterStopping = "after_stopping",
    /// 18. About to tell the provider.
    BeforeTerminate = "before_terminate",
    /// 19. The provider has been told, its answer is not recorded.
    AfterTerminate = "after_terminate",
    /// 20. Gone, the record still there.
    BeforeDelete = "before_delete",
    /// 21. The record is deleted.
    AfterDelete = "after_delete",
}

/// What is armed.
#[derive(Debug, Default)]
pub struct CrashPoints {
    armed: Option<(CrashPoint, AtomicU32)>,
    panics: bool,
}

/// A value of [`VARIABLE`] that names no point.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{VARIABLE}=\"{0}\" is no crash point; it is POINT, POINT:N or POINT:N:panic with one of {points}", points = names())]
pub struct UnknownCrashPoint(String);

impl CrashPoints {
    /// What the environment arms.
    ///
    /// # Errors
    /// [`UnknownCrashPoint`] when it names none that there is.
    pub fn from_environment() -> Result<Self, UnknownCrashPoint> {
        match std::env::var(VARIABLE) {
            Ok(text) if !text.is_empty() => text.parse(),
            _ => Ok(Self::default()),
        }
    }

    /// Aborts the process if `point` is armed and its time has come.
    ///
    /// # Panics
    /// Where it is armed for that.
    pub fn pass(&self, point: CrashPoint) {
        if self.is_due(point) {
            assert!(!self.panics, "crash point {point} reached");
            tracing::error!(point = point.name(), "crash point reached, aborting");
            std::process::abort();
        }
    }

    /// [`CrashPoints::pass`] for the point before `changes` are recorded.
    pub(super) fn before(&self, changes: &[Change]) {
        self.around(changes, |(before, _)| before);
    }

    /// [`CrashPoints::pass`] for the point after `changes` were recorded.
    pub(super) fn after(&self, changes: &[Change]) {
        self.around(changes, |(_, after)| after);
    }

    fn around(&self, changes: &[Change], side: fn((CrashPoint, CrashPoint)) -> CrashPoint) {
        if self.armed.is_some() {
            changes.iter().filter_map(points_of).for_each(|pair| self.pass(side(pair)));
        }
    }

    fn is_due(&self, point: CrashPoint) -> bool {
        self.armed.as_ref().is_some_and(|(armed, passes_left)| {
            // Stays at 0 once it was due: the process is about to be gone.
            *armed == point && passes_left.fetch_sub(1, Ordering::Relaxed) == 1
        })
    }
}

impl FromStr for CrashPoints {
    type Err = UnknownCrashPoint;

    fn from_str(text: &str) -> Result<Self, UnknownCrashPoint> {
        let unknown = || UnknownCrashPoint(text.to_owned());
        let (place, panics) = match text.strip_suffix(":panic") {
            Some(place) => (place, true),
            None => (text, false),
        };
        let (name, nth) = place.split_once(':').unwrap_or((place, "1"));
        let point = *CrashPoint::ALL.iter().find(|p| p.name() == name).ok_or_else(unknown)?;
        let nth: u32 = nth.parse().ok().filter(|nth| *nth > 0).ok_or_else(unknown)?;
        Ok(Self { armed: Some((point, AtomicU32::new(nth))), panics })
    }
}

impl fmt::Display for CrashPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn points_of(change: &Change) -> Option<(CrashPoint, CrashPoint)> {
    use CrashPoint as P;
    match change {
        Change::PutInstance(record) => Some(match record.state {
            InstanceState::Pending => (P::BeforeIntent, P::AfterIntent),
            InstanceState::Starting => (P::BeforeGrant, P::AfterGrant),
            InstanceState::InService => (P::BeforeInService, P::AfterInService),
            InstanceState::Draining => (P::BeforeDraining, P::AfterDraining),
            InstanceState::Stopping => (P::BeforeStopping, P::AfterStopping),
        }),
        Change::DeleteInstance(_) => Some((P::BeforeDelete, P::AfterDelete)),
        _ => None,
    }
}

fn names() -> String {
    CrashPoint::ALL.iter().map(|point| point.name()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nth_pass_of_the_armed_point_is_due() {
        let points: CrashPoints = "after_launch:2".parse().expect("a point");
        assert!(!points.is_due(CrashPoint::BeforeLaunch));
        assert!(!points.is_due(CrashPoint::AfterLaunch));
        assert!(points.is_due(CrashPoint::AfterLaunch));
        assert!(!points.is_due(CrashPoint::AfterLaunch));
        assert!(!CrashPoints::default().is_due(CrashPoint::AfterLaunch));
    }

    #[test]
    fn every_point_has_a_name_of_its_own_that_parses() {
        let mut names: Vec<_> = CrashPoint::ALL.iter().map(|p| p.name()).collect();
        for name in &names {
            assert!(name.parse::<CrashPoints>().is_ok(), "{name}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CrashPoint::ALL.len());
    }

    #[test]
    fn a_wrong_value_says_what_there_is() {
        for wrong in ["nowhere", "after_launch:0", "after_launch:x"] {
            let refusal = wrong.parse::<CrashPoints>().expect_err(wrong).to_string();
            assert!(refusal.contains(wrong) && refusal.contains("after_launch, "), "{refusal}");
        }
    }
}
