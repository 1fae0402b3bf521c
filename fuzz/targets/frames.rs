//! Frames of the swarm's own streams, as a peer sends them: the first byte chooses between first words (`h`), which are judged like
//! messages of the topic `capabilities`, and datagrams of the failure detector.
#![no_main]

use std::sync::LazyLock;

use bombus_core::identity::{NodeId, NodeKey};
use bombus_core::topics::{Judgement, ReplayGuard, Timestamp, Topic, TopicMessage, judge};
use bombus_swarm::fuzzing::{FRAME_MAX, datagrams, hellos};
use libfuzzer_sys::fuzz_target;

/// The seeds name this node.
static SIGNER: LazyLock<NodeId> = LazyLock::new(|| NodeKey::from_secret(&[1; 32]).node_id());

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    let (is_hello, length_bytes) = if *first == b'h' { (true, 4) } else { (false, 2) };
    let (frames, _) = if is_hello { hellos(bytes) } else { datagrams(bytes) };
    let mut rest = bytes;
    for frame in frames {
        assert!(frame.len() <= FRAME_MAX[usize::from(!is_hello)], "a frame of {} bytes", frame.len());
        assert_eq!(&rest[length_bytes..length_bytes + frame.len()], frame, "it is what was sent, whole and in order");
        rest = &rest[length_bytes + frame.len()..];
        if !is_hello {
            continue;
        }
        // 2025-07-12T02:00:00Z, the time of the samples.
        let now = Timestamp::from_unix_ms(1_752_285_600_000);
        if let Judgement::Accept(message) = judge(Topic::Capabilities, &SIGNER, &frame, now, &mut ReplayGuard::new()) {
            assert!(matches!(message, TopicMessage::Capabilities(_)), "{message:?}");
        }
    }
});
