//! What differs between operating systems.

use std::fs::DirBuilder;
use std::io;
use std::path::Path;

use socket2::Socket;

/// Makes a folder and its missing parents; on Unix the new ones are open to the owner alone.
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Lets a socket have a port on which connections of an earlier run still fade out. Elsewhere than on Unix the option would mean that two
/// may have one port.
pub(crate) fn take_over_address(socket: &Socket) -> io::Result<()> {
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    let _ = socket;
    Ok(())
}
