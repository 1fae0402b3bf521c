//! The streams that bring the failure detector's datagrams.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_net::NetStream;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::FromPeer;
use crate::counts::count;
use crate::limiter::Limiter;
use crate::shared::Shared;
use crate::wire::read_datagram;

/// How many datagrams a peer may send at once, and how many a second in the long run: many times what the detector needs. A peer that
/// sends more is read more slowly, so that it waits, and nobody else does.
const PER_PEER: (u32, u32) = (200, 50);
/// How long a peer that sends too much is held up at a time.
const HOLD_UP: Duration = Duration::from_millis(20);
/// Most streams at a time.
const STREAMS_MAX: usize = 1_024;

/// All streams that bring datagrams: one for each peer, the newest.
pub(super) struct Readers {
    context: Arc<Context>,
    tasks: JoinSet<NodeId>,
    newest: HashMap<NodeId, AbortHandle>,
}

struct Context {
    shared: Arc<Shared>,
    to_detector: mpsc::Sender<FromPeer>,
    limiter: Mutex<Limiter>,
}

impl Readers {
    pub(super) fn new(shared: Arc<Shared>, to_detector: mpsc::Sender<FromPeer>) -> Self {
        let limiter = Mutex::new(Limiter::new(PER_PEER.0, PER_PEER.1));
        let context = Arc::new(Context { shared, to_detector, limiter });
        Self { context, tasks: JoinSet::new(), newest: HashMap::new() }
    }

    /// Reads a peer's stream from now on, and no longer the one before.
    pub(super) fn read(&mut self, peer: NodeId, stream: NetStream) {
        if let Some(before) = self.newest.remove(&peer) {
            before.abort();
        }
        if self.tasks.len() >= STREAMS_MAX {
            count(&self.context.shared.counts.frames.dropped);
            return;
        }
        // One that fails ends its stream, upon which the peer opens another.
        let task = self.tasks.spawn(run(Arc::clone(&self.context), peer.clone(), stream));
        self.newest.insert(peer, task);
    }

    /// Waits for a stream to end, and forgets it. Pending while none does. Safe to cancel.
    pub(super) async fn reap(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok(peer)) => {
                if self.newest.get(&peer).is_some_and(AbortHandle::is_finished) {
                    self.newest.remove(&peer);
                }
            }
            Some(Err(error)) => {
                if error.is_panic() {
                    tracing::error!(%error, "a task that reads a peer's datagrams failed");
                }
                self.newest.retain(|_, task| !task.is_finished());
            }
            None => std::future::pending().await,
        }
    }
}

async fn run(context: Arc<Context>, peer: NodeId, mut stream: NetStream) -> NodeId {
    // Only when everything ends is nobody there to be told.
    drop(context.to_detector.send(FromPeer::Up(peer.clone())).await);
    if let Err(error) = read_all(&context, &peer, &mut stream).await
        && error.kind() == io::ErrorKind::InvalidData
    {
        count(&context.shared.counts.frames.malformed);
        tracing::debug!(%peer, %error, "a peer sent something else than datagrams");
    }
    peer
}

async fn read_all(context: &Context, peer: &NodeId, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let counts = &context.shared.counts.frames;
    loop {
        let bytes = read_datagram(stream).await?;
        count(&counts.received);
        counts.received_bytes.fetch_add(2 + bytes.len() as u64, std::sync::atomic::Ordering::Relaxed);
        while !context.may(peer) {
            count(&counts.held_up);
            sleep(HOLD_UP).await;
        }
        if context.to_detector.try_send(FromPeer::Datagram { from: peer.clone(), bytes }).is_err() {
            count(&counts.dropped);
        }
    }
}

impl Context {
    fn may(&self, peer: &NodeId) -> bool {
        let now_ms = self.shared.clocks.ms();
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner).allow(now_ms, peer)
    }
}
