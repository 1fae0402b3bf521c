//! Peers of whose several connections one was closed, while gossipsub has nothing on the others yet.
//!
//! All connections to a peer share one queue of messages. A connection begins its own stream for them when it is asked what there is to do
//! while something is in the queue, and hears of what is put there from then on. Where all messages went over the connection that was
//! closed, nobody hears of the next ones: they would lie there, and after some seconds be dropped.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::gossipsub::TopicHash;

use super::Node;

/// After a message was put into the queue of a peer, a stream stands within this time or has failed.
const STREAM_LIMIT: Duration = Duration::from_secs(10);

/// Those peers, and since when something has been put into their queue.
pub(super) type Rewired = HashMap<PeerId, Option<Instant>>;

impl Node {
    /// Takes note of a connection that was closed.
    pub(super) fn on_rewired(&mut self, peer: &PeerId) {
        if self.swarm.is_connected(peer) {
            self.rewired.insert(*peer, None);
            self.wake_rewired();
        } else {
            self.rewired.remove(peer);
        }
    }

    /// Takes note of a message to all that take part in a topic.
    pub(super) fn on_told(&mut self, topic: &TopicHash) {
        if self.rewired.is_empty() {
            return;
        }
        for (peer, topics) in self.swarm.behaviour().gossip.all_peers() {
            if let Some(since @ None) = self.rewired.get_mut(peer)
                && topics.contains(&topic)
            {
                *since = Some(Instant::now());
            }
        }
        self.wake_rewired();
    }

    /// Has their connections look for what gossipsub wants to send.
    pub(super) fn wake_rewired(&mut self) {
        if self.rewired.is_empty() {
            return;
        }
        let streams = &mut self.swarm.behaviour_mut().streams;
        self.rewired.keys().for_each(|peer| streams.wake(peer));
        self.rewired.retain(|_, since| since.is_none_or(|since| since.elapsed() < STREAM_LIMIT));
    }
}
