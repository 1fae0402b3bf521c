//! Streams: bytes in both directions between two nodes.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bombus_core::identity::NodeId;
use libp2p::StreamProtocol;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};
use tokio_util::sync::CancellationToken;

use crate::behaviour::streams::OpenStreams;
use crate::peer::Path;
use crate::shared::lock;

/// How many accepted streams wait for [`Incoming::next`]; a stream beyond that is reset.
pub(crate) const INCOMING_MAX: usize = 64;
/// How many of them may be one peer's.
pub(crate) const INCOMING_PER_PEER_MAX: usize = 16;

/// A stream to a peer.
///
/// Dropping it resets it, unless it was shut down before. The end of the connection reads like the end of the stream, so a protocol must
/// say itself where its data ends. When the node's swarm is built anew for another key, reads and writes fail with
/// [`io::ErrorKind::ConnectionAborted`].
pub struct NetStream {
    inner: Compat<libp2p::Stream>,
    peer: NodeId,
    path: Path,
    /// Shows that the connection is in use; not there in the background.
    in_use: Option<OpenStreams>,
    rebuilt: CancellationToken,
}

impl NetStream {
    pub(crate) fn new(
        stream: libp2p::Stream,
        peer: NodeId,
        path: Path,
        open: OpenStreams,
        rebuilt: CancellationToken,
    ) -> Self {
        Self { inner: stream.compat(), peer, path, in_use: Some(open), rebuilt }
    }

    /// Returns who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &NodeId {
        &self.peer
    }

    /// Returns the way that the stream takes.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says that the stream alone is no reason to keep the connection: it ends with a connection that is one too many, or that
    /// [`NetConfig::mesh_max`](crate::NetConfig::mesh_max) has no place for and nothing else uses.
    #[must_use]
    pub fn in_background(mut self) -> Self {
        self.in_use = None;
        self
    }

    /// Names the reason where the stream ended with its swarm.
    fn explain(&self, error: io::Error) -> io::Error {
        if self.rebuilt.is_cancelled() { ended_with_its_swarm() } else { error }
    }
}

fn ended_with_its_swarm() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the node left its swarm, or its swarm was built anew; open the stream again",
    )
}

impl fmt::Debug for NetStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetStream").field("peer", &self.peer).field("path", &self.path).finish_non_exhaustive()
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
/// At most 64 streams wait, 16 of them from one peer. When there are more, the newest are reset and counted ([`Incoming::refused`]).
pub struct Incoming {
    pub(crate) queue: Arc<StreamQueue<NetStream>>,
    pub(crate) on_drop: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Incoming {
    /// Waits for the next stream and tells who opened it; `None` once the mesh has stopped. Safe to cancel.
    pub async fn next(&mut self) -> Option<(NodeId, NetStream)> {
        self.queue.next().await
    }

    /// Returns how many streams were reset because too many waited.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.queue.refused.load(Ordering::Relaxed)
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

/// Streams that wait to be taken; what is too much is refused.
pub(crate) struct StreamQueue<S> {
    waiting: Mutex<VecDeque<(NodeId, S)>>,
    arrived: Notify,
    closed: AtomicBool,
    pub(crate) refused: AtomicU64,
}

impl<S> Default for StreamQueue<S> {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            arrived: Notify::new(),
            closed: AtomicBool::new(false),
            refused: AtomicU64::new(0),
        }
    }
}

impl<S> StreamQueue<S> {
    /// Adds a stream, or drops it where too many wait; says whether it was added.
    pub(crate) fn push(&self, peer: NodeId, stream: S) -> bool {
        let mut waiting = lock(&self.waiting);
        let of_peer = waiting.iter().filter(|(other, _)| *other == peer).count();
        if waiting.len() >= INCOMING_MAX || of_peer >= INCOMING_PER_PEER_MAX {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        waiting.push_back((peer, stream));
        drop(waiting);
        self.arrived.notify_one();
        true
    }

    /// Ends the queue; what waits is dropped.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        lock(&self.waiting).clear();
        self.arrived.notify_one();
    }

    async fn next(&self) -> Option<(NodeId, S)> {
        loop {
            if let Some(next) = lock(&self.waiting).pop_front() {
                return Some(next);
            }
            if self.closed.load(Ordering::Acquire) {
                return None;
            }
            self.arrived.notified().await;
        }
    }
}

/// The protocols that this node accepts, across rebuilds.
#[derive(Default)]
pub(crate) struct Protocols {
    accepted: Mutex<HashMap<String, Arc<StreamQueue<NetStream>>>>,
    names: Mutex<Arc<Vec<StreamProtocol>>>,
}

/// Why a protocol is not accepted.
pub(crate) enum NotAccepted {
    Already,
    TooMany,
}

impl Protocols {
    /// Begins to accept a protocol, unless `max` are accepted already.
    pub(crate) fn add(&self, name: StreamProtocol, max: usize) -> Result<Arc<StreamQueue<NetStream>>, NotAccepted> {
        let mut accepted = lock(&self.accepted);
        if accepted.contains_key(name.as_ref()) {
            return Err(NotAccepted::Already);
        }
        if accepted.len() >= max {
            return Err(NotAccepted::TooMany);
        }
        let queue = Arc::new(StreamQueue::default());
        accepted.insert(name.as_ref().to_owned(), Arc::clone(&queue));
        let mut names = lock(&self.names);
        *names = Arc::new(names.iter().cloned().chain([name]).collect());
        Ok(queue)
    }

    /// Accepts a protocol no longer.
    pub(crate) fn remove(&self, name: &str) {
        lock(&self.accepted).remove(name);
        let mut names = lock(&self.names);
        *names = Arc::new(names.iter().filter(|other| other.as_ref() != name).cloned().collect());
    }

    /// Returns the names of all.
    pub(crate) fn names(&self) -> Arc<Vec<StreamProtocol>> {
        Arc::clone(&lock(&self.names))
    }

    /// Hands a stream to whoever accepts its protocol; says whether somebody took it.
    pub(crate) fn deliver(&self, name: &str, stream: NetStream) -> bool {
        let queue = lock(&self.accepted).get(name).cloned();
        queue.is_some_and(|queue| queue.push(stream.peer.clone(), stream))
    }

    /// Counts the streams that were refused since too many waited.
    pub(crate) fn refused(&self) -> u64 {
        lock(&self.accepted).values().map(|queue| queue.refused.load(Ordering::Relaxed)).sum()
    }

    /// Ends all.
    pub(crate) fn close(&self) {
        for (_, queue) in lock(&self.accepted).drain() {
            queue.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;

    fn peer(number: u8) -> NodeId {
        NodeKey::from_secret(&[number; 32]).node_id()
    }

    #[tokio::test]
    async fn one_peer_cannot_take_all_places() {
        let queue = StreamQueue::default();
        let taken = (0..100).filter(|i| queue.push(peer(1), *i)).count();
        assert_eq!((taken, queue.refused.load(Ordering::Relaxed)), (INCOMING_PER_PEER_MAX, 84));
        assert!(queue.push(peer(2), 100), "another peer's stream still finds a place");
        assert_eq!(queue.next().await.unwrap(), (peer(1), 0), "the oldest comes first");
        assert!(queue.push(peer(1), 101), "what is taken makes room");
    }

    #[tokio::test]
    async fn all_peers_together_are_bounded() {
        let queue = StreamQueue::default();
        let taken = (0..100u8).filter(|i| queue.push(peer(*i), ())).count();
        assert_eq!(taken, INCOMING_MAX);
    }

    #[tokio::test]
    async fn the_end_is_told() {
        let queue = StreamQueue::default();
        queue.push(peer(1), ());
        queue.close();
        assert!(queue.next().await.is_none());
    }
}
