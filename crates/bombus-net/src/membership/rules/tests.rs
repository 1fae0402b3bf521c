use bombus_core::identity::NodeKey;
use proptest::prelude::*;

use super::*;

fn owner() -> OwnerKey {
    OwnerKey::from_secret(&[1; 32])
}

fn node(seed: u8) -> NodeId {
    NodeKey::from_secret(&[seed; 32]).node_id()
}

fn key(seed: u8) -> SwarmKey {
    SwarmKey::from_bytes([seed; 32])
}

fn fresh() -> Rules {
    Rules::new(owner().id(), Generation(0), key(0).hash())
}

fn change(generation: u64, key_seed: u8, removed: &[u8]) -> (SignedChange, SwarmKey) {
    let removed = removed.iter().copied().map(node).collect();
    (SignedChange::sign(&owner(), Generation(generation), &key(key_seed), removed), key(key_seed))
}

fn apply(rules: &mut Rules, (change, key): &(SignedChange, SwarmKey)) -> Applied {
    rules.apply(change, Some(key), &mut IgnoredChanges::default())
}

#[test]
fn the_higher_generation_wins() {
    let mut rules = fresh();
    assert_eq!(apply(&mut rules, &change(2, 5, &[])), Applied::NewKey);
    assert_eq!(apply(&mut rules, &change(1, 6, &[])), Applied::Nothing);
    assert_eq!((rules.generation(), rules.key_hash()), (Generation(2), key(5).hash()));
}

#[test]
fn in_one_generation_the_lower_hash_wins() {
    let [lower, higher] = if key(5).hash() < key(6).hash() { [5, 6] } else { [6, 5] };
    for order in [[lower, higher], [higher, lower]] {
        let mut rules = fresh();
        for seed in order {
            apply(&mut rules, &change(1, seed, &[]));
        }
        assert_eq!(rules.key_hash(), key(lower).hash());
    }
}

#[test]
fn who_was_removed_stays_removed() {
    let mut rules = fresh();
    apply(&mut rules, &change(1, 5, &[1]));
    apply(&mut rules, &change(2, 6, &[2]));
    assert_eq!(**rules.removed(), [node(1), node(2)].into());
    assert_eq!(rules.changes().count(), 2, "the older one is needed to convince others");
    let merged = rules.next(&owner(), &key(7), None).unwrap();
    assert_eq!(apply(&mut rules, &(merged, key(7))), Applied::NewKey);
    assert_eq!(rules.changes().count(), 1);
    assert_eq!(**rules.removed(), [node(1), node(2)].into());
}

#[test]
fn what_the_owner_did_not_sign_changes_nothing() {
    let stranger = OwnerKey::from_secret(&[2; 32]);
    let (mut rules, mut ignored) = (fresh(), IgnoredChanges::default());
    // Signed by another key, and made out to this swarm.
    let theirs = SignedChange::sign(&stranger, Generation(9), &key(9), [node(1)].into());
    let mut json = serde_json::to_value(&theirs).unwrap();
    json["swarm_id"] = rules.swarm_id().to_string().into();
    let forged: SignedChange = serde_json::from_value(json).unwrap();
    for (change, key) in [(&forged, key(9)), (&theirs, key(9))] {
        assert_eq!(rules.apply(change, Some(&key), &mut ignored), Applied::Nothing);
    }
    assert_eq!(rules, fresh());
    assert_eq!(ignored, IgnoredChanges { forged: 1, other_swarm: 1, ..IgnoredChanges::default() });
}

#[test]
fn what_was_replayed_changes_nothing() {
    let (mut rules, mut ignored) = (fresh(), IgnoredChanges::default());
    let (first, second) = (change(1, 5, &[1]), change(2, 6, &[1]));
    apply(&mut rules, &first);
    apply(&mut rules, &second);
    let before = rules.clone();
    for (change, key) in [&first, &second, &first] {
        assert_eq!(rules.apply(change, Some(key), &mut ignored), Applied::Nothing);
    }
    assert_eq!(rules, before);
    assert_eq!(ignored, IgnoredChanges { older: 2, known: 1, ..IgnoredChanges::default() });
}

#[test]
fn a_change_of_the_key_needs_the_key() {
    let (mut rules, mut ignored) = (fresh(), IgnoredChanges::default());
    let (change, right) = change(1, 5, &[1]);
    assert_eq!(rules.apply(&change, None, &mut ignored), Applied::Nothing);
    assert_eq!(rules.apply(&change, Some(&key(6)), &mut ignored), Applied::Nothing);
    assert_eq!(rules, fresh());
    assert_eq!(ignored.without_key, 2);
    assert_eq!(rules.apply(&change, Some(&right), &mut ignored), Applied::NewKey);
}

#[test]
fn who_joined_by_a_ticket_learns_who_is_removed() {
    let mut rules = Rules::new(owner().id(), Generation(4), key(5).hash());
    assert_eq!(apply(&mut rules, &change(4, 5, &[1])), Applied::Removals);
    assert_eq!((rules.generation(), rules.key_hash()), (Generation(4), key(5).hash()));
    assert!(rules.removed().contains(&node(1)));
    // What came before the ticket says nothing more.
    assert_eq!(apply(&mut rules, &change(3, 6, &[])), Applied::Nothing);
}

#[test]
fn a_ticket_is_weighed_like_a_change() {
    let mut rules = fresh();
    apply(&mut rules, &change(3, 5, &[1]));
    assert_eq!(rules.outranked_by(Generation(3), key(5).hash()), None);
    assert_eq!(rules.outranked_by(Generation(2), key(6).hash()), Some(false));
    assert_eq!(rules.outranked_by(Generation(4), key(6).hash()), Some(true));
    rules.rebase(Generation(4), key(6).hash());
    assert_eq!((rules.generation(), rules.key_hash()), (Generation(4), key(6).hash()));
    assert!(rules.removed().contains(&node(1)));
}

#[test]
fn the_list_of_removed_peers_has_an_end() {
    let mut rules = fresh();
    let many =
        (0..REMOVED_MAX).map(|i| NodeKey::from_secret(&std::array::from_fn(|j| (i >> (8 * (j % 2))) as u8)).node_id());
    let full = SignedChange::sign(&owner(), Generation(1), &key(5), many.collect());
    apply(&mut rules, &(full, key(5)));
    assert!(rules.next(&owner(), &key(6), Some(&node(200))).is_none());
    assert!(rules.next(&owner(), &key(6), None).is_some());
}

#[test]
fn no_more_changes_are_kept_than_there_is_room_for() {
    let (mut rules, mut ignored) = (fresh(), IgnoredChanges::default());
    for seed in 1..=40 {
        let (change, key) = change(u64::from(41 - seed), seed, &[seed]);
        rules.apply(&change, Some(&key), &mut ignored);
        assert!(rules.changes().count() <= CHANGES_MAX);
    }
    assert_eq!(rules.generation(), Generation(40));
    assert_eq!(ignored.too_many, 24);
}

/// Changes as several machines with the same owner key make them, without knowing of each other.
fn some_changes() -> impl Strategy<Value = Vec<(u64, u8, Vec<u8>)>> {
    prop::collection::vec((1..5_u64, 1..6_u8, prop::collection::vec(1..5_u8, 0..3)), 1..8)
}

proptest! {
    #[test]
    fn any_order_of_arrival_gives_the_same_state(
        (changes, shuffled) in some_changes().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        twice: bool,
    ) {
        let run = |order: &[(u64, u8, Vec<u8>)]| {
            let mut rules = fresh();
            for (generation, seed, removed) in order {
                apply(&mut rules, &change(*generation, *seed, removed));
            }
            rules
        };
        let mut again = shuffled;
        if twice {
            again.extend(again.clone());
        }
        prop_assert_eq!(run(&changes), run(&again));
    }

    #[test]
    fn the_kept_changes_alone_give_the_same_state(changes in some_changes()) {
        let mut rules = fresh();
        for (generation, seed, removed) in &changes {
            apply(&mut rules, &change(*generation, *seed, removed));
        }
        let mut rebuilt = fresh();
        for kept in rules.changes() {
            let key = (0..6).map(key).find(|key| key.hash() == kept.key_hash()).unwrap();
            // As a member sends them: the key only with the change that counts.
            let key = (kept.key_hash() == rules.key_hash()).then_some(key);
            rebuilt.apply(kept, key.as_ref(), &mut IgnoredChanges::default());
        }
        prop_assert_eq!(rules, rebuilt);
    }
}
