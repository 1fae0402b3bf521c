use std::time::Duration;

use crate::identity::NodeId;
use crate::tasks::{Epoch, GrantedBy, TaskDocument, TaskId, TaskStatus, TaskView, Worker};

/// What a [`Dispatcher`](super::Dispatcher) has to know about a task: a part of its view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFacts {
    /// Which task.
    pub task: TaskId,
    /// The node to which it belongs, where that is proven. `None` for tasks of programs that give no grants: nobody waits for those to
    /// be granted, and workers claim them.
    pub requester: Option<NodeId>,
    /// Whether this run of this node wrote its first entry, so that no peer can have claimed it while this node was away. Such tasks
    /// are placed before [`Input::Synced`](super::Input::Synced).
    pub fresh: bool,
    /// What a place must have to run it, as one text: kind, model, designated node. Tasks of one class can run at the same places; where
    /// there is no room for the first one, the others of its class are not tried.
    pub class: String,
    /// From 1 to 10; the highest first.
    pub priority: u8,
    /// How long a run of it may take.
    pub timeout: Option<Duration>,
    /// How often it is tried, at least once; the configured number where it says nothing.
    pub max_attempts: Option<u32>,
    /// Whether what it depends on is there.
    pub needs: Needs,
    /// Whether nothing more is to be done ([`TaskView::is_over`]).
    pub settled: bool,
    /// Whether a member wants it cancelled, which its requester has not yet confirmed.
    pub cancelling: bool,
    /// The highest epoch of all grants that count; [`Epoch::NONE`] where there is none.
    pub highest: Epoch,
    /// Grants up to this one are over, as its requester wrote.
    pub released: Epoch,
    /// The grant that is live.
    pub grant: Option<GrantFacts>,
    /// How many attempts have failed, that of the live grant not counted.
    pub attempts: u32,
    /// How many claims of workers for themselves there are, of whatever epoch.
    pub claims: u32,
    /// The answer, in the own store, that the requester may accept: to the live grant, else to any.
    pub result: Option<AnswerFacts>,
    /// Whether a worker that knows no grants could do it ([`TaskDocument::is_plain`]).
    pub plain: bool,
    /// Such a worker that wants the task, by the name in its bid.
    pub bid: Option<Worker>,
}

impl TaskFacts {
    /// Returns whether the answer is to this grant.
    pub(super) fn answers(&self, grant: &str) -> bool {
        self.result.as_ref().is_some_and(|answer| answer.grant == grant)
    }
}

/// Whether what a task depends on is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Needs {
    /// It may run now.
    #[default]
    Ready,
    /// A task that it depends on has not ended.
    Waiting,
    /// A task that it depends on failed or was cancelled, so it can never run.
    Failed,
}

impl Needs {
    /// Looks at the tasks on which another depends. `end` says how one ended for good; none while it has not, or is not known.
    pub fn of(task: &TaskDocument, end: impl Fn(&TaskId) -> Option<TaskStatus>) -> Self {
        let mut needs = Self::Ready;
        for id in task.depends_on() {
            match end(id) {
                Some(TaskStatus::Completed) => {}
                Some(_) => return Self::Failed,
                None => needs = Self::Waiting,
            }
        }
        needs
    }
}

/// A live grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantFacts {
    /// Its epoch.
    pub epoch: Epoch,
    /// The hash of its entry.
    pub hash: String,
    /// Who may run the task.
    pub worker: Worker,
    /// Who says so.
    pub by: GrantedBy,
    /// Whether the worker wrote that it has begun.
    pub began: bool,
    /// Why the worker has no answer, where it says so.
    pub failed: Option<String>,
}

/// An answer that fits its grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerFacts {
    /// The hash of the grant.
    pub grant: String,
    /// The hash of the answer's own entry.
    pub entry: String,
}

impl TaskFacts {
    /// Returns what there is to know of a task that a node submits now.
    #[must_use]
    pub fn submitted(task: &TaskDocument, requester: NodeId, class: String, needs: Needs) -> Self {
        Self {
            task: task.id.clone(),
            requester: Some(requester),
            fresh: true,
            class,
            priority: task.priority(),
            timeout: task.timeout_ms.map(Duration::from_millis),
            max_attempts: task.max_attempts,
            needs,
            settled: false,
            cancelling: false,
            highest: Epoch::NONE,
            released: Epoch::NONE,
            grant: None,
            attempts: 0,
            claims: 0,
            result: None,
            plain: task.is_plain(),
            bid: None,
        }
    }

    /// Takes from a view what it says. The rest is up to the caller: see [`TaskFacts::fresh`], [`TaskFacts::class`], [`TaskFacts::needs`].
    #[must_use]
    pub fn of(view: &TaskView, class: String, needs: Needs, fresh: bool) -> Self {
        let grant = view.grant.as_ref().map(|grant| GrantFacts {
            epoch: grant.epoch,
            hash: grant.hash.clone(),
            worker: grant.worker.clone(),
            by: grant.by,
            began: grant.running,
            failed: grant.failed.clone(),
        });
        let failed_now = grant.as_ref().filter(|grant| grant.failed.is_some()).map(|grant| grant.epoch);
        let attempts = view.failures.iter().filter(|failure| Some(failure.epoch) != failed_now).count();
        let answer = |grant: Option<&str>| {
            let mut answers = view.results.iter().filter(|result| result.error.is_none());
            let found = answers.find(|result| grant.is_none_or(|grant| grant == result.grant))?;
            Some(AnswerFacts { grant: found.grant.clone(), entry: found.hash.clone() })
        };
        let live = view.grant.as_ref().and_then(|grant| answer(Some(&grant.hash)));
        let claims = view.grants.iter().filter(|grant| grant.by == GrantedBy::SelfClaim).count();
        Self {
            task: view.task.id.clone(),
            requester: view.requester.peer.clone().filter(|_| view.requester.proven),
            fresh,
            class,
            priority: view.task.priority(),
            timeout: view.task.timeout_ms.map(Duration::from_millis),
            max_attempts: view.task.max_attempts,
            needs,
            settled: view.is_over(),
            cancelling: view.cancelling,
            highest: view.highest_epoch,
            released: view.released,
            grant,
            attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
            claims: u32::try_from(claims).unwrap_or(u32::MAX),
            result: live.or_else(|| answer(None)),
            plain: view.task.is_plain(),
            bid: view
                .bids
                .first()
                .filter(|_| view.task.is_plain())
                .map(|bid| Worker::Foreign { peer: bid.worker.clone(), identity: bid.writer.clone() }),
        }
    }
}

/// A node that could run a task, as placement ranks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The node, which may be this one.
    pub node: NodeId,
    /// How many tasks it runs at a time.
    pub slots: u32,
    /// How many more it lets wait; 0 counts for this node, whose own tasks wait unclaimed.
    pub queue: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_depends_on_others_waits_for_them_and_is_over_once_one_has_no_result() {
        let id = |text| TaskId::parse(text).unwrap();
        let task =
            TaskDocument { depends_on: Some(vec![id("a"), id("b"), id("c")]), ..TaskDocument::new(id("t"), "r", 1) };
        let needs = |ends: [Option<TaskStatus>; 3]| {
            Needs::of(&task, |of| ["a", "b", "c"].iter().zip(ends).find(|(name, _)| of.as_str() == **name)?.1)
        };
        let (done, failed) = (Some(TaskStatus::Completed), Some(TaskStatus::Failed));
        assert_eq!(needs([None; 3]), Needs::Waiting);
        assert_eq!(needs([done, None, done]), Needs::Waiting);
        assert_eq!(needs([done; 3]), Needs::Ready);
        assert_eq!(
            (needs([None, done, failed]), needs([Some(TaskStatus::Cancelled), done, done])),
            (Needs::Failed, Needs::Failed)
        );
        assert_eq!(Needs::of(&TaskDocument::new(id("t"), "r", 1), |_| None), Needs::Ready, "it depends on nothing");
    }
}
