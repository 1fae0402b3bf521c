//! Addresses: what can be dialled, and what an address says about the way.

use std::net::IpAddr;

use bombus_core::identity::NodeId;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

use crate::failure::DialFailure;
use crate::id;

/// The longest address that is looked at, in bytes of its binary form: a relayed one with a DNS name has some 200.
const BYTES_MAX: usize = 512;

/// An address to dial, and who is expected there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The address without the peer's own id at its end.
    pub(crate) addr: Multiaddr,
    /// The peer that has to be there.
    pub(crate) peer: Option<PeerId>,
}

/// Reads an address that somebody typed or configured.
pub(crate) fn parse_target(text: &str) -> Result<Target, DialFailure> {
    let invalid = |why: String| DialFailure::InvalidAddress { why };
    let addr: Multiaddr = text.trim().parse().map_err(|error: libp2p::multiaddr::Error| invalid(error.to_string()))?;
    let (addr, peer) = split_peer(addr);
    if is_relayed(&addr) && peer.is_none() {
        return Err(invalid("a relayed address names the peer at its end, as /p2p-circuit/p2p/ID".to_owned()));
    }
    check(&addr).map_err(|why| invalid(why.to_owned()))?;
    Ok(Target { addr, peer })
}

/// Takes the peer's own id off the end of an address.
pub(crate) fn split_peer(mut addr: Multiaddr) -> (Multiaddr, Option<PeerId>) {
    match addr.iter().last() {
        Some(Protocol::P2p(peer)) => {
            addr.pop();
            (addr, Some(peer))
        }
        _ => (addr, None),
    }
}

/// Says whether an address that a peer told is worth a dial: an IP address or a name, with a TCP port, or such a relay's.
pub(crate) fn is_dialable(addr: &Multiaddr) -> bool {
    check(addr).is_ok()
}

fn check(addr: &Multiaddr) -> Result<(), &'static str> {
    if addr.len() > BYTES_MAX {
        return Err("it is too long");
    }
    let mut parts = addr.iter();
    match parts.next() {
        Some(Protocol::Ip4(ip)) if ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() => {
            return Err("it names no machine");
        }
        Some(Protocol::Ip6(ip)) if ip.is_unspecified() || ip.is_multicast() => return Err("it names no machine"),
        // Without the interface, which others cannot know, such an address leads nowhere.
        Some(Protocol::Ip6(ip)) if ip.is_unicast_link_local() => return Err("it is valid on one link only"),
        Some(Protocol::Ip4(_) | Protocol::Ip6(_)) => {}
        // With a slash in its name it would be another address as text.
        Some(Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name)) if !is_host_name(&name) => {
            return Err("it names no machine");
        }
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)) => {}
        _ => return Err("it begins with /ip4, /ip6, or /dns"),
    }
    match parts.next() {
        Some(Protocol::Tcp(port)) if port != 0 => {}
        _ => return Err("a TCP port from 1 to 65535 follows the machine, as in /ip4/192.0.2.7/tcp/7891"),
    }
    match (parts.next(), parts.next(), parts.next()) {
        (None, None, None) => Ok(()),
        (Some(Protocol::P2p(_)), Some(Protocol::P2pCircuit), None) => Ok(()),
        _ => Err("after the port nothing may follow but /p2p/ID, or a relay's /p2p/ID/p2p-circuit/p2p/ID"),
    }
}

fn is_host_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "-._".contains(c))
}

/// Says whether an address leads through a relay.
pub(crate) fn is_relayed(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| part == Protocol::P2pCircuit)
}

/// Returns the relay that an address leads through.
pub(crate) fn relay_of(addr: &Multiaddr) -> Option<NodeId> {
    let mut relay = None;
    for part in addr.iter() {
        match part {
            Protocol::P2p(peer) => relay = Some(peer),
            Protocol::P2pCircuit => return relay.as_ref().and_then(id::node_id),
            _ => {}
        }
    }
    None
}

/// Returns the IP address that an address begins with.
pub(crate) fn ip_of(addr: &Multiaddr) -> Option<IpAddr> {
    match addr.iter().next() {
        Some(Protocol::Ip4(ip)) => Some(IpAddr::V4(ip)),
        Some(Protocol::Ip6(ip)) => Some(IpAddr::V6(ip)),
        _ => None,
    }
}

/// Says whether an address is on this machine only.
pub(crate) fn is_loopback(addr: &Multiaddr) -> bool {
    ip_of(addr).is_some_and(|ip| ip.is_loopback())
}

/// Says whether two addresses are probably on one link: equal in their first 24 (IPv4) or 64 (IPv6) bits.
pub(crate) fn same_link(one: IpAddr, other: IpAddr) -> bool {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => one.octets()[..3] == other.octets()[..3],
        (IpAddr::V6(one), IpAddr::V6(other)) => one.segments()[..4] == other.segments()[..4],
        _ => false,
    }
}

/// Writes an address with the peer's id at its end.
pub(crate) fn with_peer(addr: &Multiaddr, peer: PeerId) -> Multiaddr {
    match addr.iter().last() {
        Some(Protocol::P2p(_)) => addr.clone(),
        _ => addr.clone().with(Protocol::P2p(peer)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "12D3KooWGjMCVbrUEBDTWkYpGRsvnGkeDoMrYDfZ9dpgTzmSf1wZ";

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_target_names_its_peer_or_not() {
        let target = parse_target(&format!("/ip4/192.0.2.7/tcp/7891/p2p/{ID}")).unwrap();
        assert_eq!(target.addr, addr("/ip4/192.0.2.7/tcp/7891"));
        assert_eq!(target.peer.unwrap().to_base58(), ID);
        assert_eq!(parse_target(" /dns/example.org/tcp/7891 ").unwrap().peer, None);
    }

    #[test]
    fn what_cannot_be_dialled_is_told_apart() {
        for text in [
            "192.0.2.7:7891",
            "/ip4/192.0.2.7",
            "/ip4/192.0.2.7/tcp/0",
            "/ip4/0.0.0.0/tcp/7891",
            "/ip6/fe80::1/tcp/7891",
            "/ip4/192.0.2.7/udp/7891/quic-v1",
            "/ip4/192.0.2.7/tcp/7891/ws",
            "",
        ] {
            assert!(matches!(parse_target(text), Err(DialFailure::InvalidAddress { .. })), "{text}");
        }
        let relayed = format!("/ip4/192.0.2.7/tcp/7891/p2p/{ID}/p2p-circuit");
        assert!(parse_target(&relayed).is_err(), "a relayed address names its peer");
        assert!(parse_target(&format!("{relayed}/p2p/{ID}")).is_ok());
    }

    #[test]
    fn a_name_that_would_be_another_address_as_text_leads_nowhere() {
        for name in ["a/tcp/22", "", "a b", "a\u{1b}[2J"] {
            let addr = Multiaddr::empty().with(Protocol::Dns(name.into())).with(Protocol::Tcp(7891));
            assert!(!is_dialable(&addr), "{name:?}");
        }
        assert!(is_dialable(&addr("/dns4/hive-2.example_net/tcp/7891")));
    }

    #[test]
    fn a_relay_is_seen_in_the_address() {
        let relayed = addr(&format!("/ip4/192.0.2.7/tcp/7891/p2p/{ID}/p2p-circuit"));
        assert!(is_relayed(&relayed) && is_dialable(&relayed));
        assert_eq!(relay_of(&relayed).unwrap().as_str(), ID);
        assert_eq!(relay_of(&addr(&format!("/ip4/192.0.2.7/tcp/7891/p2p/{ID}"))), None);
    }

    #[test]
    fn links_are_told_apart() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(same_link(ip("10.0.1.2"), ip("10.0.1.99")));
        assert!(!same_link(ip("10.0.1.2"), ip("10.0.2.2")));
        assert!(!same_link(ip("10.0.1.2"), ip("::1")));
    }
}
