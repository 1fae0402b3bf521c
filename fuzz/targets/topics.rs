//! Messages of the seven topics: the first byte chooses the topic (`0` to `6`), the rest is the message.
#![no_main]

use std::sync::LazyLock;

use bombus_core::identity::{NodeId, NodeKey};
use bombus_core::topics::{Judgement, MESSAGE_BYTES_MAX, ReplayGuard, Timestamp, Topic, judge};
use libfuzzer_sys::fuzz_target;

/// The seeds name this node.
static SIGNER: LazyLock<NodeId> = LazyLock::new(|| NodeKey::from_secret(&[1; 32]).node_id());

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    let topic = Topic::ALL[usize::from(first.wrapping_sub(b'0')) % Topic::ALL.len()];
    // 2025-07-12T02:00:00Z, the time of the samples.
    let now = Timestamp::from_unix_ms(1_752_285_600_000);
    let mut seen = ReplayGuard::new();
    let judgement = judge(topic, &SIGNER, bytes, now, &mut seen);
    // What is rejected costs a forwarder score, so it is rejected by every node, whatever its clock and its memory.
    let later = Timestamp::from_unix_ms(now.unix_ms() + 86_400_000);
    let elsewhere = judge(topic, &SIGNER, bytes, later, &mut seen);
    let is_rejected = |judgement: &Judgement| matches!(judgement, Judgement::Reject(_));
    assert_eq!(is_rejected(&judgement), is_rejected(&elsewhere));
    let Judgement::Accept(message) = judgement else { return };
    assert!(bytes.len() <= MESSAGE_BYTES_MAX);
    assert_eq!(message.topic(), topic);
    assert!(message.sender().is_none_or(|sender| sender == SIGNER.as_str()));
    assert!(!matches!(judge(topic, &SIGNER, bytes, now, &mut seen), Judgement::Accept(_)), "accepted twice");
    // Written again it means the same.
    let written = message.encode().expect("what was accepted is within bounds");
    match judge(topic, &SIGNER, &written, now, &mut ReplayGuard::new()) {
        Judgement::Accept(again) => assert_eq!(again, message),
        other => panic!("its own words are not accepted: {other:?}"),
    }
});
