//! What a node speaks: the behaviours of libp2p that it is made of, and their settings.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use libp2p::gossipsub::{
    AllowAllSubscriptionFilter, IdentityTransform, MaxCountSubscriptionFilter, Message, MessageAuthenticity, MessageId,
    PeerScoreParams, PeerScoreThresholds, TopicScoreParams, ValidationMode,
};
use libp2p::identity::Keypair;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    StreamProtocol, allow_block_list, autonat, connection_limits, dcutr, gossipsub, identify, kad, mdns,
    memory_connection_limits, ping, relay,
};
use tokio_util::sync::CancellationToken;

use crate::config::{NetConfig, NetLimits, NetTiming};
use crate::failure::NetError;
use crate::stream::Protocols;

pub(crate) mod relay_client;
pub(crate) mod relay_server;
pub(crate) mod streams;

/// The name of this mesh's Kademlia, so that it never mixes with others.
pub(crate) const KADEMLIA: StreamProtocol = StreamProtocol::new("/bombus/kad/1");
/// What identify calls the protocol family.
const FAMILY: &str = "bombus/1";
/// How a node says that it relays.
pub(crate) const HOP: &str = "/libp2p/circuit/relay/0.2.0/hop";
/// The most bytes of a message of a topic, with its envelope.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// How many peers a node tells in each heartbeat, and topic, what it has heard lately.
const GOSSIP_PEERS: usize = 2;
/// Which share of its peers it tells, where that is more, as it is beyond nine: enough for all of a crowd to hear what an author sends to a
/// third of them (`bombus-core`, `tests/simulated/hearing.rs`).
const GOSSIP_SHARE: f64 = 0.33;
/// How many topics one peer may take part in, and how many changes of that it may tell at once.
const SUBSCRIPTIONS_MAX: usize = 256;
/// How many bytes of subscriptions and control messages one packet of a peer may have: room for that many topics.
const CONTROL_BYTES_MAX: usize = 64 * 1024;

/// Gossipsub, with a bound on what peers may subscribe to.
pub(crate) type Gossip =
    gossipsub::Behaviour<IdentityTransform, MaxCountSubscriptionFilter<AllowAllSubscriptionFilter>>;

/// Everything that a node speaks.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    // Those that refuse connections come first, so that the others never hear of what is refused.
    pub(crate) limits: connection_limits::Behaviour,
    pub(crate) memory: memory_connection_limits::Behaviour,
    pub(crate) removed: allow_block_list::Behaviour<allow_block_list::BlockedPeers>,
    pub(crate) streams: streams::Behaviour,
    pub(crate) identify: identify::Behaviour,
    pub(crate) ping: ping::Behaviour,
    pub(crate) mdns_v4: Toggle<mdns::tokio::Behaviour>,
    pub(crate) mdns_v6: Toggle<mdns::tokio::Behaviour>,
    pub(crate) kademlia: kad::Behaviour<kad::store::MemoryStore>,
    pub(crate) gossip: Gossip,
    pub(crate) relay_server: Toggle<relay_server::Behaviour>,
    pub(crate) relay_client: relay_client::Behaviour,
    pub(crate) hole_punching: dcutr::Behaviour,
    pub(crate) autonat_client: autonat::v2::client::Behaviour,
    pub(crate) autonat_server: autonat::v2::server::Behaviour,
}

/// What became of multicast DNS: why it does not run, if it does not.
#[derive(Debug, Default)]
pub(crate) struct MdnsFailures {
    pub(crate) ipv4: Option<String>,
    pub(crate) ipv6: Option<String>,
}

/// Puts the behaviours together. Needs the tokio runtime.
pub(crate) fn build(
    key: &Keypair,
    version: &str,
    config: &NetConfig,
    protocols: Arc<Protocols>,
    relay_client: relay::client::Behaviour,
    rebuilt: CancellationToken,
) -> Result<(Behaviour, MdnsFailures), NetError> {
    let local = key.public().to_peer_id();
    let timing = &config.timing;
    let mut failures = MdnsFailures::default();
    let mdns = |enable_ipv6: bool, failure: &mut Option<String>| {
        if !config.mdns {
            return Toggle::from(None);
        }
        // `enable_ipv6` means IPv6 only.
        let settings = mdns::Config { query_interval: timing.mdns_interval, enable_ipv6, ..mdns::Config::default() };
        match mdns::tokio::Behaviour::new(settings, local) {
            Ok(behaviour) => Toggle::from(Some(behaviour)),
            Err(error) => {
                *failure = Some(error.to_string());
                Toggle::from(None)
            }
        }
    };
    let mdns_v4 = mdns(false, &mut failures.ipv4);
    let mdns_v6 = mdns(true, &mut failures.ipv6);
    let behaviour = Behaviour {
        limits: connection_limits::Behaviour::new(limits(&config.limits)),
        memory: memory_connection_limits::Behaviour::with_max_bytes(config.limits.memory_bytes),
        removed: allow_block_list::Behaviour::default(),
        streams: streams::Behaviour::new(protocols, rebuilt),
        identify: identify::Behaviour::new(
            identify::Config::new(FAMILY.to_owned(), key.public())
                .with_agent_version(format!("bombus/{version}"))
                .with_push_listen_addr_updates(true)
                // Which addresses are dialled is decided in one place, and that is not identify's cache.
                .with_cache_size(0),
        ),
        ping: ping::Behaviour::new(
            ping::Config::new().with_interval(timing.ping_interval).with_timeout(timing.ping_limit),
        ),
        mdns_v4,
        mdns_v6,
        kademlia: kademlia(key),
        gossip: gossip(key, timing)?,
        relay_server: Toggle::from(
            config.relay.then(|| relay_server::Behaviour::new(relay::Behaviour::new(local, relay_limits()))),
        ),
        relay_client: relay_client::Behaviour::new(relay_client),
        hole_punching: dcutr::Behaviour::new(local),
        autonat_client: autonat::v2::client::Behaviour::new(
            rand::make_rng(),
            autonat::v2::client::Config::default().with_probe_interval(Duration::from_secs(2)),
        ),
        autonat_server: autonat::v2::server::Behaviour::default(),
    };
    Ok((behaviour, failures))
}

fn limits(limits: &NetLimits) -> connection_limits::ConnectionLimits {
    connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(limits.pending_incoming))
        .with_max_pending_outgoing(Some(limits.pending_outgoing))
        .with_max_established_incoming(Some(limits.incoming))
        .with_max_established(Some(limits.connections))
        .with_max_established_per_peer(Some(limits.per_peer))
}

fn kademlia(key: &Keypair) -> kad::Behaviour<kad::store::MemoryStore> {
    let local = key.public().to_peer_id();
    let mut config = kad::Config::new(KADEMLIA);
    config
        .set_query_timeout(Duration::from_secs(10))
        // Lookups are made when peers come, and now and then.
        .set_periodic_bootstrap_interval(None)
        // Only what a peer says of itself gets into the table, and nothing is stored for others.
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None);
    let mut kademlia = kad::Behaviour::with_config(local, kad::store::MemoryStore::new(local), config);
    // On a local network nothing would ever make it a server by itself.
    kademlia.set_mode(Some(kad::Mode::Server));
    kademlia
}

/// Makes gossipsub as nodes speak it.
pub(crate) fn gossip(key: &Keypair, timing: &NetTiming) -> Result<Gossip, NetError> {
    let failed = |why: &dyn std::fmt::Display| NetError::Build(format!("gossipsub: {why}"));
    let config = gossipsub::ConfigBuilder::default()
        .max_transmit_size(MESSAGE_BYTES_MAX)
        .max_control_message_size(CONTROL_BYTES_MAX)
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .message_id_fn(message_id)
        // Nodes are connected with each other as far as they can be: what one publishes goes to all of them at once, and each gets it
        // once. Nodes pass on only to peers that ask for it, as those of other implementations do, and tell some of the others what
        // they have, so that it also gets to where no direct connection leads.
        .flood_publish(true)
        .mesh_n_low(0)
        .mesh_n(0)
        .mesh_outbound_min(0)
        .gossip_lazy(GOSSIP_PEERS)
        .gossip_factor(GOSSIP_SHARE)
        .history_gossip(1)
        .heartbeat_interval(timing.gossip_heartbeat)
        .heartbeat_initial_delay(timing.gossip_heartbeat / 2)
        // 1 MiB each: a peer that reads nothing costs at most so many messages.
        .connection_handler_queue_len(256)
        .build()
        .map_err(|error| failed(&error))?;
    let mut gossip =
        Gossip::new_with_subscription_filter(MessageAuthenticity::Signed(key.clone()), config, subscription_filter())
            .map_err(|error| failed(&error))?;
    gossip.with_peer_score(scores(), PeerScoreThresholds::default()).map_err(|error| failed(&error))?;
    Ok(gossip)
}

/// Bounds what is remembered of one peer's topics.
fn subscription_filter() -> MaxCountSubscriptionFilter<AllowAllSubscriptionFilter> {
    MaxCountSubscriptionFilter {
        filter: AllowAllSubscriptionFilter::default(),
        max_subscribed_topics: SUBSCRIPTIONS_MAX,
        max_subscriptions_per_request: SUBSCRIPTIONS_MAX,
    }
}

/// Names a message as js-libp2p does: the publisher's public key in its protobuf form, then the message's number as 8 bytes, the highest
/// first. (Peers in Go put the two bytes before the key that make it a peer id.)
///
/// Where the names differ, what peers offer each other never matches what they have, and everything is sent again.
/// Source: <https://github.com/libp2p/specs/blob/master/pubsub/README.md#message-identification>, and `msgIdFnStrictSign` of js-libp2p.
pub(crate) fn message_id(message: &Message) -> MessageId {
    // The id of an Ed25519 key is the key itself behind a header of two bytes.
    let mut id = message.source.map(|source| source.to_bytes().split_off(2)).unwrap_or_default();
    id.extend_from_slice(&message.sequence_number.unwrap_or_default().to_be_bytes());
    MessageId::from(id)
}

fn scores() -> PeerScoreParams {
    PeerScoreParams {
        // Twenty nodes on one machine, or behind one router, are as good as twenty elsewhere.
        ip_colocation_factor_weight: 0.0,
        ..PeerScoreParams::default()
    }
}

/// How peers are scored in one topic: for what they pass on first, and against what was rejected. A topic may be silent for long.
pub(crate) fn topic_scores() -> TopicScoreParams {
    TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.01,
        time_in_mesh_quantum: Duration::from_secs(1),
        time_in_mesh_cap: 300.0,
        first_message_deliveries_weight: 0.1,
        first_message_deliveries_decay: 0.9,
        first_message_deliveries_cap: 20.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        // Counts squared: ten rejected messages within some minutes end in the grey list.
        invalid_message_deliveries_weight: -1.0,
        invalid_message_deliveries_decay: gossipsub::score_parameter_decay(Duration::from_secs(600)),
        ..TopicScoreParams::default()
    }
}

/// A relay among members carries connections without an end; how many one peer may begin is limited here, and how fast each may be by
/// [`NetConfig::relay_bytes_per_s`] in the transport.
fn relay_limits() -> relay::Config {
    let limits = relay::Config {
        max_reservations: 128,
        max_reservations_per_peer: 2,
        max_circuits: 256,
        max_circuits_per_peer: 64,
        max_circuit_duration: Duration::from_secs(u32::MAX.into()),
        // No limit.
        max_circuit_bytes: 0,
        reservation_rate_limiters: Vec::new(),
        circuit_src_rate_limiters: Vec::new(),
        ..relay::Config::default()
    };
    limits
        .reservation_rate_per_peer(REQUESTS_PER_PEER, Duration::from_secs(2))
        .circuit_src_per_peer(REQUESTS_PER_PEER, Duration::from_millis(500))
}

/// How many requests at once a relay takes of one peer; then one more for each interval.
const REQUESTS_PER_PEER: NonZeroU32 = NonZeroU32::new(60).expect("it is not zero");

/// How many events wait between a connection and the swarm.
pub(crate) const CONNECTION_EVENTS: NonZeroUsize = NonZeroUsize::new(32).expect("it is not zero");

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a constant of the simulated swarms.
    fn simulated(source: &str, name: &str) -> f64 {
        let value = source.lines().find_map(|line| line.split_once(&format!("const {name}: "))?.1.split_once(" = "));
        let (_, value) = value.unwrap_or_else(|| panic!("{name} is a constant of the simulation"));
        value.trim_end_matches(';').replace('_', "").parse().unwrap()
    }

    #[test]
    fn simulated_swarms_have_the_settings_of_real_ones() {
        let gossip = include_str!("../../bombus-core/tests/simulated/gossip.rs");
        let peer = include_str!("../../bombus-core/tests/simulated/peer.rs");
        let heartbeat_ms = NetTiming::default().gossip_heartbeat.as_millis() as f64;
        let real = [
            (gossip, "HEARTBEAT_MS", heartbeat_ms),
            (gossip, "PEERS_TOLD_MIN", GOSSIP_PEERS as f64),
            (gossip, "SHARE_TOLD", GOSSIP_SHARE),
            (peer, "MESH_MAX", NetConfig::default().mesh_max as f64),
        ];
        for (source, name, value) in real {
            assert!((simulated(source, name) - value).abs() < f64::EPSILON, "{name} is {value} in real swarms");
        }
    }
}
