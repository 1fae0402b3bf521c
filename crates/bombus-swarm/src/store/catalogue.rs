//! All tasks in order, so that a page of them is found without looking at all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bombus_core::tasks::{Epoch, TaskId, TaskKind, TaskStatus, TaskView};

/// Most tasks on a page.
const PAGE_MAX: usize = 1_000;

/// What a list shows of a task; [`super::TaskStore::view`] has everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSummary {
    /// Its id.
    pub id: TaskId,
    /// The generation of the databases in which it stands.
    pub generation: u64,
    /// What is to be done.
    pub kind: TaskKind,
    /// The model.
    pub model: String,
    /// Where it stands. That of a parent is made of its parts.
    pub status: TaskStatus,
    /// Whether its requester has decided.
    pub settled: bool,
    /// Whether somebody wants it cancelled.
    pub cancelling: bool,
    /// Whether nothing more is to be done.
    pub over: bool,
    /// The peer id that its requester has, or claims to have.
    pub requester: String,
    /// Whether the requester has proven that.
    pub proven: bool,
    /// Who runs or ran it.
    pub worker: Option<String>,
    /// When it was submitted, by the requester's clock, in milliseconds since 1970.
    pub created_at: u64,
    /// When it ended, by the clock of whoever wrote that, in milliseconds since 1970.
    pub completed_at: Option<u64>,
    /// How urgent it is, from 1 to 10.
    pub priority: u8,
    /// How many attempts have failed.
    pub failed_attempts: u32,
    /// The highest epoch that was used.
    pub highest_epoch: Epoch,
    /// The task that it is a part of.
    pub parent: Option<TaskId>,
    /// Which part, from 0.
    pub chunk_index: Option<u32>,
    /// The batch that it came with.
    pub batch: Option<String>,
    /// Its own id in the batch.
    pub batch_item: Option<String>,
    /// Whether there is a result that counts.
    pub has_result: bool,
    /// Why it failed.
    pub error: Option<String>,
}

impl TaskSummary {
    pub(super) fn of(view: &TaskView, generation: u64) -> Self {
        let task = &view.task;
        Self {
            id: task.id.clone(),
            generation,
            kind: task.kind(),
            model: task.model.clone(),
            status: view.status,
            settled: view.settled,
            cancelling: view.cancelling,
            over: view.is_over(),
            requester: task.requester_peer_id.clone(),
            proven: view.requester.proven,
            worker: view.grant.as_ref().map(|grant| grant.worker.peer().to_owned()),
            created_at: task.created_at,
            completed_at: view.completed_at,
            priority: task.priority(),
            failed_attempts: view.attempts_failed(),
            highest_epoch: view.highest_epoch,
            parent: task.parent_task_id.clone(),
            chunk_index: task.chunk_index,
            batch: task.batch_id.clone(),
            batch_item: task.batch_item.clone(),
            has_result: view.result.is_some(),
            error: view.error.clone(),
        }
    }

    fn place(&self) -> Place {
        (self.created_at, self.id.clone())
    }

    fn keys(&self) -> impl Iterator<Item = Key> {
        let requester = Some(Key::Requester(self.requester.clone()));
        let batch = self.batch.clone().map(Key::Batch);
        let parent = self.parent.clone().map(Key::Parent);
        [Some(Key::Status(self.status)), requester, batch, parent].into_iter().flatten()
    }
}

/// Which tasks to list. What is none leaves nothing out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// Only those that stand so.
    pub status: Option<TaskStatus>,
    /// Only those of this requester, by its peer id.
    pub requester: Option<String>,
    /// Only those that came with this batch.
    pub batch: Option<String>,
    /// Only the parts of this task.
    pub parent: Option<TaskId>,
    /// Without those that are parts of others.
    pub whole: bool,
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// Most tasks on the page, 1 to 1,000.
    pub limit: usize,
}

/// A page of a list, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPage {
    /// The tasks.
    pub tasks: Vec<Arc<TaskSummary>>,
    /// Where the next page goes on; none on the last one.
    pub next: Option<String>,
}

/// Where a task stands in the list.
type Place = (u64, TaskId);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    Status(TaskStatus),
    Requester(String),
    Batch(String),
    Parent(TaskId),
}

/// All tasks.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    by_id: HashMap<TaskId, Arc<TaskSummary>>,
    all: BTreeSet<Place>,
    by_key: BTreeMap<Key, BTreeSet<Place>>,
    /// Of each generation, how many tasks it has, and how many of them are not over.
    by_generation: BTreeMap<u64, (usize, usize)>,
}

impl Catalogue {
    /// Takes a task, in place of what was known of it.
    pub(super) fn put(&mut self, summary: TaskSummary) {
        self.remove(&summary.id);
        self.all.insert(summary.place());
        for key in summary.keys() {
            self.by_key.entry(key).or_default().insert(summary.place());
        }
        let (tasks, open) = self.by_generation.entry(summary.generation).or_default();
        *tasks += 1;
        *open += usize::from(!summary.over);
        self.by_id.insert(summary.id.clone(), Arc::new(summary));
    }

    pub(super) fn remove(&mut self, id: &TaskId) {
        let Some(before) = self.by_id.remove(id) else { return };
        let place = before.place();
        self.all.remove(&place);
        if let Some((tasks, open)) = self.by_generation.get_mut(&before.generation) {
            *tasks -= 1;
            *open -= usize::from(!before.over);
            if *tasks == 0 {
                self.by_generation.remove(&before.generation);
            }
        }
        for key in before.keys() {
            let is_empty = self.by_key.get_mut(&key).is_some_and(|places| {
                places.remove(&place);
                places.is_empty()
            });
            if is_empty {
                self.by_key.remove(&key);
            }
        }
    }

    pub(super) fn get(&self, id: &TaskId) -> Option<&Arc<TaskSummary>> {
        self.by_id.get(id)
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Returns how many tasks stand so.
    pub(super) fn count(&self, status: TaskStatus) -> usize {
        self.by_key.get(&Key::Status(status)).map_or(0, BTreeSet::len)
    }

    /// Returns how many tasks a generation has, and how many of them are not over.
    pub(super) fn of_generation(&self, generation: u64) -> (usize, usize) {
        self.by_generation.get(&generation).copied().unwrap_or_default()
    }

    /// Returns the parts of a task in their order.
    pub(super) fn parts(&self, parent: &TaskId) -> Vec<Arc<TaskSummary>> {
        let places = self.by_key.get(&Key::Parent(parent.clone())).into_iter().flatten();
        let mut parts: Vec<_> = places.filter_map(|(_, id)| self.by_id.get(id).cloned()).collect();
        parts.sort_by_key(|part| (part.chunk_index, part.created_at));
        parts
    }

    /// Returns a page, newest first. It walks the shortest of the lists that the filter names. A cursor that is none begins at the newest.
    pub(super) fn list(&self, filter: &ListFilter) -> ListPage {
        let limit = filter.limit.clamp(1, PAGE_MAX);
        let keys = [
            filter.status.map(Key::Status),
            filter.requester.clone().map(Key::Requester),
            filter.batch.clone().map(Key::Batch),
            filter.parent.clone().map(Key::Parent),
        ];
        let empty = BTreeSet::new();
        let named = keys.into_iter().flatten().map(|key| self.by_key.get(&key).unwrap_or(&empty));
        let places = named.min_by_key(|places| places.len()).unwrap_or(&self.all);
        let before = filter.cursor.as_deref().and_then(read_cursor);
        let range = match &before {
            Some(place) => places.range(..place.clone()),
            None => places.range(..),
        };
        let fits = |summary: &&Arc<TaskSummary>| filter.fits(summary);
        let mut found = range.rev().filter_map(|(_, id)| self.by_id.get(id)).filter(fits);
        let tasks: Vec<_> = found.by_ref().take(limit).cloned().collect();
        let next = found.next().and_then(|_| tasks.last()).map(|last| cursor(last));
        ListPage { tasks, next }
    }
}

impl ListFilter {
    fn fits(&self, summary: &TaskSummary) -> bool {
        self.status.is_none_or(|status| status == summary.status)
            && self.requester.as_ref().is_none_or(|requester| *requester == summary.requester)
            && self.batch.is_none_or_same(summary.batch.as_ref())
            && self.parent.is_none_or_same(summary.parent.as_ref())
            && !(self.whole && summary.parent.is_some())
    }
}

trait NoneOrSame<T> {
    fn is_none_or_same(&self, other: Option<&T>) -> bool;
}

impl<T: PartialEq> NoneOrSame<T> for Option<T> {
    fn is_none_or_same(&self, other: Option<&T>) -> bool {
        self.is_none() || self.as_ref() == other
    }
}

fn cursor(summary: &TaskSummary) -> String {
    format!("{:x}-{}", summary.created_at, summary.id)
}

/// Returns whether this can be where a page of a list ended.
pub(crate) fn is_cursor(text: &str) -> bool {
    read_cursor(text).is_some()
}

fn read_cursor(cursor: &str) -> Option<Place> {
    let (time, id) = cursor.split_once('-')?;
    Some((u64::from_str_radix(time, 16).ok()?, TaskId::parse(id).ok()?))
}

#[cfg(test)]
mod tests {
    use bombus_core::tasks::TaskDocument;

    use super::*;

    fn summary(number: u64, requester: &str, status: TaskStatus) -> TaskSummary {
        let mut task = TaskDocument::new(TaskId::parse(&format!("task-{number}")).unwrap(), requester, number / 2);
        task.batch_id = number.is_multiple_of(10).then(|| "tenth".to_owned());
        TaskSummary {
            id: task.id.clone(),
            generation: 1,
            kind: task.kind(),
            model: String::new(),
            status,
            settled: status.is_final(),
            cancelling: false,
            over: status.is_final(),
            requester: requester.to_owned(),
            proven: true,
            worker: None,
            created_at: task.created_at,
            completed_at: None,
            priority: 5,
            failed_attempts: 0,
            highest_epoch: Epoch::NONE,
            parent: number.is_multiple_of(7).then(|| TaskId::parse("parent").unwrap()),
            chunk_index: number.is_multiple_of(7).then(|| u32::try_from(100 - number).unwrap()),
            batch: task.batch_id,
            batch_item: None,
            has_result: false,
            error: None,
        }
    }

    fn hundred() -> Catalogue {
        let mut catalogue = Catalogue::default();
        for number in 0..100 {
            let requester = if number % 3 == 0 { "third" } else { "other" };
            let status = if number % 5 == 0 { TaskStatus::Completed } else { TaskStatus::Pending };
            catalogue.put(summary(number, requester, status));
        }
        catalogue
    }

    fn walk(catalogue: &Catalogue, filter: &ListFilter) -> Vec<String> {
        let mut filter = filter.clone();
        let mut ids = Vec::new();
        loop {
            let page = catalogue.list(&filter);
            assert!(page.tasks.len() <= filter.limit);
            ids.extend(page.tasks.iter().map(|task| task.id.to_string()));
            match page.next {
                Some(next) => filter.cursor = Some(next),
                None => return ids,
            }
        }
    }

    #[test]
    fn pages_have_every_task_once_newest_first_whatever_their_size() {
        let catalogue = hundred();
        let whole = catalogue.list(&ListFilter { limit: 1_000, ..ListFilter::default() });
        assert_eq!((whole.tasks.len(), whole.next), (100, None));
        assert!(whole.tasks.is_sorted_by(|a, b| (a.created_at, &a.id) > (b.created_at, &b.id)));
        let ids: Vec<String> = whole.tasks.iter().map(|task| task.id.to_string()).collect();
        for limit in [1, 7, 99, 100] {
            assert_eq!(walk(&catalogue, &ListFilter { limit, ..ListFilter::default() }), ids);
        }
    }

    #[test]
    fn filters_leave_out_what_does_not_fit() {
        let catalogue = hundred();
        let count = |filter: ListFilter| walk(&catalogue, &ListFilter { limit: 3, ..filter }).len();
        let none = ListFilter::default();
        assert_eq!(count(ListFilter { status: Some(TaskStatus::Completed), ..none.clone() }), 20);
        assert_eq!(count(ListFilter { requester: Some("third".to_owned()), ..none.clone() }), 34);
        assert_eq!(count(ListFilter { batch: Some("tenth".to_owned()), ..none.clone() }), 10);
        assert_eq!(count(ListFilter { whole: true, ..none.clone() }), 85);
        let both =
            ListFilter { status: Some(TaskStatus::Completed), requester: Some("third".to_owned()), ..none.clone() };
        assert_eq!(count(both), 7);
        assert_eq!(count(ListFilter { batch: Some("nobody's".to_owned()), ..none }), 0);
        let parts = catalogue.parts(&TaskId::parse("parent").unwrap());
        assert_eq!(parts.len(), 15);
        assert!(parts.is_sorted_by_key(|part| part.chunk_index));
    }

    #[test]
    fn a_task_that_changes_is_in_its_new_place_only() {
        let mut catalogue = hundred();
        assert_eq!(catalogue.count(TaskStatus::Pending), 80);
        catalogue.put(summary(1, "third", TaskStatus::Completed));
        assert_eq!((catalogue.count(TaskStatus::Pending), catalogue.count(TaskStatus::Completed)), (79, 21));
        assert_eq!(catalogue.len(), 100);
        catalogue.remove(&TaskId::parse("task-1").unwrap());
        assert_eq!((catalogue.len(), catalogue.count(TaskStatus::Completed)), (99, 20));
    }
}
