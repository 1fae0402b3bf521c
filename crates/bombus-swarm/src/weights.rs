//! Models between nodes: `/bombus/weights/1` hands weights from node to node, `/bombus/manage/1` has other nodes fetch and remove models.
//!
//! ```text
//! weights/access.rs   who may have what: the owner of a machine decides
//!         serve.rs    sends this machine's weights to others, a few at a time
//!         fetch.rs    asks others for models, and reads their weights (the PeerSource of pulls)
//!         manage.rs   does what other nodes ask with this node's models;  remote.rs: asks them
//!         wire.rs     the messages
//! ```

mod access;
mod fetch;
pub(crate) mod fuzzing;
mod manage;
mod remote;
mod serve;
mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bombus_infer::Backends;
use bombus_infer::models::{ModelStore, PeerSource};
use bombus_net::NetHandle;
use tokio_util::sync::CancellationToken;

use crate::SwarmHandle;
use crate::places::Places;
use crate::supervised::keep_going;

use self::fetch::Others;

pub use access::{Access, ByShare};
pub use remote::{ManageError, RemoteSteps};

/// The protocol by which weights travel: a request (CBOR behind a length of four bytes) and its answer, to a stream; behind an answer that
/// announces bytes those follow as they are.
pub const WEIGHTS_PROTOCOL: &str = "/bombus/weights/1";
/// The protocol by which nodes ask others to fetch and remove models.
pub const MANAGE_PROTOCOL: &str = "/bombus/manage/1";

/// Settings of the exchange of models. The defaults suit nodes; tests shorten them.
#[derive(Debug, Clone)]
pub struct WeightsConfig {
    /// Most transfers to others at a time; who asks beyond is told to come back.
    pub transfers_max: usize,
    /// How many of them may be one peer's.
    pub transfers_per_peer_max: usize,
    /// Most works on this node's models that others began, at a time; a peer may have one.
    pub works_max: usize,
    /// How long a request and the first word of its answer may take.
    pub answer_limit: Duration,
    /// How long a peer may take for the next 256 KiB before its transfer is ended.
    pub write_limit: Duration,
    /// How long all peers together may take to say what they have.
    pub find_limit: Duration,
    /// How often a peer that works on its models says that it is still at it; it is given up after six times as long.
    pub alive_every: Duration,
}

impl Default for WeightsConfig {
    fn default() -> Self {
        Self {
            transfers_max: 4,
            transfers_per_peer_max: 2,
            works_max: 2,
            answer_limit: Duration::from_secs(10),
            write_limit: Duration::from_secs(30),
            find_limit: Duration::from_secs(4),
            alive_every: Duration::from_secs(5),
        }
    }
}

/// What the service and all handles share.
struct Shared {
    config: WeightsConfig,
    net: NetHandle,
    swarm: SwarmHandle,
    store: ModelStore,
    backends: Backends,
    access: Arc<dyn Access>,
    /// What is being sent to others.
    transfers: Arc<Places>,
}

/// Gets models from other nodes, as the [`PeerSource`] of pulls, and manages theirs.
#[derive(Clone)]
pub struct WeightsHandle {
    shared: Arc<Shared>,
}

impl fmt::Debug for WeightsHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeightsHandle").finish_non_exhaustive()
    }
}

/// Serves this node's weights, and does what other nodes may ask with its models; made by [`weights`].
pub struct WeightsService {
    shared: Arc<Shared>,
}

/// Makes the two halves of the exchange of models: the service, which runs as one task beside the mesh, and the handle for pulls and
/// commands.
///
/// `store` has the weights that are handed out, those of an Ollama on this machine included where it was opened with its directories.
/// `backends` are the ones whose models others may manage: of them those that run on this node.
#[must_use]
pub fn weights(
    config: WeightsConfig,
    net: NetHandle,
    swarm: SwarmHandle,
    store: ModelStore,
    backends: Backends,
    access: Arc<dyn Access>,
) -> (WeightsHandle, WeightsService) {
    let transfers = Places::new(config.transfers_max, config.transfers_per_peer_max);
    let shared = Arc::new(Shared { config, net, swarm, store, backends, access, transfers });
    (WeightsHandle { shared: Arc::clone(&shared) }, WeightsService { shared })
}

impl WeightsService {
    /// Runs until `stop`; transfers and works that run then end. A part that fails or panics is logged and started anew, after a pause of
    /// half a second that doubles up to 30 s.
    pub async fn run(self, stop: CancellationToken) {
        let (shared, stop) = (&self.shared, &stop);
        tokio::join!(
            keep_going("weights", stop.clone(), || serve::serve_all(shared, stop)),
            keep_going("models managed by others", stop.clone(), || manage::serve_all(shared, stop)),
        );
    }
}

impl WeightsHandle {
    /// Has the libraries of all backends take models from other nodes before they go to the internet.
    pub fn feed(&self, backends: &Backends) {
        for named in backends.all().iter() {
            if let Some(library) = named.backend.library() {
                library.use_peers(self.source());
            }
        }
    }

    /// Waits until nothing is being sent to others any more. What has no end is kept from beginning by [`Access`]: a whole model is asked
    /// for in ranges of at most 64 MiB, of which those that have begun are waited for.
    pub async fn idle(&self) {
        self.shared.transfers.none_taken().await;
    }

    /// Returns the other nodes as pulls need them.
    #[must_use]
    pub fn source(&self) -> Arc<dyn PeerSource> {
        let Shared { config, net, swarm, .. } = self.shared.as_ref();
        Arc::new(Others { config: config.clone(), net: net.clone(), swarm: swarm.clone() })
    }
}
