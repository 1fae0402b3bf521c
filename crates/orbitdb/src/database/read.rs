//! Reading: rows in the order of their entries, and what there is to see of a log.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, atomic::Ordering},
};

use super::{Database, DatabaseError};
use crate::{
    cbor::Value,
    cid::Hash,
    entry::Refusal,
    index::{Record, Row},
    log::Position,
    manifest::DatabaseType,
    storage::{Durability, Space},
    sync::Peer,
};

/// Which rows an amount leaves, where bounds have more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Take {
    /// With a lower bound and no upper one the oldest, otherwise the newest: as iterators in JavaScript have it.
    #[default]
    Nearest,
    /// The oldest.
    Oldest,
    /// The newest.
    Newest,
}

/// Which part of a database to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// At most so many rows.
    pub amount: Option<usize>,
    /// Which these are.
    pub take: Take,
    /// Only what is newer than this entry.
    pub gt: Option<Hash>,
    /// Only this entry and what is newer.
    pub gte: Option<Hash>,
    /// Only what is older than this entry.
    pub lt: Option<Hash>,
    /// Only this entry and what is older.
    pub lte: Option<Hash>,
}

/// Which places of the order are read, and from which end.
#[derive(Clone, Copy, Debug)]
struct Span {
    lower: Bound<Position>,
    upper: Bound<Position>,
    from_below: bool,
}

/// Rows that are read page by page, so that few of them are in memory at once; made by [`Database::pages`].
///
/// Each page goes on at the place in the order where the one before ended, whatever became of the entry that stood there. Oldest first, every
/// row comes that was there all the while; one that is put anew meanwhile stands at the end from then on, and may come twice. Newest first,
/// such a row may be missed. One of which a revocation shows an older value may be missed, or come twice, in both directions.
#[derive(Clone, Debug)]
pub struct Pages {
    database: Database,
    span: Span,
    left: usize,
}

impl Pages {
    /// Reads the next rows, at most so many; none when all were read.
    ///
    /// # Errors
    ///
    /// [`DatabaseError`] when the storage fails.
    pub fn read(&mut self, rows_max: usize) -> Result<Vec<Row>, DatabaseError> {
        loop {
            let (rows, last) = self.database.read(self.span, rows_max.min(self.left))?;
            let Some(last) = last else { return Ok(rows) };
            let end = if self.span.from_below { &mut self.span.lower } else { &mut self.span.upper };
            *end = Bound::Excluded(last);
            // What is taken away while it is read leaves a gap, and that is not the end.
            if !rows.is_empty() {
                self.left -= rows.len();
                return Ok(rows);
            }
        }
    }
}

/// What there is to see of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The heads, newest first.
    pub heads: Vec<Hash>,
    /// How many entries count.
    pub entries: u64,
    /// How many rows are shown.
    pub rows: u64,
    /// Bytes of all entries of the log.
    pub log_bytes: u64,
    /// Bytes that the space takes in the storage.
    pub stored_bytes: u64,
    /// Whether a put is safe when it returns; otherwise a crash may take the last ones.
    pub durable: bool,
    /// How many more entries count than when it was opened; fewer after a revocation.
    pub entries_grown: i64,
    /// How many more bytes the log has than when it was opened.
    pub bytes_grown: u64,
    /// Entries that are kept and do not count, by reason.
    pub refused: BTreeMap<Refusal, u64>,
    /// Entries that were not kept since it was opened, by reason.
    pub dropped: BTreeMap<Refusal, u64>,
    /// Blocks that came since it was opened and are no part of the log.
    pub broken: u64,
    /// Blocks that wait for others.
    pub parked: usize,
    /// Blocks that are missing.
    pub missing: usize,
    /// Peers that have the database open.
    pub peers: Vec<Peer>,
}

impl Database {
    /// Returns rows newest first, within bounds.
    ///
    /// # Errors
    ///
    /// [`DatabaseError::NotFound`] for a bound that is not there, and when the storage fails.
    pub fn iterate(&self, bounds: Bounds) -> Result<Vec<Row>, DatabaseError> {
        let span = self.span(&bounds)?;
        let (mut rows, _) = self.read(span, bounds.amount.unwrap_or(usize::MAX))?;
        if span.from_below {
            rows.reverse();
        }
        Ok(rows)
    }

    /// Begins to read rows within bounds page by page: oldest first where the oldest are taken, and newest first otherwise.
    ///
    /// # Errors
    ///
    /// [`DatabaseError::NotFound`] for a bound that is not there.
    pub fn pages(&self, bounds: Bounds) -> Result<Pages, DatabaseError> {
        let (span, left) = (self.span(&bounds)?, bounds.amount.unwrap_or(usize::MAX));
        Ok(Pages { database: self.clone(), span, left })
    }

    fn span(&self, bounds: &Bounds) -> Result<Span, DatabaseError> {
        let position = |hash: Hash| {
            let position = self.inner.shared.state().replica.log().position(&hash);
            position.ok_or(DatabaseError::NotFound(hash))
        };
        let bound = |inclusive: Option<Hash>, exclusive: Option<Hash>| match (inclusive, exclusive) {
            (_, Some(hash)) => position(hash).map(Bound::Excluded),
            (Some(hash), None) => position(hash).map(Bound::Included),
            (None, None) => Ok(Bound::Unbounded),
        };
        let (lower, upper) = (bound(bounds.gte, bounds.gt)?, bound(bounds.lte, bounds.lt)?);
        let from_below = match bounds.take {
            Take::Nearest => !matches!(lower, Bound::Unbounded) && matches!(upper, Bound::Unbounded),
            Take::Oldest => true,
            Take::Newest => false,
        };
        Ok(Span { lower, upper, from_below })
    }

    /// Reads at most so many rows from one end of a span, and says where the last place is that was looked at; none where there is none.
    fn read(&self, span: Span, amount: usize) -> Result<(Vec<Row>, Option<Position>), DatabaseError> {
        if is_empty(&span.lower, &span.upper) {
            return Ok((Vec::new(), None));
        }
        let has_keys = self.manifest().r#type != DatabaseType::Events;
        // A row is taken along with its place: a moment later its key may stand elsewhere.
        let places: Vec<(Position, Option<Row>)> = {
            let index = self.inner.shared.index();
            let row = |key: &str| if has_keys { index.get(key) } else { None };
            let places = index.range((span.lower, span.upper)).map(|(position, key)| (*position, row(key)));
            if span.from_below { places.take(amount).collect() } else { places.rev().take(amount).collect() }
        };
        let last = places.last().map(|(position, _)| *position);
        if has_keys {
            return Ok((places.into_iter().filter_map(|(_, row)| row).collect(), last));
        }
        let space = self.inner.shared.space()?;
        let rows = places.iter().filter_map(|(position, _)| self.row_of_event(&*space, position.hash));
        Ok((rows.collect(), last))
    }

    /// Returns all rows, oldest first.
    ///
    /// # Errors
    ///
    /// [`DatabaseError`] when the storage fails.
    pub fn all(&self) -> Result<Vec<Row>, DatabaseError> {
        let mut rows = self.iterate(Bounds::default())?;
        rows.reverse();
        Ok(rows)
    }

    /// Returns the entries of a key that count, oldest first: what a [`View`](crate::index::View) is given of it.
    ///
    /// With a view these are read alone. Without one nothing but the newest entry of a key is kept in mind, so that the whole log is read.
    ///
    /// # Errors
    ///
    /// [`DatabaseError`] when the storage fails.
    pub fn history(&self, key: &str) -> Result<Vec<Record>, DatabaseError> {
        let shared = &self.inner.shared;
        let members: Option<Vec<Position>> = shared.index().members(key).map(|positions| positions.copied().collect());
        let Some(members) = members else { return shared.records_of(key) };
        let space = shared.space()?;
        Ok(members.iter().filter_map(|position| shared.record(&*space, &position.hash)).collect())
    }

    /// Shows all entries that count, in the order in which they came here. It may block.
    ///
    /// # Errors
    ///
    /// [`DatabaseError`] when the storage fails.
    pub fn each_record(&self, mut each: impl FnMut(Record)) -> Result<(), DatabaseError> {
        self.inner.shared.read_records(|records| records.for_each(&mut each))
    }

    /// Returns an event that counts and is stored.
    fn row_of_event(&self, space: &dyn Space, hash: Hash) -> Option<Row> {
        let record = self.inner.shared.record(space, &hash)?;
        Some(Row { hash, key: "".into(), value: Arc::new(record.operation.value) })
    }

    pub(super) fn event(&self, hash: &Hash) -> Option<Row> {
        let space = self.inner.shared.space().ok()?;
        self.row_of_event(&*space, *hash)
    }

    /// Returns the events whose values fulfil a condition, oldest first; no more of them are in memory than these.
    pub(super) fn events_that(&self, condition: impl Fn(&Value) -> bool) -> Vec<Row> {
        let Ok(space) = self.inner.shared.space() else { return Vec::new() };
        let hashes: Vec<Hash> = self.inner.shared.index().range(..).map(|(position, _)| position.hash).collect();
        let rows = hashes.into_iter().filter_map(|hash| self.row_of_event(&*space, hash));
        rows.filter(|row| condition(&row.value)).collect()
    }

    /// Returns what there is to see of the database.
    ///
    /// # Errors
    ///
    /// [`DatabaseError::Closed`] when it is closed, and when the storage cannot be seen.
    pub fn info(&self) -> Result<Info, DatabaseError> {
        let shared = &self.inner.shared;
        let stored_bytes = shared.space()?.bytes()?;
        let rows = shared.index().len() as u64;
        let state = shared.state();
        let (log, sync) = (state.replica.log(), state.replica.sync());
        let (parked, missing) = sync.waiting();
        let entries = log.len() as u64;
        let log_bytes = shared.sizes.bytes.load(Ordering::Relaxed);
        Ok(Info {
            heads: log.heads().map(|position| position.hash).collect(),
            entries,
            rows,
            log_bytes,
            stored_bytes,
            durable: shared.durability == Durability::Full,
            entries_grown: entries.wrapping_sub(shared.sizes.entries_at_open).cast_signed(),
            bytes_grown: log_bytes.saturating_sub(shared.sizes.bytes_at_open),
            refused: log.refused().clone(),
            dropped: state.replica.dropped().iter().map(|(refusal, count)| (*refusal, *count)).collect(),
            broken: state.replica.broken(),
            parked,
            missing,
            peers: sync.peers().cloned().collect(),
        })
    }
}

/// Returns whether nothing can lie between two bounds, which a range of a map does not take.
fn is_empty(lower: &Bound<Position>, upper: &Bound<Position>) -> bool {
    match (lower, upper) {
        (Bound::Included(lower), Bound::Included(upper)) => lower > upper,
        (Bound::Included(lower) | Bound::Excluded(lower), Bound::Excluded(upper) | Bound::Included(upper)) => {
            lower >= upper
        }
        _ => false,
    }
}
