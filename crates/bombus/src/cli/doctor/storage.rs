use std::path::Path;

use bombus_core::capability::Hardware;

use super::Check;
use crate::data_dir::{DataDir, DataDirError};
use crate::platform;

/// Whether the data directory can be used.
pub(super) fn data_dir(root: &Path) -> Check {
    const NAME: &str = "data directory";
    const ELSEWHERE: &str = "name another directory with --data-dir DIR or BOMBUS_DATA_DIR, or correct its permissions";
    if !root.exists() {
        return match tempfile::tempfile_in(nearest_existing(root)) {
            Ok(_) => Check::ok(NAME, format!("{} is not there yet and is made at the first use", root.display())),
            Err(error) => Check::fail(NAME, format!("{} cannot be made: {error}", root.display()), ELSEWHERE),
        };
    }
    match DataDir::existing(root) {
        Err(error @ DataDirError::Newer { .. }) => {
            Check::fail(NAME, error.to_string(), "use the version of bombus that wrote it, or another directory")
        }
        Err(error) => Check::fail(NAME, error.to_string(), ELSEWHERE),
        Ok(_) => match tempfile::tempfile_in(root) {
            Ok(_) => match platform::open_to_others(root).ok().flatten() {
                None => Check::ok(NAME, format!("{} can be written", root.display())),
                Some(mode) => Check::warn(
                    NAME,
                    format!("{} is open to others (mode {mode:o})", root.display()),
                    format!("chmod 700 {}", root.display()),
                ),
            },
            Err(error) => Check::fail(NAME, format!("{} cannot be written: {error}", root.display()), ELSEWHERE),
        },
    }
}

/// Returns the path itself or the folder in which it would be made.
pub(in crate::cli) fn nearest_existing(path: &Path) -> &Path {
    path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."))
}

/// Whether files with secrets are the owner's alone.
pub(super) fn permissions(data_dir: Option<&DataDir>) -> Option<Check> {
    const NAME: &str = "secret files";
    let secrets = data_dir?.secrets();
    let open: Vec<String> = secrets
        .into_iter()
        .filter_map(|path| {
            let mode = platform::open_to_others(&path).ok().flatten()?;
            Some(format!("{} (mode {mode:o})", path.display()))
        })
        .collect();
    Some(if open.is_empty() {
        Check::ok(NAME, "readable by their owner alone")
    } else {
        Check::fail(NAME, format!("others can read {}", open.join(", ")), "chmod 600 each of them")
    })
}

/// Below this there is no room for even a small model.
const DISK_FREE_GB_MIN: f64 = 1.0;

/// Whether there is room for models.
pub(super) fn disk(hardware: &Hardware) -> Check {
    const NAME: &str = "disk";
    let free_gb = hardware.disk_free_gb;
    let found = format!("{free_gb:.1} GB free for models");
    if free_gb < DISK_FREE_GB_MIN {
        Check::warn(NAME, found, "make room, bombus models rm NAME, or move the data directory to another disk")
    } else {
        Check::ok(NAME, found)
    }
}
