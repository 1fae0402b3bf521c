use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn stamp(writer: u8) -> Stamp {
    Stamp { writer: [writer; 33], identity: format!("id{writer}").into() }
}

fn links(name: &str, time: u64, next: &[Hash]) -> Links {
    Links { hash: Hash::of(name.as_bytes()), next: next.to_vec(), refs: vec![], time }
}

fn everyone() -> Log {
    Log::new(Admission::Everyone)
}

/// Makes a log of blocks that had joined before, in their order.
fn load(admission: Admission, blocks: impl IntoIterator<Item = Block>) -> Log {
    let mut log = Log::new(admission);
    for (links, stamp) in blocks {
        log.restore(&links, stamp);
    }
    log.judge();
    log
}

fn hashes<'a>(positions: impl Iterator<Item = &'a Position>) -> Vec<Hash> {
    positions.map(|position| position.hash).collect()
}

/// A block of the pure tests: what a log needs of an entry.
type Block = (Links, Result<Stamp, Refusal>);

/// A replica of the pure tests: it appends, and takes over what another has.
#[derive(Clone)]
struct Replica {
    log: Log,
    blocks: BTreeMap<Hash, Block>,
    /// In the order in which they joined.
    joined: Vec<Hash>,
    writer: u8,
    counter: u32,
}

impl Replica {
    fn new(writer: u8) -> Self {
        Self { log: everyone(), blocks: BTreeMap::new(), joined: Vec::new(), writer, counter: 0 }
    }

    fn append(&mut self, refusal: Option<Refusal>) {
        let draft = self.log.draft(1).unwrap();
        self.write(draft, refusal);
    }

    /// Writes on top of everything, whether or not it counts, as peers in JavaScript do.
    fn script(&mut self) {
        let next = self.ends();
        let time = next.iter().map(|hash| self.blocks[hash].0.time).max().unwrap_or_default().saturating_add(1);
        if time <= CLOCK_MAX {
            let joined = self.write(Draft { time, next, refs: vec![] }, None);
            assert!(matches!(joined, Joined::Admitted(_)), "an honest entry is {joined:?}");
        }
    }

    fn write(&mut self, draft: Draft, refusal: Option<Refusal>) -> Joined {
        self.counter += 1;
        let name = format!("{}/{}", self.writer, self.counter);
        let links = Links { hash: Hash::of(name.as_bytes()), next: draft.next, refs: draft.refs, time: draft.time };
        let stamp = refusal.map_or_else(|| Ok(stamp(self.writer)), Err);
        let joined = self.log.join(&links, stamp.clone()).unwrap();
        self.joined.push(links.hash);
        self.blocks.insert(links.hash, (links, stamp));
        joined
    }

    /// Returns the blocks that no other follows.
    fn ends(&self) -> Vec<Hash> {
        let followed: HashSet<Hash> = self.blocks.values().flat_map(|(links, _)| links.next.clone()).collect();
        self.blocks.keys().filter(|hash| !followed.contains(hash)).copied().collect()
    }

    /// Takes over all blocks of another in an order given by `seed`, as its ancestors allow.
    fn join(&mut self, other: &Self, seed: u64) {
        let mut waiting: Vec<&Block> = other.blocks.values().collect();
        waiting.sort_by_key(|(links, _)| Hash::of(&[&seed.to_be_bytes()[..], links.hash.digest()].concat()));
        while !waiting.is_empty() {
            waiting.retain(|(links, stamp)| match self.log.join(links, stamp.clone()) {
                Ok(Joined::Known) => false,
                Ok(_) => {
                    self.joined.push(links.hash);
                    false
                }
                Err(Missing(_)) => true,
            });
        }
        self.blocks.extend(other.blocks.clone());
    }

    fn state(&self) -> (Vec<Hash>, Vec<Hash>, BTreeMap<Refusal, u64>) {
        (hashes(self.log.newest_first()), hashes(self.log.heads()), self.log.refused().clone())
    }

    /// Walks from the heads as the protocol says: always the greatest of those named so far.
    fn walk(&self) -> Vec<Hash> {
        let mut pool: BTreeSet<Position> = self.log.heads().copied().collect();
        let mut seen: BTreeSet<Hash> = pool.iter().map(|position| position.hash).collect();
        let mut walked = Vec::new();
        while let Some(position) = pool.pop_last() {
            walked.push(position.hash);
            let mut next = self.blocks[&position.hash].0.next.clone();
            while let Some(hash) = next.pop() {
                match self.log.position(&hash) {
                    Some(position) if seen.insert(hash) => drop(pool.insert(position)),
                    None => next.extend(&self.blocks[&hash].0.next),
                    Some(_) => {}
                }
            }
        }
        walked
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Forge(usize),
    /// Writes as JavaScript does.
    Script(usize),
    /// Writes on top of everything, and states any time.
    Skew(usize, u64),
    Join(usize, usize, u64),
}

fn steps(replicas: usize) -> impl Strategy<Value = Vec<Step>> {
    let times = prop_oneof![0..3000_u64, Just(1 << 40), Just(CLOCK_MAX - 1), Just(CLOCK_MAX), Just(u64::MAX)];
    let step = prop_oneof![
        4 => (0..replicas).prop_map(Step::Append),
        1 => (0..replicas).prop_map(Step::Forge),
        1 => (0..replicas).prop_map(Step::Script),
        1 => (0..replicas, times).prop_map(|(at, time)| Step::Skew(at, time)),
        2 => (0..replicas, 0..replicas, any::<u64>()).prop_map(|(into, from, seed)| Step::Join(into, from, seed)),
    ];
    proptest::collection::vec(step, 0..60)
}

fn run(count: usize, steps: Vec<Step>) -> Vec<Replica> {
    let mut replicas: Vec<Replica> = (1..=count).map(|writer| Replica::new(u8::try_from(writer).unwrap())).collect();
    for step in steps {
        match step {
            Step::Append(at) => replicas[at].append(None),
            Step::Forge(at) => replicas[at].append(Some(Refusal::Signature)),
            Step::Script(at) => replicas[at].script(),
            Step::Skew(at, time) => {
                let next = replicas[at].ends();
                replicas[at].write(Draft { time, next, refs: vec![] }, None);
            }
            Step::Join(into, from, seed) => {
                let other = replicas[from].clone();
                replicas[into].join(&other, seed);
            }
        }
    }
    replicas
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn replicas_converge_whatever_the_order(steps in steps(4), seed: u64) {
        let mut replicas = run(4, steps);
        let all = replicas.clone();
        for (number, replica) in replicas.iter_mut().enumerate() {
            for turn in 0..all.len() {
                replica.join(&all[(turn + number) % all.len()], seed ^ turn as u64);
            }
        }
        for replica in &replicas {
            prop_assert_eq!(replica.state(), replicas[0].state());
        }
    }

    #[test]
    fn join_is_commutative_associative_and_idempotent(steps in steps(3), seed: u64) {
        let replicas = run(3, steps);
        let [a, b, c] = &replicas[..] else { unreachable!() };
        let joined = |left: &Replica, right: &Replica| {
            let mut joined = left.clone();
            joined.join(right, seed);
            joined
        };
        prop_assert_eq!(joined(a, b).state(), joined(b, a).state());
        prop_assert_eq!(joined(&joined(a, b), c).state(), joined(a, &joined(b, c)).state());
        prop_assert_eq!(joined(a, a).state(), a.state());
        prop_assert_eq!(joined(&joined(a, b), b).state(), joined(a, b).state());
    }

    #[test]
    fn the_order_is_that_of_a_walk_from_the_heads(steps in steps(3)) {
        for replica in run(3, steps) {
            prop_assert_eq!(replica.walk(), hashes(replica.log.newest_first()));
        }
    }

    #[test]
    fn a_loaded_log_is_the_one_that_was_joined(steps in steps(3)) {
        for replica in run(3, steps) {
            let loaded = load(Admission::Everyone, replica.joined.iter().map(|hash| replica.blocks[hash].clone()));
            prop_assert_eq!(hashes(loaded.newest_first()), hashes(replica.log.newest_first()));
            prop_assert_eq!(hashes(loaded.heads()), hashes(replica.log.heads()));
            prop_assert_eq!(loaded.draft(1), replica.log.draft(1));
            prop_assert_eq!(loaded.refused(), replica.log.refused());
        }
    }

    #[test]
    fn what_is_written_next_is_the_newest_everywhere_whatever_times_were_stated(steps in steps(3), seed: u64) {
        let mut replicas = run(3, steps);
        let mut writer = replicas.swap_remove(0);
        for other in &replicas {
            writer.join(other, seed);
        }
        writer.append(None);
        let last = *writer.joined.last().unwrap();
        for mut replica in replicas {
            replica.join(&writer, !seed);
            prop_assert_eq!(replica.log.newest_first().next().map(|position| position.hash), Some(last));
            prop_assert_eq!(hashes(replica.log.heads()), [last]);
        }
    }
}

#[test]
fn a_clock_far_ahead_or_behind_does_not_count() {
    let mut log = everyone();
    let first = links("first", 5, &[]);
    assert!(matches!(log.join(&first, Ok(stamp(1))), Ok(Joined::Admitted(_))));
    for (name, time, counts) in [
        ("same", 5, false),
        ("before", 4, false),
        ("next", 6, true),
        ("most", 5 + CLOCK_STEP_MAX, true),
        ("beyond", 6 + CLOCK_STEP_MAX, false),
        ("end of time", u64::MAX, false),
    ] {
        let joined = log.join(&links(name, time, &[first.hash]), Ok(stamp(2))).unwrap();
        assert_eq!(matches!(joined, Joined::Admitted(_)), counts, "{name}");
        assert_eq!(joined == Joined::Opaque(Refusal::Clock), !counts, "{name}");
    }
    assert_eq!(log.join(&links("zero", 0, &[]), Ok(stamp(2))), Ok(Joined::Opaque(Refusal::Clock)));
    assert_eq!(log.draft(1).unwrap().time, 6 + CLOCK_STEP_MAX, "refused times do not move our clock");
}

#[test]
fn what_honest_peers_wrote_on_top_of_a_forged_entry_counts() {
    let mut log = everyone();
    let base = links("base", 1, &[]);
    log.join(&base, Ok(stamp(1))).unwrap();
    let forged = links("forged", 2, &[base.hash]);
    assert_eq!(log.join(&forged, Err(Refusal::Key)), Ok(Joined::Opaque(Refusal::Key)));
    assert_eq!(hashes(log.heads()), [base.hash], "what does not count is no head and hides none");
    assert!(!log.draft(1).unwrap().next.contains(&forged.hash));

    let mut last = forged.hash;
    for number in 0..100 {
        let links = links(&format!("honest {number}"), 3 + number, &[last]);
        last = links.hash;
        assert!(matches!(log.join(&links, Ok(stamp(2))), Ok(Joined::Admitted(_))));
    }
    assert_eq!(hashes(log.heads()), [last], "the base is covered across the forged entry");
    assert_eq!(log.len(), 101);
    assert_eq!(log.refused(), &BTreeMap::from([(Refusal::Key, 1)]));
    let draft = log.draft(1).unwrap();
    assert!(!draft.next.contains(&forged.hash) && !draft.refs.contains(&forged.hash));
}

#[test]
fn two_entries_do_not_bring_the_clock_to_its_end() {
    let mut log = everyone();
    let base = links("base", 1, &[]);
    log.join(&base, Ok(stamp(1))).unwrap();
    let ahead = links("ahead", CLOCK_MAX - 1, &[base.hash]);
    let on_top = links("on top", CLOCK_MAX, &[ahead.hash]);
    assert_eq!(log.join(&ahead, Ok(stamp(2))), Ok(Joined::Opaque(Refusal::Clock)));
    let Ok(Joined::Admitted(position)) = log.join(&on_top, Ok(stamp(2))) else {
        panic!("JavaScript might have written it")
    };
    assert_eq!(position.time, 2, "it counts above what counts, and not above what does not");

    let Draft { time, next, refs } = log.draft(1).unwrap();
    let after = Links { refs, ..links("after", time, &next) };
    assert_eq!((time, &next[..]), (3, &[on_top.hash][..]));
    assert!(matches!(log.join(&after, Ok(stamp(1))), Ok(Joined::Admitted(_))));
    assert_eq!(hashes(log.newest_first()), [after.hash, on_top.hash, base.hash]);
}

#[test]
fn two_entries_do_not_turn_the_clock_back() {
    let mut log = everyone();
    let base = links("base", 500, &[]);
    log.join(&base, Ok(stamp(1))).unwrap();
    let behind = links("behind", 1, &[base.hash]);
    let on_top = links("on top", 2, &[behind.hash]);
    assert_eq!(log.join(&behind, Ok(stamp(2))), Ok(Joined::Opaque(Refusal::Clock)));
    log.join(&on_top, Ok(stamp(2))).unwrap();
    assert_eq!(hashes(log.newest_first()), [on_top.hash, base.hash]);
    assert_eq!(log.position(&on_top.hash).unwrap().time, 501);
    assert_eq!(log.draft(1).unwrap().time, 502, "what is written next is newer than all that is there");
}

#[test]
fn what_is_written_after_a_clock_far_ahead_is_newer_for_javascript_too() {
    let mut log = everyone();
    let ahead = links("ahead", 1 << 40, &[]);
    let on_top = links("on top", (1 << 40) + 1, &[ahead.hash]);
    log.join(&ahead, Ok(stamp(2))).unwrap();
    log.join(&on_top, Ok(stamp(1))).unwrap();
    let draft = log.draft(1).unwrap();
    assert_eq!(draft.time, (1 << 40) + 2, "JavaScript orders by the times that are stated");
    let after = links("after", draft.time, &draft.next);
    let Ok(Joined::Admitted(position)) = log.join(&after, Ok(stamp(2))) else { panic!("it counts") };
    assert_eq!(position.time, 2);
}

#[test]
fn two_entries_of_one_time_and_key_are_ordered_by_hash() {
    let (left, right) = (links("left", 1, &[]), links("right", 1, &[]));
    let order = |blocks: [&Links; 2]| {
        let mut log = everyone();
        for links in blocks {
            log.join(links, Ok(stamp(1))).unwrap();
        }
        hashes(log.newest_first())
    };
    assert_eq!(order([&left, &right]), order([&right, &left]));
    assert_eq!(order([&left, &right])[0], left.hash.max(right.hash));
}

#[test]
fn what_follows_something_unknown_does_not_join() {
    let (unknown, reference) = (Hash::of(b"unknown"), Hash::of(b"reference"));
    let mut log = everyone();
    let links = Links { refs: vec![reference], ..links("entry", 1, &[unknown]) };
    assert_eq!(log.join(&links, Ok(stamp(1))), Err(Missing(vec![unknown, reference])));
    assert!(log.is_empty() && !log.contains(&links.hash));
}

#[test]
fn a_change_of_admission_gives_what_a_fresh_replica_has() {
    let chain = [links("a", 1, &[]), links("b", 2, &[Hash::of(b"a")]), links("c", 3, &[Hash::of(b"b")])];
    let log_under = |admission: Admission| {
        let mut log = Log::new(admission);
        for (number, links) in chain.iter().enumerate() {
            log.join(links, Ok(stamp(u8::try_from(number % 2).unwrap()))).unwrap();
        }
        log
    };
    let only_first = Admission::of_list(["id0"]);
    let mut log = log_under(Admission::Everyone);
    assert!(log.readmit(only_first.clone()));
    assert!(!log.readmit(only_first.clone()));
    let fresh = log_under(only_first);
    assert_eq!(hashes(log.newest_first()), [chain[2].hash, chain[0].hash]);
    assert_eq!(hashes(log.newest_first()), hashes(fresh.newest_first()));
    assert_eq!(hashes(log.heads()), hashes(fresh.heads()));
    assert_eq!(log.refused(), fresh.refused());
    log.readmit(Admission::of_list(["someone", "*"]));
    assert_eq!(log.len(), 3);
}

#[test]
fn heads_that_an_entry_does_not_name_stay_heads_until_another_one_names_them() {
    let mut log = everyone();
    for writer in 1..=40_u8 {
        log.join(&links(&writer.to_string(), 1, &[]), Ok(stamp(writer))).unwrap();
    }
    let mut heads = Vec::new();
    for number in 0..4 {
        let Draft { time, next, refs } = log.draft_within(1, 16).unwrap();
        assert!(next.len() <= 16 && refs.len() <= 16);
        let own = Links { refs, ..links(&format!("own {number}"), time, &next) };
        assert!(matches!(log.join(&own, Ok(stamp(50))), Ok(Joined::Admitted(_))));
        assert_eq!(log.newest_first().next().map(|position| position.hash), Some(own.hash));
        heads.push(log.heads().len());
    }
    assert_eq!(heads, [25, 10, 1, 1]);
    assert_eq!(log.len(), 44);
}

#[test]
fn the_clock_ends_where_javascript_stops_counting() {
    let at = |time: u64| {
        let mut log = everyone();
        let (hash, own) = (Hash::of(b"last"), Ok(log.intern(stamp(1))));
        log.nodes.insert(hash, Node { time: Time { stated: time, counted: time }, next: Next::new(&[]), own });
        log.judge();
        log
    };
    assert_eq!(at(CLOCK_MAX).draft(1), Err(ClockExhausted));
    assert_eq!(at(CLOCK_MAX - 1).draft(1).unwrap().time, CLOCK_MAX);
}
