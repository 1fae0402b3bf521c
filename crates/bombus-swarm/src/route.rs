//! Answers between nodes: requests that go to a peer, and those of peers that this node answers.
//!
//! To the node's registry a peer is one backend among others ([`bombus_infer::NamedBackend::of_peer`]); here is what stands behind it.
//!
//! ```text
//! route/config.rs   settings: what this node does for others, and how long things may take
//!       state.rs    how it stands: paused, draining, what runs;  slots.rs: places for requests of peers, and a queue that is fair to each
//!       share.rs    who may use what (pure)
//!       wire.rs     frames and messages of both protocols;  failure.rs: errors on the wire
//!       peers.rs    the peers that have told what they offer, kept in step with the registry and the view
//!       peer.rs     a peer as a backend;  conversation.rs: one request to it;  answer.rs: the events that come back
//!       told.rs     what this node has and how busy it is;  tell.rs: tells it each peer;  hear.rs: what peers tell
//!       details.rs  what else there is to know about models, told to whoever asks
//!       worker.rs   answers requests of peers;  client.rs: the stream to one of them
//! ```
//!
//! `/bombus/offers/1`: whoever opens the stream tells what it offers the peer, whenever that changes. `/bombus/run/1`: a stream for each
//! request; who opens it asks, and resetting it cancels.

mod answer;
mod client;
mod config;
mod conversation;
mod details;
mod failure;
mod hear;
mod peer;
mod peers;
mod share;
mod slots;
mod state;
mod tell;
mod told;
mod wire;
mod worker;

use std::fmt;
use std::sync::Arc;

use bombus_core::identity::NodeId;
use bombus_core::model::ModelName;
use bombus_infer::{Backends, Listed};
use bombus_net::NetHandle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::config::{Manage, RunConfig, ShareConfig};
use self::peers::Peers;
use self::slots::Slots;
pub use self::state::ShareState;
use self::state::Standing;
use self::wire::Reason;
pub use self::wire::{FRAME_BYTES_MAX, REQUEST_BYTES_MAX};
pub(crate) use self::wire::{Messages, fuzzing, push};
pub(crate) use self::worker::need_of;
use crate::SwarmHandle;
use crate::supervised::keep_going;

/// The protocol by which nodes tell each other what they offer.
pub const OFFERS_PROTOCOL: &str = "/bombus/offers/1";
/// The protocol by which requests travel.
pub const RUN_PROTOCOL: &str = "/bombus/run/1";

/// What the parts and all handles share.
struct Shared {
    net: NetHandle,
    swarm: SwarmHandle,
    backends: Backends,
    config: RunConfig,
    standing: Arc<Standing>,
    slots: Slots,
    peers: Peers,
}

/// A cheap handle to what this node does for others.
#[derive(Clone)]
pub struct RouteHandle {
    shared: Arc<Shared>,
}

/// Answers requests of peers and keeps the registry's peers; made by [`route`].
pub struct RouteService {
    shared: Arc<Shared>,
}

/// Makes the two halves: the service, which runs as one task beside the swarm's, and the handle for everybody else.
///
/// From when the service runs, `backends` has the peers that offer anything among its own.
#[must_use]
pub fn route(config: RunConfig, net: NetHandle, swarm: SwarmHandle, backends: Backends) -> (RouteHandle, RouteService) {
    let standing = Arc::new(Standing::default());
    let slots = Slots::new(config.slots(), config.queue(), Arc::clone(&standing));
    let peers = Peers::new(net.clone(), swarm.clone(), backends.clone(), config.clone());
    let shared = Arc::new(Shared { net, swarm, backends, config, standing, slots, peers });
    (RouteHandle { shared: Arc::clone(&shared) }, RouteService { shared })
}

impl RouteService {
    /// Runs until `stop`; requests that still run for peers then are cut off, so [`RouteHandle::drain`] comes first. The mesh and the swarm
    /// have to run until this has returned.
    ///
    /// A part that fails or panics is logged and started anew after a pause of half a second, which doubles up to 30 s.
    pub async fn run(self, stop: CancellationToken) {
        let (shared, stop) = (&self.shared, &stop);
        tokio::join!(
            keep_going("requests of peers", stop.clone(), || worker::work_all(shared, stop)),
            keep_going("offers of peers", stop.clone(), || hear::hear_all(shared, stop)),
            keep_going("peers that answer", stop.clone(), || peers::follow_all(&shared.peers, stop)),
            keep_going("offers to peers", stop.clone(), || tell::tell_all(shared, stop)),
        );
        shared.peers.end();
    }
}

impl RouteHandle {
    /// Takes no further requests of peers until [`RouteHandle::resume`]; those that run go on. Own requests are answered as ever.
    pub fn pause(&self) {
        self.shared.standing.set_paused(true);
    }

    /// Ends a pause.
    pub fn resume(&self) {
        self.shared.standing.set_paused(false);
    }

    /// Takes no further requests of peers and tells them that this node is about to go; those that run go on.
    pub fn drain(&self) {
        self.shared.standing.set_draining(true);
    }

    /// Ends a drain.
    pub fn undrain(&self) {
        self.shared.standing.set_draining(false);
    }

    /// Returns how it stands, and what becomes of it.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ShareState> {
        self.shared.standing.subscribe()
    }

    /// Returns what the configuration lets peers do.
    #[must_use]
    pub fn share(&self) -> &ShareConfig {
        &self.shared.config.share
    }

    /// Returns how many requests of peers are answered at a time.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.shared.config.slots()
    }

    /// Says why a peer may not have anything done here now, or not with a model, if so. `None` stands for whoever is no peer.
    pub(crate) fn refusal(&self, peer: Option<&NodeId>, model: Option<&ModelName>) -> Option<&'static str> {
        let (share, shared) = (self.share(), &self.shared);
        let refused = match peer {
            Some(peer) => {
                let name = match share.peers.is_empty() {
                    true => String::new(),
                    false => shared.swarm.peer(peer).map(|peer| peer.name).unwrap_or_default(),
                };
                share::refusal(share, shared.standing.now(), peer, &name)
            }
            None if !share.peers.is_empty() => Some(Reason::NotAllowed),
            None => share::refusal_of_all(share, shared.standing.now()),
        };
        let is_shared =
            |model: &ModelName| share.models.is_empty() || share::shares_name(share, model, &shared.backends.known());
        refused.or_else(|| model.filter(|model| !is_shared(model)).map(|_| Reason::NotShared)).map(Reason::words)
    }

    /// Names the models that peers may use, by the names that they are offered by or have at their backends; `None`: all.
    pub(crate) fn shared_models(&self) -> Option<Vec<ModelName>> {
        share::models(self.share())
    }

    /// Says whether every member may use a model of this node, so that all may be told of it.
    #[must_use]
    pub fn is_for_all(&self, listed: &Listed) -> bool {
        let share = self.share();
        share.serve && share.peers.is_empty() && share::shares(share, listed)
    }

    /// Waits until no request of a peer runs or waits any more.
    pub async fn idle(&self) {
        // The sender lives as long as this handle.
        let _ = self.state().wait_for(|state| state.running == 0 && state.waiting == 0).await;
    }
}

impl fmt::Debug for RouteHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteHandle")
            .field("state", &*self.shared.standing.subscribe().borrow())
            .finish_non_exhaustive()
    }
}
