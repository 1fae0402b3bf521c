//! What the fuzz targets need of the streams.

use futures::FutureExt;
use tokio::io::AsyncReadExt;

use super::{read_address, read_entry};

/// Reads a stream of entries of at most so many bytes each. Returns the address of the database that it is about, and the entries until the bytes
/// end or are none; nothing where it says no database.
#[must_use]
pub fn entries_of_stream(mut bytes: &[u8], bytes_max: usize) -> Option<(String, Vec<Vec<u8>>)> {
    let there = "bytes in memory are there at once";
    let address = read_address(&mut bytes).now_or_never().expect(there).ok()?;
    let mut entries = Vec::new();
    while let Ok(length) = bytes.read_u32().now_or_never().expect(there)
        && let Ok(entry) = read_entry(&mut bytes, length, bytes_max).now_or_never().expect(there)
    {
        entries.push(entry);
    }
    Some((address.to_string(), entries))
}
