//! Which blocks files and batches need: none of them is removed with the texts of tasks.

use std::collections::{BTreeSet, HashSet};
use std::sync::Weak;

use futures::FutureExt;
use futures::future::BoxFuture;
use orbitdb::cid::Hash;

use super::read::parts_of;
use super::shared::Shared;
use super::table::All;
use crate::db::BlockHolder;

/// The name under which the blocks of files are held.
pub(super) const HOLDER: &str = "files";

/// Speaks for the blocks of files and batches.
pub(super) struct BlocksOfFiles(pub(super) Weak<Shared>);

/// Returns the roots of everything that is there: files, the files of batches, and lists of refused lines.
pub(super) fn roots(all: &All) -> BTreeSet<String> {
    let files = all.files.values().filter(|file| file.removed_at.is_none()).map(|file| file.root.clone());
    let batches = all.batches.values().flat_map(|facts| {
        let refusals = facts.checked.as_ref().and_then(|checked| checked.refusals.clone());
        std::iter::once(facts.made.root.clone()).chain(refusals)
    });
    files.chain(batches).collect()
}

impl BlockHolder for BlocksOfFiles {
    fn held<'a>(&'a self, of: &'a HashSet<Hash>) -> BoxFuture<'a, Result<HashSet<Hash>, String>> {
        async move {
            let shared = self.0.upgrade().ok_or("the files are being closed")?;
            let table = shared.table().await.map_err(|error| error.to_string())?;
            let mut held = HashSet::new();
            for root in roots(&table.all()) {
                let Ok(root) = root.parse::<Hash>() else { continue };
                let mut named = vec![root];
                // What is not here has no parts here that somebody could miss.
                if let Some(block) = shared.db.block(&root).await.map_err(|error| error.to_string())? {
                    named.extend(parts_of(&block).unwrap_or_default());
                }
                held.extend(named.into_iter().filter(|hash| of.contains(hash)));
            }
            Ok(held)
        }
        .boxed()
    }
}
