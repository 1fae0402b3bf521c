//! A peer made of libp2p alone, which says what a node never would.

use std::time::Duration;

use futures::future::Either;
use futures::{AsyncWriteExt, StreamExt};
use libp2p::core::transport::Boxed;
use libp2p::core::upgrade::Version;
use libp2p::core::{muxing::StreamMuxerBox, transport::Transport};
use libp2p::gossipsub::{self, IdentTopic, MessageAuthenticity, MessageId};
use libp2p::identity::Keypair;
use libp2p::pnet::{PnetConfig, PreSharedKey};
use libp2p::swarm::{self, NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, identify, noise, ping, tcp, yamux};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::TokioAsyncReadCompatExt;

use super::member::Member;
use crate::harness::within;

/// The names of the seven topics.
pub(crate) const TOPICS: [&str; 7] = [
    "capabilities",
    "task_broadcast",
    "task_claim",
    "task_result",
    "presence_ping",
    "task_help_request",
    "task_help_response",
];

/// How often a node looks after its topics.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long a dial may take: nodes give up on a handshake after 5 s.
const DIAL_LIMIT: Duration = Duration::from_secs(15);

#[derive(NetworkBehaviour)]
struct Behaviour {
    gossipsub: gossipsub::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

enum Order {
    Dial(Multiaddr, oneshot::Sender<Result<PeerId, String>>),
    Subscribe(String),
    Publish(String, Vec<u8>, oneshot::Sender<Result<(), gossipsub::PublishError>>),
}

/// A peer that speaks identify, ping and gossipsub, and nothing of Bombus.
pub(crate) struct RawPeer {
    id: PeerId,
    swarm_id: String,
    orders: mpsc::Sender<Order>,
    messages: mpsc::Receiver<(String, Vec<u8>)>,
}

impl RawPeer {
    /// Makes a peer with the swarm key of a node, or without one if the node's swarm is open, and connects it to that node.
    pub(crate) async fn member(node: &Member) -> Self {
        let (swarm_id, key) = swarm_of(node);
        let mut peer = Self::with_key(swarm_id, key);
        for topic in TOPICS {
            peer.subscribe(topic).await;
        }
        peer.dial(&node.address()).await.expect("a member gets through the handshake");
        peer
    }

    /// Makes a peer that has another swarm key, or none, and is connected to nobody.
    pub(crate) fn stranger(key: Option<[u8; 32]>) -> Self {
        Self::with_key("open".to_owned(), key)
    }

    fn with_key(swarm_id: String, key: Option<[u8; 32]>) -> Self {
        let keypair = Keypair::generate_ed25519();
        let id = keypair.public().to_peer_id();
        let config = swarm::Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(600));
        let swarm =
            libp2p::Swarm::new(transport(&keypair, key.map(PreSharedKey::new)), behaviour(&keypair), id, config);
        let (orders, to_do) = mpsc::channel(16);
        let (sender, messages) = mpsc::channel(4_096);
        // It ends with the test's runtime, or when the peer is dropped; should it panic, every later order fails the test.
        tokio::spawn(act(swarm, to_do, sender));
        Self { id, swarm_id, orders, messages }
    }

    /// Returns its id.
    pub(crate) fn id(&self) -> String {
        self.id.to_base58()
    }

    /// Connects to an address and returns who is there.
    pub(crate) async fn dial(&self, address: &str) -> Result<String, String> {
        let (answer, answered) = oneshot::channel();
        self.order(Order::Dial(address.parse().unwrap(), answer)).await;
        match tokio::time::timeout(DIAL_LIMIT, answered).await {
            Ok(answer) => answer.expect("the peer acts").map(PeerId::to_base58),
            Err(_) => Err(format!("nothing within {DIAL_LIMIT:?}")),
        }
    }

    /// Subscribes to a topic of its swarm.
    pub(crate) async fn subscribe(&mut self, topic: &str) {
        let topic = self.full(topic);
        self.order(Order::Subscribe(topic)).await;
    }

    /// Publishes a message as soon as somebody is there to hear it.
    pub(crate) async fn publish(&self, topic: &str, message: &Value) {
        self.publish_bytes(topic, message.to_string().into_bytes()).await;
    }

    /// Publishes bytes as soon as somebody is there to hear them.
    pub(crate) async fn publish_bytes(&self, topic: &str, bytes: Vec<u8>) {
        let published = async {
            let mut every = tokio::time::interval(Duration::from_millis(20));
            loop {
                every.tick().await;
                let (answer, answered) = oneshot::channel();
                self.order(Order::Publish(self.full(topic), bytes.clone(), answer)).await;
                match answered.await.expect("the peer acts") {
                    Ok(()) => return,
                    Err(
                        gossipsub::PublishError::NoPeersSubscribedToTopic | gossipsub::PublishError::AllQueuesFull(_),
                    ) => {}
                    Err(error) => panic!("{topic}: {error}"),
                }
            }
        };
        within("publishing", published).await;
    }

    /// Returns the next message with this word in it, and how many other messages of that topic came before it.
    pub(crate) async fn hears(&mut self, topic: &str, word: &str) -> Vec<String> {
        let wanted = self.full(topic);
        let mut others = Vec::new();
        let heard = async {
            loop {
                let (topic, bytes) = self.messages.recv().await.expect("the peer acts");
                let text = String::from_utf8_lossy(&bytes).into_owned();
                if topic == wanted && text.contains(word) {
                    return;
                }
                if topic == wanted {
                    others.push(text);
                }
            }
        };
        within(&format!("{word} on {topic}"), heard).await;
        others
    }

    /// Publishes until another peer hears it: what is said before the node between them has both in its topics, which takes it up to a
    /// heartbeat, is not passed on.
    pub(crate) async fn meets(&self, listener: &mut Self) {
        for number in 0..50 {
            let word = format!("{} begins, {number}", self.id());
            self.publish("task_claim", &self.message("task_claim", &word)).await;
            if tokio::time::timeout(HEARTBEAT, listener.hears("task_claim", &word)).await.is_ok() {
                return;
            }
        }
        panic!("nothing is passed on to {}", listener.id());
    }

    fn full(&self, topic: &str) -> String {
        format!("bombus/{}/{topic}", self.swarm_id)
    }

    async fn order(&self, order: Order) {
        assert!(self.orders.send(order).await.is_ok(), "the raw peer acts");
    }

    /// Returns a well-formed message of a topic from this peer, whose text has a word by which it is known.
    pub(crate) fn message(&self, topic: &str, word: &str) -> Value {
        let (id, now) = (self.id(), timestamp(time::Duration::ZERO));
        match topic {
            "capabilities" => json!({
                "type": topic, "node_id": id, "cpu": 43.5, "gpu": 2.3, "models": [word], "installed": ["gemini-cli"],
                "status": "idle", "timestamp": now,
            }),
            "task_broadcast" => json!({
                "type": "task", "task_id": word, "repo": "example-org/task-repo",
                "issue_url": "https://example.org/task-repo/issues/42", "model": "ollama", "input": "Add unit tests",
                "params": { "branch_prefix": "task-42-" }, "timestamp": now,
            }),
            "task_claim" => json!({ "type": topic, "task_id": word, "node_id": id, "timestamp": now }),
            "task_result" => json!({
                "type": topic, "task_id": word, "node_id": id, "result_type": "pull_request",
                "result_url": "https://example.org/task-repo/pull/97", "duration_ms": 15830, "timestamp": now,
            }),
            "presence_ping" => json!({ "type": topic, "node_id": id, "name": word, "timestamp": now }),
            "task_help_request" => json!({
                "type": topic, "task_id": word, "from_node": id, "reason": "missing capability",
                "requested_capability": "something-nobody-has", "timestamp": now,
            }),
            "task_help_response" => json!({
                "type": topic, "task_id": word, "from_node": id, "can_help": true, "capabilities": ["claude-cli"],
                "eta_seconds": 30, "timestamp": now,
            }),
            other => panic!("{other} is none of the topics"),
        }
    }
}

/// Returns a time, so far from now, as messages write it.
pub(crate) fn timestamp(from_now: time::Duration) -> String {
    (OffsetDateTime::now_utc() + from_now).format(&Rfc3339).unwrap()
}

/// Reads the id of a node's swarm, and its key if it has one, from its data directory.
fn swarm_of(node: &Member) -> (String, Option<[u8; 32]>) {
    if node.is_open() {
        return ("open".to_owned(), None);
    }
    let swarms = node.home().data_dir().join("swarms");
    let id = std::fs::read_to_string(swarms.join("current")).unwrap().trim().to_owned();
    let file = std::fs::read_to_string(swarms.join(&id).join("swarm.key")).unwrap();
    let digits = file.lines().nth(2).expect("the third line is the key");
    (id, Some(hex::decode(digits).unwrap().try_into().expect("a key has 32 bytes")))
}

fn transport(keypair: &Keypair, key: Option<PreSharedKey>) -> Boxed<(PeerId, StreamMuxerBox)> {
    tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .and_then(move |socket, _| async move {
            match key {
                Some(key) => PnetConfig::new(key).handshake(socket).await.map(Either::Left),
                None => Ok(Either::Right(socket)),
            }
        })
        .upgrade(Version::V1)
        .authenticate(noise::Config::new(keypair).unwrap())
        .multiplex(yamux::Config::default())
        .timeout(Duration::from_secs(10))
        .boxed()
}

fn behaviour(keypair: &Keypair) -> Behaviour {
    let config = gossipsub::ConfigBuilder::default()
        .max_transmit_size(1024 * 1024)
        .message_id_fn(|message: &gossipsub::Message| {
            let mut id = message.source.map(|source| source.to_bytes().split_off(2)).unwrap_or_default();
            id.extend(message.sequence_number.unwrap_or_default().to_be_bytes());
            MessageId::from(id)
        })
        .build()
        .unwrap();
    Behaviour {
        gossipsub: gossipsub::Behaviour::new(MessageAuthenticity::Signed(keypair.clone()), config).unwrap(),
        identify: identify::Behaviour::new(identify::Config::new("/ipfs/id/1.0.0".to_owned(), keypair.public())),
        ping: ping::Behaviour::default(),
    }
}

/// Does what it is told until nobody is left to tell it.
async fn act(
    mut swarm: libp2p::Swarm<Behaviour>,
    mut orders: mpsc::Receiver<Order>,
    messages: mpsc::Sender<(String, Vec<u8>)>,
) {
    let mut dialling: Option<oneshot::Sender<Result<PeerId, String>>> = None;
    loop {
        tokio::select! {
            biased;
            order = orders.recv() => match order {
                None => return,
                Some(Order::Dial(address, answer)) => match swarm.dial(address) {
                    Ok(()) => dialling = Some(answer),
                    Err(error) => drop(answer.send(Err(error.to_string()))),
                },
                Some(Order::Subscribe(topic)) => {
                    swarm.behaviour_mut().gossipsub.subscribe(&IdentTopic::new(topic)).unwrap();
                }
                Some(Order::Publish(topic, bytes, answer)) => {
                    let published = swarm.behaviour_mut().gossipsub.publish(IdentTopic::new(topic), bytes);
                    drop(answer.send(published.map(|_| ())));
                }
            },
            event = swarm.select_next_some() => match event {
                SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                    if let Some(answer) = dialling.take() {
                        drop(answer.send(Ok(peer_id)));
                    }
                }
                SwarmEvent::OutgoingConnectionError { error, .. } => {
                    if let Some(answer) = dialling.take() {
                        drop(answer.send(Err(error.to_string())));
                    }
                }
                SwarmEvent::Behaviour(BehaviourEvent::Gossipsub(gossipsub::Event::Message { message, .. })) => {
                    // When the test does not listen, what came later is dropped.
                    drop(messages.try_send((message.topic.into_string(), message.data)));
                }
                _ => {}
            },
        }
    }
}

/// Listens as a member of a node's swarm that breaks off as soon as it has shown that it has the key; returns where.
pub(crate) async fn half_a_member(node: &Member) -> String {
    let key = PreSharedKey::new(swarm_of(node).1.expect("the swarm has a key"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // It ends with the test's runtime; a failure shows in what the node finds.
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            if let Ok(mut socket) = PnetConfig::new(key).handshake(socket.compat()).await {
                let _ = socket.write_all(b"\x13/multistream/1.0.0\n").await;
                let _ = socket.flush().await;
            }
        }
    });
    address
}
