use super::*;
use crate::{crypt::Encryption, identity::Signer, key::SecretKey};

pub(crate) const LOG: &str = "/orbitdb/zdpuAuCfZvikpA82uwuwAnj7gU5BY5gKonfjyjCX6B1myLUZZ";

pub(crate) fn signer(seed: u8) -> Signer {
    Signer::new(&SecretKey::from_bytes(&[seed; 32]).unwrap(), &SecretKey::from_bytes(&[seed + 100; 32]).unwrap())
}

pub(crate) fn codec() -> Codec {
    Codec::new(LOG, Encryption::default(), Limits::default())
}

/// Writes what others would not take: as many ancestors as there are.
pub(crate) fn unbounded() -> Codec {
    Codec::new(LOG, Encryption::default(), Limits { links: usize::MAX, ..Limits::default() })
}

fn draft(time: u64) -> Draft {
    Draft { time, next: vec![Hash::of(b"next")], refs: vec![Hash::of(b"a"), Hash::of(b"b")] }
}

fn payload() -> Value {
    Operation::put("key", Value::map([("n", Value::from(1_u64)), ("f", 1.5.into())])).into_payload()
}

/// Writes an entry's block, lets its fields be changed, and reads the result.
fn changed(change: impl FnOnce(&mut crate::cbor::Map)) -> Result<Received, BlockError> {
    let written = codec().write(&signer(1), draft(7), payload()).unwrap();
    let Value::Map(mut map) = Value::decode(&written.block).unwrap() else { unreachable!() };
    change(&mut map);
    codec().read(&Value::Map(map).encode().unwrap())
}

#[test]
fn an_entry_that_was_written_is_read_and_holds() {
    let signer = signer(1);
    let written = codec().write(&signer, draft(7), payload()).unwrap();
    let received = codec().read(&written.block).unwrap();
    assert_eq!(received.links, written.links);
    let entry = received.entry.unwrap();
    assert_eq!(entry.examine(Some(signer.identity())), Ok(signer.identity().key().to_bytes()));
    assert_eq!(codec().operation(&entry).unwrap().into_payload(), payload());
}

#[test]
fn a_foreign_key_that_names_an_admitted_identity_is_refused() {
    // Mallory signs everything rightly with a key of their own, and names Alice's identity.
    let (alice, mallory) = (signer(1), signer(2));
    let written = codec().write(&mallory, draft(7), payload()).unwrap();
    assert_eq!(written.entry.examine(Some(alice.identity())), Err(Refusal::Key));
    assert_eq!(written.entry.examine(None), Err(Refusal::Identity));
}

#[test]
fn what_is_signed_cannot_be_changed() {
    let alice = signer(1);
    let refused =
        |received: Result<Received, BlockError>| received.unwrap().entry.unwrap().examine(Some(alice.identity()));
    assert_eq!(refused(changed(|map| drop(map.insert("payload", "other")))), Err(Refusal::Signature));
    assert_eq!(refused(changed(|map| drop(map.insert("next", Value::List(vec![]))))), Err(Refusal::Signature));
    assert_eq!(refused(changed(|map| drop(map.insert("sig", "00")))), Err(Refusal::Signature));
    let clock = |id: &str| Value::map([("id", Value::from(id)), ("time", 7_u64.into())]);
    let other = signer(2).identity().key().to_string();
    assert_eq!(refused(changed(|map| drop(map.insert("clock", clock(&other))))), Err(Refusal::ClockId));
    assert_eq!(refused(changed(|map| drop(map.insert("key", other.as_str())))), Err(Refusal::Key));
}

#[test]
fn a_clock_of_another_writer_is_refused_even_when_it_is_signed() {
    let (alice, other) = (signer(1), signer(2).identity().key().to_string());
    let written = codec().write(&alice, draft(7), payload()).unwrap();
    let Value::Map(mut map) = Value::decode(&written.block).unwrap() else { unreachable!() };
    map.insert("clock", Value::map([("id", Value::from(other)), ("time", 7_u64.into())]));
    let mut signed = map.clone();
    for field in ["key", "sig", "identity"] {
        signed.remove(field);
    }
    map.insert("sig", alice.key().sign(&Value::Map(signed).encode().unwrap()));
    let entry = codec().read(&Value::Map(map).encode().unwrap()).unwrap().entry.unwrap();
    assert_eq!(entry.examine(Some(alice.identity())), Err(Refusal::ClockId));
}

#[test]
fn an_entry_under_another_logs_id_is_no_part_of_this_log() {
    let elsewhere = Codec::new(format!("{LOG}2"), Encryption::default(), Limits::default());
    let written = elsewhere.write(&signer(1), draft(7), payload()).unwrap();
    assert_eq!(codec().read(&written.block).unwrap_err(), BlockError::Log);
}

#[test]
fn what_javascript_might_take_keeps_its_place_in_the_graph() {
    let written = codec().write(&signer(1), draft(7), payload()).unwrap();
    let links = |received: Received| (received.links.next, received.links.refs, received.links.time);
    let expected = (written.links.next.clone(), written.links.refs.clone(), 7);
    let opaque = |received: Received| {
        assert_eq!(received.entry.as_ref().unwrap_err(), &Refusal::Form);
        links(received)
    };
    assert_eq!(opaque(changed(|map| drop(map.insert("more", 1_u64))).unwrap()), expected);
    assert_eq!(opaque(changed(|map| drop(map.insert("v", 3_u64))).unwrap()), expected);
    assert_eq!(opaque(changed(|map| drop(map.insert("identity", "none"))).unwrap()), expected);
    // A payload with a short float, which JavaScript reads and writes otherwise: in place of the operation's key.
    let position = written.block.windows(4).rposition(|window| window == b"ckey").unwrap();
    for odd in [[0xf9, 0x3c, 0x00].as_slice(), &[0xf7], &[0x81; 100_000]] {
        let end = if odd.len() > 100 { &[0][..] } else { &[] };
        let block = [&written.block[..position], odd, end, &written.block[position + 4..]].concat();
        assert_eq!(opaque(codec().read(&block).unwrap()), expected);
    }
}

#[test]
fn blocks_without_a_place_in_the_graph_are_refused() {
    assert!(matches!(changed(|map| drop(map.remove("next"))), Err(BlockError::Form(_))));
    assert!(matches!(changed(|map| drop(map.remove("clock"))), Err(BlockError::Form(_))));
    assert!(matches!(
        changed(|map| drop(map.insert("refs", Value::List(vec!["zdpu".into()])))),
        Err(BlockError::Form(_))
    ));
    assert!(matches!(codec().read(b""), Err(BlockError::Form(_))));
}

#[test]
fn an_entry_with_too_many_ancestors_does_not_count_and_keeps_its_place_in_the_graph() {
    let of = |next: usize, refs: usize| {
        let draft = Draft { time: 7, next: vec![Hash::of(b"a"); next], refs: vec![Hash::of(b"b"); refs] };
        (unbounded().write(&signer(1), draft.clone(), payload()).unwrap(), draft)
    };
    let most = Limits::default().links;
    assert!(codec().read(&of(most, most).0.block).unwrap().entry.is_ok());
    for (next, refs) in [(most + 1, 0), (0, most + 1), (8 * most, 8 * most)] {
        let (written, draft) = of(next, refs);
        let refused = codec().write(&signer(1), draft, payload()).map(drop);
        assert_eq!(refused, Err(WriteError::Links { links: next.max(refs), limit: most }), "nor is it written");
        let received = codec().read(&written.block).unwrap();
        assert_eq!((received.entry.unwrap_err(), received.links), (Refusal::Oversize, written.links));
    }
}

#[test]
fn too_large_entries_do_not_count_and_far_larger_blocks_are_not_read() {
    let limits = Limits { entry_bytes: 2000, block_bytes: 4000, ..Limits::default() };
    let bounded = Codec::new(LOG, Encryption::default(), limits);
    let of = |bytes: usize| codec().write(&signer(1), draft(7), Value::Bytes(vec![0; bytes])).unwrap();
    assert!(bounded.read(&of(1000).block).unwrap().entry.is_ok());
    let large = of(2000);
    let received = bounded.read(&large.block).unwrap();
    assert_eq!((received.links, received.entry.unwrap_err()), (large.links, Refusal::Oversize));
    assert_eq!(bounded.read(&of(4000).block).unwrap_err(), BlockError::Size);
    let refused = bounded.write(&signer(1), draft(7), Value::Bytes(vec![0; 2000]));
    assert!(matches!(refused, Err(WriteError::Oversize { limit: 2000, .. })));
    let narrow = Codec::new(LOG, Encryption::default(), Limits { block_bytes: 1000, ..limits });
    let refused = narrow.write(&signer(1), draft(7), Value::Bytes(vec![0; 1000]));
    assert!(matches!(refused, Err(WriteError::Oversize { limit: 1000, .. })), "nobody would look at the block");
}

#[test]
fn both_hooks_hide_what_they_are_for() {
    use crate::crypt::Algorithm;
    let full = Encryption::of_swarm_key(Algorithm::XChaCha20Poly1305, &[7; 32]);
    let only_data = Encryption { replication: None, ..full.clone() };
    let (codec_full, codec_data) =
        (Codec::new(LOG, full, Limits::default()), Codec::new(LOG, only_data, Limits::default()));
    let secret = Operation::put("k", "the secret text").into_payload();

    let written = codec_full.write(&signer(1), draft(7), secret.clone()).unwrap();
    assert!(matches!(codec().read(&written.block), Err(BlockError::Form(_))), "strangers see no entry");
    let entry = codec_full.read(&written.block).unwrap().entry.unwrap();
    assert!(entry.examine(Some(signer(1).identity())).is_ok());
    assert_eq!(codec_full.operation(&entry).unwrap().into_payload(), secret);

    let written = codec_data.write(&signer(1), draft(7), secret.clone()).unwrap();
    assert!(!written.block.windows(6).any(|window| window == b"secret"));
    let entry = codec().read(&written.block).unwrap().entry.unwrap();
    assert!(entry.examine(Some(signer(1).identity())).is_ok(), "strangers pass it on");
    assert!(codec().operation(&entry).is_none(), "and cannot read it");
    assert_eq!(codec_data.operation(&entry).unwrap().into_payload(), secret);
    let plain = codec().write(&signer(1), draft(7), secret).unwrap();
    assert!(codec_full.read(&plain.block).is_err());
    assert!(codec_data.operation(&plain.entry).is_none());
}
