use serde::Serialize;
use tokio::sync::watch;

/// What this node does for others now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ShareState {
    /// Whether its owner keeps it for himself.
    pub paused: bool,
    /// Whether it takes nothing new since it is about to go.
    pub draining: bool,
    /// Requests of peers that it answers.
    pub running: u32,
    /// Requests of peers that wait for a slot.
    pub waiting: u32,
}

/// Holds the state and tells of its changes.
#[derive(Debug, Default)]
pub(super) struct Standing(watch::Sender<ShareState>);

impl Standing {
    pub(super) fn now(&self) -> ShareState {
        *self.0.borrow()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<ShareState> {
        self.0.subscribe()
    }

    pub(super) fn set_paused(&self, paused: bool) {
        self.change(|state| state.paused = paused);
    }

    pub(super) fn set_draining(&self, draining: bool) {
        self.change(|state| state.draining = draining);
    }

    pub(super) fn set_load(&self, running: u32, waiting: u32) {
        self.change(|state| (state.running, state.waiting) = (running, waiting));
    }

    fn change(&self, change: impl FnOnce(&mut ShareState)) {
        self.0.send_if_modified(|state| {
            let before = *state;
            change(state);
            *state != before
        });
    }
}
