//! The live index: what a database shows, kept up to date entry by entry, so that reading never walks the log.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use crate::{
    cbor::Value,
    cid::Hash,
    entry::{Key, Op, Operation},
    log::Position,
    replica::on_all_cores,
};

/// An entry that counts, as views see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Where it stands in the order.
    pub position: Position,
    /// The id of its writer's identity, as write lists hold it.
    pub writer: Arc<str>,
    /// What it does.
    pub operation: Operation,
}

/// What a key shows, as a function of all entries of that key.
///
/// It is evaluated anew when an entry of the key arrives, in whatever order they do. As long as it depends on nothing but what it is
/// given, every replica shows the same. So an application can enforce an authority of its own. Of many keys several may be evaluated at the
/// same time.
pub trait View: Send + Sync {
    /// Returns the key that an entry belongs to; none when it belongs to none. By default that of its operation.
    fn key<'a>(&self, record: &'a Record) -> Option<&'a str> {
        record.operation.key.as_ref().map(Key::as_str)
    }

    /// Returns what the key shows, of all its entries, oldest first.
    fn evaluate(&self, key: &str, records: &[Record]) -> Option<Value>;
}

/// What decides about a key.
#[derive(Clone)]
pub enum Rule {
    /// Every entry is shown: events.
    All,
    /// The newest entry of the key decides: documents and key-value.
    Latest,
    /// A view of the application.
    View(Arc<dyn View>),
}

impl fmt::Debug for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::All => "All",
            Self::Latest => "Latest",
            Self::View(_) => "View",
        })
    }
}

/// What a database shows in one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The name of the entry that it stands on: the newest of its key.
    pub hash: Hash,
    /// The text that names the key; empty for events.
    pub key: Arc<str>,
    /// The value.
    pub value: Arc<Value>,
}

#[derive(Clone, Debug)]
struct Cell {
    /// Of the newest entry of the key.
    position: Position,
    /// None when the key was taken away.
    value: Option<Shown>,
}

/// What a key shows.
#[derive(Clone, Debug)]
enum Shown {
    Whole(Arc<Value>),
    /// Encoded. Of what views show there is much, and little of it is read again: so it takes a third of the memory.
    Packed(Box<[u8]>),
}

impl Shown {
    fn of_view(value: Value) -> Self {
        match value.encode() {
            Ok(bytes) => Self::Packed(bytes.into()),
            Err(_) => Self::Whole(Arc::new(value)),
        }
    }

    /// Returns the value, if it fulfils a condition.
    fn get(&self, condition: impl FnOnce(&Value) -> bool) -> Option<Arc<Value>> {
        match self {
            Self::Whole(value) => condition(value).then(|| Arc::clone(value)),
            Self::Packed(bytes) => {
                let value = Value::decode(bytes).expect("what was encoded can be decoded");
                condition(&value).then(|| Arc::new(value))
            }
        }
    }
}

/// An index.
#[derive(Clone, Debug)]
pub struct Index {
    rule: Rule,
    cells: BTreeMap<Arc<str>, Cell>,
    /// The keys that show something, by their newest entries.
    shown: BTreeMap<Position, Arc<str>>,
    /// For a view, the entries of each key, oldest first.
    members: HashMap<Arc<str>, Vec<Position>>,
}

impl Index {
    /// Makes an empty index.
    #[must_use]
    pub fn new(rule: Rule) -> Self {
        Self { rule, cells: BTreeMap::new(), shown: BTreeMap::new(), members: HashMap::new() }
    }

    /// Returns what decides about keys.
    #[must_use]
    pub const fn rule(&self) -> &Rule {
        &self.rule
    }

    /// Takes entries that count, in any order. `read` gives entries that it took before, for views.
    pub fn apply(&mut self, records: Vec<Record>, read: impl Fn(&Hash) -> Option<Record> + Sync) {
        match self.rule.clone() {
            Rule::All => {
                let key: Arc<str> = "".into();
                self.shown.extend(records.into_iter().map(|record| (record.position, Arc::clone(&key))));
            }
            Rule::Latest => records.into_iter().for_each(|record| self.apply_latest(record)),
            Rule::View(view) => self.apply_view(&*view, records, read),
        }
    }

    fn apply_latest(&mut self, record: Record) {
        let Operation { op, key: Some(key), value } = record.operation else { return };
        let value = match op {
            Op::Put => Some(Shown::Whole(Arc::new(value))),
            Op::Del => None,
            Op::Add => return,
        };
        let newer = |cell: &Cell| cell.position < record.position;
        if self.cells.get(key.as_str()).is_none_or(newer) {
            self.set(key.as_str(), Cell { position: record.position, value });
        }
    }

    fn set(&mut self, key: &str, cell: Cell) {
        let (key, position, is_shown) = match self.cells.get_key_value(key) {
            Some((key, old)) => {
                self.shown.remove(&old.position);
                (Arc::clone(key), cell.position, cell.value.is_some())
            }
            None => (key.into(), cell.position, cell.value.is_some()),
        };
        if is_shown {
            self.shown.insert(position, Arc::clone(&key));
        }
        self.cells.insert(key, cell);
    }

    fn apply_view(&mut self, view: &dyn View, records: Vec<Record>, read: impl Fn(&Hash) -> Option<Record> + Sync) {
        let mut arrived: HashMap<Hash, Record> = HashMap::with_capacity(records.len());
        let mut touched: BTreeSet<Arc<str>> = BTreeSet::new();
        for record in records {
            let Some(key) = view.key(&record).map(Arc::<str>::from) else { continue };
            add_member(self.members.entry(Arc::clone(&key)).or_default(), record.position);
            touched.insert(key);
            arrived.insert(record.position.hash, record);
        }
        // What one key shows has nothing to do with another one.
        let touched: Vec<Arc<str>> = touched.into_iter().collect();
        let cells = on_all_cores(&touched, |key| {
            let positions = &self.members[key];
            let record = |position: &Position| arrived.get(&position.hash).cloned().or_else(|| read(&position.hash));
            let records: Vec<Record> = positions.iter().filter_map(record).collect();
            let value = view.evaluate(key, &records).map(Shown::of_view);
            positions.last().map(|newest| Cell { position: *newest, value })
        });
        for (key, cell) in touched.iter().zip(cells) {
            if let Some(cell) = cell {
                self.set(key, cell);
            }
        }
    }

    /// Returns what a key shows.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Row> {
        let (key, cell) = self.cells.get_key_value(key)?;
        Some(Row { hash: cell.position.hash, key: Arc::clone(key), value: cell.value.as_ref()?.get(|_| true)? })
    }

    /// Returns where the entries of a key stand that a view shows, oldest first. Without a view only the newest one is kept in mind, and this
    /// is none.
    #[must_use]
    pub fn members(&self, key: &str) -> Option<impl ExactSizeIterator<Item = &Position>> {
        matches!(self.rule, Rule::View(_))
            .then(|| self.members.get(key).map(|members| members.iter()).unwrap_or_default())
    }

    /// Returns the rows whose values fulfil a condition, ordered by key. Events have none: their values are not in memory.
    pub fn query(&self, condition: impl Fn(&Value) -> bool) -> Vec<Row> {
        let row = |(key, cell): (&Arc<str>, &Cell)| {
            let value = cell.value.as_ref()?.get(&condition)?;
            Some(Row { hash: cell.position.hash, key: Arc::clone(key), value })
        };
        self.cells.iter().filter_map(row).collect()
    }

    /// Returns what is shown, by the newest entry of each key, within bounds of the order.
    pub fn range(
        &self,
        bounds: impl std::ops::RangeBounds<Position>,
    ) -> impl DoubleEndedIterator<Item = (&Position, &Arc<str>)> {
        self.shown.range(bounds)
    }

    /// Returns how many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shown.len()
    }

    /// Returns whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shown.is_empty()
    }
}

/// Puts an entry among the others of its key. Most are newer than those before, and most keys have few: no room is kept for more of them.
fn add_member(members: &mut Vec<Position>, position: Position) {
    if let Err(place) = members.binary_search(&position) {
        if members.len() < 4 {
            members.reserve_exact(1);
        }
        members.insert(place, position);
    }
}
