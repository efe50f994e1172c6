//! Tables, launches, lists and probes.

use super::*;
use crate::decision::check::check_table;
use InstanceState::{Draining, InService, Pending, Starting, Stopping};

#[test]
fn a_whole_life_is_right() {
    let books = &mut ledger(spec(), 1, &[]);
    assert_eq!(put(books, "best-100", Pending), []);
    assert_eq!(launch(books, &["best-100"]), []);
    launched(books, "best-100", Err(ProviderError::unavailable("no answer")));
    assert_eq!(launch(books, &["best-100"]), []);
    launched(books, "best-100", Ok(Grant { address: None }));
    assert_eq!(put(books, "best-100", Starting), []);
    probed(books, "best-100", Ok(()));
    assert_eq!(put(books, "best-100", InService), []);
    assert_eq!(publish(books, 1, &["best-100"]), []);
    reported(books, 1, "best-100", 3);
    assert_eq!(persist(books, vec![Change::PutVariant(variant(0))]), []);
    assert_eq!(put(books, "best-100", Draining), []);
    assert_eq!(publish(books, 2, &[]), []);
    reported(books, 2, "best-100", 0);
    assert_eq!(put(books, "best-100", Stopping), []);
    let terminate = Action::Terminate { provider: cloud(), instance: id("best-100") };
    assert_eq!(books.check_action(NOW, &terminate), []);
    listed(books, &[]);
    assert_eq!(persist(books, vec![Change::DeleteInstance(id("best-100"))]), []);
}

#[test]
fn tables_are_checked_alone_and_beside_the_last() {
    let first = table(5, &["best-1", "best-2"]);
    assert_eq!(check_table(None, &first), []);
    assert_eq!(check_table(Some(&first), &table(6, &[])), []);
    assert_eq!(one(&check_table(Some(&first), &first)), "table 1.5 does not come after 1.5");
    let twice = check_table(None, &table(1, &["best-1", "best-1"]));
    assert_eq!(one(&twice), "instance best-1 generation 1 is in the table twice");
    let mut bad = table(1, &["best-1"]);
    let variant = &mut Arc::make_mut(&mut bad.endpoints[0]).variants[0];
    variant.weight = f64::NAN;
    variant.backends[0].copies = 0;
    bad.endpoints.push(bad.endpoints[0].clone());
    Arc::make_mut(&mut bad.endpoints[1]).variants.clear();
    let found: Vec<String> = check_table(None, &bad).iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "e/v has weight NaN",
            "backend best-1 has copies 0",
            "e is in the table twice",
            "e is in the table without a variant"
        ]
    );
}

#[test]
fn a_table_holds_what_is_in_service_and_nothing_else() {
    let states = [("best-1", InService), ("best-2", Draining), ("best-3", InService)];
    let books = &mut ledger(spec(), 3, &states);
    let found = publish(books, 1, &["best-1", "best-2", "best-4"]);
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "instance best-2 is in the table and Draining",
            "instance best-4 is in the table and has no record",
            "instance best-3 is in service and missing from the table"
        ]
    );
    let mut other = table(2, &["best-1", "best-3"]);
    Arc::make_mut(&mut other.endpoints[0]).variants[0].backends[0].generation = Generation(9);
    let found = books.check_action(NOW, &Action::Publish(Arc::new(other)));
    assert_eq!(one(&found), "backend best-1 has generation 9 for 1");
    let mut nameless = table(3, &["best-1", "best-3"]);
    Arc::make_mut(&mut nameless.endpoints[0]).name = "f".parse().expect("a name");
    let found = books.check_action(NOW, &Action::Publish(Arc::new(nameless)));
    assert!(found.iter().any(|v| v.to_string() == "f/v is in the table and not configured"));
    assert!(found.iter().any(|v| v.to_string() == "e/v is configured and missing from the table"));
}

#[test]
fn launches_need_a_pending_record_and_one_call_at_a_time() {
    let books = &mut ledger(spec(), 4, &[("best-1", Pending), ("best-2", Stopping)]);
    assert_eq!(
        one(&launch(books, &["best-7"])),
        "instance best-7 is launched and has no durable record"
    );
    assert_eq!(one(&launch(books, &["best-2"])), "instance best-2 is launched and is Stopping");
    let twice = launch(books, &["best-1", "best-1"]);
    assert_eq!(one(&twice), "instance best-1 is launched and is in the batch twice");
    launched(books, "best-1", Err(ProviderError::unavailable("no answer")));
    assert_eq!(launch(books, &["best-1"]), []);
    assert!(one(&launch(books, &["best-1"])).contains("still under way"));
    assert!(one(&launch(books, &[])).contains("a launch batch has instances none"));
}

#[test]
fn one_list_and_right_probes() {
    let books = &mut ledger(spec(), 1, &[("best-1", InService)]);
    assert_eq!(books.check_action(NOW, &Action::List(cloud())), []);
    let again = books.check_action(NOW, &Action::List(cloud()));
    assert_eq!(one(&again), "provider cloud is listed while a list of it is under way");
    let mut probe =
        |start| books.check_action(NOW, &Action::Probe(probe("best-1", Generation(start))));
    assert_eq!(probe(1), []);
    assert!(one(&probe(2)).contains("has no such record"));
}
