//! What people read: the log, explanations, the preview.

use super::specs::*;
use crate::decision::controller::preview;

#[test]
fn a_refusal_says_what_comes_next() {
    let mut world = quickstart();
    world.run(secs(60));
    let refused = world.events("launch_refused");
    assert_eq!(
        refused[0],
        "launch of 2 × ml.p5.48xlarge refused: insufficient capacity: all 1 ml.p5.48xlarge are in use; \
         next pool ml.g6.48xlarge at 22:13:40 UTC (in 20s) when the 20s window closes"
    );
    assert!(
        refused
            .last()
            .expect("one")
            .contains("its 20s window has closed; next pool ml.g6.48xlarge"),
        "{refused:#?}"
    );
}

#[test]
fn an_explanation_tells_the_story() {
    let mut world = quickstart();
    world.run(secs(60));
    let now = world.now;
    let told = world.controller().explain(now, "e").expect("known");
    let story: Vec<_> =
        told.events.iter().map(|e| format!("{:<16} {}", e.kind, e.message)).collect();
    insta::assert_snapshot!(format!("{}\n\n{}", told.summary.join("\n"), story.join("\n")));
    assert!(world.controller().explain(now, "x").is_err());
}

#[test]
fn the_preview_shows_what_would_be_done() {
    let world = quickstart();
    let fresh = preview(world.now, world.spec.clone(), world.store.clone());
    insta::assert_snapshot!(fresh.join("\n"));
    let mut world = world;
    world.run(secs(60));
    let settled = preview(world.now, world.spec.clone(), world.store.clone());
    assert_eq!(settled, ["nothing: the fleet is as it should be, as far as the store knows"]);
}
