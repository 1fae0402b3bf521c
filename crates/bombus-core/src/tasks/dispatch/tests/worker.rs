use super::rig::{Rig, answered, begun, config, facts, granted, id, ms, node, offer};
use crate::liveness::PeerState;
use crate::tasks::dispatch::{Decline, DispatchConfig, Input, Load, Offered, Outcome, Output, RunId, TaskFacts};
use crate::tasks::{Epoch, GrantedBy};

fn publishes(outputs: &[Output]) -> bool {
    outputs.iter().any(|output| matches!(output, Output::Publish { .. }))
}

fn declined(outputs: &[Output]) -> Option<Decline> {
    outputs.iter().find_map(|output| match output {
        Output::Decline { reason, .. } => Some(*reason),
        _ => None,
    })
}

fn asks(outputs: &[Output]) -> bool {
    outputs.iter().any(|output| matches!(output, Output::AskAround { .. }))
}

fn nobody(name: &str) -> Input {
    Input::Answers { task: id(name), requester_seen: false, running: false, unanswered: Vec::new() }
}

#[test]
fn what_is_done_after_the_lease_ran_out_is_kept_back_until_the_requester_is_heard() {
    let done = Outcome::Completed;
    let mut rig = Rig::synced(config(), "b");
    let run = begun(&rig.offered("t", 'b', 1, false))[0].1;
    assert!(publishes(&rig.ended("t", run, done.clone())), "within the lease");

    let mut rig = Rig::synced(config(), "b");
    let run = begun(&rig.offered("t", 'b', 1, false))[0].1;
    let beats = rig.pass(ms(16_000));
    let beats = beats.iter().filter(|output| matches!(output, Output::Renew { .. })).count();
    assert_eq!(beats, 3, "each 5 s");
    assert!(!publishes(&rig.ended("t", run, done.clone())), "nobody has confirmed a renewal");
    // It lives, and has the grant still: the third renewal was sent a second ago.
    let outputs = rig.on(Input::Acknowledged { task: id("t"), epoch: Epoch(1), beat: 3 });
    assert!(publishes(&outputs));

    let mut rig = Rig::synced(config(), "b");
    let run = begun(&rig.offered("t", 'b', 1, false))[0].1;
    rig.pass(ms(16_000));
    rig.ended("t", run, done);
    let outputs = rig.offered("t", 'b', 1, true);
    assert!(matches!(outputs[0], Output::Accept { run: Some(same), .. } if same == run), "{outputs:?}");
    assert!(publishes(&outputs), "it is offered anew");
}

#[test]
fn what_cannot_be_written_goes_back_to_its_requester_and_what_nobody_else_looks_after_is_tried_again() {
    let done = Outcome::Completed;
    let mut rig = Rig::synced(config(), "b");
    let run = begun(&rig.offered("t", 'b', 1, false))[0].1;
    assert!(publishes(&rig.ended("t", run, done.clone())));
    let outputs = rig.on(Input::Unwritable { task: id("t"), run });
    let is_handed_back = |output: &Output| matches!(output, Output::HandBack { epoch: Epoch(1), .. });
    assert!(
        outputs.iter().any(is_handed_back) && outputs.contains(&Output::Abort { task: id("t"), run }),
        "{outputs:?}"
    );
    assert!(!publishes(&rig.pass(ms(60_000))), "somebody else has it by then");
    assert!(rig.on(Input::Unwritable { task: id("t"), run }).is_empty(), "it may be told twice");
}

#[test]
fn a_renewal_counts_from_when_it_was_sent_and_only_once_it_is_confirmed() {
    let mut rig = Rig::synced(config(), "b");
    let run = begun(&rig.offered("t", 'b', 1, false))[0].1;
    rig.pass(ms(14_000));
    rig.on(Input::Acknowledged { task: id("t"), epoch: Epoch(1), beat: 1 });
    // Sent at 5 s, so that it holds until 20 s.
    rig.pass(ms(5_900));
    assert!(publishes(&rig.ended("t", run, Outcome::Completed)));

    let mut rig = Rig::synced(config(), "b");
    let run = begun(&rig.offered("t", 'b', 1, false))[0].1;
    rig.pass(ms(14_000));
    rig.on(Input::Acknowledged { task: id("t"), epoch: Epoch(1), beat: 1 });
    rig.pass(ms(6_100));
    assert!(!publishes(&rig.ended("t", run, Outcome::Completed)));
}

#[test]
fn a_run_goes_on_under_a_later_grant_and_stops_when_another_one_is_granted() {
    let mut rig = Rig::synced(config(), "b");
    let run = begun(&rig.offered("t", 'b', 1, false))[0].1;
    let outputs = rig.offered("t", 'b', 2, false);
    assert_eq!(outputs.len(), 1);
    assert!(matches!(outputs[0], Output::Accept { epoch: Epoch(2), run: Some(same), .. } if same == run));
    assert_eq!(declined(&rig.offered("t", 'b', 1, true)), Some(Decline::Over));
    rig.task(granted(facts("t", 'b'), 2, 'a', GrantedBy::Requester));
    let outputs = rig.task(granted(facts("t", 'b'), 3, 'c', GrantedBy::Requester));
    assert_eq!(outputs, [Output::Abort { task: id("t"), run }]);
    assert!(!publishes(&rig.ended("t", run, Outcome::Completed)));
}

#[test]
fn a_grant_that_is_offered_again_does_not_begin_anew() {
    let mut rig = Rig::synced(config(), "b");
    assert_eq!(declined(&rig.offered("t", 'b', 1, true)), Some(Decline::Lost { began: false }));
    // What was granted before the start of the node may have begun.
    let mut rig = Rig::new(config());
    rig.task(granted(facts("t", 'b'), 1, 'a', GrantedBy::Requester));
    rig.on(Input::Loaded);
    assert_eq!(declined(&rig.offered("t", 'b', 1, true)), Some(Decline::Lost { began: true }));
    // What has its result is reported.
    rig.task(answered(granted(facts("t", 'b'), 1, 'a', GrantedBy::Requester), 1));
    let outputs = rig.offered("t", 'b', 1, true);
    assert_eq!(outputs, [Output::Report { task: id("t"), epoch: Epoch(1), requester: node('b') }]);
}

#[test]
fn between_the_writing_of_a_result_and_its_view_an_offer_is_answered_by_the_result() {
    let mut rig = Rig::synced(config(), "b");
    rig.task(granted(facts("t", 'b'), 1, 'a', GrantedBy::Requester));
    let run = begun(&rig.offered("t", 'b', 1, false))[0].1;
    rig.ended("t", run, Outcome::Completed);
    assert_eq!(rig.on(Input::Published { task: id("t"), run }), []);
    assert!(matches!(rig.offered("t", 'b', 1, true)[..], [Output::Report { .. }]));
    rig.task(answered(granted(facts("t", 'b'), 1, 'a', GrantedBy::Requester), 1));
    rig.task(TaskFacts { settled: true, ..facts("t", 'b') });
    assert_eq!((rig.dispatcher.tasks(), rig.dispatcher.load().running), (0, 0));
}

#[test]
fn there_are_so_many_slots_and_so_many_places_to_wait() {
    let mut rig = Rig::synced(config(), "b");
    let mut runs = Vec::new();
    for number in 0..4 {
        runs.extend(begun(&rig.offered(&format!("t{number}"), 'b', 1, false)));
    }
    assert_eq!(runs.len(), 2);
    assert_eq!(declined(&rig.offered("t4", 'b', 1, false)), Some(Decline::Busy));
    assert_eq!(rig.dispatcher.load(), Load { running: 2, queued: 2, slots: 2 });
    // A run that was ended keeps its slot until it has stopped.
    let (first, run) = runs[0].clone();
    assert_eq!(begun(&rig.on(Input::Revoked { task: id(&first), epoch: Epoch(1) })), []);
    assert_eq!(begun(&rig.ended(&first, run, Outcome::HandedBack)).len(), 1);
    let able = Offered { able: false, ..offer("t5", 'b', 1, false) };
    assert_eq!(declined(&rig.offer(able)), Some(Decline::NotAble));
}

#[test]
fn slots_are_shared_among_requesters_and_the_urgent_ones_of_each_go_first() {
    let mut rig = Rig::synced(DispatchConfig { queue: 16, ..config() }, "bc");
    let offered = |rig: &mut Rig, name: &str, requester: char, priority: u8| {
        begun(&rig.offer(Offered { priority, ..offer(name, requester, 1, false) }))
    };
    let mut runs = Vec::new();
    for number in 0..6 {
        runs.extend(offered(&mut rig, &format!("b{number}"), 'b', if number == 5 { 9 } else { 5 }));
    }
    runs.extend(offered(&mut rig, "c0", 'c', 1));
    runs.extend(offered(&mut rig, "c1", 'c', 5));
    let mut order = Vec::new();
    while let Some((name, run)) = runs.first().cloned() {
        runs.remove(0);
        order.push(name.clone());
        runs.extend(begun(&rig.ended(&name, run, Outcome::Completed)));
    }
    assert_eq!(order, ["b0", "b1", "c1", "b5", "c0", "b2", "b3", "b4"]);
}

#[test]
fn what_has_waited_long_enough_goes_before_what_is_urgent() {
    let config = DispatchConfig { slots: 1, queue: 9, ageing: ms(1_000), ..config() };
    let mut rig = Rig::synced(config, "b");
    let run = begun(&rig.offered("first", 'b', 1, false))[0].1;
    rig.offer(Offered { priority: 1, ..offer("patient", 'b', 1, false) });
    rig.pass(ms(9_500));
    rig.offer(Offered { priority: 10, ..offer("urgent", 'b', 1, false) });
    let next = begun(&rig.ended("first", run, Outcome::Completed));
    assert_eq!(next[0].0, "patient");
}

#[test]
fn a_claim_waits_for_the_grace_time_asks_around_and_settles_before_it_runs() {
    let mut rig = Rig::synced(config(), "bc");
    rig.task(facts("t", 'b'));
    assert_eq!(rig.pass(ms(60_000)), [], "the requester is there");
    rig.on(Input::Peer { node: node('b'), state: PeerState::Gone });
    assert_eq!(rig.pass(ms(29_900)), []);
    assert_eq!(rig.pass(ms(200)), [Output::Rank { task: id("t") }]);
    assert!(asks(&rig.ranked("t", "a")), "the only one has no one to wait for");
    let seen = Input::Answers { task: id("t"), requester_seen: true, running: false, unanswered: Vec::new() };
    assert_eq!(rig.on(seen), [], "somebody sees it");
    let mut outputs = rig.pass(ms(40_000));
    assert_eq!(outputs, [Output::Rank { task: id("t") }]);
    outputs = rig.ranked("t", "a");
    assert!(asks(&outputs));
    let outputs = rig.on(nobody("t"));
    assert!(matches!(outputs[..], [Output::Grant { epoch: Epoch(1), by: GrantedBy::SelfClaim, .. }]), "{outputs:?}");
    assert!(rig.dispatcher.answer(&id("t"), None).running, "others are told");
    assert_eq!(rig.stored("t", 1), []);
    rig.task(TaskFacts { claims: 1, ..granted(facts("t", 'b'), 1, 'a', GrantedBy::SelfClaim) });
    assert_eq!(begun(&rig.pass(ms(1_900))), []);
    assert_eq!(begun(&rig.pass(ms(200))).len(), 1);
}

#[test]
fn of_two_claims_at_once_the_one_that_lost_does_not_run() {
    let mut rig = Rig::synced(config(), "c");
    rig.task(facts("t", 'b'));
    rig.pass(ms(31_000));
    rig.ranked("t", "a");
    rig.on(nobody("t"));
    rig.stored("t", 1);
    let mut other = TaskFacts { claims: 2, ..granted(facts("t", 'b'), 1, 'c', GrantedBy::SelfClaim) };
    other.grant.as_mut().unwrap().hash = "another".to_owned();
    rig.task(other);
    assert_eq!(begun(&rig.pass(ms(20_000))), []);
}

#[test]
fn who_runs_a_task_of_a_requester_that_died_goes_on_with_it_by_a_claim() {
    let mut rig = Rig::synced(config(), "bc");
    rig.task(granted(facts("t", 'b'), 1, 'a', GrantedBy::Requester));
    let run = begun(&rig.offered("t", 'b', 1, false))[0].1;
    rig.on(Input::Peer { node: node('b'), state: PeerState::Gone });
    rig.pass(ms(20_000));
    assert!(!publishes(&rig.ended("t", run, Outcome::Completed)));
    rig.pass(ms(10_100));
    assert!(asks(&rig.ranked("t", "cabd")), "it is the first, whatever its rank");
    rig.on(nobody("t"));
    rig.stored("t", 2);
    rig.task(TaskFacts { claims: 1, ..granted(facts("t", 'b'), 2, 'a', GrantedBy::SelfClaim) });
    let outputs = rig.pass(ms(2_000));
    assert_eq!(begun(&outputs), [], "it has been run");
    let publish =
        |output: &Output| matches!(output, Output::Publish { epoch: Epoch(2), run: same, .. } if *same == run);
    assert!(outputs.iter().any(publish), "{outputs:?}");
}

#[test]
fn a_claimant_that_is_gone_is_superseded_and_each_further_claim_waits_twice_as_long() {
    let mut waits = Vec::new();
    for claims in 1..=4 {
        let mut rig = Rig::synced(config(), "bc");
        rig.on(Input::Peer { node: node('b'), state: PeerState::Gone });
        rig.task(TaskFacts { claims, ..granted(facts("t", 'b'), 1, 'c', GrantedBy::SelfClaim) });
        rig.on(Input::Peer { node: node('c'), state: PeerState::Gone });
        let begin = rig.now;
        while rig.pass(ms(500)).is_empty() {}
        waits.push((rig.now - begin).as_secs());
    }
    assert_eq!(waits, [30, 30, 90, 210]);
}

#[test]
fn a_node_that_drains_hands_back_what_waits_and_ends_what_runs_after_the_grace_time() {
    let mut rig = Rig::synced(config(), "b");
    for number in 0..3 {
        rig.offered(&format!("t{number}"), 'b', 1, false);
    }
    let outputs = rig.on(Input::Drain { grace: ms(2_000) });
    assert_eq!(outputs, [Output::HandBack { task: id("t2"), epoch: Epoch(1), requester: node('b') }]);
    assert_eq!(declined(&rig.offered("t3", 'b', 1, false)), Some(Decline::Draining));
    let outputs = rig.pass(ms(2_000));
    let aborted: Vec<RunId> = outputs
        .iter()
        .filter_map(|output| match output {
            Output::Abort { run, .. } => Some(*run),
            _ => None,
        })
        .collect();
    assert_eq!(aborted.len(), 2);
    assert!(!outputs.contains(&Output::Drained), "they have not stopped");
    rig.ended("t0", aborted[0], Outcome::HandedBack);
    assert_eq!(rig.ended("t1", aborted[1], Outcome::HandedBack), [Output::Drained]);
}

#[test]
fn an_own_task_runs_here_without_an_offer() {
    let mut rig = Rig::synced(config(), "");
    rig.task(facts("t", 'a'));
    rig.ranked("t", "a");
    let run = begun(&rig.stored("t", 1))[0].1;
    rig.task(granted(facts("t", 'a'), 1, 'a', GrantedBy::Requester));
    // There is no lease between a node and itself.
    rig.pass(ms(100_000));
    assert!(publishes(&rig.ended("t", run, Outcome::Completed)));
}
