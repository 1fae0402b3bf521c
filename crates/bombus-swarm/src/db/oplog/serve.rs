//! Lets peers catch up: a few at a time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_net::NetStream;
use orbitdb::cid::Hash;
use orbitdb::manifest::Address;
use orbitdb::{DatabaseError, Told};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::super::error::DbError;
use super::super::shared::{Shared, aside};
use super::OPLOG_PROTOCOL;
use super::wire::{self, Answer, HAVE_MAX, PIECE_ENTRIES_MAX, Request};
use crate::places::Places;
use crate::streams::answer_each;
use crate::supervised::PartEnded;

/// When it may be worth asking again.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// Answers requests until `stop`.
pub(in super::super) async fn serve_all(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), PartEnded> {
    let incoming = shared.net.accept(OPLOG_PROTOCOL)?;
    let config = &shared.config.oplog;
    let places = Places::new(config.streams_max, config.streams_per_peer_max);
    let served = Places::new(config.serve_max, config.serve_per_peer_max);
    answer_each(incoming, &places, stop, OPLOG_PROTOCOL, |peer, stream| {
        let (shared, served) = (Arc::clone(shared), Arc::clone(&served));
        async move { answer(&shared, &served, &peer, stream).await }
    })
    .await
}

async fn answer(shared: &Arc<Shared>, served: &Arc<Places>, peer: &NodeId, mut stream: NetStream) -> io::Result<()> {
    let limit = shared.config.oplog.answer_limit();
    let request: Request = timeout(limit, wire::read(&mut stream)).await.map_err(too_slow)??;
    let (answer, lacking, _place) = match served.take(peer) {
        None => {
            let retry_ms = u64::try_from(RETRY_AFTER.as_millis()).unwrap_or(u64::MAX);
            (Answer::Busy { retry_ms }, None, None)
        }
        Some(place) => match lacking(shared, &request).await? {
            None => (Answer::Unknown {}, None, None),
            Some((address, mut lacking)) => {
                let max = shared.config.oplog.entries_max.max(1);
                let more = lacking.len() > max;
                lacking.truncate(max);
                (Answer::Sending { entries: lacking.len() as u64, more }, Some((address, lacking)), Some(place))
            }
        },
    };
    timeout(limit, wire::write(&mut stream, &answer)).await.map_err(too_slow)??;
    if let Some((address, lacking)) = lacking {
        send(shared, address, lacking, &mut stream).await?;
    }
    timeout(limit, stream.shutdown()).await.map_err(too_slow)?
}

fn too_slow(_: tokio::time::error::Elapsed) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer is too slow")
}

/// Works out what a peer lacks of a database that is open.
async fn lacking(shared: &Arc<Shared>, request: &Request) -> io::Result<Option<(Address, Vec<Hash>)>> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if request.have.len() > HAVE_MAX {
        return Err(invalid("too many names"));
    }
    let address: Address = request.address.parse().map_err(|_| invalid("no address"))?;
    let have: Result<Vec<Hash>, _> = request.have.iter().map(|name| name.parse()).collect();
    let have = have.map_err(|_| invalid("no name of an entry"))?;
    let Some(database) = shared.database(&address) else { return Ok(None) };
    let lacking = aside(async move { Ok(database.lacking(&have)) }).await.map_err(io::Error::other)?;
    Ok(Some((address, lacking)))
}

/// Sends entries in pieces, the next of which is read from the disk while the one before is on its way.
async fn send(shared: &Arc<Shared>, address: Address, lacking: Vec<Hash>, stream: &mut NetStream) -> io::Result<()> {
    let limit = shared.config.oplog.stall_limit();
    let mut rest = Rest { lacking: Arc::new(lacking), at: 0, told: Told::default() };
    let (mut piece, next) = read(shared, address, rest).await?;
    rest = next;
    while !piece.is_empty() {
        let written = async { timeout(limit, wire::write_piece(stream, &piece)).await.map_err(too_slow)? };
        let (written, next) = tokio::join!(written, read(shared, address, rest));
        written?;
        (piece, rest) = next?;
    }
    timeout(limit, wire::write_piece(stream, &[])).await.map_err(too_slow)?
}

/// What is still to be sent.
struct Rest {
    lacking: Arc<Vec<Hash>>,
    at: usize,
    told: Told,
}

/// Reads the next piece; an empty one at the end, and where the next entry is not safe yet.
async fn read(shared: &Arc<Shared>, address: Address, mut rest: Rest) -> io::Result<(Vec<Vec<u8>>, Rest)> {
    // It is not kept open for a peer that reads slowly.
    let Some(database) = shared.database(&address) else { return Err(io::Error::other(DatabaseError::Closed)) };
    let bytes = shared.config.oplog.piece_bytes();
    let done = aside(async move {
        let next = first(&rest.lacking[rest.at..]);
        let (count, blocks) = database.bulk(next, bytes, &mut rest.told).map_err(DbError::from)?;
        rest.at += count;
        Ok((blocks, rest))
    });
    done.await.map_err(io::Error::other)
}

/// Returns as many entries as a piece may have.
fn first(entries: &[Hash]) -> &[Hash] {
    &entries[..entries.len().min(PIECE_ENTRIES_MAX)]
}
