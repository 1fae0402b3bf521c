//! A ping on demand, over the protocol that every libp2p node answers.

use std::io;
use std::time::Duration;

use bombus_core::identity::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout_at};

use crate::failure::PingError;
use crate::handle::NetHandle;
use crate::peer::Path;
use crate::stream::NetStream;

/// The name of libp2p's ping: 32 bytes are sent back as they came.
const PROTOCOL: &str = "/ipfs/ping/1.0.0";
/// Longest pause before a ping is sent anew.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Measures one round trip to a peer, and tells how it is reached.
///
/// A peer answers on one stream of a connection at a time, and ends it for a newer one, be that of another ping on demand or of those that look
/// whether a connection is alive. So a stream that ends is followed by another one, as long as there is time.
pub(crate) async fn ping(handle: &NetHandle, peer: &NodeId, limit: Duration) -> Result<(Duration, Path), PingError> {
    let mut until = None;
    loop {
        let mut stream = handle.open_stream(peer, PROTOCOL).await?;
        let until = *until.get_or_insert_with(|| Instant::now() + limit);
        // The first one includes what is left of the negotiation of the protocol.
        let measured = timeout_at(until, async {
            once(&mut stream).await?;
            once(&mut stream).await
        });
        match measured.await.map_err(|_| PingError::Timeout(limit))? {
            Ok(round_trip) => return Ok((round_trip, stream.path().clone())),
            Err(error) if error.kind() == io::ErrorKind::InvalidData || Instant::now() + PAUSE_MAX > until => {
                return Err(PingError::BadAnswer(error.to_string()));
            }
            Err(error) => tracing::debug!(peer.id = %peer, %error, "a ping is sent anew"),
        }
        // Those who got into each other's way do so no more.
        sleep(PAUSE_MAX.mul_f64(rand::random())).await;
    }
}

async fn once(stream: &mut NetStream) -> io::Result<Duration> {
    let sent: [u8; 32] = rand::random();
    let begun = Instant::now();
    let mut answer = [0; 32];
    stream.write_all(&sent).await?;
    stream.flush().await?;
    stream.read_exact(&mut answer).await?;
    if answer == sent {
        Ok(begun.elapsed())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "other bytes came back"))
    }
}
