//! What only real processes can show.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use forebay::provider::Provider;
use forebay::provider::fake::batch;
use forebay::types::ProviderError;
use forebay::types::launch::ProviderStatus;
use rustix::process::Signal;

use super::machine::{Machine, kill, processes};
use super::{LIMIT, World, end_all, granted, id, instance_type, live, status, until, until_gone};

#[tokio::test]
async fn a_worker_gets_its_arguments_and_environment() {
    let script =
        "echo $0 $GREETING $FOREBAY_INSTANCE_TYPE $FOREBAY_ADDRESS; echo ready; sleep 1000";
    let machine = Machine::new(&["sh", "-c", script, "{instance}/{address}/{model}"]);
    let id = machine.launch_ready("a").await;
    let list = live(&machine.provider).await;
    let address = list[0].address.as_ref().expect("known");
    let authority = address.authority();
    let expected = format!("a/{authority}/model hello any {address}\nready\n");
    assert_eq!(machine.log(&id), expected);

    let leader = machine.leader();
    let stdin = fs::read_link(format!("/proc/{}/fd/0", leader.pid)).expect("open");
    assert_eq!(stdin, Path::new("/dev/null"));
    for fd in [1, 2] {
        let output = fs::read_link(format!("/proc/{}/fd/{fd}", leader.pid)).expect("open");
        assert_eq!(output, machine.folder.path().join("a.log"), "no pipe to the manager");
    }
}

#[tokio::test]
async fn a_killed_worker_is_noticed_at_once() {
    let machine = Machine::new(&["sleep", "1000"]);
    let id = machine.launch("a").await;
    kill(machine.leader().pid, Signal::KILL);
    tokio::time::timeout(LIMIT, machine.nudge.notified()).await.expect("nudged");
    let reason = "signal 9 (SIGKILL)".to_owned();
    assert_eq!(status(&machine.provider, &id).await, Some(ProviderStatus::Ended { reason }));
    let again = machine.provider.launch(batch("any", &["a"])).await;
    assert!(again[0].result.is_ok(), "it was granted, and that stays so");
    assert!(machine.tagged().is_empty(), "but nothing is started twice for one id");
}

#[tokio::test]
async fn a_worker_that_exits_says_how() {
    let machine = Machine::new(&["sh", "-c", "exit 3"]);
    let id = machine.launch("a").await;
    tokio::time::timeout(LIMIT, machine.nudge.notified()).await.expect("nudged");
    let reason = "exit code 3".to_owned();
    assert_eq!(status(&machine.provider, &id).await, Some(ProviderStatus::Ended { reason }));
}

#[tokio::test]
async fn a_worker_that_ignores_sigterm_is_ended_by_force() {
    let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let machine = Machine::new(&["sh", "-c", script]);
    let id = machine.launch_ready("a").await;
    let leader = machine.leader();
    assert_eq!(machine.provider.terminate(id.clone(), Duration::from_secs(3600)).await, Ok(()));
    assert_eq!(status(&machine.provider, &id).await, Some(ProviderStatus::Stopping));
    assert_eq!(machine.provider.terminate(id.clone(), Duration::ZERO).await, Ok(()));
    until_gone(&machine.provider, &id).await;
    let reason = "signal 9 (SIGKILL)".to_owned();
    assert_eq!(status(&machine.provider, &id).await, Some(ProviderStatus::Ended { reason }));
    machine.until_all_gone(leader.pid).await;
}

#[tokio::test]
async fn a_worker_may_finish_within_its_grace() {
    // The leader ends at the signal, its child takes a while: both have the grace time.
    let child =
        "trap 'sleep 0.3; echo finished; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let machine = Machine::new(&["sh", "-c", &format!("({child}) & wait")]);
    let id = machine.launch_ready("a").await;
    let leader = machine.leader();
    assert_eq!(machine.provider.terminate(id.clone(), LIMIT).await, Ok(()));
    assert_eq!(machine.provider.terminate(id.clone(), LIMIT).await, Ok(()));
    until_gone(&machine.provider, &id).await;
    assert!(machine.log(&id).ends_with("finished\n"), "{}", machine.log(&id));
    machine.until_all_gone(leader.pid).await;
}

/// A worker with a child in its group, one in a session of its own, and one without our environment.
const FAMILY: &str =
    "sleep 1000 & setsid sleep 1000 & env -i sleep 1000 & trap '' HUP; echo ready; wait";

#[tokio::test]
async fn the_whole_family_of_a_worker_is_terminated() {
    let machine = Machine::new(&["sh", "-c", FAMILY]);
    let id = machine.launch_ready("a").await;
    until("the family is complete", || async { machine.tagged().len() == 3 }).await;
    let group = machine.tagged()[0].group;
    assert_eq!(live(&machine.provider).await.len(), 1, "a descendant is not an instance");
    assert_eq!(machine.provider.terminate(id.clone(), LIMIT).await, Ok(()));
    until_gone(&machine.provider, &id).await;
    machine.until_all_gone(group).await;
}

#[tokio::test]
async fn what_a_dead_worker_leaves_behind_is_ended() {
    let mut machine = Machine::new(&["sh", "-c", FAMILY]);
    let id = machine.launch_ready("a").await;
    until("the family is complete", || async { machine.tagged().len() == 3 }).await;
    let first = machine.tagged().into_iter().min_by_key(|process| process.pid).expect("there");
    kill(first.pid, Signal::KILL);
    until_gone(&machine.provider, &id).await;
    machine.until_all_gone(first.pid).await;

    // The same when nobody watched: what is found without its leader is ended, not adopted.
    let id = machine.launch_ready("b").await;
    until("the family is complete", || async { machine.tagged().len() == 3 }).await;
    let first = machine.tagged().into_iter().min_by_key(|process| process.pid).expect("there");
    assert!(machine.tasks.stop(LIMIT).await);
    kill(first.pid, Signal::KILL);
    machine.restart(&[]).await;
    until_gone(&machine.provider, &id).await;
    machine.until_all_gone(first.pid).await;
}

#[tokio::test]
async fn what_cannot_be_started_is_rejected() {
    let folder = tempfile::tempdir().expect("a folder");
    let plain = folder.path().join("plain-file");
    fs::write(&plain, "not a program").expect("written");
    let plain = plain.to_str().expect("text");
    for (command, words) in [
        (&["/nowhere/worker", "--listen"][..], ["/nowhere/worker", "No such file"]),
        (&[plain], [plain, "Permission denied"]),
        (&[], ["local", "empty command"]),
    ] {
        let machine = Machine::new(command);
        let outcomes = machine.provider.launch(batch("any", &["a", "b"])).await;
        assert_eq!(outcomes.len(), 2);
        for outcome in outcomes {
            let Err(ProviderError::Rejected { reason }) = outcome.result else {
                panic!("{command:?}: {outcome:?}");
            };
            assert!(words.iter().all(|word| reason.contains(word)), "{reason}");
        }
        assert_eq!(machine.provider.list().await, Ok(vec![]));
    }
    let machine = Machine::new(&["sleep", "1000"]);
    let outcomes = machine.provider.launch(batch("unknown", &["a"])).await;
    assert!(matches!(outcomes[0].result, Err(ProviderError::Rejected { .. })), "{outcomes:?}");
}

#[tokio::test]
async fn a_launch_that_nobody_waits_for_is_carried_out_once() {
    let machine = Machine::new(&["sleep", "1000"]);
    let abandoned = machine.provider.launch(batch("any", &["a"]));
    assert!(futures_util::FutureExt::now_or_never(abandoned).is_none());
    granted(&machine.provider.launch(batch("any", &["a"])).await);
    assert_eq!(live(&machine.provider).await.len(), 1);
    assert_eq!(machine.tagged().len(), 1);
}

#[tokio::test]
async fn what_was_granted_can_be_found_by_anybody() {
    let machine = Machine::new(&["sleep", "1000"]);
    for count in 1..=40 {
        machine.launch(&format!("n-{count}")).await;
        assert_eq!(machine.tagged().len(), count);
    }
}

#[tokio::test]
async fn owners_do_not_see_each_others_workers() {
    let (mine, other) = (Machine::new(&["sleep", "1000"]), Machine::new(&["sleep", "1000"]));
    mine.launch("a").await;
    assert_eq!(other.provider.list().await, Ok(vec![]));
    assert_eq!(other.provider.terminate(id("a"), LIMIT).await, Err(ProviderError::NotFound));
    assert_eq!(mine.tagged().len(), 1);
}

#[tokio::test]
async fn capacity_can_change_while_workers_run() {
    let machine = Machine::new(&["sleep", "1000"]);
    granted(&machine.provider.launch(batch("three", &["a", "b", "c"])).await);
    machine.provider.set_capacity(BTreeMap::from([(instance_type("three"), Some(1))]));
    assert_eq!(live(&machine.provider).await.len(), 3);
    let refused = machine.provider.launch(batch("three", &["d"])).await.remove(0).result;
    let refusal = refused.expect_err("over capacity").to_string();
    assert!(refusal.contains("3 of 1 three"), "{refusal}");
    machine.provider.set_capacity(BTreeMap::from([(instance_type("three"), Some(4))]));
    granted(&machine.provider.launch(batch("three", &["d"])).await);
}

/// Whom [`a_manager_to_be_killed`] launches for; it is not a test without.
const OWNER_VARIABLE: &str = "FOREBAY_CONFORMANCE_OWNER";

/// The other process of [`workers_of_a_killed_manager_are_adopted`].
#[tokio::test]
#[ignore = "started by another test, which kills it"]
async fn a_manager_to_be_killed() {
    let Ok(owner) = std::env::var(OWNER_VARIABLE) else { return };
    let machine = Machine::owned_by(&owner, &["sleep", "1000"]);
    granted(&machine.provider.launch(batch("three", &["a", "b"])).await);
    writeln!(std::io::stdout(), "launched").expect("read by the test");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn workers_of_a_killed_manager_are_adopted() {
    let machine = Machine::new(&["sleep", "1000"]);
    let mut manager = Command::new(std::env::current_exe().expect("this test"))
        .args(["--ignored", "--exact", "--nocapture", "processes::a_manager_to_be_killed"])
        .env(OWNER_VARIABLE, &machine.config.owner)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let output = BufReader::new(manager.stdout.take().expect("piped"));
    let launched = output.lines().any(|line| line.expect("text").ends_with("launched"));
    manager.kill().expect("kill -9");
    manager.wait().expect("ended");
    assert!(launched);

    let list = live(&machine.provider).await;
    let ids: Vec<_> = list.iter().map(|instance| instance.id.as_str()).collect();
    assert_eq!(ids, ["a", "b"]);
    let addresses: Vec<_> = list.iter().filter_map(|instance| instance.address.clone()).collect();
    let again = machine.provider.launch(batch("three", &["a", "b", "c"])).await;
    assert_eq!(granted(&again)[..2], addresses);
    assert_eq!(machine.tagged().len(), 3);

    // An adopted worker is not our child, and yet its death is noticed and it can be ended.
    let tag = b"FOREBAY_INSTANCE=a";
    let victim = processes(|environ| environ.split(|byte| *byte == 0).any(|line| line == tag))
        .into_iter()
        .find(|process| machine.tagged().iter().any(|tagged| tagged.pid == process.pid))
        .expect("runs");
    kill(victim.pid, Signal::KILL);
    tokio::time::timeout(LIMIT, machine.nudge.notified()).await.expect("nudged");
    until_gone(&machine.provider, &id("a")).await;
    end_all(&machine.provider).await;
    assert!(machine.tagged().is_empty());
}
