//! A failure detector among peers that say anything. The input is a script: each step is a byte for what happens, one for whom it is about,
//! and, for datagrams, one for a length and so many bytes.
#![no_main]

use std::sync::LazyLock;

use bombus_core::identity::{BootId, NodeId, NodeKey};
use bombus_core::liveness::{DATAGRAM_BYTES_MAX, Detector, DetectorConfig, LivenessInput, LivenessOutput};
use libfuzzer_sys::fuzz_target;

/// This node, and the peers around it.
static NODES: LazyLock<Vec<NodeId>> =
    LazyLock::new(|| (1..=5).map(|seed| NodeKey::from_secret(&[seed; 32]).node_id()).collect());

/// What one step may bring about at most: many times what a swarm of five nodes needs.
const OUTPUTS_MAX: usize = 256;

fn take<'a>(data: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = data.split_at(count.min(data.len()));
    *data = rest;
    taken
}

fuzz_target!(|data: &[u8]| {
    let mut script = data;
    let mut detector = Detector::new(&NODES[0], BootId::new(7), DetectorConfig::default(), 42);
    let mut now_ms = 1_000;
    for _ in 0..512 {
        let &[kind, whom] = take(&mut script, 2) else { return };
        let peer = NODES[usize::from(whom) % NODES.len()].clone();
        now_ms += u64::from(whom) * 8;
        let input = match kind % 9 {
            0 => LivenessInput::Connected(peer),
            1 => LivenessInput::Disconnected(peer),
            2 => LivenessInput::Released(peer),
            3 => LivenessInput::Goodbye(peer),
            4 => LivenessInput::Watch(peer),
            5 => LivenessInput::Unwatch(peer),
            6 => LivenessInput::Tick,
            _ => {
                let length = take(&mut script, 1).first().copied().unwrap_or_default();
                LivenessInput::Datagram { from: peer, bytes: take(&mut script, usize::from(length) * 6).to_vec() }
            }
        };
        let outputs = detector.on(now_ms, input);
        assert!(outputs.len() <= OUTPUTS_MAX, "{} outputs of one input", outputs.len());
        for output in outputs {
            match output {
                LivenessOutput::Send { to, bytes } => {
                    assert!(bytes.len() <= DATAGRAM_BYTES_MAX, "a datagram of {} bytes", bytes.len());
                    assert_ne!(to, NODES[0], "it sends to itself");
                }
                LivenessOutput::State { peer, .. } => assert_ne!(peer, NODES[0], "it judges itself"),
                LivenessOutput::WakeAt(at_ms) => assert!(at_ms >= now_ms, "it wakes in the past"),
                LivenessOutput::SameIdentity { .. } => {}
            }
        }
    }
});
