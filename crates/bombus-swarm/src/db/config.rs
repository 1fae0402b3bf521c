//! Settings of the databases.

use std::time::Duration;

use bombus_net::MESSAGE_MAX;
use bombus_net::bitswap::BitswapConfig;
use orbitdb::OpenOptions;
use orbitdb::entry::Limits;
use orbitdb::log::REFS;
use orbitdb::replica::{HEADS_BYTES_MAX, HEADS_MAX};
use orbitdb::sync::SyncConfig;
use serde::{Deserialize, Serialize};

use super::oplog::PIECE_MAX;

/// Most KiB of an entry that topics carry: a cipher may add some bytes to it.
const ENTRY_KB_MAX: usize = (MESSAGE_MAX - (1 << 10)) >> 10;
/// Most KiB of a block that goes in one piece of a log in bulk, beside the identity that it names.
const BLOCK_KB_MAX: usize = (PIECE_MAX >> 10) - 16;
/// Most KiB of entries in a piece; what they name and what stands between them comes on top.
const PIECE_KB_MAX: usize = PIECE_MAX >> 11;
/// Most of what waits in a queue, or for its turn.
const WAITING_MAX: usize = 1 << 20;
/// Longest time that a limit can be, in milliseconds: a year.
const TIME_MS_MAX: u64 = 365 * 24 * 3_600_000;
/// Most KiB of what a stream of heads carries.
const HEADS_KB_MAX: usize = HEADS_BYTES_MAX >> 10;

/// Replicated databases: the section `[db]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DbConfig {
    /// Whether this node keeps databases and replicates them.
    pub enabled: bool,
    /// Most databases that are open at once, those that guard others included. Each takes a topic and a protocol of the mesh.
    pub databases_max: usize,
    /// Memory for pages of each open database, in MiB.
    pub cache_mb: usize,
    /// Whether the last puts to databases that are opened while this is set may be lost in a crash, for speed. Otherwise a put is safe when it
    /// returns, but to those that a program opens as relaxed.
    pub relaxed: bool,
    /// Greatest size of an entry that counts, in KiB, up to 1,022: what is larger fits no message of a topic. The same on all nodes. Peers in
    /// JavaScript cannot exchange entries of 256 KiB.
    pub entry_kb_max: usize,
    /// Greatest size of a block that is looked at, in KiB; nothing that builds on a larger one joins. More than `entry_kb_max`, and no more
    /// than `bitswap.block_bytes_max` lets be fetched.
    pub block_kb_max: usize,
    /// Most `next`, and most `refs`, that an entry may name: at least 16, since entries name so many `refs`.
    pub links_max: usize,
    /// How long to wait for what a database is, where it is opened by the address of a peer's, in milliseconds.
    pub open_limit_ms: u64,
    /// Most peers that are asked at once what it is. Zero counts as one.
    pub open_peers_max: usize,
    /// Most databases that are being opened at once; others wait. Zero counts as one.
    pub opening_max: usize,
    /// How long an exchange of heads may take, in milliseconds.
    pub heads_limit_ms: u64,
    /// Greatest size of what a peer may send as heads in one stream, in KiB: more than `entry_kb_max`, up to 8,192. So much is sent, too.
    pub heads_kb_max: usize,
    /// Most exchanges of heads that run at once for one database: of those that this node begins, and of those that peers begin.
    pub heads_streams_max: usize,
    /// How many of those that peers begin may be one peer's.
    pub heads_streams_per_peer_max: usize,
    /// Most heads that are sent to a peer, the newest: 1 to 512. Who has more gets the others when these have been followed by an entry.
    pub heads_max: usize,
    /// When to ask whom.
    pub sync: DbSyncConfig,
    /// The entries that nodes send each other as they are written: the section `[db.entries]`.
    pub entries: EntriesConfig,
    /// What waits in a database: the section `[db.queues]`.
    pub queues: QueuesConfig,
    /// The bulk catch-up between nodes.
    pub oplog: OplogConfig,
    /// The exchange of single blocks, with peers in JavaScript too: the section `[db.bitswap]`.
    pub bitswap: BitswapConfig,
}

impl Default for DbConfig {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            enabled: true,
            databases_max: 48,
            cache_mb: 16,
            relaxed: false,
            entry_kb_max: limits.entry_bytes >> 10,
            block_kb_max: limits.block_bytes >> 10,
            links_max: limits.links,
            open_limit_ms: 30_000,
            open_peers_max: 64,
            opening_max: 8,
            heads_limit_ms: 10_000,
            heads_kb_max: 4 << 10,
            heads_streams_max: 32,
            heads_streams_per_peer_max: 4,
            heads_max: 64,
            sync: DbSyncConfig::default(),
            entries: EntriesConfig::default(),
            queues: QueuesConfig::default(),
            oplog: OplogConfig::default(),
            bitswap: BitswapConfig::default(),
        }
    }
}

/// When peers are asked for what is missing: the section `[db.sync]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DbSyncConfig {
    /// How often heads are exchanged with one of the peers, by turns, in milliseconds.
    pub resend_ms: u64,
    /// How long a peer has for a block before another one is asked, in milliseconds.
    pub want_timeout_ms: u64,
    /// First pause after all peers were asked in vain, or an exchange of heads failed, in milliseconds; it doubles each time.
    pub backoff_ms: u64,
    /// Greatest such pause, in milliseconds.
    pub backoff_ms_max: u64,
    /// How often all peers are asked for a block before it is given up, until somebody names it again.
    pub rounds: u32,
    /// Greatest memory for blocks of one database that wait for others, in MiB. What does not fit is asked for again in its turn.
    pub waiting_mb: usize,
    /// Greatest part of it for the blocks of one peer, in MiB.
    pub waiting_mb_per_peer: usize,
    /// Most peers of one database that are kept in mind; further ones are passed over.
    pub peers_max: usize,
}

impl Default for DbSyncConfig {
    fn default() -> Self {
        let sync = SyncConfig::default();
        Self {
            resend_ms: millis(sync.resend),
            want_timeout_ms: millis(sync.want_timeout),
            backoff_ms: millis(sync.backoff),
            backoff_ms_max: millis(sync.backoff_max),
            rounds: sync.rounds,
            waiting_mb: sync.parked_bytes >> 20,
            waiting_mb_per_peer: sync.parked_bytes_per_peer >> 20,
            peers_max: sync.peers,
        }
    }
}

/// The entries that nodes send each other as they are written, `/bombus/entries/1`: the section `[db.entries]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EntriesConfig {
    /// Most streams that peers have open here at a time, one for each database of each; those beyond are reset.
    pub streams_max: usize,
    /// How many of them may be one peer's.
    pub streams_per_peer_max: usize,
    /// How many entries wait for one peer. It gets those beyond with the next exchange of heads.
    pub waiting_max: usize,
    /// How long a peer may take to say which database a stream is about, and to take an entry, in milliseconds.
    pub stall_limit_ms: u64,
}

impl Default for EntriesConfig {
    fn default() -> Self {
        Self { streams_max: 1_024, streams_per_peer_max: 128, waiting_max: 256, stall_limit_ms: 10_000 }
    }
}

/// What waits in each open database until there is time for it: the section `[db.queues]`. What has no place comes later, with an exchange of
/// heads. Zero counts as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueuesConfig {
    /// Most blocks from peers, and exchanges of heads to begin, that wait. When so many do, no more blocks are read.
    pub orders_max: usize,
    /// Most own entries that wait to be published.
    pub publications_max: usize,
    /// Most entries that nodes sent straight to here, and wait to be looked at. When so many do, their streams are not read.
    pub heard_max: usize,
    /// Most entries that wait here until what they follow has come.
    pub held_max: usize,
    /// How much these may take together, in KiB.
    pub held_kb_max: usize,
    /// How many of them may be one peer's, or those of all together whom no connection leads to.
    pub held_per_peer_max: usize,
    /// How much these may take, in KiB.
    pub held_kb_per_peer_max: usize,
}

impl Default for QueuesConfig {
    fn default() -> Self {
        Self {
            orders_max: 64,
            publications_max: 1_024,
            heard_max: 64,
            held_max: 1_024,
            held_kb_max: 8 << 10,
            held_per_peer_max: 256,
            held_kb_per_peer_max: 2 << 10,
        }
    }
}

/// The bulk catch-up between nodes, `/bombus/oplog/1`: the section `[db.oplog]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OplogConfig {
    /// Most peers that are served at once; who asks beyond is told to come back.
    pub serve_max: usize,
    /// How many of them may be one peer's.
    pub serve_per_peer_max: usize,
    /// Most streams at a time, those that are told to come back included; those beyond are reset.
    pub streams_max: usize,
    /// How many of them may be one peer's.
    pub streams_per_peer_max: usize,
    /// About how much is sent and checked in one piece, in KiB: 1 to 4,096.
    pub piece_kb: usize,
    /// Most entries that are sent to one request, and taken of one answer; who lacks more asks again.
    pub entries_max: usize,
    /// How long a peer may take for the first word of its answer, in milliseconds.
    pub answer_limit_ms: u64,
    /// How long a peer may take for the next piece, in milliseconds.
    pub stall_limit_ms: u64,
}

impl Default for OplogConfig {
    fn default() -> Self {
        Self {
            serve_max: 8,
            serve_per_peer_max: 2,
            streams_max: 64,
            streams_per_peer_max: 8,
            piece_kb: 512,
            entries_max: 1_000_000,
            answer_limit_ms: 5_000,
            stall_limit_ms: 10_000,
        }
    }
}

/// Why settings of the databases do not fit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DbConfigError {
    /// Nothing could be written.
    #[error("entry_kb_max = 0 has to be at least 1: nothing could be written")]
    NoEntry,
    /// More than anybody needs, and than there may be room for.
    #[error("{setting} = {value} is more than {WAITING_MAX}")]
    Waiting {
        /// Its name.
        setting: &'static str,
        /// What it is set to.
        value: usize,
    },
    /// A time in which nothing could be done, or longer than anybody means.
    #[error("{setting} = {value} has to be from 1 to {TIME_MS_MAX} milliseconds: nothing could be done in no time")]
    Time {
        /// Its name.
        setting: &'static str,
        /// What it is set to.
        value: u64,
    },
    /// Most entries would not count.
    #[error("links_max = {0} has to be at least {REFS}: entries name so many before them, and would not count")]
    Links(usize),
    /// Larger entries could not be published.
    #[error(
        "entry_kb_max = {0} is more than {ENTRY_KB_MAX}, which is what fits into a message of a topic (1 MiB) with its envelope"
    )]
    EntryOfTopic(usize),
    /// Entries could be larger than the blocks that are looked at.
    #[error(
        "entry_kb_max = {entry} has to be less than block_kb_max = {block}: an entry, and what a cipher adds to it, would not be looked at"
    )]
    EntryOfBlock {
        /// What an entry may take, in KiB.
        entry: usize,
        /// What a block may take, in KiB.
        block: usize,
    },
    /// Larger blocks could not be fetched.
    #[error(
        "block_kb_max = {block} is more than bitswap.block_bytes_max = {bytes} bytes: larger blocks could not be fetched"
    )]
    BlockOfBitswap {
        /// What a block may take, in KiB.
        block: usize,
        /// What bitswap carries, in bytes.
        bytes: usize,
    },
    /// The largest block has to fit into a message.
    #[error(
        "bitswap.block_bytes_max = {block} is more than half of bitswap.message_bytes_max = {message}, which has to hold more than one block"
    )]
    BitswapOfMessage {
        /// What bitswap carries, in bytes.
        block: usize,
        /// What its messages may take, in bytes.
        message: usize,
    },
    /// Larger blocks could not be sent in bulk.
    #[error("block_kb_max = {0} is more than {BLOCK_KB_MAX}, which is what fits into a piece of /bombus/oplog/1")]
    BlockOfPiece(usize),
    /// The largest entry could not be told as a head, or more is said than is read.
    #[error(
        "heads_kb_max = {heads} has to be more than entry_kb_max = {entry}, since any entry may be a head, and at most {HEADS_KB_MAX}"
    )]
    Heads {
        /// What a stream of heads may carry, in KiB.
        heads: usize,
        /// What an entry may take, in KiB.
        entry: usize,
    },
    /// No head would be told, or more than peers take.
    #[error("heads_max = {0} has to be from 1 to {HEADS_MAX}: peers take no more in one stream")]
    HeadCount(usize),
    /// A piece would be nothing, or larger than peers take.
    #[error("oplog.piece_kb = {0} has to be from 1 to {PIECE_KB_MAX}")]
    Piece(usize),
}

impl DbConfig {
    /// Checks that the settings fit together: that an entry that counts reaches other nodes in every way.
    ///
    /// # Errors
    ///
    /// Says which do not.
    pub fn check(&self) -> Result<(), DbConfigError> {
        let (entry, block, heads, piece) =
            (self.entry_kb_max, self.block_kb_max, self.heads_kb_max, self.oplog.piece_kb);
        let BitswapConfig { block_bytes_max, message_bytes_max, .. } = self.bitswap;
        let DbConfig { queues, entries, oplog, opening_max, .. } = self;
        let waiting = [
            ("opening_max", *opening_max),
            ("queues.orders_max", queues.orders_max),
            ("queues.publications_max", queues.publications_max),
            ("queues.heard_max", queues.heard_max),
            ("queues.held_max", queues.held_max),
            ("queues.held_kb_max", queues.held_kb_max),
            ("entries.waiting_max", entries.waiting_max),
        ];
        if let Some((setting, value)) = waiting.into_iter().find(|(_, value)| *value > WAITING_MAX) {
            return Err(DbConfigError::Waiting { setting, value });
        }
        let times = [
            ("open_limit_ms", self.open_limit_ms),
            ("heads_limit_ms", self.heads_limit_ms),
            ("entries.stall_limit_ms", entries.stall_limit_ms),
            ("oplog.answer_limit_ms", oplog.answer_limit_ms),
            ("oplog.stall_limit_ms", oplog.stall_limit_ms),
        ];
        if let Some((setting, value)) = times.into_iter().find(|(_, value)| !(1..=TIME_MS_MAX).contains(value)) {
            return Err(DbConfigError::Time { setting, value });
        }
        if entry == 0 {
            return Err(DbConfigError::NoEntry);
        }
        if self.links_max < REFS {
            return Err(DbConfigError::Links(self.links_max));
        }
        if entry > ENTRY_KB_MAX {
            return Err(DbConfigError::EntryOfTopic(entry));
        }
        if entry >= block {
            return Err(DbConfigError::EntryOfBlock { entry, block });
        }
        if block > BLOCK_KB_MAX {
            return Err(DbConfigError::BlockOfPiece(block));
        }
        if block << 10 > block_bytes_max {
            return Err(DbConfigError::BlockOfBitswap { block, bytes: block_bytes_max });
        }
        if block_bytes_max > message_bytes_max / 2 {
            return Err(DbConfigError::BitswapOfMessage { block: block_bytes_max, message: message_bytes_max });
        }
        if heads <= entry || heads > HEADS_KB_MAX {
            return Err(DbConfigError::Heads { heads, entry });
        }
        if !(1..=HEADS_MAX).contains(&self.heads_max) {
            return Err(DbConfigError::HeadCount(self.heads_max));
        }
        if !(1..=PIECE_KB_MAX).contains(&piece) {
            return Err(DbConfigError::Piece(piece));
        }
        Ok(())
    }

    /// Returns options with the bounds of this configuration.
    pub(super) fn bound(&self, options: OpenOptions) -> OpenOptions {
        let relaxed = self.relaxed || options.is_relaxed();
        options.limits(self.limits()).sync(self.sync()).relaxed(relaxed)
    }

    pub(super) fn limits(&self) -> Limits {
        Limits { block_bytes: self.block_kb_max << 10, entry_bytes: self.entry_kb_max << 10, links: self.links_max }
    }

    fn sync(&self) -> SyncConfig {
        let sync = &self.sync;
        let mib = |size: usize| size.saturating_mul(1 << 20);
        SyncConfig {
            // Without a pause, what fails would be tried without an end.
            resend: Duration::from_millis(sync.resend_ms.max(100)),
            want_timeout: Duration::from_millis(sync.want_timeout_ms.max(10)),
            backoff: Duration::from_millis(sync.backoff_ms.max(10)),
            backoff_max: Duration::from_millis(sync.backoff_ms_max.max(sync.backoff_ms.max(10))),
            rounds: sync.rounds,
            parked_bytes: mib(sync.waiting_mb),
            parked_bytes_per_peer: mib(sync.waiting_mb_per_peer),
            peers: sync.peers_max,
        }
    }

    pub(super) fn open_limit(&self) -> Duration {
        Duration::from_millis(self.open_limit_ms)
    }

    pub(super) fn heads_bytes(&self) -> usize {
        self.heads_kb_max << 10
    }

    pub(super) fn heads_limit(&self) -> Duration {
        Duration::from_millis(self.heads_limit_ms)
    }
}

impl QueuesConfig {
    pub(super) fn held_bytes_max(&self) -> usize {
        self.held_kb_max.max(1) << 10
    }

    pub(super) fn held_bytes_per_peer_max(&self) -> usize {
        self.held_kb_per_peer_max.max(1).saturating_mul(1 << 10)
    }
}

impl EntriesConfig {
    pub(super) fn stall_limit(&self) -> Duration {
        Duration::from_millis(self.stall_limit_ms)
    }
}

impl OplogConfig {
    pub(super) fn answer_limit(&self) -> Duration {
        Duration::from_millis(self.answer_limit_ms)
    }

    pub(super) fn stall_limit(&self) -> Duration {
        Duration::from_millis(self.stall_limit_ms)
    }

    pub(super) fn piece_bytes(&self) -> usize {
        self.piece_kb << 10
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_word_the_bounds_are_those_of_the_library() {
        let config = DbConfig::default();
        assert_eq!(config.limits(), Limits::default());
        assert_eq!(config.sync(), SyncConfig::default());
    }

    /// A change of the settings, and what the error says then.
    type Case = (fn(&mut DbConfig), &'static [&'static str]);

    #[test]
    fn limits_that_would_keep_entries_from_other_nodes_are_told() {
        assert_eq!(DbConfig::default().check(), Ok(()));
        let check = |change: fn(&mut DbConfig)| {
            let mut config = DbConfig::default();
            change(&mut config);
            config.check().map_err(|error| error.to_string())
        };
        assert_eq!(check(|config| config.entry_kb_max = ENTRY_KB_MAX), Ok(()));
        assert_eq!(check(|config| config.heads_kb_max = HEADS_KB_MAX), Ok(()));
        assert_eq!(check(|config| config.links_max = 16), Ok(()));
        assert_eq!(check(|config| config.heads_max = 512), Ok(()));
        let cases: [Case; 20] = [
            (|config| config.open_limit_ms = 0, &["open_limit_ms = 0", "1 to"]),
            (|config| config.heads_limit_ms = u64::MAX, &["heads_limit_ms = 18446744073709551615"]),
            (|config| config.entries.stall_limit_ms = 0, &["entries.stall_limit_ms = 0"]),
            (|config| config.oplog.answer_limit_ms = 0, &["oplog.answer_limit_ms = 0"]),
            (|config| config.oplog.stall_limit_ms = 0, &["oplog.stall_limit_ms = 0"]),
            (|config| config.links_max = 15, &["links_max = 15", "at least 16"]),
            (|config| config.entry_kb_max = 0, &["entry_kb_max = 0"]),
            (|config| config.opening_max = usize::MAX, &["opening_max", "1048576"]),
            (|config| config.queues.heard_max = 1 << 21, &["queues.heard_max = 2097152"]),
            (|config| config.entry_kb_max = 1_024, &["entry_kb_max = 1024", "topic"]),
            (|config| config.block_kb_max = 500, &["entry_kb_max = 1000", "block_kb_max = 500"]),
            (|config| config.block_kb_max = 2_049, &["block_kb_max = 2049", "bitswap.block_bytes_max = 2097152"]),
            (|config| config.block_kb_max = usize::MAX, &["block_kb_max", "/bombus/oplog/1"]),
            (
                |config| config.bitswap.block_bytes_max = 3 << 20,
                &["bitswap.block_bytes_max = 3145728", "bitswap.message_bytes_max = 4194304"],
            ),
            (|config| config.heads_kb_max = 1_000, &["heads_kb_max = 1000", "entry_kb_max = 1000"]),
            (|config| config.heads_kb_max = 8_193, &["heads_kb_max = 8193", "8192"]),
            (|config| config.heads_max = 0, &["heads_max = 0", "from 1"]),
            (|config| config.heads_max = 513, &["heads_max = 513", "512"]),
            (|config| config.oplog.piece_kb = 0, &["oplog.piece_kb = 0"]),
            (|config| config.oplog.piece_kb = 4_097, &["oplog.piece_kb = 4097", "4096"]),
        ];
        for (change, parts) in cases {
            let reason = check(change).unwrap_err();
            assert!(parts.iter().all(|part| reason.contains(part)), "{reason}");
        }
    }

    #[test]
    fn a_pause_of_nothing_is_none() {
        let sync = DbSyncConfig { resend_ms: 0, backoff_ms: 0, backoff_ms_max: 0, ..DbSyncConfig::default() };
        let sync = DbConfig { sync, ..DbConfig::default() }.sync();
        assert!(sync.resend > Duration::ZERO && sync.backoff > Duration::ZERO && sync.backoff_max >= sync.backoff);
    }

    #[test]
    fn settings_that_are_not_known_are_told() {
        let read = serde_json::from_str::<DbConfig>(r#"{ "oplog": { "entries": 3 } }"#);
        assert!(read.unwrap_err().to_string().contains("entries"));
    }
}
