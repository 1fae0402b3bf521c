//! Which blocks the entries of generations name, and the removal of those that none does any more.

use std::collections::HashSet;
use std::sync::Weak;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use orbitdb::cid::Hash;
use orbitdb::{Database, DatabaseError};
use tokio::task::spawn_blocking;

use super::error::StoreError;
use super::handle::{Inner, TaskStore};
use super::text::{Root, read_root};
use crate::db::{BlockHolder, DbError, DbHandle, Removed};

/// The name under which the texts of tasks are held.
pub(super) const TEXTS: &str = "texts of tasks";
/// Others who keep blocks, by the name of their database: as long as one is stored and nobody speaks for it, nothing is removed.
const OTHERS: [(&str, &str); 1] = [("swarm-files", "files")];
/// Fields of documents that name a block.
const FIELDS: [&str; 3] = ["promptBlock", "restBlock", "responseBlock"];
/// Greatest size of a text, in bytes, whatever was allowed when it was written.
const TEXT_BYTES_MAX: usize = 64 << 20;
/// How many blocks are read at once.
const READ_AT_ONCE: usize = 8;

/// Speaks for the blocks that entries of tasks name.
pub(super) struct TextsOfTasks(pub(super) Weak<Inner>);

impl BlockHolder for TextsOfTasks {
    fn held<'a>(&'a self, of: &'a HashSet<Hash>) -> BoxFuture<'a, Result<HashSet<Hash>, String>> {
        async move {
            let inner = self.0.upgrade().ok_or("the store of tasks is closed")?;
            let generations = inner.generations.all();
            let databases = generations.iter().flat_map(|generation| [&generation.tasks, &generation.results]);
            let named = named_in(databases.cloned().collect()).await.map_err(|error| error.to_string())?;
            let all = with_parts(&inner.db, named).await.map_err(|error| error.to_string())?;
            Ok(all.into_iter().filter(|block| of.contains(block)).collect())
        }
        .boxed()
    }
}

/// Returns all blocks that entries of databases name. Those that these name in turn are not among them.
pub(super) async fn named_in(databases: Vec<Database>) -> Result<HashSet<Hash>, StoreError> {
    let read = move || -> Result<HashSet<Hash>, DatabaseError> {
        let mut named = HashSet::new();
        for database in databases {
            database.each_record(|record| {
                let value = &record.operation.value;
                let texts = FIELDS.into_iter().filter_map(|field| value.get(field)?.as_text());
                named.extend(texts.filter_map(|text| text.parse::<Hash>().ok()));
            })?;
        }
        Ok(named)
    };
    let read = spawn_blocking(read).await.map_err(|error| DbError::Failed(error.to_string()))?;
    Ok(read?)
}

/// Adds the parts of texts that are known by a list of them, as far as that is here. Those stand before the lists: who removes them in this
/// order still finds what is left if it breaks off.
pub(super) async fn with_parts(db: &DbHandle, roots: HashSet<Hash>) -> Result<Vec<Hash>, StoreError> {
    let parts = stream::iter(roots.clone()).map(async |root| match db.block(&root).await? {
        Some(block) => Ok::<_, DbError>(read_root(&block, TEXT_BYTES_MAX)),
        None => Ok(None),
    });
    let mut parts = parts.buffer_unordered(READ_AT_ONCE);
    let mut all = HashSet::new();
    while let Some(read) = parts.next().await {
        if let Some(Root::Parts(parts)) = read? {
            all.extend(parts.into_iter().filter(|part| !roots.contains(part)));
        }
    }
    drop(parts);
    Ok(all.into_iter().chain(roots).collect())
}

impl TaskStore {
    /// Removes blocks that nobody refers to, in their order. Returns what cannot be removed yet beside what is gone.
    pub(super) async fn remove_texts(&self, blocks: Vec<Hash>) -> (Removed, Vec<Hash>) {
        if blocks.is_empty() {
            return (Removed::default(), Vec::new());
        }
        let db = &self.inner.db;
        let removed = match self.unspoken_for() {
            Ok(None) => db.remove_blocks(blocks.clone(), self.inner.limits.young()).await,
            Ok(Some(name)) => Err(DbError::Holder { name, reason: "it is not open yet".to_owned() }),
            Err(error) => Err(error),
        };
        match removed {
            Ok(removed) => {
                let young = removed.young.clone();
                (removed, young)
            }
            Err(error) => {
                tracing::warn!(%error, "texts of tasks that nobody has are not removed yet");
                (Removed::default(), blocks)
            }
        }
    }

    /// Returns who keeps blocks here and cannot be asked now.
    fn unspoken_for(&self) -> Result<Option<&'static str>, DbError> {
        let known = self.inner.db.list()?;
        let is_stored = |database: &str| known.iter().any(|known| known.name == database);
        let unspoken =
            OTHERS.into_iter().find(|(database, name)| is_stored(database) && !self.inner.db.has_holder(name));
        Ok(unspoken.map(|(_, name)| name))
    }
}
