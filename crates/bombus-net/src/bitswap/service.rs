//! The service: it hears peers, and begins to talk to them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use bombus_core::identity::NodeId;

use super::BitswapEvent;
use super::exchange::Exchange;
use super::hear::Hear;
use super::talk::Talk;
use crate::events::{NetEvent, NetEvents};
use crate::handle::NetHandle;
use crate::stream::{Incoming, NetStream};

/// How often wants are looked at that may have waited too long.
const TICK: Duration = Duration::from_millis(200);

/// Exchanges blocks with peers; runs as one task.
pub struct BitswapService {
    pub(super) exchange: Arc<Exchange>,
    pub(super) net: NetHandle,
    pub(super) net_events: NetEvents,
    pub(super) incoming: Incoming,
    pub(super) events: mpsc::Sender<BitswapEvent>,
}

impl std::fmt::Debug for BitswapService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BitswapService").field("net", &self.net).finish_non_exhaustive()
    }
}

impl BitswapService {
    /// Runs until it is told to stop, or the mesh has stopped. Then streams are closed, and wants end without events.
    pub async fn run(mut self, stop: CancellationToken) {
        let _end = EndOnDrop(Arc::clone(&self.exchange));
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A task that fails takes what it did for its peer with it, and nothing else.
        let (mut talks, mut hears) = (JoinSet::new(), JoinSet::new());
        let exchange = Arc::clone(&self.exchange);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                event = self.net_events.next() => if self.on_net_event(event).is_break() { return },
                () = exchange.wake.notified() => self.talk(&mut talks),
                Ok(place) = self.events.reserve(), if exchange.has_absent() => {
                    if let Some((peer, cid)) = exchange.next_absent() {
                        place.send(BitswapEvent::Absent { peer, cid });
                    }
                }
                _ = ticks.tick() => exchange.expire(),
                Some(ended) = talks.join_next() => report(ended),
                Some(ended) = hears.join_next() => report(ended),
                incoming = self.incoming.next(), if hears.len() < exchange.config.streams => {
                    match incoming {
                        Some((peer, stream)) => self.hear(peer, stream, &mut hears),
                        None => return,
                    }
                }
            }
        }
    }

    fn on_net_event(&self, event: Option<NetEvent>) -> ControlFlow<()> {
        match event {
            None => return ControlFlow::Break(()),
            Some(NetEvent::PeerDisconnected { peer, .. }) => self.exchange.gone(&peer, false),
            Some(NetEvent::Lagged(_)) => {
                let connected = self.net.peers().into_iter().filter(|peer| peer.connected.is_some());
                let connected: Vec<NodeId> = connected.map(|peer| peer.node_id).collect();
                for peer in self.exchange.peers() {
                    if !connected.contains(&peer) {
                        self.exchange.gone(&peer, false);
                    }
                }
            }
            Some(_) => {}
        }
        ControlFlow::Continue(())
    }

    fn talk(&self, talks: &mut JoinSet<()>) {
        for (peer, news) in self.exchange.take_silent() {
            talks.spawn(Talk::new(Arc::clone(&self.exchange), self.net.clone(), peer, news).run());
        }
    }

    fn hear(&self, peer: NodeId, stream: NetStream, hears: &mut JoinSet<()>) {
        // What is not heard is reset.
        if let Some(hear) = Hear::begin(Arc::clone(&self.exchange), self.events.clone(), peer) {
            hears.spawn(hear.run(stream));
        }
    }
}

fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an exchange of blocks with a peer failed");
    }
}

struct EndOnDrop(Arc<Exchange>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}
