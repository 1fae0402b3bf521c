use std::fs;
use std::io::{self, Write};
use std::path::Path;

use bombus_core::identity::NodeKey;

use super::DataDirError;
use crate::platform;

/// Opens the file; names its format and the kind of key, so that both can change.
const HEADER: &str = "bombus-identity-1 ed25519 ";

/// Reads the key file, or makes it with a fresh key. Rights that others have to it are taken away.
pub(super) fn load_or_create(path: &Path) -> Result<NodeKey, DataDirError> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let key = parse(&text).ok_or_else(|| DataDirError::Damaged {
                path: path.to_owned(),
                reason: "it should hold one line with the node's key; restore it from a backup, or delete it to become a new node"
                    .into(),
            })?;
            if let Ok(Some(mode)) = platform::open_to_others(path) {
                tracing::warn!(file = %path.display(), file.mode = format!("{mode:o}"), "the node's key was readable by others; closed it");
                platform::close_to_others(path).map_err(DataDirError::io(path, "its permissions cannot be changed"))?;
            }
            Ok(key)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path),
        Err(source) => Err(DataDirError::Io { path: path.to_owned(), doing: "it cannot be read", source }),
    }
}

fn parse(text: &str) -> Option<NodeKey> {
    let mut secret = [0; 32];
    hex::decode_to_slice(text.strip_prefix(HEADER)?.trim_end(), &mut secret).ok()?;
    Some(NodeKey::from_secret(&secret))
}

fn create(path: &Path) -> Result<NodeKey, DataDirError> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|error| {
        DataDirError::io(path, "the system gives no random bytes for a key")(io::Error::other(error))
    })?;
    let write = || -> io::Result<()> {
        // A temporary file of this crate is readable by the owner alone from the first moment.
        let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
        writeln!(file, "{HEADER}{}", hex::encode(secret))?;
        file.as_file().sync_all()?;
        file.persist_noclobber(path)?;
        Ok(())
    };
    write().map_err(DataDirError::io(path, "it cannot be written"))?;
    Ok(NodeKey::from_secret(&secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("identity.key");
        let first = load_or_create(&path).unwrap();
        assert_eq!(platform::open_to_others(&path).unwrap(), None);
        assert_eq!(load_or_create(&path).unwrap().node_id(), first.node_id());
    }

    #[test]
    fn a_damaged_key_is_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("identity.key");
        fs::write(&path, "bombus-identity-1 ed25519 abc\n").unwrap();
        assert!(matches!(load_or_create(&path), Err(DataDirError::Damaged { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "bombus-identity-1 ed25519 abc\n");
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
