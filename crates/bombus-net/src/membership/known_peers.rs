//! Peers met before, and where: what a node tries first when it starts again.

use std::collections::{BTreeMap, BTreeSet};

use bombus_core::identity::NodeId;
use serde::{Deserialize, Serialize};

use super::address;

/// How many peers are remembered.
const PEERS_MAX: usize = 256;
/// How many addresses of one peer are remembered, and how many of which it is not known whose they are.
const ADDRESSES_MAX: usize = 16;
/// The longest name, in characters.
const NAME_CHARACTERS_MAX: usize = 64;
/// A peer that was not seen for so long is forgotten: 30 days, in seconds.
const PEER_AGE_MAX_S: u64 = 30 * 24 * 3_600;
/// An address that failed [`FAILURES_MAX`] times or more and did not work for so long is forgotten: 3 days, in seconds.
const ADDRESS_AGE_MAX_S: u64 = 3 * 24 * 3_600;
/// See [`ADDRESS_AGE_MAX_S`].
const FAILURES_MAX: u32 = 8;

/// Where a remembered address is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressOrigin {
    /// A ticket has it.
    Ticket,
    /// The peer told it, or another one, or it worked before.
    Peer,
}

/// A peer met before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownPeer {
    /// Who it is.
    pub node_id: NodeId,
    /// What people call it, where it said so.
    pub name: Option<String>,
    /// When there last was a connection, in seconds since 1970; `None` for one that was only heard of.
    pub last_seen_s: Option<u64>,
    /// The key was changed on this machine, nothing says that the peer has it, and there was no connection since.
    pub missed_key: bool,
}

/// An address to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownAddress {
    /// Who should answer there; `None` where that is not known.
    pub peer: Option<NodeId>,
    /// The multiaddr, without the peer's id at its end.
    pub addr: String,
    /// Where it is from.
    pub origin: AddressOrigin,
    /// When it last worked, in seconds since 1970.
    pub last_ok_s: Option<u64>,
}

/// What is remembered. Of more than 256 peers those seen last are kept, of more than 16 addresses of a peer those that worked last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KnownPeers {
    peers: BTreeMap<NodeId, Peer>,
    /// Addresses of nobody in particular, newest last.
    nameless: Vec<Address>,
    last_contact_s: Option<u64>,
    changed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Peer {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_seen_s: Option<u64>,
    learned_s: u64,
    #[serde(default, skip_serializing_if = "is_false")]
    missed_key: bool,
    #[serde(default)]
    addresses: Vec<Address>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Address {
    addr: String,
    origin: AddressOrigin,
    learned_s: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_ok_s: Option<u64>,
    #[serde(default)]
    failures: u32,
}

impl Address {
    fn new(addr: String, origin: AddressOrigin, now_s: u64) -> Self {
        Self { addr, origin, learned_s: now_s, last_ok_s: None, failures: 0 }
    }

    /// Orders addresses, the most promising one last.
    fn promise(&self) -> (bool, u64, bool, u64) {
        let from_ticket = self.origin == AddressOrigin::Ticket;
        (self.failures < FAILURES_MAX, self.last_ok_s.unwrap_or(0), from_ticket, self.learned_s)
    }

    fn is_stale(&self, now_s: u64) -> bool {
        let last_s = self.last_ok_s.unwrap_or(self.learned_s);
        self.failures >= FAILURES_MAX && now_s.saturating_sub(last_s) > ADDRESS_AGE_MAX_S
    }
}

/// The file. Peers are a list, so that a damaged entry can be told from the rest.
#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    #[serde(default)]
    last_contact_s: Option<u64>,
    #[serde(default)]
    peers: Vec<StoredPeer>,
    #[serde(default)]
    nameless: Vec<Address>,
}

#[derive(Serialize, Deserialize)]
struct StoredPeer {
    node_id: String,
    #[serde(flatten)]
    peer: Peer,
}

impl KnownPeers {
    /// Reads the file's content. Entries that make no sense are left out.
    pub(super) fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        let stored: Stored = serde_json::from_slice(json)?;
        let mut known = Self { last_contact_s: stored.last_contact_s, ..Self::default() };
        let whole = |mut address: Address| {
            address.addr = address::split(&address.addr).ok()?.0.to_string();
            Some(address)
        };
        for StoredPeer { node_id, mut peer } in stored.peers.into_iter().take(PEERS_MAX) {
            let Ok(node_id) = NodeId::parse(&node_id) else { continue };
            peer.addresses = peer.addresses.into_iter().take(ADDRESSES_MAX).filter_map(whole).collect();
            peer.name = peer.name.as_deref().and_then(clean_name);
            known.peers.insert(node_id, peer);
        }
        known.nameless = stored.nameless.into_iter().take(ADDRESSES_MAX).filter_map(whole).collect();
        Ok(known)
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        let peers = self.peers.iter().map(|(id, peer)| StoredPeer { node_id: id.to_string(), peer: peer.clone() });
        let stored = Stored {
            format: 1,
            last_contact_s: self.last_contact_s,
            peers: peers.collect(),
            nameless: self.nameless.clone(),
        };
        serde_json::to_vec_pretty(&stored).expect("plain data can be written as JSON")
    }

    /// Says whether something changed since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn last_contact_s(&self) -> Option<u64> {
        self.last_contact_s
    }

    pub(super) fn learned(&mut self, peer: &NodeId, address: &str, origin: AddressOrigin, now_s: u64) {
        // An address that names somebody else at its end is not this peer's.
        let Ok((addr, named)) = address::split(address) else { return };
        if named.is_some_and(|named| named != *peer) {
            return;
        }
        self.learned_parsed(Some(peer), addr.to_string(), origin, now_s);
    }

    /// Remembers an address whose peer, if it is known, stands at its end.
    pub(super) fn learned_whole(&mut self, address: &str, origin: AddressOrigin, now_s: u64) {
        if let Ok((addr, peer)) = address::split(address) {
            self.learned_parsed(peer.as_ref(), addr.to_string(), origin, now_s);
        }
    }

    pub(super) fn connected(&mut self, peer: &NodeId, address: Option<&str>, now_s: u64) {
        self.last_contact_s = self.last_contact_s.max(Some(now_s));
        self.peer(peer, now_s).last_seen_s = Some(now_s);
        self.changed = true;
        if let Some(address) = address {
            self.learned(peer, address, AddressOrigin::Peer, now_s);
            if let Some(found) = self.find(peer, address) {
                found.last_ok_s = Some(now_s);
                found.failures = 0;
            }
        }
        self.bound();
    }

    /// Remembers which of the peers have not heard of a new key.
    pub(super) fn missed_key(&mut self, missed: &BTreeSet<NodeId>) {
        for (id, peer) in &mut self.peers {
            let misses = missed.contains(id);
            self.changed |= misses != peer.missed_key;
            peer.missed_key = misses;
        }
    }

    /// Remembers that a peer has the key that counts.
    pub(super) fn has_key(&mut self, peer: &NodeId) {
        if let Some(known) = self.peers.get_mut(peer) {
            self.changed |= known.missed_key;
            known.missed_key = false;
        }
    }

    /// Remembers an address of a peer, and when it worked, if it did.
    pub(super) fn seen(&mut self, peer: &NodeId, address: &str, last_ok_s: Option<u64>, now_s: u64) {
        self.learned(peer, address, AddressOrigin::Peer, now_s);
        if let Some(found) = self.find(peer, address)
            && last_ok_s > found.last_ok_s
        {
            (found.last_ok_s, found.failures) = (last_ok_s, 0);
            self.changed = true;
        }
    }

    pub(super) fn failed(&mut self, peer: &NodeId, address: &str, now_s: u64) {
        if let Some(found) = self.find(peer, address) {
            found.failures = found.failures.saturating_add(1);
            self.changed = true;
        }
        self.decay(now_s);
    }

    pub(super) fn named(&mut self, peer: &NodeId, name: &str) {
        let name = clean_name(name);
        if let Some(known) = self.peers.get_mut(peer)
            && known.name != name
        {
            known.name = name;
            self.changed = true;
        }
    }

    pub(super) fn forget(&mut self, peer: &NodeId) {
        self.changed |= self.peers.remove(peer).is_some();
    }

    /// Forgets all peers but these.
    pub(super) fn keep_only(&mut self, peers: &BTreeSet<NodeId>) {
        self.peers.retain(|id, _| peers.contains(id));
    }

    /// Forgets what is too old.
    pub(super) fn decay(&mut self, now_s: u64) {
        let before = (self.peers.len(), self.nameless.len());
        self.peers.retain(|_, peer| {
            peer.addresses.retain(|address| !address.is_stale(now_s));
            now_s.saturating_sub(peer.last_seen_s.unwrap_or(peer.learned_s)) <= PEER_AGE_MAX_S
        });
        self.nameless.retain(|address| now_s.saturating_sub(address.learned_s) <= PEER_AGE_MAX_S);
        self.changed |= before != (self.peers.len(), self.nameless.len());
    }

    pub(super) fn peers(&self) -> Vec<KnownPeer> {
        let mut peers: Vec<_> = self.peers.iter().map(|(id, peer)| known_peer(id, peer)).collect();
        peers.sort_by_key(|peer| std::cmp::Reverse(peer.last_seen_s));
        peers
    }

    pub(super) fn addresses(&self) -> Vec<KnownAddress> {
        let of_peers = self.peers.iter().flat_map(|(id, peer)| peer.addresses.iter().map(move |a| (Some(id), a)));
        let mut all: Vec<_> = of_peers.chain(self.nameless.iter().map(|address| (None, address))).collect();
        all.sort_by_key(|(_, address)| std::cmp::Reverse(address.promise()));
        let known = |(peer, address): (Option<&NodeId>, &Address)| KnownAddress {
            peer: peer.cloned(),
            addr: address.addr.clone(),
            origin: address.origin,
            last_ok_s: address.last_ok_s,
        };
        all.into_iter().map(known).collect()
    }

    fn learned_parsed(&mut self, peer: Option<&NodeId>, addr: String, origin: AddressOrigin, now_s: u64) {
        let addresses = match peer {
            Some(peer) => &mut self.peer(peer, now_s).addresses,
            None => &mut self.nameless,
        };
        match addresses.iter_mut().find(|known| known.addr == addr) {
            Some(known) if origin == AddressOrigin::Ticket => {
                *known = Address { origin, learned_s: now_s, failures: 0, ..known.clone() };
            }
            Some(_) => return,
            None => addresses.push(Address::new(addr, origin, now_s)),
        }
        if addresses.len() > ADDRESSES_MAX {
            let newest = addresses.len() - 1;
            let worst = (0..newest).min_by_key(|at| addresses[*at].promise());
            addresses.remove(worst.unwrap_or(newest));
        }
        self.changed = true;
        self.bound();
    }

    fn peer(&mut self, peer: &NodeId, now_s: u64) -> &mut Peer {
        let new = || Peer { name: None, last_seen_s: None, learned_s: now_s, missed_key: false, addresses: Vec::new() };
        self.peers.entry(peer.clone()).or_insert_with(new)
    }

    fn find(&mut self, peer: &NodeId, address: &str) -> Option<&mut Address> {
        let addr = address::split(address).ok()?.0.to_string();
        self.peers.get_mut(peer)?.addresses.iter_mut().find(|known| known.addr == addr)
    }

    fn bound(&mut self) {
        while self.peers.len() > PEERS_MAX {
            let age = |peer: &Peer| (peer.last_seen_s.is_some(), peer.last_seen_s.unwrap_or(peer.learned_s));
            let oldest = self.peers.iter().min_by_key(|(_, peer)| age(peer)).map(|(id, _)| id.clone());
            let Some(oldest) = oldest else { return };
            self.peers.remove(&oldest);
        }
    }
}

fn known_peer(id: &NodeId, peer: &Peer) -> KnownPeer {
    KnownPeer {
        node_id: id.clone(),
        name: peer.name.clone(),
        last_seen_s: peer.last_seen_s,
        missed_key: peer.missed_key,
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// Keeps of a name what can be shown.
fn clean_name(name: &str) -> Option<String> {
    let name: String = name.chars().filter(|c| !c.is_control()).take(NAME_CHARACTERS_MAX).collect();
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;
    use proptest::prelude::*;

    use super::*;

    fn node(seed: u16) -> NodeId {
        NodeKey::from_secret(&std::array::from_fn(|i| (seed >> (8 * (i % 2))) as u8)).node_id()
    }

    fn at(port: u16) -> String {
        format!("/ip4/192.0.2.1/tcp/{port}")
    }

    fn ports(known: &KnownPeers) -> Vec<String> {
        known.addresses().into_iter().map(|known| known.addr.rsplit('/').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_worked_last_is_tried_first() {
        let mut known = KnownPeers::default();
        known.learned(&node(1), &at(1), AddressOrigin::Peer, 100);
        known.learned(&node(1), &format!("{}/p2p/{}", at(2), node(1)), AddressOrigin::Ticket, 100);
        known.connected(&node(2), Some(&at(3)), 110);
        known.connected(&node(3), Some(&at(4)), 120);
        assert_eq!(ports(&known), ["4", "3", "2", "1"]);
        for _ in 0..FAILURES_MAX {
            known.failed(&node(3), &at(4), 130);
        }
        assert_eq!(ports(&known), ["3", "2", "1", "4"]);
        assert_eq!(known.peers()[0].node_id, node(3));
        assert_eq!(known.last_contact_s(), Some(120));
    }

    #[test]
    fn an_address_that_was_seen_to_work_counts_from_then_on() {
        let mut known = KnownPeers::default();
        known.seen(&node(1), &at(1), None, 100);
        known.seen(&node(1), &at(2), Some(90), 100);
        assert_eq!(ports(&known), ["2", "1"]);
        assert_eq!(known.addresses()[0].last_ok_s, Some(90));
        assert!(known.take_changed());
        known.seen(&node(1), &at(2), Some(80), 110);
        assert!(!known.take_changed(), "nothing newer");
    }

    #[test]
    fn an_address_that_names_another_peer_is_not_taken() {
        let mut known = KnownPeers::default();
        known.learned(&node(1), &format!("{}/p2p/{}", at(2), node(2)), AddressOrigin::Peer, 100);
        known.learned(&node(1), "192.0.2.1:7891", AddressOrigin::Peer, 100);
        assert_eq!(known, KnownPeers::default());
    }

    #[test]
    fn old_peers_and_dead_addresses_are_forgotten() {
        let mut known = KnownPeers::default();
        known.connected(&node(1), Some(&at(1)), 0);
        known.connected(&node(2), Some(&at(2)), PEER_AGE_MAX_S);
        known.learned(&node(2), &at(3), AddressOrigin::Peer, PEER_AGE_MAX_S);
        for _ in 0..FAILURES_MAX {
            known.failed(&node(2), &at(3), PEER_AGE_MAX_S);
        }
        assert_eq!(ports(&known), ["2", "1", "3"]);
        known.decay(PEER_AGE_MAX_S + ADDRESS_AGE_MAX_S + 1);
        assert_eq!(ports(&known), ["2"]);
    }

    #[test]
    fn names_are_fit_to_be_shown() {
        let mut known = KnownPeers::default();
        known.named(&node(1), "nobody");
        known.connected(&node(1), None, 1);
        known.named(&node(1), "  the\u{1b}[2J bee  ");
        assert_eq!(known.peers()[0].name.as_deref(), Some("the[2J bee"));
        known.named(&node(1), &"x".repeat(1_000));
        assert_eq!(known.peers()[0].name.as_ref().unwrap().len(), NAME_CHARACTERS_MAX);
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let mut known = KnownPeers::default();
        for i in 0..300 {
            known.connected(&node(i), Some(&at(1)), u64::from(i));
        }
        for port in 0..40 {
            known.learned(&node(299), &at(port), AddressOrigin::Peer, u64::from(port));
            known.learned_whole(&at(port), AddressOrigin::Ticket, u64::from(port));
        }
        assert_eq!(known.peers.len(), PEERS_MAX);
        assert!(known.peers.contains_key(&node(299)) && !known.peers.contains_key(&node(0)));
        assert_eq!(known.peers[&node(299)].addresses.len(), ADDRESSES_MAX);
        assert_eq!(known.addresses()[0].addr, at(1), "the one that worked stays");
        assert_eq!(known.nameless.len(), ADDRESSES_MAX);
    }

    proptest! {
        #[test]
        fn what_is_known_is_read_back(events in prop::collection::vec((0..4_u8, 0..5_u16, 1..5_u16, 0..100_u64), 0..40)) {
            let mut known = KnownPeers::default();
            for (kind, seed, port, now_s) in events {
                match kind {
                    0 => known.learned(&node(seed), &at(port), AddressOrigin::Peer, now_s),
                    1 => known.connected(&node(seed), Some(&at(port)), now_s),
                    2 => known.failed(&node(seed), &at(port), now_s),
                    _ => known.learned_whole(&at(port), AddressOrigin::Ticket, now_s),
                }
            }
            known.take_changed();
            prop_assert_eq!(KnownPeers::from_json(&known.to_json()).unwrap(), known);
        }

        #[test]
        fn no_file_brings_the_reader_down(json in "\\{.{0,60}\\}") {
            let _ = KnownPeers::from_json(json.as_bytes());
        }
    }
}
