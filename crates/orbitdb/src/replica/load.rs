//! Making a replica of what was kept, part by part: the blocks themselves are never all in memory.

use std::{collections::HashMap, sync::Arc};

use super::{Replica, check};
use crate::{
    cid::Hash,
    entry::{Codec, Operation, Received, Refusal},
    identity::Identity,
    log::{Admission, Log, Position, Stamp},
    sync::SyncConfig,
};

/// The block of an entry that was kept, and what its own checks and its clock had said.
pub type Kept = (Vec<u8>, Option<Refusal>);

/// An entry that was kept and counts.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Where it stands in the order.
    pub position: Position,
    /// Who wrote it, as write lists call them.
    pub writer: Arc<str>,
    /// What it does; none when that is not known.
    pub operation: Option<Operation>,
}

/// A replica that is being made of what was kept: first all identities, in any order, then all entries, each after those that it follows.
#[derive(Clone, Debug)]
pub struct Loader {
    codec: Codec,
    log: Log,
    identities: HashMap<Hash, Option<Identity>>,
}

impl Loader {
    /// Begins with nothing.
    #[must_use]
    pub fn new(codec: Codec, admission: Admission) -> Self {
        Self { codec, log: Log::new(admission), identities: HashMap::new() }
    }

    /// Takes the block of an identity; one that is none is remembered as such.
    pub fn identity(&mut self, block: &[u8]) {
        self.identities.insert(Hash::of(block), Identity::read(block).ok());
    }

    /// Takes entries, which are read on all cores; those that cannot be read are left out. Returns those that count.
    pub fn entries(&mut self, kept: &[Kept]) -> Vec<Restored> {
        let (codec, identities) = (&self.codec, &self.identities);
        let read = check::on_all_cores(kept, |(block, own)| {
            let received = codec.read(block).ok()?;
            // The clock is judged anew with those of the ancestors. It is refused only where the other checks have held.
            let own = own.filter(|refusal| *refusal != Refusal::Clock);
            let stamp = own.map_or_else(|| stamp_of(&received, identities), Err);
            let operation = received.entry.ok().and_then(|entry| codec.operation_of(entry));
            Some((received.links, stamp, operation))
        });
        let restore = |(links, stamp, operation): (_, Result<Stamp, _>, _)| {
            let writer = stamp.as_ref().ok().map(|stamp| Arc::clone(&stamp.identity));
            Some(Restored { position: self.log.restore(&links, stamp)?, writer: writer?, operation })
        };
        read.into_iter().flatten().filter_map(restore).collect()
    }

    /// Ends with the replica.
    #[must_use]
    pub fn finish(mut self, config: SyncConfig) -> Replica {
        self.log.judge();
        let mut replica = Replica::new(self.codec, Admission::Everyone, config);
        (replica.log, replica.identities) = (self.log, Arc::new(self.identities));
        replica
    }
}

/// Returns who wrote an entry whose own checks have held before.
fn stamp_of(received: &Received, identities: &HashMap<Hash, Option<Identity>>) -> Result<Stamp, Refusal> {
    let entry = received.entry.as_ref().map_err(|refusal| *refusal)?;
    let identity = identities.get(&entry.identity()).and_then(Option::as_ref).ok_or(Refusal::Identity)?;
    Ok(Stamp { writer: identity.key().to_bytes(), identity: identity.id().into() })
}
