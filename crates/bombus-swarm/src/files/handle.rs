//! The handle through which everybody but the service uses files and batches.

use std::fmt;
use std::sync::Arc;

use async_stream::try_stream;
use bombus_core::batches::{
    BatchDocument, BatchFacts, BatchInfo, BatchLine, Computed, FactDocument, FileDocument, FileInfo, FileName,
    NewBatch, OUTPUT_PURPOSE, PURPOSE, Page, batch_id,
};
use futures::stream::{BoxStream, StreamExt};
use serde::Serialize;

use super::drive::counts;
use super::error::FilesError;
use super::read::Pieces;
use super::results;
use super::shared::Shared;
use super::table::Table;
use super::upload::{Upload, random};

/// Most that a part of a list has.
const PAGE_MAX: usize = 10_000;
/// Most words that somebody may add to a batch, and the longest of them, in characters.
const METADATA_MAX: usize = 16;
const KEY_CHARS_MAX: usize = 64;
const VALUE_CHARS_MAX: usize = 512;

/// Which files to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileQuery {
    /// Only those of this purpose.
    pub purpose: Option<String>,
    /// The last one of the part before.
    pub after: Option<String>,
    /// Most files, at least 1.
    pub limit: usize,
    /// The oldest first, where the newest are else.
    pub oldest_first: bool,
}

/// What is in a file.
pub enum Content {
    /// What was uploaded, by pieces.
    Bytes(BoxStream<'static, Result<Vec<u8>, FilesError>>),
    /// What came of a batch.
    Lines(BoxStream<'static, Result<BatchLine, FilesError>>),
}

/// A cheap handle to files and batches. Every node answers for every one that it has heard of.
#[derive(Clone)]
pub struct FilesHandle {
    pub(super) shared: Arc<Shared>,
}

impl fmt::Debug for FilesHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilesHandle").finish_non_exhaustive()
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes(_) => "Bytes",
            Self::Lines(_) => "Lines",
        })
    }
}

impl FilesHandle {
    /// Begins to take a file.
    ///
    /// # Errors
    ///
    /// [`FilesError::Invalid`] where this node stores nothing that everybody can read; [`FilesError::Unavailable`] and
    /// [`FilesError::Db`], as of all that follow.
    pub async fn upload(&self) -> Result<Upload, FilesError> {
        self.shared.table().await?;
        self.check_unsealed("file")?;
        Ok(Upload::new(&self.shared))
    }

    /// Tells of a file.
    ///
    /// # Errors
    ///
    /// [`FilesError::UnknownFile`].
    pub async fn file(&self, id: &str) -> Result<FileInfo, FilesError> {
        let table = self.shared.table().await?;
        Ok(match find(&table, id)? {
            Found::Stored(file) => file.info(),
            Found::Computed(facts, computed) => computed_info(&facts, computed),
        })
    }

    /// Lists files, those that are computed of batches among them.
    ///
    /// # Errors
    ///
    /// [`FilesError::UnknownFile`] where the one is not there after which the part is to begin.
    pub async fn files(&self, query: &FileQuery) -> Result<Page<FileInfo>, FilesError> {
        let all = self.shared.table().await?.all();
        let stored = all.files.values().filter(|file| file.removed_at.is_none());
        let mut files: Vec<(u64, FileInfo)> = stored.map(|file| (file.created_at, file.info())).collect();
        for facts in all.batches.values() {
            let there = [Computed::Output, Computed::Errors].into_iter().filter(|computed| facts.has(*computed));
            let at = facts.ended.as_ref().map_or(0, |ended| ended.at);
            files.extend(there.map(|computed| (at, computed_info(facts, computed))));
        }
        files.retain(|(_, file)| query.purpose.as_deref().is_none_or(|purpose| purpose == file.purpose));
        files.sort_by(|a, b| (b.0, &b.1.id).cmp(&(a.0, &a.1.id)));
        if query.oldest_first {
            files.reverse();
        }
        let files: Vec<FileInfo> = files.into_iter().map(|(_, file)| file).collect();
        let unknown = || FilesError::UnknownFile(query.after.clone().unwrap_or_default());
        page(files, |file| &file.id, query.after.as_deref(), query.limit).ok_or_else(unknown)
    }

    /// Returns what is in a file. What is not here is fetched from peers.
    ///
    /// # Errors
    ///
    /// [`FilesError::UnknownFile`], [`FilesError::Unreached`].
    pub async fn content(&self, id: &str) -> Result<Content, FilesError> {
        let table = self.shared.table().await?;
        match find(&table, id)? {
            Found::Stored(file) => {
                let mut pieces = Pieces::open(&self.shared.db, &file.root, &file.by).await?;
                let bytes = try_stream! {
                    while let Some(piece) = pieces.next().await? {
                        yield piece;
                    }
                };
                Ok(Content::Bytes(bytes.boxed()))
            }
            Found::Computed(facts, computed) => {
                results::lines(&self.shared, *facts, computed).await.map(Content::Lines)
            }
        }
    }

    /// Removes a file. What batches need of it stays as long as they do.
    ///
    /// # Errors
    ///
    /// [`FilesError::UnknownFile`].
    pub async fn remove(&self, id: &str) -> Result<(), FilesError> {
        let table = self.shared.table().await?;
        let at = self.shared.now_ms();
        match find(&table, id)? {
            Found::Stored(file) => self.put(&table, &FileDocument { removed_at: Some(at), ..file }).await,
            Found::Computed(facts, computed) => {
                let by = self.shared.me.to_string();
                self.put(&table, &FactDocument { id: facts.key(computed.word()), at, by }).await
            }
        }
    }

    /// Makes a batch. It is safe on this node's disk when this returns; its file is looked at afterwards.
    ///
    /// # Errors
    ///
    /// [`FilesError::Invalid`], also where there is no such file.
    pub async fn create_batch(&self, new: NewBatch) -> Result<BatchInfo, FilesError> {
        let table = self.shared.table().await?;
        self.check_unsealed("input_file_id")?;
        check_metadata(&new)?;
        let Some(file) = table.file(&new.input_file_id) else {
            let message = format!("there is no file '{}' of the purpose '{PURPOSE}'", new.input_file_id);
            return Err(FilesError::invalid("input_file_id", message));
        };
        let made = BatchDocument {
            id: batch_id(random()?),
            input_file: file.id,
            root: file.root,
            bytes: file.bytes,
            endpoint: new.endpoint,
            metadata: new.metadata,
            by: self.shared.me.to_string(),
            created_at: self.shared.now_ms(),
        };
        self.put(&table, &made).await?;
        self.told(&BatchFacts::new(made)).await
    }

    /// Tells how a batch stands.
    ///
    /// # Errors
    ///
    /// [`FilesError::UnknownBatch`].
    pub async fn batch(&self, id: &str) -> Result<BatchInfo, FilesError> {
        let facts = self.facts(id).await?;
        self.told(&facts).await
    }

    /// Lists batches, newest first.
    ///
    /// # Errors
    ///
    /// [`FilesError::UnknownBatch`] where the one is not there after which the part is to begin.
    pub async fn batches(&self, after: Option<&str>, limit: usize) -> Result<Page<BatchInfo>, FilesError> {
        let all = self.shared.table().await?.all();
        let mut batches: Vec<BatchFacts> = all.batches.into_values().collect();
        batches.sort_by(|a, b| (b.made.created_at, &b.made.id).cmp(&(a.made.created_at, &a.made.id)));
        let unknown = || FilesError::UnknownBatch(after.unwrap_or_default().to_owned());
        let Page { data, has_more } = page(batches, |facts| &facts.made.id, after, limit).ok_or_else(unknown)?;
        let mut told = Vec::with_capacity(data.len());
        for facts in &data {
            told.push(self.told(facts).await?);
        }
        Ok(Page { data: told, has_more })
    }

    /// Has a batch end. What was done by then stays, and can be read.
    ///
    /// # Errors
    ///
    /// [`FilesError::UnknownBatch`], and [`FilesError::Ended`] where it has ended.
    pub async fn cancel(&self, id: &str) -> Result<BatchInfo, FilesError> {
        let facts = self.facts(id).await?;
        if facts.is_over() {
            return Err(FilesError::Ended(facts.status(&bombus_core::batches::RequestCounts::default())));
        }
        if facts.cancelled_at.is_none() {
            let (at, by) = (self.shared.now_ms(), self.shared.me.to_string());
            let table = self.shared.table().await?;
            self.put(&table, &FactDocument { id: facts.key("cancelled"), at, by }).await?;
        }
        self.batch(id).await
    }

    /// Refuses what everybody could read where this node stores nothing of that kind.
    fn check_unsealed(&self, param: &'static str) -> Result<(), FilesError> {
        if !self.shared.seals_all {
            return Ok(());
        }
        let message = "files of batches are stored on all nodes and cannot be sealed, and this node seals all: its configuration says seal = \"always\" in [tasks]";
        Err(FilesError::invalid(param, message))
    }

    async fn facts(&self, id: &str) -> Result<BatchFacts, FilesError> {
        self.shared.table().await?.batch(id).ok_or_else(|| FilesError::UnknownBatch(id.to_owned()))
    }

    async fn put(&self, table: &Table, document: &impl Serialize) -> Result<(), FilesError> {
        table.put(document).await.map_err(|error| self.shared.explained(error))
    }

    async fn told(&self, facts: &BatchFacts) -> Result<BatchInfo, FilesError> {
        let counts = match facts.ended {
            Some(_) => bombus_core::batches::RequestCounts::default(),
            None => counts(&self.shared, facts).await?,
        };
        Ok(facts.info(counts))
    }
}

enum Found {
    Stored(FileDocument),
    Computed(Box<BatchFacts>, Computed),
}

fn find(table: &Table, id: &str) -> Result<Found, FilesError> {
    let unknown = || FilesError::UnknownFile(id.to_owned());
    match FileName::read(id).ok_or_else(unknown)? {
        FileName::Stored(id) => table.file(&id).map(Found::Stored).ok_or_else(unknown),
        FileName::Computed(batch, computed) => {
            let facts = table.batch(&batch).filter(|facts| facts.has(computed)).ok_or_else(unknown)?;
            Ok(Found::Computed(Box::new(facts), computed))
        }
    }
}

fn computed_info(facts: &BatchFacts, computed: Computed) -> FileInfo {
    FileInfo {
        id: computed.file_of(&facts.made.id),
        bytes: 0,
        created_at: facts.ended.as_ref().map_or(0, |ended| ended.at / 1_000),
        filename: format!("{}_{}.jsonl", facts.made.id, computed.word()),
        purpose: OUTPUT_PURPOSE,
    }
}

/// Cuts a part out of a list; none where the one is not in it after which it is to begin.
fn page<T>(all: Vec<T>, id: impl Fn(&T) -> &String, after: Option<&str>, limit: usize) -> Option<Page<T>> {
    let begin = match after {
        Some(after) => all.iter().position(|one| id(one) == after)? + 1,
        None => 0,
    };
    let limit = limit.clamp(1, PAGE_MAX);
    let has_more = all.len() - begin > limit;
    Some(Page { data: all.into_iter().skip(begin).take(limit).collect(), has_more })
}

fn check_metadata(new: &NewBatch) -> Result<(), FilesError> {
    let fits = |(key, value): (&String, &String)| {
        (1..=KEY_CHARS_MAX).contains(&key.chars().count()) && value.chars().count() <= VALUE_CHARS_MAX
    };
    if new.metadata.len() <= METADATA_MAX && new.metadata.iter().all(fits) {
        return Ok(());
    }
    let message = format!(
        "'metadata' may have {METADATA_MAX} words of up to {KEY_CHARS_MAX} characters, each for a text of up to {VALUE_CHARS_MAX}"
    );
    Err(FilesError::invalid("metadata", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_list_follow_each_other() {
        let all = || vec!["c".to_owned(), "b".to_owned(), "a".to_owned()];
        let part = |after, limit| page(all(), |id| id, after, limit);
        let of =
            |data: &[&str], has_more| Some(Page { data: data.iter().map(|id| (*id).to_owned()).collect(), has_more });
        assert_eq!(part(None, 2), of(&["c", "b"], true));
        assert_eq!(part(Some("b"), 2), of(&["a"], false));
        assert_eq!((part(None, 3), part(Some("a"), 1)), (of(&["c", "b", "a"], false), of(&[], false)));
        assert_eq!(part(Some("x"), 1), None);
    }
}
