//! Reading a block by its name alone: it is kept here, or a peer gives it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use orbitdb::cid::Hash;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::blocks::{For, no_longer, serving};
use super::error::DbError;
use super::kept::KEPT_BLOCK_BYTES_MAX;
use super::shared::{Shared, aside};

/// How long a peer has for a block before the next one is asked as well.
const NEXT_PEER: Duration = Duration::from_secs(1);
/// Pause before all peers are asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// What has become of a block that somebody waits for.
#[derive(Debug, Default)]
struct News {
    block: Option<Arc<[u8]>>,
    /// Who has not got it.
    absent: BTreeSet<NodeId>,
}

/// Who waits for which blocks by their names.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    by_hash: HashMap<Hash, Await>,
}

#[derive(Debug, Default)]
struct Await {
    waiting: usize,
    news: watch::Sender<News>,
}

impl Awaited {
    fn begin(&mut self, hash: Hash) -> watch::Receiver<News> {
        let awaited = self.by_hash.entry(hash).or_default();
        awaited.waiting += 1;
        awaited.news.subscribe()
    }

    /// Returns whether nobody waits any more.
    fn end(&mut self, hash: &Hash) -> bool {
        let Some(awaited) = self.by_hash.get_mut(hash) else { return true };
        awaited.waiting -= 1;
        let is_last = awaited.waiting == 0;
        if is_last {
            self.by_hash.remove(hash);
        }
        is_last
    }

    /// Takes a block that has come.
    pub(super) fn came(&self, hash: &Hash, block: &[u8]) {
        if let Some(Await { news, .. }) = self.by_hash.get(hash) {
            news.send_modify(|news| news.block = Some(block.into()));
        }
    }

    /// Takes note that a peer has not got a block.
    pub(super) fn absent(&self, hash: &Hash, peer: &NodeId) {
        if let Some(Await { news, .. }) = self.by_hash.get(hash) {
            news.send_modify(|news| {
                news.absent.insert(peer.clone());
            });
        }
    }
}

/// Somebody who waits; the last one who ends takes back what was asked.
struct Waiting<'a> {
    shared: &'a Shared,
    hash: Hash,
    news: watch::Receiver<News>,
}

impl<'a> Waiting<'a> {
    fn begin(shared: &'a Shared, hash: Hash) -> Self {
        let news = shared.awaited().begin(hash);
        Self { shared, hash, news }
    }

    /// Asks a peer, and waits until the block has come, the peer has not got it, or has had its time.
    async fn ask(&mut self, peer: &NodeId) -> Option<Arc<[u8]>> {
        self.shared.want_for(For::Reader, peer, &[self.hash]);
        let told = self.news.wait_for(|news| news.block.is_some() || news.absent.contains(peer));
        // Its other end is in the list as long as somebody waits.
        timeout(NEXT_PEER, told).await.ok()?.ok()?.block.clone()
    }

    fn forget_absent(&self) {
        if let Some(Await { news, .. }) = self.shared.awaited().by_hash.get(&self.hash) {
            news.send_modify(|news| news.absent.clear());
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let is_last = self.shared.awaited().end(&self.hash);
        if is_last {
            no_longer(self.shared, &self.hash, For::Reader);
        }
    }
}

/// Returns a block that is kept here, or else that a peer gives within a time, which is kept from then on. Peers are asked one after the other,
/// those in `first` before all others, and again until the time is over.
pub(super) async fn fetch(
    shared: &Arc<Shared>,
    hash: Hash,
    first: &[NodeId],
    limit: Duration,
) -> Result<Vec<u8>, DbError> {
    if let Some(block) = local(shared, hash).await? {
        return Ok(block);
    }
    let from_peers = timeout(limit, ask_all(shared, hash, first));
    let block = match shared.stopped.run_until_cancelled(from_peers).await {
        None => return Err(DbError::Stopped),
        Some(Err(_)) => return Err(DbError::BlockNotReached { hash, limit }),
        Some(Ok(block)) => block,
    };
    if block.len() > KEPT_BLOCK_BYTES_MAX {
        return Err(DbError::BlockSize(block.len()));
    }
    let block = block.to_vec();
    shared.own_blocks.put(vec![(hash, block.clone())]).await?;
    Ok(block)
}

/// Returns a block that is kept here.
pub(super) async fn local(shared: &Arc<Shared>, hash: Hash) -> Result<Option<Vec<u8>>, DbError> {
    let shared = Arc::clone(shared);
    aside(async move { shared.own_blocks.get(&hash) }).await
}

async fn ask_all(shared: &Shared, hash: Hash, first: &[NodeId]) -> Arc<[u8]> {
    let mut waiting = Waiting::begin(shared, hash);
    loop {
        let others: Vec<NodeId> = serving(shared).filter(|peer| !first.contains(peer)).collect();
        let own = shared.net.node_id();
        for peer in first.iter().filter(|peer| *peer != own).chain(&others) {
            if let Some(block) = waiting.ask(peer).await {
                return block;
            }
        }
        sleep(PAUSE).await;
        waiting.forget_absent();
    }
}
