//! What peers tell of what they offer.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_net::NetStream;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::wire::{Messages, OFFER_BYTES_MAX, Told};
use super::{OFFERS_PROTOCOL, Shared};
use crate::supervised::PartEnded;

/// Most streams at a time.
const STREAMS_MAX: usize = 1_024;
/// A peer that tells more often than this is read more slowly.
const LISTEN_EVERY: Duration = Duration::from_millis(20);

/// Listens to all peers until `stop`: to the newest stream of each.
pub(super) async fn hear_all(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), PartEnded> {
    let mut incoming = shared.net.accept(OFFERS_PROTOCOL)?;
    let mut readers = JoinSet::new();
    let mut newest: HashMap<NodeId, AbortHandle> = HashMap::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            stream = incoming.next() => {
                let (peer, stream) = stream.ok_or(PartEnded::MeshEnded)?;
                let stream = stream.in_background();
                if let Some(before) = newest.remove(&peer) {
                    before.abort();
                }
                if readers.len() < STREAMS_MAX {
                    // One that fails ends its stream, upon which the peer opens another.
                    newest.insert(peer.clone(), readers.spawn(hear(Arc::clone(shared), peer, stream)));
                }
            }
            Some(ended) = readers.join_next() => {
                if let Err(error) = ended
                    && error.is_panic()
                {
                    tracing::error!(%error, "a task that hears a peer's offers failed");
                }
                newest.retain(|_, task| !task.is_finished());
            }
        }
    }
}

async fn hear(shared: Arc<Shared>, peer: NodeId, mut stream: NetStream) {
    if let Err(error) = hear_to_end(&shared, &peer, &mut stream).await {
        tracing::debug!(peer.id = %peer, %error, "a peer tells its offers no longer");
    }
}

async fn hear_to_end(shared: &Shared, peer: &NodeId, stream: &mut NetStream) -> io::Result<()> {
    let mut messages = Messages::up_to(OFFER_BYTES_MAX);
    loop {
        while let Some(told) = messages.next::<Told>()? {
            shared.peers.told(peer, told);
            sleep(LISTEN_EVERY).await;
        }
        if poll_fn(|cx| messages.poll_fill(Pin::new(&mut *stream), cx)).await? == 0 {
            return Ok(());
        }
    }
}
