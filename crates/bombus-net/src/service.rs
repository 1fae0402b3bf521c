//! The service: it owns the libp2p swarm, and builds it anew when the swarm's key changes.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::{NetConfig, NetIdentity};
use crate::events::EVENTS_MAX;
use crate::failure::NetError;
use crate::handle::NetHandle;
use crate::membership::MembershipHandle;
use crate::report::NetReport;
use crate::shared::{COMMANDS_MAX, Command, Shared};

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
        protocols: Mutex::new(HashMap::new()),
        wishes: Notify::new(),
        peers: Mutex::new(Arc::new(Vec::new())),
        report: Mutex::new(NetReport::default()),
        published_to_nobody: AtomicU64::new(0),
        stopped: CancellationToken::new(),
    });
    (NetHandle { shared: shared.clone() }, NetService { config, identity, shared, requests })
}

/// Owns the libp2p swarm and runs as one task.
pub struct NetService {
    config: NetConfig,
    identity: NetIdentity,
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Command>,
}

impl NetService {
    /// Runs the mesh until it is told to stop; then connections are closed.
    ///
    /// # Errors
    ///
    /// At the start, when a setting is no address or a chosen port is taken. Later failures are told as events and tried again.
    pub async fn run(self, stop: CancellationToken) -> Result<(), NetError> {
        let Self { config, identity, shared, mut requests } = self;
        tracing::debug!(node.name = identity.name, listen = ?config.listen, "the mesh starts");
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                request = requests.recv() => if request.is_none() { break },
            }
        }
        shared.stopped.cancel();
        Ok(())
    }
}
