//! The documents of files and batches.

use std::collections::BTreeMap;

use bombus_core::batches::{BatchFacts, FileDocument, Parsed, fact_key};
use orbitdb::Database;
use orbitdb::cbor::Value;
use serde::Serialize;

use super::error::FilesError;

/// What may be said of a batch beside what it is.
const FACTS: [&str; 5] = ["checked", "ended", "cancelled", "output", "errors"];

/// The documents; clones stand for the same.
#[derive(Clone)]
pub(super) struct Table {
    pub(super) database: Database,
}

/// All files and batches that are known.
#[derive(Default)]
pub(super) struct All {
    /// Those that were removed are among them.
    pub(super) files: BTreeMap<String, FileDocument>,
    pub(super) batches: BTreeMap<String, BatchFacts>,
}

impl Table {
    fn get(&self, key: &str) -> Option<Parsed> {
        Parsed::read(key, self.database.get(key)?.value.to_json())
    }

    /// Returns a file that is there.
    pub(super) fn file(&self, id: &str) -> Option<FileDocument> {
        match self.get(id)? {
            Parsed::File(file) if file.removed_at.is_none() => Some(file),
            _ => None,
        }
    }

    /// Returns what is known of a batch.
    pub(super) fn batch(&self, id: &str) -> Option<BatchFacts> {
        let Parsed::Batch(made) = self.get(id)? else { return None };
        let mut facts = BatchFacts::new(made);
        for fact in FACTS {
            if let Some(parsed) = self.get(&fact_key(id, fact)) {
                facts.add(parsed);
            }
        }
        Some(facts)
    }

    /// Reads everything.
    pub(super) fn all(&self) -> All {
        let (mut all, mut facts) = (All::default(), Vec::new());
        for row in self.database.query(|_| true) {
            match Parsed::read(&row.key, row.value.to_json()) {
                Some(Parsed::File(file)) => {
                    all.files.insert(file.id.clone(), file);
                }
                Some(Parsed::Batch(made)) => {
                    all.batches.insert(made.id.clone(), BatchFacts::new(made));
                }
                Some(fact) => facts.push(fact),
                None => {}
            }
        }
        for fact in facts {
            let batch = match &fact {
                Parsed::Checked(batch, _)
                | Parsed::Ended(batch, _)
                | Parsed::Cancelled(batch, _)
                | Parsed::Hidden(batch, _) => all.batches.get_mut(batch),
                Parsed::File(_) | Parsed::Batch(_) => None,
            };
            if let Some(batch) = batch {
                batch.add(fact);
            }
        }
        all
    }

    /// Writes a document. It is safe when this returns.
    pub(super) async fn put(&self, document: &impl Serialize) -> Result<(), FilesError> {
        let json = serde_json::to_value(document).map_err(|error| FilesError::Document(error.to_string()))?;
        let value = Value::from_json(&json).map_err(|error| FilesError::Document(error.to_string()))?;
        self.database.put_document(value).await?;
        Ok(())
    }

    /// Takes everything away that is said of a batch.
    pub(super) async fn forget_batch(&self, id: &str) -> Result<(), FilesError> {
        // The batch first: without it the rest is of no account.
        for fact in std::iter::once("").chain(FACTS) {
            let key = fact_key(id, fact);
            if self.database.get(&key).is_some() {
                self.database.del(&key).await?;
            }
        }
        Ok(())
    }

    /// Takes the mark of a removed file away.
    pub(super) async fn forget_file(&self, id: &str) -> Result<(), FilesError> {
        self.database.del(id).await?;
        Ok(())
    }
}
