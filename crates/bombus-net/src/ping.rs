//! A ping on demand, over the protocol that every libp2p node answers.

use std::time::Duration;

use bombus_core::identity::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use crate::failure::PingError;
use crate::handle::NetHandle;
use crate::peer::Path;
use crate::stream::NetStream;

/// The name of libp2p's ping: 32 bytes are sent back as they came.
const PROTOCOL: &str = "/ipfs/ping/1.0.0";

/// Measures one round trip to a peer, and tells how it is reached.
pub(crate) async fn ping(handle: &NetHandle, peer: &NodeId, limit: Duration) -> Result<(Duration, Path), PingError> {
    let mut stream = handle.open_stream(peer, PROTOCOL).await?;
    // The first one includes what is left of the negotiation of the protocol.
    let measured = timeout(limit, async {
        once(&mut stream).await?;
        once(&mut stream).await
    });
    let round_trip = measured.await.map_err(|_| PingError::Timeout(limit))??;
    Ok((round_trip, stream.path().clone()))
}

async fn once(stream: &mut NetStream) -> Result<Duration, PingError> {
    let sent: [u8; 32] = rand::random();
    let begun = Instant::now();
    let mut answer = [0; 32];
    let exchanged = async {
        stream.write_all(&sent).await?;
        stream.flush().await?;
        stream.read_exact(&mut answer).await
    };
    exchanged.await.map_err(|error| PingError::BadAnswer(error.to_string()))?;
    if answer == sent { Ok(begun.elapsed()) } else { Err(PingError::BadAnswer("other bytes came back".to_owned())) }
}
