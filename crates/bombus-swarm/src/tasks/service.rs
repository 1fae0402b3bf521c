//! The service of the tasks: its parts, kept going.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_core::liveness::PeerState;
use bombus_core::tasks::dispatch::Input;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::shared::Shared;
use super::{facts, generations, serve};
use crate::platform::time_with_sleep;
use crate::room::leave_failed;
use crate::store::{StoreLimits, TaskStore, TaskStoreService};
use crate::supervised::{PartEnded, keep_going};

/// The longest time between two looks at the clock while something is due: the timers of the runtime do not count the time that the machine
/// sleeps.
const LOOK_MAX: Duration = Duration::from_millis(500);
/// How often it is looked whether others offer something new.
const CANDIDATES_EVERY: Duration = Duration::from_millis(200);
/// Least time between two looks at the view of the swarm.
const PEERS_EVERY: Duration = Duration::from_millis(20);
/// Pauses between tries to open the store.
const OPEN_PAUSE: Duration = Duration::from_secs(1);
const OPEN_PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long what is being written may take at the end.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// Runs tasks and looks after those of this node; made by [`super::tasks`].
pub struct TasksService {
    pub(super) shared: Arc<Shared>,
}

impl std::fmt::Debug for TasksService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TasksService").finish_non_exhaustive()
    }
}

impl TasksService {
    /// Runs until `stop`, which cuts off what runs: [`super::TasksHandle::drain`] comes first. What was written is safe when this returns. The
    /// databases, the swarm and the mesh have to run until then.
    ///
    /// A part that fails or panics is logged and started anew after a pause of half a second, which doubles up to 30 s; so is the opening of
    /// the store. A store that can no longer be written is opened anew as soon as the disk has room.
    pub async fn run(self, stop: CancellationToken) {
        let shared = &self.shared;
        while let Some((store, service)) = open(shared, &stop).await {
            shared.set_store(Some(store.clone()));
            let (leave, store_stop) = (stop.child_token(), CancellationToken::new());
            let working = async {
                let failing = leave_failed("tasks", shared.db.directory(), || store.failure(), &leave);
                tokio::join!(work(shared, &store, &leave), failing);
                if stop.is_cancelled() {
                    shared.stop.cancel();
                    shared.doing.close();
                    if timeout(LAST_WRITES, shared.doing.wait()).await.is_err() {
                        tracing::warn!("something about tasks took too long to end");
                    }
                }
                store_stop.cancel();
            };
            tokio::join!(working, service.run(store_stop.clone()));
            if stop.is_cancelled() {
                break;
            }
            shared.set_store(None);
            store.let_go().await;
        }
        shared.stop.cancel();
        shared.set_store(None);
    }
}

async fn open(shared: &Shared, stop: &CancellationToken) -> Option<(TaskStore, TaskStoreService)> {
    let mut pause = OPEN_PAUSE;
    loop {
        let opening = TaskStore::open(shared.db.clone(), Arc::clone(&shared.key), StoreLimits::default());
        match stop.run_until_cancelled(opening).await? {
            Ok(opened) => return Some(opened),
            Err(error) => tracing::error!(%error, "the store of tasks cannot be opened"),
        }
        stop.run_until_cancelled(sleep(pause)).await?;
        pause = (pause * 2).min(OPEN_PAUSE_MAX);
    }
}

async fn work(shared: &Arc<Shared>, store: &TaskStore, stop: &CancellationToken) {
    tokio::join!(
        keep_going("tasks", stop.clone(), || async {
            stop.run_until_cancelled(facts::follow(shared, store)).await.unwrap_or(Ok(()))
        }),
        keep_going("peers of tasks", stop.clone(), || follow_peers(shared, stop)),
        keep_going("times of tasks", stop.clone(), || pass_time(shared, stop)),
        keep_going("places for tasks", stop.clone(), || watch_candidates(shared, stop)),
        keep_going("generations of tasks", stop.clone(), || generations::keep(shared, store, stop)),
        keep_going("tasks of peers", stop.clone(), || serve::serve_all(shared, stop)),
        async {
            // The first exchange of entries begins with the service.
            if stop.run_until_cancelled(super::driver::sync(shared)).await.is_some() {
                shared.input(Input::Synced);
            }
        },
    );
}

/// Tells the dispatcher who is alive.
async fn follow_peers(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), PartEnded> {
    let mut changes = shared.swarm.changes();
    changes.mark_changed();
    let mut known: HashMap<NodeId, PeerState> = HashMap::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => changed.map_err(|_| PartEnded::MeshEnded)?,
        }
        let peers = shared.swarm.peers();
        let states: HashMap<NodeId, PeerState> = peers.into_iter().map(|peer| (peer.node_id, peer.state)).collect();
        for (node, state) in &states {
            if known.get(node) != Some(state) {
                shared.input(Input::Peer { node: node.clone(), state: *state });
            }
        }
        for node in known.keys().filter(|node| !states.contains_key(*node)) {
            shared.forget_peer(node);
            shared.input(Input::Peer { node: node.clone(), state: PeerState::Gone });
        }
        known = states;
        sleep(PEERS_EVERY).await;
    }
}

/// Tells the dispatcher when time has passed.
async fn pass_time(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), PartEnded> {
    let mut due = shared.due();
    loop {
        let next = *due.borrow_and_update();
        let wait = async {
            match next {
                Some(next) => sleep(next.saturating_sub(time_with_sleep()).min(LOOK_MAX)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = wait => {
                if next.is_some_and(|next| next <= time_with_sleep()) {
                    shared.input(Input::Tick);
                }
            }
            changed = due.changed() => changed.map_err(|_| PartEnded::MeshEnded)?,
        }
    }
}

/// Tells the dispatcher when somebody offers something new, or has room again.
async fn watch_candidates(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), PartEnded> {
    let mut looks = interval(CANDIDATES_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = None;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            _ = looks.tick() => {
                let now = Some(offers_now(shared));
                if known != now {
                    known = now;
                    shared.input(Input::Candidates);
                }
            }
        }
    }
}

/// Returns a number that is another one when the places for tasks have changed.
fn offers_now(shared: &Shared) -> u64 {
    let mut hasher = DefaultHasher::new();
    for state in shared.backends.states() {
        (&state.name, state.ready, state.models, state.max_concurrent).hash(&mut hasher);
        if let Some(peer) = state.peer {
            let load = peer.running.saturating_add(peer.waiting);
            (peer.reachable, peer.paused, peer.draining, peer.slots, load).hash(&mut hasher);
        }
    }
    for listed in shared.backends.known() {
        listed.info.name.as_str().hash(&mut hasher);
    }
    hasher.finish()
}
