//! The messages: a request and its answer as CBOR, and pieces of blocks; all behind a length of four bytes, big-endian.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::wire::{read_frame, read_message, too_large, write_message};

/// Most bytes of a request or an answer: a request names up to some 1,100 entries.
pub(super) const MESSAGE_MAX: usize = 128 << 10;
/// Most bytes of a piece.
pub(in super::super) const PIECE_MAX: usize = 8 << 20;
/// Most entries of a piece: as many as the largest that a node may be set to sends (`[db.oplog] piece_kb`), where none takes less than 512
/// bytes. Of smaller ones a piece has fewer bytes.
pub(super) const PIECE_ENTRIES_MAX: usize = 8 << 10;
/// Most blocks of a piece, since blocks that are checked take much more than they did in it: each entry may bring the identity that it names.
pub(super) const PIECE_BLOCKS_MAX: usize = 2 * PIECE_ENTRIES_MAX;
/// Most names in a request.
pub(super) const HAVE_MAX: usize = 2_048;

/// What a node asks another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    /// The database.
    pub(super) address: String,
    /// Names of entries that it has, with all that they follow.
    pub(super) have: Vec<String>,
}

/// What the other answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// So many entries follow in pieces, up to an empty one. With `more` there are further ones: ask again.
    Sending { entries: u64, more: bool },
    /// It does not have the database open.
    Unknown {},
    /// It serves as many as it may: ask again after so long.
    Busy { retry_ms: u64 },
}

/// Writes a message.
pub(super) async fn write<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    write_message(stream, message, MESSAGE_MAX).await
}

/// Reads a message.
///
/// # Errors
///
/// When the stream ends or fails, or the message is too large or none.
pub(super) async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    read_message(stream, MESSAGE_MAX).await
}

/// Writes a piece: each block behind its length. An empty one is the end.
pub(super) async fn write_piece(stream: &mut (impl AsyncWrite + Unpin), blocks: &[Vec<u8>]) -> io::Result<()> {
    let length: usize = blocks.iter().map(|block| 4 + block.len()).sum();
    if length > PIECE_MAX {
        return Err(too_large(length, PIECE_MAX));
    }
    if blocks.len() > PIECE_BLOCKS_MAX {
        return Err(too_many());
    }
    let mut bytes = Vec::with_capacity(4 + length);
    bytes.extend_from_slice(&length_of(length)?);
    for block in blocks {
        bytes.extend_from_slice(&length_of(block.len())?);
        bytes.extend_from_slice(block);
    }
    stream.write_all(&bytes).await?;
    stream.flush().await
}

fn length_of(length: usize) -> io::Result<[u8; 4]> {
    u32::try_from(length).map(u32::to_be_bytes).map_err(io::Error::other)
}

/// Reads a piece; an empty one is the end.
///
/// # Errors
///
/// When the stream ends or fails, or the piece is too large or has too many blocks, or these do not fill it.
pub(super) async fn read_piece(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<Vec<u8>>> {
    let bytes = read_frame(stream, PIECE_MAX).await?;
    let mut rest = bytes.as_slice();
    let mut blocks = Vec::new();
    while !rest.is_empty() {
        let (length, behind) = rest.split_first_chunk::<4>().ok_or_else(|| invalid("a block without its length"))?;
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length == 0 {
            return Err(invalid("a block of no bytes"));
        }
        if blocks.len() >= PIECE_BLOCKS_MAX {
            return Err(too_many());
        }
        let (block, behind) = behind.split_at_checked(length).ok_or_else(|| invalid("a block that is cut"))?;
        blocks.push(block.to_vec());
        rest = behind;
    }
    Ok(blocks)
}

fn too_many() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("more than {PIECE_BLOCKS_MAX} blocks in a piece"))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
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
        fn pieces_arrive_as_they_were_sent(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..100), 0..8)) {
            run(async {
                let mut bytes = Vec::new();
                write_piece(&mut bytes, &blocks).await.unwrap();
                write_piece(&mut bytes, &[]).await.unwrap();
                let mut reader = bytes.as_slice();
                assert_eq!(read_piece(&mut reader).await.unwrap(), blocks);
                assert_eq!(read_piece(&mut reader).await.unwrap(), Vec::<Vec<u8>>::new());
                assert!(read_piece(&mut reader).await.is_err(), "the end of the stream is not the end of the log");
            });
        }

        #[test]
        fn garbage_is_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            run(async {
                drop(read_piece(&mut bytes.as_slice()).await);
                drop(read::<Request>(&mut bytes.as_slice()).await);
                drop(read::<Answer>(&mut bytes.as_slice()).await);
            });
        }
    }

    #[test]
    fn messages_arrive_as_they_were_sent_and_have_a_limit() {
        run(async {
            let request = Request { address: "/orbitdb/zdpu".to_owned(), have: vec!["zdpu".to_owned(); 1_100] };
            let mut bytes = Vec::new();
            write(&mut bytes, &request).await.unwrap();
            assert_eq!(read::<Request>(&mut bytes.as_slice()).await.unwrap(), request);
            let long = Request { address: "a".repeat(MESSAGE_MAX), have: Vec::new() };
            assert!(write(&mut Vec::new(), &long).await.is_err());
            assert!(write_piece(&mut Vec::new(), &[vec![0; PIECE_MAX]]).await.is_err());
            let mut long = &[0xff_u8; 8][..];
            assert_eq!(read_piece(&mut long).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        });
    }

    #[test]
    fn a_piece_has_so_many_blocks_and_no_more() {
        run(async {
            let most = vec![vec![7_u8]; PIECE_BLOCKS_MAX];
            let mut bytes = Vec::new();
            write_piece(&mut bytes, &most).await.unwrap();
            assert_eq!(read_piece(&mut bytes.as_slice()).await.unwrap(), most);
            let more = [most, vec![vec![7_u8]]].concat();
            assert!(write_piece(&mut Vec::new(), &more).await.is_err());
            // As one sends it that counts bytes alone.
            let blocks = [0_u8, 0, 0, 1, 7].repeat(more.len());
            let bytes = [&u32::try_from(blocks.len()).unwrap().to_be_bytes()[..], &blocks].concat();
            assert_eq!(read_piece(&mut bytes.as_slice()).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        });
    }
}
