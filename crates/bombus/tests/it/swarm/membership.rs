//! Who belongs to a swarm, and who no more.

use std::time::Duration;

use super::{Plan, State, Swarm};
use crate::harness::LIMIT;
use crate::model::eventually;

/// Long enough for a node that may come in to do so.
const COMES_IN_WITHIN: Duration = Duration::from_secs(4);

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

#[tokio::test]
async fn a_new_key_reaches_all_members_and_they_stay_together() {
    let swarm = Swarm::of(3).await;
    let key = || {
        let swarms = swarm.member(1).home().data_dir().join("swarms");
        let id = std::fs::read_to_string(swarms.join("current")).unwrap();
        std::fs::read_to_string(swarms.join(id.trim()).join("swarm.key")).unwrap()
    };
    let before = key();
    swarm.member(0).done(&["rekey"]).await;
    eventually("the new key on another node", async || key() != before).await;
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
    let sees_it = |peers: &[serde_json::Value]| super::state_of(peers, &moved) == State::Alive;
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
