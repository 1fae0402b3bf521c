//! Listening to one stream of a peer.

use std::io;
use std::sync::Arc;

use bombus_core::identity::NodeId;
use tokio::io::{AsyncRead, AsyncWriteExt, BufReader};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::timeout;

use super::exchange::{Exchange, kibibytes};
use super::wire::{self, Block, Heard};
use super::{BitswapEvent, BitswapReport};
use crate::stream::NetStream;

/// Up to so many bytes, a message is read without having to wait for room: wants come through whatever else is held up.
const SMALL_MESSAGE_BYTES: usize = 16 << 10;

/// Listens to one stream of a peer.
pub(super) struct Hear {
    exchange: Arc<Exchange>,
    events: mpsc::Sender<BitswapEvent>,
    peer: NodeId,
    /// How much of the memory for messages the peer may have.
    share: Arc<Semaphore>,
}

impl Hear {
    /// Begins, unless the peer has too many streams.
    pub(super) fn begin(exchange: Arc<Exchange>, events: mpsc::Sender<BitswapEvent>, peer: NodeId) -> Option<Self> {
        let share = exchange.stream_opened(&peer)?;
        Some(Self { exchange, events, peer, share })
    }

    pub(super) async fn run(self, mut stream: NetStream) {
        // Answers take a stream of this node's own. Where that cannot be told, nothing comes either.
        let _ = timeout(self.exchange.config.message(), stream.shutdown()).await;
        let mut stream = BufReader::new(stream);
        loop {
            match self.next(&mut stream).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    if error.kind() == io::ErrorKind::InvalidData {
                        self.exchange.count(|report| report.messages_refused += 1);
                    }
                    tracing::debug!(peer.id = %self.peer, %error, "a stream with blocks of a peer ended");
                    return;
                }
            }
        }
    }

    /// Takes the next message; says whether there was one.
    async fn next(&self, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<bool> {
        let config = &self.exchange.config;
        let length = timeout(config.message(), wire::read_length(stream, config.message_bytes_max)).await??;
        let Some(length) = length else { return Ok(false) };
        let _room = self.room(length).await?;
        let body = timeout(config.message(), wire::read_body(stream, length)).await??;
        let heard = wire::decode(&body).map_err(wire::refused)?;
        drop(body);
        self.take(heard).await;
        Ok(true)
    }

    /// Waits until a message of this length may be in memory: first for others of the peer, then for those of all.
    async fn room(&self, length: usize) -> io::Result<Option<[SemaphorePermit<'_>; 2]>> {
        if length <= SMALL_MESSAGE_BYTES {
            return Ok(None);
        }
        let permits = u32::try_from(kibibytes(length)).map_err(io::Error::other)?;
        // The semaphores are never closed.
        let of_share = self.share.acquire_many(permits).await.map_err(io::Error::other)?;
        let of_all = self.exchange.receiving.acquire_many(permits).await.map_err(io::Error::other)?;
        Ok(Some([of_share, of_all]))
    }

    async fn take(&self, heard: Heard) {
        let Heard { is_full, mut wants, blocks, presences, unreadable } = heard;
        // Of a flood, only so much is looked at that it could be a full list after one that is taken back.
        let looked_at = self.exchange.config.wants_per_peer.saturating_mul(2).min(wants.len());
        let refused = wants.len() - looked_at + unreadable;
        wants.truncate(looked_at);
        if refused > 0 {
            self.exchange.count(|report| report.wants_refused += refused as u64);
        }
        if is_full || !wants.is_empty() || !presences.is_empty() {
            self.exchange.heard(&self.peer, wants, is_full, &presences);
        }
        for block in blocks {
            self.take_block(block).await;
        }
    }

    async fn take_block(&self, block: Block) {
        let unwanted = |report: &mut BitswapReport| report.blocks_unwanted += 1;
        // Who was asked for nothing is not worth a hash.
        if block.data.len() > self.exchange.config.block_bytes_max || !self.exchange.is_asked(&self.peer) {
            return self.exchange.count(unwanted);
        }
        let cid = block.name().filter(|cid| self.exchange.arrived(&self.peer, cid, block.data.len()));
        let Some(cid) = cid else { return self.exchange.count(unwanted) };
        let event = BitswapEvent::Block { peer: self.peer.clone(), cid, data: block.data };
        // Where nobody listens any more, blocks are still sent to others.
        let _ = self.events.send(event).await;
    }
}

impl Drop for Hear {
    fn drop(&mut self) {
        self.exchange.stream_closed(&self.peer);
    }
}
