//! Bytes, hashes and space.

use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

/// What was hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::models) struct Hashed {
    /// SHA-256 in lower-case hex.
    pub(in crate::models) sha256: String,
    /// Number of bytes.
    pub(in crate::models) bytes: u64,
}

/// Copies a source to its end and hashes it on the way. `progress` is told the bytes so far.
pub(in crate::models) fn hash_into(
    source: &mut impl Read,
    target: &mut impl Write,
    mut progress: impl FnMut(u64),
) -> io::Result<Hashed> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..count]);
        target.write_all(&buffer[..count])?;
        bytes += count as u64;
        progress(bytes);
    }
    Ok(Hashed { sha256: hex::encode(hasher.finalize()), bytes })
}

/// Says whether a text is a SHA-256 in lower-case hex, and so safe to be a file's name.
pub(in crate::models) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
}

/// Says whether a write failed for want of space: the disk, a quota, or the limit on a file's size.
pub(in crate::models) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// Returns the space that is free for this user, in bytes.
pub(in crate::models) fn free_bytes(directory: &Path) -> io::Result<u64> {
    fs4::available_space(directory)
}
