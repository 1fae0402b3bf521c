//! Blocks that are waited for before a database can be opened.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{oneshot, watch};

use crate::{cid::Hash, manifest::BLOCK_BYTES_MAX};

pub(super) struct Fetches {
    waiting: Mutex<BTreeMap<Hash, Vec<oneshot::Sender<Vec<u8>>>>>,
    missing: watch::Sender<BTreeSet<Hash>>,
}

impl Default for Fetches {
    fn default() -> Self {
        Self { waiting: Mutex::default(), missing: watch::Sender::new(BTreeSet::new()) }
    }
}

/// Takes what is no longer waited for off the list, also when the wait was given up.
struct Waiting<'a>(&'a Fetches, Hash);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        if let Some(waiters) = waiting.get_mut(&self.1) {
            waiters.retain(|waiter| !waiter.is_closed());
            if waiters.is_empty() {
                waiting.remove(&self.1);
            }
        }
        self.0.publish(&waiting);
    }
}

impl Fetches {
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<Hash, Vec<oneshot::Sender<Vec<u8>>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, waiting: &BTreeMap<Hash, Vec<oneshot::Sender<Vec<u8>>>>) {
        let missing: BTreeSet<Hash> = waiting.keys().copied().collect();
        self.missing.send_if_modified(|before| {
            let changed = *before != missing;
            *before = missing;
            changed
        });
    }

    pub(super) fn watch(&self) -> watch::Receiver<BTreeSet<Hash>> {
        self.missing.subscribe()
    }

    /// Waits for a block for as long as the caller likes.
    pub(super) async fn fetch(&self, hash: Hash) -> Vec<u8> {
        loop {
            let guard = Waiting(self, hash);
            let (sender, receiver) = oneshot::channel();
            {
                let mut waiting = self.waiting();
                waiting.entry(hash).or_default().push(sender);
                self.publish(&waiting);
            }
            let block = receiver.await;
            drop(guard);
            if let Ok(block) = block {
                return block;
            }
        }
    }

    pub(super) fn supply(&self, block: &[u8]) {
        if block.len() > BLOCK_BYTES_MAX {
            return;
        }
        let mut waiting = self.waiting();
        for waiter in waiting.remove(&Hash::of(block)).unwrap_or_default() {
            // Who gave up has no use for it.
            drop(waiter.send(block.to_vec()));
        }
        self.publish(&waiting);
    }
}
