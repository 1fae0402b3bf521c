//! Sends this machine's weights to others: a few transfers at a time, and none through a relay.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_core::model::ModelName;
use bombus_infer::models::{OpenWeights, SharedModel, StoreError};
use bombus_net::{NetStream, Path};
use tokio::io::AsyncWriteExt;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::wire::{self, REQUEST_MAX, WeightsAnswer, WeightsRequest};
use super::{Shared, WEIGHTS_PROTOCOL};
use crate::places::{Place, Places};
use crate::streams::answer_each;
use crate::supervised::PartEnded;

/// Most streams at a time, transfers included; those beyond are reset.
const STREAMS_MAX: usize = 64;
/// How many of them may be one peer's.
const STREAMS_PER_PEER_MAX: usize = 16;
/// Most bytes that are sent for one request.
pub(super) const READ_BYTES_MAX: u64 = 64 << 20;
/// How much is read and written at once.
const PIECE_BYTES: usize = 256 << 10;
/// When it may be worth asking again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Answers requests for weights until `stop`.
pub(super) async fn serve_all(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), PartEnded> {
    let incoming = shared.net.accept(WEIGHTS_PROTOCOL)?;
    let places = Places::new(STREAMS_MAX, STREAMS_PER_PEER_MAX);
    answer_each(incoming, &places, stop, WEIGHTS_PROTOCOL, |peer, stream| {
        let shared = Arc::clone(shared);
        async move { answer(&shared, &peer, stream).await }
    })
    .await
}

async fn answer(shared: &Shared, peer: &NodeId, mut stream: NetStream) -> io::Result<()> {
    let limit = shared.config.answer_limit;
    let request = timeout(limit, wire::read(&mut stream, REQUEST_MAX)).await.map_err(too_slow)?;
    let answer = match request {
        Ok(WeightsRequest::Find { name }) => find(shared, peer, &name).await,
        Ok(WeightsRequest::FindHash { sha256 }) => find_hash(shared, peer, sha256).await,
        Ok(WeightsRequest::Read { sha256, offset, len }) => {
            let is_relayed = matches!(stream.path(), Path::Relayed { .. });
            match open(shared, peer, is_relayed, sha256, (offset, len)).await {
                Ok(transfer) => return send(shared, transfer, stream).await,
                Err(answer) => answer,
            }
        }
        // A later version may ask for more than this one knows.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            refused(&format!("this version does not understand the request: {error}"))
        }
        Err(error) => return Err(error),
    };
    let told = async {
        wire::write(&mut stream, &answer).await?;
        stream.shutdown().await
    };
    timeout(limit, told).await.map_err(too_slow)?
}

fn too_slow(_: tokio::time::error::Elapsed) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer is too slow")
}

fn refused(reason: &str) -> WeightsAnswer {
    WeightsAnswer::Refused { reason: reason.to_owned() }
}

async fn find(shared: &Shared, peer: &NodeId, name: &str) -> WeightsAnswer {
    let Ok(name) = ModelName::parse(name) else { return WeightsAnswer::NotFound {} };
    if let Err(reason) = shared.access.may_fetch(peer, &name) {
        return refused(&reason);
    }
    let store = shared.store.clone();
    match spawn_blocking(move || store.shared(&name)).await {
        Ok(found) => described(found.map(|found| found.into_iter().collect())),
        Err(error) => refused(&format!("the store could not be read: {error}")),
    }
}

async fn find_hash(shared: &Shared, peer: &NodeId, sha256: String) -> WeightsAnswer {
    let store = shared.store.clone();
    match spawn_blocking(move || store.shared_weights(&sha256)).await {
        Ok(found) => described(found.map(|mut found| {
            found.retain(|model| shared.access.may_fetch(peer, &model.name).is_ok());
            found
        })),
        Err(error) => refused(&format!("the store could not be read: {error}")),
    }
}

fn described(found: Result<Vec<SharedModel>, StoreError>) -> WeightsAnswer {
    match found.map(|found| found.into_iter().next()) {
        Ok(Some(model)) => match model.encode() {
            Some(model) => WeightsAnswer::Found { model },
            None => refused(&format!("what the name '{}' adds to its weights is too large to be sent", model.name)),
        },
        Ok(None) => WeightsAnswer::NotFound {},
        Err(error) => refused(&error.to_string()),
    }
}

/// Bytes that a peer may have now.
struct Transfer {
    weights: Arc<OpenWeights>,
    offset: u64,
    len: u64,
    _place: Place,
}

/// Decides whether a peer gets bytes, and looks for them.
async fn open(
    shared: &Shared,
    peer: &NodeId,
    is_relayed: bool,
    sha256: String,
    (offset, len): (u64, u64),
) -> Result<Transfer, WeightsAnswer> {
    if is_relayed {
        return Err(refused("weights do not go through a relay: connect the two nodes directly"));
    }
    let place = shared.transfers.take(peer);
    let retry_ms = u64::try_from(RETRY_AFTER.as_millis()).unwrap_or(u64::MAX);
    let place = place.ok_or(WeightsAnswer::Busy { retry_ms })?;
    let store = shared.store.clone();
    let looked = spawn_blocking(move || {
        let names = store.shared_weights(&sha256)?;
        Ok::<_, StoreError>((names, store.open_weights(&sha256)?))
    });
    let looked = looked.await.map_err(|error| refused(&format!("the store could not be read: {error}")))?;
    let (names, weights) = looked.map_err(|error| refused(&error.to_string()))?;
    // Whoever may have one of the names may have the weights.
    let mut refusals = names.iter().map(|model| shared.access.may_fetch(peer, &model.name));
    let mut allowed = refusals.next().ok_or(WeightsAnswer::NotFound {})?;
    for other in refusals {
        allowed = allowed.or(other);
    }
    allowed.map_err(|reason| refused(&reason))?;
    let weights = weights.ok_or(WeightsAnswer::NotFound {})?;
    let is_inside = offset.checked_add(len).is_some_and(|end| end <= weights.size_bytes);
    if !is_inside || len == 0 || len > READ_BYTES_MAX {
        return Err(refused("the range is empty, longer than 64 MiB, or not inside the weights"));
    }
    Ok(Transfer { weights: Arc::new(weights), offset, len, _place: place })
}

/// Sends bytes, the next of which are read from the disk while those before are on their way.
async fn send(shared: &Shared, transfer: Transfer, mut stream: NetStream) -> io::Result<()> {
    let limit = shared.config.write_limit;
    let (mut at, end) = (transfer.offset, transfer.offset + transfer.len);
    timeout(limit, wire::write(&mut stream, &WeightsAnswer::Sending { len: transfer.len }))
        .await
        .map_err(too_slow)??;
    let mut ready = read(&transfer, at, end, Vec::new()).await?;
    let mut spare = Vec::new();
    while !ready.is_empty() {
        at += ready.len() as u64;
        let written = async { timeout(limit, stream.write_all(&ready)).await.map_err(too_slow)? };
        let (written, next) = tokio::join!(written, read(&transfer, at, end, spare));
        written?;
        spare = std::mem::replace(&mut ready, next?);
    }
    timeout(limit, stream.shutdown()).await.map_err(too_slow)?
}

/// Reads the next piece into memory that is not needed any more; an empty one at the end.
async fn read(transfer: &Transfer, at: u64, end: u64, mut memory: Vec<u8>) -> io::Result<Vec<u8>> {
    let length = usize::try_from(end - at).unwrap_or(usize::MAX).min(PIECE_BYTES);
    if length == 0 {
        return Ok(Vec::new());
    }
    let weights = Arc::clone(&transfer.weights);
    let read = spawn_blocking(move || {
        memory.resize(length, 0);
        weights.read_exact_at(&mut memory, at).map(|()| memory)
    });
    read.await.map_err(io::Error::other)?
}
