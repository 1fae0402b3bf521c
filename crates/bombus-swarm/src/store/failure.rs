//! What becomes of a store whose storage failed: it takes nothing more, and is opened anew.

use orbitdb::Database;
use orbitdb::storage::StorageError;

use super::handle::TaskStore;

impl TaskStore {
    /// Returns why nothing can be written any more, where that is so. What is in memory can still be read.
    #[must_use]
    pub fn failure(&self) -> Option<StorageError> {
        let generations = self.inner.generations.all();
        generations.iter().flat_map(|generation| generation.databases()).find_map(Database::failure)
    }

    /// Closes all databases, whatever becomes of that, and ends the streams of changes: what was written and told is safe, and the store can be
    /// opened again.
    pub async fn let_go(&self) {
        self.inner.ended.cancel();
        for generation in self.inner.generations.all() {
            for database in generation.databases() {
                if let Err(error) = database.close().await {
                    tracing::debug!(%error, db.address = %database.address(), "a database was closed that had failed");
                }
            }
        }
    }
}
