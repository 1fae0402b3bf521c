//! Tests of sealing.

use bombus_core::identity::{NodeId, NodeKey};
use data_encoding::{BASE64, HEXLOWER};
use proptest::prelude::*;

use super::envelope::unwrap;
use super::*;

fn node(number: u8) -> NodeKey {
    NodeKey::from_secret(&[number; 32])
}

fn key(number: u8) -> SealKey {
    SealKey::from_secret(&[number; 32])
}

fn recipient(number: u8) -> (NodeId, PublicSealKey) {
    (node(number).node_id(), key(number).public())
}

/// Seals a prompt of node 1 for task `t`.
fn sealed(plain: &[u8], recipients: &[u8]) -> Sealed {
    let recipients: Vec<_> = recipients.iter().map(|number| recipient(*number)).collect();
    seal(&Purpose { task: "t", role: Role::Prompt, from: &node(1).node_id() }, plain, &recipients).unwrap()
}

/// Opens it as a node, with that node's key.
fn opened(sealed: &Sealed, number: u8) -> Result<Vec<u8>, OpenError> {
    opened_with(sealed, number, &key(number))
}

fn opened_with(sealed: &Sealed, number: u8, key: &SealKey) -> Result<Vec<u8>, OpenError> {
    let from = node(1).node_id();
    let purpose = Purpose { task: "t", role: Role::Prompt, from: &from };
    open(&purpose, &sealed.header, &sealed.text, &node(number).node_id(), key).map(|plain| plain.to_vec())
}

fn hex<const N: usize>(text: &str) -> [u8; N] {
    HEXLOWER.decode(text.as_bytes()).unwrap().try_into().unwrap()
}

/// Keys, info, aad and plaintext are those of RFC 9180, appendix A.1.1, first encryption. The appendix has no X25519 with AES-256-GCM: the
/// ciphertext is by an implementation of its own (in Python) that gives the appendix's own ciphertext with AES-128-GCM.
#[test]
fn the_suite_is_that_of_rfc_9180() {
    let key = SealKey::from_secret(&hex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8"));
    let public = hex::<32>("3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d");
    assert_eq!(key.public().as_bytes(), &public);
    let opened = unwrap(
        &key,
        &hex("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431"),
        &hex::<20>("4f6465206f6e2061204772656369616e2055726e"),
        &hex::<45>("090b7dc225419f7da9e8b460becfbb96a26c7964d79b8010d397fa838530a32a397b14f5776db19ff5e57734e0"),
        &hex::<7>("436f756e742d30"),
    );
    assert_eq!(*opened.unwrap(), hex::<29>("4265617574792069732074727574682c20747275746820626561757479"));
}

#[test]
fn each_recipient_opens_it_alone_and_nobody_else_does() {
    let sealed = sealed("Wie heißt du?".as_bytes(), &[2, 3]);
    for number in [2, 3] {
        assert_eq!(opened(&sealed, number).unwrap(), "Wie heißt du?".as_bytes());
    }
    assert_eq!(opened(&sealed, 4), Err(OpenError::NotForUs));
    assert_eq!(opened(&sealed, 1), Err(OpenError::NotForUs), "not even who sealed it");
    assert!(sealed.header.is_for(&node(2).node_id()) && !sealed.header.is_for(&node(4).node_id()));
    assert!(sealed.header.recipients().eq([&node(2).node_id(), &node(3).node_id()]));
}

#[test]
fn the_wrong_key_opens_nothing() {
    let sealed = sealed(b"plain", &[2, 3]);
    assert_eq!(opened_with(&sealed, 2, &key(4)), Err(OpenError::Refused));
    assert_eq!(opened_with(&sealed, 2, &key(3)), Err(OpenError::Refused), "not even another recipient's");
}

#[test]
fn the_same_text_is_sealed_differently_each_time() {
    let (one, other) = (sealed(b"plain", &[2]), sealed(b"plain", &[2]));
    assert_ne!(one.text, other.text);
    let (one, other) = (serde_json::to_string(&one.header).unwrap(), serde_json::to_string(&other.header).unwrap());
    assert_ne!(one, other);
}

#[test]
fn it_opens_for_its_task_its_role_and_its_sender_only() {
    let sealed = sealed(b"plain", &[2]);
    let (from, other) = (node(1).node_id(), node(3).node_id());
    let own = node(2).node_id();
    let of = |task, role, from| open(&Purpose { task, role, from }, &sealed.header, &sealed.text, &own, &key(2));
    assert!(of("t", Role::Prompt, &from).is_ok());
    assert_eq!(of("t", Role::Result, &from), Err(OpenError::Refused));
    assert_eq!(of("t2", Role::Prompt, &from), Err(OpenError::Refused));
    assert_eq!(of("t", Role::Prompt, &other), Err(OpenError::Refused));
}

#[test]
fn a_key_wrapped_for_one_is_not_good_under_another_name() {
    // Node 3 is known by node 2's key, which must not let what was sealed to node 2 pass for something sealed to node 3.
    let mut json = serde_json::to_value(&sealed(b"plain", &[2]).header).unwrap();
    let text = sealed(b"plain", &[2]).text;
    json["keys"][0]["node"] = node(3).node_id().as_str().into();
    let moved = Sealed { header: serde_json::from_value(json).unwrap(), text };
    assert_eq!(opened_with(&moved, 3, &key(2)), Err(OpenError::Refused));
}

#[test]
fn what_was_changed_anywhere_does_not_open() {
    let sealed = sealed(b"a plain text of some length", &[2]);
    let flip = |text: &str, at: usize| {
        let mut bytes = BASE64.decode(text.as_bytes()).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 1;
        BASE64.encode(&bytes)
    };
    for at in 0..12 + 27 + 16 {
        let changed = Sealed { text: flip(&sealed.text, at), ..sealed.clone() };
        assert_eq!(opened(&changed, 2), Err(OpenError::Refused), "byte {at}");
    }
    let json = serde_json::to_value(&sealed.header).unwrap();
    for (field, length) in [("enc", 32), ("key", 48)] {
        // X25519 takes no notice of the highest bit of the last byte, but HPKE binds the bytes as they came.
        for at in 0..length {
            let mut json = json.clone();
            json["keys"][0][field] = flip(json["keys"][0][field].as_str().unwrap(), at).into();
            let changed = Sealed { header: serde_json::from_value(json).unwrap(), ..sealed.clone() };
            assert_eq!(opened(&changed, 2), Err(OpenError::Refused), "{field}, byte {at}");
        }
    }
}

#[test]
fn what_is_no_sealed_text_is_said_to_be_none() {
    let good = sealed(b"plain", &[2]);
    let header = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json = serde_json::to_value(&good.header).unwrap();
        change(&mut json);
        Sealed { header: serde_json::from_value(json).unwrap(), ..good.clone() }
    };
    let text = |text: &str| Sealed { text: text.to_owned(), ..good.clone() };
    assert_eq!(opened(&header(&|json| json["v"] = 2.into()), 2), Err(OpenError::Version(2)));
    let long = "A".repeat(1_000_000);
    let forms = [
        header(&|json| json["keys"][0]["enc"] = "AAAA".into()),
        header(&|json| json["keys"][0]["key"] = long.clone().into()),
        header(&|json| json["keys"] = vec![json["keys"][0].clone(); RECIPIENTS_MAX + 1].into()),
        text(""),
        text("AAAA"),
        text("not base64"),
    ];
    for form in &forms {
        assert!(matches!(opened(form, 2), Err(OpenError::Form(_))), "{form:?}");
    }
}

#[test]
fn recipients_and_size_are_bounded() {
    let from = node(1).node_id();
    let purpose = Purpose { task: "t", role: Role::Prompt, from: &from };
    assert_eq!(seal(&purpose, b"", &[]), Err(SealError::Recipients(0)));
    let many = vec![recipient(2); RECIPIENTS_MAX + 1];
    assert_eq!(seal(&purpose, b"", &many), Err(SealError::Recipients(RECIPIENTS_MAX + 1)));
    assert!(seal(&purpose, b"", &many[1..]).is_ok());
    let large = vec![0; SEALED_BYTES_MAX + 1];
    assert_eq!(seal(&purpose, &large, &many[..1]), Err(SealError::TooLarge(SEALED_BYTES_MAX + 1)));
    let zero: PublicSealKey = BASE64.encode(&[0; 32]).parse().unwrap();
    assert_eq!(seal(&purpose, b"", &[(from.clone(), zero)]), Err(SealError::WeakKey), "everybody could open it");
}

#[test]
fn a_node_s_key_counts_with_its_own_signature_only() {
    let claim = key(2).public().claimed_by(&node(2));
    assert_eq!(PublicSealKey::verified(&claim, &node(2).node_id()), Ok(key(2).public()));
    assert_eq!(PublicSealKey::verified(&claim, &node(3).node_id()), Err(SealKeyError::Signature));
    let of_another_key = key(3).public().claimed_by(&node(2));
    let mixed = bombus_core::topics::SealKeyClaim { signature: of_another_key.signature, ..claim.clone() };
    assert_eq!(PublicSealKey::verified(&mixed, &node(2).node_id()), Err(SealKeyError::Signature));
    for signature in ["", "AAAA", "?"] {
        let unsigned = bombus_core::topics::SealKeyClaim { signature: signature.to_owned(), ..claim.clone() };
        assert_eq!(PublicSealKey::verified(&unsigned, &node(2).node_id()), Err(SealKeyError::Signature));
    }
}

#[test]
fn keys_are_base64_of_32_bytes_and_the_secret_is_never_shown() {
    let public = key(2).public();
    assert_eq!(BASE64.decode(public.to_string().as_bytes()).unwrap().len(), 32);
    assert_eq!(public.to_string().parse(), Ok(public));
    assert_ne!(key(2).public(), key(3).public());
    for text in ["", "AAAA", &"A".repeat(44), "12D3KooW"] {
        assert!(text.parse::<PublicSealKey>().is_err(), "{text}");
    }
    assert_eq!(format!("{:?}", key(2)), format!("SealKey({public:?})"));
}

proptest! {
    #[test]
    fn any_bytes_come_back_and_cost_a_known_length(plain in proptest::collection::vec(any::<u8>(), 0..5_000)) {
        let sealed = sealed(&plain, &[2]);
        prop_assert_eq!(BASE64.decode(sealed.text.as_bytes()).unwrap().len(), 12 + plain.len() + 16);
        prop_assert_eq!(opened(&sealed, 2).unwrap(), plain);
    }
}
