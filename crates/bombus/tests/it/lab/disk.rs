use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::{Namespace, Own, Rights, skip, system};

/// A file of the disk that leaves no room for others.
const BALLAST: &str = "ballast";

/// A disk of its own under a folder, which can be filled. Who is put on it sees it there; everybody else sees the folder as it is.
pub(crate) struct Disk {
    space: Namespace,
    folder: PathBuf,
}

impl Disk {
    /// Puts a disk of so many MiB under a folder, which is made; `None` where this system cannot (the test is skipped).
    pub(crate) async fn under(folder: &Path, mib: u32) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let script = format!("mount -t tmpfs -o size={mib}m,mode=700 none '{}'", folder.display());
        for rights in [Rights::Own, Rights::UserNamespace] {
            let mut command = system("unshare");
            if rights == Rights::UserNamespace {
                command.args(["--user", "--map-root-user"]);
            }
            if let Some(space) = Namespace::made(command, rights, Own::Mount, &script).await {
                return Some(Self { space, folder: folder.to_owned() });
            }
        }
        skip("nobody may mount a file system here, not even one of their own: that needs root, or user namespaces");
        None
    }

    /// Returns where this process finds what is on the disk.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", self.space.pid(), self.folder.display()))
    }

    /// Moves a prepared command to where the disk is.
    pub(crate) fn host(&self, command: &Command) -> Command {
        self.space.host(command)
    }

    /// Leaves no room on it.
    pub(crate) fn fill(&self) {
        let mut ballast = File::options().create(true).append(true).open(self.path().join(BALLAST)).unwrap();
        let full = loop {
            if let Err(error) = ballast.write_all(&[0; 4_096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
    }

    /// Makes room on it again.
    pub(crate) fn clear(&self) {
        std::fs::remove_file(self.path().join(BALLAST)).unwrap();
    }
}
