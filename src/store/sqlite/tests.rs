//! What only a file can get wrong: restarts, foreign and newer files, locks, a holder's death.

use std::time::Duration;

use rusqlite::Connection;

use super::*;
use crate::store::conformance::{self, instance, log};
use crate::types::record::{Change, ProxyRecord};

const TTL: Duration = Duration::from_secs(10);
const NOW: Timestamp = Timestamp(1_700_000_000_000);

#[test]
fn conforms() {
    conformance::suite(|| {
        let dir = tempfile::tempdir().expect("a directory");
        move || Box::new(SqliteStore::open(dir.path().join("state.db")).expect("opens"))
    });
}

#[test]
fn what_was_committed_is_there_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state.db");
    let mut store = SqliteStore::open(&path).expect("opens");
    let epoch = store.acquire_lease("a", NOW, TTL).expect("free");
    store.commit(epoch, &[Change::PutInstance(instance("i-1", 7)), log("one")]).expect("commits");
    let before = store.load().expect("loads");
    drop(store);
    let mut store = SqliteStore::open(&path).expect("opens again");
    assert_eq!(store.load().expect("loads"), before);
    assert_eq!(before.next_generation, 8);
}

#[test]
fn a_dead_holder_is_succeeded_at_once_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state.db");
    let mut first = SqliteStore::open(&path).expect("opens");
    let mut second = SqliteStore::open(&path).expect("opens");
    let epoch = first.acquire_lease("first", NOW, TTL).expect("free");
    assert!(matches!(
        second.acquire_lease("second", NOW, TTL),
        Err(StoreError::LeaseHeld { owner, remaining }) if owner == "first" && remaining == TTL
    ));
    drop(first); // as if killed: nothing was released
    assert_eq!(second.acquire_lease("second", NOW, TTL).expect("taken over"), epoch + 1);
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .expect("lists")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains(".lease-"))
        .collect();
    assert_eq!(left, [format!("state.db.lease-{}", epoch + 1)]);
    second.release_lease(epoch + 1).expect("held");
    assert!(!path.with_file_name(format!("state.db.lease-{}", epoch + 1)).exists());
}

#[test]
fn files_that_are_not_ours_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = dir.path().join("notes.txt");
    std::fs::write(&text, "these are notes, and long enough to be no database header ".repeat(40))
        .expect("writes");
    let before = std::fs::read(&text).expect("reads");
    let refusal = SqliteStore::open(&text).expect_err("not a database").to_string();
    assert!(refusal.contains("notes.txt") && refusal.contains("not a database"), "{refusal}");
    assert_eq!(std::fs::read(&text).expect("reads"), before);

    let foreign = dir.path().join("other.db");
    Connection::open(&foreign)
        .expect("opens")
        .execute_batch("CREATE TABLE theirs (x)")
        .expect("creates");
    let refusal = SqliteStore::open(&foreign).expect_err("foreign").to_string();
    assert!(refusal.contains("another program's"), "{refusal}");

    let missing = SqliteStore::open(dir.path().join("no/such/dir.db")).expect_err("no directory");
    assert!(missing.to_string().contains("does its directory exist"), "{missing}");
}

#[test]
fn newer_formats_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state.db");
    let mut store = SqliteStore::open(&path).expect("opens");
    let epoch = store.acquire_lease("a", NOW, TTL).expect("free");
    store.commit(epoch, &[Change::PutInstance(instance("i-9", 1))]).expect("commits");
    let raw = Connection::open(&path).expect("opens");
    raw.execute_batch("UPDATE instance SET v = 2").expect("updates");
    let refusal = store.load().expect_err("newer").to_string();
    assert!(refusal.contains("instance i-9") && refusal.contains("newer forebay"), "{refusal}");
    raw.execute_batch("UPDATE instance SET v = 1, body = '{\"id\":7}'").expect("updates");
    let refusal = store.load().expect_err("broken").to_string();
    assert!(refusal.contains("instance i-9"), "{refusal}");
    raw.execute_batch("UPDATE meta SET value = '3' WHERE key = 'schema_version'").expect("updates");
    let refusal = SqliteStore::open(&path).expect_err("newer layout").to_string();
    assert!(refusal.contains("newer forebay"), "{refusal}");
}

#[test]
fn a_locked_file_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state.db");
    let mut store = SqliteStore::open(&path).expect("opens");
    store.connection.busy_timeout(Duration::from_millis(1)).expect("set");
    let other = Connection::open(&path).expect("opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("locks");
    let refusal = store.acquire_lease("a", NOW, TTL).expect_err("locked").to_string();
    assert!(refusal.contains("state.db has been locked"), "{refusal}");
    other.execute_batch("COMMIT").expect("unlocks");
    store.acquire_lease("a", NOW, TTL).expect("free again");
}

#[test]
fn the_log_is_trimmed_on_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut store = SqliteStore::open(dir.path().join("state.db")).expect("opens");
    let epoch = store.acquire_lease("a", NOW, TTL).expect("free");
    let batch: Vec<_> = (0..TRIM_EVERY).map(|_| log("x")).collect();
    for _ in 0..(EVENT_LIMIT / TRIM_EVERY + 3) {
        store.commit(epoch, &batch).expect("commits");
    }
    let rows: i64 = store
        .connection
        .query_row("SELECT count(*) FROM event", [], |row| row.get(0))
        .expect("counts");
    assert!(rows <= i64::try_from(EVENT_LIMIT + TRIM_EVERY).expect("small"), "{rows}");
}

#[test]
fn a_file_of_the_first_layout_is_brought_up_to_date() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("forebay.db");
    let mut store = SqliteStore::open(&path).expect("opens");
    let epoch = store.acquire_lease("a", NOW, TTL).expect("free");
    drop(store);
    let raw = Connection::open(&path).expect("opens");
    raw.execute_batch("DROP TABLE proxy; UPDATE meta SET value = '1' WHERE key = 'schema_version'")
        .expect("updates");
    drop(raw);
    let mut store = SqliteStore::open(&path).expect("brought up to date");
    let proxy = ProxyRecord { id: "p".parse().expect("id"), heard_at: NOW };
    store.commit(epoch, &[Change::PutProxy(proxy.clone())]).expect("written");
    assert_eq!(store.load().expect("read").proxies, [proxy]);
    drop(store);
    assert_eq!(SqliteStore::open(&path).expect("again").load().expect("read").proxies.len(), 1);
}
