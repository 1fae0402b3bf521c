//! The seven topics: messages are judged, counted, shown to the view, and handed to whoever wants them.

use std::sync::Arc;

use bombus_core::identity::NodeId;
use bombus_core::topics::{IgnoreReason, Judgement, Topic, TopicMessage, judge};
use bombus_net::{Judge, NetEvent, Published, Subscription, Verdict};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::counts::count;
use crate::shared::Shared;
use crate::supervised::PartEnded;
use crate::view::ViewInput;

/// An accepted message.
#[derive(Debug, Clone)]
pub struct Heard {
    /// Who signed it.
    pub from: NodeId,
    /// What it says.
    pub message: Arc<TopicMessage>,
}

/// The accepted messages of a topic, from the moment on at which it was made.
///
/// At most 256 wait. When the reader is slower, the oldest are dropped and counted ([`MessageStream::missed`]).
#[derive(Debug)]
pub struct MessageStream {
    receiver: broadcast::Receiver<Heard>,
    missed: u64,
}

impl MessageStream {
    pub(crate) fn new(receiver: broadcast::Receiver<Heard>) -> Self {
        Self { receiver, missed: 0 }
    }

    /// Waits for the next message; `None` once the swarm is gone. Safe to cancel.
    pub async fn next(&mut self) -> Option<Heard> {
        loop {
            match self.receiver.recv().await {
                Ok(heard) => return Some(heard),
                Err(broadcast::error::RecvError::Lagged(count)) => self.missed += count,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// Returns how many messages were dropped because this reader was slow.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed
    }
}

/// Follows all topics of the swarm until `stop`, or until the node is in another swarm.
pub(crate) async fn follow_all(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), PartEnded> {
    let mut events = shared.net.events();
    let swarm_id = shared.enter_swarm();
    let mut topics = FuturesUnordered::new();
    for topic in Topic::ALL {
        let judge = TopicJudge { shared: Arc::clone(shared), topic };
        let subscription = shared.net.subscribe(&topic.full_name(&swarm_id), Arc::new(judge)).await?;
        topics.push(follow(shared, topic, subscription));
    }
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            event = events.next() => match event {
                Some(NetEvent::Rebuilt { .. } | NetEvent::Lagged(_)) if shared.net.swarm_id().to_string() != swarm_id => {
                    return Err(PartEnded::OtherSwarm);
                }
                Some(_) => {}
                None => return Err(PartEnded::MeshEnded),
            },
            _ = topics.next() => return Err(PartEnded::MeshEnded),
        }
    }
}

async fn follow(shared: &Shared, topic: Topic, mut subscription: Subscription) {
    while let Some(published) = subscription.next().await {
        if published.lost > 0 {
            shared.counts.lost.fetch_add(published.lost, std::sync::atomic::Ordering::Relaxed);
            tracing::warn!(
                topic = topic.name(),
                lost = published.lost,
                "messages were lost since this node was too slow"
            );
        }
        take(shared, topic, published);
    }
}

fn take(shared: &Shared, topic: Topic, published: Published) {
    // It has passed the judge, so it is as it should be; what was accepted then is read again, now without a memory of the past.
    let Ok(message) = serde_json::from_slice::<TopicMessage>(&published.data) else {
        tracing::error!(topic = topic.name(), "an accepted message cannot be read");
        return;
    };
    if matches!(message, TopicMessage::Capabilities(_) | TopicMessage::PresencePing(_)) {
        shared.apply(ViewInput::Message {
            peer: published.signer.clone(),
            message: Box::new(message.clone()),
            skew_ms: None,
        });
    }
    // An error says that nobody reads, which is no loss.
    drop(shared.messages(topic).send(Heard { from: published.signer, message: Arc::new(message) }));
}

/// Judges the messages of one topic by the rules that all nodes share.
struct TopicJudge {
    shared: Arc<Shared>,
    topic: Topic,
}

impl Judge for TopicJudge {
    fn judge(&self, signer: &NodeId, data: &[u8]) -> Verdict {
        let shared = &self.shared;
        let now = shared.clocks.wall();
        let judgement = judge(self.topic, signer, data, now, &mut shared.guard());
        match judgement {
            Judgement::Accept(_) => {
                shared.counts.accepted(signer);
                Verdict::Accept
            }
            Judgement::Ignore { reason, message } => {
                shared.counts.ignored(signer, &reason);
                if let IgnoreReason::ClockSkew { skew_ms } = reason {
                    note_skew(shared, signer, skew_ms, message);
                }
                Verdict::Ignore
            }
            Judgement::Reject(reason) => {
                shared.counts.rejected(signer, &reason);
                Verdict::Reject
            }
        }
    }
}

/// Takes a message whose time is off for what it says of its sender, who is there all the same.
fn note_skew(shared: &Shared, signer: &NodeId, skew_ms: i64, message: Option<Box<TopicMessage>>) {
    let about_itself =
        message.filter(|message| matches!(**message, TopicMessage::Capabilities(_) | TopicMessage::PresencePing(_)));
    let peer = signer.clone();
    shared.apply(match about_itself {
        Some(message) => ViewInput::Message { peer, message, skew_ms: Some(skew_ms) },
        None => ViewInput::Skewed { peer, skew_ms },
    });
}

/// Counts what a peer sent over a stream of its own, and takes it: there, a clock that is off is no reason to ignore anything.
pub(crate) fn take_hello(shared: &Shared, peer: &NodeId, bytes: &[u8]) -> Result<(), String> {
    // Nobody can replay what comes over a connection to the peer itself, so there is nothing to remember.
    let mut memory = bombus_core::topics::ReplayGuard::new();
    let (message, skew_ms) = match judge(Topic::Capabilities, peer, bytes, shared.clocks.wall(), &mut memory) {
        Judgement::Accept(message) => (Box::new(message), None),
        Judgement::Ignore { reason: IgnoreReason::ClockSkew { skew_ms }, message: Some(message) } => {
            (message, Some(skew_ms))
        }
        Judgement::Ignore { reason, .. } => {
            shared.counts.ignored(peer, &reason);
            return Err(reason.to_string());
        }
        Judgement::Reject(reason) => {
            shared.counts.rejected(peer, &reason);
            return Err(reason.to_string());
        }
    };
    count(&shared.counts.hello.exchanged);
    shared.apply(ViewInput::Hello { peer: peer.clone(), message, skew_ms });
    // Nobody may be listening yet.
    let _ = shared.greeted.send(peer.clone());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::MESSAGES_MAX;

    #[tokio::test]
    async fn a_slow_reader_loses_the_oldest_messages_and_can_tell_how_many() {
        let sender = broadcast::Sender::new(MESSAGES_MAX);
        let mut stream = MessageStream::new(sender.subscribe());
        let from = bombus_core::identity::NodeKey::from_secret(&[1; 32]).node_id();
        for number in 0..MESSAGES_MAX + 3 {
            let text = format!(
                r##"{{"type":"task_claim","task_id":"#{number}","node_id":"{from}","timestamp":"2025-07-12T02:00:03Z"}}"##
            );
            let message = Arc::new(serde_json::from_str::<TopicMessage>(&text).unwrap());
            sender.send(Heard { from: from.clone(), message }).unwrap();
        }
        let first = stream.next().await.unwrap();
        assert!(matches!(&*first.message, TopicMessage::TaskClaim(claim) if claim.task_id == "#3"));
        assert_eq!(stream.missed(), 3);
    }
}
