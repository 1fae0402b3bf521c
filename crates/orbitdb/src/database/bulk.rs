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
    /// Of writers with one identity, which was told.
    stamps: HashSet<Stamp>,
    /// Of writers with several: a key may sign as many as it likes.
    several: HashSet<Stamp>,
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
    /// identity that it names, unless the peer was told that before, so that an entry is two blocks at most. None is of no bytes. Also how many
    /// entries these are: fewer than fit where the next one is not safe yet.
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
            if let Some(identity) = self.identity_of(&*space, hash, block, told)? {
                size += identity.len();
                blocks.push(identity);
            }
            size += block.len();
            blocks.push(block.to_vec());
            count += 1;
        }
        Ok((count, blocks))
    }

    /// Returns the block of the identity that an entry names, unless it was told.
    fn identity_of(
        &self,
        space: &dyn Space,
        entry: &Hash,
        block: &[u8],
        told: &mut Told,
    ) -> Result<Option<Vec<u8>>, StorageError> {
        let stamp = self.inner.shared.state().replica.log().stamp(entry).cloned();
        let known = match &stamp {
            Some(stamp) if told.stamps.contains(stamp) => return Ok(None),
            Some(stamp) if !told.several.contains(stamp) => self.inner.shared.state().replica.identities_of(stamp),
            _ => Vec::new(),
        };
        let named = match (stamp, &known[..]) {
            (Some(stamp), [only]) => {
                told.stamps.insert(stamp);
                Some(*only)
            }
            // What does not hold, or may name any of several, is read once more for what it names.
            (stamp, _) => {
                told.several.extend(stamp);
                let read = self.inner.shared.codec.read(block).ok().and_then(|received| received.entry.ok());
                read.as_ref().map(Entry::identity)
            }
        };
        let Some(named) = named.filter(|named| told.identities.insert(*named)) else { return Ok(None) };
        // What does not hold may name anything, even nothing at all.
        Ok(space.get(Table::Blocks, named.digest())?.filter(|block| !block.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Access, OpenOptions, OrbitDb,
        cbor::Value,
        entry::{Draft, Operation},
        identity::Signer,
        key::SecretKey,
        manifest::DatabaseType,
        replica::Input,
    };

    const NOW: Duration = Duration::ZERO;

    fn keys() -> (SecretKey, SecretKey) {
        (SecretKey::from_bytes(&[1; 32]).unwrap(), SecretKey::from_bytes(&[2; 32]).unwrap())
    }

    async fn log() -> (OrbitDb, Database) {
        let (orbit, _outputs) = OrbitDb::builder().build().unwrap();
        let options = OpenOptions::of(DatabaseType::Events).access(Access::Everyone);
        let log = orbit.open("log", options).await.unwrap();
        (orbit, log)
    }

    fn write(log: &Database, writer: &Signer, time: u64, next: Vec<Hash>) -> Vec<u8> {
        let draft = Draft { time, next, refs: Vec::new() };
        log.inner.shared.codec.write(writer, draft, Operation::add(time).into_payload()).unwrap().block
    }

    async fn take(log: &Database, blocks: &[Vec<u8>]) {
        log.handle(NOW, Input::Bulk(Peer::new("peer"), blocks.to_vec())).await.unwrap();
        log.flush().await.unwrap();
    }

    #[tokio::test]
    async fn an_entry_brings_the_identity_that_it_names_and_none_of_the_others_of_its_writer() {
        let (_orbit, log) = log().await;
        let (outer, inner) = keys();
        let mut blocks: Vec<Vec<u8>> = Vec::new();
        for time in 1..=3_u8 {
            let writer = Signer::once_more(&outer, &inner, time);
            let next = blocks.last().map(|block| Hash::of(block)).into_iter().collect();
            let entry = write(&log, &writer, time.into(), next);
            blocks.extend([writer.block().to_vec(), entry]);
        }
        take(&log, &blocks).await;
        let sent = log.bulk(&log.lacking(&[]), 1 << 20, &mut Told::default()).unwrap();
        assert_eq!(sent, (3, blocks));
    }

    #[tokio::test]
    async fn nothing_at_all_is_not_sent_for_an_identity() {
        let (_orbit, log) = log().await;
        let (outer, inner) = keys();
        let writer = Signer::new(&outer, &inner);
        let Ok(Value::Map(mut map)) = Value::decode(&write(&log, &writer, 1, Vec::new())) else { panic!("a map") };
        map.insert("identity", Hash::of(&[]).to_string());
        let forged = Value::Map(map).encode().unwrap();
        let on_top = write(&log, &writer, 2, vec![Hash::of(&forged)]);
        let identity = writer.block().to_vec();
        take(&log, &[Vec::new(), forged.clone(), identity.clone(), on_top.clone()]).await;
        let sent = log.bulk(&log.lacking(&[]), 1 << 20, &mut Told::default()).unwrap();
        assert_eq!(sent, (2, vec![forged, identity, on_top]));
    }
}
