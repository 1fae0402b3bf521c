use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// The name of a block of DAG-CBOR, as databases have it.
fn dag_cbor(data: &[u8]) -> Cid {
    Cid::new_v1(0x71, Multihash::wrap(SHA2_256, &Sha256::digest(data)).unwrap())
}

fn want(cid: Cid) -> Want {
    Want { cid, priority: 1, is_cancel: false, wants_block: true, tell_absent: true }
}

#[test]
fn a_want_is_written_as_others_write_it() {
    let cid = dag_cbor(b"block");
    let entries = vec![Entry::want(&cid), Entry::cancel(&cid)];
    let message = Message { wantlist: Some(Wantlist { entries, full: false }), ..Message::default() };
    let name = hex::encode(cid.to_bytes());
    assert!(name.starts_with("01711220"));
    // Field 1: a list of 84 bytes; in it an entry of 42, with priority 1 and word wanted if it is absent, and one of 40, which cancels.
    let expected = format!("0a560a2a0a24{name}100128010a280a24{name}1801");
    assert_eq!(hex::encode(message.encode_to_vec()), expected);
}

#[test]
fn a_block_is_written_with_the_beginning_of_its_name() {
    let block = Block::new(&dag_cbor(b"abc"), b"abc".to_vec());
    let message = Message { payload: vec![block], ..Message::default() };
    assert_eq!(hex::encode(message.encode_to_vec()), "1a0b0a04017112201203616263");
}

#[test]
fn what_js_writes_is_read() {
    // A list with a want for a block, with every field written; that it is not the full list; no bytes pending.
    let cid = dag_cbor(b"block");
    let name = hex::encode(cid.to_bytes());
    let bytes = hex::decode(format!("0a320a2e0a24{name}1001180020002801{}2800", "1000")).unwrap();
    let heard = decode(&bytes).unwrap();
    assert_eq!(heard, Heard { wants: vec![want(cid)], ..Heard::default() });
}

#[test]
fn a_block_has_the_name_of_its_bytes_and_no_other() {
    let cid = dag_cbor(b"true");
    assert_eq!(Block::new(&cid, b"true".to_vec()).name(), Some(cid));
    let forged = Block::new(&cid, b"forged".to_vec()).name();
    assert_eq!(forged, Some(dag_cbor(b"forged")), "its name follows from what came, not from what was said");
    let old = Cid::new_v0(*cid.hash()).unwrap();
    assert_eq!(Block::new(&old, b"true".to_vec()).name(), Some(old));
}

#[test]
fn a_block_under_another_hash_has_no_name() {
    for prefix in ["", "1220", "0171", "01711320", "017112", "01711221", "02711220", "0171122000", "ffffffff1220"] {
        let block = Block { prefix: hex::decode(prefix).unwrap(), data: b"data".to_vec() };
        assert_eq!(block.name(), None, "{prefix}");
    }
}

#[test]
fn names_that_are_none_are_passed_over_and_counted() {
    let good = dag_cbor(b"good");
    let mut entries = vec![Entry::want(&good); 3];
    entries[0].cid.push(0);
    entries[1].cid.truncate(20);
    let presences = vec![Presence { cid: Vec::new(), r#type: 1 }, Presence::new(&good, false)];
    let message = Message { wantlist: Some(Wantlist { entries, full: true }), presences, ..Message::default() };
    let heard = decode(&message.encode_to_vec()).unwrap();
    assert_eq!((heard.unreadable, heard.is_full), (3, true));
    assert_eq!((heard.wants, heard.presences), (vec![want(good)], vec![(good, false)]));
}

#[test]
fn a_message_that_would_fill_the_memory_is_refused_before_it_does() {
    // Two million empty blocks, and as many empty wants: two bytes each here, some fifty each in memory.
    let blocks = [0x1a, 0x00].repeat(2 << 20);
    assert!(matches!(decode(&blocks), Err(Refused::TooMany)));
    let wants = [0x0a, 0x00].repeat(1 << 20);
    let mut list = vec![0x0a];
    prost::encode_length_delimiter(wants.len(), &mut list).unwrap();
    list.extend(wants);
    assert!(matches!(decode(&list), Err(Refused::TooMany)));
    assert!(decode(&[0x1a, 0x00].repeat(ELEMENTS_MAX)).is_ok());
}

#[test]
fn what_is_no_message_is_refused() {
    for bytes in ["0a", "0a05", "1aff", "0b", "0c", "80", "0affffffffffffffffff01", "1a0212", "08"] {
        assert!(decode(&hex::decode(bytes).unwrap()).is_err(), "{bytes}");
    }
    assert_eq!(decode(&[]).unwrap(), Heard::default());
    let unknown = hex::decode("28057a01ff").unwrap();
    assert_eq!(decode(&unknown).unwrap(), Heard::default(), "fields that are not known are passed over");
}

#[tokio::test]
async fn lengths_are_bounded_before_anything_is_read() {
    let length = async |mut bytes: &[u8]| read_length(&mut bytes, 1_000).await;
    assert_eq!(length(&[]).await.unwrap(), None);
    assert_eq!(length(&[0xe8, 0x07]).await.unwrap(), Some(1_000));
    for (bytes, kind) in [
        (&[0xe9, 0x07][..], io::ErrorKind::InvalidData),
        (&[0xff, 0xff, 0xff, 0xff, 0x7f], io::ErrorKind::InvalidData),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0x01], io::ErrorKind::InvalidData),
        (&[0xff], io::ErrorKind::UnexpectedEof),
    ] {
        assert_eq!(length(bytes).await.unwrap_err().kind(), kind, "{bytes:?}");
    }
    let body = read_body(&mut &b"cut off"[..], 8).await;
    assert_eq!(body.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

fn any_cid() -> impl Strategy<Value = Cid> {
    (any::<[u8; 32]>(), any::<u32>())
        .prop_map(|(digest, codec)| Cid::new_v1(codec.into(), Multihash::wrap(SHA2_256, &digest).unwrap()))
}

fn any_want() -> impl Strategy<Value = Want> {
    (any_cid(), any::<i32>(), any::<[bool; 3]>()).prop_map(|(cid, priority, [is_cancel, wants_block, tell_absent])| {
        Want { cid, priority, is_cancel, wants_block, tell_absent }
    })
}

fn any_heard() -> impl Strategy<Value = Heard> {
    let blocks = vec((any_cid(), vec(any::<u8>(), 0..100)).prop_map(|(cid, data)| Block::new(&cid, data)), 0..10);
    let presences = vec((any_cid(), any::<bool>()), 0..10);
    (any::<bool>(), vec(any_want(), 0..10), blocks, presences).prop_map(|(is_full, wants, blocks, presences)| Heard {
        is_full,
        wants,
        blocks,
        presences,
        unreadable: 0,
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(heard in any_heard()) {
        prop_assert_eq!(decode(&heard.encode()).unwrap(), heard);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..300)) {
        if let Ok(heard) = decode(&bytes) {
            prop_assert_eq!(decode(&heard.encode()).unwrap().wants, heard.wants);
        }
    }

    #[test]
    fn a_message_that_is_cut_off_is_refused_or_says_less(heard in any_heard(), part in 0.0..1.0) {
        let bytes = heard.encode();
        let cut = &bytes[..(bytes.len() as f64 * part) as usize];
        if let Ok(less) = decode(cut) {
            prop_assert!(less.wants.len() <= heard.wants.len() && less.blocks.len() <= heard.blocks.len());
            prop_assert!(heard.blocks.starts_with(&less.blocks));
        }
    }
}
