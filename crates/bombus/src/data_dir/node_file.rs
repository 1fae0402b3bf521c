use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use bombus_core::identity::NodeId;
use bombus_core::model::ModelName;
use serde::{Deserialize, Serialize};

use crate::config::Config;

use super::{DataDirError, write_atomically};

const FILE: &str = "node.json";
pub(super) const SESSION_KEY_FILE: &str = "session.key";

/// What a running node tells other programs with the same data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRecord {
    /// The node's process.
    pub(crate) pid: u32,
    /// Base address of its HTTP API, one that this machine can connect to.
    pub(crate) api: String,
    /// Its id.
    pub(crate) node_id: NodeId,
    /// Its name.
    pub(crate) name: String,
    /// Version of the program.
    pub(crate) version: String,
    /// The model that answers where none is named.
    #[serde(default)]
    pub(crate) default_model: Option<ModelName>,
    /// Multiaddrs at which other nodes reach it, with its id at their ends; those of this machine alone are among them.
    #[serde(default)]
    pub(crate) p2p: Vec<String>,
}

/// Keeps `node.json` and the session key in place; dropping it removes them.
#[derive(Debug)]
pub(crate) struct Announcement([PathBuf; 2]);

impl NodeRecord {
    /// Describes this process as a node that listens on `address`.
    pub(crate) fn of_this_process(address: SocketAddr, node_id: NodeId, config: &Config) -> Self {
        Self {
            pid: std::process::id(),
            api: format!("http://{}", reachable(address)),
            node_id,
            name: config.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            default_model: Some(config.default_model.clone()),
            p2p: Vec::new(),
        }
    }

    pub(super) fn read(root: &Path) -> Result<Option<Self>, DataDirError> {
        let path = root.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DataDirError::Io { path, doing: "it cannot be read", source }),
        };
        match serde_json::from_str(&text) {
            Ok(record) => Ok(Some(record)),
            Err(error) => {
                Err(DataDirError::Damaged { path, reason: format!("it is not what a node writes there: {error}") })
            }
        }
    }

    pub(super) fn announce(&self, root: &Path, session_key: &str) -> Result<Announcement, DataDirError> {
        let (path, key_path) = (root.join(FILE), root.join(SESSION_KEY_FILE));
        // Whoever finds the node finds its key.
        write_atomically(&key_path, session_key.as_bytes())?;
        self.write(&path)?;
        Ok(Announcement([path, key_path]))
    }

    fn write(&self, path: &Path) -> Result<(), DataDirError> {
        let mut text = serde_json::to_string_pretty(self).expect("texts and a number are JSON");
        text.push('\n');
        write_atomically(path, text.as_bytes())
    }
}

impl Announcement {
    /// Tells of the node what is so now.
    pub(crate) fn update(&self, record: &NodeRecord) -> Result<(), DataDirError> {
        record.write(&self.0[0])
    }
}

pub(super) fn read_session_key(root: &Path) -> Option<String> {
    fs::read_to_string(root.join(SESSION_KEY_FILE)).ok().filter(|key| !key.is_empty())
}

/// Turns an address to listen on into one to connect to: "every address" becomes loopback.
pub(crate) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

impl Drop for Announcement {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(file = %path.display(), %error, "could not be removed; it now tells of a node that is gone");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;

    #[test]
    fn a_node_that_listens_everywhere_is_reached_on_loopback() {
        for (listen, connect) in [("0.0.0.0:5", "127.0.0.1:5"), ("[::]:5", "[::1]:5"), ("192.0.2.1:5", "192.0.2.1:5")] {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), connect);
        }
    }

    #[test]
    fn a_record_stands_as_long_as_its_announcement() {
        let root = tempfile::tempdir().unwrap();
        let record = NodeRecord {
            pid: 7,
            api: "http://127.0.0.1:1".into(),
            node_id: NodeKey::from_secret(&[1; 32]).node_id(),
            name: "test".into(),
            version: "0".into(),
            default_model: None,
            p2p: Vec::new(),
        };
        let announcement = record.announce(root.path(), "secret").unwrap();
        assert_eq!(NodeRecord::read(root.path()).unwrap(), Some(record.clone()));
        let moved = NodeRecord { p2p: vec!["/ip4/127.0.0.1/tcp/1".into()], ..record };
        announcement.update(&moved).unwrap();
        assert_eq!(NodeRecord::read(root.path()).unwrap(), Some(moved));
        assert_eq!(read_session_key(root.path()).as_deref(), Some("secret"));
        drop(announcement);
        assert_eq!(read_session_key(root.path()), None);
        assert_eq!(NodeRecord::read(root.path()).unwrap(), None);
    }
}
