//! What the dispatcher is told of tasks, as the store's view of them changes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bombus_core::tasks::dispatch::{Input, Needs, TaskFacts};
use bombus_core::tasks::{TaskDocument, TaskId, TaskView};

use super::shared::Shared;
use super::tell::Teller;
use crate::store::{TaskStore, TaskUpdate};
use crate::supervised::PartEnded;

/// Tells the dispatcher of all tasks that are not over, and then of each change.
pub(super) async fn follow(shared: &Arc<Shared>, store: &TaskStore) -> Result<(), PartEnded> {
    let mut updates = store.updates();
    let mut following = Following { shared: Arc::clone(shared), store: store.clone(), dependents: HashMap::new() };
    let mut teller = Teller::new(shared, store.now_ms());
    for view in store.unfinished() {
        teller.knows(&view);
        following.changed(&view);
    }
    shared.input(Input::Loaded);
    loop {
        match updates.next().await.ok_or(PartEnded::MeshEnded)? {
            TaskUpdate::Changed(view) => {
                teller.changed(&view);
                following.changed(&view);
            }
            // Those that ended meanwhile are told when the dispatcher does something about them.
            TaskUpdate::Lagged(missed) => {
                tracing::debug!(missed, "changes of tasks were missed; all that are not over are looked at");
                for view in store.unfinished() {
                    following.changed(&view);
                }
            }
        }
    }
}

struct Following {
    shared: Arc<Shared>,
    store: TaskStore,
    /// Who waits for the end of a task.
    dependents: HashMap<TaskId, HashSet<TaskId>>,
}

impl Following {
    fn changed(&mut self, view: &TaskView) {
        let id = &view.task.id;
        if view.is_over() {
            self.shared.live.end(id);
            self.shared.documents().remove(id);
            self.shared.fresh().remove(id);
        } else {
            for dependency in view.task.depends_on() {
                self.dependents.entry(dependency.clone()).or_default().insert(id.clone());
            }
        }
        tell_of(&self.shared, &self.store, view);
        if view.is_over() {
            for dependent in self.dependents.remove(id).unwrap_or_default() {
                if let Some(view) = self.store.unfinished_view(&dependent) {
                    tell_of(&self.shared, &self.store, &view);
                }
            }
        }
    }
}

/// Tells the dispatcher how a task stands now.
pub(super) async fn tell(shared: &Arc<Shared>, task: &TaskId) {
    let Some(store) = shared.store_now() else { return };
    let view = match store.unfinished_view(task) {
        Some(view) => Some(view),
        None => store.view(task).await.ok().flatten(),
    };
    if let Some(view) = view {
        tell_of(shared, &store, &view);
    }
}

fn tell_of(shared: &Arc<Shared>, store: &TaskStore, view: &TaskView) {
    let needs = if view.is_over() { Needs::Ready } else { needs(store, &view.task) };
    let fresh = shared.fresh().contains(&view.task.id);
    let facts = TaskFacts::of(view, class(&view.task), needs, fresh);
    shared.input(Input::Task(Box::new(facts)));
}

/// Looks whether what a task depends on is there. Where that cannot be seen it waits, since the next change is looked at again.
pub(super) fn needs(store: &TaskStore, task: &TaskDocument) -> Needs {
    Needs::of(task, |id| store.summary(id).filter(|summary| summary.over).map(|summary| summary.status))
}

/// Returns what a place must have to run a task, as one text.
pub(super) fn class(task: &TaskDocument) -> String {
    let to = task.to.as_ref().map(ToString::to_string).unwrap_or_default();
    let readers: Vec<String> = task.sealed_to().into_iter().flatten().map(|node| node.to_string()).collect();
    format!("{}\n{}\n{to}\n{}", task.kind(), task.model, readers.join(" "))
}
