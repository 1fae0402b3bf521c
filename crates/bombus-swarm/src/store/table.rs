//! The sets of entries about each task, and what they come to.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bombus_core::tasks::{
    Epoch, ProofMemo, ResultDocument, TaskDocument, TaskId, TaskStatus, TaskView, Written, resolve,
};
use tokio::sync::{Notify, broadcast};

use super::catalogue::{Catalogue, TaskSummary};
use super::contents::{Wanted, wanted_of_result, wanted_of_task};
use super::documents::{Histories, Misshapen, light, word_of};
use super::retention::Facts;

/// How many large texts may wait to be fetched; further ones are fetched when somebody reads them.
const WANTED_MAX: usize = 4_096;

/// What is known of all tasks. The writers of the databases change it, each entry at once; no lock of it is held while a database is read.
pub(super) struct Table {
    pub(super) proofs: ProofMemo,
    state: Mutex<State>,
    updates: broadcast::Sender<Arc<TaskView>>,
    /// Told when there is something for the service to do.
    pub(super) news: Notify,
    finished_views: usize,
}

#[derive(Default)]
struct State {
    /// The generations that are shown. What comes of others is of no account.
    open: BTreeSet<u64>,
    tasks: HashMap<TaskId, Held>,
    catalogue: Catalogue,
    /// Entries that do not count, by reason, of all tasks together.
    refused: BTreeMap<&'static str, u64>,
    /// Those that are over and about which something came since: their entries are not in memory, and have to be read.
    stale: HashSet<TaskId>,
    /// Whole views of tasks that are over, with the number of changes at which they were made.
    finished: HashMap<TaskId, (u64, Arc<TaskView>)>,
    finished_order: VecDeque<TaskId>,
    /// What is just being written: a task that is created, or a grant.
    writing: HashSet<(TaskId, Epoch)>,
    wanted: VecDeque<Wanted>,
}

/// What is in memory of one task. Of one that is over these are no entries, since nothing can change any more, but for odd ones.
#[derive(Default)]
struct Held {
    /// Counts the changes.
    version: u64,
    /// What each generation has of it, lowest first: most tasks stand in one.
    parts: Vec<Part>,
    /// The generation in which it was submitted, and in which everything about it is written.
    home: Option<u64>,
    view: Option<Arc<TaskView>>,
    /// What of it is in the sum of what does not count.
    counted: Vec<&'static str>,
}

/// What one generation has of a task.
struct Part {
    generation: u64,
    tasks: Entries<TaskDocument>,
    results: Entries<ResultDocument>,
    misshapen_tasks: Vec<Misshapen>,
    misshapen_results: Vec<Misshapen>,
}

impl Held {
    fn part(&mut self, generation: u64) -> &mut Part {
        let place = match self.parts.binary_search_by_key(&generation, |part| part.generation) {
            Ok(place) => place,
            Err(place) => {
                let part = Part {
                    generation,
                    tasks: Entries::default(),
                    results: Entries::default(),
                    misshapen_tasks: Vec::new(),
                    misshapen_results: Vec::new(),
                };
                self.parts.insert(place, part);
                place
            }
        };
        &mut self.parts[place]
    }

    /// Returns all entries of all generations; none where some are not in memory.
    fn entries(&self) -> Option<(Documents<'_, TaskDocument>, Documents<'_, ResultDocument>)> {
        if let [part] = self.parts.as_slice() {
            return Some((part.tasks.here()?.into(), part.results.here()?.into()));
        }
        let (mut tasks, mut results) = (Vec::new(), Vec::new());
        for part in &self.parts {
            tasks.extend_from_slice(part.tasks.here()?);
            results.extend_from_slice(part.results.here()?);
        }
        Some((tasks.into(), results.into()))
    }
}

type Documents<'a, T> = Cow<'a, [Written<T>]>;

enum Entries<T> {
    Here(Vec<Written<T>>),
    Stored,
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self::Here(Vec::new())
    }
}

impl<T> Entries<T> {
    fn here(&self) -> Option<&[Written<T>]> {
        match self {
            Self::Here(entries) => Some(entries),
            Self::Stored => None,
        }
    }

    /// Lets entries go. That there are none stays known.
    fn forget(&mut self) {
        if let Self::Here(entries) = self
            && !entries.is_empty()
        {
            *self = Self::Stored;
        }
    }
}

/// Keeps others from writing the same until it is dropped.
pub(super) struct Writing<'a> {
    table: &'a Table,
    what: (TaskId, Epoch),
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.table.state().writing.remove(&self.what);
    }
}

impl Table {
    pub(super) fn new(updates: usize, finished_views: usize) -> Self {
        Self {
            proofs: ProofMemo::default(),
            state: Mutex::default(),
            updates: broadcast::Sender::new(updates),
            news: Notify::new(),
            finished_views,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Arc<TaskView>> {
        self.updates.subscribe()
    }

    /// Shows what comes of a generation from now on.
    pub(super) fn open(&self, generation: u64) {
        self.state().open.insert(generation);
    }

    /// Takes all entries of a task's documents in a generation, and what they come to by themselves.
    pub(super) fn tasks_changed(
        &self,
        generation: u64,
        id: TaskId,
        entries: Vec<Written<TaskDocument>>,
        alone: Option<TaskView>,
        misshapen: Vec<Misshapen>,
    ) {
        let mut state = self.state();
        if !state.open.contains(&generation) {
            return;
        }
        let held = state.tasks.entry(id.clone()).or_default();
        let is_only = held.parts.iter().all(|part| part.generation == generation);
        let part = held.part(generation);
        part.tasks = Entries::Here(entries);
        part.misshapen_tasks = misshapen;
        let is_alone = is_only && part.results.here().is_some_and(<[_]>::is_empty);
        self.evaluate(&mut state, id, is_alone.then_some(alone));
    }

    /// Takes all entries of a task's results in a generation.
    pub(super) fn results_changed(
        &self,
        generation: u64,
        id: TaskId,
        entries: Vec<Written<ResultDocument>>,
        misshapen: Vec<Misshapen>,
    ) {
        let mut state = self.state();
        if !state.open.contains(&generation) {
            return;
        }
        let part = state.tasks.entry(id.clone()).or_default().part(generation);
        part.results = Entries::Here(entries);
        part.misshapen_results = misshapen;
        self.evaluate(&mut state, id, None);
    }

    /// Takes all entries of a task that were read since `version`. Returns whether nothing came meanwhile.
    pub(super) fn reloaded(&self, id: &TaskId, version: u64, histories: Histories) -> bool {
        let mut state = self.state();
        let Some(held) = state.tasks.get_mut(id).filter(|held| held.version == version) else { return false };
        for history in histories {
            // What a generation does not have was not in memory of it, either.
            if let Some(part) = held.parts.iter_mut().find(|part| part.generation == history.generation) {
                part.tasks = Entries::Here(light(history.tasks));
                part.results = Entries::Here(light(history.results));
            }
        }
        if held.entries().is_none() {
            return false;
        }
        self.evaluate(&mut state, id.clone(), None);
        true
    }

    /// Works out what the entries of a task come to, unless that is known, and tells those who listen if that is new.
    fn evaluate(&self, state: &mut State, id: TaskId, known: Option<Option<TaskView>>) {
        let Some(held) = state.tasks.get_mut(&id) else { return };
        held.version += 1;
        let Some((tasks, results)) = held.entries() else {
            state.stale.insert(id);
            self.news.notify_one();
            return;
        };
        state.stale.remove(&id);
        let holds = |node: &_, task: &_, identity: &str, proof: &str| self.proofs.holds(node, task, identity, proof);
        let view = known.unwrap_or_else(|| resolve(&id, &tasks, &results, holds)).map(Arc::new);
        held.home = view.as_ref().map(|view| view.origin.generation);
        let before = std::mem::replace(&mut held.view, view.clone());
        let generation = held.home.unwrap_or_default();
        state.count_refused(&id, view.as_deref());
        let Some(view) = view else {
            state.catalogue.remove(&id);
            return;
        };
        let summary = TaskSummary::of(&view, generation);
        // Of one that is over, no more is remembered than what a list shows.
        let is_new = match &before {
            Some(before) => *before != view,
            None => state.catalogue.get(&id).is_none_or(|before| **before != summary),
        };
        if is_new {
            state.catalogue.put(summary);
            if state.want_texts(&view, before.as_deref()) {
                self.news.notify_one();
            }
        }
        // A result that was accepted may still be on its way: the databases come one after the other.
        if view.is_over() && (view.status != TaskStatus::Completed || view.result.is_some()) {
            state.let_go(&id);
        }
        if is_new {
            // Nobody may be listening.
            drop(self.updates.send(view));
        }
    }

    /// Forgets what a generation had: tasks of it alone are not known any more.
    pub(super) fn drop_generation(&self, generation: u64) {
        let mut state = self.state();
        state.open.remove(&generation);
        let has = |held: &Held| held.parts.iter().any(|part| part.generation == generation);
        let of_it: Vec<TaskId> = state.tasks.iter().filter(|(_, held)| has(held)).map(|(id, _)| id.clone()).collect();
        for id in of_it {
            let Some(held) = state.tasks.get_mut(&id) else { continue };
            held.parts.retain(|part| part.generation != generation);
            if held.parts.is_empty() {
                state.forget(&id);
            } else {
                // In memory or not, what is left is looked at anew.
                held.view = None;
                state.catalogue.remove(&id);
                self.evaluate(&mut state, id, None);
            }
        }
    }

    /// Returns the generation in which everything about a task is written.
    pub(super) fn home(&self, id: &TaskId) -> Option<u64> {
        self.state().tasks.get(id)?.home
    }

    /// Returns what there is to know of the generations that are open. The tasks of batches that `is_held` names are needed. `ended_elsewhere` says of a requester,
    /// by its peer id, and a generation whether the requester is done with all that it has in it.
    pub(super) fn facts(
        &self,
        now_ms: u64,
        is_held: impl Fn(&String) -> bool,
        ended_elsewhere: impl Fn(&str, u64) -> bool,
    ) -> BTreeMap<u64, Facts> {
        let state = self.state();
        let new = |generation: &u64| (*generation, Facts { generation: *generation, ..Facts::default() });
        let mut facts: BTreeMap<u64, Facts> = state.open.iter().map(new).collect();
        let (mut needed, mut whole) = (HashSet::new(), HashSet::new());
        for view in state.tasks.values().filter_map(|held| held.view.as_deref()).filter(|view| !view.is_over()) {
            needed.extend(view.task.depends_on());
            whole.extend(&view.task.parent_task_id);
        }
        for (id, held) in &state.tasks {
            let Some(summary) = state.catalogue.get(id) else { continue };
            let is_needed = needed.contains(id)
                || summary.parent.as_ref().is_some_and(|parent| whole.contains(parent))
                || summary.batch.as_ref().is_some_and(&is_held);
            for part in &held.parts {
                let Some(facts) = facts.get_mut(&part.generation) else { continue };
                let is_over = summary.over || (summary.proven && ended_elsewhere(&summary.requester, part.generation));
                let ended = summary.completed_at.unwrap_or(summary.created_at);
                facts.add(id, summary.created_at, (is_over && !is_needed).then_some(ended), now_ms);
            }
        }
        facts
    }

    /// Keeps others from creating a task, or from writing a grant, until what is returned is dropped; none where somebody does so already.
    pub(super) fn begin_writing(&self, id: &TaskId, epoch: Epoch) -> Option<Writing<'_>> {
        let what = (id.clone(), epoch);
        let is_first = self.state().writing.insert(what.clone());
        // Made only then: what it does at its end is not for others.
        is_first.then(|| Writing { table: self, what })
    }

    /// Returns what the entries in memory come to, without what may be large; none for a task that is over.
    pub(super) fn held_view(&self, id: &TaskId) -> Option<Arc<TaskView>> {
        self.state().tasks.get(id)?.view.clone()
    }

    pub(super) fn summary(&self, id: &TaskId) -> Option<Arc<TaskSummary>> {
        self.state().catalogue.get(id).cloned()
    }

    pub(super) fn read_catalogue<T>(&self, read: impl FnOnce(&Catalogue) -> T) -> T {
        read(&self.state().catalogue)
    }

    /// Returns the views of all tasks that are not over.
    pub(super) fn unfinished(&self) -> Vec<Arc<TaskView>> {
        let state = self.state();
        let views = state.tasks.values().filter_map(|held| held.view.as_ref());
        views.filter(|view| !view.is_over()).cloned().collect()
    }

    pub(super) fn refused(&self) -> BTreeMap<&'static str, u64> {
        self.state().refused.clone()
    }

    /// Returns how often a task has changed; none where nothing is known of it.
    pub(super) fn version(&self, id: &TaskId) -> Option<u64> {
        self.state().tasks.get(id).map(|held| held.version)
    }

    /// Returns the whole view of a task that is over, as it was last read.
    pub(super) fn finished(&self, id: &TaskId) -> Option<Arc<TaskView>> {
        let state = self.state();
        let version = state.tasks.get(id)?.version;
        state.finished.get(id).filter(|(at, _)| *at == version).map(|(_, view)| Arc::clone(view))
    }

    /// Keeps the whole view of a task that is over.
    pub(super) fn keep_finished(&self, version: u64, view: &Arc<TaskView>) {
        let id = &view.task.id;
        let mut state = self.state();
        if state.finished.insert(id.clone(), (version, Arc::clone(view))).is_none() {
            state.finished_order.push_back(id.clone());
        }
        while state.finished_order.len() > self.finished_views {
            if let Some(oldest) = state.finished_order.pop_front() {
                state.finished.remove(&oldest);
            }
        }
    }

    /// Returns a task whose entries have to be read anew, and how often it has changed.
    pub(super) fn next_stale(&self) -> Option<(TaskId, u64)> {
        let mut state = self.state();
        let id = state.stale.iter().next()?.clone();
        state.stale.remove(&id);
        let version = state.tasks.get(&id)?.version;
        Some((id, version))
    }

    /// Takes note that the entries of a task still have to be read.
    pub(super) fn still_stale(&self, id: TaskId) {
        self.state().stale.insert(id);
    }

    /// Returns the next large text that is not known to be here.
    pub(super) fn next_wanted(&self) -> Option<Wanted> {
        self.state().wanted.pop_front()
    }
}

impl State {
    /// Brings the sum of what does not count up to date.
    fn count_refused(&mut self, id: &TaskId, view: Option<&TaskView>) {
        let Some(held) = self.tasks.get_mut(id) else { return };
        let misshapen = held.parts.iter().flat_map(|part| part.misshapen_tasks.iter().chain(&part.misshapen_results));
        let misshapen = misshapen.map(|reason| reason.name());
        let refused = view.into_iter().flat_map(|view| &view.refused).map(|refused| word_of(refused.refusal));
        let now: Vec<&'static str> = misshapen.chain(refused).collect();
        for reason in std::mem::replace(&mut held.counted, now) {
            if let Some(count) = self.refused.get_mut(reason) {
                *count -= 1;
            }
        }
        for reason in &held.counted {
            *self.refused.entry(reason).or_default() += 1;
        }
        self.refused.retain(|_, count| *count > 0);
    }

    /// Lets go what is in memory of a task that is over.
    fn let_go(&mut self, id: &TaskId) {
        if let Some(held) = self.tasks.get_mut(id) {
            for part in &mut held.parts {
                part.tasks.forget();
                part.results.forget();
            }
            held.view = None;
        }
    }

    /// Forgets a task of which nothing is left.
    fn forget(&mut self, id: &TaskId) {
        self.count_refused(id, None);
        self.tasks.remove(id);
        self.catalogue.remove(id);
        self.stale.remove(id);
        // The place in the order goes when it is its turn.
        self.finished.remove(id);
    }

    /// Takes note of large texts that came. Returns whether there are any.
    fn want_texts(&mut self, view: &TaskView, before: Option<&TaskView>) -> bool {
        let task = before.is_none() && !view.is_over();
        let result = before.is_none_or(|before| before.result_hash != view.result_hash);
        let wanted = task.then(|| wanted_of_task(view)).into_iter();
        let wanted: Vec<Wanted> = wanted.chain(result.then(|| wanted_of_result(view))).flatten().collect();
        let is_some = !wanted.is_empty();
        for text in wanted {
            if self.wanted.len() < WANTED_MAX {
                self.wanted.push_back(text);
            }
        }
        is_some
    }
}
