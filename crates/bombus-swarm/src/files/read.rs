//! What is in a file: by pieces, and by lines.

use std::time::Duration;

use bombus_core::batches::{FILE_BYTES_MAX, LINE_BYTES_MAX};
use bombus_core::identity::NodeId;
use orbitdb::cid::Hash;

use super::error::FilesError;
use crate::db::{DbError, DbHandle};
use crate::store::text::{Root, read_part, read_root};

/// How long a piece is looked for at peers.
const PIECE_LIMIT: Duration = Duration::from_secs(30);
/// How many lines are handed out together, and about how many bytes.
const GROUP_LINES: usize = 256;
const GROUP_BYTES: usize = 1 << 20;

/// A file as it is read. It holds one piece in memory.
pub(super) struct Pieces {
    db: DbHandle,
    first: Vec<NodeId>,
    whole: Option<Vec<u8>>,
    parts: std::vec::IntoIter<Hash>,
}

/// Returns the names of the parts of a file; none where the root has all of it.
pub(super) fn parts_of(root: &[u8]) -> Option<Vec<Hash>> {
    match read_root(root, max_bytes())? {
        Root::Text(_) => Some(Vec::new()),
        Root::Parts(parts) => Some(parts),
    }
}

fn max_bytes() -> usize {
    usize::try_from(FILE_BYTES_MAX).unwrap_or(usize::MAX)
}

fn unreached(error: DbError) -> FilesError {
    match error {
        DbError::BlockNotReached { .. } => FilesError::Unreached(error.to_string()),
        error => error.into(),
    }
}

impl Pieces {
    /// Opens a file by the block that names its parts. `by` has it, if nobody else does.
    pub(super) async fn open(db: &DbHandle, root: &str, by: &str) -> Result<Self, FilesError> {
        let wrong = || FilesError::Unreached(format!("the block {root} is none of a file"));
        let hash: Hash = root.parse().map_err(|_| wrong())?;
        let first: Vec<NodeId> = NodeId::parse(by).into_iter().collect();
        let block = db.fetch_block(&hash, &first, PIECE_LIMIT).await.map_err(unreached)?;
        let (whole, parts) = match read_root(&block, max_bytes()).ok_or_else(wrong)? {
            Root::Text(text) => (Some(text), Vec::new()),
            Root::Parts(parts) => (None, parts),
        };
        Ok(Self { db: db.clone(), first, whole, parts: parts.into_iter() })
    }

    /// Returns the next piece; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, FilesError> {
        if let Some(whole) = self.whole.take() {
            return Ok(Some(whole));
        }
        let Some(part) = self.parts.next() else { return Ok(None) };
        let block = self.db.fetch_block(&part, &self.first, PIECE_LIMIT).await.map_err(unreached)?;
        let piece = read_part(&block);
        piece.map(Some).ok_or_else(|| FilesError::Unreached(format!("the block {part} is none of a file")))
    }
}

/// A line that is not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Which line of the file, from 1.
    pub(super) number: u32,
    /// Which of those that are not empty, from 1: its task follows from that.
    pub(super) index: u32,
    /// None where it is longer than lines may be.
    pub(super) text: Option<Vec<u8>>,
}

/// Puts lines together of pieces. Empty ones are left out.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    number: u32,
    index: u32,
    begun: Vec<u8>,
    too_long: bool,
}

impl Splitter {
    /// Takes a piece in, and adds the lines that end in it.
    pub(super) fn push(&mut self, piece: &[u8], lines: &mut Vec<Line>) {
        let mut rest = piece;
        while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
            self.grow(&rest[..at]);
            self.end(lines);
            rest = &rest[at + 1..];
        }
        self.grow(rest);
    }

    /// Ends the last line.
    pub(super) fn finish(&mut self, lines: &mut Vec<Line>) {
        if self.too_long || !self.begun.is_empty() {
            self.end(lines);
        }
    }

    fn grow(&mut self, bytes: &[u8]) {
        if self.too_long || self.begun.len() + bytes.len() > LINE_BYTES_MAX {
            self.too_long = true;
            self.begun = Vec::new();
        } else {
            self.begun.extend_from_slice(bytes);
        }
    }

    fn end(&mut self, lines: &mut Vec<Line>) {
        self.number = self.number.saturating_add(1);
        let text = std::mem::take(&mut self.begun);
        let too_long = std::mem::take(&mut self.too_long);
        if too_long || text.iter().any(|byte| !byte.is_ascii_whitespace()) {
            self.index += 1;
            lines.push(Line { number: self.number, index: self.index, text: (!too_long).then_some(text) });
        }
    }
}

/// The lines of a file as it is read.
pub(super) struct Lines {
    pieces: Pieces,
    splitter: Splitter,
    ready: std::vec::IntoIter<Line>,
    ended: bool,
}

impl Lines {
    pub(super) async fn open(db: &DbHandle, root: &str, by: &str) -> Result<Self, FilesError> {
        let (pieces, splitter) = (Pieces::open(db, root, by).await?, Splitter::default());
        Ok(Self { pieces, splitter, ready: Vec::new().into_iter(), ended: false })
    }

    /// Returns the next line; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Line>, FilesError> {
        loop {
            if let Some(line) = self.ready.next() {
                return Ok(Some(line));
            }
            if self.ended {
                return Ok(None);
            }
            let mut lines = Vec::new();
            match self.pieces.next().await? {
                Some(piece) => self.splitter.push(&piece, &mut lines),
                None => {
                    self.splitter.finish(&mut lines);
                    self.ended = true;
                }
            }
            self.ready = lines.into_iter();
        }
    }

    /// Returns some of the next lines together; none at the end.
    pub(super) async fn next_group(&mut self) -> Result<Option<Vec<Line>>, FilesError> {
        let (mut group, mut bytes) = (Vec::new(), 0);
        while group.len() < GROUP_LINES && bytes < GROUP_BYTES {
            let Some(line) = self.next().await? else { break };
            bytes += line.text.as_ref().map_or(0, Vec::len);
            group.push(line);
        }
        Ok((!group.is_empty()).then_some(group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<(u32, Option<String>)> {
        let (mut splitter, mut lines) = (Splitter::default(), Vec::new());
        for piece in pieces {
            splitter.push(piece, &mut lines);
        }
        splitter.finish(&mut lines);
        let text = |line: Line| (line.number, line.text.map(|text| String::from_utf8(text).unwrap()));
        lines.into_iter().map(text).collect()
    }

    #[test]
    fn lines_are_the_same_wherever_pieces_end() {
        let text = b"one\n\ntwo\r\n  \nthree";
        let wanted = vec![(1, Some("one".into())), (3, Some("two\r".into())), (5, Some("three".into()))];
        assert_eq!(lines(&[text]), wanted);
        for at in 0..text.len() {
            assert_eq!(lines(&[&text[..at], &text[at..]]), wanted, "{at}");
        }
        assert_eq!(lines(&[b"one\n"]), [(1, Some("one".into()))]);
        assert_eq!(lines(&[b""]), []);
    }

    #[test]
    fn a_line_that_is_too_long_takes_no_memory_and_hides_no_other() {
        let long = vec![b'x'; LINE_BYTES_MAX + 1];
        assert_eq!(lines(&[b"a\n", &long, b"\nb\n"]), [(1, Some("a".into())), (2, None), (3, Some("b".into()))]);
    }
}
