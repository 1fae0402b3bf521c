//! Datagrams of the failure detector.
//!
//! A datagram has no framing of its own; it stands on a connection that proves who sent it, so it carries no sender. Numbers are
//! little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 1 | version, 1 |
//! | 1 | kind |
//! | 1 | flags; bit 0: the receiver is to watch the sender |
//! | 8 | the sender's boot id |
//! | 4 | the sender's incarnation |
//! | 4 | digest of whom the sender counts as members, and how |
//! | 32 | kinds ask and vouch only: public key of the node in question |
//! | 1 | number of records |
//! | 45 each | records: public key (32), boot id (8), incarnation (4), standing (1) |
//!
//! What follows is for later versions and is ignored, and so are records whose standing is unknown.

use crate::identity::BootId;

/// The largest datagram, in bytes.
pub const DATAGRAM_BYTES_MAX: usize = 1_400;

const VERSION: u8 = 1;
const FLAG_WATCH: u8 = 1;
const HEADER_BYTES: usize = 19;
const RECORD_BYTES: usize = 45;

/// Records that fit into one datagram of any kind.
pub(super) const RECORDS_MAX: usize = (DATAGRAM_BYTES_MAX - HEADER_BYTES - 32 - 1) / RECORD_BYTES;

/// An Ed25519 public key, which is what a node id is made of.
pub(super) type Key = [u8; 32];

/// How a node stands in the swarm. At equal incarnation the greater one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It is there.
    Alive,
    /// Somebody did not reach it.
    Suspect,
    /// Nobody reached it for long.
    Gone,
    /// It said goodbye.
    Left,
}

/// What a node says about another one, or about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Its public key.
    pub key: [u8; 32],
    /// The run of its process that is meant.
    pub boot: BootId,
    /// A number that the node alone raises, whenever it has to contradict what is said about it. The greater one counts.
    pub incarnation: u32,
    /// How it stands.
    pub standing: Standing,
}

/// What a datagram is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Answer with an ack.
    Ping,
    /// The answer.
    Ack,
    /// Records, and nothing to answer.
    News,
    /// Try to reach this node, and vouch for it if that succeeds.
    Ask([u8; 32]),
    /// The sender hears from this node.
    Vouch([u8; 32]),
    /// The sender stops.
    Leave,
}

/// One message between two detectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// What it is for.
    pub kind: Kind,
    /// Whether the sender counts on the receiver to notice its silence.
    pub watch: bool,
    /// The run of the sender's process.
    pub boot: BootId,
    /// The sender's incarnation.
    pub incarnation: u32,
    /// Digest of the members that the sender counts as there.
    pub digest: u32,
    /// What the sender tells about nodes.
    pub news: Vec<Record>,
}

/// Why bytes are no [`Datagram`]. Such a datagram still shows that its sender is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They end too early, or are more than [`DATAGRAM_BYTES_MAX`].
    #[error("the datagram's size is wrong")]
    Size,
    /// They are of another version of the protocol.
    #[error("the datagram is of version {0}, and this program speaks version {VERSION}")]
    Version(u8),
    /// Their kind is unknown.
    #[error("the datagram is of the unknown kind {0}")]
    Kind(u8),
}

impl Datagram {
    /// Writes the datagram. Records beyond those that fit are left out.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let news = &self.news[..self.news.len().min(RECORDS_MAX)];
        let (kind, subject) = match self.kind {
            Kind::Ping => (1, None),
            Kind::Ack => (2, None),
            Kind::News => (3, None),
            Kind::Ask(key) => (4, Some(key)),
            Kind::Vouch(key) => (5, Some(key)),
            Kind::Leave => (6, None),
        };
        let mut bytes = Vec::with_capacity(HEADER_BYTES + 33 + news.len() * RECORD_BYTES);
        bytes.extend([VERSION, kind, if self.watch { FLAG_WATCH } else { 0 }]);
        bytes.extend(self.boot.bits().to_le_bytes());
        bytes.extend(self.incarnation.to_le_bytes());
        bytes.extend(self.digest.to_le_bytes());
        bytes.extend(subject.iter().flatten());
        bytes.push(u8::try_from(news.len()).expect("fewer than 256 records fit"));
        for record in news {
            bytes.extend(record.key);
            bytes.extend(record.boot.bits().to_le_bytes());
            bytes.extend(record.incarnation.to_le_bytes());
            bytes.push(record.standing as u8);
        }
        bytes
    }

    /// Reads a datagram.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > DATAGRAM_BYTES_MAX {
            return Err(DecodeError::Size);
        }
        let mut reader = Reader(bytes);
        let [version, kind, flags] = reader.take()?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let boot = BootId::new(u64::from_le_bytes(reader.take()?));
        let incarnation = u32::from_le_bytes(reader.take()?);
        let digest = u32::from_le_bytes(reader.take()?);
        let kind = match kind {
            1 => Kind::Ping,
            2 => Kind::Ack,
            3 => Kind::News,
            4 => Kind::Ask(reader.take()?),
            5 => Kind::Vouch(reader.take()?),
            6 => Kind::Leave,
            unknown => return Err(DecodeError::Kind(unknown)),
        };
        let [count] = reader.take()?;
        let mut news = Vec::with_capacity(usize::from(count).min(RECORDS_MAX));
        for _ in 0..count {
            let (key, boot, incarnation) = (reader.take()?, reader.take()?, reader.take()?);
            let standing = match reader.take()? {
                [0] => Standing::Alive,
                [1] => Standing::Suspect,
                [2] => Standing::Gone,
                [3] => Standing::Left,
                _ => continue,
            };
            let (boot, incarnation) = (BootId::new(u64::from_le_bytes(boot)), u32::from_le_bytes(incarnation));
            news.push(Record { key, boot, incarnation, standing });
        }
        Ok(Self { kind, watch: flags & FLAG_WATCH != 0, boot, incarnation, digest, news })
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(DecodeError::Size)?;
        self.0 = rest;
        Ok(*bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records() -> impl Strategy<Value = Vec<Record>> {
        let standing =
            prop_oneof![Just(Standing::Alive), Just(Standing::Suspect), Just(Standing::Gone), Just(Standing::Left)];
        let record =
            (any::<[u8; 32]>(), any::<u64>(), any::<u32>(), standing).prop_map(|(key, boot, incarnation, standing)| {
                Record { key, boot: BootId::new(boot), incarnation, standing }
            });
        prop::collection::vec(record, 0..=RECORDS_MAX)
    }

    fn datagrams() -> impl Strategy<Value = Datagram> {
        let kind = prop_oneof![
            Just(Kind::Ping),
            Just(Kind::Ack),
            Just(Kind::News),
            any::<[u8; 32]>().prop_map(Kind::Ask),
            any::<[u8; 32]>().prop_map(Kind::Vouch),
            Just(Kind::Leave),
        ];
        (kind, any::<bool>(), any::<u64>(), any::<u32>(), any::<u32>(), records()).prop_map(
            |(kind, watch, boot, incarnation, digest, news)| Datagram {
                kind,
                watch,
                boot: BootId::new(boot),
                incarnation,
                digest,
                news,
            },
        )
    }

    proptest! {
        #[test]
        fn every_datagram_is_read_back_and_fits(datagram in datagrams()) {
            let bytes = datagram.encode();
            prop_assert!(bytes.len() <= DATAGRAM_BYTES_MAX);
            prop_assert_eq!(Datagram::decode(&bytes), Ok(datagram));
        }

        #[test]
        fn what_a_later_version_adds_at_the_end_is_ignored(datagram in datagrams(), more in prop::collection::vec(any::<u8>(), 0..20)) {
            let mut bytes = datagram.encode();
            bytes.extend(more);
            bytes.truncate(DATAGRAM_BYTES_MAX);
            prop_assert_eq!(Datagram::decode(&bytes), Ok(datagram));
        }

        #[test]
        fn a_datagram_cut_short_is_refused(datagram in datagrams(), cut in any::<prop::sample::Index>()) {
            let bytes = datagram.encode();
            prop_assert_eq!(Datagram::decode(&bytes[..cut.index(bytes.len())]), Err(DecodeError::Size));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Datagram::decode(&bytes);
        }
    }

    /// Recorded from version 1; it must be read for ever.
    #[test]
    fn a_recorded_datagram_is_read() {
        let mut bytes = vec![1, 4, 1, 8, 7, 6, 5, 4, 3, 2, 1, 9, 0, 0, 0, 0xdd, 0xcc, 0xbb, 0xaa];
        bytes.extend([0x11; 32]);
        bytes.push(2);
        bytes.extend([0x22; 32]);
        bytes.extend([1, 0, 0, 0, 0, 0, 0, 0x80, 5, 0, 0, 0, 1]);
        bytes.extend([0x33; 32]);
        bytes.extend([1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 99]);
        let datagram = Datagram::decode(&bytes).unwrap();
        let suspect = Record {
            key: [0x22; 32],
            boot: BootId::new(0x8000_0000_0000_0001),
            incarnation: 5,
            standing: Standing::Suspect,
        };
        let expected = Datagram {
            kind: Kind::Ask([0x11; 32]),
            watch: true,
            boot: BootId::new(0x0102_0304_0506_0708),
            incarnation: 9,
            digest: 0xaabb_ccdd,
            news: vec![suspect],
        };
        assert_eq!(datagram, expected, "the record with the standing of a later version is left out");
    }

    #[test]
    fn other_versions_and_kinds_are_told_apart_from_garbage() {
        let mut bytes = Datagram {
            kind: Kind::Ping,
            watch: false,
            boot: BootId::new(1),
            incarnation: 0,
            digest: 0,
            news: Vec::new(),
        }
        .encode();
        assert_eq!(bytes.len(), 20, "what an idle swarm sends all the time");
        bytes[1] = 77;
        assert_eq!(Datagram::decode(&bytes), Err(DecodeError::Kind(77)));
        bytes[0] = 2;
        assert_eq!(Datagram::decode(&bytes), Err(DecodeError::Version(2)));
        assert_eq!(Datagram::decode(&[1; DATAGRAM_BYTES_MAX + 1]), Err(DecodeError::Size));
    }
}
