//! A change of a swarm that its owner signed.

use std::collections::BTreeSet;

use bombus_core::identity::NodeId;
use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::key::KeyHash;
use super::{Generation, OwnerId, OwnerKey, SwarmId, SwarmKey, peer_key};

/// How many peers a swarm may have removed.
pub(super) const REMOVED_MAX: usize = 1_024;
/// The highest generation: every number up to it is exact in JSON, too.
pub(super) const GENERATION_MAX: u64 = 1 << 53;
/// What keeps these signatures apart from all others that the key makes.
const SIGNING_DOMAIN: &[u8] = b"bombus/membership/change/1\0";

/// What a swarm's owner signed: that from `generation` on the key is the one of a certain hash, and who is removed.
///
/// The signature is Ed25519 over these bytes: `"bombus/membership/change/1\0"`, the length of the swarm id (1 byte) and its text, the
/// generation (8 bytes, big-endian), the hash of the key (32 bytes), the number of removed peers (4 bytes, big-endian), and their
/// public keys (32 bytes each) in ascending order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredChange", into = "StoredChange")]
pub struct SignedChange {
    swarm_id: SwarmId,
    generation: Generation,
    key_hash: KeyHash,
    removed: BTreeSet<NodeId>,
    signature: [u8; 64],
}

impl SignedChange {
    /// Signs a change. There are at most [`REMOVED_MAX`] removed peers.
    pub(super) fn sign(owner: &OwnerKey, generation: Generation, key: &SwarmKey, removed: BTreeSet<NodeId>) -> Self {
        let swarm_id = SwarmId::of(&owner.id());
        let mut change = Self { swarm_id, generation, key_hash: key.hash(), removed, signature: [0; 64] };
        change.signature = owner.sign(&change.canonical());
        change
    }

    /// Returns the swarm that it is about.
    #[must_use]
    pub fn swarm_id(&self) -> &SwarmId {
        &self.swarm_id
    }

    /// Returns the generation that it begins.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Returns all peers that were removed up to it.
    #[must_use]
    pub fn removed(&self) -> &BTreeSet<NodeId> {
        &self.removed
    }

    /// Says whether the swarm's owner signed it.
    #[must_use]
    pub fn is_signed_by(&self, owner: &OwnerId) -> bool {
        owner.verifies(&self.canonical(), &self.signature)
    }

    pub(super) fn key_hash(&self) -> KeyHash {
        self.key_hash
    }

    /// Returns the hash of what is signed, by which peers name the change.
    pub(super) fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.canonical()).into()
    }

    /// Reads a change as it is sent (CBOR). Whether it is signed is another question.
    ///
    /// # Errors
    ///
    /// When the bytes are no change, or go on after it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ChangeError> {
        let mut decoder = minicbor::Decoder::new(bytes);
        let sent: SentChange = decoder.decode().map_err(|error| ChangeError::Encoding(error.to_string()))?;
        if decoder.position() != bytes.len() {
            return Err(ChangeError::Encoding("it goes on after its end".to_owned()));
        }
        sent.try_into()
    }

    /// Writes the change as it is sent.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let sent = SentChange {
            swarm_id: self.swarm_id.to_string(),
            generation: self.generation.0,
            key_hash: self.key_hash.0.into(),
            removed: peer_key::to_sorted(&self.removed),
            signature: self.signature.into(),
        };
        minicbor::to_vec(sent).expect("memory takes all that is written")
    }

    fn canonical(&self) -> Vec<u8> {
        let id = self.swarm_id.as_str().as_bytes();
        let mut bytes = SIGNING_DOMAIN.to_vec();
        bytes.push(u8::try_from(id.len()).expect("a swarm's id is short"));
        bytes.extend_from_slice(id);
        bytes.extend_from_slice(&self.generation.0.to_be_bytes());
        bytes.extend_from_slice(&self.key_hash.0);
        let count = u32::try_from(self.removed.len()).expect("removed peers are few");
        bytes.extend_from_slice(&count.to_be_bytes());
        for key in peer_key::to_sorted(&self.removed) {
            bytes.extend_from_slice(&*key);
        }
        bytes
    }

    fn from_parts(
        swarm_id: &str,
        generation: u64,
        key_hash: [u8; 32],
        removed: BTreeSet<NodeId>,
        signature: [u8; 64],
    ) -> Result<Self, ChangeError> {
        let swarm_id = swarm_id.parse().map_err(|_| ChangeError::SwarmId)?;
        if generation > GENERATION_MAX {
            return Err(ChangeError::Generation(generation));
        }
        Ok(Self { swarm_id, generation: Generation(generation), key_hash: KeyHash(key_hash), removed, signature })
    }
}

/// Says why bytes are no change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// They are not the CBOR that is expected.
    #[error("a change is not encoded as it should be: {0}")]
    Encoding(String),
    /// The swarm's id is none.
    #[error("a change is about a swarm with an impossible id")]
    SwarmId,
    /// The generation is too high.
    #[error("a change has the generation {0}, and the highest is {GENERATION_MAX}")]
    Generation(u64),
    /// A removed peer is none.
    #[error("a change removes what is no node")]
    Node,
    /// There are too many removed peers.
    #[error("a change removes {0} peers, and at most {REMOVED_MAX} can be")]
    TooManyRemoved(usize),
}

/// A change on its way to a peer. Unknown fields are ignored.
#[derive(Encode, Decode)]
#[cbor(map)]
struct SentChange {
    #[n(0)]
    swarm_id: String,
    #[n(1)]
    generation: u64,
    #[n(2)]
    key_hash: ByteArray<32>,
    #[n(3)]
    removed: Vec<ByteArray<32>>,
    #[n(4)]
    signature: ByteArray<64>,
}

impl TryFrom<SentChange> for SignedChange {
    type Error = ChangeError;

    fn try_from(sent: SentChange) -> Result<Self, ChangeError> {
        if sent.removed.len() > REMOVED_MAX {
            return Err(ChangeError::TooManyRemoved(sent.removed.len()));
        }
        let nodes = sent.removed.iter().map(|key| peer_key::from_bytes(key).ok_or(ChangeError::Node));
        let removed = nodes.collect::<Result<_, _>>()?;
        Self::from_parts(&sent.swarm_id, sent.generation, sent.key_hash.into(), removed, sent.signature.into())
    }
}

/// A change on disk.
#[derive(Serialize, Deserialize)]
struct StoredChange {
    swarm_id: String,
    generation: u64,
    key_hash: String,
    removed: Vec<String>,
    signature: String,
}

impl From<SignedChange> for StoredChange {
    fn from(change: SignedChange) -> Self {
        Self {
            swarm_id: change.swarm_id.to_string(),
            generation: change.generation.0,
            key_hash: hex::encode(change.key_hash.0),
            removed: change.removed.iter().map(ToString::to_string).collect(),
            signature: hex::encode(change.signature),
        }
    }
}

impl TryFrom<StoredChange> for SignedChange {
    type Error = ChangeError;

    fn try_from(stored: StoredChange) -> Result<Self, ChangeError> {
        if stored.removed.len() > REMOVED_MAX {
            return Err(ChangeError::TooManyRemoved(stored.removed.len()));
        }
        let nodes = stored.removed.iter().map(|id| NodeId::parse(id).map_err(|_| ChangeError::Node));
        let removed = nodes.collect::<Result<_, _>>()?;
        let (mut key_hash, mut signature) = ([0; 32], [0; 64]);
        hex::decode_to_slice(&stored.key_hash, &mut key_hash)
            .and_then(|()| hex::decode_to_slice(&stored.signature, &mut signature))
            .map_err(|error| ChangeError::Encoding(error.to_string()))?;
        Self::from_parts(&stored.swarm_id, stored.generation, key_hash, removed, signature)
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;
    use proptest::prelude::*;

    use super::*;

    fn owner() -> OwnerKey {
        OwnerKey::from_secret(&[1; 32])
    }

    fn node(seed: u8) -> NodeId {
        NodeKey::from_secret(&[seed; 32]).node_id()
    }

    fn change(generation: u64, removed: &[u8]) -> SignedChange {
        let removed = removed.iter().copied().map(node).collect();
        SignedChange::sign(&owner(), Generation(generation), &SwarmKey::from_bytes([3; 32]), removed)
    }

    #[test]
    fn what_is_signed_is_written_down_to_the_byte() {
        let canonical = change(2, &[7]).canonical();
        let id = SwarmId::of(&owner().id());
        let mut expected = b"bombus/membership/change/1\0\x10".to_vec();
        expected.extend_from_slice(id.as_str().as_bytes());
        expected.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 2]);
        expected.extend_from_slice(&SwarmKey::from_bytes([3; 32]).hash().0);
        expected.extend_from_slice(&[0, 0, 0, 1]);
        expected.extend_from_slice(&peer_key::to_bytes(&node(7)));
        assert_eq!(canonical, expected);
    }

    #[test]
    fn whatever_is_altered_ends_the_signature() {
        let signed = change(2, &[7, 8]);
        let owner = owner().id();
        assert!(signed.is_signed_by(&owner));
        let other = SwarmId::of(&OwnerKey::from_secret(&[2; 32]).id());
        let altered = [
            SignedChange { swarm_id: other, ..signed.clone() },
            SignedChange { generation: Generation(3), ..signed.clone() },
            SignedChange { key_hash: KeyHash([0; 32]), ..signed.clone() },
            SignedChange { removed: [node(7)].into(), ..signed.clone() },
            SignedChange { signature: change(3, &[]).signature, ..signed.clone() },
        ];
        for change in altered {
            assert!(!change.is_signed_by(&owner), "{change:?}");
        }
    }

    #[test]
    fn more_removed_peers_than_there_may_be_are_refused() {
        let key = peer_key::to_bytes(&node(7));
        let sent = SentChange {
            swarm_id: "open".to_owned(),
            generation: 1,
            key_hash: [0; 32].into(),
            removed: vec![key.into(); REMOVED_MAX + 1],
            signature: [0; 64].into(),
        };
        let bytes = minicbor::to_vec(sent).unwrap();
        assert_eq!(SignedChange::from_bytes(&bytes), Err(ChangeError::TooManyRemoved(REMOVED_MAX + 1)));
    }

    #[test]
    fn the_longest_change_fits_into_a_frame() {
        let removed =
            (0..REMOVED_MAX).map(|i| NodeKey::from_secret(&std::array::from_fn(|j| (i >> (8 * (j % 2))) as u8)));
        let removed = removed.map(|key| key.node_id()).collect();
        let change = SignedChange::sign(&owner(), Generation(1), &SwarmKey::from_bytes([3; 32]), removed);
        assert_eq!(change.removed().len(), REMOVED_MAX);
        assert!(change.to_bytes().len() < super::super::wire::FRAME_BYTES_MAX / 3 * 2);
    }

    #[test]
    fn fields_of_later_versions_are_ignored() {
        let change = change(2, &[7]);
        let mut bytes = change.to_bytes();
        assert_eq!(bytes[0], 0xa5, "a map of five");
        bytes[0] = 0xa6;
        bytes.extend_from_slice(&[0x05, 0x63, b'n', b'e', b'w']);
        assert_eq!(SignedChange::from_bytes(&bytes), Ok(change));
    }

    proptest! {
        #[test]
        fn a_change_is_read_back(generation in 0..=GENERATION_MAX, removed: [bool; 4]) {
            let removed: Vec<u8> = (0..4).filter(|i| removed[usize::from(*i)]).collect();
            let change = change(generation, &removed);
            prop_assert_eq!(SignedChange::from_bytes(&change.to_bytes()), Ok(change.clone()));
            let json = serde_json::to_string(&change).unwrap();
            prop_assert_eq!(serde_json::from_str::<SignedChange>(&json).unwrap(), change);
        }

        #[test]
        fn no_bytes_bring_the_decoder_down(bytes: Vec<u8>, at in 0..400_usize, flip: u8) {
            let _ = SignedChange::from_bytes(&bytes);
            let mut near = change(2, &[7, 8]).to_bytes();
            let at = at % near.len();
            near[at] ^= flip;
            let _ = SignedChange::from_bytes(&near);
        }
    }
}
