//! Frames of the swarm's own streams: a length, and so many bytes.

use std::io;

use bombus_core::topics::MESSAGE_BYTES_MAX;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Most bytes of a failure detector's datagram.
pub(crate) const DATAGRAM_MAX: usize = 1_400;
/// Most bytes of a capabilities message.
pub(crate) const HELLO_MAX: usize = MESSAGE_BYTES_MAX;

/// Writes a datagram behind its length as two bytes, big-endian, in one piece.
pub(crate) async fn write_datagram(stream: &mut (impl AsyncWrite + Unpin), datagram: &[u8]) -> io::Result<()> {
    let length = u16::try_from(datagram.len()).ok().filter(|length| usize::from(*length) <= DATAGRAM_MAX);
    let length = length.ok_or_else(|| too_large(datagram.len(), DATAGRAM_MAX))?;
    let mut frame = Vec::with_capacity(2 + datagram.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(datagram);
    stream.write_all(&frame).await?;
    stream.flush().await
}

/// Reads a datagram.
///
/// # Errors
///
/// When the stream ends or fails, or the length is more than [`DATAGRAM_MAX`].
pub(crate) async fn read_datagram(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    read_bytes(stream, length, DATAGRAM_MAX).await
}

/// Writes a capabilities message behind its length as four bytes, big-endian, in one piece.
pub(crate) async fn write_hello(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    write_frame(stream, message, HELLO_MAX).await
}

/// Writes a frame of at most so many bytes behind its length as four bytes, big-endian, in one piece.
pub(crate) async fn write_frame(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8], max: usize) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= max);
    let length = length.ok_or_else(|| too_large(bytes.len(), max))?;
    let mut frame = Vec::with_capacity(4 + bytes.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(bytes);
    stream.write_all(&frame).await?;
    stream.flush().await
}

/// Reads a capabilities message.
///
/// # Errors
///
/// When the stream ends or fails, or the length is more than [`HELLO_MAX`].
pub(crate) async fn read_hello(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    read_frame(stream, HELLO_MAX).await
}

/// Writes a message of at most so many bytes as CBOR behind its length as four bytes, big-endian, in one piece.
pub(crate) async fn write_message<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
    max: usize,
) -> io::Result<()> {
    let mut frame = vec![0; 4];
    ciborium::into_writer(message, &mut frame).map_err(io::Error::other)?;
    let length = u32::try_from(frame.len() - 4).ok().filter(|_| frame.len() - 4 <= max);
    let length = length.ok_or_else(|| too_large(frame.len() - 4, max))?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&frame).await?;
    stream.flush().await
}

/// Reads a message of at most so many bytes. Fields that are not known are passed over.
///
/// # Errors
///
/// When the stream ends or fails, or the message is too large or none: [`io::ErrorKind::InvalidData`].
pub(crate) async fn read_message<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    max: usize,
) -> io::Result<T> {
    let frame = read_frame(stream, max).await?;
    // The messages are flat; deep nesting is none of them.
    ciborium::de::from_reader_with_recursion_limit(frame.as_slice(), 16)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

/// Reads a frame of at most so many bytes behind its length as four bytes, big-endian.
///
/// # Errors
///
/// When the stream ends or fails, or the frame is too large: [`io::ErrorKind::InvalidData`].
pub(crate) async fn read_frame(stream: &mut (impl AsyncRead + Unpin), max: usize) -> io::Result<Vec<u8>> {
    let length = stream.read_u32().await?;
    read_bytes(stream, usize::try_from(length).unwrap_or(usize::MAX), max).await
}

/// Reads so many bytes, unless they are more than `max`.
pub(crate) async fn read_bytes(
    stream: &mut (impl AsyncRead + Unpin),
    length: usize,
    max: usize,
) -> io::Result<Vec<u8>> {
    if length > max {
        return Err(too_large(length, max));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

pub(crate) fn too_large(length: usize, max: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes, where {max} is the most"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..=DATAGRAM_MAX), 0..4)) {
            run(async {
                let mut bytes = Vec::new();
                for datagram in &datagrams {
                    write_datagram(&mut bytes, datagram).await.unwrap();
                }
                let mut reader = bytes.as_slice();
                for datagram in &datagrams {
                    assert_eq!(&read_datagram(&mut reader).await.unwrap(), datagram);
                }
                assert!(read_datagram(&mut reader).await.is_err(), "the end is told from an empty frame");
            });
        }

        #[test]
        fn garbage_is_read_as_a_frame_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            run(async {
                if let Ok(frame) = read_datagram(&mut bytes.as_slice()).await {
                    assert_eq!(frame.len(), usize::from(u16::from_be_bytes([bytes[0], bytes[1]])));
                }
                drop(read_hello(&mut bytes.as_slice()).await);
            });
        }
    }

    #[test]
    fn frames_have_limits_in_both_directions() {
        run(async {
            assert!(write_datagram(&mut Vec::new(), &[0; DATAGRAM_MAX + 1]).await.is_err());
            assert!(write_hello(&mut Vec::new(), &vec![0; HELLO_MAX + 1]).await.is_err());
            let mut long = &[0xff, 0xff, 0, 0, 0, 0][..];
            assert_eq!(read_datagram(&mut long).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
            let mut long = &[0xff, 0xff, 0xff, 0xff, 0, 0][..];
            assert_eq!(read_hello(&mut long).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        });
    }
}
