//! Files of one line with 32 secret bytes.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::DataDirError;
use crate::platform;

/// Reads the secret from a file whose line begins with `header`, or makes the file with fresh random bytes. Rights that others have to it are
/// taken away. `advice` says what to do about a damaged file.
pub(super) fn load_or_create(path: &Path, header: &str, advice: &str) -> Result<[u8; 32], DataDirError> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let secret = parse(&text, header).ok_or_else(|| DataDirError::Damaged {
                path: path.to_owned(),
                reason: format!("it should hold one line with a key of the node; {advice}"),
            })?;
            if let Ok(Some(mode)) = platform::open_to_others(path) {
                tracing::warn!(file = %path.display(), file.mode = format!("{mode:o}"), "a key of the node was readable by others; closed it");
                platform::close_to_others(path).map_err(DataDirError::io(path, "its permissions cannot be changed"))?;
            }
            Ok(secret)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path, header),
        Err(source) => Err(DataDirError::Io { path: path.to_owned(), doing: "it cannot be read", source }),
    }
}

fn parse(text: &str, header: &str) -> Option<[u8; 32]> {
    let mut secret = [0; 32];
    hex::decode_to_slice(text.strip_prefix(header)?.trim_end(), &mut secret).ok()?;
    Some(secret)
}

fn create(path: &Path, header: &str) -> Result<[u8; 32], DataDirError> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|error| {
        DataDirError::io(path, "the system gives no random bytes for a key")(io::Error::other(error))
    })?;
    let write = || -> io::Result<()> {
        // A temporary file of this crate is readable by the owner alone from the first moment.
        let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
        writeln!(file, "{header}{}", hex::encode(secret))?;
        file.as_file().sync_all()?;
        file.persist_noclobber(path)?;
        Ok(())
    };
    write().map_err(DataDirError::io(path, "it cannot be written"))?;
    Ok(secret)
}
