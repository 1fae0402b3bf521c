use std::collections::BTreeSet;

use cid::multihash::Multihash;
use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const LIMITS: AskingLimits =
    AskingLimits { asked: 3, wants: 6, silence: Duration::from_secs(10), answer: Duration::from_secs(60) };

fn cid(number: u8) -> Cid {
    Cid::new_v1(0x71, Multihash::wrap(0x12, &[number; 32]).unwrap())
}

fn number(cid: &Cid) -> u8 {
    cid.hash().digest()[0]
}

/// Numbers of what is told, negative where it is taken back.
fn told(entries: &[wire::Entry]) -> Vec<i32> {
    let number = |entry: &wire::Entry| i32::from(entry.cid[4]) * if entry.cancel { -1 } else { 1 };
    entries.iter().map(number).collect()
}

fn numbers(cids: &[Cid]) -> BTreeSet<u8> {
    cids.iter().map(number).collect()
}

fn wanting(numbers: std::ops::RangeInclusive<u8>) -> Asking {
    let mut asking = Asking::new(LIMITS);
    for number in numbers {
        assert_eq!(asking.want(cid(number)), Wanted::New);
    }
    asking
}

#[test]
fn wants_go_together_and_as_many_as_the_peer_may_be_asked_for() {
    let now = Instant::now();
    let mut asking = wanting(1..=5);
    assert_eq!(told(&asking.tell(now)), [1, 2, 3]);
    assert_eq!(told(&asking.tell(now)), [0; 0], "the peer has enough to do");
    assert!(asking.arrived(now, &cid(2)));
    assert!(asking.denied(now, &cid(3)));
    assert_eq!(told(&asking.tell(now)), [-3], "who has not got it is to forget it");
    assert_eq!(told(&asking.tell(now)), [4, 5]);
}

#[test]
fn a_want_is_one_want_and_too_many_are_refused() {
    let mut asking = wanting(1..=6);
    assert_eq!(asking.want(cid(1)), Wanted::Already);
    assert_eq!(asking.want(cid(7)), Wanted::TooMany);
    asking.cancel(&cid(1));
    assert_eq!(asking.want(cid(7)), Wanted::New);
}

#[test]
fn only_what_was_asked_for_counts_as_an_answer() {
    let now = Instant::now();
    let mut asking = wanting(1..=4);
    assert!(!asking.arrived(now, &cid(1)), "it was not asked yet");
    asking.tell(now);
    assert!(!asking.arrived(now, &cid(4)), "that one waits behind the others");
    assert!(!asking.arrived(now, &cid(9)) && !asking.denied(now, &cid(9)));
    assert!(asking.arrived(now, &cid(1)));
    assert!(!asking.arrived(now, &cid(1)), "a second time is one too many");
    asking.cancel(&cid(2));
    assert!(!asking.arrived(now, &cid(2)));
}

#[test]
fn what_was_asked_for_is_taken_back_and_what_waits_is_forgotten() {
    let now = Instant::now();
    let mut asking = wanting(1..=4);
    asking.tell(now);
    asking.cancel(&cid(1));
    asking.cancel(&cid(4));
    // It is wanted again before that was told: the peer hears both, one after the other.
    asking.want(cid(1));
    assert_eq!(told(&asking.tell(now)), [-1]);
    assert_eq!(told(&asking.tell(now)), [1]);
    assert_eq!(told(&asking.tell(now)), [0; 0]);
}

#[test]
fn a_peer_that_never_answers_is_given_up_with_all_that_waits() {
    let now = Instant::now();
    let mut asking = wanting(1..=5);
    asking.tell(now);
    assert!(asking.expire(now + 9 * SECOND).is_empty());
    assert_eq!(numbers(&asking.expire(now + 10 * SECOND)), BTreeSet::from([1, 2, 3, 4, 5]));
    assert_eq!(asking.tell(now + 10 * SECOND).len(), 3, "it is to forget what it was asked for");
    assert!(asking.is_empty());
}

#[test]
fn a_peer_that_answers_has_longer_but_not_for_ever() {
    let start = Instant::now();
    let mut asking = wanting(1..=1);
    asking.tell(start);
    for turn in 1..=6 {
        let now = start + 9 * turn * SECOND;
        asking.want(cid(9));
        asking.tell(now);
        assert!(asking.expire(now).is_empty(), "after {turn} answers");
        assert!(asking.arrived(now, &cid(9)));
    }
    assert_eq!(numbers(&asking.expire(start + 60 * SECOND)), BTreeSet::from([1]));
}

#[test]
fn one_answer_that_does_not_come_ends_nothing_else() {
    let start = Instant::now();
    let mut asking = wanting(1..=4);
    asking.tell(start);
    let later = start + 5 * SECOND;
    assert!(asking.arrived(later, &cid(2)) && asking.arrived(later, &cid(3)));
    assert_eq!(told(&asking.tell(later + 4 * SECOND)), [4]);
    assert_eq!(numbers(&asking.expire(later + 10 * SECOND)), BTreeSet::from([1]), "the other was asked for later");
    assert!(asking.arrived(later + 11 * SECOND, &cid(4)));
}

#[test]
fn of_a_peer_that_is_gone_everything_ends() {
    let now = Instant::now();
    let mut asking = wanting(1..=5);
    asking.tell(now);
    asking.cancel(&cid(1));
    assert_eq!(numbers(&asking.fail()), BTreeSet::from([2, 3, 4, 5]));
    assert!(asking.is_empty() && !asking.has_news() && asking.tell(now).is_empty());
}

proptest! {
    /// Whatever happens in whichever order, each want ends once, and the peer is never asked for more than it may be.
    #[test]
    fn every_want_ends_once(steps in proptest::collection::vec((0..6_u8, 0..10_u8, 0..12_u64), 0..200)) {
        let mut now = Instant::now();
        let mut asking = Asking::new(LIMITS);
        let mut open = BTreeSet::new();
        for (step, which, seconds) in steps {
            now += Duration::from_secs(seconds / 4);
            match step {
                0 | 1 => match asking.want(cid(which)) {
                    Wanted::New => prop_assert!(open.insert(which)),
                    Wanted::Already => prop_assert!(open.contains(&which)),
                    Wanted::TooMany => prop_assert!(open.len() >= LIMITS.wants),
                },
                2 => if asking.arrived(now, &cid(which)) { prop_assert!(open.remove(&which)) },
                3 => if asking.denied(now, &cid(which)) { prop_assert!(open.remove(&which)) },
                4 => { asking.cancel(&cid(which)); open.remove(&which); }
                _ => { asking.tell(now); }
            }
            prop_assert!(asking.asked() <= LIMITS.asked);
            for over in asking.expire(now) {
                prop_assert!(open.remove(&number(&over)));
            }
            prop_assert_eq!(asking.wanted.len(), open.len());
        }
        prop_assert_eq!(numbers(&asking.fail()), open);
    }
}
