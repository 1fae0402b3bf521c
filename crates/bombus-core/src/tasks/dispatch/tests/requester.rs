use super::rig::{Rig, answered, config, facts, granted, id, ms, node};
use crate::liveness::PeerState;
use crate::tasks::dispatch::{Decline, DispatchConfig, Input, Needs, Outcome, Output, TaskFacts, Write};
use crate::tasks::{Epoch, GrantedBy, TaskStatus, Worker};

fn grant_of(outputs: &[Output]) -> Option<(u64, char)> {
    outputs.iter().find_map(|output| match output {
        Output::Grant { epoch, worker: Worker::Node(worker), .. } => {
            ('a'..='f').find(|letter| node(*letter) == *worker).map(|letter| (epoch.0, letter))
        }
        _ => None,
    })
}

fn offer_of(outputs: &[Output]) -> Option<(u64, bool)> {
    outputs.iter().find_map(|output| match output {
        Output::Offer { epoch, resume, .. } => Some((epoch.0, *resume)),
        _ => None,
    })
}

fn release_of(outputs: &[Output]) -> Option<(u64, Option<String>)> {
    outputs.iter().find_map(|output| match output {
        Output::Release { epoch, failure, .. } => {
            Some((epoch.0, failure.as_ref().map(|failure| failure.reason.clone())))
        }
        _ => None,
    })
}

fn settled_as(outputs: &[Output]) -> Option<TaskStatus> {
    outputs.iter().find_map(|output| match output {
        Output::Settle { status, .. } => Some(*status),
        _ => None,
    })
}

#[test]
fn a_grant_is_durable_before_it_is_offered_and_the_answer_is_in_the_store_before_it_settles() {
    let mut rig = Rig::synced(config(), "b");
    assert_eq!(rig.task(facts("t", 'a')), [Output::Rank { task: id("t") }]);
    let outputs = rig.ranked("t", "b");
    assert_eq!((grant_of(&outputs), offer_of(&outputs)), (Some((1, 'b')), None));
    assert_eq!(offer_of(&rig.stored("t", 1)), Some((1, false)));
    rig.on(Input::Accepted { task: id("t"), epoch: Epoch(1) });
    let finished = Input::Finished { task: id("t"), epoch: Epoch(1), outcome: Outcome::Completed };
    assert_eq!(rig.on(finished.clone()), []);
    assert_eq!(rig.on(finished), [], "told twice");
    let facts = answered(granted(facts("t", 'a'), 1, 'b', GrantedBy::Requester), 1);
    let settle = Output::Settle {
        task: id("t"),
        status: TaskStatus::Completed,
        grant: Some("grant-1".to_owned()),
        result: Some("answer".to_owned()),
        failure: None,
        error: None,
    };
    assert_eq!(rig.task(facts.clone()), [settle]);
    assert_eq!(rig.task(facts.clone()), [], "once");
    rig.task(TaskFacts { settled: true, ..facts });
    assert_eq!(rig.dispatcher.tasks(), 0, "what is settled is forgotten");
}

#[test]
fn a_requester_that_starts_asks_for_what_it_has_granted_and_waits_before_it_gives_up() {
    let mut rig = Rig::new(config());
    let before = TaskFacts { fresh: false, ..granted(facts("t", 'a'), 3, 'b', GrantedBy::Requester) };
    assert_eq!(offer_of(&rig.task(before.clone())), Some((3, true)));
    rig.on(Input::Declined { task: id("t"), epoch: Epoch(3), reason: Decline::Unreachable });
    rig.on(Input::Synced);
    let outputs = rig.pass(ms(10_000));
    assert!(release_of(&outputs).is_none() && outputs.len() > 1, "it is asked again and again: {outputs:?}");
    for _ in 0..40 {
        rig.on(Input::Declined { task: id("t"), epoch: Epoch(3), reason: Decline::Unreachable });
        let outputs = rig.pass(ms(300));
        if let Some(release) = release_of(&outputs) {
            assert_eq!(release, (3, Some("its worker was lost".to_owned())));
            return;
        }
    }
    panic!("the lease of what may still run ends");
}

#[test]
fn only_attempts_count_that_may_have_begun() {
    for (reason, counts) in [(Decline::Lost { began: true }, true), (Decline::Lost { began: false }, false)] {
        let mut rig = Rig::synced(config(), "b");
        rig.placed("t", 'b');
        assert_eq!(offer_of(&rig.on(Input::Broken { task: id("t"), epoch: Epoch(1) })), Some((1, true)), "once more");
        let outputs = rig.on(Input::Declined { task: id("t"), epoch: Epoch(1), reason });
        assert_eq!(release_of(&outputs).unwrap().1.is_some(), counts, "{reason:?}");
    }
    let mut rig = Rig::synced(config(), "b");
    rig.placed("t", 'b');
    let outputs = rig.on(Input::Finished { task: id("t"), epoch: Epoch(1), outcome: Outcome::HandedBack });
    assert_eq!(release_of(&outputs), Some((1, None)));
}

#[test]
fn the_last_failed_attempt_ends_the_task_and_one_that_cannot_succeed_ends_it_at_once() {
    for retry in [true, false] {
        let mut rig = Rig::synced(config(), "b");
        rig.placed("t", 'b');
        let failed = |epoch| {
            let outcome = Outcome::Failed { reason: "out of memory".to_owned(), retry };
            Input::Finished { task: id("t"), epoch: Epoch(epoch), outcome }
        };
        let outputs = rig.on(failed(1));
        if !retry {
            assert_eq!(settled_as(&outputs), Some(TaskStatus::Failed));
            continue;
        }
        assert_eq!(release_of(&outputs), Some((1, Some("out of memory".to_owned()))));
        for epoch in 2..=3 {
            let released = TaskFacts { highest: Epoch(epoch - 1), released: Epoch(epoch - 1), ..facts("t", 'a') };
            let released = TaskFacts { attempts: epoch as u32 - 1, ..released };
            assert_eq!(rig.task(released.clone()), [], "first a pause");
            let outputs = rig.pass(ms(5_000));
            assert_eq!(outputs, [Output::Rank { task: id("t") }]);
            assert_eq!(grant_of(&rig.ranked("t", "b")), Some((epoch, 'b')));
            rig.stored("t", epoch);
            rig.on(Input::Accepted { task: id("t"), epoch: Epoch(epoch) });
            let outputs = rig.on(failed(epoch));
            assert_eq!(settled_as(&outputs), (epoch == 3).then_some(TaskStatus::Failed));
        }
    }
}

#[test]
fn who_would_not_take_it_is_passed_over_and_a_task_that_all_decline_is_tried_again_later() {
    let mut rig = Rig::synced(config(), "bc");
    rig.task(facts("t", 'a'));
    let mut pauses = Vec::new();
    let mut epoch = 0;
    for _ in 0..4 {
        for worker in ['b', 'c'] {
            epoch += 1;
            assert_eq!(grant_of(&rig.ranked("t", "bc")), Some((epoch, worker)));
            rig.stored("t", epoch);
            let reason = Decline::NotAble;
            let outputs = rig.on(Input::Declined { task: id("t"), epoch: Epoch(epoch), reason });
            assert_eq!(release_of(&outputs), Some((epoch, None)), "nothing has failed");
            let (highest, released) = (Epoch(epoch), Epoch(epoch));
            let outputs = rig.task(TaskFacts { highest, released, ..facts("t", 'a') });
            assert_eq!(outputs, [Output::Rank { task: id("t") }]);
        }
        assert_eq!(rig.ranked("t", "bc"), [], "all have declined");
        let begin = rig.now;
        while rig.pass(ms(50)).is_empty() {}
        pauses.push(rig.now - begin);
    }
    assert!(pauses.is_sorted() && pauses[3] > pauses[0] * 4, "{pauses:?}");
}

#[test]
fn many_tasks_without_a_place_are_not_asked_about_again_and_again() {
    let mut rig = Rig::synced(config(), "b");
    for number in 0..200 {
        rig.task(facts(&format!("t{number:03}"), 'a'));
    }
    let (mut asked, mut granted) = (0, 0);
    let mut outputs = rig.on(Input::Candidates);
    let mut open: Vec<_> = (0..64).map(|number| id(&format!("t{number:03}"))).collect();
    while let Some(task) = open.pop() {
        asked += 1;
        outputs.extend(rig.ranked(task.as_str(), "b"));
        for output in outputs.drain(..) {
            match output {
                Output::Rank { task } => open.push(task),
                Output::Grant { .. } => granted += 1,
                _ => {}
            }
        }
    }
    assert_eq!(granted, 4, "as many as run and wait there");
    assert_eq!(asked, 64, "those that were asked about at once, and no other");
    let outputs = rig.pass(ms(2_000));
    let ranks = outputs.iter().filter(|output| matches!(output, Output::Rank { .. })).count();
    assert_eq!(ranks, 1, "one tries for all");
}

#[test]
fn a_cancellation_and_a_completion_do_not_both_end_a_task() {
    let done = answered(granted(facts("t", 'a'), 1, 'b', GrantedBy::Requester), 1);
    let mut rig = Rig::synced(config(), "b");
    rig.placed("t", 'b');
    assert_eq!(settled_as(&rig.task(done.clone())), Some(TaskStatus::Completed));
    assert_eq!(rig.on(Input::Cancel { task: id("t") }), []);

    let mut rig = Rig::synced(config(), "b");
    rig.placed("t", 'b');
    let outputs = rig.on(Input::Cancel { task: id("t") });
    assert_eq!(settled_as(&outputs), Some(TaskStatus::Cancelled));
    let revoke = Output::Revoke { task: id("t"), epoch: Epoch(1), worker: node('b') };
    assert!(outputs.contains(&revoke), "the worker stops: {outputs:?}");
    assert_eq!(rig.task(done), []);
    assert_eq!(rig.on(Input::Cancel { task: id("t") }), []);
}

#[test]
fn a_worker_that_is_gone_is_not_waited_for_and_another_one_is_preferred() {
    let mut rig = Rig::synced(config(), "bc");
    rig.placed("t", 'b');
    rig.on(Input::Began { task: id("t"), epoch: Epoch(1) });
    let outputs = rig.on(Input::Peer { node: node('b'), state: PeerState::Gone });
    assert_eq!(release_of(&outputs), Some((1, Some("its worker was lost".to_owned()))));
    rig.task(TaskFacts { highest: Epoch(1), released: Epoch(1), attempts: 1, ..facts("t", 'a') });
    rig.pass(ms(1_000));
    assert_eq!(grant_of(&rig.ranked("t", "bc")), Some((2, 'c')));
}

#[test]
fn a_requester_that_slept_syncs_before_it_takes_anything_away() {
    let mut rig = Rig::synced(config(), "b");
    rig.placed("t", 'b');
    rig.on(Input::Began { task: id("t"), epoch: Epoch(1) });
    let outputs = rig.sleep(ms(120_000));
    assert!(outputs.contains(&Output::Sync), "{outputs:?}");
    assert_eq!(offer_of(&outputs), Some((1, true)), "it is asked whether it still runs");
    rig.on(Input::Peer { node: node('b'), state: PeerState::Gone });
    assert_eq!(release_of(&rig.pass(ms(1_000))), None);
    // What was done meanwhile is adopted.
    let done = answered(granted(facts("t", 'a'), 2, 'c', GrantedBy::SelfClaim), 2);
    assert_eq!(settled_as(&rig.task(done)), Some(TaskStatus::Completed));
}

#[test]
fn a_task_is_submitted_with_its_grant_where_somebody_takes_it_at_once() {
    let mut rig = Rig::synced(config(), "b");
    assert_eq!(rig.submit("t"), [Output::Rank { task: id("t") }]);
    let outputs = rig.ranked("t", "b");
    assert_eq!((outputs.len(), grant_of(&outputs)), (1, Some((1, 'b'))));
    assert_eq!(offer_of(&rig.stored("t", 1)), Some((1, false)));
    assert_eq!(rig.pass(ms(2_000)), [], "it is written once");
}

#[test]
fn a_task_that_nobody_takes_at_once_is_written_all_the_same() {
    let submit = |name| Output::Submit { task: id(name) };
    // Nobody could run it.
    let mut rig = Rig::synced(config(), "b");
    rig.submit("t");
    assert_eq!(rig.ranked("t", ""), [submit("t")]);
    // It is not known soon who could; who takes it later gets a grant of its own.
    let mut rig = Rig::synced(config(), "b");
    rig.submit("u");
    assert_eq!((rig.pass(ms(900)), rig.pass(ms(200))), (vec![], vec![submit("u")]));
    assert_eq!(grant_of(&rig.ranked("u", "b")), Some((1, 'b')));
    // It has to wait for bids, or may not be placed at all.
    let mut rig = Rig::synced(DispatchConfig { foreign_workers: true, ..config() }, "b");
    assert_eq!(rig.submit("t"), [submit("t")]);
    rig.on(Input::Drain { grace: ms(1_000) });
    assert_eq!(rig.submit("u"), [submit("u")]);
    // What it depends on has failed: it ends, but not before it has begun to be.
    let mut rig = Rig::synced(config(), "b");
    let outputs = rig.on(Input::Submit(Box::new(TaskFacts { needs: Needs::Failed, ..facts("t", 'a') })));
    assert_eq!((&outputs[0], settled_as(&outputs)), (&submit("t"), Some(TaskStatus::Failed)));
}

#[test]
fn a_submission_that_turns_out_to_be_known_is_answered_all_the_same() {
    let submit = [Output::Submit { task: id("t") }];
    let mut rig = Rig::synced(config(), "b");
    rig.submit("t");
    assert_eq!(rig.task(facts("t", 'c')), submit, "it came from another requester meanwhile");
    assert_eq!(rig.ranked("t", "b"), []);
    let mut rig = Rig::synced(config(), "b");
    rig.submit("t");
    assert_eq!(rig.task(TaskFacts { settled: true, ..facts("t", 'a') }), submit, "it has ended before");
    let mut rig = Rig::synced(config(), "b");
    rig.task(facts("t", 'a'));
    assert_eq!(rig.submit("t"), submit, "it was known before");
}

#[test]
fn workers_that_know_no_grants_get_plain_tasks_of_those_who_let_them() {
    let bidder = Worker::Foreign { peer: "js".to_owned(), identity: "02".to_owned() };
    let of_bidder = |foreign_workers, plain| {
        let mut rig = Rig::synced(DispatchConfig { foreign_workers, ..config() }, "b");
        let bid = Some(bidder.clone()).filter(|_| plain);
        let outputs = rig.task(TaskFacts { plain, bid, ..facts("t", 'a') });
        outputs.iter().any(|output| matches!(output, Output::Grant { worker: Worker::Foreign { .. }, .. }))
    };
    assert!(of_bidder(true, true));
    assert!(!of_bidder(false, true), "it was not asked for");
    let mut rig = Rig::synced(DispatchConfig { foreign_workers: true, ..config() }, "b");
    let facts = TaskFacts { plain: false, ..facts("t", 'a') };
    assert_eq!(rig.task(facts), [Output::Rank { task: id("t") }], "no bid is waited for");
}

#[test]
fn what_could_not_be_written_is_forgotten() {
    let mut rig = Rig::synced(config(), "b");
    rig.submit("t");
    rig.ranked("t", "b");
    rig.on(Input::Withdrawn { task: id("t") });
    assert_eq!((rig.dispatcher.tasks(), rig.pass(ms(60_000))), (0, vec![]));
    assert_eq!(rig.submit("t"), [Output::Rank { task: id("t") }], "it may be submitted again");
}

#[test]
fn a_claim_from_while_the_requester_was_away_is_followed() {
    let mut rig = Rig::new(config());
    rig.on(Input::Peer { node: node('c'), state: PeerState::Alive });
    let claimed = TaskFacts { fresh: false, claims: 1, ..granted(facts("t", 'a'), 2, 'c', GrantedBy::SelfClaim) };
    assert_eq!(offer_of(&rig.task(claimed.clone())), Some((2, true)));
    rig.on(Input::Accepted { task: id("t"), epoch: Epoch(2) });
    rig.on(Input::Synced);
    assert_eq!(rig.task(claimed), []);
    let renewal = Input::Renewed { task: id("t"), epoch: Epoch(2), beat: 9 };
    assert_eq!(rig.on(renewal), [Output::Acknowledge { task: id("t"), epoch: Epoch(2), beat: 9 }]);
}

#[test]
fn a_write_that_failed_is_asked_for_again_and_an_epoch_is_not_used_twice() {
    let mut rig = Rig::synced(config(), "b");
    rig.task(facts("t", 'a'));
    rig.ranked("t", "b");
    // It was written all the same.
    rig.task(granted(facts("t", 'a'), 1, 'b', GrantedBy::Requester));
    rig.on(Input::StoreFailed { task: id("t"), write: Write::Grant(Epoch(1)) });
    assert_eq!(rig.pass(ms(5_000)), [Output::Rank { task: id("t") }]);
    assert_eq!(grant_of(&rig.ranked("t", "b")), Some((2, 'b')));
    rig.on(Input::Cancel { task: id("t") });
    rig.on(Input::StoreFailed { task: id("t"), write: Write::Settle });
    assert_eq!(settled_as(&rig.pass(ms(2_000))), Some(TaskStatus::Cancelled));
}
