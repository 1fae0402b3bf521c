//! Heads between two nodes, over `/orbitdb/heads` and the address: each side sends the blocks of its heads, closes its half, and reads to
//! the end.
//!
//! There are no lengths between blocks. Peers in JavaScript take each chunk of a stream for one block, so towards them each head goes on a
//! stream of its own. Nodes like this one catch up in bulk first, where they speak the protocol for that.

use std::io;
use std::sync::Arc;

use bombus_core::identity::NodeId;
use bombus_net::{NetStream, OpenError};
use orbitdb::DatabaseError;
use orbitdb::manifest::Address;
use orbitdb::replica::Input;
use orbitdb::sync::Peer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::error::DbError;
use super::oplog::{self, CatchUpError, Turns};
use super::shared::{Shared, aside};

/// Up to so many bytes reach a peer in JavaScript as one chunk of a stream: what the multiplexer puts into one frame.
const CHUNK_BYTES_MAX: usize = 16 << 10;

/// Why an exchange of heads failed.
#[derive(Debug, thiserror::Error)]
enum ExchangeError {
    /// No stream to the peer, or none of this protocol.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The stream failed.
    #[error(transparent)]
    Stream(#[from] io::Error),
    /// The peer took too long.
    #[error("the peer took too long")]
    Silent,
    /// The database is closed, or failed.
    #[error(transparent)]
    Database(#[from] DbError),
}

/// Exchanges heads with a peer, and tells the database how that went.
pub(super) async fn meet(shared: &Arc<Shared>, address: Address, turns: &Arc<Turns>, peer: &NodeId) {
    let worked = match try_meet(shared, address, turns, peer).await {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(db.address = %address, peer.id = %peer, %error, "heads were not exchanged");
            false
        }
    };
    shared.input(&address, Input::Exchanged(Peer::new(peer.as_str()), worked)).await;
}

async fn try_meet(
    shared: &Arc<Shared>,
    address: Address,
    turns: &Arc<Turns>,
    peer: &NodeId,
) -> Result<(), ExchangeError> {
    if shared.speaks_oplog(peer) != Some(true) {
        let in_one_stream = catch_up(shared, address, turns, peer).await;
        return offer(shared, address, peer, in_one_stream).await;
    }
    let heads = heads(shared, address).await?;
    let stream = shared.net.open_stream(peer, &address.heads_protocol()).await?;
    let received = swap(shared, stream, &heads).await?;
    take_new(shared, address, turns, peer, received).await;
    Ok(())
}

/// Answers a stream that a peer opened.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    address: Address,
    turns: &Arc<Turns>,
    peer: &NodeId,
    stream: NetStream,
) {
    match try_answer(shared, address, turns, peer, stream).await {
        Ok(()) => shared.input(&address, Input::Answered(Peer::new(peer.as_str()))).await,
        Err(error) => {
            tracing::debug!(db.address = %address, peer.id = %peer, %error, "heads of a peer were not taken");
        }
    }
}

async fn try_answer(
    shared: &Arc<Shared>,
    address: Address,
    turns: &Arc<Turns>,
    peer: &NodeId,
    stream: NetStream,
) -> Result<(), ExchangeError> {
    let mut heads = heads(shared, address).await?;
    let others = if shared.speaks_oplog(peer) == Some(true) {
        Vec::new()
    } else {
        heads = without_large(shared, address, heads).await;
        heads.split_off(heads.len().min(1))
    };
    let received = swap(shared, stream, &heads).await?;
    take_new(shared, address, turns, peer, received).await;
    for head in others {
        let stream = shared.net.open_stream(peer, &address.heads_protocol()).await?;
        let received = swap(shared, stream, &[head]).await?;
        take(shared, address, peer, vec![received]).await;
    }
    Ok(())
}

/// Takes heads of a peer, unless they are here; what they follow is there when they come, if the peer can send it in bulk.
async fn take_new(shared: &Arc<Shared>, address: Address, turns: &Arc<Turns>, peer: &NodeId, received: Vec<u8>) {
    if shared.database(&address).is_some_and(|database| !database.contains_heads(&received)) {
        catch_up(shared, address, turns, peer).await;
        take(shared, address, peer, vec![received]).await;
    }
}

/// Fetches from a peer what is missing here, if it can send that in bulk. Returns whether it can.
async fn catch_up(shared: &Arc<Shared>, address: Address, turns: &Arc<Turns>, peer: &NodeId) -> bool {
    if shared.speaks_oplog(peer) == Some(false) {
        return false;
    }
    match oplog::catch_up(shared, address, turns, peer).await {
        Ok(()) => true,
        Err(CatchUpError::Open(error)) => {
            tracing::debug!(db.address = %address, peer.id = %peer, %error, "a peer sends nothing in bulk");
            false
        }
        Err(error) => {
            tracing::info!(db.address = %address, peer.id = %peer, %error, "catching up with a peer broke off; it goes on block by block");
            true
        }
    }
}

/// Opens a stream to a peer, or one for each head, and takes what comes back.
async fn offer(
    shared: &Arc<Shared>,
    address: Address,
    peer: &NodeId,
    in_one_stream: bool,
) -> Result<(), ExchangeError> {
    let mut heads = heads(shared, address).await?;
    if !in_one_stream {
        heads = without_large(shared, address, heads).await;
    }
    let groups: Vec<&[Vec<u8>]> =
        if in_one_stream || heads.is_empty() { vec![&heads] } else { heads.chunks(1).collect() };
    for group in groups {
        let stream = shared.net.open_stream(peer, &address.heads_protocol()).await?;
        let received = swap(shared, stream, group).await?;
        take(shared, address, peer, vec![received]).await;
    }
    Ok(())
}

/// Takes out the heads that would reach a peer in JavaScript in several chunks, of which it makes nothing, and publishes them instead.
async fn without_large(shared: &Shared, address: Address, heads: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let (small, large): (Vec<_>, Vec<_>) = heads.into_iter().partition(|head| head.len() <= CHUNK_BYTES_MAX);
    for head in large {
        if let Err(error) = shared.net.publish(&address.to_string(), head).await {
            tracing::debug!(db.address = %address, %error, "a large head was not published; it is tried again with the next exchange");
        }
    }
    small
}

async fn take(shared: &Arc<Shared>, address: Address, peer: &NodeId, received: Vec<Vec<u8>>) {
    let heads = received.into_iter().filter(|bytes| !bytes.is_empty());
    let inputs = heads.map(|bytes| Input::Heads(Peer::new(peer.as_str()), bytes)).collect();
    shared.inputs_aside(address, inputs).await;
}

/// Reads the blocks of the heads, newest first: as many as a peer takes in one stream.
async fn heads(shared: &Arc<Shared>, address: Address) -> Result<Vec<Vec<u8>>, DbError> {
    let database = shared.database(&address).ok_or(DatabaseError::Closed)?;
    let (heads_max, bytes_max) = (shared.config.heads_max, shared.config.heads_bytes());
    aside(async move {
        let mut bytes = 0;
        let fits = |head: &Vec<u8>| {
            bytes += head.len();
            bytes <= bytes_max
        };
        Ok(database.head_blocks()?.into_iter().take(heads_max).take_while(fits).collect())
    })
    .await
}

/// Sends heads and reads those of the peer, both at once.
async fn swap(shared: &Shared, stream: NetStream, heads: &[Vec<u8>]) -> Result<Vec<u8>, ExchangeError> {
    let bytes_max = shared.config.heads_bytes();
    let (reader, mut writer) = tokio::io::split(stream);
    let send = async {
        for head in heads {
            writer.write_all(head).await?;
            writer.flush().await?;
        }
        writer.shutdown().await
    };
    let read = async {
        let mut received = Vec::new();
        reader.take(bytes_max as u64 + 1).read_to_end(&mut received).await?;
        if received.len() > bytes_max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the heads of the peer are too large"));
        }
        Ok(received)
    };
    let swapped = timeout(shared.config.heads_limit(), async { tokio::try_join!(send, read) }).await;
    let ((), received) = swapped.map_err(|_| ExchangeError::Silent)??;
    Ok(received)
}
