//! Whether the disk has room for what is written, and what becomes of databases that could not be written since it had none.

use std::path::Path;
use std::time::Duration;

use orbitdb::storage::StorageError;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::platform::free_bytes;

/// Less than that is none: files grow by several MiB at a time.
const ROOM_BYTES_MIN: u64 = 8 << 20;
/// Time between two looks whether a database has failed.
const FAILURE_LOOK: Duration = Duration::from_millis(500);
/// Time between two looks whether there is room again.
const ROOM_LOOK: Duration = Duration::from_secs(1);

/// Says whether the disk is full on which a directory is. Where that cannot be seen it is not.
pub(crate) fn is_full(directory: &Path) -> bool {
    free_bytes(directory).is_some_and(|bytes| bytes < ROOM_BYTES_MIN)
}

/// Waits until databases have failed and the disk has room, and then has them left, so that they are opened anew. Until then what is in memory
/// can be read.
pub(crate) async fn leave_failed(
    what: &'static str,
    directory: &Path,
    failure: impl Fn() -> Option<StorageError>,
    leave: &CancellationToken,
) {
    let failing = async {
        let reason = loop {
            sleep(FAILURE_LOOK).await;
            if let Some(reason) = failure() {
                break reason;
            }
        };
        let is_full = is_full(directory);
        tracing::error!(what, %reason, disk.full = is_full, "what happens to them cannot be written; that is tried again");
        loop {
            sleep(ROOM_LOOK).await;
            if !self::is_full(directory) {
                break;
            }
        }
        leave.cancel();
    };
    leave.run_until_cancelled(failing).await;
}
