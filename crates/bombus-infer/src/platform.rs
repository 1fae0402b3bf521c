//! What differs between operating systems.

use std::fs::File;
use std::io;

/// Writes bytes to a place of a file.
pub(crate) fn write_all_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::write_all_at(file, bytes, at);
    #[cfg(windows)]
    {
        let mut written = 0;
        while written < bytes.len() {
            let place = at + written as u64;
            match std::os::windows::fs::FileExt::seek_write(file, &bytes[written..], place)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => written += count,
            }
        }
        Ok(())
    }
}

/// Fills a buffer from a place of a file.
///
/// # Errors
///
/// [`io::ErrorKind::UnexpectedEof`] where the file ends before.
pub(crate) fn read_exact_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, buffer, at);
    #[cfg(windows)]
    {
        let mut read = 0;
        while read < buffer.len() {
            let place = at + read as u64;
            match std::os::windows::fs::FileExt::seek_read(file, &mut buffer[read..], place)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => read += count,
            }
        }
        Ok(())
    }
}
