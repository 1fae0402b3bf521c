//! Has tasks end.

use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_core::tasks::dispatch::Input;
use bombus_core::tasks::report::TaskReport;
use bombus_core::tasks::{TaskId, TaskView};
use futures::future::join_all;
use tokio::time::timeout;

use super::error::TasksError;
use super::shared::Shared;
use super::wire::{Ask, Said};
use super::{ask, facts};
use crate::store::{StoreError, TaskStore};

/// How long a requester may take to answer before its task is cancelled without it: its worker is to stop within a second.
const FORWARD_LIMIT: Duration = Duration::from_millis(500);
/// How long is waited until the end shows here.
const SHOWN_LIMIT: Duration = Duration::from_secs(3);

/// Has a task end, or all parts of a parent, and tells how it stands then.
pub(super) async fn cancel(shared: &Arc<Shared>, id: &TaskId) -> Result<TaskReport, TasksError> {
    let store = shared.store().await?;
    let views = match shared.view(id).await? {
        Some(view) => vec![view],
        None => shared.parts(id).await?,
    };
    if views.is_empty() {
        return Err(TasksError::UnknownTask(id.clone()));
    }
    let open = views.iter().filter(|view| !view.is_over());
    let ended = join_all(open.map(|view| one(shared, &store, view))).await;
    ended.into_iter().collect::<Result<(), TasksError>>()?;
    shared.report(id).await
}

async fn one(shared: &Arc<Shared>, store: &TaskStore, view: &TaskView) -> Result<(), TasksError> {
    let task = &view.task.id;
    let requester = view.requester.peer.as_ref().filter(|_| view.requester.proven);
    let confirmed = match requester {
        Some(requester) if *requester == shared.me => of_own(shared, task).await,
        Some(requester) => of_peer(shared, task, requester).await,
        None => false,
    };
    if confirmed {
        // Where it takes longer, it is shown as it stands.
        drop(timeout(SHOWN_LIMIT, over(store, task)).await);
        return Ok(());
    }
    // Its worker may be where the entry comes late.
    let worker = view.grant.as_ref().and_then(|grant| grant.worker.node()).filter(|worker| **worker != shared.me);
    let tell_worker = async {
        if let Some(worker) = worker.filter(|worker| Some(*worker) != requester) {
            of_peer(shared, task, worker).await;
        }
    };
    let (wished, ()) = tokio::join!(wish(store, task), tell_worker);
    wished
}

/// Says that a task of another node is to end, where it has not.
async fn wish(store: &TaskStore, task: &TaskId) -> Result<(), TasksError> {
    match store.cancel(task).await {
        Ok(_) | Err(StoreError::Over { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Ends a task that this node was asked to end: one of its own, or one that it works on. Says whether it is one of these.
pub(super) async fn asked(shared: &Arc<Shared>, task: &TaskId) -> bool {
    if of_own(shared, task).await {
        return true;
    }
    let (Some(store), Ok(Some(view))) = (shared.store_now(), shared.view(task).await) else { return false };
    let is_held = view.grant.as_ref().is_some_and(|grant| view.is_held_by(&shared.me, &grant.hash));
    // Once it is wished for, it stops.
    is_held && wish(&store, task).await.is_ok()
}

/// Ends a task of this node; says whether there is one.
async fn of_own(shared: &Arc<Shared>, task: &TaskId) -> bool {
    let Ok(Some(view)) = shared.view(task).await else { return false };
    let is_own = view.requester.proven && view.requester.peer.as_ref() == Some(&shared.me);
    if is_own && !view.is_over() {
        // It may be so new that the dispatcher has not heard of it.
        facts::tell(shared, task).await;
        shared.input(Input::Cancel { task: task.clone() });
    }
    is_own
}

async fn of_peer(shared: &Shared, task: &TaskId, requester: &NodeId) -> bool {
    let ask = Ask::Cancel { task: task.clone() };
    matches!(ask::one(shared, requester, &ask, FORWARD_LIMIT).await, Ok(Said::Done))
}

async fn over(store: &TaskStore, task: &TaskId) {
    let mut updates = store.updates();
    while store.summary(task).is_some_and(|summary| !summary.over) {
        if updates.next().await.is_none() {
            return;
        }
    }
}
