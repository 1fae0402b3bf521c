//! Blocks by their names, to and from peers: bitswap 1.2.0, as go and js peers speak it.
//!
//! [`bitswap`] makes it over the streams of a [`NetHandle`]: whoever wants blocks asks a peer by [`Bitswap::want`] and hears by
//! [`BitswapEvents`] what became of it; what peers want is looked up in a [`BlockStore`]. Every want ends in exactly one event, unless it is
//! cancelled: the block, checked against its name, or word that it is not to be had there.
//!
//! Source: <https://specs.ipfs.tech/bitswap-protocol/>.

use std::sync::Arc;
use std::{fmt, io};

use bombus_core::identity::NodeId;
pub use cid::Cid;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::failure::NetError;
use crate::handle::NetHandle;

mod asking;
mod config;
mod exchange;
#[doc(hidden)]
pub mod fuzzing;
mod hear;
mod ledger;
mod service;
mod talk;
pub(crate) mod wire;

pub use config::BitswapConfig;
pub use service::BitswapService;

use exchange::Exchange;

/// The protocol.
pub(crate) const PROTOCOL: &str = "/ipfs/bitswap/1.2.0";

/// Where blocks for peers are from.
pub trait BlockStore: Send + Sync + 'static {
    /// Returns a block for a peer; none when it is not here, or not for this peer.
    ///
    /// It may block: it is called on a thread for that. Its caller does not check that the block fits its name.
    ///
    /// # Errors
    ///
    /// When the store fails: the peer is told that the block is not here, and the failure is logged.
    fn block(&self, peer: &NodeId, cid: &Cid) -> io::Result<Option<Vec<u8>>>;
}

/// What became of a want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BitswapEvent {
    /// The block has come.
    Block {
        /// From whom.
        peer: NodeId,
        /// Its name, which it was checked against.
        cid: Cid,
        /// Its bytes.
        data: Vec<u8>,
    },
    /// The block is not to be had from this peer: it says so, it does not answer in time, it is not reached, or it cannot be asked because
    /// too many wants wait or because the block's name has another hash than SHA-256.
    Absent {
        /// From whom.
        peer: NodeId,
        /// The block's name.
        cid: Cid,
    },
}

/// What was exchanged since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BitswapReport {
    /// Blocks that were asked for and have come.
    pub blocks_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Blocks that peers got.
    pub blocks_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Wants that ended without the block.
    pub absent: u64,
    /// Wants of peers that were refused since a peer had too many.
    pub wants_refused: u64,
    /// Blocks that came without having been asked for, or too late, or under a wrong name.
    pub blocks_unwanted: u64,
    /// Messages that were too large or none at all; each ended its stream.
    pub messages_refused: u64,
    /// Streams that were reset because their peer had too many.
    pub streams_refused: u64,
    /// Peers that blocks are exchanged with at the moment.
    pub peers: usize,
}

/// Makes the exchange of blocks over the mesh: a handle to ask with, the events that answer, and the service that has to run for them.
///
/// # Errors
///
/// When the protocol is accepted already, or the mesh has stopped.
pub fn bitswap(
    net: NetHandle,
    store: Arc<dyn BlockStore>,
    config: BitswapConfig,
) -> Result<(Bitswap, BitswapEvents, BitswapService), NetError> {
    let incoming = net.accept(PROTOCOL)?;
    let net_events = net.events();
    let config = config.clamped();
    let exchange = Arc::new(Exchange::new(config, store));
    let (events, receiver) = mpsc::channel(config.events);
    let handle = Bitswap { exchange: Arc::clone(&exchange) };
    let service = BitswapService { exchange, net, net_events, incoming, events };
    Ok((handle, BitswapEvents { receiver }, service))
}

/// Asks peers for blocks; cheap to clone.
#[derive(Clone)]
pub struct Bitswap {
    exchange: Arc<Exchange>,
}

impl fmt::Debug for Bitswap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bitswap").field("report", &self.report()).finish_non_exhaustive()
    }
}

impl Bitswap {
    /// Asks a peer for blocks; it is dialled if there is no connection. What it is asked for already is not asked for twice.
    ///
    /// Wants that wait for one peer go to it together, as many at once as [`BitswapConfig::asked_per_peer`] says.
    pub fn want(&self, peer: &NodeId, cids: &[Cid]) {
        self.exchange.want(peer, cids);
    }

    /// Takes wants back: they end without an event, unless that is under way.
    pub fn cancel(&self, peer: &NodeId, cids: &[Cid]) {
        self.exchange.cancel(peer, cids);
    }

    /// Returns what was exchanged since the start.
    #[must_use]
    pub fn report(&self) -> BitswapReport {
        self.exchange.report()
    }
}

/// What became of wants, in the order in which it happened.
///
/// At most [`BitswapConfig::events`] wait. When so many do, reading from peers stops until some are taken.
#[derive(Debug)]
pub struct BitswapEvents {
    receiver: mpsc::Receiver<BitswapEvent>,
}

impl BitswapEvents {
    /// Waits for the next event; `None` once the service has ended. Safe to cancel.
    pub async fn next(&mut self) -> Option<BitswapEvent> {
        self.receiver.recv().await
    }
}
