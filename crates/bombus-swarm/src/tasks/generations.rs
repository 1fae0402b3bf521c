//! The generations of the databases: those of peers are followed, and what is old goes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::error::TasksError;
use super::shared::Shared;
use crate::db::DbError;
use crate::store::{Pruned, Retention, StoreError, TaskStore};
use crate::supervised::PartEnded;

/// Time between two looks at what peers say that they have.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Least time between two looks.
const LOOK_LEAST: Duration = Duration::from_millis(20);
/// After so long it is looked at anew though they say nothing else.
const AGAIN_AFTER: Duration = Duration::from_secs(3);
/// The first look for what can go: by then, what peers have has come for the most part.
const FIRST_AFTER: Duration = Duration::from_secs(60);
/// Time between two looks for what can go.
const TEND_EVERY: Duration = Duration::from_secs(3_600);

/// Opens what peers have, tells them what is here, and lets go what is old, until `stop`.
pub(super) async fn keep(shared: &Arc<Shared>, store: &TaskStore, stop: &CancellationToken) -> Result<(), PartEnded> {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut known, mut again) = (None, Instant::now());
    let mut tend = Instant::now() + FIRST_AFTER;
    let mut changes = shared.swarm.changes();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            _ = looks.tick() => {}
            // Who has just come may have one that is new here, and offer tasks in it.
            changed = changes.changed() => changed.map_err(|_| PartEnded::MeshEnded)?,
        }
        stop.run_until_cancelled(sleep(LOOK_LEAST)).await;
        let now = Instant::now();
        let told = shared.swarm.task_generations();
        let state = Some((told.clone(), store.open_generations(), store.turn(&told)));
        if known != state || now >= again {
            again = now + AGAIN_AFTER;
            match store.heard(told.clone()).await {
                Ok(()) => {
                    let new = store.turn(&told);
                    known = Some((told, store.open_generations(), new));
                }
                Err(error) => {
                    // It is tried again in some seconds, unless they say something else before.
                    known = state;
                    tracing::warn!(%error, "a generation of tasks that a peer has is not opened yet");
                }
            }
            shared.swarm.tell_task_generations(store.generations());
        }
        if now >= tend {
            tend = now + TEND_EVERY;
            if let Err(error) = store.tend(shared.config.retention()).await {
                tracing::warn!(%error, "what is old of tasks is not let go yet");
            }
        }
    }
}

/// Does what the hourly look does, at once.
pub(super) async fn prune(shared: &Shared, retention: Retention, in_mind: bool) -> Result<Pruned, TasksError> {
    let store = shared.store().await?;
    if in_mind {
        return Ok(store.prune_in_mind(retention).await?);
    }
    // Who asks may go away, and then it goes on all the same: it is not left half done.
    let pruned = shared.doing.spawn(async move { store.prune(retention).await }).await;
    Ok(pruned.map_err(|error| StoreError::from(DbError::Failed(error.to_string())))??)
}
