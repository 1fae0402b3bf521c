//! Topics: who subscribes, and what becomes of messages.

use libp2p::gossipsub::{self, IdentTopic, MessageAcceptance};

use super::Node;
use crate::behaviour::topic_scores;
use crate::events::NetEvent;
use crate::id;
use crate::shared::lock;
use crate::topic::{Published, Verdict};

impl Node {
    /// Makes the subscriptions what the handles want.
    pub(super) fn subscribe_wanted(&mut self) {
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
            }
            gossipsub::Event::Subscribed { peer_id, topic } => {
                if let Some(peer) = id::node_id(&peer_id).filter(|_| self.subscribed.contains(topic.as_str())) {
                    self.tell(NetEvent::PeerSubscribed { peer, topic: topic.into_string() });
                }
            }
            gossipsub::Event::Unsubscribed { peer_id, topic } => {
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
