//! What handles ask for.

use bombus_core::identity::NodeId;
use libp2p::gossipsub::{self, IdentTopic};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use tokio::sync::oneshot;

use super::{Attempt, Node, connections};
use crate::dialer::Input;
use crate::failure::{DialFailure, PublishError};
use crate::handle::MESSAGE_MAX;
use crate::shared::Command;
use crate::{address, id};

/// How many requests may wait for connections.
const WAITING_MAX: usize = 1024;

impl Node {
    pub(super) fn on_request(&mut self, request: Command) {
        // Who asked may have given up; then the answer goes nowhere.
        match request {
            Command::Publish { topic, data, reply } => {
                let _ = reply.send(self.publish(topic, data));
            }
            Command::Connect { peer, reply } => self.connect(peer, reply),
            Command::Dial { addr, reply } => self.dial_by_hand(&addr, reply),
            #[cfg(test)]
            Command::Panic => panic!("as the test wants"),
            Command::Disconnect { peer, reply } => {
                if let Some(peer) = id::peer_id(&peer) {
                    // Without a connection there is nothing to do.
                    let _ = self.swarm.disconnect_peer_id(peer);
                }
                let _ = reply.send(());
            }
        }
    }

    fn publish(&mut self, topic: String, data: Vec<u8>) -> Result<(), PublishError> {
        let size = data.len();
        let topic = IdentTopic::new(topic);
        match self.swarm.behaviour_mut().gossip.publish(topic.clone(), data) {
            Ok(_) => {
                self.on_told(&topic.hash());
                Ok(())
            }
            Err(gossipsub::PublishError::NoPeersSubscribedToTopic) => {
                self.shared.count_published_to_nobody();
                Ok(())
            }
            Err(gossipsub::PublishError::AllQueuesFull(_)) => Err(PublishError::QueuesFull),
            Err(gossipsub::PublishError::MessageTooLarge) => Err(PublishError::TooLarge { size, max: MESSAGE_MAX }),
            // Each message has a number of its own, Ed25519 signs everything, and nothing is transformed.
            Err(error) => {
                tracing::error!(%error, "a message could not be published");
                Err(PublishError::Busy)
            }
        }
    }

    fn connect(&mut self, peer: NodeId, reply: oneshot::Sender<Result<(), DialFailure>>) {
        if self.memory.dialer.is_connected(&peer) {
            // Who asked may have given up.
            let _ = reply.send(Ok(()));
            return;
        }
        if self.state.removed.contains(&peer) {
            let _ = reply.send(Err(DialFailure::NotAMember));
            return;
        }
        if self.waiting.values().map(Vec::len).sum::<usize>() >= WAITING_MAX {
            let _ = reply.send(Err(DialFailure::Busy));
            return;
        }
        self.waiting.entry(peer.clone()).or_default().push(reply);
        self.feed(Input::Want { peer });
    }

    fn dial_by_hand(&mut self, addr: &str, reply: oneshot::Sender<Result<NodeId, DialFailure>>) {
        let target = match address::parse_target(addr) {
            Ok(target) => target,
            Err(why) => {
                // Who asked may have given up.
                let _ = reply.send(Err(why));
                return;
            }
        };
        if target.peer == Some(self.local) {
            let _ = reply.send(Err(DialFailure::SameIdentity));
            return;
        }
        let options = match target.peer {
            Some(peer) => {
                DialOpts::peer_id(peer).addresses(vec![target.addr.clone()]).condition(PeerCondition::Always).build()
            }
            None => target.addr.clone().into(),
        };
        let connection = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.attempts.insert(connection, Attempt::Manual { addr: target.addr, reply });
            }
            // Addresses that this node listens on are left out of a dial.
            Err(libp2p::swarm::DialError::NoAddresses) => {
                let _ = reply.send(Err(DialFailure::SameIdentity));
            }
            Err(error) => {
                let _ = reply.send(Err(connections::explain(error).1));
            }
        }
    }
}
