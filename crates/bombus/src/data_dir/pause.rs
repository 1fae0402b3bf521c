use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{DataDirError, write_atomically};

/// Version of the file that this program writes.
const FORMAT: u32 = 1;

/// Whether the owner of the machine keeps it for himself, which outlives the node.
#[derive(Debug, Clone)]
pub(crate) struct Pause(PathBuf);

#[derive(Serialize, Deserialize)]
struct Written {
    format: u32,
    paused: bool,
}

impl Pause {
    pub(super) fn of(root: &Path) -> Self {
        Self(root.join("sharing.json"))
    }

    /// Reads whether the machine is kept; without a file it is not. A file that cannot be read counts as a yes, since whoever wrote it
    /// meant something, and the log says how to mend it.
    pub(crate) fn is_set(&self) -> bool {
        let unreadable = |why: String| {
            let path = self.0.display();
            tracing::warn!(%path, why, "nothing is done for other nodes: whether the node was paused cannot be read; bombus resume ends it");
            true
        };
        match fs::read(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => unreadable(error.to_string()),
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(Written { format: FORMAT, paused }) => paused,
                Ok(Written { format, .. }) => unreadable(format!("it has format {format}, of a later version")),
                Err(error) => unreadable(error.to_string()),
            },
        }
    }

    /// Writes down whether the machine is kept.
    pub(crate) fn set(&self, paused: bool) -> Result<(), DataDirError> {
        let text = serde_json::to_vec(&Written { format: FORMAT, paused }).expect("a number and a bool are JSON");
        write_atomically(&self.0, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_outlives_the_node_and_a_damaged_file_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let pause = Pause::of(folder.path());
        assert!(!pause.is_set());
        pause.set(true).unwrap();
        assert!(Pause::of(folder.path()).is_set());
        pause.set(false).unwrap();
        assert!(!pause.is_set());
        for text in ["", "{\"paused\": false}", "{\"format\": 7, \"paused\": false}"] {
            fs::write(folder.path().join("sharing.json"), text).unwrap();
            assert!(pause.is_set(), "{text:?}");
        }
    }
}
