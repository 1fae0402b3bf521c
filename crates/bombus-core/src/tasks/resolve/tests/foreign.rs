//! Peers that write what the plan for all peers says, and nothing of Bombus.

use super::story::{J, K, R, Story, V, W, identity, node, peer};
use super::*;

/// A task of peer J.
fn submitted() -> Story {
    let mut story = Story::default();
    story.plain(J, TaskStatus::Pending);
    story
}

#[test]
fn a_task_of_such_a_peer_is_claimed_and_answered_by_our_worker() {
    let mut story = submitted();
    let view = story.view().unwrap();
    assert_eq!(view.requester, Requester { peer: Some(node(J)), identity: identity(J), proven: false });
    let grant = story.claim_self(W, 1);
    assert_eq!(story.view().unwrap().status, TaskStatus::Claimed);
    story.running(W, 1);
    story.answer(W, &grant);
    // What the requester looks at.
    story.claim_with(W, 1, |task| task.status = TaskStatus::Completed);
    let view = story.view().unwrap();
    assert_eq!((view.status, view.settled, view.is_over()), (TaskStatus::Completed, false, true));
    assert_eq!((view.result.unwrap().response.clone(), view.refused), ("answer of W".to_owned(), Vec::new()));
}

#[test]
fn two_such_peers_get_along_without_us() {
    let mut story = submitted();
    story.plain(K, TaskStatus::Claimed);
    let view = story.view().unwrap();
    assert_eq!((view.status, view.bids[0].worker.as_str()), (TaskStatus::Claimed, peer(K).as_str()));
    story.plain(K, TaskStatus::Running);
    assert_eq!(story.view().unwrap().status, TaskStatus::Running);
    story.answer_with(K, None, |_| {});
    story.plain(K, TaskStatus::Completed);
    let view = story.view().unwrap();
    assert_eq!((view.status, view.is_over()), (TaskStatus::Completed, true));
    assert_eq!((view.result.unwrap().response.clone(), view.refused), ("answer of K".to_owned(), Vec::new()));
}

#[test]
fn such_a_peer_can_be_requester_and_worker_in_one() {
    let mut story = submitted();
    story.plain(J, TaskStatus::Claimed);
    story.plain(J, TaskStatus::Running);
    assert_eq!(story.view().unwrap().status, TaskStatus::Running);
    story.answer_with(J, None, |_| {});
    story.plain(J, TaskStatus::Completed);
    let view = story.view().unwrap();
    assert_eq!((view.status, view.settled), (TaskStatus::Completed, true));
    assert_eq!(view.result.unwrap().response, "answer of J");
}

#[test]
fn what_fails_there_has_failed_until_it_is_asked_for_again() {
    let mut story = submitted();
    story.plain(K, TaskStatus::Claimed);
    story.fails(K, None, "no such model");
    let view = story.view().unwrap();
    assert_eq!((view.status, view.error.as_deref()), (TaskStatus::Failed, Some("no such model")));
    story.plain(J, TaskStatus::Pending);
    let view = story.view().unwrap();
    assert_eq!((view.status, view.bids), (TaskStatus::Pending, Vec::new()));
    story.plain(K, TaskStatus::Claimed);
    story.plain(K, TaskStatus::Failed);
    assert_eq!(story.view().unwrap().status, TaskStatus::Failed);
    story.fails(K, None, "still no such model");
    assert_eq!(story.view().unwrap().error.as_deref(), Some("still no such model"));

    let mut own = submitted();
    own.plain(J, TaskStatus::Claimed);
    own.plain(J, TaskStatus::Failed);
    own.fails(J, None, "no such model");
    let view = own.view().unwrap();
    assert_eq!((view.settled, view.error.as_deref()), (true, Some("no such model")));
}

#[test]
fn a_requester_that_asks_again_ends_the_grants_before() {
    let mut story = submitted();
    story.claim_self(W, 1);
    story.plain(J, TaskStatus::Pending);
    let view = story.view().unwrap();
    assert_eq!((view.status, view.grant, view.released), (TaskStatus::Pending, None, Epoch(1)));
    assert_eq!(view.highest_epoch, Epoch(1));
    // A claim that its worker wrote before it knew.
    story.claim_self(V, 1);
    assert_eq!(story.view().unwrap().grant, None);
    let next = story.claim_self(V, 2);
    assert_eq!(story.view().unwrap().grant.unwrap().hash, next);
}

#[test]
fn anybodys_cancellation_ends_a_task_that_nobody_settles() {
    let mut story = submitted();
    story.claim_self(W, 1);
    story.settle(V, TaskStatus::Cancelled, None, None);
    let view = story.view().unwrap();
    assert_eq!((view.status, view.cancelling, view.is_over()), (TaskStatus::Cancelled, true, true));
}

#[test]
fn a_claim_without_an_epoch_is_a_bid_until_the_requester_grants_it() {
    let mut story = Story::default();
    story.submit(R);
    let bid = story.plain(J, TaskStatus::Claimed);
    story.plain(J, TaskStatus::Running);
    let early = story.answer_with(J, None, |_| {});
    let view = story.view().unwrap();
    assert_eq!((view.status, view.grant), (TaskStatus::Pending, None));
    let expected = Bid { hash: bid, writer: identity(J), worker: peer(J), claimed_at: None, running: true };
    assert_eq!(view.bids, [expected]);
    assert_eq!(view.refused, [Refused { hash: early.clone(), refusal: Refusal::NoGrant }]);

    let grant = story.honour(R, 1, J);
    let view = story.view().unwrap();
    assert_eq!((view.status, view.result_hash), (TaskStatus::Completed, Some(early)));
    let worker = Worker::Foreign { peer: peer(J), identity: identity(J) };
    assert_eq!(view.grant.map(|live| (live.hash, live.worker)), Some((grant, worker)));
    assert_eq!((view.bids, view.refused), (Vec::new(), Vec::new()));
}

#[test]
fn nobody_can_answer_for_a_node_by_claiming_under_its_name() {
    let mut story = Story::default();
    story.submit(R);
    story.write(J, |task| {
        task.status = TaskStatus::Claimed;
        task.worker_peer_id = Some(peer(W));
    });
    story.grant(R, 1, W);
    let forged = story.answer_with(J, None, |result| result.worker_peer_id = peer(W));
    let view = story.view().unwrap();
    assert_eq!((view.status, view.result), (TaskStatus::Claimed, None));
    assert_eq!(view.refused, [Refused { hash: forged, refusal: Refusal::NoGrant }]);
}

#[test]
fn a_bidder_that_failed_gets_another_grant_and_its_old_error_does_not_end_that() {
    let mut story = Story::default();
    story.submit(R);
    story.plain(J, TaskStatus::Claimed);
    story.honour(R, 1, J);
    story.fails(J, None, "busy");
    let view = story.view().unwrap();
    assert_eq!((view.status, view.failures[0].reason.as_str()), (TaskStatus::Pending, "busy"));
    story.release(R, 1, view.failures);
    story.plain(J, TaskStatus::Claimed);
    let second = story.honour(R, 2, J);
    let view = story.view().unwrap();
    assert_eq!((view.status, view.grant.unwrap().hash), (TaskStatus::Claimed, second));
    story.fails(J, None, "busy again");
    assert_eq!(story.view().unwrap().status, TaskStatus::Pending);
}

#[test]
fn an_unproven_task_of_the_same_name_takes_nothing_from_a_proven_one() {
    let mut forged = Story::default();
    forged.plain(J, TaskStatus::Pending);
    forged.plain(J, TaskStatus::Cancelled);
    let mut story = Story::at(10);
    story.submit(R);
    let view = forged.with(&story).view().unwrap();
    assert_eq!((view.requester.identity, view.settled, view.cancelling), (identity(R), false, true));
}
