//! What was tried to find other nodes, in the words of the API.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use bombus_http::mesh::{Listening, ListeningState, Membership, MeshReport, Rung, Trouble, Unreached};
use bombus_net::membership::{KnownPeer, MembershipHandle};
use bombus_net::{DialFailure, DialReport, MdnsReport, NetHandle, NetPeer, NetReport, Path, Reachability, RelayReport};
use bombus_swarm::{PeerView, SwarmHandle};
use if_addrs::IfAddr;

/// Most failures that are told.
const FAILURES_MAX: usize = 16;

/// Puts together what the parts know.
pub(super) fn of(
    membership: Membership,
    net: &NetHandle,
    members: &MembershipHandle,
    swarm: &SwarmHandle,
) -> MeshReport {
    let (report, swarm_report, peers) = (net.report(), swarm.report(), net.peers());
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let worked: Vec<String> = members
        .known_addresses()
        .into_iter()
        .filter(|known| known.last_ok_s.is_some())
        .map(|known| known.addr)
        .collect();
    let mut troubles = Vec::new();
    let same = swarm_report.same_identity.clone().or_else(|| same_identity(&report));
    troubles.extend(same.map(|text| trouble("same_identity", text)));
    troubles.extend(missed_rekey(&report, &worked, &peers).map(|text| trouble("missed_rekey", text)));
    troubles.extend(missed_members(&members.known_peers()).map(|text| trouble("missed_members", text)));
    let near = Near::count(&peers, &own_links());
    troubles.extend(mdns_blocked(&report.mdns, near).map(|text| trouble("mdns_blocked", text)));
    troubles.extend(clocks(&swarm.peers()).map(|text| trouble("clock", text)));
    MeshReport {
        node_id: net.node_id().to_string(),
        membership,
        connected: report.connected,
        rungs: rungs(&report, near),
        failures: failures(&report.failures, now_ms),
        strangers_refused: report.refused_strangers + report.refused_removed,
        lowest_score: peers.iter().map(|peer| peer.score).min_by(f64::total_cmp),
        troubles,
        net: serde_json::to_value(&report).unwrap_or_default(),
        swarm: serde_json::to_value(&swarm_report).unwrap_or_default(),
    }
}

/// Tells where the node listens for others, and where it cannot.
pub(super) fn listening(report: &NetReport) -> Listening {
    let problem = joined(report.listen_failures.iter().map(|(address, why)| format!("{address}: {why}")));
    let state = if problem.is_some() { ListeningState::Error } else { ListeningState::Ok };
    Listening { state, listen: report.listen.clone(), problem }
}

fn trouble(code: &str, text: String) -> Trouble {
    Trouble { code: code.to_owned(), text }
}

/// Lists the ways to find nodes, most direct first.
fn rungs(report: &NetReport, near: Near) -> Vec<Rung> {
    let plain = |name: &str, tried: u64, seen: usize| Rung {
        name: name.to_owned(),
        enabled: true,
        tried,
        seen: seen as u64,
        problem: None,
        detail: None,
    };
    let [v4, v6] = Family::of(&report.mdns, near).map(|family| family.rung(&report.mdns));
    vec![
        Rung { problem: listening(report).problem, ..plain("listen", report.listen_on as u64, report.listen.len()) },
        v4,
        v6,
        seeds(&report.seeds),
        plain("learned", report.learned_tried, report.learned),
        plain("tickets", report.tickets_tried, report.tickets),
        relay(&report.relay, report.reachability),
    ]
}

/// What multicast DNS did in one family of addresses.
struct Family<'a> {
    rung: &'static str,
    name: &'static str,
    is_own: fn(&IpAddr) -> bool,
    failure: Option<&'a str>,
    tried: u64,
    answers: u64,
    peers: usize,
    near: usize,
}

impl<'a> Family<'a> {
    /// Returns IPv4 and IPv6.
    fn of(report: &'a MdnsReport, near: Near) -> [Self; 2] {
        let v4 = Self {
            rung: "mdns-v4",
            name: "IPv4",
            is_own: IpAddr::is_ipv4,
            failure: report.ipv4_failure.as_deref(),
            tried: report.ipv4_tried,
            answers: report.ipv4_answers,
            peers: report.ipv4_peers,
            near: near.v4,
        };
        let v6 = Self {
            rung: "mdns-v6",
            name: "IPv6",
            is_own: IpAddr::is_ipv6,
            failure: report.ipv6_failure.as_deref(),
            tried: report.ipv6_tried,
            answers: report.ipv6_answers,
            peers: report.ipv6_peers,
            near: near.v6,
        };
        [v4, v6]
    }

    fn rung(self, report: &MdnsReport) -> Rung {
        // A machine without the one family does with the other.
        let others_work = report.ipv4_failure.is_none() || report.ipv6_failure.is_none();
        let failure = self.failure.map(|why| format!("it does not run: {why}"));
        let is_own = |text: &&String| text.parse().is_ok_and(|ip| (self.is_own)(&ip));
        let on = joined(report.interfaces.iter().filter(is_own).cloned()).map(|list| format!("on {list}"));
        let silence = (self.is_silent() && report.answers > 0)
            .then(|| format!("no answer, though {} connected nodes are on the same network", self.near));
        Rung {
            name: self.rung.to_owned(),
            enabled: report.enabled,
            tried: self.tried,
            seen: self.peers as u64,
            problem: failure.clone().filter(|_| !others_work),
            detail: match failure {
                Some(failure) => others_work.then_some(failure),
                None => joined(on.into_iter().chain(silence)),
            },
        }
    }

    /// Says whether nobody answered, though somebody could.
    fn is_silent(&self) -> bool {
        self.failure.is_none() && self.answers == 0 && self.near > 0
    }
}

fn seeds(seeds: &[DialReport]) -> Rung {
    let failed = seeds.iter().filter_map(|seed| Some(format!("{}: {}", seed.addr, seed.failure.as_ref()?)));
    Rung {
        name: "seeds".to_owned(),
        enabled: !seeds.is_empty(),
        tried: seeds.iter().map(|seed| seed.tried).sum(),
        seen: seeds.iter().filter(|seed| seed.last_ok_ms.is_some() && seed.failure.is_none()).count() as u64,
        problem: joined(failed),
        detail: seeds.is_empty().then(|| "none are configured".to_owned()),
    }
}

fn relay(relay: &RelayReport, reachability: Reachability) -> Rung {
    let mut details = vec![match reachability {
        Reachability::Unknown => "whether others reach this node directly is not known yet".to_owned(),
        Reachability::Public => "others reach this node directly".to_owned(),
        Reachability::Private => "others do not reach this node directly".to_owned(),
    }];
    if relay.circuits > 0 {
        details.push(format!("it carries {} connections of others", relay.circuits));
    }
    if relay.punched + relay.punch_failures > 0 {
        let tries = relay.punched + relay.punch_failures;
        details.push(format!("{} of {tries} relayed connections became direct", relay.punched));
    }
    let without = reachability == Reachability::Private && relay.reservations.is_empty();
    let why = relay.last_failure.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    Rung {
        name: "relay".to_owned(),
        enabled: true,
        tried: relay.offered.len() as u64,
        seen: relay.reservations.len() as u64,
        problem: without.then(|| format!("no member relays for this node{why}")),
        detail: Some(details.join(", ")),
    }
}

fn failures(failures: &[DialReport], now_ms: u64) -> Vec<Unreached> {
    let of = |dial: &DialReport| {
        let failure = dial.failure.as_ref()?;
        let code = serde_json::to_value(failure).ok()?["failure"].as_str()?.to_owned();
        let ago_ms = now_ms.saturating_sub(dial.last_failure_ms.unwrap_or(now_ms));
        Some(Unreached {
            address: dial.addr.clone(),
            code,
            reason: failure.to_string(),
            ago_s: ago_ms as f64 / 1_000.0,
        })
    };
    failures.iter().filter_map(of).take(FAILURES_MAX).collect()
}

fn same_identity(report: &NetReport) -> Option<String> {
    let places = joined(report.identity_conflicts.iter().cloned())?;
    Some(format!("another process has this node's identity; it was met at {places}"))
}

/// Tells a node whose swarm went on without it from one that meets strangers: members that are not connected now have another key. Others
/// may be connected still, who missed the change too, or were removed. While the own key changes, the members have different ones for a while.
fn missed_rekey(report: &NetReport, worked: &[String], peers: &[NetPeer]) -> Option<String> {
    let place = |address: &str| address.split("/p2p/").next().unwrap_or_default().to_owned();
    let is_connected = |dial: &DialReport| {
        let known = peers.iter().find(|peer| dial.peer.as_ref() == Some(&peer.node_id));
        known.is_some_and(|peer| peer.connected.is_some())
    };
    let changed = report.failures.iter().filter(|dial| dial.failure == Some(DialFailure::AnotherSwarmKey));
    let changed = changed.filter(|dial| dial.last_failure_ms >= report.foreign_keys_from_ms && !is_connected(dial));
    let changed = changed.filter(|dial| worked.iter().any(|address| place(address) == place(&dial.addr)));
    let places = joined(changed.map(|dial| dial.addr.clone()))?;
    Some(format!(
        "members that answered before now have another key ({places}): this node was removed, or missed a change of the key"
    ))
}

/// Names the members that a change of the key, made on this machine, did not reach.
pub(crate) fn missed_members(known: &[KnownPeer]) -> Option<String> {
    let missed = known.iter().filter(|peer| peer.missed_key);
    let names = missed.map(|peer| peer.name.clone().unwrap_or_else(|| peer.node_id.to_string()));
    Some(format!("the last change of the key did not reach {}", joined(names)?))
}

/// A network of this machine on which multicast is to be expected.
struct Link {
    own: IpAddr,
    prefix: u8,
}

/// Lists them. A tunnel, such as WireGuard's, carries no multicast and is none.
fn own_links() -> Vec<Link> {
    let link = |addr: IfAddr| match addr {
        IfAddr::V4(v4) => Link { own: v4.ip.into(), prefix: v4.prefixlen },
        IfAddr::V6(v6) => Link { own: v6.ip.into(), prefix: v6.prefixlen },
    };
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let wide = interfaces.into_iter().filter(|interface| !interface.is_loopback() && !interface.is_p2p());
    wide.map(|interface| link(interface.addr)).collect()
}

impl Link {
    fn leads_to(&self, other: IpAddr) -> bool {
        match (self.own, other) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = !u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
                own != other && own.to_bits() & mask == other.to_bits() & mask
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = !u128::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
                own != other && own.to_bits() & mask == other.to_bits() & mask
            }
            _ => false,
        }
    }
}

/// How many peers are connected directly over a network of this machine, by the family of their addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Near {
    v4: usize,
    v6: usize,
}

impl Near {
    fn count(peers: &[NetPeer], links: &[Link]) -> Self {
        let direct = peers.iter().filter_map(|peer| match &peer.connected {
            Some(Path::Direct { addr }) => ip_of(addr),
            _ => None,
        });
        let mut near = Self::default();
        for ip in direct.filter(|ip| links.iter().any(|link| link.leads_to(*ip))) {
            *(if ip.is_ipv4() { &mut near.v4 } else { &mut near.v6 }) += 1;
        }
        near
    }
}

/// Tells that multicast does not get through, from peers on the same network that were found in another way. Where one family of addresses
/// works, it is enough.
fn mdns_blocked(report: &MdnsReport, near: Near) -> Option<String> {
    let runs = report.ipv4_failure.is_none() || report.ipv6_failure.is_none();
    let all = near.v4 + near.v6;
    if !report.enabled || !runs || report.answers > 0 || all == 0 {
        return None;
    }
    let silent: Vec<_> = Family::of(report, near).into_iter().filter(Family::is_silent).collect();
    let (over, count) = match &silent[..] {
        [one] => (format!(" over {}", one.name), one.near),
        _ => (String::new(), all),
    };
    Some(format!(
        "no answer by mDNS{over}, though {count} connected nodes are on the same network: multicast is blocked there"
    ))
}

fn ip_of(address: &str) -> Option<IpAddr> {
    address.split('/').nth(2)?.parse().ok()
}

fn clocks(peers: &[PeerView]) -> Option<String> {
    let off = peers.iter().filter_map(|peer| {
        let skew_ms = peer.clock_skew_ms?;
        let direction = if skew_ms < 0 { "behind" } else { "ahead of" };
        Some(format!("that of {} is {} s {direction} this one", peer.name, skew_ms.unsigned_abs() / 1_000))
    });
    Some(format!("clocks are off, so that messages are ignored: {}", joined(off)?))
}

fn joined(texts: impl Iterator<Item = String>) -> Option<String> {
    let all = texts.collect::<Vec<_>>().join(", ");
    (!all.is_empty()).then_some(all)
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;

    fn dial(addr: &str, failure: Option<DialFailure>) -> DialReport {
        DialReport { addr: addr.into(), peer: None, tried: 2, last_ok_ms: None, last_failure_ms: Some(1_000), failure }
    }

    #[test]
    fn the_ladder_is_told_rung_by_rung() {
        let report = NetReport {
            listen_on: 2,
            seeds: vec![dial("/ip4/192.0.2.7/tcp/1", Some(DialFailure::Timeout))],
            mdns: MdnsReport {
                enabled: true,
                peers: 2,
                ipv4_peers: 2,
                ipv6_failure: Some("no IPv6".into()),
                interfaces: vec!["192.0.2.1".into()],
                ipv4_tried: 4,
                ..MdnsReport::default()
            },
            learned: 3,
            learned_tried: 5,
            tickets_tried: 1,
            ..NetReport::default()
        };
        let rungs = rungs(&report, Near::default());
        let names: Vec<&str> = rungs.iter().map(|rung| rung.name.as_str()).collect();
        assert_eq!(names, ["listen", "mdns-v4", "mdns-v6", "seeds", "learned", "tickets", "relay"]);
        assert_eq!((rungs[1].seen, rungs[1].detail.as_deref()), (2, Some("on 192.0.2.1")));
        assert_eq!(rungs[2].problem, None, "IPv4 does");
        assert_eq!(rungs[2].detail.as_deref(), Some("it does not run: no IPv6"));
        let tried: Vec<u64> = rungs.iter().map(|rung| rung.tried).collect();
        assert_eq!(tried, [2, 4, 0, 2, 5, 1, 0]);
        assert!(rungs[3].problem.as_ref().unwrap().starts_with("/ip4/192.0.2.7/tcp/1: no answer"), "{:?}", rungs[3]);
        assert_eq!(rungs[4].seen, 3);
    }

    #[test]
    fn where_the_node_cannot_listen_is_told_with_the_reason() {
        let failure = ("/ip4/0.0.0.0/tcp/7891".to_owned(), "another process listens there".to_owned());
        let report = NetReport { listen_failures: vec![failure], ..NetReport::default() };
        let problem = "/ip4/0.0.0.0/tcp/7891: another process listens there";
        assert_eq!(rungs(&report, Near::default())[0].problem.as_deref(), Some(problem));
        let told = listening(&report);
        assert_eq!((told.state, told.problem.as_deref()), (ListeningState::Error, Some(problem)));
        assert_eq!(listening(&NetReport::default()).state, ListeningState::Ok);
    }

    #[test]
    fn failures_have_a_word_and_an_age() {
        let told = failures(&[dial("/ip4/192.0.2.7/tcp/1", Some(DialFailure::NothingListens))], 3_500);
        assert_eq!((told[0].code.as_str(), told[0].ago_s), ("nothing_listens", 2.5));
    }

    #[test]
    fn a_swarm_that_went_on_is_told_from_strangers() {
        let failure = Some(DialFailure::AnotherSwarmKey);
        let report = NetReport { failures: vec![dial("/ip4/192.0.2.7/tcp/1/p2p/x", failure)], ..NetReport::default() };
        assert!(missed_rekey(&report, &["/ip4/192.0.2.7/tcp/1".into()], &[]).is_some());
        assert_eq!(missed_rekey(&report, &["/ip4/192.0.2.8/tcp/1".into()], &[]), None);
    }

    #[test]
    fn while_the_own_key_changes_nobody_is_said_to_be_removed() {
        let worked = ["/ip4/192.0.2.7/tcp/1".to_owned()];
        let told = |foreign_keys_from_ms| {
            let failures = vec![dial("/ip4/192.0.2.7/tcp/1/p2p/x", Some(DialFailure::AnotherSwarmKey))];
            missed_rekey(&NetReport { failures, foreign_keys_from_ms, ..NetReport::default() }, &worked, &[]).is_some()
        };
        assert!(!told(Some(1_001)), "it failed at 1 000 ms");
        assert!(told(Some(1_000)) && told(None));
    }

    fn link(own: &str, prefix: u8) -> Link {
        Link { own: own.parse().unwrap(), prefix }
    }

    #[test]
    fn networks_are_told_apart_by_their_real_sizes() {
        let leads = |own: &str, prefix: u8, other: &str| link(own, prefix).leads_to(other.parse().unwrap());
        assert!(leads("192.0.2.1", 24, "192.0.2.7"));
        assert!(!leads("192.0.2.1", 29, "192.0.2.9"), "a smaller network than is usual");
        assert!(leads("10.1.2.3", 8, "10.200.0.1"), "and a larger one");
        assert!(!leads("192.0.2.1", 32, "192.0.2.7") && leads("192.0.2.1", 0, "198.51.100.7"));
        assert!(!leads("192.0.2.1", 24, "192.0.2.1"), "another process of this machine");
        assert!(leads("2001:db8::1", 64, "2001:db8::7") && !leads("2001:db8::1", 64, "2001:db8:1::7"));
        assert!(!leads("192.0.2.1", 24, "2001:db8::7"));
    }

    fn connected_at(addr: &str) -> NetPeer {
        NetPeer {
            node_id: NodeKey::from_secret(&[1; 32]).node_id(),
            connected: Some(Path::Direct { addr: addr.into() }),
            addresses: Vec::new(),
            round_trip: None,
            agent: None,
            protocols: Vec::new(),
            last_seen_ms: 0,
            score: 0.0,
        }
    }

    #[test]
    fn only_where_multicast_is_to_be_expected_its_absence_is_remarkable() {
        let peer = [connected_at("/ip4/10.0.0.2/tcp/1")];
        let report = MdnsReport { enabled: true, ..MdnsReport::default() };
        let network = [link("10.0.0.1", 24)];
        assert!(mdns_blocked(&report, Near::count(&peer, &network)).is_some());
        // Over a VPN, or a router, it is as it should be.
        assert_eq!(mdns_blocked(&report, Near::count(&peer, &[])), None);
        assert_eq!(mdns_blocked(&report, Near::count(&peer, &[link("192.0.2.1", 24)])), None);
        let heard = MdnsReport { answers: 1, ipv4_answers: 1, ..report };
        assert_eq!(mdns_blocked(&heard, Near::count(&peer, &network)), None);
    }

    #[test]
    fn what_multicast_brought_is_told_for_each_family_of_addresses() {
        let near = Near::count(
            &[connected_at("/ip4/10.0.0.2/tcp/1"), connected_at("/ip6/2001:db8::2/tcp/1")],
            &[link("10.0.0.1", 24), link("2001:db8::1", 64)],
        );
        assert_eq!(near, Near { v4: 1, v6: 1 });
        let nobody = MdnsReport {
            enabled: true,
            interfaces: vec!["10.0.0.1".into(), "2001:db8::1".into()],
            ..MdnsReport::default()
        };
        let ladder = |mdns: &MdnsReport, near| {
            let rungs = rungs(&NetReport { mdns: mdns.clone(), ..NetReport::default() }, near);
            let of = |rung: &Rung| (rung.seen, rung.problem.clone(), rung.detail.clone().unwrap_or_default());
            (of(&rungs[1]), of(&rungs[2]))
        };
        let (v4, v6) = ladder(&nobody, near);
        assert_eq!((v4.2.as_str(), v6.2.as_str()), ("on 10.0.0.1", "on 2001:db8::1"));
        assert!(mdns_blocked(&nobody, near).unwrap().starts_with("no answer by mDNS, though 2 "));
        let only = mdns_blocked(&nobody, Near { v4: 0, v6: 3 }).unwrap();
        assert!(only.starts_with("no answer by mDNS over IPv6, though 3 "), "{only}");

        // One family is enough: what the other lacks is a note.
        let heard = MdnsReport { answers: 4, ipv6_answers: 4, peers: 1, ipv6_peers: 1, ..nobody };
        assert_eq!(mdns_blocked(&heard, near), None);
        let (v4, v6) = ladder(&heard, near);
        let note = "on 10.0.0.1, no answer, though 1 connected nodes are on the same network";
        assert_eq!(v4, (0, None, note.to_owned()), "nobody was seen over IPv4");
        assert_eq!(v6, (1, None, "on 2001:db8::1".to_owned()));
        let (v4, _) = ladder(&heard, Near { v4: 0, v6: 1 });
        assert_eq!(v4.2, "on 10.0.0.1", "where nobody could answer, silence is no news");
    }

    #[test]
    fn a_node_that_nobody_reaches_wants_a_relay() {
        let rung = relay(
            &RelayReport { last_failure: Some("refused".into()), ..RelayReport::default() },
            Reachability::Private,
        );
        assert_eq!(rung.problem.as_deref(), Some("no member relays for this node (refused)"));
        assert_eq!(relay(&RelayReport::default(), Reachability::Public).problem, None);
    }
}
