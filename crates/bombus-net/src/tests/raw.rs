//! A peer made of plain libp2p, which does what nodes never do.

use std::time::Duration;

use futures::StreamExt;
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::gossipsub::{self, IdentTopic, MessageAuthenticity, ValidationMode};
use libp2p::identity::Keypair;
use libp2p::kad::store::MemoryStore;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::{NetworkBehaviour, Swarm, SwarmEvent};
use libp2p::{Multiaddr, PeerId, SwarmBuilder, identify, kad, noise, tcp, yamux};
use tokio::time::timeout;

use super::{LIMIT, Running, identity};
use crate::behaviour::{Gossip, KADEMLIA, message_id};

#[derive(NetworkBehaviour)]
pub(super) struct Raw {
    limits: connection_limits::Behaviour,
    pub(super) gossip: gossipsub::Behaviour,
    pub(super) identify: identify::Behaviour,
    kademlia: Toggle<kad::Behaviour<MemoryStore>>,
}

/// A node's own gossipsub by itself.
#[derive(NetworkBehaviour)]
pub(super) struct Ours {
    pub(super) gossip: Gossip,
}

pub(super) fn with_gossip(number: u8, gossip: Gossip) -> Swarm<Ours> {
    SwarmBuilder::with_existing_identity(keypair(number))
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_| Ours { gossip })
        .unwrap()
        .build()
}

pub(super) fn keypair(number: u8) -> Keypair {
    Keypair::ed25519_from_bytes(identity(number).key.secret()).unwrap()
}

/// Makes a peer for open swarms, whose messages are signed or not, and as large as it likes.
pub(super) fn peer(number: u8, authenticity: MessageAuthenticity) -> Swarm<Raw> {
    raw(number, authenticity, ConnectionLimits::default(), None)
}

/// Makes a peer for open swarms that answers lookups with these addresses of somebody else.
pub(super) fn liar(number: u8, victim: PeerId, lies: &[Multiaddr]) -> Swarm<Raw> {
    let mut config = kad::Config::new(KADEMLIA);
    config.set_periodic_bootstrap_interval(None);
    let mut kademlia = kad::Behaviour::with_config(peer_id(number), MemoryStore::new(peer_id(number)), config);
    kademlia.set_mode(Some(kad::Mode::Server));
    for lie in lies {
        kademlia.add_address(&victim, lie.clone());
    }
    // It dials nobody, and so never finds out that they are lies.
    let limits = ConnectionLimits::default().with_max_pending_outgoing(Some(0));
    raw(number, MessageAuthenticity::Signed(keypair(number)), limits, Some(kademlia))
}

fn raw(
    number: u8,
    authenticity: MessageAuthenticity,
    limits: ConnectionLimits,
    kademlia: Option<kad::Behaviour<MemoryStore>>,
) -> Swarm<Raw> {
    let key = keypair(number);
    let (limits, kademlia) = (connection_limits::Behaviour::new(limits), Toggle::from(kademlia));
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(ValidationMode::None)
        .max_transmit_size(8 * 1024 * 1024)
        .max_control_message_size(8 * 1024 * 1024)
        .heartbeat_interval(Duration::from_millis(200))
        .message_id_fn(message_id)
        .build()
        .unwrap();
    let gossip = gossipsub::Behaviour::new(authenticity, config).unwrap();
    let identify = identify::Behaviour::new(identify::Config::new("raw/1".to_owned(), key.public()));
    SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_| Raw { limits, gossip, identify, kademlia })
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
        .build()
}

/// Dials a node and waits until it takes part in a topic.
pub(super) async fn join(raw: &mut Swarm<Raw>, node: &Running, topic: &str) {
    let topic = IdentTopic::new(topic);
    raw.behaviour_mut().gossip.subscribe(&topic).unwrap();
    raw.dial(node.addr().parse::<Multiaddr>().unwrap()).unwrap();
    let joined = async {
        loop {
            let event = raw.select_next_some().await;
            if let SwarmEvent::Behaviour(RawEvent::Gossip(gossipsub::Event::Subscribed { topic: theirs, .. })) = event
                && theirs == topic.hash()
            {
                return;
            }
        }
    };
    timeout(LIMIT, joined).await.expect("it takes part in time");
}

/// Has a peer listen on this machine, and returns where.
pub(super) async fn listening<B: NetworkBehaviour>(swarm: &mut Swarm<B>) -> Multiaddr {
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    let listening = async {
        loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                return address;
            }
        }
    };
    timeout(LIMIT, listening).await.expect("it listens in time")
}

/// Lets the peer do its work while something else goes on.
pub(super) async fn beside<T>(raw: &mut Swarm<Raw>, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = raw.select_next_some() => {}
        }
    }
}

pub(super) fn peer_id(number: u8) -> PeerId {
    keypair(number).public().to_peer_id()
}
