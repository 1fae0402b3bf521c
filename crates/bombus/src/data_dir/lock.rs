use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use super::DataDirError;

/// Holds a data directory for one node. The operating system lets go of it when the process ends.
#[derive(Debug)]
pub(crate) struct NodeLock(#[expect(dead_code, reason = "held for its lock, never read")] File);

impl NodeLock {
    pub(super) fn acquire(root: &Path) -> Result<Self, DataDirError> {
        let path = root.join("lock");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(DataDirError::io(&path, "it cannot be opened"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(DataDirError::InUse { path: root.to_owned(), pid: holder(&mut file) });
            }
            Err(TryLockError::Error(source)) => {
                return Err(DataDirError::Io { path, doing: "it cannot be locked", source });
            }
        }
        let write_pid = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write_pid(&mut file).map_err(DataDirError::io(&path, "it cannot be written"))?;
        Ok(Self(file))
    }
}

/// Says whether a node holds the lock, by trying to share it for a moment.
pub(super) fn is_held(root: &Path) -> Result<bool, DataDirError> {
    let path = root.join("lock");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(DataDirError::Io { path, doing: "it cannot be opened", source }),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(source)) => Err(DataDirError::Io { path, doing: "it cannot be locked", source }),
    }
}

/// Reads whose lock it is. A holder that has not written its pid yet stays unknown.
fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_names_the_process_that_holds_the_first() {
        let root = tempfile::tempdir().unwrap();
        let first = NodeLock::acquire(root.path()).unwrap();
        let error = NodeLock::acquire(root.path()).unwrap_err();
        assert!(error.to_string().contains(&format!("(pid {})", std::process::id())), "{error}");
        assert!(is_held(root.path()).unwrap());
        drop(first);
        assert!(!is_held(root.path()).unwrap());
        NodeLock::acquire(root.path()).unwrap();
    }
}
