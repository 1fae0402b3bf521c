//! Inputs of all kinds in any order, most of them about something that is over.

use std::collections::{BTreeMap, BTreeSet};

use bombus_testkit::simulator::{SimulatorRandom, for_each_seed};

use super::rig::{Rig, answered, begun, config, facts, granted, id, ms, node, offer};
use crate::liveness::PeerState;
use crate::tasks::dispatch::{Candidate, Decline, Input, Outcome, Output, RunId, Write};
use crate::tasks::{Epoch, GrantedBy, TaskId};

fn any_input(random: &mut SimulatorRandom, runs: &[(String, RunId)]) -> Input {
    let name = ["t0", "t1", "t2", "t3"][random.index(4)];
    let task = id(name);
    let epoch = Epoch(random.index(5) as u64);
    let letter = ['a', 'b', 'c'][random.index(3)];
    let outcome = match random.index(3) {
        0 => Outcome::Completed,
        1 => Outcome::Failed { reason: "no".to_owned(), retry: random.chance(0.7) },
        _ => Outcome::HandedBack,
    };
    let run = if runs.is_empty() { RunId(99) } else { runs[random.index(runs.len())].1 };
    let reasons = [Decline::Busy, Decline::Lost { began: true }, Decline::Unreachable, Decline::Over, Decline::NotAble];
    match random.index(26) {
        0..=4 => {
            let mut facts = facts(name, if name < "t2" { 'a' } else { 'b' });
            if random.chance(0.6) {
                let by = if random.chance(0.5) { GrantedBy::Requester } else { GrantedBy::SelfClaim };
                facts = granted(facts, epoch.0.max(1), letter, by);
            }
            facts.released = Epoch(random.index(3) as u64);
            facts.highest = facts.highest.max(facts.released);
            facts.cancelling = random.chance(0.05);
            facts.settled = random.chance(0.05);
            if random.chance(0.1) {
                facts = answered(facts, epoch.0);
            }
            Input::Task(Box::new(facts))
        }
        5 => Input::Synced,
        6 => {
            let state = [PeerState::Alive, PeerState::Suspect, PeerState::Gone][random.index(3)];
            Input::Peer { node: node(letter), state }
        }
        7 => Input::Candidates,
        8 | 9 => {
            let candidates = "abc".chars().filter(|_| random.chance(0.6)).collect::<Vec<_>>();
            let candidate = |letter: char| Candidate { node: node(letter), slots: 1, queue: 1 };
            Input::Ranked { task, candidates: candidates.into_iter().map(candidate).collect() }
        }
        10 | 11 => Input::Stored { task, epoch, grant: format!("grant-{epoch}") },
        12 => {
            let write =
                [Write::Grant(epoch), Write::Release(epoch), Write::Settle, Write::Result(run)][random.index(4)];
            Input::StoreFailed { task, write }
        }
        13 => Input::Accepted { task, epoch },
        14 => Input::Declined { task, epoch, reason: reasons[random.index(5)] },
        15 => Input::Renewed { task, epoch, beat: 1 },
        16 => Input::Broken { task, epoch },
        17 => Input::Finished { task, epoch, outcome },
        18 => Input::Offered(Box::new(offer(name, 'b', epoch.0, random.chance(0.5)))),
        19 => Input::Acknowledged { task, epoch, beat: random.index(4) as u32 },
        20 => Input::Revoked { task, epoch },
        21 => Input::Published { task, run },
        22 => {
            let (requester_seen, running) = (random.chance(0.3), random.chance(0.3));
            Input::Answers { task, requester_seen, running, unanswered: Vec::new() }
        }
        23 => Input::Submit(Box::new(facts(name, 'a'))),
        24 => Input::Withdrawn { task },
        _ if random.chance(0.2) => Input::Cancel { task },
        _ => Input::Began { task, epoch },
    }
}

#[test]
fn whatever_comes_slots_are_kept_runs_are_told_apart_and_epochs_only_grow() {
    for_each_seed(0..300, |seed| {
        let mut random = SimulatorRandom::new(seed);
        let mut rig = Rig::new(config());
        let mut runs: Vec<(String, RunId)> = Vec::new();
        let mut known = BTreeSet::new();
        let mut epochs: BTreeMap<String, Epoch> = BTreeMap::new();
        let mut submitted: BTreeSet<TaskId> = BTreeSet::new();
        for _ in 0..1_500 {
            let mut outputs = match random.index(4) {
                0 => {
                    let time = ms(random.index(4_000) as u64);
                    rig.pass(time)
                }
                1 if !runs.is_empty() => {
                    let index = random.index(runs.len());
                    let (name, run) = runs.remove(index);
                    rig.ended(&name, run, Outcome::Completed)
                }
                _ => {
                    let input = any_input(&mut random, &runs);
                    match &input {
                        Input::Task(facts) if facts.settled => drop(epochs.remove(facts.task.as_str())),
                        // What is in no store has no epochs.
                        Input::Withdrawn { task } => drop(epochs.remove(task.as_str())),
                        Input::Submit(facts) => drop(submitted.insert(facts.task.clone())),
                        _ => {}
                    }
                    rig.on(input)
                }
            };
            for (name, run) in begun(&outputs) {
                assert!(known.insert(run), "a run begins once");
                runs.push((name, run));
            }
            assert!(runs.len() <= 2, "seed {seed}: {runs:?}");
            for output in outputs.drain(..) {
                if let Output::Submit { task } | Output::Grant { task, by: GrantedBy::Requester, .. } = &output {
                    submitted.remove(task);
                }
                if let Output::Grant { task, epoch, by: GrantedBy::Requester, .. } = output {
                    let before = epochs.insert(task.to_string(), epoch);
                    assert!(before.is_none_or(|before| before < epoch), "seed {seed}: {task} {before:?} {epoch}");
                }
            }
            assert!(rig.dispatcher.tasks() <= 4);
        }
        for output in rig.pass(ms(2_000)) {
            if let Output::Submit { task } | Output::Grant { task, .. } = output {
                submitted.remove(&task);
            }
        }
        assert!(submitted.is_empty(), "seed {seed}: nobody is told whether {submitted:?} are written");
    });
}
