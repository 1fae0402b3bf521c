//! What multicast DNS brought.

use std::collections::BTreeSet;
use std::time::Instant;

use bombus_core::identity::NodeId;
use libp2p::Multiaddr;

use crate::address;

/// How many peers are told apart.
const PEERS_MAX: usize = 1024;

/// Counts what was announced, by the family of the addresses: what came by the one says nothing of the other.
#[derive(Debug, Default)]
pub(crate) struct Announced {
    pub(crate) ipv4: Family,
    pub(crate) ipv6: Family,
    peers: BTreeSet<NodeId>,
    pub(crate) last: Option<Instant>,
}

/// What was announced of one family.
#[derive(Debug, Default)]
pub(crate) struct Family {
    pub(crate) answers: u64,
    peers: BTreeSet<NodeId>,
}

impl Announced {
    pub(super) fn add(&mut self, now: Instant, peer: &NodeId, addr: &Multiaddr) {
        let is_ipv6 = address::ip_of(addr).is_some_and(|ip| ip.is_ipv6());
        let family = if is_ipv6 { &mut self.ipv6 } else { &mut self.ipv4 };
        family.answers += 1;
        keep(&mut family.peers, peer);
        keep(&mut self.peers, peer);
        self.last = Some(now);
    }

    /// Returns how many peers announced themselves, by whichever family.
    pub(super) fn peers(&self) -> usize {
        self.peers.len()
    }
}

impl Family {
    pub(super) fn peers(&self) -> usize {
        self.peers.len()
    }
}

fn keep(peers: &mut BTreeSet<NodeId>, peer: &NodeId) {
    if peers.len() < PEERS_MAX {
        peers.insert(peer.clone());
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;

    #[test]
    fn a_peer_counts_for_the_families_whose_addresses_it_announced() {
        let mut announced = Announced::default();
        let peer = |number| NodeKey::from_secret(&[number; 32]).node_id();
        let mut add = |number, addr: &str| announced.add(Instant::now(), &peer(number), &addr.parse().unwrap());
        add(1, "/ip4/192.0.2.1/tcp/7891");
        add(1, "/ip6/2001:db8::1/tcp/7891");
        for port in 1..=3 {
            add(2, &format!("/ip6/2001:db8::2/tcp/{port}"));
        }
        assert_eq!((announced.ipv4.peers(), announced.ipv6.peers(), announced.peers()), (1, 2, 2));
        assert_eq!((announced.ipv4.answers, announced.ipv6.answers), (1, 4));
    }
}
