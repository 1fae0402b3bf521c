//! `/bombus/entries/1`: own entries straight from one database to another, over a stream to each node that has it open, too.
//!
//! A message of a topic is signed and checked beside the entry in it, which has a signature of its own, and passes the one task of the mesh
//! at both ends. A stream that stays open has none of that. It goes one way: the node that writes opens it, says which database it is about,
//! and sends the blocks of its entries in the order in which they became safe. Peers in JavaScript, and nodes that no connection leads to,
//! hear of them by the topic.

pub(crate) mod fuzzing;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_net::NetStream;
use orbitdb::manifest::Address;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::replication::Heard;
use super::shared::Shared;
use crate::places::Places;
use crate::streams::answer_each;
use crate::supervised::PartEnded;
use crate::wire::{read_bytes, read_frame, write_frame};

/// The protocol.
pub const ENTRIES_PROTOCOL: &str = "/bombus/entries/1";
/// Most bytes of what a stream begins with: the address of a database.
const ADDRESS_BYTES_MAX: usize = 256;

/// The streams to the nodes that have a database open, too.
pub(super) struct Links<'a> {
    shared: &'a Arc<Shared>,
    address: Address,
    behind: &'a Arc<AtomicBool>,
    links: BTreeMap<NodeId, Link>,
    /// Those who write them; dropping it ends them.
    running: JoinSet<()>,
}

struct Link {
    entries: mpsc::Sender<Arc<[u8]>>,
    is_open: Arc<AtomicBool>,
}

impl Link {
    fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire) && !self.entries.is_closed()
    }
}

impl<'a> Links<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>, address: Address, behind: &'a Arc<AtomicBool>) -> Self {
        Self { shared, address, behind, links: BTreeMap::new(), running: JoinSet::new() }
    }

    /// Makes sure that those of the peers that are nodes are about to have a stream each.
    pub(super) fn follow(&mut self, peers: &[NodeId]) {
        self.links.retain(|peer, link| peers.contains(peer) && !link.entries.is_closed());
        while let Some(ended) = self.running.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(db.address = %self.address, %error, "a stream of entries to a peer failed");
                self.behind.store(true, Ordering::Relaxed);
            }
        }
        for peer in peers {
            if !self.links.contains_key(peer) && self.shared.speaks(peer, ENTRIES_PROTOCOL) != Some(false) {
                self.open(peer.clone());
            }
        }
    }

    fn open(&mut self, peer: NodeId) {
        let (sender, entries) = mpsc::channel(self.shared.config.entries.waiting_max.max(1));
        let is_open = Arc::new(AtomicBool::new(false));
        self.links.insert(peer.clone(), Link { entries: sender, is_open: Arc::clone(&is_open) });
        let (shared, address, behind) = (Arc::clone(self.shared), self.address, Arc::clone(self.behind));
        // One that fails is opened anew when peers are looked at next.
        self.running.spawn(async move {
            if let Err(error) = write_all(&shared, &address, &peer, entries, &is_open).await {
                tracing::debug!(db.address = %address, peer.id = %peer, %error, "a stream of entries to a peer ended");
                if is_open.load(Ordering::Acquire) {
                    behind.store(true, Ordering::Relaxed);
                }
            }
        });
    }

    /// Hands an entry to all nodes that have a stream. Returns whether there are peers, and these are all of them.
    pub(super) fn send(&self, block: &Arc<[u8]>, peers: &[NodeId]) -> bool {
        for link in self.links.values().filter(|link| link.is_open()) {
            if link.entries.try_send(Arc::clone(block)).is_err() {
                self.behind.store(true, Ordering::Relaxed);
            }
        }
        !peers.is_empty() && peers.iter().all(|peer| self.links.get(peer).is_some_and(Link::is_open))
    }
}

/// Opens a stream to a peer and writes entries to it, until there are no more or the peer ends it.
async fn write_all(
    shared: &Arc<Shared>,
    address: &Address,
    peer: &NodeId,
    mut entries: mpsc::Receiver<Arc<[u8]>>,
    is_open: &AtomicBool,
) -> io::Result<()> {
    let stream = shared.net.open_stream(peer, ENTRIES_PROTOCOL).await.map_err(io::Error::other)?;
    let mut stream = stream.in_background();
    let limit = shared.config.entries.stall_limit();
    write(&mut stream, address.to_string().as_bytes(), ADDRESS_BYTES_MAX, limit).await?;
    is_open.store(true, Ordering::Release);
    let bytes_max = shared.config.limits().block_bytes;
    loop {
        tokio::select! {
            biased;
            entry = entries.recv() => match entry {
                Some(entry) => write(&mut stream, &entry, bytes_max, limit).await?,
                None => return stream.shutdown().await,
            },
            // Nothing comes the other way but its end.
            _ = stream.read_u8() => return Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

async fn write(stream: &mut NetStream, bytes: &[u8], max: usize, limit: Duration) -> io::Result<()> {
    timeout(limit, write_frame(stream, bytes, max)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Takes the entries that peers send, until `stop`.
pub(super) async fn serve_all(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), PartEnded> {
    let incoming = shared.net.accept(ENTRIES_PROTOCOL)?;
    let limits = &shared.config.entries;
    let places = Places::new(limits.streams_max, limits.streams_per_peer_max);
    answer_each(incoming, &places, stop, ENTRIES_PROTOCOL, |peer, stream| {
        let shared = Arc::clone(shared);
        async move { read_all(&shared, &peer, stream.in_background()).await }
    })
    .await
}

/// Hands what a peer sends to the database that it says, as long as that is open. A database that is behind holds up the stream.
async fn read_all(shared: &Shared, peer: &NodeId, mut stream: NetStream) -> io::Result<()> {
    let limit = shared.config.entries.stall_limit();
    let address = timeout(limit, read_address(&mut stream)).await??;
    let Some(replication) = shared.replications().get(&address).cloned() else { return Ok(()) };
    let bytes_max = shared.config.limits().block_bytes;
    loop {
        let block = tokio::select! {
            biased;
            () = replication.heard.closed() => return Ok(()),
            length = stream.read_u32() => match length {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                length => timeout(limit, read_entry(&mut stream, length?, bytes_max)).await??,
            },
        };
        if replication.heard.send(Heard { from: peer.clone(), block }).await.is_err() {
            return Ok(());
        }
    }
}

/// Reads what a stream begins with: which database it is about.
async fn read_address(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Address> {
    let address = read_frame(stream, ADDRESS_BYTES_MAX).await?;
    let address = str::from_utf8(&address).ok().and_then(|address| address.parse().ok());
    address.ok_or_else(|| invalid("no address"))
}

/// Reads an entry of which the length has come.
async fn read_entry(stream: &mut (impl AsyncRead + Unpin), length: u32, bytes_max: usize) -> io::Result<Vec<u8>> {
    if length == 0 {
        return Err(invalid("an entry of no bytes"));
    }
    read_bytes(stream, length as usize, bytes_max).await
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
