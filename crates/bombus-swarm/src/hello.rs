//! The first word between two nodes: as soon as they are connected, each tells the other what it can do, over a stream of its own. So a peer
//! is known before the topics have found their ways, and one whose clock is off is known at all.

use std::collections::HashMap;
use std::sync::Arc;

use bombus_core::identity::NodeId;
use bombus_core::topics::TopicMessage;
use bombus_net::{NetEvent, NetStream, OpenError};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::counts::count;
use crate::limiter::Limiter;
use crate::shared::Shared;
use crate::supervised::PartEnded;
use crate::topics::take_hello;
use crate::view::PeerView;
use crate::wire::{read_hello, write_hello};

/// The protocol: each side sends one `capabilities` message as JSON, of at most 64 KiB, behind its length as four bytes, big-endian.
pub(crate) const PROTOCOL: &str = "/bombus/hello/1";

/// Most exchanges at a time. Streams of peers beyond that are reset and counted; own ones wait.
const EXCHANGES_MAX: usize = 64;
/// How many exchanges a peer may begin at once, and how many a second in the long run.
const PER_PEER: (u32, u32) = (5, 1);
/// The node with the greater id leaves the first word to the other for so long, in milliseconds.
const PATIENCE_MS: u64 = 2_000;
/// Pause after the first failure, in milliseconds; it doubles with each.
const PAUSE_MS_MIN: u64 = 500;
/// Longest pause, in milliseconds.
const PAUSE_MS_MAX: u64 = 60_000;
/// After how long it is looked whether a peer needs another word, in milliseconds: its messages on topics do not count while its clock is off.
const AGAIN_MS: u64 = 30_000;

/// Exchanges first words with all peers until `stop`.
pub(crate) async fn greet_all(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), PartEnded> {
    let mut events = shared.net.events();
    let mut incoming = shared.net.accept(PROTOCOL)?;
    let mut greeter = Greeter {
        shared: Arc::clone(shared),
        due: HashMap::new(),
        exchanges: JoinSet::new(),
        limiter: Limiter::new(PER_PEER.0, PER_PEER.1),
    };
    greeter.look_who_is_there();
    loop {
        let wake = shared.clocks.at(greeter.begin_what_is_due());
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            event = events.next() => greeter.on_event(event.ok_or(PartEnded::MeshEnded)?),
            ended = greeter.exchanges.join_next(), if !greeter.exchanges.is_empty() => greeter.on_ended(ended),
            stream = incoming.next() => {
                let (peer, stream) = stream.ok_or(PartEnded::MeshEnded)?;
                greeter.on_stream(peer, stream);
            }
            () = sleep_until(wake) => {}
        }
    }
}

struct Greeter {
    shared: Arc<Shared>,
    /// The connected peers, each with when it is looked at next.
    due: HashMap<NodeId, Due>,
    exchanges: JoinSet<Ended>,
    limiter: Limiter,
}

#[derive(Debug, Clone, Copy)]
struct Due {
    at_ms: u64,
    failures: u32,
    /// Whether a first word has to go out, whatever is known of the peer already.
    first: bool,
}

struct Ended {
    peer: NodeId,
    begun_here: bool,
    result: Result<(), Failed>,
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the stream failed: {0}")]
    Stream(#[from] std::io::Error),
    #[error("this node's capabilities cannot be told: {0}")]
    Own(#[from] bombus_core::topics::BoundsError),
    #[error("the peer's capabilities do not count: {0}")]
    Refused(String),
    #[error("the exchange took too long")]
    TooLong,
}

impl Greeter {
    fn on_event(&mut self, event: NetEvent) {
        match event {
            NetEvent::PeerConnected { peer, .. } => self.expect(peer),
            NetEvent::PeerDisconnected { peer, .. } => drop(self.due.remove(&peer)),
            NetEvent::Rebuilt { .. } => self.due.clear(),
            NetEvent::Lagged(_) => self.look_who_is_there(),
            _ => {}
        }
    }

    /// Takes over who is connected, where events were missed.
    fn look_who_is_there(&mut self) {
        let connected = self.shared.net.peers().into_iter().filter(|peer| peer.connected.is_some());
        let connected: Vec<NodeId> = connected.map(|peer| peer.node_id).collect();
        self.due.retain(|peer, _| connected.contains(peer));
        for peer in connected {
            if !self.due.contains_key(&peer) {
                self.expect(peer);
            }
        }
    }

    fn expect(&mut self, peer: NodeId) {
        let first = *self.shared.net.node_id() < peer;
        let patience_ms = if first { 0 } else { PATIENCE_MS };
        self.due.insert(peer, Due { at_ms: self.shared.clocks.ms() + patience_ms, failures: 0, first });
    }

    /// Begins the exchanges that are due, and returns when the next one is.
    fn begin_what_is_due(&mut self) -> u64 {
        let now_ms = self.shared.clocks.ms();
        let due: Vec<NodeId> =
            (self.due.iter()).filter(|(_, due)| due.at_ms <= now_ms).map(|(peer, _)| peer.clone()).collect();
        for peer in due {
            if self.exchanges.len() >= EXCHANGES_MAX {
                break;
            }
            let needed = self.needs_word(&peer);
            if let Some(due) = self.due.get_mut(&peer) {
                *due = Due { at_ms: now_ms + AGAIN_MS, first: false, ..*due };
                if needed {
                    // What becomes of it is looked at when it has ended; one that panics is tried again like all others.
                    self.exchanges.spawn(begin(Arc::clone(&self.shared), peer));
                }
            }
        }
        let next_ms = self.due.values().map(|due| due.at_ms).min().unwrap_or(u64::MAX);
        // Where there was no room, the end of an exchange makes some; the clock has no farther ends than this.
        next_ms.clamp(now_ms + 10, now_ms + AGAIN_MS)
    }

    fn needs_word(&self, peer: &NodeId) -> bool {
        let first = self.due.get(peer).is_some_and(|due| due.first);
        let is_first_of_both = *self.shared.net.node_id() < *peer;
        let lacks = |known: PeerView| !known.complete || (known.clock_skew_ms.is_some() && is_first_of_both);
        first || self.shared.view().peer(peer).is_none_or(lacks)
    }

    fn on_stream(&mut self, peer: NodeId, stream: NetStream) {
        let may = self.exchanges.len() < EXCHANGES_MAX && self.limiter.allow(self.shared.clocks.ms(), &peer);
        if !may {
            // Dropping the stream resets it.
            count(&self.shared.counts.hello.refused);
            return;
        }
        self.exchanges.spawn(answer(Arc::clone(&self.shared), peer, stream));
    }

    fn on_ended(&mut self, ended: Option<Result<Ended, tokio::task::JoinError>>) {
        let ended = match ended {
            Some(Ok(ended)) => ended,
            Some(Err(error)) => {
                tracing::error!(%error, "an exchange of first words failed");
                return;
            }
            None => return,
        };
        let now_ms = self.shared.clocks.ms();
        if let Err(error) = &ended.result {
            count(&self.shared.counts.hello.failed);
            tracing::debug!(peer = %ended.peer, %error, "no first words were exchanged");
        }
        let Some(due) = self.due.get_mut(&ended.peer).filter(|_| ended.begun_here) else { return };
        match ended.result {
            Ok(()) => due.failures = 0,
            // Peers of other programs tell what they tell on the topics.
            Err(Failed::Open(OpenError::UnsupportedProtocol { .. })) => due.at_ms = u64::MAX,
            Err(_) => {
                due.at_ms = now_ms + (PAUSE_MS_MIN << due.failures.min(10)).min(PAUSE_MS_MAX);
                due.failures += 1;
                due.first = true;
            }
        }
    }
}

async fn begin(shared: Arc<Shared>, peer: NodeId) -> Ended {
    let exchanged = async {
        let stream = shared.net.open_stream(&peer, PROTOCOL).await?;
        exchange(&shared, &peer, stream).await
    };
    let result = timeout(shared.config.hello_limit, exchanged).await.unwrap_or(Err(Failed::TooLong));
    Ended { peer, begun_here: true, result }
}

async fn answer(shared: Arc<Shared>, peer: NodeId, stream: NetStream) -> Ended {
    let exchanged = exchange(&shared, &peer, stream);
    let result = timeout(shared.config.hello_limit, exchanged).await.unwrap_or(Err(Failed::TooLong));
    Ended { peer, begun_here: false, result }
}

/// Both sides write first; what one writes fits into what the stream takes without the other reading.
async fn exchange(shared: &Shared, peer: &NodeId, mut stream: NetStream) -> Result<(), Failed> {
    let own = TopicMessage::Capabilities(shared.own()).encode()?;
    write_hello(&mut stream, &own).await?;
    let theirs = read_hello(&mut stream).await?;
    let taken = take_hello(shared, peer, &theirs).map_err(Failed::Refused);
    // The other side has all it needs, whether or not the end arrives.
    drop(stream.shutdown().await);
    taken
}
