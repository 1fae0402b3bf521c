//! Topics: who subscribes, and what becomes of messages.

use std::collections::HashMap;

use bombus_core::identity::NodeId;
use libp2p::PeerId;
use libp2p::gossipsub::{self, IdentTopic, MessageAcceptance};

use super::Node;
use crate::behaviour::topic_scores;
use crate::events::NetEvent;
use crate::id;
use crate::shared::lock;
use crate::topic::{Published, Verdict};

impl Node {
    /// Does what the handles want of topics.
    pub(super) fn on_wishes(&mut self) {
        self.subscribe_wanted();
        self.wake_rewired();
        self.show_topic_peers();
    }

    /// Makes the subscriptions what the handles want.
    fn subscribe_wanted(&mut self) {
        let wanted: Vec<String> = lock(&self.shared.topics).keys().cloned().collect();
        let ended: Vec<String> = self.subscribed.iter().filter(|topic| !wanted.contains(*topic)).cloned().collect();
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        for topic in ended {
            gossip.unsubscribe(&IdentTopic::new(topic.clone()));
            self.subscribed.remove(&topic);
        }
        for name in wanted {
            if !self.subscribed.contains(&name) {
                let topic = IdentTopic::new(name.clone());
                if let Err(error) = gossip.set_topic_params(topic.clone(), topic_scores()) {
                    tracing::error!(%error, "the scoring of a topic was refused");
                }
                match gossip.subscribe(&topic) {
                    Ok(_) => {
                        self.subscribed.insert(name);
                    }
                    Err(error) => tracing::error!(topic = name, %error, "a topic could not be subscribed to"),
                }
            }
        }
    }

    pub(super) fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message { propagation_source, message_id, message } => {
                let acceptance = match self.judge(message) {
                    Verdict::Accept => MessageAcceptance::Accept,
                    Verdict::Ignore => {
                        self.memory.counts.ignored += 1;
                        MessageAcceptance::Ignore
                    }
                    Verdict::Reject => {
                        self.memory.counts.rejected += 1;
                        MessageAcceptance::Reject
                    }
                };
                let gossip = &mut self.swarm.behaviour_mut().gossip;
                gossip.report_message_validation_result(&message_id, &propagation_source, acceptance);
                // It may have been passed on.
                self.wake_rewired();
            }
            gossipsub::Event::Subscribed { peer_id, topic } => {
                self.show_topic_peer(&peer_id, topic.as_str(), self.swarm.is_connected(&peer_id));
                if let Some(peer) = id::node_id(&peer_id).filter(|_| self.subscribed.contains(topic.as_str())) {
                    self.tell(NetEvent::PeerSubscribed { peer, topic: topic.into_string() });
                }
            }
            gossipsub::Event::Unsubscribed { peer_id, topic } => {
                self.show_topic_peer(&peer_id, topic.as_str(), false);
                if let Some(peer) = id::node_id(&peer_id).filter(|_| self.subscribed.contains(topic.as_str())) {
                    self.tell(NetEvent::PeerUnsubscribed { peer, topic: topic.into_string() });
                }
            }
            gossipsub::Event::GossipsubNotSupported { .. } => {}
            gossipsub::Event::SlowPeer { peer_id, failed_messages } => {
                tracing::debug!(peer.id = %peer_id, ?failed_messages, "a peer takes messages too slowly");
            }
        }
    }

    /// Shows who takes part in the topics for which somebody wants to know that.
    fn show_topic_peers(&self) {
        let mut watched = lock(&self.shared.topic_peers);
        if watched.is_empty() {
            return;
        }
        let mut peers: HashMap<&str, Vec<NodeId>> = HashMap::new();
        for (peer, topics) in self.swarm.behaviour().gossip.all_peers() {
            let Some(peer) = id::node_id(peer) else { continue };
            for topic in topics.into_iter().filter(|topic| watched.contains_key(topic.as_str())) {
                peers.entry(topic.as_str()).or_default().push(peer.clone());
            }
        }
        for (topic, shown) in watched.iter_mut() {
            let mut now = peers.remove(topic.as_str()).unwrap_or_default();
            now.sort();
            shown.send_if_modified(|before| {
                let is_changed = *before != now;
                *before = now;
                is_changed
            });
        }
    }

    /// Shows whether a peer takes part in a topic.
    fn show_topic_peer(&self, peer: &PeerId, topic: &str, takes_part: bool) {
        if let (Some(shown), Some(peer)) = (lock(&self.shared.topic_peers).get(topic), id::node_id(peer)) {
            shown.send_if_modified(|peers| match (peers.binary_search(&peer), takes_part) {
                (Err(at), true) => {
                    peers.insert(at, peer);
                    true
                }
                (Ok(at), false) => {
                    peers.remove(at);
                    true
                }
                _ => false,
            });
        }
    }

    /// Shows that a peer takes part in nothing any more.
    pub(super) fn show_gone_from_topics(&self, peer: &NodeId) {
        for shown in lock(&self.shared.topic_peers).values() {
            shown.send_if_modified(|peers| peers.binary_search(peer).map(|at| peers.remove(at)).is_ok());
        }
    }

    /// Puts a message to the judge of its topic, and hands it out if it is accepted.
    fn judge(&mut self, message: gossipsub::Message) -> Verdict {
        let topic = message.topic.into_string();
        let Some(entry) = lock(&self.shared.topics).get(&topic).cloned() else {
            return Verdict::Ignore;
        };
        // In strict mode every message has one, and its signature was checked against it.
        let Some(signer) = message.source.as_ref().and_then(id::node_id) else {
            return Verdict::Reject;
        };
        // What a removed member signed may still travel among those that have not heard of it.
        if self.state.removed.contains(&signer) {
            return Verdict::Ignore;
        }
        let verdict = entry.judge.judge(&signer, &message.data);
        if verdict == Verdict::Accept {
            let published = Published { signer, data: message.data, topic, lost: 0 };
            self.memory.counts.messages_lost += entry.queue.push(published);
        }
        verdict
    }
}
