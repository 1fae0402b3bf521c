//! Who belongs to a swarm, and who no more.

use std::time::Duration;

use serde_json::Value;

use super::examination::check;
use super::{Member, Plan, State, Swarm, find};
use crate::harness::{LIMIT, finish};
use crate::model::eventually;

/// Long enough for a node that may come in to do so.
const COMES_IN_WITHIN: Duration = Duration::from_secs(4);
/// How long members may take to find each other again when all of them have a new key.
const TOGETHER_WITHIN: Duration = Duration::from_secs(30);

async fn restart_all(swarm: &mut Swarm) {
    swarm.stop_all().await;
    for index in 0..swarm.len() {
        swarm.restart(index).await;
    }
}

#[tokio::test]
async fn a_kicked_peer_is_out_and_stays_out_when_everybody_has_restarted() {
    let mut swarm = Swarm::of(4).await;
    let told = swarm.member(0).done(&["kick", "node3"]).await;
    for name in ["node1", "node2"] {
        assert!(told.contains(name), "{name} was reached: {told}");
    }
    let kicked = swarm.id(3).to_owned();
    for index in 0..3 {
        swarm.wait_for_state(index, 3, &[State::Gone], LIMIT).await;
        swarm.stays_out(index, &kicked, COMES_IN_WITHIN / 3).await;
    }
    swarm.see_each_other(&[0, 1, 2]).await;
    let told = async || {
        let examined = swarm.member(3).run(&["doctor"]).await;
        examined.stdout.contains("removed") && examined.stdout.contains("bombus join")
    };
    eventually("the doctor of the one that was removed says so", told).await;
    for command in ["peers", "swarm"] {
        let finished = swarm.member(3).run(&[command]).await;
        let note = &finished.stderr;
        assert!(note.contains("removed") && note.contains("bombus join"), "{command} says so, too: {note}");
        let finished = swarm.member(0).run(&[command]).await;
        assert!(!finished.stderr.contains("removed"), "and of nobody else: {}", finished.stderr);
    }
    restart_all(&mut swarm).await;
    swarm.see_each_other(&[0, 1, 2]).await;
    for index in 0..3 {
        swarm.stays_out(index, &kicked, COMES_IN_WITHIN / 3).await;
    }
    let id = swarm.id(0).to_owned();
    swarm.stays_out(3, &id, COMES_IN_WITHIN / 3).await;
}

#[tokio::test]
async fn a_kicked_peer_does_not_come_back_with_the_ticket_that_it_has() {
    let mut swarm = Swarm::of(3).await;
    let old = swarm.member(0).invite().await;
    swarm.member(0).done(&["kick", "node2"]).await;
    let kicked = swarm.id(2).to_owned();
    swarm.wait_for_state(0, 2, &[State::Gone], LIMIT).await;
    swarm.stop(2).await;
    // The join itself may be refused or not: what counts is that nobody lets it in.
    swarm.member(2).run(&["join", "--switch", &old]).await;
    swarm.restart(2).await;
    swarm.stays_out(0, &kicked, COMES_IN_WITHIN).await;
    // Nor with a new one: it is the peer that was removed, not only its key.
    let new = swarm.member(0).invite().await;
    swarm.member(2).run(&["join", "--switch", &new]).await;
    swarm.stays_out(0, &kicked, COMES_IN_WITHIN).await;
}

#[tokio::test]
async fn a_member_that_missed_a_kick_is_named_and_joins_again() {
    let mut swarm = Swarm::of(4).await;
    swarm.stop(2).await;
    swarm.wait_for_state(0, 2, &[State::Gone], LIMIT).await;
    let finished = swarm.member(0).run(&["kick", "node3"]).await;
    let told = format!("{}{}", finished.stdout, finished.stderr);
    assert!(told.contains("node2") && told.contains("join"), "who was missed, and what to do: {told}");
    swarm.restart(2).await;
    let missed = swarm.id(2).to_owned();
    swarm.stays_out(0, &missed, COMES_IN_WITHIN).await;
    let examined = swarm.member(2).run(&["doctor"]).await;
    assert!(examined.stdout.contains("bombus join"), "its doctor says what to do: {}", examined.stdout);
    let ticket = swarm.member(0).invite().await;
    swarm.member(2).join(&ticket).await;
    swarm.see_each_other(&[0, 1, 2]).await;
}

/// Reads a file of the swarm that a node belongs to.
fn file_of_swarm(member: &Member, name: &str) -> String {
    let swarms = member.home().data_dir().join("swarms");
    let id = std::fs::read_to_string(swarms.join("current")).unwrap();
    std::fs::read_to_string(swarms.join(id.trim()).join(name)).unwrap_or_default()
}

#[tokio::test]
async fn a_new_key_reaches_all_members_and_they_stay_together() {
    let swarm = Swarm::of(3).await;
    let key = || file_of_swarm(swarm.member(1), "swarm.key");
    let before = key();
    swarm.member(0).done(&["rekey"]).await;
    eventually("the new key on another node", async || key() != before).await;
    swarm.all_see_each_other().await;
}

/// Waits until a node has on disk what these others are called.
async fn knows_by_name(member: &Member, names: &[&str]) {
    let known = async || {
        // What is known is written before the examination tells of it.
        member.get("/mesh/report").await;
        let known = file_of_swarm(member, "peers.json");
        names.iter().all(|name| known.contains(name))
    };
    eventually("the names of the others on disk", known).await;
}

/// What the examination says of members that lack the swarm's key.
async fn lacking(member: &Member) -> Option<Value> {
    let (exit, found) = check(member, &[], "members").await;
    let found = found?;
    assert_eq!((exit, &found["verdict"]), (0, &Value::from("warn")), "{found}");
    Some(found["found"].clone())
}

#[tokio::test]
async fn a_kicked_machine_does_not_get_the_new_key_under_another_name() {
    let mut swarm = Swarm::of(4).await;
    swarm.all_connected().await;
    let (kicked, seed) = (swarm.id(2).to_owned(), swarm.member(0).address());
    let before = file_of_swarm(swarm.member(2), "swarm.key");
    // Its silence keeps the hand-over open, and with it the door for the old key.
    swarm.pause(3);
    let kick = tokio::spawn(finish(swarm.member(0).command(&["kick", "node2"])));
    for index in [0, 1] {
        let has_it = async || file_of_swarm(swarm.member(index), "membership.json").contains(&kicked);
        eventually("the change on another node", has_it).await;
    }
    swarm.kill(2).await;
    std::fs::remove_file(swarm.member(2).home().data_dir().join("identity.key")).unwrap();
    swarm.member_mut(2).add_argument("--seed");
    swarm.member_mut(2).add_argument(&seed);
    swarm.restart(2).await;
    let other = swarm.id(2).to_owned();
    assert_ne!(other, kicked, "it is another node by now");
    let kicked = kick.await.unwrap();
    assert!(kicked.stdout.contains("node1"), "{}{}", kicked.stdout, kicked.stderr);
    swarm.see_each_other(&[0, 1]).await;
    for index in [0, 1] {
        swarm.wait_for_state(index, 2, &[State::Gone], LIMIT).await;
        swarm.stays_out(index, &other, COMES_IN_WITHIN / 2).await;
    }
    assert_eq!(file_of_swarm(swarm.member(2), "swarm.key"), before, "nobody gave it the new key");
    assert_ne!(file_of_swarm(swarm.member(0), "swarm.key"), before);
}

#[tokio::test]
async fn members_find_each_other_soon_after_a_new_key_that_one_of_them_does_not_take() {
    let swarm = Swarm::of(4).await;
    swarm.all_connected().await;
    swarm.pause(3);
    let finished = swarm.member(0).run(&["rekey"]).await;
    let told = format!("{}{}", finished.stdout, finished.stderr);
    assert!(told.contains("node3") && told.contains("join"), "who was missed, and what to do: {told}");
    let report = async |index: usize| swarm.member(index).get("/mesh/report").await;
    for index in 0..3 {
        eventually("the new key in use", async || report(index).await["net"]["generation"] == 1).await;
    }
    for index in 0..3 {
        let others: Vec<_> = (0..3).filter(|other| *other != index).map(|other| swarm.id(other)).collect();
        let is_back = |peers: &[Value], id: &str| {
            find(peers, id).is_some_and(|peer| peer["path"].is_string() && peer["state"] == "alive")
        };
        let all_back = |peers: &[Value]| others.iter().all(|id| is_back(peers, id));
        swarm.wait_until(index, "it has all others back that have the key", TOGETHER_WITHIN, all_back).await;
        let troubles = report(index).await["troubles"].clone();
        assert!(!troubles.to_string().contains("missed_rekey"), "it has missed nothing: {troubles}");
    }
}

#[tokio::test]
async fn a_kick_made_while_the_node_is_off_is_told_at_its_start_also_after_a_crash_and_names_who_missed_it() {
    let mut swarm = Swarm::of(4).await;
    knows_by_name(swarm.member(0), &["node1", "node2", "node3"]).await;
    let kicked = swarm.id(3).to_owned();
    for index in [2, 0] {
        swarm.stop(index).await;
    }
    let told = swarm.member(0).done(&["kick", "node3"]).await;
    let waiting = told.lines().find(|line| line.starts_with("to be told")).unwrap_or_else(|| panic!("{told}"));
    assert!(waiting.contains("node1") && waiting.contains("node2") && !waiting.contains("node3"), "{told}");
    let examined = lacking(swarm.member(0)).await.expect("it is still to be told");
    assert!(examined.to_string().contains("do not know it yet"), "{examined}");

    swarm.restart(0).await;
    let has_it = async || file_of_swarm(swarm.member(1), "membership.json").contains(&kicked);
    eventually("the change on another node", has_it).await;
    // It waits for node 2 still, and comes to no end.
    swarm.kill(0).await;
    swarm.restart(0).await;
    let log = async || swarm.member(0).log();
    let warned = |line: &str| line.contains("WARN") && line.contains("new key") && line.contains("node2");
    eventually("who was missed is named", async || log().await.lines().any(warned)).await;
    assert!(!log().await.lines().any(|line| line.contains("new key") && line.contains("node3")), "who is out is not");
    swarm.see_each_other(&[0, 1]).await;
    let only_node2 = async || {
        let found = lacking(swarm.member(0)).await.expect("node 2 has not come back").to_string();
        found.contains("node2") && !found.contains("node1") && !found.contains("node3")
    };
    eventually("only who has not come back is named", only_node2).await;
    for index in [0, 1] {
        swarm.stays_out(index, &kicked, COMES_IN_WITHIN / 3).await;
    }

    swarm.stop(0).await;
    let examined = lacking(swarm.member(0)).await.expect("that outlasts the node").to_string();
    assert!(examined.contains("node2"), "{examined}");
    swarm.restart(0).await;
    let ticket = swarm.member(0).invite().await;
    swarm.member(2).join(&ticket).await;
    swarm.restart(2).await;
    swarm.see_each_other(&[0, 1, 2]).await;
    eventually("nobody is missed any more", async || lacking(swarm.member(0)).await.is_none()).await;
}

#[tokio::test]
async fn a_new_key_made_while_the_node_is_off_reaches_the_members_at_its_start() {
    let mut swarm = Swarm::of(3).await;
    let before = file_of_swarm(swarm.member(1), "swarm.key");
    swarm.stop(0).await;
    let told = swarm.member(0).done(&["rekey"]).await;
    assert!(told.contains("changed (number 1)") && told.contains("bombus up"), "{told}");
    swarm.restart(0).await;
    for index in [1, 2] {
        let key = async || file_of_swarm(swarm.member(index), "swarm.key") != before;
        eventually("the new key on another node", key).await;
    }
    swarm.all_see_each_other().await;
    eventually("nobody was missed", async || lacking(swarm.member(0)).await.is_none()).await;
}

#[tokio::test]
async fn a_node_that_leaves_while_it_is_off_is_alone_at_its_start() {
    let mut swarm = Swarm::of(3).await;
    let left = swarm.id(2).to_owned();
    swarm.stop(2).await;
    let told = swarm.member(2).done(&["leave"]).await;
    assert!(told.contains("left the swarm"), "{told}");
    swarm.restart(2).await;
    assert_eq!(swarm.id(2), left, "it is the same node");
    swarm.stays_out(0, &left, COMES_IN_WITHIN).await;
    assert_eq!(swarm.peers(2).await, [] as [Value; 0], "it knows nobody in its own swarm");
    let ticket = swarm.member(0).invite().await;
    swarm.member(2).join(&ticket).await;
    swarm.all_see_each_other().await;
}

#[tokio::test]
async fn an_old_ticket_opens_nothing_after_a_new_key() {
    let swarm = Swarm::of(2).await;
    let old = swarm.member(0).invite().await;
    swarm.member(0).done(&["rekey"]).await;
    swarm.all_see_each_other().await;
    let mut late = Plan::of(1).beside().prepared().await;
    late.member(0).join(&old).await;
    late.member_mut(0).start().await;
    let id = late.id(0).to_owned();
    swarm.stays_out(0, &id, COMES_IN_WITHIN).await;
}

#[tokio::test]
async fn only_who_has_the_owner_key_kicks_and_it_can_be_moved() {
    let swarm = Swarm::of(3).await;
    let refused = swarm.member(1).run(&["kick", "node2"]).await;
    assert_ne!(refused.code, Some(0));
    assert!(refused.stderr.contains("owner"), "{}", refused.stderr);
    swarm.all_see_each_other().await;
    let key = swarm.member(0).done(&["owner", "export"]).await.trim().to_owned();
    assert!(!key.contains(char::is_whitespace), "one line");
    let imported = swarm.member(1).home().run_with_stdin(&["owner", "import", "-"], &format!("{key}\n")).await;
    assert_eq!(imported.code, Some(0), "{}", imported.stderr);
    swarm.member(1).done(&["kick", "node2"]).await;
    swarm.wait_for_state(0, 2, &[State::Gone], LIMIT).await;
    assert!(!swarm.member(1).log().contains(&key), "keys are never logged");
}

#[tokio::test]
async fn a_node_that_leaves_is_alone_and_the_others_see_it_go() {
    let swarm = Swarm::of(3).await;
    let left = swarm.id(2).to_owned();
    swarm.all_connected().await;
    let mut events = [swarm.member(0).events("").await, swarm.member(1).events("").await];
    swarm.member(2).done(&["leave"]).await;
    for (index, events) in events.iter_mut().enumerate() {
        let event = events.wait_for("peer:left", &left).await;
        assert_eq!(event.data["data"]["reason"], "it said goodbye", "nobody has to find out by its silence: {event:?}");
        swarm.wait_for_state(index, 2, &[State::Gone], LIMIT).await;
    }
    swarm.wait_until(2, "it is alone", LIMIT, |peers| peers.iter().all(|peer| peer["state"] == "gone")).await;
    swarm.stays_out(0, &left, COMES_IN_WITHIN).await;
    // Its goodbye was not for ever.
    let ticket = swarm.member(0).invite().await;
    swarm.member(2).join(&ticket).await;
    swarm.all_see_each_other().await;
}

#[tokio::test]
async fn a_node_with_another_swarm_wants_to_be_told_to_switch_and_keeps_the_old_folder() {
    let one = Swarm::of(2).await;
    let other = Plan::of(2).beside().start().await;
    other.all_see_each_other().await;
    let ticket = other.member(0).invite().await;
    let refused = one.member(1).run(&["join", &ticket]).await;
    assert_ne!(refused.code, Some(0));
    assert!(refused.stderr.contains("--switch"), "{}", refused.stderr);
    one.all_see_each_other().await;

    let swarms = one.member(1).home().data_dir().join("swarms");
    let before = std::fs::read_to_string(swarms.join("current")).unwrap().trim().to_owned();
    one.member(1).done(&["join", "--switch", &ticket]).await;
    let moved = one.id(1).to_owned();
    let sees_it = |peers: &[Value]| super::state_of(peers, &moved) == State::Alive;
    other.wait_until(0, "the one that switched", LIMIT, sees_it).await;
    one.wait_for_state(0, 1, &[State::Gone], LIMIT).await;
    assert!(swarms.join(before).join("swarm.key").is_file(), "the old swarm's folder stays");
}

#[tokio::test]
async fn a_damaged_ticket_is_refused_with_what_to_do() {
    let swarm = Swarm::of(2).await;
    let ticket = swarm.member(0).invite().await;
    let outsider = Plan::of(1).beside().prepared().await;
    let mut damaged = ticket.clone().into_bytes();
    let middle = damaged.len() / 2;
    damaged[middle] = if damaged[middle] == b'a' { b'b' } else { b'a' };
    let cut = ticket[..ticket.len() - 6].to_owned();
    for bad in [String::from_utf8(damaged).unwrap(), cut, "bombus1".to_owned(), "hello".to_owned()] {
        let refused = outsider.member(0).run(&["join", &bad]).await;
        assert_ne!(refused.code, Some(0));
        assert!(refused.stderr.contains("ticket"), "{}", refused.stderr);
        assert!(bad.len() < 20 || !refused.stderr.contains(&bad), "a ticket is a secret: {}", refused.stderr);
    }
}
