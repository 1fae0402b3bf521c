//! Streams that peers open, each answered in a task of its own.

use std::io;
use std::sync::Arc;

use bombus_core::identity::NodeId;
use bombus_net::{Incoming, NetStream};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::places::Places;
use crate::supervised::PartEnded;

/// Answers each stream until `stop`, upon which what still runs ends. Those for which there is no place are reset.
pub(crate) async fn answer_each<A>(
    mut incoming: Incoming,
    places: &Arc<Places>,
    stop: &CancellationToken,
    protocol: &'static str,
    answer: impl Fn(NodeId, NetStream) -> A,
) -> Result<(), PartEnded>
where
    A: Future<Output = io::Result<()>> + Send + 'static,
{
    // Dropping it ends what runs.
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            Some(ended) = streams.join_next(), if !streams.is_empty() => report(ended, protocol),
            stream = incoming.next() => {
                let (peer, stream) = stream.ok_or(PartEnded::MeshEnded)?;
                // Dropping the stream resets it.
                if let Some(place) = places.take(&peer) {
                    let answer = answer(peer, stream);
                    streams.spawn(async move {
                        let _place = place;
                        answer.await
                    });
                }
            }
        }
    }
}

fn report(ended: Result<io::Result<()>, JoinError>, protocol: &'static str) {
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(protocol, %error, "a peer was not answered to the end"),
        Err(error) => tracing::error!(protocol, %error, "the answer to a peer failed"),
    }
}
