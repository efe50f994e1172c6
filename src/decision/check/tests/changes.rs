//! Durable changes: sizes, order, drains, deletions.

use super::*;
use InstanceState::{Draining, InService, Pending, Starting, Stopping};

#[test]
fn no_edge_leads_back() {
    for (from, to) in [
        (Draining, InService),
        (Stopping, Draining),
        (Starting, Pending),
        (InService, Starting),
        (Pending, InService),
    ] {
        let books = &mut ledger(spec(), 1, &[("best-1", from)]);
        let found = put(books, "best-1", to);
        let expected = format!("instance best-1 goes from {from} to {to}");
        assert!(found.iter().any(|v| v.to_string() == expected), "{found:?}");
    }
    let books = &mut ledger(spec(), 1, &[]);
    assert_eq!(
        one(&put(books, "best-100", Starting)),
        "instance best-100 goes from nothing to Starting"
    );
    let books = &mut ledger(spec(), 1, &[("best-1", Starting)]);
    assert!(one(&put(books, "best-1", InService)).ends_with("without a healthy answer"));
}

#[test]
fn nothing_grows_past_its_size_and_surge() {
    let books = &mut ledger(spec(), 1, &[("best-1", InService)]);
    let found = put(books, "best-100", Pending);
    assert_eq!(one(&found), "e/v grows to 2 instances with 1 desired and a surge of 0");
    let found = put(&mut ledger(spec(), 1, &[]), "best-7", Pending);
    assert!(one(&found).contains("generation 7, which is not new"));

    let mut parallel = spec();
    parallel.endpoints[0].variants[0].fallback = Fallback::Parallel;
    let books = &mut ledger(parallel, 1, &[("best-1", Pending)]);
    assert_eq!(put(books, "next-100", Pending), []);
    assert!(!put(books, "next-101", Pending).is_empty());

    let mut active = spec();
    active.endpoints[0].variants[0].rebalance.mode = Rebalance::Active;
    let books = &mut ledger(active, 1, &[("next-1", InService)]);
    assert_eq!(put(books, "best-100", Pending), []);
    assert!(!put(books, "best-101", Pending).is_empty());

    let books = &mut ledger(spec(), 1, &[("best-1", InService)]);
    probed(books, "best-1", Err("connection refused".into()));
    assert_eq!(put(books, "best-100", Pending), []);

    let found = persist(books, vec![Change::PutVariant(variant(5))]);
    assert_eq!(one(&found), "e/v is to have 5 instances, outside of 0 to 4");
}

#[test]
fn fallback_leaves_first_and_never_below_desired() {
    let fleet = [("best-1", InService), ("next-2", InService)];
    let books = &mut ledger(spec(), 1, &fleet);
    let found = put(books, "best-1", Draining);
    assert_eq!(
        one(&found),
        "instance best-1 of priority 1 leaves while next-2 of priority 2 stays"
    );
    let books = &mut ledger(spec(), 1, &fleet);
    assert_eq!(put(books, "next-2", Draining), []);
    assert_eq!(
        one(&put(books, "best-1", Draining)),
        "instance best-1 of e/v leaves by choice; 0 remain of 1 desired"
    );
    // A drain that was asked for, or a death, is nobody's choice.
    let books = &mut ledger(spec(), 2, &fleet);
    books.note_drain("best-1");
    assert_eq!(put(books, "best-1", Draining), []);
    // While nothing was scaled in, a replacement must serve before the one it replaces leaves.
    let books = &mut ledger(spec(), 1, &[("next-2", InService)]);
    persist(books, vec![Change::PutVariant(variant(2))]);
    assert_eq!(put(books, "best-100", Pending), []);
    assert!(!put(books, "next-2", Draining).is_empty());
}

#[test]
fn a_drain_has_its_time() {
    let books = &mut ledger(spec(), 0, &[("best-1", InService)]);
    let mut short = record("best-1", Draining);
    short.drain_deadline = Some(NOW + Duration::from_secs(59));
    let found = persist(books, vec![Change::PutInstance(short)]);
    assert!(one(&found).starts_with("instance best-1 drains until"));
}

#[test]
fn nothing_is_stopped_under_running_requests() {
    let books = &mut ledger(spec(), 0, &[("best-1", InService)]);
    assert_eq!(publish(books, 1, &["best-1"]), []);
    let early = |books: &mut Ledger, why: &str| {
        let found = put(books, "best-1", Stopping);
        assert!(one(&found).contains(why), "{found:?}");
    };
    early(&mut ledger(spec(), 0, &[("best-1", Draining)]), "no table without it");
    assert_eq!(put(books, "best-1", Draining), []);
    assert_eq!(publish(books, 2, &[]), []);
    reported(books, 1, "best-1", 0);
    let copy = |reports: &[(u64, u32)]| {
        let books = &mut ledger(spec(), 0, &[("best-1", Draining)]);
        assert_eq!(publish(books, 2, &[]), []);
        for (revision, outstanding) in reports {
            reported(books, *revision, "best-1", *outstanding);
        }
        put(books, "best-1", Stopping)
    };
    assert!(one(&copy(&[(1, 0)])).contains("proxy p routes by 1.1, it left with 1.2"));
    assert!(one(&copy(&[(2, 4)])).contains("proxy p has 4 requests there"));
    assert_eq!(copy(&[(2, 4), (2, 0)]), []);
    // Its deadline has passed.
    let books = &mut ledger(spec(), 0, &[("best-1", Draining)]);
    let stop = Action::Persist(vec![Change::PutInstance(record("best-1", Stopping))]);
    assert_eq!(books.check_action(NOW + Duration::from_secs(60), &stop), []);
    // Only what is being stopped, or belongs to nobody, is terminated.
    let books = &mut ledger(spec(), 1, &[("best-1", InService)]);
    let mut terminate = |name: &str| {
        books.check_action(NOW, &Action::Terminate { provider: cloud(), instance: id(name) })
    };
    assert!(one(&terminate("best-1")).contains("is InService"));
    assert!(one(&terminate("best-9")).contains("neither recorded nor listed"));
    listed(books, &["best-1", "best-9"]);
    let terminate = Action::Terminate { provider: cloud(), instance: id("best-9") };
    assert_eq!(books.check_action(NOW, &terminate), []);
}

#[test]
fn nothing_is_forgotten_while_it_may_run() {
    let delete = |books: &mut Ledger| persist(books, vec![Change::DeleteInstance(id("best-100"))]);
    let asked = || {
        let mut books = ledger(spec(), 1, &[]);
        put(&mut books, "best-100", Pending);
        books
    };
    // Never sent.
    assert_eq!(delete(&mut asked()), []);
    // Sent, and perhaps carried out.
    let books = &mut asked();
    assert_eq!(launch(books, &["best-100"]), []);
    launched(books, "best-100", Err(ProviderError::unavailable("no answer")));
    assert!(one(&delete(books)).contains("(Pending) is deleted while it may still run"));
    // Refused.
    let books = &mut asked();
    assert_eq!(launch(books, &["best-100"]), []);
    let reason = "none left".to_owned();
    launched(books, "best-100", Err(ProviderError::InsufficientCapacity { reason }));
    assert_eq!(delete(books), []);
    // A list that was begun before the grant says nothing of it.
    let books = &mut asked();
    assert_eq!(launch(books, &["best-100"]), []);
    assert_eq!(books.check_action(NOW, &Action::List(cloud())), []);
    launched(books, "best-100", Ok(Grant { address: None }));
    answer_list(books, &[]);
    assert!(!delete(books).is_empty());
}
