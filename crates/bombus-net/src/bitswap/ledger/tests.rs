use cid::multihash::Multihash;
use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const LIMITS: LedgerLimits = LedgerLimits { wants: 4, memory: Duration::from_secs(30), bytes_per_second: 1_000 };

fn cid(number: u8) -> Cid {
    Cid::new_v1(0x71, Multihash::wrap(0x12, &[number; 32]).unwrap())
}

fn want(number: u8) -> Want {
    Want { cid: cid(number), priority: 1, is_cancel: false, wants_block: true, tell_absent: true }
}

fn cancel(number: u8) -> Want {
    Want { is_cancel: true, ..want(number) }
}

fn wanting(now: Instant, numbers: &[u8]) -> Ledger {
    let mut ledger = Ledger::new(LIMITS, now);
    assert_eq!(ledger.take(now, numbers.iter().map(|number| want(*number)).collect(), false), 0);
    ledger
}

fn numbers(lookups: &[Lookup]) -> Vec<u8> {
    lookups.iter().map(|lookup| lookup.cid.hash().digest()[0]).collect()
}

#[test]
fn a_flood_of_wants_is_refused_beyond_the_limit() {
    let now = Instant::now();
    let mut ledger = Ledger::new(LIMITS, now);
    assert_eq!(ledger.take(now, (0..100).map(want).collect(), false), 96);
    assert_eq!(ledger.due(now, 100).len(), 4);
    assert_eq!(ledger.take(now, (50..100).map(want).collect(), false), 50, "those that are looked up count too");
    assert_eq!(ledger.take(now, (50..100).map(want).collect(), true), 46, "a full list takes the place of the others");
}

#[test]
fn what_is_important_comes_first_then_what_came_first() {
    let now = Instant::now();
    let mut ledger = Ledger::new(LIMITS, now);
    let urgent = Want { priority: 9, ..want(3) };
    ledger.take(now, vec![want(1), want(2), urgent], false);
    assert_eq!(numbers(&ledger.due(now, 2)), [3, 1]);
    assert_eq!(numbers(&ledger.due(now, 2)), [2]);
}

#[test]
fn what_is_not_here_is_looked_for_again_more_and_more_rarely_and_then_forgotten() {
    let start = Instant::now();
    let mut ledger = wanting(start, &[1]);
    let (mut now, mut pauses, mut told) = (start, Vec::new(), 0);
    while let Some(due) = ledger.next_due() {
        pauses.push((due - now).as_millis());
        now = due;
        let lookup = ledger.due(now, 1)[0];
        told += usize::from(lookup.tell_absent);
        ledger.settle(now, &lookup, Outcome::Absent);
    }
    assert_eq!(pauses, [0, 50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800]);
    assert_eq!(told, 1, "the peer is told once");
    assert!(ledger.is_empty());
}

#[test]
fn what_comes_later_is_sent_to_who_wanted_it() {
    let now = Instant::now();
    let mut ledger = wanting(now, &[1]);
    let lookup = ledger.due(now, 1)[0];
    ledger.settle(now, &lookup, Outcome::Absent);
    let lookup = ledger.due(now + SECOND, 1)[0];
    ledger.settle(now + SECOND, &lookup, Outcome::Sent);
    assert!(ledger.is_empty() && ledger.next_due().is_none());
}

#[test]
fn who_asks_again_is_told_again() {
    let now = Instant::now();
    let mut ledger = wanting(now, &[1]);
    let lookup = ledger.due(now, 1)[0];
    ledger.settle(now, &lookup, Outcome::Absent);
    ledger.take(now, vec![want(1)], false);
    assert!(ledger.due(now, 1)[0].tell_absent);
}

#[test]
fn a_want_that_is_taken_back_is_not_looked_up() {
    let now = Instant::now();
    let mut ledger = wanting(now, &[1, 2]);
    ledger.take(now, vec![cancel(1)], false);
    let lookups = ledger.due(now, 9);
    assert_eq!(numbers(&lookups), [2]);
    ledger.take(now, vec![cancel(2)], false);
    ledger.settle(now, &lookups[0], Outcome::Absent);
    assert!(ledger.is_empty(), "it stays taken back");
}

#[test]
fn what_has_no_room_goes_with_the_next_message() {
    let now = Instant::now();
    let mut ledger = wanting(now, &[1]);
    let lookup = ledger.due(now, 1)[0];
    assert_eq!(ledger.due(now, 1), []);
    ledger.settle(now, &lookup, Outcome::Later);
    assert_eq!(ledger.due(now, 1), [lookup]);
}

#[test]
fn who_only_asked_whether_it_is_here_may_still_want_the_block() {
    let now = Instant::now();
    let mut ledger = Ledger::new(LIMITS, now);
    ledger.take(now, vec![Want { wants_block: false, ..want(1) }], false);
    let lookup = ledger.due(now, 1)[0];
    assert!(!lookup.wants_block);
    ledger.take(now, vec![want(1)], false);
    ledger.settle(now, &lookup, Outcome::Told);
    assert!(ledger.due(now, 1)[0].wants_block);
}

#[test]
fn a_peer_gets_no_more_than_its_share() {
    let now = Instant::now();
    let mut ledger = wanting(now, &[1, 2]);
    ledger.spend(now, 4_000);
    assert_eq!(ledger.due(now, 1).len(), 1, "four seconds' worth goes at once");
    ledger.spend(now, 2_000);
    assert_eq!(ledger.due(now + SECOND, 1), []);
    assert_eq!(ledger.next_due(), Some(now + 2 * SECOND));
    assert_eq!(ledger.due(now + 2 * SECOND, 1).len(), 1);
}

proptest! {
    /// Whatever a peer says and whatever becomes of it, what is remembered of it is bounded, and nothing is forgotten in the queue.
    #[test]
    fn its_memory_is_bounded(steps in proptest::collection::vec((0..6_u8, 0..8_u8, 0..40_u64), 0..200)) {
        let mut now = Instant::now();
        let mut ledger = Ledger::new(LIMITS, now);
        let mut flying: Vec<Lookup> = Vec::new();
        for (step, which, tenths) in steps {
            now += Duration::from_millis(100 * tenths);
            match step {
                0 => { ledger.take(now, vec![want(which)], false); }
                1 => { ledger.take(now, vec![want(which), want(which + 1)], true); }
                2 => { ledger.take(now, vec![cancel(which)], false); }
                3 => flying.extend(ledger.due(now, 2)),
                _ => if let Some(lookup) = flying.pop() {
                    let outcome = [Outcome::Sent, Outcome::Absent, Outcome::Later][usize::from(which) % 3];
                    ledger.settle(now, &lookup, outcome);
                },
            }
            prop_assert!(ledger.wants.len() <= LIMITS.wants);
            prop_assert!(ledger.queue.len() <= ledger.wants.len());
            let queued = ledger.wants.values().filter(|owed| owed.place.is_some()).count();
            prop_assert_eq!(queued, ledger.queue.len());
        }
        for lookup in flying {
            ledger.settle(now, &lookup, Outcome::Absent);
        }
        while let Some(due) = ledger.next_due() {
            for lookup in ledger.due(due, 9) {
                ledger.settle(due, &lookup, Outcome::Absent);
            }
        }
        prop_assert!(ledger.is_empty(), "what is not met is forgotten in the end");
    }
}
