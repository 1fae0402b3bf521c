use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::identity::{NodeId, NodeKey};

use super::TaskId;

/// Binds a proof to this use of a node's key.
const DOMAIN: &[u8] = b"bombus task proof 1\0";

/// So many proofs a [`ProofMemo`] remembers.
pub const PROOFS_MAX: usize = 65_536;

/// Returns what a node signs to say that it writes about a task under an `OrbitDB` identity: a domain, the task's id, a zero byte
/// and the id of the identity. The signature proves nothing about other tasks or identities, so it cannot be carried over.
#[must_use]
pub fn proof_bytes(task: &TaskId, identity: &str) -> Vec<u8> {
    [DOMAIN, task.as_str().as_bytes(), b"\0", identity.as_bytes()].concat()
}

/// Makes the proof that the node of a key writes about a task under an `OrbitDB` identity: an Ed25519 signature in base64.
#[must_use]
pub fn prove(key: &NodeKey, task: &TaskId, identity: &str) -> String {
    STANDARD.encode(key.sign(&proof_bytes(task, identity)))
}

/// Returns whether a proof says that a node writes about a task under an `OrbitDB` identity.
#[must_use]
pub fn proof_holds(node: &NodeId, task: &TaskId, identity: &str, proof: &str) -> bool {
    // 64 bytes in base64, so that nothing longer is decoded.
    if proof.len() != 88 {
        return false;
    }
    let signature = STANDARD.decode(proof).ok().and_then(|bytes| bytes.try_into().ok());
    signature.is_some_and(|signature| node.signed(&proof_bytes(task, identity), &signature))
}

/// Remembers which proofs hold, since a task is looked at anew with every entry about it. It forgets all when it is full.
#[derive(Debug, Default)]
pub struct ProofMemo {
    /// By the SHA-256 of everything that was checked.
    known: Mutex<HashMap<[u8; 32], bool>>,
}

impl ProofMemo {
    /// Returns what [`proof_holds`] says.
    pub fn holds(&self, node: &NodeId, task: &TaskId, identity: &str, proof: &str) -> bool {
        let key = Self::key(node, task, identity, proof);
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return *known;
        }
        let holds = proof_holds(node, task, identity, proof);
        self.insert(key, holds);
        holds
    }

    /// Makes the proof that [`prove`] makes, and remembers that it holds.
    pub fn prove(&self, key: &NodeKey, node: &NodeId, task: &TaskId, identity: &str) -> String {
        let proof = prove(key, task, identity);
        self.insert(Self::key(node, task, identity, &proof), true);
        proof
    }

    fn key(node: &NodeId, task: &TaskId, identity: &str, proof: &str) -> [u8; 32] {
        let mut hash = Sha256::new();
        for text in [node.as_str(), task.as_str(), identity, proof] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        hash.finalize().into()
    }

    fn insert(&self, key: [u8; 32], holds: bool) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= PROOFS_MAX {
            known.clear();
        }
        known.insert(key, holds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_good_for_its_node_task_and_identity_alone() {
        let key = NodeKey::from_secret(&[7; 32]);
        let (node, other) = (key.node_id(), NodeKey::from_secret(&[8; 32]).node_id());
        let task = TaskId::parse("t").unwrap();
        let proof = prove(&key, &task, "02ab");
        let memo = ProofMemo::default();
        for check in [proof_holds, |n: &NodeId, t: &TaskId, i: &str, p: &str| ProofMemo::default().holds(n, t, i, p)] {
            assert!(check(&node, &task, "02ab", &proof));
            assert!(!check(&other, &task, "02ab", &proof));
            assert!(!check(&node, &TaskId::parse("u").unwrap(), "02ab", &proof));
            assert!(!check(&node, &task, "02ac", &proof));
            assert!(!check(&node, &task, "02ab", &proof.replace('A', "B")) || !proof.contains('A'));
            assert!(!check(&node, &task, "02ab", ""));
        }
        assert_eq!(ProofMemo::default().prove(&key, &node, &task, "02ab"), proof);
        for _ in 0..2 {
            assert!(memo.holds(&node, &task, "02ab", &proof));
            assert!(!memo.holds(&other, &task, "02ab", &proof));
        }
    }
}
