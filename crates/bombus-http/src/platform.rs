//! What depends on the operating system.

use std::fs::Metadata;
use std::io;
use std::path::Path;

use tokio::net::TcpSocket;

/// Lets a node that starts again have its port back at once. Elsewhere than on Unix the option would mean that two may have one port.
#[cfg(unix)]
pub(crate) fn take_over_address(socket: &TcpSocket) -> io::Result<()> {
    socket.set_reuseaddr(true)
}

/// Lets a node that starts again have its port back at once, as this system does without being asked.
#[cfg(not(unix))]
pub(crate) fn take_over_address(_: &TcpSocket) -> io::Result<()> {
    Ok(())
}

/// Returns a number that a file replaced by another of the same name does not share, or 0 where the system has none.
#[cfg(unix)]
pub(crate) fn file_number(metadata: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

/// Returns a number that a file replaced by another of the same name does not share, or 0 where the system has none.
#[cfg(not(unix))]
pub(crate) fn file_number(_: &Metadata) -> u64 {
    0
}

/// Makes a rename in a directory survive a power cut.
#[cfg(unix)]
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    std::fs::File::open(directory)?.sync_all()
}

/// Makes a rename in a directory survive a power cut, where the system lets a program ask for it.
#[cfg(not(unix))]
pub(crate) fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}
