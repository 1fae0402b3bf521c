//! What was begun and never finished, and what nobody uses any more.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ModelStore, is_sha256};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// An unfinished download that nobody has touched for so long is told of.
pub(super) const PARTIAL_LEFT_AFTER: Duration = DAY;
/// An unfinished download that nobody has touched for so long is deleted.
const PARTIAL_DELETED_AFTER: Duration = Duration::from_secs(30 * DAY.as_secs());
/// A staging file that nobody has touched for so long was left by a process that died.
const STAGING_LEFT_AFTER: Duration = DAY;
/// A whole file that has no name for so long will not get one.
const BLOB_LEFT_AFTER: Duration = DAY;

impl ModelStore {
    /// Says whether any download is unfinished.
    pub(in crate::models) fn has_partials(&self) -> bool {
        !self.partials().is_empty()
    }

    pub(super) fn partials(&self) -> Vec<Partial> {
        let Ok(entries) = fs::read_dir(self.0.directory.join("blobs")) else { return Vec::new() };
        let partial = |path: PathBuf| {
            let metadata = fs::metadata(&path).ok()?;
            let untouched = metadata.modified().ok()?.elapsed().unwrap_or_default();
            Some(Partial { path, bytes: metadata.len(), untouched })
        };
        let paths = entries.flatten().map(|entry| entry.path());
        paths
            .filter(|path| path.extension().is_some_and(|extension| extension == "partial"))
            .filter_map(partial)
            .collect()
    }

    pub(super) fn delete_left_partials(&self) {
        for Partial { path, untouched, .. } in self.partials() {
            if untouched > PARTIAL_DELETED_AFTER
                && let Err(error) = fs::remove_file(&path)
            {
                tracing::warn!(path = %path.display(), %error, "an unfinished download cannot be deleted");
            }
        }
        self.delete_left_maps();
    }

    /// Deletes what says which parts of unfinished downloads are there, where those are not.
    fn delete_left_maps(&self) {
        let Ok(entries) = fs::read_dir(self.0.directory.join("blobs")) else { return };
        let paths = entries.flatten().map(|entry| entry.path());
        let maps = paths.filter(|path| path.extension().is_some_and(|extension| extension == "ranges"));
        for map in maps.filter(|map| !map.with_extension("partial").exists() && untouched(map) > STAGING_LEFT_AFTER) {
            if let Err(error) = fs::remove_file(&map) {
                tracing::warn!(path = %map.display(), %error, "what is left of a download cannot be deleted");
            }
        }
    }

    /// Deletes files that were sent to make models of, and of which none was made, and weights whose name went to others.
    pub(super) fn delete_left_blobs(&self) {
        let unnamed = |store: &Self| Some(store.left_blobs(&store.named_weights()?));
        if unnamed(self).is_none_or(|left| left.is_empty()) {
            return;
        }
        // Once more with the lock: a name may just have been given.
        let Ok(_lock) = self.lock() else { return };
        for path in unnamed(self).unwrap_or_default() {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "a file that no model uses cannot be deleted");
            } else {
                tracing::info!(path = %path.display(), "a file that no model uses is deleted");
            }
        }
    }

    /// Lists the whole files that stand under none of these names and were not touched for long.
    fn left_blobs(&self, named: &HashSet<String>) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.0.directory.join("blobs")) else { return Vec::new() };
        let is_left = |path: &PathBuf| {
            let sha256 = path.file_name().and_then(OsStr::to_str).and_then(|name| name.strip_prefix("sha256-"));
            sha256.is_some_and(|sha256| is_sha256(sha256) && !named.contains(sha256))
                && untouched(path) > BLOB_LEFT_AFTER
        };
        entries.flatten().map(|entry| entry.path()).filter(is_left).collect()
    }

    /// Returns the hashes of all weights that have names; `None` where a manifest cannot be read, since it may name any.
    fn named_weights(&self) -> Option<HashSet<String>> {
        let paths = self.manifest_paths().ok()?;
        paths.iter().map(|path| self.parse_manifest(path).ok().map(|manifest| manifest.sha256)).collect()
    }

    pub(super) fn delete_left_staging(&self) {
        let Ok(entries) = fs::read_dir(self.staging_path()) else { return };
        for entry in entries.flatten() {
            let age =
                entry.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|time| time.elapsed().ok());
            if age.is_some_and(|age| age > STAGING_LEFT_AFTER) {
                let path = entry.path();
                let deleted = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                if let Err(error) = deleted {
                    tracing::warn!(path = %path.display(), %error, "a left staging file cannot be deleted");
                }
            }
        }
    }
}

/// An unfinished download.
pub(super) struct Partial {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) untouched: Duration,
}

/// Returns for how long a file has not been written to; zero where the system does not say.
fn untouched(path: &Path) -> Duration {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.ok().and_then(|time| time.elapsed().ok()).unwrap_or_default()
}
