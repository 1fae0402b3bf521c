use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn peer(name: &str) -> Peer {
    Peer::new(name)
}

fn hash(name: &str) -> Hash {
    Hash::of(name.as_bytes())
}

fn block(name: &str, from: &str) -> Block {
    Block { hash: hash(name), bytes: vec![0; 100].into(), peer: Some(peer(from)), joins: true }
}

fn entries(names: &[&str]) -> Vec<(Hash, Kind)> {
    names.iter().map(|name| (hash(name), Kind::Entry)).collect()
}

fn want(peer_name: &str, names: &[&str]) -> Request {
    let mut hashes: Vec<Hash> = names.iter().map(|name| hash(name)).collect();
    hashes.sort();
    Request::Want { peer: peer(peer_name), hashes }
}

fn machine() -> Sync {
    Sync::new(SyncConfig::default())
}

#[test]
fn heads_are_exchanged_at_once_then_again_and_soon_after_a_failure() {
    let mut sync = machine();
    assert!(sync.subscribed(SECOND, peer("a")));
    assert!(!sync.subscribed(SECOND, peer("a")));
    assert_eq!(sync.poll(SECOND), [Request::OpenHeads(peer("a"))]);
    assert_eq!(sync.poll(SECOND), []);
    sync.exchanged(SECOND, &peer("a"), false);
    assert_eq!(sync.deadline(), Some(SECOND + SECOND / 2));
    assert_eq!(sync.poll(2 * SECOND), [Request::OpenHeads(peer("a"))]);
    sync.exchanged(2 * SECOND, &peer("a"), false);
    assert_eq!(sync.deadline(), Some(3 * SECOND), "the pause doubles");
    let mut now = 2 * SECOND;
    let mut pauses = Vec::new();
    for _ in 0..6 {
        sync.exchanged(now, &peer("a"), true);
        let due = sync.deadline().unwrap();
        pauses.push((due - now).as_millis());
        now = due;
        assert_eq!(sync.poll(now), [Request::OpenHeads(peer("a"))]);
    }
    assert_eq!(pauses, [500, 2_000, 8_000, 32_000, 60_000, 60_000], "less and less often");
    assert!(sync.unsubscribed(now, &peer("a")));
    assert_eq!((sync.deadline(), sync.poll(999 * SECOND)), (None, vec![]));
}

#[test]
fn in_a_crowd_peers_take_turns() {
    for peers in [1, 2, 10, 32] {
        let mut sync = machine();
        for number in 0..peers {
            sync.subscribed(Duration::ZERO, peer(&number.to_string()));
        }
        let (mut now, mut begun) = (Duration::ZERO, Vec::new());
        while now < 3_600 * SECOND {
            for request in sync.poll(now) {
                let Request::OpenHeads(peer) = request else { panic!("nothing is missing: {request:?}") };
                sync.exchanged(now, &peer, true);
                begun.push((now, peer));
            }
            now = sync.deadline().unwrap();
        }
        // The first minutes are for those who were just met.
        let settled = &begun[begun.iter().position(|(at, _)| *at > 240 * SECOND).unwrap()..];
        assert!(settled.windows(2).all(|two| two[1].0 - two[0].0 == 60 * SECOND), "with {peers}: {settled:?}");
        for round in settled.chunks_exact(peers) {
            let met: std::collections::BTreeSet<_> = round.iter().map(|(_, peer)| peer).collect();
            assert_eq!(met.len(), peers, "each in its turn");
        }
    }
}

#[test]
fn who_is_asked_by_many_asks_all_of_them_in_the_end() {
    let mut sync = machine();
    for number in 0..5 {
        sync.subscribed(Duration::ZERO, peer(&number.to_string()));
    }
    for second in 0..600 {
        sync.answered(second * SECOND, &peer(&(second % 5).to_string()));
    }
    let due = sync.deadline().unwrap();
    assert!(due <= 600 * SECOND + 5 * 90 * SECOND, "{due:?}");
}

#[test]
fn an_exchange_that_the_peer_began_stands_for_one_of_ones_own() {
    let mut sync = machine();
    sync.subscribed(SECOND, peer("a"));
    assert_eq!(sync.poll(SECOND), [Request::OpenHeads(peer("a"))]);
    for _ in 0..10 {
        sync.exchanged(SECOND, &peer("a"), true);
    }
    // The peer begins one every minute; this side has none to begin.
    for minute in 1..=10 {
        let now = SECOND + minute * 60 * SECOND;
        sync.answered(now - SECOND, &peer("a"));
        assert_eq!(sync.poll(now), []);
    }
    // It falls silent.
    let silent = sync.deadline().unwrap();
    assert_eq!(silent, 600 * SECOND + 90 * SECOND);
    assert_eq!(sync.poll(silent), [Request::OpenHeads(peer("a"))]);
}

#[test]
fn a_missing_block_holds_up_only_what_follows_it() {
    let mut sync = machine();
    assert_eq!(sync.offer(SECOND, block("child", "a"), &entries(&["parent"])).0, Offered::Parked);
    assert_eq!(sync.offer(SECOND, block("grandchild", "a"), &entries(&["child", "parent"])).0, Offered::Parked);
    assert_eq!(sync.offer(SECOND, block("other", "a"), &entries(&[])).0, Offered::Ready);
    assert_eq!(sync.offer(SECOND, block("child", "b"), &entries(&["parent"])).0, Offered::Known);
    assert_eq!(sync.poll(SECOND), [want("a", &["parent"])], "what waits itself is not asked for");
    assert_eq!(sync.waiting(), (2, 1));
    let ready: Vec<Hash> =
        sync.arrived(SECOND, &hash("parent"), Kind::Entry).into_iter().map(|block| block.hash).collect();
    assert_eq!(ready, [hash("child"), hash("grandchild")]);
    assert_eq!((sync.waiting(), sync.deadline()), ((0, 0), None));
}

#[test]
fn a_block_that_one_peer_does_not_give_is_asked_of_the_others() {
    let mut sync = machine();
    for name in ["a", "b"] {
        sync.subscribed(Duration::ZERO, peer(name));
        // They have known each other for a while.
        (0..8).for_each(|_| sync.exchanged(Duration::ZERO, &peer(name), true));
    }
    sync.offer(SECOND, block("child", "a"), &entries(&["parent"]));
    assert_eq!(sync.poll(SECOND), [want("a", &["parent"])]);
    assert_eq!(sync.poll(5 * SECOND), []);
    assert_eq!(sync.poll(6 * SECOND), [want("b", &["parent"])], "a never answered");
    sync.absent(7 * SECOND, &peer("b"), &hash("parent"));
    assert_eq!(sync.poll(7 * SECOND), [], "nobody is left");
    assert_eq!(sync.poll(7 * SECOND + SECOND / 2), [want("a", &["parent"])], "and all are asked again after a pause");
    sync.unsubscribed(8 * SECOND, &peer("a"));
    assert_eq!(sync.poll(8 * SECOND), [want("b", &["parent"])]);
    sync.absent(8 * SECOND, &peer("a"), &hash("parent"));
    assert_eq!(sync.poll(8 * SECOND), [], "an answer of one that was not asked changes nothing");
}

#[test]
fn a_new_peer_is_asked_for_what_nobody_had() {
    let mut sync = machine();
    sync.offer(SECOND, block("child", "a"), &entries(&["parent"]));
    sync.poll(SECOND);
    sync.absent(SECOND, &peer("a"), &hash("parent"));
    assert_eq!(sync.poll(SECOND), []);
    sync.subscribed(SECOND, peer("b"));
    assert_eq!(sync.poll(SECOND), [Request::OpenHeads(peer("b")), want("b", &["parent"])]);
}

#[test]
fn what_nobody_has_is_given_up_and_may_come_again() {
    let mut sync = Sync::new(SyncConfig { rounds: 2, ..SyncConfig::default() });
    sync.offer(Duration::ZERO, block("child", "a"), &entries(&["parent", "uncle"]));
    sync.offer(Duration::ZERO, block("grandchild", "a"), &entries(&["child"]));
    sync.offer(Duration::ZERO, block("written", "a"), &[(hash("parent"), Kind::Identity)]);
    let mut now = Duration::ZERO;
    while let Some(deadline) = sync.deadline() {
        now = deadline;
        sync.poll(now);
        sync.absent(now, &peer("a"), &hash("parent"));
    }
    assert!(now < 60 * SECOND);
    assert_eq!(sync.waiting(), (0, 0));
    assert_eq!(sync.offer(now, block("child", "a"), &entries(&["parent"])).0, Offered::Parked);
}

#[test]
fn what_follows_a_block_that_is_no_entry_is_dropped_for_good() {
    let mut sync = machine();
    sync.offer(SECOND, block("child", "a"), &entries(&["bad", "other"]));
    sync.offer(SECOND, block("grandchild", "a"), &entries(&["child"]));
    assert_eq!(sync.broken(&hash("bad")), 2);
    assert_eq!(sync.waiting(), (0, 0), "and what only they needed is no longer asked for");
    assert_eq!(sync.offer(SECOND, block("child", "b"), &entries(&["bad"])).0, Offered::Broken);
    assert_eq!(sync.offer(SECOND, block("third", "b"), &entries(&["grandchild"])).0, Offered::Broken);
    assert_eq!(sync.offer(SECOND, block("fourth", "b"), &entries(&["third"])).0, Offered::Broken);
}

#[test]
fn what_a_peer_can_make_us_keep_is_bounded() {
    let config = SyncConfig { parked_bytes: 19_500, parked_bytes_per_peer: 10_000, ..SyncConfig::default() };
    let mut sync = Sync::new(config);
    let mut flood = |from: &str| {
        let offer = |number| sync.offer(SECOND, block(&format!("{from} {number}"), from), &entries(&["missing"])).0;
        (0..100).map(offer).filter(|offered| *offered == Offered::Parked).count()
    };
    let first = flood("a");
    assert!((10..100).contains(&first));
    assert_eq!(flood("b"), first, "one peer leaves room for others");
    assert_eq!(flood("c"), 0);
    assert_eq!(sync.arrived(SECOND, &hash("missing"), Kind::Entry).len(), 2 * first);
    assert_eq!(sync.offer(SECOND, block("late", "c"), &entries(&["gone"])).0, Offered::Parked, "the room is free");
}

#[test]
fn a_log_without_end_takes_the_room_of_its_peer_and_no_more() {
    let config = SyncConfig { parked_bytes: 30_000, parked_bytes_per_peer: 10_000, ..SyncConfig::default() };
    let mut sync = Sync::new(config);
    assert_eq!(sync.offer(SECOND, block("other", "b"), &entries(&["missing"])).0, Offered::Parked);
    let of_others = sync.parked_bytes();
    for number in 0..100_u32 {
        let next = (number + 1).to_string();
        let offered = sync.offer(SECOND, block(&number.to_string(), "a"), &entries(&[next.as_str()])).0;
        assert_eq!(offered, Offered::Parked, "what follows from it goes on to be asked for");
        assert!(sync.parked_bytes() - of_others <= 10_000);
    }
    assert!(sync.is_parked(&hash("other")) && sync.is_parked(&hash("99")));
    assert!(!sync.is_parked(&hash("0")), "the newest gave way");
    // The end of it is there, and with it what had bytes; the rest is asked for again.
    let ready: Vec<Hash> =
        sync.arrived(SECOND, &hash("100"), Kind::Entry).into_iter().map(|block| block.hash).collect();
    assert_eq!(ready, [hash("99")]);
    assert_eq!(sync.poll(SECOND), [want("a", &["98"]), want("b", &["missing"])]);
}

#[test]
fn what_is_only_looked_at_again_releases_nothing() {
    let mut sync = machine();
    let writer = [(hash("writer"), Kind::Identity)];
    sync.offer(SECOND, Block { joins: false, ..block("head", "a") }, &writer);
    sync.offer(SECOND, block("child", "a"), &entries(&["head"]));
    assert!(sync.is_needed(&hash("writer"), Kind::Identity) && sync.is_needed(&hash("head"), Kind::Entry));
    let looked_at = sync.arrived(SECOND, &hash("writer"), Kind::Identity);
    assert_eq!(looked_at, [Block { joins: false, ..block("head", "a") }]);
    assert!(sync.is_parked(&hash("child")));
}

#[test]
fn one_name_is_waited_for_as_an_entry_by_some_and_as_an_identity_by_others() {
    let mut sync = machine();
    let of_writer = [(hash("named"), Kind::Identity)];
    sync.offer(SECOND, block("written", "a"), &of_writer);
    sync.offer(SECOND, block("child", "b"), &entries(&["named"]));
    assert_eq!(sync.poll(SECOND), [want("a", &["named"])], "both by one request");
    assert_eq!(sync.arrived(SECOND, &hash("named"), Kind::Identity), [block("written", "a")]);
    assert_eq!(sync.waiting(), (1, 1), "the other goes on to wait");
    assert_eq!(sync.arrived(SECOND, &hash("named"), Kind::Entry), [block("child", "b")]);
    assert_eq!(sync.waiting(), (0, 0));

    sync.offer(SECOND, block("written", "a"), &of_writer);
    sync.offer(SECOND, block("child", "b"), &entries(&["named"]));
    assert_eq!(sync.broken(&hash("named")), 1);
    assert_eq!(sync.waiting(), (1, 1), "what is no entry may be an identity");
    assert_eq!(sync.arrived(SECOND, &hash("named"), Kind::Identity), [block("written", "a")]);
    assert_eq!(sync.offer(SECOND, block("written", "a"), &of_writer).0, Offered::Parked);
    assert_eq!(sync.offer(SECOND, block("child", "b"), &entries(&["named"])).0, Offered::Broken);
}
