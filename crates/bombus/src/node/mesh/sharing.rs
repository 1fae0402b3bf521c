use async_trait::async_trait;
use bombus_http::mesh::{Managers, MeshError, Sharing, SharingState};
use bombus_swarm::OwnFacts;
use bombus_swarm::route::{Manage, RouteHandle};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::data_dir::Pause;

/// What the owner of the machine decides with while the node runs.
#[derive(Clone)]
pub(super) struct OwnersSwitch {
    route: RouteHandle,
    pause: Pause,
    facts: watch::Sender<OwnFacts>,
}

impl OwnersSwitch {
    /// Goes on with a pause that an earlier run of the node was told.
    pub(super) fn new(route: RouteHandle, pause: Pause, facts: watch::Sender<OwnFacts>) -> Self {
        if pause.is_set() {
            tracing::info!("nothing is done for other nodes: the node was paused; bombus resume ends that");
            route.pause();
        }
        Self { route, pause, facts }
    }

    /// Tells the others that this node is about to go, or that it stays.
    pub(super) fn set_draining(&self, draining: bool) {
        if draining {
            self.route.drain();
        } else {
            self.route.undrain();
        }
        self.facts.send_if_modified(|facts| std::mem::replace(&mut facts.draining, draining) != draining);
    }

    async fn set_paused(&self, paused: bool) -> Result<SharingState, MeshError> {
        if paused {
            self.route.pause();
        } else {
            self.route.resume();
        }
        let pause = self.pause.clone();
        let written = spawn_blocking(move || pause.set(paused)).await;
        let failed = match written {
            Ok(Ok(())) => return Ok(self.state()),
            Ok(Err(error)) => format!("{:#}", anyhow::Error::from(error)),
            Err(error) => error.to_string(),
        };
        Err(MeshError::Failed(format!("it holds until the node stops, but cannot be written down: {failed}")))
    }
}

#[async_trait]
impl Sharing for OwnersSwitch {
    fn state(&self) -> SharingState {
        let state = *self.route.state().borrow();
        let share = self.route.share().clone();
        SharingState {
            paused: state.paused,
            draining: state.draining,
            running: state.running,
            waiting: state.waiting,
            serve: share.serve,
            models: share.models,
            max_slots: share.max_slots,
            peers: share.peers,
            manage: match share.manage {
                Manage::Everybody(allowed) => Managers::Everybody(allowed),
                Manage::These(these) => Managers::These(these),
            },
        }
    }

    async fn pause(&self) -> Result<SharingState, MeshError> {
        self.set_paused(true).await
    }

    async fn resume(&self) -> Result<SharingState, MeshError> {
        self.set_paused(false).await
    }

    async fn drain(&self) -> Result<SharingState, MeshError> {
        self.set_draining(true);
        Ok(self.state())
    }

    async fn undrain(&self) -> Result<SharingState, MeshError> {
        self.set_draining(false);
        Ok(self.state())
    }
}
