//! Blocks that wait for nothing more, part by part: a long log is released all at once by its oldest entry, and to check it takes seconds
//! that nobody who writes must wait for.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    Effect, Replica,
    check::{self, Checked},
};
use crate::{
    cid::Hash,
    entry::{Codec, Refusal},
    identity::Identity,
    sync::{Block, Kind},
};

/// How many blocks are checked in one go, some 10 ms of work on one core. No more than these join while others wait for the replica.
pub(super) const PART: usize = 256;

/// Those that are to be checked yet, each after what it follows.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    blocks: VecDeque<Block>,
    /// The names of these, and of those that are being checked.
    names: HashSet<Hash>,
}

/// Some of them, taken out to be checked without the replica, so that nobody waits for it.
#[derive(Clone, Debug)]
pub struct Part {
    codec: Codec,
    blocks: Vec<Block>,
    identities: Arc<HashMap<Hash, Option<Identity>>>,
}

/// Some that were checked.
#[derive(Debug)]
pub struct CheckedPart(Vec<(Block, Checked)>);

impl Queue {
    pub(super) fn push(&mut self, block: Block) {
        if self.names.insert(block.hash) {
            self.blocks.push_back(block);
        }
    }

    pub(super) fn contains(&self, hash: &Hash) -> bool {
        self.names.contains(hash)
    }
}

impl Part {
    /// Reads and checks the blocks, on all cores.
    #[must_use]
    pub fn check(self) -> CheckedPart {
        let checked = check::all(&self.codec, &self.identities, &self.blocks);
        CheckedPart(self.blocks.into_iter().zip(checked).collect())
    }
}

impl Replica {
    /// Returns whether [`Replica::part`] gives something.
    #[must_use]
    pub fn has_part(&self) -> bool {
        !self.released.blocks.is_empty()
    }

    /// Takes out some of the blocks that wait for nothing more. They join with [`Replica::take_part`], and what follows them not before.
    pub fn part(&mut self) -> Option<Part> {
        let count = self.released.blocks.len().min(PART);
        let blocks: Vec<Block> = self.released.blocks.drain(..count).collect();
        let (codec, identities) = (self.codec.clone(), Arc::clone(&self.identities));
        (!blocks.is_empty()).then_some(Part { codec, blocks, identities })
    }

    /// Lets blocks join that were checked. Returns what is to be done.
    pub fn take_part(&mut self, now: Duration, part: CheckedPart) -> Vec<Effect> {
        let mut effects = Vec::new();
        let names: Vec<Hash> = part.0.iter().map(|(block, _)| block.hash).collect();
        for name in &names {
            self.released.names.remove(name);
        }
        let identities = Arc::clone(&self.identities);
        // The identity that one names may have come since they were taken out.
        let anew = |checked: Checked| match checked {
            Ok((received, Err(Refusal::Identity))) => {
                let stamp = check::own(&received, &identities);
                Ok((received, stamp))
            }
            checked => checked,
        };
        let checked = part.0.into_iter().map(|(block, checked)| (block, anew(checked)));
        self.join_checked(now, checked, &mut effects);
        drop(identities);
        // Some came behind these by themselves, so that others may still wait for them.
        for name in names {
            if self.log.contains(&name) {
                let ready = self.sync.arrived(now, &name, Kind::Entry);
                self.settle(now, ready, &mut effects);
            }
        }
        self.ask(now, &mut effects);
        effects
    }
}
