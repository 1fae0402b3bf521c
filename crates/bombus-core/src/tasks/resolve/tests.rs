mod foreign;
mod laws;
mod story;

use crate::identity::NodeKey;
use crate::tasks::{AttemptFailure, Epoch, ProofMemo, proof_holds, prove};

use super::*;
use story::{R, Story, V, W, failure, id, identity, node, peer};

/// A task that node R submitted and granted to node W, with the hash of that grant.
fn granted() -> (Story, String) {
    let mut story = Story::default();
    story.submit(R);
    let grant = story.grant(R, 1, W);
    (story, grant)
}

#[test]
fn a_task_goes_from_submission_to_its_settled_result() {
    let mut story = Story::default();
    assert_eq!(story.view(), None);

    story.submit(R);
    let view = story.view().unwrap();
    assert_eq!((view.status, view.settled, view.highest_epoch), (TaskStatus::Pending, false, Epoch::NONE));
    assert_eq!(view.requester, Requester { peer: Some(node(R)), identity: identity(R), proven: true });

    let grant = story.grant(R, 1, W);
    let view = story.view().unwrap();
    assert_eq!(view.status, TaskStatus::Claimed);
    assert!(view.is_held_by(&node(W), &grant) && !view.is_held_by(&node(R), &grant));

    story.running(W, 1);
    assert_eq!(story.view().unwrap().status, TaskStatus::Running);

    let result = story.answer(W, &grant);
    let view = story.view().unwrap();
    assert_eq!((view.status, view.settled, view.is_over()), (TaskStatus::Completed, false, false));
    assert_eq!(view.result_hash.as_ref(), Some(&result));

    story.settle(R, TaskStatus::Completed, Some(&grant), Some(&result));
    let view = story.view().unwrap();
    assert_eq!((view.status, view.settled, view.is_over()), (TaskStatus::Completed, true, true));
    assert_eq!(view.grant.unwrap().hash, grant);
    assert_eq!(view.result.unwrap().response, "answer of W");
    assert_eq!(view.refused, []);
}

#[test]
fn a_task_may_be_submitted_with_its_first_grant() {
    let mut story = Story::default();
    let grant = story.submit_granted(R, W);
    let view = story.view().unwrap();
    assert_eq!((view.status, view.highest_epoch), (TaskStatus::Claimed, Epoch(1)));
    assert_eq!(view.requester, Requester { peer: Some(node(R)), identity: identity(R), proven: true });
    assert_eq!(
        TaskDocument::clone(&view.task),
        TaskDocument::clone(&view.task).unstarted(),
        "it is told as it was submitted"
    );
    assert!(view.is_held_by(&node(W), &grant));
    let result = story.answer(W, &grant);
    story.settle(R, TaskStatus::Completed, Some(&grant), Some(&result));
    assert_eq!(story.view().unwrap().result_hash, Some(result));

    // Without a proof nobody is its requester, and there is no task.
    let mut forged = Story::default();
    forged.grant(R, 1, W);
    forged.claim_self(V, 1);
    assert_eq!(forged.view(), None);
}

#[test]
fn an_attempt_that_is_released_makes_room_for_the_next_one() {
    let (mut story, grant) = granted();
    story.release(R, 1, vec![failure(1, W, "stream broken")]);
    let view = story.view().unwrap();
    assert_eq!((view.status, view.released, view.highest_epoch), (TaskStatus::Pending, Epoch(1), Epoch(1)));
    assert_eq!(view.grant, None);
    assert_eq!(view.failures, [failure(1, W, "stream broken")]);

    let late = story.answer(W, &grant);
    let view = story.view().unwrap();
    assert_eq!(view.status, TaskStatus::Pending, "its grant is over");
    assert_eq!(view.refused, [Refused { hash: late.clone(), refusal: Refusal::Superseded }]);
    assert_eq!(view.results[0].hash, late, "but the requester may accept it");

    let next = story.grant(R, 2, V);
    assert_eq!(story.view().unwrap().grant.unwrap().hash, next);
    story.settle(R, TaskStatus::Completed, Some(&grant), Some(&late));
    let view = story.view().unwrap();
    assert_eq!((view.result.unwrap().response.clone(), view.refused), ("answer of W".to_owned(), Vec::new()));
}

#[test]
fn a_worker_gives_its_own_grant_back_and_nobody_elses() {
    let (mut story, _) = granted();
    let foreign = story.release(V, 1, Vec::new());
    let view = story.view().unwrap();
    assert_eq!(view.status, TaskStatus::Claimed);
    assert_eq!(view.refused, [Refused { hash: foreign, refusal: Refusal::NotRequester }]);
    story.release(W, 1, Vec::new());
    let view = story.view().unwrap();
    assert_eq!((view.status, view.released, view.highest_epoch), (TaskStatus::Pending, Epoch::NONE, Epoch(1)));

    let (mut story, _) = granted();
    story.claim_self(V, 2);
    story.release(V, 2, Vec::new());
    let view = story.view().unwrap();
    assert_eq!((view.status, view.grant, view.highest_epoch), (TaskStatus::Pending, None, Epoch(2)));
}

#[test]
fn attempts_that_fail_are_followed_by_others_until_none_is_left() {
    let mut story = Story::default();
    story.submit(R);
    for epoch in 1..=3 {
        let grant = story.claim_self(W, epoch);
        story.fails(W, Some(&grant), "out of memory");
        let view = story.view().unwrap();
        assert_eq!(view.status, if epoch < 3 { TaskStatus::Pending } else { TaskStatus::Failed });
        assert!(!view.settled && !view.is_held_by(&node(W), &grant));
        let reasons: Vec<_> = view.failures.iter().map(|failure| (failure.epoch.0, failure.reason.as_str())).collect();
        assert_eq!(reasons, (1..=epoch).map(|epoch| (epoch, "out of memory")).collect::<Vec<_>>());
    }
    assert_eq!(story.view().unwrap().error.as_deref(), Some("out of memory"));
}

#[test]
fn at_equal_epochs_the_requester_then_a_result_then_the_lower_hash_decides() {
    let mut story = Story::default();
    story.submit(R);
    let first = story.claim_self(W, 1);
    let second = story.claim_self(V, 1);
    assert!(first < second);
    assert_eq!(story.view().unwrap().grant.unwrap().hash, first);
    story.answer(V, &second);
    assert_eq!(story.view().unwrap().grant.unwrap().hash, second);
    let requesters = story.grant(R, 1, V);
    assert_eq!(story.view().unwrap().grant.unwrap().hash, requesters);
    let newer = story.claim_self(W, 2);
    assert_eq!(story.view().unwrap().grant.unwrap().hash, newer);
}

#[test]
fn what_only_the_requester_may_write_does_not_count_from_others() {
    let (mut story, grant) = granted();
    story.answer(W, &grant);
    let before = story.view().unwrap();
    let faults = [
        story.grant(V, 2, V),
        story.release(V, 9, Vec::new()),
        story.settle(V, TaskStatus::Failed, Some(&grant), None),
        story.settle(V, TaskStatus::Completed, Some(&grant), None),
        story.write(V, |task| {
            // The requester's own words, copied.
            task.requester_identity = Some(identity(R));
            task.requester_proof = Some(story::proof(R, R));
            task.released = Some(Epoch(1));
        }),
    ];
    let view = story.view().unwrap();
    let refused = faults.map(|hash| Refused { hash, refusal: Refusal::NotRequester });
    assert_eq!(sorted(&view.refused), sorted(&refused));
    assert_eq!(TaskView { refused: Vec::new(), ..view }, before);
}

#[test]
fn a_claim_for_itself_needs_a_proof_the_next_epoch_and_the_right_worker() {
    let mut story = Story::default();
    story.write(R, |task| {
        task.requester_proof = Some(story::proof(R, R));
        task.to = Some(node(W));
    });
    let refused = [
        (story.claim_with(W, 1, |task| task.worker_proof = None), Refusal::Proof),
        (story.claim_with(W, 1, |task| task.worker_proof = Some(story::proof(W, V))), Refusal::Proof),
        (story.claim_with(W, 1, |task| task.worker_identity = Some(identity(V))), Refusal::Proof),
        (story.claim_with(V, 1, |task| task.worker_peer_id = Some(peer(W))), Refusal::Proof),
        (story.claim_with(W, 1, |task| task.worker_peer_id = None), Refusal::NoWorker),
        (story.claim_with(W, 1, |task| task.worker_peer_id = Some("QmSomebody".to_owned())), Refusal::NoWorker),
        (story.claim_self(W, 0), Refusal::Epoch),
        (story.claim_self(W, 2), Refusal::Epoch),
        (story.claim_self(W, u64::MAX), Refusal::Epoch),
        (story.claim_self(V, 1), Refusal::NotDesignated),
    ];
    let view = story.view().unwrap();
    assert_eq!((view.status, view.highest_epoch), (TaskStatus::Pending, Epoch::NONE));
    assert_eq!(sorted(&view.refused), sorted(&refused.map(|(hash, refusal)| Refused { hash, refusal })));
    let good = story.claim_self(W, 1);
    let view = story.view().unwrap();
    assert_eq!(view.grants[0].hash, good);
    assert_eq!(view.grant.unwrap().epoch, Epoch(2), "what came too early follows now");
}

#[test]
fn a_result_counts_from_the_worker_of_its_grant_alone() {
    let (mut story, grant) = granted();
    let refused = [
        (story.answer(V, &grant), Refusal::OtherWorker),
        (story.answer_with(V, Some(&grant), |result| result.worker_peer_id = peer(W)), Refusal::Proof),
        (story.answer_with(W, Some(&grant), |result| result.worker_proof = None), Refusal::Proof),
        (story.answer_with(W, Some(&grant), |result| result.worker_identity = Some(identity(V))), Refusal::Proof),
        (story.answer(W, "zdpu-of-nothing"), Refusal::NoGrant),
        (story.answer_with(W, None, |_| {}), Refusal::NoGrant),
        (story.answer_with(W, Some(&grant), |result| result.task_id = id().part("other")), Refusal::OtherTask),
    ];
    let view = story.view().unwrap();
    assert_eq!((view.status, view.result), (TaskStatus::Claimed, None));
    assert_eq!(sorted(&view.refused), sorted(&refused.map(|(hash, refusal)| Refused { hash, refusal })));
}

#[test]
fn what_follows_the_requesters_decision_does_not_count() {
    let (mut story, grant) = granted();
    story.settle(R, TaskStatus::Failed, None, None);
    let late = [
        story.settle(R, TaskStatus::Completed, Some(&grant), None),
        story.release(R, 1, Vec::new()),
        story.grant(R, 2, V),
    ];
    story.answer(W, &grant);
    let view = story.view().unwrap();
    assert_eq!((view.status, view.settled, view.result), (TaskStatus::Failed, true, None));
    assert_eq!(view.highest_epoch, Epoch(1));
    for hash in late {
        assert!(view.refused.contains(&Refused { hash, refusal: Refusal::Settled }));
    }
}

#[test]
fn the_result_that_the_requester_names_counts_even_where_another_fits() {
    let (mut story, grant) = granted();
    let second = story.answer_with(W, Some(&grant), |result| result.response = "first".to_owned());
    let named = story.answer_with(W, Some(&grant), |result| result.response = "named".to_owned());
    assert_eq!(story.view().unwrap().result_hash, Some(second));
    story.settle(R, TaskStatus::Completed, Some(&grant), Some(&named));
    assert_eq!(story.view().unwrap().result.unwrap().response, "named");
}

#[test]
fn a_cancellation_by_others_is_a_wish_until_the_requester_decides() {
    let (mut story, grant) = granted();
    story.settle(V, TaskStatus::Cancelled, None, None);
    let view = story.view().unwrap();
    assert_eq!((view.status, view.cancelling, view.settled), (TaskStatus::Claimed, true, false));
    assert!(!view.is_held_by(&node(W), &grant));
    assert_eq!(view.refused, []);
    story.settle(R, TaskStatus::Cancelled, None, None);
    let view = story.view().unwrap();
    assert_eq!((view.status, view.cancelling, view.settled), (TaskStatus::Cancelled, false, true));
}

#[test]
fn of_two_nodes_that_got_the_same_request_the_older_goes_on_unless_the_other_has_decided() {
    let mut older = Story::default();
    older.submit(R);
    let mut newer = Story::at(10);
    newer.submit(V);
    let grant = newer.grant(V, 1, W);
    let both = older.with(&newer);
    let view = both.view().unwrap();
    assert_eq!((view.requester.peer, view.status), (Some(node(R)), TaskStatus::Pending));
    assert_eq!(view.refused, [Refused { hash: grant.clone(), refusal: Refusal::Superseded }]);

    let result = newer.answer(W, &grant);
    newer.settle(V, TaskStatus::Completed, Some(&grant), Some(&result));
    let view = older.with(&newer).view().unwrap();
    assert_eq!((view.requester.peer, view.settled), (Some(node(V)), true));
    assert_eq!(view.result_hash, Some(result));
}

#[test]
fn proofs_are_signatures_of_the_nodes() {
    let (requester, worker) = (NodeKey::from_secret(&[R; 32]), NodeKey::from_secret(&[W; 32]));
    let mut story = Story::default();
    story.write(R, |task| task.requester_proof = Some(prove(&requester, &id(), &identity(R))));
    let grant = story.grant(R, 1, W);
    let forged = story.answer_with(W, Some(&grant), |result| {
        result.worker_proof = Some(prove(&requester, &id(), &identity(W)));
    });
    let memo = ProofMemo::default();
    for _ in 0..2 {
        let view = story.view_by(|node, task, identity, proof| memo.holds(node, task, identity, proof)).unwrap();
        assert!(view.requester.proven);
        assert_eq!(view.refused, [Refused { hash: forged.clone(), refusal: Refusal::Proof }]);
    }
    story.answer_with(W, Some(&grant), |result| {
        result.worker_proof = Some(prove(&worker, &id(), &identity(W)));
    });
    assert_eq!(story.view_by(proof_holds).unwrap().status, TaskStatus::Completed);
}

fn sorted(refused: &[Refused]) -> Vec<Refused> {
    let mut sorted = refused.to_vec();
    sorted.sort_by(|a, b| a.hash.cmp(&b.hash));
    sorted
}

#[test]
fn failures_are_told_once_for_each_grant_by_whoever_knows_best() {
    let mut story = Story::default();
    story.submit(R);
    let grant = story.claim_self(W, 1);
    story.fails(W, Some(&grant), "as the worker tells it");
    story.claim_with(V, 2, |task| task.failures = Some(vec![failure(1, W, "as another claimant tells it")]));
    let told = |story: &Story| -> Vec<AttemptFailure> { story.view().unwrap().failures };
    assert_eq!(told(&story)[0].reason, "as another claimant tells it");
    story.release(R, 2, vec![failure(1, W, "as the requester tells it"), failure(2, V, "gone")]);
    let reasons: Vec<_> = told(&story).into_iter().map(|failure| failure.reason).collect();
    assert_eq!(reasons, ["as the requester tells it", "gone"]);
}
