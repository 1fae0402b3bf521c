//! Models of other nodes, handed to an Ollama through its own API: their weights as a blob, and what their names add.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_stream::try_stream;
use bombus_core::model::ModelName;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::library::{creation, progress};
use super::{OllamaClient, OllamaError};
use crate::models::chat_template::is_go;
use crate::models::{PeerCopy, PeerReadError, PeerSource, SharedModel};
use crate::{BackendError, ByteStream, CreateRequest, Progress, ProgressStream};

/// How much is asked for at once. So much times [`AHEAD`] is held in memory, since a blob is sent in order.
const RANGE_BYTES: u64 = 4 << 20;
/// How many ranges are on their way at once, from one peer or several.
const AHEAD: usize = 4;
/// How long a peer may send nothing before another is asked.
const STALL_LIMIT: Duration = Duration::from_secs(10);
/// How often each peer is asked for a range.
const TRIES_PER_PEER: usize = 3;
/// Longest pause before a busy peer is asked again.
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Has a server take in a model from peers that all have the same weights.
pub(super) fn take(
    client: OllamaClient,
    backend: String,
    peers: Arc<dyn PeerSource>,
    name: ModelName,
    copies: Vec<PeerCopy>,
) -> ProgressStream {
    Box::pin(try_stream! {
        let Some(first) = copies.first() else { return };
        let model = first.model.clone();
        let say = |error: OllamaError| error.into_backend(&backend, name.as_str(), false);
        yield step("pulling manifest", &model, None);
        if !client.has_blob(&model.sha256).await.map_err(say)? {
            // A blob that is wrong as a whole came from somebody who is wrong: then each peer is asked alone.
            let alone = copies.iter().cloned().map(|copy| vec![copy]).filter(|_| copies.len() > 1);
            let mut rounds = std::iter::once(copies.clone()).chain(alone);
            let mut among = rounds.next();
            while let Some(copies) = among {
                let from = copies.iter().map(|copy| copy.node_name.as_str()).collect::<Vec<_>>().join(", ");
                let status = format!("pulling {} from peer {from}", &model.sha256[..12]);
                let sent = Arc::new(AtomicU64::new(0));
                let bytes = counted(in_order(Arc::clone(&peers), copies, model.size_bytes), Arc::clone(&sent));
                let mut putting = std::pin::pin!(client.put_blob(&model.sha256, bytes));
                let mut tick = interval(TELL_EVERY);
                tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
                let put = loop {
                    let ended = tokio::select! {
                        biased;
                        put = &mut putting => Some(put),
                        _ = tick.tick() => None,
                    };
                    if let Some(put) = ended {
                        break put;
                    }
                    yield step(&status, &model, Some(sent.load(Ordering::Relaxed)));
                };
                among = match put {
                    Ok(()) => None,
                    Err(OllamaError::Refused { status: 400, .. }) => {
                        tracing::warn!(backend.name = backend, peers = from, model.sha256, "what peers sent is not what they promised");
                        Some(rounds.next().ok_or_else(|| BackendError::Unavailable {
                            reason: format!("no peer sent the weights of '{name}' as their hash says"),
                        })?)
                    }
                    Err(error) => Err(say(error))?,
                };
            }
        }
        yield step("verifying sha256 digest", &model, Some(model.size_bytes));
        let mut making = client.create(&creation(described(&name, model))?).await.map_err(say)?;
        while let Some(made) = making.next().await {
            yield progress(made.map_err(say)?);
        }
    })
}

fn step(status: &str, model: &SharedModel, completed_bytes: Option<u64>) -> Progress {
    Progress {
        status: status.to_owned(),
        sha256: completed_bytes.map(|_| model.sha256.clone()),
        total_bytes: completed_bytes.map(|_| model.size_bytes),
        completed_bytes,
    }
}

/// Says what the server is to make of the weights. A template in Jinja is of no use to it: it then takes the one that it knows for the
/// weights' own.
fn described(name: &ModelName, model: SharedModel) -> CreateRequest {
    let defaults = model.defaults;
    CreateRequest {
        name: name.to_string(),
        files: BTreeMap::from([("model.gguf".to_owned(), model.sha256)]),
        template: model.go_template.or(defaults.template.filter(|template| is_go(template))),
        licenses: defaults.licenses,
        system: defaults.system,
        parameters: defaults.parameters,
        messages: defaults.messages,
        ..CreateRequest::default()
    }
}

fn counted(bytes: ByteStream, sent: Arc<AtomicU64>) -> ByteStream {
    let count = move |piece: &io::Result<Bytes>| {
        let length = piece.as_ref().map_or(0, Bytes::len) as u64;
        sent.fetch_add(length, Ordering::Relaxed);
    };
    bytes.inspect(count).boxed()
}

/// Returns the bytes of weights in order, a few ranges ahead, from all peers in turn. What one does not send another is asked for.
fn in_order(peers: Arc<dyn PeerSource>, copies: Vec<PeerCopy>, size_bytes: u64) -> ByteStream {
    let copies: Arc<[PeerCopy]> = copies.into();
    let ranges = (0..size_bytes.div_ceil(RANGE_BYTES)).map(move |number| {
        let start = number * RANGE_BYTES;
        (number, start..size_bytes.min(start + RANGE_BYTES))
    });
    let read = move |(number, range)| {
        let (peers, copies) = (Arc::clone(&peers), Arc::clone(&copies));
        async move { one_range(peers.as_ref(), &copies, number, range).await }
    };
    stream::iter(ranges).map(read).buffered(AHEAD).boxed()
}

async fn one_range(peers: &dyn PeerSource, copies: &[PeerCopy], number: u64, range: Range<u64>) -> io::Result<Bytes> {
    let first = usize::try_from(number % copies.len() as u64).unwrap_or(0);
    let mut reason = String::new();
    for attempt in 0..copies.len() * TRIES_PER_PEER {
        let copy = &copies[(first + attempt) % copies.len()];
        match read_whole(peers, copy, range.clone()).await {
            Ok(bytes) => return Ok(bytes),
            Err(PeerReadError::Busy { retry_after }) => {
                reason = format!("{}: it is busy with other transfers", copy.node_name);
                sleep(retry_after.min(BUSY_PAUSE_MAX)).await;
            }
            Err(error) => reason = format!("{}: {error}", copy.node_name),
        }
        tracing::debug!(peer.id = %copy.node, reason, "a peer did not send a part of a model");
    }
    Err(io::Error::other(format!("no peer sends it ({reason})")))
}

async fn read_whole(peers: &dyn PeerSource, copy: &PeerCopy, range: Range<u64>) -> Result<Bytes, PeerReadError> {
    let stalled = |_| PeerReadError::Failed(format!("it sent nothing for {} s", STALL_LIMIT.as_secs()));
    let wanted = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    let mut pieces = timeout(STALL_LIMIT, peers.read(copy, range)).await.map_err(stalled)??;
    let mut whole = BytesMut::with_capacity(wanted);
    while whole.len() < wanted {
        let piece = timeout(STALL_LIMIT, pieces.next()).await.map_err(stalled)?;
        let piece = piece.ok_or_else(|| PeerReadError::Failed("it ended too early".to_owned()))?;
        whole.extend_from_slice(&piece.map_err(|error| PeerReadError::Failed(error.to_string()))?);
    }
    whole.truncate(wanted);
    Ok(whole.freeze())
}
