//! Asks other nodes for models, and reads their weights.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bombus_core::identity::NodeId;
use bombus_infer::ByteStream;
use bombus_infer::models::{PeerCopy, PeerReadError, PeerSource, SharedModel, Wanted};
use bombus_net::{NetHandle, NetPeer, NetStream, OpenError, Path};
use futures::{StreamExt, stream};
use tokio::io::AsyncReadExt;
use tokio::time::{sleep, timeout};
use tokio_util::io::ReaderStream;

use super::serve::READ_BYTES_MAX;
use super::wire::{self, ANSWER_MAX, WeightsAnswer, WeightsRequest};
use super::{WEIGHTS_PROTOCOL, WeightsConfig};
use crate::SwarmHandle;

/// Most peers that are asked for one model, those that said they have it first.
const ASKED_MAX: usize = 64;
/// How many of them at a time.
const ASKED_AT_ONCE: usize = 16;
/// How much is read at once.
const PIECE_BYTES: usize = 256 << 10;

/// The other nodes. It holds no backends, since theirs hold it.
#[derive(Clone)]
pub(super) struct Others {
    pub(super) config: WeightsConfig,
    pub(super) net: NetHandle,
    pub(super) swarm: SwarmHandle,
}

#[async_trait]
impl PeerSource for Others {
    async fn find(&self, wanted: &Wanted) -> Vec<PeerCopy> {
        let asked = who_may_have(self, wanted).into_iter().map(|peer| ask(self, peer, wanted));
        let answers = stream::iter(asked).buffer_unordered(ASKED_AT_ONCE);
        let mut copies: Vec<PeerCopy> =
            answers.take_until(sleep(self.config.find_limit)).filter_map(std::future::ready).collect().await;
        // Alike at every pull, whoever answered first.
        copies.sort_by(|a, b| a.node.cmp(&b.node));
        copies
    }

    async fn read(&self, copy: &PeerCopy, range: Range<u64>) -> Result<ByteStream, PeerReadError> {
        let len = range.end.saturating_sub(range.start);
        if len == 0 || len > READ_BYTES_MAX {
            return Err(PeerReadError::Failed(format!("a range of {len} bytes cannot be asked for")));
        }
        let request = WeightsRequest::Read { sha256: copy.model.sha256.clone(), offset: range.start, len };
        let (answer, stream) = exchange(self, &copy.node, &request).await.map_err(PeerReadError::Failed)?;
        match answer {
            WeightsAnswer::Sending { len: told } if told == len => {
                Ok(ReaderStream::with_capacity(stream.take(len), PIECE_BYTES).boxed())
            }
            WeightsAnswer::Busy { retry_ms } => {
                Err(PeerReadError::Busy { retry_after: Duration::from_millis(retry_ms) })
            }
            WeightsAnswer::Refused { reason } => Err(PeerReadError::Refused(reason)),
            WeightsAnswer::NotFound {} => Err(PeerReadError::Refused("it does not have the model any more".to_owned())),
            WeightsAnswer::Sending { .. } | WeightsAnswer::Found { .. } => {
                Err(PeerReadError::Failed("it does not answer what was asked".to_owned()))
            }
        }
    }
}

/// Lists the peers that a model may be had from: those that are reached directly and may speak the protocol.
fn who_may_have(others: &Others, wanted: &Wanted) -> Vec<NodeId> {
    let speaks =
        |peer: &NetPeer| peer.protocols.is_empty() || peer.protocols.iter().any(|name| name == WEIGHTS_PROTOCOL);
    let direct = others.net.peers().into_iter().filter(|peer| matches!(peer.connected, Some(Path::Direct { .. })));
    let mut peers: Vec<NodeId> = direct.filter(speaks).map(|peer| peer.node_id).collect();
    if let Wanted::Name(name) = wanted {
        let tells_it = |peer: &NodeId| {
            let told = others.swarm.peer(peer).map(|peer| peer.models).unwrap_or_default();
            told.iter().any(|model| bombus_core::model::ModelName::parse(model).as_ref() == Ok(name))
        };
        peers.sort_by_cached_key(|peer| !tells_it(peer));
    }
    peers.truncate(ASKED_MAX);
    peers
}

async fn ask(others: &Others, peer: NodeId, wanted: &Wanted) -> Option<PeerCopy> {
    let request = match wanted {
        Wanted::Name(name) => WeightsRequest::Find { name: name.to_string() },
        Wanted::Weights(sha256) => WeightsRequest::FindHash { sha256: sha256.clone() },
    };
    let told = |reason: &str| tracing::debug!(peer.id = %peer, reason, "a peer does not offer a model");
    match exchange(others, &peer, &request).await {
        Ok((WeightsAnswer::Found { model }, _)) => match SharedModel::decode(&model) {
            Ok(model) => {
                let node_name = others.swarm.peer(&peer).map(|peer| peer.name).filter(|name| !name.is_empty());
                return Some(PeerCopy { node_name: node_name.unwrap_or_else(|| peer.to_string()), node: peer, model });
            }
            Err(error) => told(&error.to_string()),
        },
        Ok((WeightsAnswer::Refused { reason }, _)) => told(&reason),
        Ok(_) => {}
        Err(error) => told(&error),
    }
    None
}

/// Opens a stream, asks, and reads the answer. What follows it is still in the stream.
async fn exchange(
    others: &Others,
    peer: &NodeId,
    request: &WeightsRequest,
) -> Result<(WeightsAnswer, NetStream), String> {
    let exchanged = async {
        let mut stream =
            others.net.open_stream(peer, WEIGHTS_PROTOCOL).await.map_err(|error: OpenError| error.to_string())?;
        if let Path::Relayed { .. } = stream.path() {
            return Err("it is reached through a relay only, which weights do not go through".to_owned());
        }
        let told = async {
            wire::write(&mut stream, request).await?;
            wire::read(&mut stream, ANSWER_MAX).await
        };
        let answer = told.await.map_err(|error: std::io::Error| format!("the stream failed: {error}"))?;
        Ok((answer, stream))
    };
    let limit = others.config.answer_limit;
    timeout(limit, exchanged).await.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
}
