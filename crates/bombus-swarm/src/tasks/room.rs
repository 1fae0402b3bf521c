//! Whether the disk has room for what is written about tasks.

use std::path::Path;

/// Less than that is none: files grow by several MiB at a time.
const ROOM_BYTES_MIN: u64 = 8 << 20;

/// Says whether the disk is full on which a directory is. Where that cannot be seen it is not.
pub(super) fn is_full(directory: &Path) -> bool {
    free_bytes(directory).is_some_and(|bytes| bytes < ROOM_BYTES_MIN)
}

#[cfg(unix)]
fn free_bytes(directory: &Path) -> Option<u64> {
    let disk = nix::sys::statvfs::statvfs(directory).ok()?;
    #[expect(clippy::useless_conversion, reason = "the numbers are smaller on other systems")]
    let (blocks, size) = (u64::from(disk.blocks_available()), u64::from(disk.fragment_size()));
    Some(blocks.saturating_mul(size))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}
