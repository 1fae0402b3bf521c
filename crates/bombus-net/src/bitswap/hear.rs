//! Listening to one stream of a peer.

use std::io;
use std::sync::Arc;

use bombus_core::identity::NodeId;
use tokio::io::{AsyncRead, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::exchange::{Exchange, kibibytes};
use super::wire::{self, Block, Heard};
use super::{BitswapEvent, BitswapReport};
use crate::stream::NetStream;

/// Listens to one stream of a peer.
pub(super) struct Hear {
    exchange: Arc<Exchange>,
    events: mpsc::Sender<BitswapEvent>,
    peer: NodeId,
}

impl Hear {
    /// Begins, unless the peer has too many streams.
    pub(super) fn begin(exchange: Arc<Exchange>, events: mpsc::Sender<BitswapEvent>, peer: NodeId) -> Option<Self> {
        exchange.stream_opened(&peer).then(|| Self { exchange, events, peer })
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
        let permits = u32::try_from(kibibytes(length)).map_err(io::Error::other)?;
        // The semaphore is never closed. Whoever waits here waits for others to be done.
        let _room = self.exchange.receiving.acquire_many(permits).await.map_err(io::Error::other)?;
        let body = timeout(config.message(), wire::read_body(stream, length)).await??;
        let heard = wire::decode(&body).map_err(wire::refused)?;
        drop(body);
        self.take(heard).await;
        Ok(true)
    }

    async fn take(&self, heard: Heard) {
        let Heard { is_full, wants, blocks, presences, unreadable } = heard;
        if unreadable > 0 {
            self.exchange.count(|report| report.wants_refused += unreadable as u64);
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
