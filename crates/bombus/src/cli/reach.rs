//! Whether a node can be reached at an address, and if not, why, and what to do about it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use bombus_core::identity::NodeKey;
use bombus_net::membership::{Privacy, Ticket};
use bombus_net::{DEFAULT_PORT, ProbeVerdict, probe};
use futures::future::join_all;
use serde::Serialize;

use crate::failure::{Exit, Failure};

/// Longest wait for each step of a look.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// What was found at an address.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Finding {
    /// The address, as a multiaddr.
    pub(super) address: String,
    /// A word for programs: `fine`, or what is wrong.
    pub(super) code: &'static str,
    /// The same for people.
    pub(super) found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
    /// Who answers there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node_id: Option<String>,
    #[serde(skip)]
    pub(super) exit: Option<Exit>,
}

/// What is known besides, without which some findings cannot be told apart.
#[derive(Debug, Clone, Default)]
pub(super) struct Around {
    /// Addresses that a member answered at before.
    pub(super) worked: Vec<String>,
    /// Members that this node was connected to before.
    pub(super) members: Vec<String>,
    /// Whether a ticket is for the swarm that this node belongs to.
    pub(super) own_swarm: bool,
    /// Where this node itself listens.
    pub(super) own: Vec<String>,
    /// Whether other nodes can be reached now.
    pub(super) others_answer: bool,
    /// Whether the looks go by a ticket for another swarm or another key than this node has.
    pub(super) by_ticket: bool,
}

impl Around {
    /// Says whether a member of this node's swarm was at an address, as far as is known.
    fn was_member(&self, address: &str) -> bool {
        let names = |member: &String| address.strip_suffix(member.as_str()).is_some_and(|rest| rest.ends_with("/p2p/"));
        self.own_swarm || self.worked.iter().any(|worked| same_place(worked, address)) || self.members.iter().any(names)
    }
}

/// Makes a key for looks while the node's own is in use, or is not there.
pub(super) fn fresh_key() -> Result<NodeKey> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(std::io::Error::other).context("no random bytes can be had")?;
    Ok(NodeKey::from_secret(&secret))
}

/// Looks at all addresses at once.
pub(super) async fn look_at_all(
    addresses: &[String],
    privacy: &Privacy,
    key: &NodeKey,
    around: &Around,
) -> Vec<Finding> {
    let looks = addresses.iter().map(|address| probe(address, privacy, key, LOOK_LIMIT));
    let verdicts = join_all(looks).await;
    let any_fine = verdicts.iter().any(|verdict| matches!(verdict, ProbeVerdict::Fine { .. }));
    let around = Around { others_answer: around.others_answer || any_fine, ..around.clone() };
    addresses.iter().zip(verdicts).map(|(address, verdict)| judge(address, &verdict, &around)).collect()
}

/// Says what a verdict means, and what to do.
pub(super) fn judge(address: &str, verdict: &ProbeVerdict, around: &Around) -> Finding {
    let finding = |code, found: String| Finding {
        address: address.to_owned(),
        code,
        found,
        remedy: None,
        node_id: None,
        exit: None,
    };
    let wrong = |exit, code, found: String, remedy: String| Finding {
        remedy: Some(remedy),
        exit: Some(exit),
        ..finding(code, found)
    };
    let port = port_of(address).unwrap_or(DEFAULT_PORT);
    match verdict {
        ProbeVerdict::Fine { peer, took_ms } => Finding {
            node_id: Some(peer.to_string()),
            ..finding("fine", format!("{peer} answers, after {took_ms} ms"))
        },
        ProbeVerdict::NothingListens => wrong(
            Exit::NothingListens,
            "nothing_listens",
            format!("the machine answers, and nothing listens at its port {port}"),
            "start bombus up there; bombus swarm shows there at which addresses it listens".into(),
        ),
        ProbeVerdict::Unreachable { why } => wrong(
            Exit::Unavailable,
            "unreachable",
            format!("no way leads there: {why}"),
            "look at the address, and at this machine's network or VPN".into(),
        ),
        ProbeVerdict::UnknownName { why } => wrong(
            Exit::NotFound,
            "unknown_name",
            format!("the name has no address: {why}"),
            "look at how it is spelled, or write the address itself".into(),
        ),
        ProbeVerdict::Timeout if around.others_answer => wrong(
            Exit::Filtered,
            "firewall",
            "nothing comes back, while other nodes answer: a firewall drops what is sent there".into(),
            format!(
                "let TCP port {port} in there (ufw allow {port}/tcp), or have that node dial: bombus up --seed with an address of \
                 this one"
            ),
        ),
        ProbeVerdict::Timeout => wrong(
            Exit::Filtered,
            "no_answer",
            "nothing comes back: the machine is off, the address is wrong, or a firewall drops what is sent there".into(),
            format!("ping the machine; where that works, let TCP port {port} in there (ufw allow {port}/tcp)"),
        ),
        ProbeVerdict::AnotherSwarmKey if around.was_member(address) => wrong(
            Exit::Outdated,
            "removed_or_missed_rekey",
            "a member of this swarm is there, or was, and has another key now: this node was removed, or missed a change of the key"
                .into(),
            "ask for a new ticket there (bombus invite), and join again: bombus join TICKET".into(),
        ),
        ProbeVerdict::AnotherSwarmKey if around.by_ticket => wrong(
            Exit::AnotherSwarm,
            "wrong_key",
            "the node there has another key than the ticket: its key was changed since, or it belongs to another swarm".into(),
            "ask for a new ticket there: bombus invite".into(),
        ),
        ProbeVerdict::AnotherSwarmKey => wrong(
            Exit::AnotherSwarm,
            "wrong_key",
            "a node with another swarm's key is there".into(),
            "to join its swarm, run bombus invite there, and here bombus join TICKET".into(),
        ),
        ProbeVerdict::NoSwarmKey => wrong(
            Exit::AnotherSwarm,
            "no_swarm_key",
            "a node without a swarm key is there (--open), and this one has a key".into(),
            "start it without --open, or this one with it".into(),
        ),
        ProbeVerdict::NotLibp2p => wrong(
            Exit::NotANode,
            "not_a_node",
            "something else than a node listens there".into(),
            format!("nodes listen for each other at port {DEFAULT_PORT}; their HTTP API is another port"),
        ),
        ProbeVerdict::WrongPeer { found } => wrong(
            Exit::AnotherNode,
            "another_node",
            format!("another node is there: {found}"),
            "the address went to another machine; ask the node that you look for for its present one: bombus swarm".into(),
        ),
        ProbeVerdict::SameIdentity if around.own.iter().any(|own| same_place(own, address)) => wrong(
            Exit::SameIdentity,
            "itself",
            "that is this node itself".into(),
            "give an address of another node".into(),
        ),
        ProbeVerdict::SameIdentity => wrong(
            Exit::SameIdentity,
            "same_identity",
            "this node's own identity is there: its data directory was copied, and two nodes are one to all others".into(),
            "on one of the two machines stop the node, delete identity.key in its data directory, and start it again".into(),
        ),
        ProbeVerdict::OnlyIpv6 => wrong(
            Exit::OnlyIpv6,
            "only_ipv6",
            "only IPv6 leads there, and this machine has no IPv6".into(),
            "give the node's IPv4 address, or give this machine IPv6".into(),
        ),
        ProbeVerdict::Handshake { why } => wrong(
            Exit::Failure,
            "handshake",
            format!("the connection stands, but the handshake fails: {why}"),
            "look at the logs of that node, and at its version".into(),
        ),
        ProbeVerdict::InvalidAddress { why } => wrong(
            Exit::Usage,
            "invalid_address",
            format!("it is no address: {why}"),
            format!("write for example 192.0.2.7:{DEFAULT_PORT} or /ip4/192.0.2.7/tcp/{DEFAULT_PORT}"),
        ),
    }
}

/// What somebody wants to be looked at.
#[derive(Debug)]
pub(super) enum Target {
    /// An address, as a multiaddr.
    Address(String),
    /// A ticket.
    Ticket(Box<Ticket>),
}

impl Target {
    /// Reads a ticket, a multiaddr, `ADDR:PORT`, or a name or address alone.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let text = text.trim();
        // A ticket's kind is followed by the number of its version; a host may be called bombus too.
        let kind = text.to_ascii_lowercase();
        let version = kind.strip_prefix("bombusowner").or_else(|| kind.strip_prefix("bombus"));
        if version.is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit())) {
            return ticket(text).map(|ticket| Self::Ticket(Box::new(ticket)));
        }
        multiaddr(text).map(Self::Address).ok_or_else(|| {
            Failure::new(Exit::Usage, format!("'{}' is no address and no ticket", shown(text))).hint(format!(
                "write 192.0.2.7:{DEFAULT_PORT}, hive.example, /ip4/192.0.2.7/tcp/{DEFAULT_PORT}, or what bombus invite printed"
            ))
        })
    }
}

/// Reads a ticket. What is wrong with it is told without any of its content.
pub(super) fn ticket(text: &str) -> Result<Ticket, Failure> {
    text.trim().parse().map_err(|error: bombus_net::membership::ParseLineError| {
        Failure::new(Exit::Usage, error.to_string()).hint("bombus invite prints one, on a node of the swarm")
    })
}

fn multiaddr(text: &str) -> Option<String> {
    if text.starts_with('/') {
        return Some(text.to_owned());
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(of_ip(address.ip(), address.port()));
    }
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Some(of_ip(address, DEFAULT_PORT));
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().ok()?),
        None => (text, DEFAULT_PORT),
    };
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    is_name.then(|| format!("/dns/{name}/tcp/{port}"))
}

fn of_ip(address: IpAddr, port: u16) -> String {
    match address {
        IpAddr::V4(address) => format!("/ip4/{address}/tcp/{port}"),
        IpAddr::V6(address) => format!("/ip6/{address}/tcp/{port}"),
    }
}

fn port_of(address: &str) -> Option<u16> {
    let mut parts = address.split('/').skip_while(|part| *part != "tcp");
    parts.nth(1)?.parse().ok()
}

/// Compares two multiaddrs without the node that they name.
pub(super) fn same_place(one: &str, other: &str) -> bool {
    let place = |text: &str| text.split("/p2p/").next().unwrap_or_default().to_owned();
    place(one) == place(other)
}

fn shown(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "/ip4/192.0.2.7/tcp/7891";

    fn judged(verdict: &ProbeVerdict, around: &Around) -> Finding {
        judge(ADDRESS, verdict, around)
    }

    #[test]
    fn every_verdict_says_what_to_do_and_has_its_code() {
        let peer = NodeKey::from_secret(&[1; 32]).node_id();
        let why = || "so it is".to_owned();
        let verdicts = [
            ProbeVerdict::NothingListens,
            ProbeVerdict::Unreachable { why: why() },
            ProbeVerdict::UnknownName { why: why() },
            ProbeVerdict::Timeout,
            ProbeVerdict::AnotherSwarmKey,
            ProbeVerdict::NoSwarmKey,
            ProbeVerdict::NotLibp2p,
            ProbeVerdict::WrongPeer { found: peer.clone() },
            ProbeVerdict::SameIdentity,
            ProbeVerdict::OnlyIpv6,
            ProbeVerdict::Handshake { why: why() },
            ProbeVerdict::InvalidAddress { why: why() },
        ];
        let findings: Vec<Finding> = verdicts.iter().map(|verdict| judged(verdict, &Around::default())).collect();
        for finding in &findings {
            assert!(finding.remedy.is_some() && finding.exit.is_some(), "{finding:?}");
        }
        let mut codes: Vec<&str> = findings.iter().map(|finding| finding.code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), verdicts.len(), "{codes:?}");
        let fine = judged(&ProbeVerdict::Fine { peer, took_ms: 3 }, &Around::default());
        assert_eq!((fine.code, fine.exit, fine.remedy), ("fine", None, None));
    }

    #[test]
    fn what_is_known_besides_tells_findings_apart() {
        let around = Around {
            worked: vec![ADDRESS.into()],
            own: vec![format!("{ADDRESS}/p2p/12D3KooW")],
            others_answer: true,
            ..Around::default()
        };
        for (verdict, alone, besides) in [
            (ProbeVerdict::Timeout, "no_answer", "firewall"),
            (ProbeVerdict::AnotherSwarmKey, "wrong_key", "removed_or_missed_rekey"),
            (ProbeVerdict::SameIdentity, "same_identity", "itself"),
        ] {
            assert_eq!(judged(&verdict, &Around::default()).code, alone);
            assert_eq!(judged(&verdict, &around).code, besides);
        }
    }

    #[test]
    fn a_member_with_another_key_is_told_from_strangers() {
        let code = |address: &str, around: &Around| judge(address, &ProbeVerdict::AnotherSwarmKey, around).code;
        let around = Around { members: vec!["12D3KooWHive".into()], ..Around::default() };
        assert_eq!(code("/ip4/192.0.2.7/tcp/1/p2p/12D3KooWHive", &around), "removed_or_missed_rekey");
        assert_eq!(code("/ip4/192.0.2.7/tcp/1/p2p/12D3KooWOther", &around), "wrong_key");
        assert_eq!(code(ADDRESS, &Around { own_swarm: true, ..Around::default() }), "removed_or_missed_rekey");
    }

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        for (text, wanted) in [
            ("192.0.2.7:5", "/ip4/192.0.2.7/tcp/5"),
            ("192.0.2.7", "/ip4/192.0.2.7/tcp/7891"),
            ("[2001:db8::1]:5", "/ip6/2001:db8::1/tcp/5"),
            ("[2001:db8::1]", "/ip6/2001:db8::1/tcp/7891"),
            ("2001:db8::1", "/ip6/2001:db8::1/tcp/7891"),
            ("hive.example", "/dns/hive.example/tcp/7891"),
            ("hive:5", "/dns/hive/tcp/5"),
            ("bombus.example", "/dns/bombus.example/tcp/7891"),
            ("bombus", "/dns/bombus/tcp/7891"),
            ("/ip4/192.0.2.7/tcp/5/p2p/x", "/ip4/192.0.2.7/tcp/5/p2p/x"),
        ] {
            let Ok(Target::Address(address)) = Target::parse(text) else { panic!("{text}") };
            assert_eq!(address, wanted);
        }
        for bad in ["", "a b", "hive:port", "hive:99999", "bombus1abc"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_ticket_is_not_repeated() {
        let failure = Target::parse("bombus1s3crets3crets3cret").unwrap_err();
        assert!(!failure.to_string().contains("s3cret"), "{failure}");
    }
}
