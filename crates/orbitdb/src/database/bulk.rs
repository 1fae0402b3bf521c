//! The log in bulk, for peers that lack much of it.

use std::{collections::HashSet, time::Duration};

use super::{Database, DatabaseError};
use crate::{
    cid::Hash,
    entry::Entry,
    log::{Stamp, lacking},
    replica::{Examined, Examiner, Replica, heads_of},
    storage::{Space, StorageError, Table},
    sync::Peer,
};

/// What a piece of a log brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gain {
    /// Entries of it that are in the log now, and were not before.
    pub new: usize,
    /// Entries of it that were in the log already.
    pub known: usize,
}

/// Which identities a peer was given along with entries, so that each goes once.
#[derive(Debug, Default)]
pub struct Told {
    stamps: HashSet<Stamp>,
    identities: HashSet<Hash>,
}

impl Database {
    /// Returns names that tell a peer what is here, for [`Database::lacking`]: the heads, and ever fewer of what lies behind them.
    #[must_use]
    pub fn have(&self) -> Vec<Hash> {
        self.inner.shared.state().replica.log().have()
    }

    /// Returns the names of the entries that a peer lacks, each after those that it follows; `have` is what [`Database::have`] gave there. In a
    /// large log it may take seconds, which hold up nobody who writes.
    #[must_use]
    pub fn lacking(&self, have: &[Hash]) -> Vec<Hash> {
        let shared = &self.inner.shared;
        let ends = shared.state().replica.log().ends(have);
        lacking(ends, |hash| shared.state().replica.log().followed(hash))
    }

    /// Returns whether an entry is in the log, whether or not it counts.
    #[must_use]
    pub fn contains(&self, entry: &Hash) -> bool {
        self.inner.shared.state().replica.log().contains(entry)
    }

    /// Returns whether all entries of a stream of heads are in the log, as many of them as [`crate::replica::Input::Heads`] takes.
    #[must_use]
    pub fn contains_heads(&self, bytes: &[u8]) -> bool {
        heads_of(bytes).all(|(head, item)| item.is_ok() && self.contains(&Hash::of(head)))
    }

    /// Takes an entry that a peer published, as [`crate::replica::Input::Published`] does, but only where all that it follows is in the log.
    /// Returns whether it did: who gets a `false` can see to it that what is missing comes in bulk before the entry is handed in again.
    ///
    /// # Errors
    ///
    /// [`DatabaseError::Closed`] when the database is closed.
    pub async fn take_published(&self, now: Duration, peer: &Peer, block: &[u8]) -> Result<bool, DatabaseError> {
        let mut is_whole = true;
        self.step(now, false, |replica| {
            let effects = replica.published(now, peer, block);
            is_whole = effects.is_some();
            effects.unwrap_or_default()
        })
        .await?;
        Ok(is_whole)
    }

    /// Begins with what a peer sends in bulk.
    #[must_use]
    pub fn examiner(&self, peer: Peer) -> Examiner {
        Examiner::new(self.inner.shared.codec.clone(), peer)
    }

    /// Reads and checks blocks that a peer sent in bulk, on all cores and while everything else goes on. One piece can be examined while the
    /// one before joins.
    #[must_use]
    pub fn examine(&self, examiner: &mut Examiner, blocks: &[Vec<u8>]) -> Examined {
        examiner.examine(blocks, |blocks, identities| self.inner.shared.state().replica.known(blocks, identities))
    }

    /// Lets blocks join that were examined: pieces in the order in which they came. Returns what that brought: a peer may send some that are
    /// known, since it is told little of what is here, but one that sends nothing else is of no use.
    ///
    /// Waits for room when too many changes are waiting to be written.
    ///
    /// # Errors
    ///
    /// [`DatabaseError::Closed`] when the database is closed.
    pub async fn join(&self, now: Duration, examined: Examined) -> Result<Gain, DatabaseError> {
        let mut gain = Gain::default();
        self.step(now, false, |replica| {
            let names = examined.names().to_vec();
            let joined = |replica: &Replica| names.iter().filter(|name| replica.log().contains(name)).count();
            gain.known = joined(replica);
            let effects = replica.take(now, examined);
            gain.new = joined(replica) - gain.known;
            effects
        })
        .await?;
        Ok(gain)
    }

    /// Returns the first of some entries, until their blocks take so many bytes, as [`crate::replica::Input::Bulk`] takes them: each behind the
    /// identity that it names, unless the peer was told that before. Also how many entries these are: fewer than fit where the next one is
    /// not safe yet.
    ///
    /// # Errors
    ///
    /// [`DatabaseError`] when they cannot be read.
    pub fn bulk(
        &self,
        entries: &[Hash],
        bytes: usize,
        told: &mut Told,
    ) -> Result<(usize, Vec<Vec<u8>>), DatabaseError> {
        let space = self.inner.shared.space()?;
        let mut reader = self.inner.shared.entries.reader(&*space);
        let (mut blocks, mut size, mut count) = (Vec::new(), 0, 0);
        for hash in entries {
            let Some(block) = reader.block(hash)? else { break };
            if count > 0 && size + block.len() > bytes {
                break;
            }
            for identity in self.identities_of(&*space, hash, block, told)? {
                size += identity.len();
                blocks.push(identity);
            }
            size += block.len();
            blocks.push(block.to_vec());
            count += 1;
        }
        Ok((count, blocks))
    }

    /// Returns the blocks of the identities that an entry may name, of those that were not told yet.
    fn identities_of(
        &self,
        space: &dyn Space,
        entry: &Hash,
        block: &[u8],
        told: &mut Told,
    ) -> Result<Vec<Vec<u8>>, StorageError> {
        let stamp = self.inner.shared.state().replica.log().stamp(entry).cloned();
        let named: Vec<Hash> = match stamp {
            Some(stamp) if told.stamps.contains(&stamp) => Vec::new(),
            Some(stamp) => {
                let named = self.inner.shared.state().replica.identities_of(&stamp);
                told.stamps.insert(stamp);
                named
            }
            // What does not hold is read once more for what it names.
            None => {
                let read = self.inner.shared.codec.read(block).ok().and_then(|received| received.entry.ok());
                read.as_ref().map(Entry::identity).into_iter().collect()
            }
        };
        let mut blocks = Vec::new();
        for hash in named {
            if told.identities.insert(hash) {
                blocks.extend(space.get(Table::Blocks, hash.digest())?);
            }
        }
        Ok(blocks)
    }
}
