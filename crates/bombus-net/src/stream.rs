//! Streams: bytes in both directions between two nodes.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bombus_core::identity::NodeId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};
use tokio_util::sync::CancellationToken;

/// How many accepted streams wait for [`Incoming::next`]; a stream beyond that is reset.
pub(crate) const INCOMING_MAX: usize = 64;

/// A stream to a peer.
///
/// Dropping it resets it, unless it was shut down before. The end of the connection reads like the end of the stream, so a protocol must
/// say itself where its data ends. When the node's swarm is built anew for another key, reads and writes fail with
/// [`io::ErrorKind::ConnectionAborted`].
pub struct NetStream {
    inner: Compat<libp2p::Stream>,
    peer: NodeId,
    rebuilt: CancellationToken,
}

impl NetStream {
    pub(crate) fn new(stream: libp2p::Stream, peer: NodeId, rebuilt: CancellationToken) -> Self {
        Self { inner: stream.compat(), peer, rebuilt }
    }

    /// Returns who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &NodeId {
        &self.peer
    }

    /// Names the reason where the stream ended with its swarm.
    fn explain(&self, error: io::Error) -> io::Error {
        if self.rebuilt.is_cancelled() { ended_with_its_swarm() } else { error }
    }
}

fn ended_with_its_swarm() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the node's swarm was built anew; open the stream again")
}

impl fmt::Debug for NetStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetStream").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl AsyncRead for NetStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let wanted = buffer.remaining();
        match ready!(Pin::new(&mut self.inner).poll_read(cx, buffer)) {
            Ok(()) if wanted > 0 && buffer.filled().len() == before && self.rebuilt.is_cancelled() => {
                Poll::Ready(Err(ended_with_its_swarm()))
            }
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(self.explain(error))),
        }
    }
}

impl AsyncWrite for NetStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, data));
        Poll::Ready(written.map_err(|error| self.explain(error)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.inner).poll_flush(cx));
        Poll::Ready(flushed.map_err(|error| self.explain(error)))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = ready!(Pin::new(&mut self.inner).poll_shutdown(cx));
        Poll::Ready(shut.map_err(|error| self.explain(error)))
    }
}

/// The streams that peers open for one protocol; the protocol is spoken as long as this value lives, also after a rebuild.
///
/// At most 64 streams wait. When there are more, the newest are reset and counted ([`Incoming::refused`]).
pub struct Incoming {
    pub(crate) streams: mpsc::Receiver<(NodeId, NetStream)>,
    pub(crate) refused: Arc<AtomicU64>,
    pub(crate) on_drop: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Incoming {
    /// Waits for the next stream and tells who opened it; `None` once the mesh has stopped. Safe to cancel.
    pub async fn next(&mut self) -> Option<(NodeId, NetStream)> {
        self.streams.recv().await
    }

    /// Returns how many streams were reset because too many waited.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("refused", &self.refused()).finish_non_exhaustive()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(on_drop) = self.on_drop.take() {
            on_drop();
        }
    }
}
