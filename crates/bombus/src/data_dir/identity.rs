//! The keys of the node: who it is, and what texts for it are sealed to.

use std::fs;
use std::path::Path;

use bombus_core::identity::{NodeId, NodeKey};
use bombus_swarm::seal::SealKey;

use super::{DataDirError, secret_file};

/// Opens the file; names its format and the kind of key, so that both can change.
const HEADER: &str = "bombus-identity-1 ed25519 ";
/// Opens the file of the key that texts are sealed to; the id of the node that made it follows.
const SEAL_HEADER: &str = "bombus-seal-1 x25519 ";

/// Reads the key file, or makes it with a fresh key. Rights that others have to it are taken away.
pub(super) fn load_or_create(path: &Path) -> Result<NodeKey, DataDirError> {
    let advice = "restore it from a backup, or delete it to become a new node";
    secret_file::load_or_create(path, HEADER, advice).map(|secret| NodeKey::from_secret(&secret))
}

/// Reads the file of the key that texts for the node `node` are sealed to, or makes it with a fresh one. One that came here with a copy of another
/// node's directory is replaced: two nodes with the same key would read what is sealed to either.
pub(super) fn load_or_create_seal_key(path: &Path, node: &NodeId) -> Result<SealKey, DataDirError> {
    let header = format!("{SEAL_HEADER}{node} ");
    let others =
        |text: &str| NodeId::parse(text.strip_prefix(SEAL_HEADER)?.split_once(' ')?.0).ok().filter(|id| id != node);
    if let Some(other) = fs::read_to_string(path).ok().as_deref().and_then(others) {
        tracing::info!(file = %path.display(), node.id = %other, "the key for sealed texts is another node's; this one makes its own");
        fs::remove_file(path).map_err(DataDirError::io(path, "it cannot be replaced"))?;
    }
    let advice = "restore it from a backup, or delete it to get a new one: what was sealed to the old one is lost then";
    secret_file::load_or_create(path, &header, advice).map(|secret| SealKey::from_secret(&secret))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform;

    fn node(number: u8) -> NodeId {
        NodeKey::from_secret(&[number; 32]).node_id()
    }

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("identity.key");
        let first = load_or_create(&path).unwrap();
        assert_eq!(platform::open_to_others(&path).unwrap(), None);
        assert_eq!(load_or_create(&path).unwrap().node_id(), first.node_id());
        let path = root.path().join("seal.key");
        let first = load_or_create_seal_key(&path, &node(1)).unwrap();
        assert_eq!(platform::open_to_others(&path).unwrap(), None);
        assert_eq!(load_or_create_seal_key(&path, &node(1)).unwrap().public(), first.public());
    }

    #[test]
    fn a_copy_of_another_node_s_directory_gets_a_key_of_its_own_for_sealed_texts() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("seal.key");
        let original = load_or_create_seal_key(&path, &node(1)).unwrap();
        let copy = load_or_create_seal_key(&path, &node(2)).unwrap();
        assert_ne!(copy.public(), original.public());
        assert_eq!(load_or_create_seal_key(&path, &node(2)).unwrap().public(), copy.public());
    }

    #[test]
    fn a_damaged_key_is_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("identity.key");
        fs::write(&path, "bombus-identity-1 ed25519 abc\n").unwrap();
        assert!(matches!(load_or_create(&path), Err(DataDirError::Damaged { .. })));
        assert!(matches!(load_or_create_seal_key(&path, &node(1)), Err(DataDirError::Damaged { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "bombus-identity-1 ed25519 abc\n");
    }

    #[test]
    fn one_key_is_not_taken_for_the_other() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.key");
        load_or_create(&path).unwrap();
        assert!(matches!(load_or_create_seal_key(&path, &node(1)), Err(DataDirError::Damaged { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_can_read_is_closed() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("identity.key");
        load_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        load_or_create(&path).unwrap();
        assert_eq!(platform::open_to_others(&path).unwrap(), None);
    }
}
