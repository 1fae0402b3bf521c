//! Nodes behind routers that translate addresses and let nothing in. A third node, which everyone reaches, is all that they are told.

use std::io::Write;
use std::time::Duration;

use serde_json::Value;

use super::{Plan, Swarm, find};
use crate::faults::rounds;
use crate::harness::LIMIT;
use crate::lab::{Mapping, Nat};

/// How long two nodes may take from their first, relayed connection to a direct one, before a try counts as failed.
const PUNCHED_WITHIN: Duration = Duration::from_secs(30);

/// Node 0 is public, nodes 1 and 2 are at home.
async fn at_home(nat: &Nat) -> Swarm {
    let machines = [nat.public().clone(), nat.home(0).clone(), nat.home(1).clone()];
    Plan::of(3).by_seed().at(&machines).undisturbed().start().await
}

fn is_reached(peers: &[Value], id: &str, path: &str) -> bool {
    find(peers, id).is_some_and(|peer| peer["state"] == "alive" && peer["path"] == path)
}

#[tokio::test]
async fn a_fault_of_both_routers_leaves_the_relay() {
    // Nobody can guess which port these routers take next.
    let Some(nat) = Nat::new(Mapping::Random).await else { return };
    let swarm = at_home(&nat).await;
    for (index, peer) in [(1, 2), (2, 1)] {
        let id = swarm.id(peer).to_owned();
        swarm
            .wait_until(index, "the other home through the relay", LIMIT, |peers| is_reached(peers, &id, "relayed"))
            .await;
        let public = swarm.id(0).to_owned();
        swarm.wait_until(index, "the public node directly", LIMIT, |peers| is_reached(peers, &public, "direct")).await;
        let told = swarm.member(index).done(&["ping", &id]).await;
        assert!(told.contains("relayed") && told.contains("ms"), "{told}");
    }
}

#[tokio::test]
async fn homes_reach_each_other_whether_or_not_a_hole_is_punched_by_fault_rounds() {
    let tries = rounds().max(2);
    let Some(nat) = Nat::new(Mapping::Kept).await else { return };
    let mut swarm = at_home(&nat).await;
    let mut punched = 0;
    for number in 0..tries {
        if number > 0 {
            swarm.stop(2).await;
            // TCP keeps the two ports of a connection that has ended from meeting again for a minute.
            swarm.member_mut(2).listen_at(7_891 + u16::try_from(number).unwrap());
            swarm.restart(2).await;
        }
        swarm.see_each_other(&[1, 2]).await;
        let direct = async |index: usize, peer: usize| {
            let id = swarm.id(peer).to_owned();
            let looked = async {
                let mut every = tokio::time::interval(Duration::from_millis(100));
                while !is_reached(&swarm.peers(index).await, &id, "direct") {
                    every.tick().await;
                }
            };
            tokio::time::timeout(PUNCHED_WITHIN, looked).await.is_ok()
        };
        let (one, other) = tokio::join!(direct(1, 2), direct(2, 1));
        punched += usize::from(one && other);
        let told = swarm.member(1).done(&["ping", swarm.id(2)]).await;
        assert!(told.contains(" ms"), "a try that failed leaves the relay: {told}");
    }
    // Not `eprintln!`, which nobody sees of a test that passes.
    let _ = writeln!(std::io::stderr(), "hole punching: {punched} of {tries} tries led to a direct connection");
    // With routers like these nothing stands in the way; a busy machine may miss the moment once in a while.
    assert!(punched * 4 >= tries * 3, "{punched} of {tries} tries led to a direct connection");
}
