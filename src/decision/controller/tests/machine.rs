//! The whole transition table of an instance, as a picture: a changed edge is a visible diff.

use std::fmt::Write;

use crate::decision::controller::{EventKind, Next, Trigger, next};
use crate::types::InstanceState;

#[test]
fn the_transition_table() {
    let mut table = String::new();
    for state in InstanceState::ALL {
        for trigger in Trigger::ALL {
            let follows = match next(state, trigger) {
                Next::Stay => "-".to_owned(),
                Next::To(state) => state.to_string(),
                Next::Gone => "Gone".to_owned(),
            };
            let trigger = format!("{trigger:?}");
            writeln!(table, "{:<10} {trigger:<16} {follows}", state.as_str()).expect("a string");
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn every_life_ends() {
    for state in InstanceState::ALL {
        assert_eq!(next(state, Trigger::Ended), Next::Gone);
        let mut at = state;
        for trigger in [Trigger::Released, Trigger::DrainExpired] {
            if let Next::To(to) = next(at, trigger) {
                assert!(to > at, "{at} by {trigger:?}");
                at = to;
            }
        }
        assert_eq!(at, InstanceState::Stopping, "from {state}");
        assert_eq!(next(at, Trigger::Absent), Next::Gone);
    }
}

#[test]
fn the_words_of_the_log_stay() {
    let words: Vec<_> = EventKind::ALL.iter().map(|k| k.as_str()).collect();
    insta::assert_snapshot!(words.join("\n"));
}
