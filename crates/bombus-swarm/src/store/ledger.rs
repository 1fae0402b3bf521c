//! `task-generations.json`: which generations this node has, which it is just dropping, and which it has dropped.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::db::{DbError, read_versioned, replace};

/// The newest format that is known.
const FORMAT: u32 = 1;
/// How many runs of dropped generations are told apart: beyond that, those that lie between the oldest two count as dropped, too.
const RUNS_MAX: usize = 256;
/// How many blocks that are to be removed later are kept in mind.
const LEFT_MAX: usize = 10_000;

/// What is noted about generations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ledger {
    format: u32,
    /// Those that are kept, with since when, by this node's clock, in milliseconds since 1970.
    pub(super) open: BTreeMap<u64, u64>,
    /// Those whose end has begun: nothing of them is shown any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) dropping: Vec<u64>,
    /// Runs of those that were dropped, lowest first: the first and the last of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dropped: Vec<(u64, u64)>,
    /// Blocks of dropped generations that could not be removed yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) left: Vec<String>,
}

impl Ledger {
    /// Notes generations that are kept since a time.
    pub(super) fn of(open: impl IntoIterator<Item = u64>, now_ms: u64) -> Self {
        let open = open.into_iter().map(|generation| (generation, now_ms)).collect();
        Self { format: FORMAT, open, dropping: Vec::new(), dropped: Vec::new(), left: Vec::new() }
    }

    pub(super) fn path(directory: &Path) -> PathBuf {
        directory.join("task-generations.json")
    }

    /// Reads the file; none where there is none. It blocks.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, DbError> {
        read_versioned(path, FORMAT)
    }

    /// Writes the file: after a crash it is the old or the new one. It blocks.
    pub(super) fn write(&self, path: &Path) -> Result<(), DbError> {
        let written = serde_json::to_vec_pretty(self).map_err(io::Error::from);
        let written = written.and_then(|bytes| replace(path, &bytes));
        written.map_err(|error| DbError::Records { path: path.to_owned(), doing: "written", error })
    }

    /// Notes that a generation is kept.
    pub(super) fn keep(&mut self, generation: u64, now_ms: u64) {
        self.open.insert(generation, now_ms);
        let runs = std::mem::take(&mut self.dropped);
        self.dropped = runs
            .into_iter()
            .flat_map(|(first, last)| {
                let below = (first, last.min(generation.saturating_sub(1)));
                let above = (first.max(generation + 1), last);
                if (first..=last).contains(&generation) { [below, above] } else { [(first, last), (1, 0)] }
            })
            .filter(|(first, last)| first <= last)
            .collect();
    }

    /// Notes that the end of a generation begins.
    pub(super) fn begin_dropping(&mut self, generation: u64) {
        self.open.remove(&generation);
        if !self.dropping.contains(&generation) {
            self.dropping.push(generation);
        }
    }

    /// Notes that nothing is left of a generation but some blocks.
    pub(super) fn dropped(&mut self, generation: u64, left: impl IntoIterator<Item = String>) {
        self.dropping.retain(|dropping| *dropping != generation);
        self.leave(left);
        self.dropped.push((generation, generation));
        self.dropped.sort_unstable();
        let mut runs: Vec<(u64, u64)> = Vec::with_capacity(self.dropped.len());
        for (first, last) in self.dropped.drain(..) {
            match runs.last_mut() {
                Some(run) if first <= run.1.saturating_add(1) => run.1 = run.1.max(last),
                _ => runs.push((first, last)),
            }
        }
        while runs.len() > RUNS_MAX {
            let (first, _) = runs.remove(0);
            runs[0].0 = first;
        }
        self.dropped = runs;
    }

    /// Notes blocks to be removed later.
    pub(super) fn leave(&mut self, left: impl IntoIterator<Item = String>) {
        let room = LEFT_MAX.saturating_sub(self.left.len());
        self.left.extend(left.into_iter().take(room));
    }

    /// Returns whether a generation was here and is not any more.
    pub(super) fn has_dropped(&self, generation: u64) -> bool {
        self.dropped.iter().any(|(first, last)| (*first..=*last).contains(&generation))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use tempfile::TempDir;

    use std::fs;

    use super::*;

    proptest! {
        #[test]
        fn it_remembers_what_was_dropped_and_not_kept_again(steps in prop::collection::vec((1..40_u64, any::<bool>()), 0..80)) {
            let (mut ledger, mut gone) = (Ledger::of([1], 7), BTreeSet::new());
            for (generation, is_kept) in steps {
                if is_kept {
                    ledger.keep(generation, 8);
                    gone.remove(&generation);
                } else {
                    ledger.begin_dropping(generation);
                    ledger.dropped(generation, []);
                    gone.insert(generation);
                }
            }
            for generation in 0..=41 {
                prop_assert_eq!(ledger.has_dropped(generation), gone.contains(&generation), "{}", generation);
            }
            prop_assert!(ledger.dropping.is_empty());
            prop_assert!(ledger.open.keys().all(|generation| !gone.contains(generation)));
        }
    }

    #[test]
    fn the_file_stays_small_however_much_was_dropped() {
        let mut ledger = Ledger::of([1], 7);
        for generation in (2..4_000).step_by(2) {
            ledger.dropped(generation, (0..100).map(|number| number.to_string()));
        }
        assert_eq!((ledger.dropped.len(), ledger.left.len()), (RUNS_MAX, LEFT_MAX));
        assert!(ledger.has_dropped(2) && ledger.has_dropped(3_998) && !ledger.has_dropped(3_997));
    }

    #[test]
    fn what_is_written_is_read_and_a_newer_file_is_not_taken_for_this_one() {
        let directory = TempDir::new().unwrap();
        let path = Ledger::path(directory.path());
        assert_eq!(Ledger::read(&path).unwrap(), None);
        let mut ledger = Ledger::of([3, 4], 7);
        ledger.begin_dropping(3);
        ledger.dropped(1, ["a".to_owned()]);
        ledger.write(&path).unwrap();
        assert_eq!(Ledger::read(&path).unwrap(), Some(ledger));
        fs::write(&path, r#"{ "format": 2 }"#).unwrap();
        assert!(matches!(Ledger::read(&path), Err(DbError::Newer { found: 2, .. })));
        fs::write(&path, "{").unwrap();
        assert!(matches!(Ledger::read(&path), Err(DbError::Records { doing: "read", .. })));
    }
}
