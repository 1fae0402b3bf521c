//! Blocks by their names: those that peers ask for, those that databases wait for, and those without which one cannot be opened.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_net::NetEvent;
use bombus_net::bitswap::{BitswapEvent, BitswapEvents, BlockStore, Cid};
use orbitdb::OrbitDb;
use orbitdb::cid::Hash;
use orbitdb::manifest::Address;
use orbitdb::replica::Input;
use orbitdb::sync::Peer;
use tokio::sync::Mutex;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::kept::KeptBlocks;
use super::replication::Order;
use super::shared::{Shared, aside};
use crate::supervised::PartEnded;

/// The protocol by which blocks are fetched, as peers announce it.
const BITSWAP_PROTOCOL: &str = "/ipfs/bitswap/1.2.0";
/// How often peers are asked again for what a database is.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The blocks of the databases that are open, and those that are kept beside them, for peers.
pub(super) struct OpenBlocks(pub(super) OrbitDb, pub(super) Arc<KeptBlocks>);

impl BlockStore for OpenBlocks {
    fn block(&self, _peer: &NodeId, cid: &Cid) -> io::Result<Option<Vec<u8>>> {
        let Some(hash) = Hash::from_cid(&cid.to_bytes()) else { return Ok(None) };
        match self.0.block(&hash).map_err(io::Error::other)? {
            Some(block) => Ok(Some(block)),
            None => self.1.get(&hash).map_err(io::Error::other),
        }
    }
}

/// Returns the name of a block as the exchange of blocks writes it.
pub(super) fn cid_of(hash: &Hash) -> Cid {
    Cid::try_from(&hash.to_cid()[..]).expect("the name of a block is a CID")
}

/// For whom a block was asked of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// A database that is open.
    Database(Address),
    /// One that is being opened.
    Opening,
    /// Who reads a block by its name alone.
    Reader,
}

/// What peers were asked for, until they answer.
#[derive(Debug, Default)]
pub(super) struct Asked {
    by_hash: HashMap<Hash, Vec<(NodeId, For)>>,
}

impl Asked {
    /// Takes note that a peer is asked.
    pub(super) fn add(&mut self, hash: Hash, peer: &NodeId, who: For) {
        let asked = self.by_hash.entry(hash).or_default();
        if !asked.iter().any(|(of, for_whom)| of == peer && *for_whom == who) {
            asked.push((peer.clone(), who));
        }
    }

    /// Takes a block that has come. Returns for whom it was asked, and which others need not be asked any more.
    fn came(&mut self, hash: &Hash, peer: &NodeId) -> (Vec<For>, Vec<NodeId>) {
        let Some(asked) = self.by_hash.remove(hash) else { return (Vec::new(), Vec::new()) };
        let (mut whom, mut others) = (Vec::new(), Vec::new());
        for (of, who) in asked {
            if !whom.contains(&who) {
                whom.push(who);
            }
            if of != *peer && !others.contains(&of) {
                others.push(of);
            }
        }
        (whom, others)
    }

    /// Takes note that a peer has not got a block. Returns for whom it was asked.
    fn absent(&mut self, hash: &Hash, peer: &NodeId) -> Vec<For> {
        let Some(asked) = self.by_hash.get_mut(hash) else { return Vec::new() };
        let mut whom = Vec::new();
        asked.retain(|(of, who)| {
            if of == peer {
                whom.push(*who);
            }
            of != peer
        });
        if asked.is_empty() {
            self.by_hash.remove(hash);
        }
        whom
    }
}

/// Hands on what became of wants, until `stop`. A database that has much to do holds up reading from peers, so that little waits in memory.
pub(super) async fn hand_on(
    shared: &Arc<Shared>,
    events: &Mutex<BitswapEvents>,
    stop: &CancellationToken,
) -> Result<(), PartEnded> {
    let events = &mut *events.lock().await;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            event = events.next() => match event.ok_or(PartEnded::MeshEnded)? {
                BitswapEvent::Block { peer, cid, data } => {
                    stop.run_until_cancelled(came(shared, &peer, &cid, data)).await;
                }
                BitswapEvent::Absent { peer, cid } => {
                    stop.run_until_cancelled(absent(shared, &peer, &cid)).await;
                }
            },
        }
    }
}

async fn came(shared: &Shared, peer: &NodeId, cid: &Cid, data: Vec<u8>) {
    let Some(hash) = Hash::from_cid(&cid.to_bytes()) else { return };
    let (whom, others) = shared.asked().came(&hash, peer);
    for other in others {
        shared.bitswap.cancel(&other, &[*cid]);
    }
    for who in whom {
        match who {
            For::Database(address) => {
                order(shared, &address, Input::Block(Peer::new(peer.as_str()), data.clone())).await;
            }
            For::Opening => shared.orbit.supply(&data),
            For::Reader => shared.awaited().came(&hash, &data),
        }
    }
}

async fn absent(shared: &Shared, peer: &NodeId, cid: &Cid) {
    let Some(hash) = Hash::from_cid(&cid.to_bytes()) else { return };
    let whom = shared.asked().absent(&hash, peer);
    for who in whom {
        match who {
            For::Database(address) => {
                order(shared, &address, Input::Absent(Peer::new(peer.as_str()), hash)).await;
            }
            For::Opening => {}
            For::Reader => shared.awaited().absent(&hash, peer),
        }
    }
}

async fn order(shared: &Shared, address: &Address, input: Input) {
    let replication = shared.replications().get(address).cloned();
    if let Some(replication) = replication {
        // One that was closed meanwhile needs nothing any more.
        drop(replication.orders.send(Order::Input(input)).await);
    }
}

/// Asks peers for what is missing to open databases, until `stop`.
pub(super) async fn find_all(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), PartEnded> {
    let mut missing = shared.orbit.missing();
    let mut events = shared.net.events();
    loop {
        let now: Vec<Hash> = missing.borrow_and_update().iter().copied().collect();
        if !now.is_empty() {
            find(shared, &now).await;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            changed = missing.changed() => changed.map_err(|_| PartEnded::MeshEnded)?,
            () = sleep(ASK_AGAIN), if !now.is_empty() => {}
            met = meets(&mut events), if !now.is_empty() => met?,
        }
        let still = missing.borrow().clone();
        take_back(shared, now.iter().filter(|hash| !still.contains(*hash)));
    }
}

/// Waits for a new peer.
async fn meets(events: &mut bombus_net::NetEvents) -> Result<(), PartEnded> {
    loop {
        match events.next().await {
            Some(NetEvent::PeerConnected { .. } | NetEvent::Lagged(_)) => return Ok(()),
            Some(_) => {}
            None => return Err(PartEnded::MeshEnded),
        }
    }
}

/// Asks for blocks: other databases of this node first, then peers.
async fn find(shared: &Arc<Shared>, missing: &[Hash]) {
    let (orbit, hashes) = (shared.orbit.clone(), missing.to_vec());
    let here = aside(async move {
        for hash in hashes {
            if let Some(block) = orbit.block(&hash)? {
                orbit.supply(&block);
            }
        }
        Ok(())
    });
    if let Err(error) = here.await {
        tracing::warn!(%error, "what a database is could not be looked up here");
    }
    let still: BTreeSet<Hash> = shared.orbit.missing().borrow().clone();
    let wanted: Vec<Hash> = missing.iter().filter(|hash| still.contains(*hash)).copied().collect();
    for peer in serving(shared).take(shared.config.open_peers_max.max(1)) {
        shared.want_for(For::Opening, &peer, &wanted);
    }
}

/// Returns the connected peers that exchange blocks, or have not said yet what they speak.
pub(super) fn serving(shared: &Shared) -> impl Iterator<Item = NodeId> {
    let serves = |protocols: &[String]| protocols.is_empty() || protocols.iter().any(|name| name == BITSWAP_PROTOCOL);
    let peers = shared.net.peers().into_iter();
    peers.filter(move |peer| peer.connected.is_some() && serves(&peer.protocols)).map(|peer| peer.node_id)
}

/// Takes back what a database that is being opened does not wait for any more.
fn take_back<'a>(shared: &Shared, hashes: impl Iterator<Item = &'a Hash>) {
    for hash in hashes {
        no_longer(shared, hash, For::Opening);
    }
}

/// Takes back what was asked of peers for somebody, unless somebody else waits for it as well.
pub(super) fn no_longer(shared: &Shared, hash: &Hash, who: For) {
    let peers: Vec<NodeId> = {
        let mut asked = shared.asked();
        let Some(whom) = asked.by_hash.get_mut(hash) else { return };
        let peers = whom.iter().filter(|(_, of)| *of == who).map(|(peer, _)| peer.clone()).collect();
        whom.retain(|(_, of)| *of != who);
        if !whom.is_empty() {
            return;
        }
        asked.by_hash.remove(hash);
        peers
    };
    for peer in peers {
        shared.bitswap.cancel(&peer, &[cid_of(hash)]);
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;

    fn peer(number: u8) -> NodeId {
        NodeKey::from_secret(&[number; 32]).node_id()
    }

    #[test]
    fn a_block_goes_to_all_that_wait_for_it_and_others_need_not_send_it() {
        let (hash, database) = (Hash::of(b"block"), Address::new(Hash::of(b"manifest")));
        let mut asked = Asked::default();
        asked.add(hash, &peer(1), For::Opening);
        asked.add(hash, &peer(2), For::Database(database));
        asked.add(hash, &peer(2), For::Database(database));
        let (whom, others) = asked.came(&hash, &peer(1));
        assert_eq!(whom, [For::Opening, For::Database(database)]);
        assert_eq!(others, [peer(2)]);
        assert!(asked.by_hash.is_empty());
    }

    #[test]
    fn who_has_not_got_it_is_told_to_those_that_asked_it() {
        let (hash, database) = (Hash::of(b"block"), Address::new(Hash::of(b"manifest")));
        let mut asked = Asked::default();
        asked.add(hash, &peer(1), For::Database(database));
        asked.add(hash, &peer(2), For::Opening);
        assert_eq!(asked.absent(&hash, &peer(1)), [For::Database(database)]);
        assert_eq!(asked.absent(&hash, &peer(1)), []);
        assert_eq!(asked.absent(&hash, &peer(2)), [For::Opening]);
        assert!(asked.by_hash.is_empty());
    }

    #[test]
    fn names_are_the_same_in_both_libraries() {
        let hash = Hash::of(b"block");
        assert_eq!(Hash::from_cid(&cid_of(&hash).to_bytes()), Some(hash));
    }
}
