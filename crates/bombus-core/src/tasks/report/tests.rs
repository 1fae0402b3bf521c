use std::sync::Arc;

use TaskStatus::{Cancelled, Claimed, Completed, Failed, Pending, Running};

use super::*;
use crate::identity::NodeKey;
use crate::tasks::{Bid, Grant, GrantedBy, Order, Requester, ResultDocument, Worker};

fn parent() -> TaskId {
    TaskId::parse("parent").unwrap()
}

/// A part in a state, settled where that is final; one without an index sums up.
fn part(index: Option<u32>, status: TaskStatus) -> TaskView {
    let id = parent().part(&format!("{index:?}"));
    let mut task = TaskDocument::new(id.clone(), "requester", 5);
    task.parent_task_id = Some(parent());
    task.chunk_index = index;
    task.total_chunks = Some(3);
    task.join = Some(" | ".to_owned());
    task.depends_on =
        index.is_none().then(|| (0..3).map(|index| parent().part(&format!("{:?}", Some(index)))).collect());
    let mut result = ResultDocument::new(id, "worker", 9);
    result.response = format!("answer {index:?}");
    result.eval_count = Some(10);
    TaskView {
        task: Arc::new(task),
        origin: Order { generation: 1, time: 1, writer: [2; 33], entry: [0; 32] },
        requester: Requester { peer: None, identity: "02".to_owned(), proven: true },
        status,
        settled: status.is_final(),
        cancelling: false,
        grant: None,
        grants: Vec::new(),
        highest_epoch: Epoch::NONE,
        released: Epoch::NONE,
        failures: Vec::new(),
        bids: Vec::new(),
        result: (status == Completed).then(|| Arc::new(result)),
        result_hash: None,
        results: Vec::new(),
        completed_at: status.is_final().then_some(9),
        error: (status == Failed).then(|| "out of memory".to_owned()),
        refused: Vec::new(),
    }
}

fn report(parts: &[TaskView]) -> TaskReport {
    TaskReport::of_parts(&parent(), &parts.iter().collect::<Vec<_>>()).unwrap()
}

fn text(view: &TaskView) -> Option<String> {
    view.result.as_ref().map(|result| result.response.clone())
}

#[test]
fn a_parent_stands_where_its_parts_stand() {
    let of = |statuses: [TaskStatus; 3]| {
        let parts: Vec<_> = (0..).zip(statuses).map(|(index, status)| part(Some(index), status)).collect();
        let report = report(&parts);
        (report.status, report.settled)
    };
    assert_eq!(of([Pending, Pending, Pending]), (Pending, false));
    assert_eq!(of([Pending, Claimed, Pending]), (Claimed, false));
    assert_eq!(of([Pending, Claimed, Running]), (Running, false));
    assert_eq!(of([Completed, Pending, Pending]), (Running, false));
    assert_eq!(of([Completed, Completed, Completed]), (Completed, true));
    assert_eq!(of([Completed, Failed, Running]), (Failed, true));
    assert_eq!(of([Cancelled, Failed, Cancelled]), (Failed, true));
    assert_eq!(of([Completed, Cancelled, Running]), (Cancelled, false), "the one that runs may fail yet");
    assert_eq!(of([Completed, Cancelled, Cancelled]), (Cancelled, true));
}

#[test]
fn progress_counts_parts_and_tokens_also_of_parts_that_are_not_here_yet() {
    let parts = [part(Some(2), Running), part(Some(0), Completed)];
    let report = report(&parts);
    assert_eq!(report.progress, Progress { done: 1, total: 3, tokens: 10 });
    assert_eq!(report.parts.iter().map(|part| part.index).collect::<Vec<_>>(), [Some(0), Some(2)]);
    let all_here_done = [part(Some(0), Completed), part(Some(1), Completed)];
    assert_eq!(TaskReport::of_parts(&parent(), &all_here_done.iter().collect::<Vec<_>>()).unwrap().status, Running);
}

#[test]
fn a_failed_part_fails_the_parent_and_the_others_stay_readable() {
    let parts = [part(Some(0), Completed), part(Some(1), Failed), part(Some(2), Completed)];
    let report = report(&parts);
    assert_eq!((report.status, report.error.as_deref()), (Failed, Some("out of memory")));
    assert_eq!(joined(&parent(), &parts.iter().collect::<Vec<_>>(), text), None);
    let readable: Vec<_> = parts.iter().filter_map(text).collect();
    assert_eq!(readable, ["answer Some(0)", "answer Some(2)"]);
}

#[test]
fn answers_are_joined_in_the_order_of_the_parts() {
    let parts = [part(Some(1), Completed), part(Some(2), Completed), part(Some(0), Completed)];
    let all: Vec<_> = parts.iter().collect();
    assert_eq!(joined(&parent(), &all, text).as_deref(), Some("answer Some(0) | answer Some(1) | answer Some(2)"));
    assert_eq!(joined(&parent(), &all[..2], text), None, "one is not here");
}

#[test]
fn the_part_that_sums_up_is_the_answer() {
    let mut parts =
        vec![part(Some(0), Completed), part(Some(1), Completed), part(Some(2), Completed), part(None, Pending)];
    assert_eq!((report(&parts).status, report(&parts).progress.total), (Running, 4));
    assert_eq!(joined(&parent(), &parts.iter().collect::<Vec<_>>(), text), None);
    parts[3] = part(None, Completed);
    assert_eq!(report(&parts).status, Completed);
    assert_eq!(report(&parts).parts[3].index, None);
    assert_eq!(joined(&parent(), &parts.iter().collect::<Vec<_>>(), text).as_deref(), Some("answer None"));
}

#[test]
fn the_worker_is_told_by_result_grant_or_claim() {
    let node = NodeKey::from_secret(&[7; 32]).node_id();
    let mut view = part(Some(0), Claimed);
    assert_eq!(TaskReport::of(&view).worker, None);
    view.grant = Some(Grant {
        hash: "zdpu".to_owned(),
        epoch: Epoch(2),
        worker: Worker::Node(node.clone()),
        by: GrantedBy::Requester,
        attempt: 2,
        writer: "02".to_owned(),
        claimed_at: Some(6),
        running: false,
        failed: None,
    });
    let report = TaskReport::of(&view);
    assert_eq!((report.worker, report.epoch, report.attempt), (Some(node.to_string()), Epoch(2), 2));
    let ended = TaskView { grants: view.grant.take().into_iter().collect(), ..part(Some(0), Cancelled) };
    assert_eq!(TaskReport::of(&ended).attempt, 2, "who is cancelled in an attempt was in one");
    assert_eq!(TaskReport::of(&part(Some(0), Completed)).worker.as_deref(), Some("worker"));
    let mut foreign = part(Some(0), Claimed);
    foreign.requester.proven = false;
    foreign.bids = vec![Bid {
        hash: "zdpu".to_owned(),
        writer: "03".to_owned(),
        worker: "bidder".to_owned(),
        claimed_at: None,
        running: false,
    }];
    assert_eq!(TaskReport::of(&foreign).worker.as_deref(), Some("bidder"));
}
