//! What `bombus doctor` finds: each of its verdicts on the mesh, provoked.

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpSocket;
use tokio::process::Command;

use super::attacks::socket_address;
use super::crowd::{dreaming, faketime};
use super::raw_peer::{RawPeer, half_a_member, timestamp};
use super::{Member, Plan, State, Swarm};
use crate::harness::{LIMIT, free_address, within};
use crate::lab::{Lan, Mapping, Nat, is_program, skip};
use crate::model::eventually;

/// Stands before the C library of a node and lets it have no socket that tells of the machine's interfaces.
const NO_INTERFACES: &str = "\
#define _GNU_SOURCE
#include <errno.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int socket(int domain, int type, int protocol) {
  if (domain != AF_NETLINK)
    return syscall(SYS_socket, domain, type, protocol);
  errno = EAFNOSUPPORT;
  return -1;
}
";

/// Runs `bombus doctor` for an address or a ticket and returns its exit code and the codes of what it found. What is wrong has a remedy.
async fn look(member: &Member, target: &str) -> (i32, Vec<String>) {
    let finished = member.run(&["doctor", "--json", target]).await;
    let report: Value =
        serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{target}: {}", finished.stderr));
    let mut codes = Vec::new();
    for check in report["checks"].as_array().unwrap() {
        assert_eq!(
            check["remedy"].is_string(),
            check["verdict"] != "ok",
            "every finding comes with what to do: {check}"
        );
        codes.extend(check["code"].as_str().map(str::to_owned));
    }
    let code = finished.code.unwrap();
    assert_eq!(report["ok"], code == 0, "{report}");
    (code, codes)
}

async fn finds(member: &Member, target: &str, exit: i32, code: &str) {
    let (found_exit, codes) = look(member, target).await;
    assert!(codes.iter().any(|found| found == code), "{target}: {codes:?} lacks {code}");
    assert_eq!(found_exit, exit, "{target}: {codes:?}");
}

/// A multiaddr of a socket's address.
fn multiaddr(address: &str) -> String {
    let (ip, port) = address.split_once(':').unwrap();
    format!("/ip4/{ip}/tcp/{port}")
}

/// Waits until a node's own examination has a check with a word in what it found.
async fn complains(member: &Member, word: &str) {
    let told = async || {
        let finished = member.run(&["doctor", "--json"]).await;
        let report: Value = serde_json::from_str(&finished.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap();
        let bad = |check: &&Value| check["verdict"] != "ok" && check["remedy"].is_string();
        checks.iter().filter(bad).any(|check| check.to_string().contains(word))
    };
    eventually(&format!("the examination speaks of {word}"), told).await;
}

/// Runs `bombus doctor` and returns its exit code and the check of a name, where there is one.
pub(super) async fn check(member: &Member, arguments: &[&str], name: &str) -> (i32, Option<Value>) {
    let finished = member.run(&[&["doctor", "--json"], arguments].concat()).await;
    let report: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{}", finished.stderr));
    let mut checks = report["checks"].as_array().unwrap().iter();
    (finished.code.unwrap(), checks.find(|check| check["name"] == name).cloned())
}

/// Waits until a node's own examination warns of something in these words, with this to do about it and no failure.
async fn warns(member: &Member, name: &str, found: &str, remedy: &str) {
    let has = |seen: &Value, field: &str, words: &str| seen[field].as_str().is_some_and(|text| text.contains(words));
    let told = async || {
        let (exit, seen) = check(member, &[], name).await;
        let is_it =
            |seen: Value| seen["verdict"] == "warn" && has(&seen, "found", found) && has(&seen, "remedy", remedy);
        exit == 0 && seen.is_some_and(is_it)
    };
    eventually(&format!("the examination warns of {name}: {found}"), told).await;
}

#[tokio::test]
async fn a_member_is_told_from_what_else_listens_somewhere() {
    let swarm = Swarm::of(2).await;
    let node = swarm.member(0);
    let address = swarm.member(1).address();
    finds(node, &address, 0, "fine").await;
    finds(node, &socket_address(&address), 0, "fine").await;
    finds(node, &swarm.member(1).invite().await, 0, "fine").await;

    finds(node, &free_address(), 10, "nothing_listens").await;
    let api = node.get("/health").await;
    assert_eq!(api["status"], "ok");
    let port = swarm.member(1).api_address();
    finds(node, &port, 18, "not_a_node").await;
    let place = multiaddr(&socket_address(&address));
    finds(node, &format!("{place}/p2p/{}", swarm.id(0)), 17, "another_node").await;
    finds(node, &swarm.member(0).address(), 12, "itself").await;
    let (exit, codes) = look(node, "/ip4/192.0.2.7/udp/5").await;
    assert!(exit != 0 && codes == ["invalid_address"], "{exit} {codes:?}");
}

#[tokio::test]
async fn a_member_that_breaks_off_in_the_handshake_is_told_from_strangers() {
    let swarm = Plan::of(1).start().await;
    let address = half_a_member(swarm.member(0)).await;
    finds(swarm.member(0), &address, 1, "handshake").await;
}

#[tokio::test]
async fn another_swarm_and_an_open_one_are_told_apart() {
    let swarm = Plan::of(1).start().await;
    let other = Plan::of(1).beside().start().await;
    let open = Plan::of(1).open().beside().start().await;
    finds(swarm.member(0), &other.member(0).address(), 11, "wrong_key").await;
    finds(swarm.member(0), &open.member(0).address(), 11, "no_swarm_key").await;
}

#[tokio::test]
async fn a_copied_identity_is_found_before_the_copy_starts_and_after() {
    let mut swarm = Swarm::of(3).await;
    swarm.stop(2).await;
    let data = |index: usize| swarm.member(index).home().data_dir().join("identity.key");
    std::fs::copy(data(1), data(2)).unwrap();
    let address = swarm.member(1).address();
    finds(swarm.member(2), &address, 12, "same_identity").await;
    swarm.restart(2).await;
    // Which of the two meets the other first is chance.
    let is_told = async |index: usize| {
        let report = swarm.member(index).get("/mesh/report").await;
        report["troubles"].to_string().contains("same_identity")
    };
    eventually("one of the two is told", async || is_told(1).await || is_told(2).await).await;
    let told = if is_told(1).await { 1 } else { 2 };
    complains(swarm.member(told), "identity").await;
}

#[tokio::test]
async fn a_ticket_older_than_the_key_and_a_member_left_behind_are_told_so() {
    let mut swarm = Swarm::of(3).await;
    let old = swarm.member(0).invite().await;
    swarm.stop(2).await;
    swarm.wait_for_state(0, 2, &[State::Gone], LIMIT).await;
    swarm.member(0).done(&["rekey"]).await;
    finds(swarm.member(0), &old, 16, "old_ticket").await;
    let stranger = Plan::of(1).beside().prepared().await;
    finds(stranger.member(0), &old, 11, "wrong_key").await;
    // Who was not there when the key changed knows the address as that of a member.
    finds(swarm.member(2), &swarm.member(0).address(), 16, "removed_or_missed_rekey").await;
    let new = swarm.member(0).invite().await;
    let (exit, found) = check(swarm.member(2), &[new.as_str()], "ticket").await;
    let found = found.expect("a ticket is looked at");
    assert!(found["found"].as_str().unwrap().contains("a newer key than this node has: bombus join"), "{found}");
    assert_eq!((exit, &found["verdict"]), (0, &json!("ok")), "{found}");
}

#[tokio::test]
async fn a_firewall_is_told_from_a_machine_that_is_off() {
    let Some(lan) = Lan::of(4).await else { return };
    lan.machine(2)
        .rules("table inet wall {\n  chain incoming { type filter hook input priority 0; tcp dport 7891 drop; }\n}\n")
        .await;
    let walled = format!("{}:7891", Lan::address(2));
    let mut swarm = Plan::of(2).on(lan).prepared().await;
    // Alone it cannot know whether anything works at all.
    finds(swarm.member(0), &walled, 14, "no_answer").await;
    swarm.start_all().await;
    swarm.all_see_each_other().await;
    finds(swarm.member(0), &walled, 14, "firewall").await;
    finds(swarm.member(0), &format!("{}:7891", Lan::address(3)), 10, "nothing_listens").await;
}

#[tokio::test]
async fn a_machine_without_ipv6_and_one_without_a_way_are_told_so() {
    let Some(lan) = Lan::of(1).await else { return };
    let machine = lan.machine(0);
    machine
        .shell("for all in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 > $all; done; ip route del default")
        .await;
    let swarm = Plan::of(1).on(lan).prepared().await;
    finds(swarm.member(0), "[fd00::7]:7891", 15, "only_ipv6").await;
    let (exit, codes) = look(swarm.member(0), "198.51.100.7:7891").await;
    assert!(exit != 0 && codes == ["unreachable"], "{exit} {codes:?}");
    let (exit, codes) = look(swarm.member(0), "nobody.invalid:7891").await;
    assert!(exit != 0 && codes == ["unknown_name"], "{exit} {codes:?}");
}

#[tokio::test]
async fn blocked_multicast_is_told_where_others_are_reached_all_the_same() {
    let Some(lan) = Lan::of(2).await else { return };
    lan.block_multicast().await;
    let swarm = Plan::of(2).by_seed().multicast_too().on(lan).start().await;
    swarm.all_see_each_other().await;
    // The swarm is whole all the same, so nothing has failed.
    warns(swarm.member(0), "multicast", "multicast is blocked", "bombus up --seed").await;
    let address = swarm.member(1).address();
    let (exit, found) = check(swarm.member(0), &[address.as_str()], "multicast").await;
    let found = found.expect("it is told for an address on the same network, too");
    assert_eq!((exit, &found["verdict"], &found["code"]), (0, &json!("warn"), &json!("mdns_blocked")), "{found}");
}

#[tokio::test]
async fn a_running_node_whose_port_another_process_took_is_told_so() {
    let swarm = Plan::of(1).start().await;
    let node = swarm.member(0);
    assert_eq!(check(node, &[], "port for nodes").await.1.unwrap()["verdict"], "ok");
    // Sockets of one user share a port where all of them say so, as those of the node do.
    let taken = TcpSocket::new_v4().unwrap();
    taken.set_reuseport(true).unwrap();
    taken.bind(socket_address(&node.address()).parse().unwrap()).unwrap();
    let taken = taken.listen(1).unwrap();
    // The node builds its mesh anew, and finds the port taken.
    node.done(&["rekey"]).await;
    let is = async |verdict: &str, word: &str| {
        let (exit, found) = check(node, &[], "port for nodes").await;
        let found = found.expect("the port is looked at");
        let fails = verdict == "fail";
        found["verdict"] == verdict && found.to_string().contains(word) && (exit != 0) == fails
    };
    eventually("the port is told to be taken", async || is("fail", "another process listens there").await).await;
    drop(taken);
    eventually("the node listens again", async || is("ok", "listens at").await).await;
}

#[tokio::test]
async fn a_clock_that_is_off_is_told_on_both_sides() {
    let Some(library) = faketime() else {
        return skip("libfaketime is missing (Debian: faketime); `make setup` installs it");
    };
    let mut swarm = Plan::of(3).prepared().await;
    dreaming(swarm.member_mut(2), &library);
    swarm.start_all().await;
    swarm.all_see_each_other().await;
    complains(swarm.member(2), "clock").await;
    let address = swarm.member(2).address();
    eventually("the others know", async || look(swarm.member(0), &address).await.1.iter().any(|code| code == "clock"))
        .await;
    finds(swarm.member(0), &address, 13, "clock").await;
}

#[tokio::test]
async fn a_member_that_can_be_reached_and_is_not_connected_is_told_so() {
    let mut swarm = Plan::of(2).apart().start().await;
    let address = swarm.member(1).address();
    let (exit, found) = check(swarm.member(0), &[address.as_str()], "connection").await;
    let found = found.expect("the nodes have not met");
    assert_eq!((exit, &found["verdict"]), (0, &json!("warn")), "{found}");
    assert!(found["remedy"].as_str().unwrap().contains("bombus up --seed"), "{found}");
    swarm.stop(0).await;
    for argument in ["--seed", address.as_str()] {
        swarm.member_mut(0).add_argument(argument);
    }
    swarm.restart(0).await;
    swarm.all_connected().await;
    assert_eq!(check(swarm.member(0), &[address.as_str()], "connection").await, (0, None), "that helps");
}

#[tokio::test]
async fn strangers_that_were_refused_are_counted() {
    let swarm = Plan::of(1).start().await;
    let node = swarm.member(0);
    assert_eq!(check(node, &[], "strangers").await, (0, None));
    let stranger = RawPeer::stranger(Some([7; 32]));
    assert!(stranger.dial(&node.address()).await.is_err());
    let counted = async || check(node, &[], "strangers").await.1.is_some_and(|check| check["verdict"] == "ok");
    eventually("a stranger is counted", counted).await;
}

#[tokio::test]
async fn who_sends_what_is_ignored_is_named() {
    let swarm = Plan::of(1).start().await;
    let node = swarm.member(0);
    let peer = RawPeer::member(node).await;
    assert_eq!(check(node, &[], "messages").await, (0, None));
    let later = json!({ "type": "weather", "sky": "blue", "timestamp": timestamp(time::Duration::ZERO) });
    peer.publish("presence_ping", &later).await;
    warns(node, "messages", "newer than this program (1 of ", "the newer version").await;
    let message = peer.message("task_claim", "once");
    for _ in 0..2 {
        peer.publish("task_claim", &message).await;
    }
    warns(node, "messages", "seen before (1 of ", "bombus kick NAME").await;
    // More than a minute of them at once.
    for number in 0..40 {
        peer.publish("presence_ping", &peer.message("presence_ping", &format!("here, {number}"))).await;
    }
    warns(node, "messages", "sent too often (", "look at what runs on these nodes").await;
}

#[tokio::test]
async fn a_node_behind_a_router_for_which_nobody_relays_is_told_so() {
    let Some(nat) = Nat::new(Mapping::Kept).await else { return };
    let machines = [nat.public().clone(), nat.home(0).clone()];
    let mut swarm = Plan::of(2).by_seed().at(&machines).prepared().await;
    swarm.member_mut(0).set_variable("BOMBUS_P2P__RELAY", "false");
    swarm.start_all().await;
    swarm.all_see_each_other().await;
    warns(swarm.member(1), "relays", "no member relays for this node", "relay = true").await;
}

#[tokio::test]
async fn multicast_that_cannot_run_is_told() {
    if !is_program("cc") {
        return skip("`cc` is missing (Debian: gcc); `make setup` installs it");
    }
    let folder = TempDir::new().unwrap();
    let (source, library) = (folder.path().join("interfaces.c"), folder.path().join("interfaces.so"));
    std::fs::write(&source, NO_INTERFACES).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
    let compiled = within("cc", compiler.output()).await.unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));

    let mut swarm = Plan::of(1).multicast_too().prepared().await;
    swarm.member_mut(0).set_variable("LD_PRELOAD", library.to_str().unwrap());
    swarm.start_all().await;
    for name in ["mDNS over IPv4", "mDNS over IPv6"] {
        warns(swarm.member(0), name, "it does not run: ", "bombus up --seed").await;
    }
}
