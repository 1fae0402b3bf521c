//! The service: it runs a node, and builds its swarm anew when the swarm's key changes.

use std::collections::HashMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::FutureExt;
use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::{NetConfig, NetIdentity};
use crate::conflict::Conflicts;
use crate::dialer::{Dialer, Settings};
use crate::events::{EVENTS_MAX, NetEvent};
use crate::failure::{DialFailure, NetError};
use crate::handle::NetHandle;
use crate::membership::{MembershipHandle, Privacy};
use crate::node::{Counts, Ended, Memory, Node};
use crate::report::NetReport;
use crate::shared::{COMMANDS_MAX, Command, Shared};
use crate::stream::Protocols;
use crate::{address, id, ports};

/// Before a swarm that could not be built anew is tried again.
const REBUILD_PAUSE: Duration = Duration::from_secs(2);

/// Makes the mesh: a handle for everybody, and the service that has to run for it.
///
/// Requests that come before [`NetService::run`] wait for it.
#[must_use]
pub fn net(config: NetConfig, identity: NetIdentity, membership: MembershipHandle) -> (NetHandle, NetService) {
    let (commands, requests) = mpsc::channel(COMMANDS_MAX);
    let shared = Arc::new(Shared {
        node_id: identity.key.node_id(),
        timing: config.timing.clone(),
        membership,
        commands,
        events: broadcast::channel(EVENTS_MAX).0,
        listen: watch::channel(Vec::new()).0,
        topics: Mutex::new(HashMap::new()),
        topic_peers: Mutex::default(),
        protocols: Arc::new(Protocols::default()),
        expected: Mutex::default(),
        wishes: Notify::new(),
        control: Mutex::new(None),
        peers: Mutex::default(),
        report: Mutex::new(Arc::new(NetReport::default())),
        published_to_nobody: AtomicU64::new(0),
        stopped: CancellationToken::new(),
    });
    (NetHandle { shared: Arc::clone(&shared) }, NetService { config: Arc::new(config), identity, shared, requests })
}

/// Owns the libp2p swarm and runs as one task.
pub struct NetService {
    config: Arc<NetConfig>,
    identity: NetIdentity,
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Command>,
}

impl fmt::Debug for NetService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetService").field("config", &self.config).finish_non_exhaustive()
    }
}

impl NetService {
    /// Runs the mesh until it is told to stop; then connections are closed.
    ///
    /// # Errors
    ///
    /// At the start, when a setting is no address or a chosen port is taken. Later failures are told as events and tried again.
    pub async fn run(self, stop: CancellationToken) -> Result<(), NetError> {
        let shared = Arc::clone(&self.shared);
        // However this ends, nobody waits for it any longer.
        let _end = EndOnDrop(shared);
        self.run_swarms(stop).await
    }

    async fn run_swarms(mut self, stop: CancellationToken) -> Result<(), NetError> {
        let key = keypair(&self.identity)?;
        let mut memory = self.remember()?;
        let mut is_first = true;
        loop {
            let state = self.shared.membership.state();
            warn_if_open(&state.privacy);
            let generation = state.generation.0;
            let (shared, config) = (Arc::clone(&self.shared), Arc::clone(&self.config));
            let mut node = match Node::start(shared, config, &key, &self.identity.version, state, memory) {
                Ok(node) => node,
                Err((error, _)) if is_first => return Err(error),
                Err((error, kept)) => {
                    tracing::error!(%error, "the swarm could not be built anew; that is tried again");
                    memory = *kept;
                    match stop.run_until_cancelled(tokio::time::sleep(REBUILD_PAUSE)).await {
                        Some(()) => continue,
                        None => return Ok(()),
                    }
                }
            };
            if !is_first {
                // Without readers nobody hears it.
                let _ = self.shared.events.send(NetEvent::Rebuilt { generation });
            }
            is_first = false;
            // libp2p ends with a panic where it meets what it holds for impossible, and peers bring that about.
            let ended = AssertUnwindSafe(node.run(&mut self.requests, &stop)).catch_unwind().await;
            memory = node.end(matches!(ended, Ok(Ended::Stopped))).await;
            match ended {
                Ok(Ended::Stopped) => return Ok(()),
                Ok(Ended::Rebuild) => tracing::info!("the swarm's key changed; connections are made anew"),
                Err(_) => {
                    tracing::error!("libp2p failed with a panic; all connections are made anew");
                    if stop.run_until_cancelled(tokio::time::sleep(REBUILD_PAUSE)).await.is_none() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Reads the configuration into what outlives a swarm.
    fn remember(&self) -> Result<Memory, NetError> {
        let target = |text: &String| {
            address::parse_target(text).map_err(|failure| NetError::InvalidAddress {
                text: text.clone(),
                why: match failure {
                    DialFailure::InvalidAddress { why } => why,
                    other => other.to_string(),
                },
            })
        };
        let mut seeds = Vec::new();
        for text in &self.config.seeds {
            let target = target(text)?;
            seeds.push((target.addr, target.peer.as_ref().and_then(id::node_id)));
        }
        let external = self.config.external.iter().map(|text| Ok(target(text)?.addr));
        let external = external.collect::<Result<Vec<Multiaddr>, NetError>>()?;
        let timing = &self.config.timing;
        let settings = Settings {
            mesh_max: self.config.mesh_max,
            redial_min: timing.redial_min,
            redial_max: timing.redial_max,
            foreign_key_pause: timing.foreign_key_pause,
            peer_expiry: timing.peer_expiry,
            redundant_grace: timing.redundant_grace,
            idle_limit: timing.idle_limit,
        };
        let me = self.shared.node_id.clone();
        // A node's own address among the seeds is no mistake: all nodes may have the same list.
        seeds.retain(|(_, peer)| peer.as_ref() != Some(&me));
        Ok(Memory {
            dialer: Dialer::new(Instant::now(), me, settings, seeds, rand::random()),
            conflicts: Conflicts::default(),
            counts: Counts::default(),
            listen: ports::resolve(&self.config.listen)?,
            has_listened: false,
            external,
        })
    }
}

fn keypair(identity: &NetIdentity) -> Result<Keypair, NetError> {
    Keypair::ed25519_from_bytes(identity.key.secret()).map_err(|error| NetError::Build(error.to_string()))
}

fn warn_if_open(privacy: &Privacy) {
    if *privacy == Privacy::Open {
        tracing::warn!("this swarm has no key: everybody who reaches the port for peers can take part in it");
    }
}

struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}
