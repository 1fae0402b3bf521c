//! Messages in frames, and frames in the bytes of a stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;
use tokio_util::bytes::{Buf, BytesMut};
use tokio_util::io::poll_read_buf;

use super::FRAME_BYTES_MAX;

const MORE: u32 = 1 << 31;
/// How much is read at once.
const READ_BYTES: usize = 16 * 1024;

/// Appends a message in as many frames as it needs.
///
/// # Errors
///
/// When it cannot be written as CBOR, which what is sent here always can.
pub(crate) fn push(out: &mut Vec<u8>, message: &impl Serialize) -> io::Result<()> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let written = ciborium::into_writer(message, &mut *out);
    if let Err(error) = written {
        out.truncate(start);
        return Err(io::Error::other(error.to_string()));
    }
    let length = out.len() - start - 4;
    if length <= FRAME_BYTES_MAX {
        out[start..start + 4].copy_from_slice(&(length as u32).to_be_bytes());
        return Ok(());
    }
    let message = out.split_off(start + 4);
    out.truncate(start);
    let mut frames = message.chunks(FRAME_BYTES_MAX).peekable();
    while let Some(frame) = frames.next() {
        let more = if frames.peek().is_some() { MORE } else { 0 };
        out.extend_from_slice(&(frame.len() as u32 | more).to_be_bytes());
        out.extend_from_slice(frame);
    }
    Ok(())
}

/// Takes messages out of the bytes of a stream.
pub(crate) struct Messages {
    pub(super) bytes: BytesMut,
    /// The frames so far of a message that takes several.
    begun: Vec<u8>,
    max: usize,
}

impl Messages {
    /// Reads messages of at most so many bytes.
    pub(crate) fn up_to(max: usize) -> Self {
        Self { bytes: BytesMut::new(), begun: Vec::new(), max }
    }

    /// Reads larger or smaller messages from now on.
    pub(crate) fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Forgets what was read and is no whole message.
    pub(crate) fn discard(&mut self) {
        self.bytes.clear();
    }

    /// Takes the next message, if all of it is there.
    ///
    /// # Errors
    ///
    /// When it is larger than it may be, or is none.
    pub(crate) fn next<T: for<'de> Deserialize<'de>>(&mut self) -> io::Result<Option<T>> {
        while let Some(head) = self.bytes.first_chunk::<4>() {
            let head = u32::from_be_bytes(*head);
            let (length, more) = ((head & !MORE) as usize, head & MORE != 0);
            if length > FRAME_BYTES_MAX || self.begun.len() + length > self.max {
                return Err(invalid(format!("a message of more than {} bytes", self.max.min(FRAME_BYTES_MAX))));
            }
            if length == 0 && more {
                return Err(invalid("an empty frame where more was announced".to_owned()));
            }
            if self.bytes.len() < 4 + length {
                return Ok(None);
            }
            self.bytes.advance(4);
            let frame = self.bytes.split_to(length);
            if more {
                self.begun.extend_from_slice(&frame);
                continue;
            }
            if self.begun.is_empty() {
                return decode(&frame).map(Some);
            }
            let mut message = std::mem::take(&mut self.begun);
            message.extend_from_slice(&frame);
            return decode(&message).map(Some);
        }
        Ok(None)
    }

    /// Reads more bytes; none at the stream's end. To be called only where [`Messages::next`] has nothing, so that no more waits here than
    /// one frame and what was read with its end.
    pub(crate) fn poll_fill(
        &mut self,
        stream: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.bytes.reserve(READ_BYTES);
        Poll::Ready(ready!(poll_read_buf(stream, cx, &mut self.bytes)))
    }
}

fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> io::Result<T> {
    ciborium::from_reader(bytes).map_err(|error| invalid(error.to_string()))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
