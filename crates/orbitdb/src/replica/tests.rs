mod simulation;

use std::collections::BTreeMap;

use super::*;
use crate::{
    cbor::Value,
    crypt::Encryption,
    entry::{
        Draft, Limits, Written,
        tests::{LOG, codec, signer},
    },
    key::SecretKey,
};

const NOW: Duration = Duration::from_secs(1);

fn replica(admission: Admission) -> Replica {
    Replica::new(codec(), admission, SyncConfig::default())
}

fn peer() -> Peer {
    Peer::new("peer")
}

fn write(signer: &Signer, time: u64, next: &[Hash], value: &str) -> Written {
    let draft = Draft { time, next: next.to_vec(), refs: vec![] };
    codec().write(signer, draft, Operation::put("k", value).into_payload()).unwrap()
}

/// Puts another identity into an entry, under the same signature.
fn naming(written: Written, identity: Hash) -> Written {
    let Value::Map(mut map) = Value::decode(&written.block).unwrap() else { unreachable!() };
    map.insert("identity", identity.to_string());
    let block = Value::Map(map).encode().unwrap();
    Written { links: Links { hash: Hash::of(&block), ..written.links }, block, ..written }
}

/// Gives a replica an entry as if it were published, and every block that it asks for then.
fn feed(replica: &mut Replica, head: &Written, blocks: &[&[u8]]) -> Vec<Effect> {
    let mut all = Vec::new();
    let mut inputs = vec![Input::Published(peer(), head.block.clone())];
    while let Some(input) = inputs.pop() {
        for effect in replica.on(NOW, input) {
            if let Effect::Request(Request::Want { peer, hashes }) = &effect {
                let asked = blocks.iter().filter(|block| hashes.contains(&Hash::of(block)));
                inputs.extend(asked.map(|block| Input::Block(peer.clone(), block.to_vec())));
            }
            all.push(effect);
        }
    }
    all
}

/// Blocks by their names.
type Blocks = HashMap<Hash, Arc<[u8]>>;

/// A log of one writer, as long as is asked for: its replica, its newest block, and all of its blocks by their names.
fn long_log(entries: u32) -> (Replica, Arc<[u8]>, Blocks) {
    let alice = signer(1);
    let mut source = replica(Admission::Everyone);
    let mut blocks = HashMap::new();
    for number in 0..entries {
        let stored = source.append(&alice, Operation::add(number), 1).unwrap().stored;
        blocks.extend(stored.into_iter().map(|stored| (stored.hash, stored.block)));
    }
    let head = source.log().heads().next().unwrap().hash;
    let head = Arc::clone(&blocks[&head]);
    (source, head, blocks)
}

/// Tells a replica of a head, and gives it each block that it asks for, as a peer does that gives blocks and nothing else. Returns how many
/// those were. What waits never takes more than the limit.
fn follow(replica: &mut Replica, head: &[u8], blocks: &Blocks, limit: usize) -> usize {
    let mut inputs = VecDeque::from([Input::Heads(peer(), head.to_vec())]);
    let mut given = 0;
    while let Some(input) = inputs.pop_front() {
        for effect in replica.on(NOW, input) {
            if let Effect::Request(Request::Want { peer, hashes }) = effect {
                given += hashes.len();
                inputs.extend(hashes.iter().map(|hash| Input::Block(peer.clone(), blocks[hash].to_vec())));
            }
        }
        assert!(replica.sync().parked_bytes() <= limit);
    }
    given
}

fn cramped(limit: usize) -> Replica {
    let config = SyncConfig { parked_bytes: 2 * limit, parked_bytes_per_peer: limit, ..SyncConfig::default() };
    Replica::new(codec(), Admission::Everyone, config)
}

fn refusals(effects: &[Effect]) -> Vec<Refusal> {
    effects
        .iter()
        .filter_map(|effect| if let Effect::Refused(_, refusal) = effect { Some(*refusal) } else { None })
        .collect()
}

fn stored(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Store(_))).count()
}

#[test]
fn an_entry_joins_once_its_writer_and_its_ancestors_are_there() {
    let alice = signer(1);
    let mut replica = replica(Admission::Everyone);
    let first = write(&alice, 1, &[], "first");
    let second = write(&alice, 2, &[first.links.hash], "second");
    let effects = feed(&mut replica, &second, &[&first.block, alice.block()]);
    assert_eq!(stored(&effects), 3);
    assert_eq!((replica.log().len(), replica.sync().waiting()), (2, (0, 0)));
    assert!(feed(&mut replica, &second, &[]).is_empty(), "a second time changes nothing");
}

#[test]
fn a_long_log_joins_in_parts_between_which_others_get_their_turn() {
    let bob = signer(2);
    let (mut source, head, blocks) = long_log(1_000);
    let oldest = source.log().newest_first().last().unwrap().hash;
    let mut replica = replica(Admission::Everyone);
    let mut inputs = VecDeque::from([Input::Heads(peer(), head.to_vec())]);
    while let Some(input) = inputs.pop_front() {
        for effect in replica.begin(NOW, input) {
            let Effect::Request(Request::Want { peer, hashes }) = effect else { continue };
            let given = hashes.iter().filter(|hash| **hash != oldest);
            inputs.extend(given.map(|hash| Input::Block(peer.clone(), blocks[hash].to_vec())));
        }
    }
    assert!(replica.begin(NOW, Input::Block(peer(), blocks[&oldest].to_vec())).is_empty());
    assert_eq!((replica.log().len(), replica.sync().waiting()), (0, (0, 0)), "all wait for their turn");

    // What comes meanwhile on top of all asks for nothing, and joins behind it.
    let newest = source.append(&bob, Operation::add("newest"), 1).unwrap();
    let effects = replica.begin(NOW, Input::Published(peer(), newest.block.to_vec()));
    let [Effect::Request(Request::Want { hashes, .. })] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(*hashes, [bob.identity().hash()], "of the writer nothing is known yet");
    assert!(replica.begin(NOW, Input::Block(peer(), bob.block().to_vec())).is_empty());
    let mut again = replica.begin(NOW, Input::Heads(peer(), newest.block.to_vec()));
    assert!(again.is_empty(), "it waits already");

    while let Some(part) = replica.part() {
        let before = replica.log().len();
        again.extend(replica.take_part(NOW, part.check()));
        assert!((1..=released::PART).contains(&(replica.log().len() - before)));
    }
    assert_eq!(stored(&again), 1_003, "all entries and their writers");
    assert!(replica.log().newest_first().eq(source.log().newest_first()));
    assert_eq!(replica.sync().waiting(), (0, 0));
}

#[test]
fn a_log_that_does_not_fit_into_memory_joins_block_by_block() {
    let (source, head, blocks) = long_log(400);
    let bytes: usize = blocks.values().map(|block| block.len()).sum();
    let limit = 300_000;
    assert!(bytes > limit);
    let mut replica = cramped(limit);
    let given = follow(&mut replica, &head, &blocks, limit);
    assert!(replica.log().newest_first().eq(source.log().newest_first()));
    assert_eq!(replica.sync().waiting(), (0, 0));
    assert!(given <= 2 * blocks.len(), "each is asked for twice at most: {given}");
}

#[test]
fn a_log_of_which_not_even_the_names_fit_joins_part_by_part() {
    let (source, head, blocks) = long_log(400);
    for limit in [100_000, 20_000] {
        let mut replica = cramped(limit);
        while replica.log().len() < source.log().len() {
            let before = replica.log().len();
            follow(&mut replica, &head, &blocks, limit);
            assert!(replica.log().len() > before, "with each exchange of heads there is more");
        }
        assert!(replica.log().newest_first().eq(source.log().newest_first()));
        assert_eq!(replica.sync().waiting(), (0, 0));
    }
}

#[test]
fn a_key_that_names_an_admitted_identity_gets_nothing_in() {
    // Signed by Mallory's key in every detail, with Alice's identity named: what peers in JavaScript accept.
    let (alice, mallory) = (signer(1), signer(2));
    let mut replica = replica(Admission::of_list([alice.identity().id()]));
    let honest = write(&alice, 1, &[], "honest");
    feed(&mut replica, &honest, &[alice.block()]);
    let forged = naming(write(&mallory, 2, &[honest.links.hash], "forged"), alice.identity().hash());
    let effects = feed(&mut replica, &forged, &[]);
    assert_eq!((refusals(&effects), stored(&effects)), (vec![Refusal::Key], 0));

    // A peer in JavaScript took it and wrote a hundred honest entries on top.
    let mut blocks = vec![forged.clone()];
    for number in 0..100 {
        let last = blocks.last().unwrap().links.hash;
        blocks.push(write(&alice, 3 + number, &[last], "on top"));
    }
    let bytes: Vec<&[u8]> = blocks.iter().map(|written| &written.block[..]).collect();
    feed(&mut replica, blocks.last().unwrap(), &bytes);
    assert_eq!(replica.log().len(), 101);
    assert!(replica.log().contains(&forged.links.hash) && replica.log().position(&forged.links.hash).is_none());
    assert_eq!(replica.log().refused().get(&Refusal::Key), Some(&1));
    assert_eq!(replica.log().heads().len(), 1);
}

#[test]
fn an_unknown_writer_gets_nothing_in_and_nothing_fetched() {
    let (alice, mallory) = (signer(1), signer(2));
    let mut replica = replica(Admission::of_list([alice.identity().id()]));
    let forged = write(&mallory, 1, &[Hash::of(b"bait")], "forged");
    let effects = feed(&mut replica, &forged, &[mallory.block()]);
    assert_eq!(refusals(&effects), [Refusal::Access]);
    let bait = |effect: &Effect| matches!(effect, Effect::Request(Request::Want { hashes, .. }) if hashes.contains(&Hash::of(b"bait")));
    assert!(!effects.iter().any(bait), "the bait is not asked for");
    assert!(replica.log().is_empty() && !replica.log().contains(&forged.links.hash));
    assert_eq!(stored(&effects), 0, "not even who the stranger is");
    assert_eq!(replica.dropped().get(&Refusal::Access), Some(&1));
    assert_eq!(replica.append(&mallory, Operation::add("x"), 1).unwrap_err(), AppendError::NotAdmitted);
}

#[test]
fn what_came_before_the_grant_of_its_writer_is_asked_for_once_it_is_there() {
    let (alice, bob) = (signer(1), signer(2));
    let granted = |signers: &[&Signer]| Admission::of_list(signers.iter().map(|signer| signer.identity().id()));
    let mut replica = replica(granted(&[&alice]));
    let peers = ["a", "b"].map(Peer::new);
    for peer in &peers {
        replica.on(NOW, Input::Subscribed(peer.clone()));
        replica.on(NOW, Input::Exchanged(peer.clone(), true));
    }
    assert_eq!(replica.readmit(granted(&[&alice, &signer(3)])), Some(vec![]), "nothing was dropped");
    let early = write(&bob, 1, &[], "early");
    assert_eq!(refusals(&feed(&mut replica, &early, &[bob.block()])), [Refusal::Access]);
    assert_eq!(replica.readmit(granted(&[&alice, &signer(3)])), None, "nothing changed");
    assert_eq!(replica.readmit(granted(&[&alice, &bob])), Some(peers.to_vec()));
    assert_eq!(replica.readmit(granted(&[&bob])), Some(vec![]), "they were asked");
    replica.on(NOW, Input::Heads(peers[0].clone(), early.block));
    assert!(replica.log().position(&early.links.hash).is_some());
}

#[test]
fn of_many_strangers_few_are_remembered_and_what_waits_for_a_forgotten_writer_joins_in_the_end() {
    let (alice, bob) = (signer(1), signer(2));
    let mut replica = replica(Admission::of_list([&alice, &bob].map(|writer| writer.identity().id())));
    let first = write(&bob, 1, &[], "first");
    let second = write(&alice, 2, &[first.links.hash], "second");
    // Who Alice is comes before what her entry follows.
    replica.on(NOW, Input::Subscribed(peer()));
    replica.on(NOW, Input::Published(peer(), second.block.clone()));
    let effects = replica.on(NOW, Input::Block(peer(), alice.block().to_vec()));
    assert_eq!((stored(&effects), replica.sync().waiting()), (0, (1, 1)));
    for number in 0..=UNJOINED_MAX as u64 {
        let key = |number: u64| {
            let mut bytes = [7; 32];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            SecretKey::from_bytes(&bytes).unwrap()
        };
        let stranger = Signer::new(&key(number), &key(number + (1 << 32)));
        let effects = feed(&mut replica, &write(&stranger, 1, &[], "stranger"), &[stranger.block()]);
        assert_eq!(stored(&effects), 0);
    }
    assert!(replica.identities.len() <= UNJOINED_MAX && replica.unjoined.len() <= UNJOINED_MAX);
    assert!(!replica.identities.contains_key(&alice.identity().hash()));
    let effects = feed(&mut replica, &first, &[alice.block(), bob.block()]);
    assert_eq!((stored(&effects), replica.log().len(), replica.sync().waiting()), (4, 2, (0, 0)));
    assert!(replica.log().position(&second.links.hash).is_some());
}

#[test]
fn an_own_identity_that_a_peer_gave_before_is_kept_with_the_first_own_entry() {
    let (alice, mallory) = (signer(1), signer(2));
    let mut replica = replica(Admission::of_list([alice.identity().id()]));
    // Signed by another, but naming Alice.
    let forged = naming(write(&mallory, 1, &[], "forged"), alice.identity().hash());
    assert_eq!(stored(&feed(&mut replica, &forged, &[alice.block()])), 0);
    assert_eq!(replica.append(&alice, Operation::add("x"), 1).unwrap().stored.len(), 2);
}

#[test]
fn of_heads_that_are_too_large_the_rest_is_not_looked_at() {
    let alice = signer(1);
    let mut replica = replica(Admission::Everyone);
    // One that waits for its writer, again and again, and cut where the limit is.
    let head = write(&alice, 1, &[], &"x".repeat(20_000)).block;
    let count = HEADS_BYTES_MAX / head.len() + 1;
    assert!(count < HEADS_MAX);
    let mut bytes = head.repeat(count);
    bytes.extend(write(&alice, 1, &[], "behind it").block);
    replica.on(NOW, Input::Heads(peer(), bytes));
    assert_eq!((replica.broken(), replica.sync().waiting()), (1, (1, 1)));
}

#[test]
fn heads_are_looked_at_up_to_the_first_that_is_none() {
    let alice = signer(1);
    let [before, behind] = ["before", "behind"].map(|value| write(&alice, 1, &[], value).block);
    for nothing in [vec![0; 4 << 20], signer(2).block().to_vec(), vec![0xff]] {
        let mut replica = replica(Admission::Everyone);
        let effects = replica.on(NOW, Input::Heads(peer(), [&before[..], &nothing, &behind].concat()));
        let broken = effects.iter().filter(|effect| matches!(effect, Effect::Broken(..))).count();
        assert_eq!((broken, replica.broken(), replica.sync().waiting()), (1, 1, (1, 1)));
    }
}

#[test]
fn a_writer_is_no_broken_entry_however_its_identity_comes() {
    let (alice, mallory) = (signer(1), signer(2));
    let entry = write(&alice, 1, &[], "a");

    let mut among_heads = replica(Admission::Everyone);
    among_heads.on(NOW, Input::Heads(peer(), [&entry.block[..], alice.block()].concat()));
    assert_eq!((among_heads.log().len(), among_heads.broken()), (1, 0));

    let mut asked_for = replica(Admission::Everyone);
    let on_top_of_her = write(&mallory, 1, &[alice.identity().hash()], "as if she were an entry");
    feed(&mut asked_for, &on_top_of_her, &[mallory.block()]);
    feed(&mut asked_for, &entry, &[]);
    asked_for.on(NOW, Input::Block(peer(), alice.block().to_vec()));
    let shown: Vec<Hash> = asked_for.log().newest_first().map(|position| position.hash).collect();
    assert_eq!(shown, [entry.links.hash]);
    assert_eq!(asked_for.sync().waiting(), (0, 0));

    // What comes before anybody waits for it makes nothing of hers broken later.
    let mut too_early = replica(Admission::Everyone);
    too_early.on(NOW, Input::Heads(peer(), alice.block().to_vec()));
    feed(&mut too_early, &entry, &[alice.block()]);
    assert_eq!(too_early.log().len(), 1);
}

#[test]
fn an_entry_that_a_stranger_names_as_an_identity_joins_however_it_comes() {
    let (alice, mallory) = (signer(1), signer(2));
    let first = write(&alice, 1, &[], "first");
    let named = write(&alice, 2, &[first.links.hash], "named");
    let on_top = write(&alice, 3, &[named.links.hash], "on top");
    let stranger = naming(write(&mallory, 1, &[], "stranger"), named.links.hash);
    let published = |written: &Written| Input::Published(peer(), written.block.clone());
    let given = |written: &Written| Input::Block(peer(), written.block.clone());
    let bulk = |all: &[&Written]| Input::Bulk(peer(), all.iter().map(|written| written.block.clone()).collect());
    let orders = [
        vec![published(&stranger), published(&on_top), given(&named)],
        // It is given to who asked for an identity alone, and asked for once more.
        vec![published(&stranger), given(&named), published(&on_top), given(&named)],
        vec![published(&stranger), published(&named), published(&on_top)],
        vec![published(&stranger), published(&on_top), published(&named)],
        vec![published(&on_top), published(&stranger), given(&named)],
        vec![published(&stranger), bulk(&[&named]), published(&on_top)],
        vec![bulk(&[&stranger, &named, &on_top])],
        vec![published(&named), published(&on_top), published(&stranger)],
    ];
    for (number, inputs) in orders.into_iter().enumerate() {
        let mut replica = replica(Admission::Everyone);
        feed(&mut replica, &first, &[alice.block()]);
        let effects: Vec<Effect> = inputs.into_iter().flat_map(|input| replica.on(NOW, input)).collect();
        let shown: Vec<Hash> = replica.log().newest_first().map(|position| position.hash).collect();
        assert_eq!(shown, [&on_top, &named, &first].map(|written| written.links.hash), "in order {number}");
        assert_eq!(refusals(&effects), [Refusal::Identity], "in order {number}");
        assert_eq!((replica.broken(), replica.sync().waiting()), (0, (0, 0)), "in order {number}");
    }
}

#[test]
fn what_builds_on_an_entry_that_names_another_as_its_identity_counts_and_that_entry_does_not() {
    let (alice, mallory) = (signer(1), signer(2));
    let named = write(&alice, 1, &[], "named");
    let forged = naming(write(&mallory, 1, &[], "forged"), named.links.hash);
    let on_top = write(&alice, 2, &[forged.links.hash], "on top");
    let blocks = [alice.block(), &forged.block[..], &named.block];
    for order in [[&named, &on_top], [&on_top, &named]] {
        let mut replica = replica(Admission::Everyone);
        for written in order {
            feed(&mut replica, written, &blocks);
        }
        assert!(replica.log().contains(&forged.links.hash));
        assert_eq!(replica.log().refused(), &BTreeMap::from([(Refusal::Identity, 1)]));
        let shown: Vec<Hash> = replica.log().newest_first().map(|position| position.hash).collect();
        assert_eq!(shown, [&on_top, &named].map(|written| written.links.hash));
        assert_eq!(replica.sync().waiting(), (0, 0));
    }
}

#[test]
fn naming_an_entry_as_an_identity_gets_nothing_of_it_in_and_nothing_fetched() {
    let (alice, mallory) = (signer(1), signer(2));
    let mut replica = replica(Admission::of_list([alice.identity().id()]));
    let named = write(&mallory, 1, &[Hash::of(b"bait")], "named");
    let stranger = naming(write(&mallory, 1, &[], "stranger"), named.links.hash);
    let mut effects = feed(&mut replica, &stranger, &[]);
    effects.extend(feed(&mut replica, &named, &[mallory.block()]));
    assert_eq!(refusals(&effects), [Refusal::Identity, Refusal::Access]);
    let bait = |effect: &Effect| matches!(effect, Effect::Request(Request::Want { hashes, .. }) if hashes.contains(&Hash::of(b"bait")));
    assert!(!effects.iter().any(bait), "nothing builds on it");
    assert_eq!((stored(&effects), replica.sync().waiting()), (0, (0, 0)));
}

#[test]
fn what_follows_an_identity_never_joins_and_stops_nothing() {
    let (alice, mallory) = (signer(1), signer(2));
    let on_her = write(&mallory, 1, &[alice.identity().hash()], "as if she were an entry");
    let on_top = write(&mallory, 2, &[on_her.links.hash], "on top");
    let behind = write(&alice, 2, &[], "behind them");
    let blocks = || [&on_top, &on_her, &behind].map(|written| written.block.clone());
    for input in [Input::Heads(peer(), blocks().concat()), Input::Bulk(peer(), blocks().into())] {
        let mut replica = replica(Admission::Everyone);
        for writer in [&alice, &mallory] {
            feed(&mut replica, &write(writer, 1, &[], "known"), &[writer.block()]);
        }
        replica.on(NOW, input);
        assert_eq!((replica.log().len(), replica.sync().waiting()), (3, (0, 0)));
        for written in [&on_her, &on_top] {
            let effects = feed(&mut replica, written, &[]);
            assert!(effects.is_empty(), "nothing is asked for: {effects:?}");
        }
        assert_eq!(replica.sync().waiting(), (0, 0));
    }
}

#[test]
fn of_too_many_heads_so_many_are_taken_and_no_more() {
    let alice = signer(1);
    let mut replica = replica(Admission::Everyone);
    let head = |number: usize| write(&alice, 1, &[], &number.to_string()).block;
    feed(&mut replica, &write(&alice, 1, &[], "who she is"), &[alice.block()]);
    let bytes = (0..HEADS_MAX + 8).flat_map(head).collect();
    replica.on(NOW, Input::Heads(peer(), bytes));
    assert_eq!((replica.log().len(), replica.broken()), (HEADS_MAX + 1, 0));
}

#[test]
fn an_entry_replayed_from_another_log_is_no_part_of_this_one() {
    let alice = signer(1);
    let mut replica = replica(Admission::Everyone);
    let elsewhere = Codec::new(format!("{LOG}x"), Encryption::default(), Limits::default());
    let replayed =
        elsewhere.write(&alice, Draft { time: 1, ..Draft::default() }, Operation::add("x").into_payload()).unwrap();
    let effects = feed(&mut replica, &replayed, &[alice.block()]);
    assert!(matches!(effects[..], [Effect::Broken(_, BlockError::Log, 0)]), "{effects:?}");
    let on_top = write(&alice, 2, &[replayed.links.hash], "on top");
    feed(&mut replica, &on_top, &[alice.block(), &replayed.block]);
    assert!(replica.log().is_empty(), "as in JavaScript, what builds on it does not join");
    assert_eq!((replica.broken(), replica.sync().waiting()), (1, (0, 0)));
}

#[test]
fn a_clock_far_ahead_does_not_count_but_a_hundred_that_honest_peers_built_on_it_do() {
    let (alice, mallory) = (signer(1), signer(2));
    let mut replica = replica(Admission::Everyone);
    let ahead = write(&mallory, 1 << 40, &[], "ahead");
    feed(&mut replica, &ahead, &[mallory.block()]);
    assert_eq!(replica.log().refused().get(&Refusal::Clock), Some(&1));
    assert_eq!(replica.append(&alice, Operation::add("x"), 1).unwrap().entry.time(), 1);
    // As JavaScript does: on top of all that it has, and by its stated time.
    let own = replica.log().heads().next().unwrap().hash;
    let mut blocks = vec![write(&alice, (1 << 40) + 1, &[ahead.links.hash, own], "on top")];
    for number in 2..=100 {
        let last = blocks.last().unwrap().links.hash;
        blocks.push(write(&alice, (1 << 40) + number, &[last], "on top"));
    }
    let bytes: Vec<&[u8]> = blocks.iter().map(|written| &written.block[..]).collect();
    feed(&mut replica, blocks.last().unwrap(), &bytes);
    let newest_first: Vec<Hash> = blocks.iter().rev().map(|written| written.links.hash).chain([own]).collect();
    assert!(replica.log().newest_first().map(|position| position.hash).eq(newest_first));
    assert_eq!(replica.log().heads().next().unwrap().time, 101, "they are not lifted");
    assert_eq!(replica.log().refused(), &BTreeMap::from([(Refusal::Clock, 1)]));
}

#[test]
fn an_entry_with_too_many_ancestors_does_not_count_and_holds_up_nothing_that_follows_it() {
    let (alice, mallory) = (signer(1), signer(2));
    let first = write(&alice, 1, &[], "first");
    let too_many = vec![first.links.hash; Limits::default().links + 1];
    for (next, refs) in [(too_many.clone(), vec![]), (vec![first.links.hash], too_many)] {
        let mut replica = replica(Admission::Everyone);
        let draft = Draft { time: 2, next, refs };
        let payload = Operation::put("k", "too many").into_payload();
        let large = crate::entry::tests::unbounded().write(&mallory, draft, payload).unwrap();
        let on_top = write(&alice, 3, &[large.links.hash], "on top");
        let blocks = [alice.block(), mallory.block(), &first.block[..], &large.block];
        let effects = feed(&mut replica, &on_top, &blocks);
        assert_eq!(refusals(&effects), [Refusal::Oversize]);
        assert!(
            replica.log().position(&on_top.links.hash).is_some() && replica.log().position(&large.links.hash).is_none()
        );
        assert_eq!((replica.log().len(), replica.broken(), replica.sync().waiting()), (2, 0, (0, 0)));
    }
}

#[test]
fn a_false_identity_is_looked_at_once_and_its_entries_do_not_count() {
    let (alice, mallory) = (signer(1), signer(2));
    let mut replica = replica(Admission::Everyone);
    let Value::Map(mut map) = Value::decode(mallory.block()).unwrap() else { unreachable!() };
    map.insert("id", alice.identity().id());
    let false_identity = Value::Map(map).encode().unwrap();
    let entry = naming(write(&mallory, 1, &[], "forged"), Hash::of(&false_identity));
    let effects = feed(&mut replica, &entry, &[&false_identity]);
    assert_eq!(refusals(&effects), [Refusal::Identity]);
    assert!(replica.log().is_empty());
}

#[test]
fn heads_are_taken_apart_however_they_come() {
    let alice = signer(1);
    let heads = [write(&alice, 1, &[], "a"), write(&alice, 1, &[], "b"), write(&alice, 1, &[], "c")];
    let mut replica = replica(Admission::Everyone);
    let mut bytes = heads.iter().flat_map(|written| written.block.clone()).collect::<Vec<u8>>();
    bytes.extend([0xff, 0x00]);
    let effects = replica.on(NOW, Input::Heads(peer(), bytes));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Broken(..))), "the rest is reported");
    replica.on(NOW, Input::Block(peer(), alice.block().to_vec()));
    assert_eq!(replica.log().heads().len(), 3);
}

#[test]
fn what_was_not_asked_for_is_passed_over() {
    let alice = signer(1);
    let mut replica = replica(Admission::Everyone);
    assert!(replica.on(NOW, Input::Block(peer(), alice.block().to_vec())).is_empty());
    assert!(replica.on(NOW, Input::Block(peer(), write(&alice, 1, &[], "a").block)).is_empty());
    assert!(replica.log().is_empty());
}

#[test]
fn many_blocks_in_order_join_at_once_and_only_those_that_are_of_use() {
    let (alice, mallory) = (signer(1), signer(2));
    let mut source = replica(Admission::Everyone);
    let mut blocks = vec![alice.block().to_vec(), mallory.block().to_vec()];
    for number in 0..200_u32 {
        blocks.push(source.append(&alice, Operation::add(number), 1).unwrap().block.to_vec());
    }
    let useless = write(&mallory, 201, &[source.log().heads().next().unwrap().hash], "of no use");
    let forged = write(&mallory, 1, &[], "others build on it");
    let on_top = write(&alice, 2, &[forged.links.hash], "on top");
    blocks.extend([useless.block.clone(), forged.block.clone(), on_top.block, b"garbage".to_vec()]);
    let mut target = replica(Admission::of_list([alice.identity().id()]));
    let effects = target.on(NOW, Input::Bulk(peer(), blocks));
    assert_eq!(target.log().len(), 201);
    assert!(!target.log().contains(&useless.links.hash));
    assert!(target.log().contains(&forged.links.hash));
    assert_eq!(refusals(&effects), [Refusal::Access, Refusal::Access]);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Broken(..))));
}

#[test]
fn a_replica_that_is_loaded_is_the_one_that_was_kept() {
    let (alice, bob) = (signer(1), signer(2));
    let mut original = replica(Admission::Everyone);
    let (mut identities, mut kept): (Vec<Arc<[u8]>>, Vec<Kept>) = (Vec::new(), Vec::new());
    let mut keep = |effects: Vec<Stored>| {
        for stored in effects {
            match stored.what {
                What::Identity => identities.push(stored.block),
                What::Entry { own, .. } => kept.push((stored.block.to_vec(), own)),
            }
        }
    };
    for number in 0..20_u32 {
        keep(original.append(if number % 2 == 0 { &alice } else { &bob }, Operation::add(number), 1).unwrap().stored);
    }
    let ahead = write(&bob, 5000, &[], "ahead");
    let on_top = write(&bob, 5001, &[ahead.links.hash], "on top");
    for written in [ahead, on_top] {
        let effects = original.on(NOW, Input::Published(peer(), written.block)).into_iter();
        keep(
            effects.filter_map(|effect| if let Effect::Store(stored) = effect { Some(stored) } else { None }).collect(),
        );
    }
    let mut loader = Loader::new(codec(), Admission::Everyone);
    identities.iter().for_each(|block| loader.identity(block));
    let restored: Vec<Restored> = kept.chunks(3).flat_map(|part| loader.entries(part)).collect();
    let loaded = loader.finish(SyncConfig::default());
    let positions: BTreeSet<Position> = restored.iter().map(|restored| restored.position).collect();
    assert!(positions.iter().eq(original.log().newest_first().rev()), "only what counts is given back");
    assert!(loaded.log().newest_first().eq(original.log().newest_first()));
    assert!(loaded.log().heads().eq(original.log().heads()));
    assert_eq!(loaded.log().refused(), original.log().refused());
    assert_eq!(loaded.log().draft(1), original.log().draft(1));
    assert_eq!(loaded.log().len(), 21);
}
