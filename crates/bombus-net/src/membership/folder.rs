//! A swarm's folder on disk.
//!
//! ```text
//! DIR/swarms/current                  the id of the swarm that the node belongs to
//! DIR/swarms/ID/membership.json       whose swarm it is, its changes, and which key counts (by its hash)
//! DIR/swarms/ID/swarm.key             the key, 0600, as libp2p's key file
//! DIR/swarms/ID/swarm.key.next        the next key, 0600, while membership.json is being replaced
//! DIR/swarms/ID/swarm.key.previous    the key before, 0600, while the members have not heard of the change
//! DIR/swarms/ID/owner.key             the owner key, 0600, where this machine has it
//! DIR/swarms/ID/peers.json            peers met before
//! ```
//!
//! Files appear by atomic rename. The key and the hash that names it are two files: the next key is written first, then the hash, and
//! then the next key takes its place; who opens the folder in between completes that.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::key::KeyHash;
use super::known_peers::KnownPeers;
use super::rules::{CHANGES_MAX, Rules};
use super::{Generation, MembershipError, OwnerId, OwnerKey, SignedChange, SwarmId, SwarmKey};
use crate::platform::create_private_dir;

/// Version of the files that this program reads and writes.
const FORMAT: u32 = 1;
/// The most that is read of a file.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

const RECORD: &str = "membership.json";
const KEY: &str = "swarm.key";
const KEY_NEXT: &str = "swarm.key.next";
const KEY_PREVIOUS: &str = "swarm.key.previous";
const OWNER: &str = "owner.key";
const PEERS: &str = "peers.json";

/// What `membership.json` holds besides the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    /// When the node joined, in seconds since 1970.
    pub(super) joined_s: u64,
    /// The swarm is more than a fresh one that nobody has heard of.
    pub(super) used: bool,
    /// The owner changed the key on this machine, and the members, who were not told yet, have that of this generation.
    pub(super) hand_over_from: Option<Generation>,
}

/// `membership.json`.
#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    swarm_id: SwarmId,
    owner: String,
    base: Base,
    #[serde(default)]
    changes: Vec<SignedChange>,
    #[serde(default)]
    joined_s: u64,
    #[serde(default)]
    used: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hand_over_from: Option<Generation>,
}

/// The key that no change brought.
#[derive(Serialize, Deserialize)]
struct Base {
    generation: Generation,
    key_hash: String,
}

/// Only the version, so that a newer file is told from a damaged one.
#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

/// What a folder holds.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) rules: Rules,
    pub(super) marks: Marks,
    pub(super) key: SwarmKey,
    pub(super) owner: Option<OwnerKey>,
}

/// The folder of one swarm.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(super) fn of(swarms: &Path, swarm_id: &SwarmId) -> Self {
        Self { path: swarms.join(swarm_id.as_str()) }
    }

    pub(super) fn exists(&self) -> bool {
        self.path.join(RECORD).is_file()
    }

    /// Makes the folder of a swarm in one piece: nobody sees a part of it.
    pub(super) fn create(swarms: &Path, content: &Content) -> Result<Self, MembershipError> {
        let folder = Self::of(swarms, content.rules.swarm_id());
        let failed = |doing| MembershipError::io(&folder.path, doing);
        let draft = tempfile::Builder::new().prefix(".new-").tempdir_in(swarms).map_err(failed("it cannot be made"))?;
        let new = Self { path: draft.path().join("new") };
        new.make()?;
        new.write(KEY, content.key.to_key_file().as_bytes())?;
        if let Some(owner) = &content.owner {
            new.write_owner(owner)?;
        }
        new.write_record(&content.rules, content.marks)?;
        if folder.path.is_dir() {
            // The record comes last: without it, the folder does not count.
            for file in [KEY, OWNER, RECORD] {
                if new.path.join(file).exists() {
                    fs::rename(new.path.join(file), folder.path.join(file)).map_err(failed("it cannot be filled"))?;
                }
            }
        } else {
            fs::rename(&new.path, &folder.path).map_err(failed("it cannot be made"))?;
        }
        sync_folder(swarms)?;
        Ok(folder)
    }

    /// Reads the folder. With `complete`, an interrupted change of the key is brought to its end on disk, too.
    pub(super) fn read(&self, complete: bool) -> Result<Content, MembershipError> {
        let path = self.path.join(RECORD);
        let record = self.read_record(&path)?;
        let (rules, marks) = rules_of(&record, &path)?;
        let key = self.read_key(&rules, complete)?;
        let owner = self.read_owner(rules.owner())?;
        Ok(Content { rules, marks, key, owner })
    }

    pub(super) fn write_record(&self, rules: &Rules, marks: Marks) -> Result<(), MembershipError> {
        let (generation, key_hash) = rules.base();
        let record = Record {
            format: FORMAT,
            swarm_id: rules.swarm_id().clone(),
            owner: rules.owner().to_string(),
            base: Base { generation, key_hash: hex::encode(key_hash.0) },
            changes: rules.changes().cloned().collect(),
            joined_s: marks.joined_s,
            used: marks.used,
            hand_over_from: marks.hand_over_from,
        };
        let mut json = serde_json::to_vec_pretty(&record).expect("plain data can be written as JSON");
        json.push(b'\n');
        self.write(RECORD, &json)
    }

    /// Writes rules that name another key, and the key.
    pub(super) fn write_rekeyed(&self, rules: &Rules, marks: Marks, key: &SwarmKey) -> Result<(), MembershipError> {
        self.write(KEY_NEXT, key.to_key_file().as_bytes())?;
        self.write_record(rules, marks)?;
        self.complete_key()
    }

    /// Keeps a key that the members still use. A key that is kept already stays: it is the one that they know.
    pub(super) fn keep_previous_key(&self, key: &SwarmKey) -> Result<(), MembershipError> {
        if self.previous_key()?.is_some() {
            return Ok(());
        }
        self.write(KEY_PREVIOUS, key.to_key_file().as_bytes())
    }

    pub(super) fn previous_key(&self) -> Result<Option<SwarmKey>, MembershipError> {
        self.read_key_file(KEY_PREVIOUS)
    }

    pub(super) fn drop_previous_key(&self) -> Result<(), MembershipError> {
        let path = self.path.join(KEY_PREVIOUS);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(MembershipError::io(&path, "it cannot be removed")(error))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn write_owner(&self, owner: &OwnerKey) -> Result<(), MembershipError> {
        self.write(OWNER, format!("{owner}\n").as_bytes())
    }

    /// Reads the peers met before. A file that makes no sense costs no more than their addresses, so it is begun anew.
    pub(super) fn read_peers(&self) -> KnownPeers {
        let path = self.path.join(PEERS);
        let parsed = match read(&path) {
            Ok(None) => return KnownPeers::default(),
            Ok(Some(bytes)) => KnownPeers::from_json(&bytes).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        parsed.unwrap_or_else(|reason| {
            tracing::warn!(file = %path.display(), reason, "the peers met before cannot be read; they are looked for anew");
            KnownPeers::default()
        })
    }

    pub(super) fn write_peers(&self, known: &KnownPeers) -> Result<(), MembershipError> {
        self.write(PEERS, &known.to_json())
    }

    pub(super) fn make(&self) -> Result<(), MembershipError> {
        create_private_dir(&self.path).map_err(MembershipError::io(&self.path, "it cannot be made"))
    }

    /// Returns the files that only their owner may read, those included that are not there.
    pub(super) fn secrets(&self) -> [PathBuf; 4] {
        [KEY, KEY_NEXT, KEY_PREVIOUS, OWNER].map(|file| self.path.join(file))
    }

    fn write(&self, file: &str, content: &[u8]) -> Result<(), MembershipError> {
        write_atomically(&self.path.join(file), content)
    }

    fn read_record(&self, path: &Path) -> Result<Record, MembershipError> {
        let damaged = |reason: String| {
            let id = self.path.file_name().unwrap_or_default().to_string_lossy();
            MembershipError::damaged(
                path,
                format!(
                    "{reason}; put the file back from a copy, or move the folder {id} and the file current beside it away, and join again with a new ticket"
                ),
            )
        };
        let bytes = read(path)?.ok_or_else(|| damaged("it is missing".to_owned()))?;
        let version: Versioned = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if version.format > FORMAT {
            return Err(MembershipError::Newer { path: path.to_owned(), found: version.format, known: FORMAT });
        }
        serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))
    }

    fn read_key(&self, rules: &Rules, complete: bool) -> Result<SwarmKey, MembershipError> {
        let path = self.path.join(KEY);
        let current = self.read_key_file(KEY)?;
        if let Some(key) = &current
            && key.hash() == rules.key_hash()
        {
            return Ok(key.clone());
        }
        if let Some(next) = self.read_key_file(KEY_NEXT)?
            && next.hash() == rules.key_hash()
        {
            if complete {
                self.complete_key()?;
            }
            return Ok(next);
        }
        let found = if current.is_some() { "it has another key than" } else { "it is missing, and with it the key of" };
        let generation = rules.generation();
        let reason = format!(
            "{found} generation {generation} in membership.json: put the file back from a copy or from another member, or join again with a new ticket"
        );
        Err(MembershipError::damaged(&path, reason))
    }

    fn read_key_file(&self, file: &str) -> Result<Option<SwarmKey>, MembershipError> {
        let path = self.path.join(file);
        let Some(text) = read_text(&path)? else { return Ok(None) };
        let parsed = text.parse().map_err(|error| {
            MembershipError::damaged(&path, format!("{error}: put the file back from a copy or from another member"))
        });
        parsed.map(Some)
    }

    fn read_owner(&self, owner: &OwnerId) -> Result<Option<OwnerKey>, MembershipError> {
        let path = self.path.join(OWNER);
        let Some(text) = read_text(&path)? else { return Ok(None) };
        let advice = "put it back from a copy (bombus owner import), or remove it if this machine need not have it";
        let key: OwnerKey =
            text.parse().map_err(|error| MembershipError::damaged(&path, format!("{error}: {advice}")))?;
        if key.id() != *owner {
            return Err(MembershipError::damaged(&path, format!("it is the owner key of another swarm: {advice}")));
        }
        Ok(Some(key))
    }

    fn complete_key(&self) -> Result<(), MembershipError> {
        let (next, key) = (self.path.join(KEY_NEXT), self.path.join(KEY));
        match fs::rename(&next, &key) {
            // Another command completed it.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(MembershipError::io(&key, "it cannot be replaced")(error)),
            Ok(()) => sync_folder(&self.path),
        }
    }
}

fn rules_of(record: &Record, path: &Path) -> Result<(Rules, Marks), MembershipError> {
    let damaged = |reason: &str| MembershipError::damaged(path, format!("{reason}: put the file back from a copy"));
    let mut owner = [0; 32];
    hex::decode_to_slice(&record.owner, &mut owner).map_err(|_| damaged("its owner is no public key"))?;
    let owner = OwnerId::from_bytes(owner).ok_or_else(|| damaged("its owner is no public key"))?;
    let mut hash = [0; 32];
    hex::decode_to_slice(&record.base.key_hash, &mut hash).map_err(|_| damaged("its base has no hash of a key"))?;
    let mut rules = Rules::new(owner, record.base.generation, KeyHash(hash));
    if *rules.swarm_id() != record.swarm_id {
        return Err(damaged("its owner is not that of its swarm"));
    }
    if record.changes.len() > CHANGES_MAX {
        return Err(damaged("it has too many changes"));
    }
    for change in &record.changes {
        if !rules.restore(change) {
            return Err(damaged("one of its changes is not signed by the owner"));
        }
    }
    let marks = Marks { joined_s: record.joined_s, used: record.used, hand_over_from: record.hand_over_from };
    Ok((rules, marks))
}

/// Reads which swarm the node belongs to; none before the first start.
pub(super) fn read_current(swarms: &Path) -> Result<Option<SwarmId>, MembershipError> {
    let path = swarms.join("current");
    let Some(text) = read_text(&path)? else { return Ok(None) };
    let parsed = text.trim().parse().map_err(|error| {
        let advice = "write the name of one of the folders beside it into it, or remove it to begin a new swarm";
        MembershipError::damaged(&path, format!("{error}: {advice}"))
    });
    parsed.map(Some)
}

pub(super) fn write_current(swarms: &Path, swarm_id: &SwarmId) -> Result<(), MembershipError> {
    write_atomically(&swarms.join("current"), format!("{swarm_id}\n").as_bytes())
}

/// Writes a file so that a reader sees all of it or nothing, also after a power cut; on Unix it is readable by its owner alone.
fn write_atomically(path: &Path, content: &[u8]) -> Result<(), MembershipError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(parent)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(MembershipError::io(path, "it cannot be written"))?;
    sync_folder(parent)
}

/// Makes renames in a folder last. Only Unix lets a folder be opened for that.
fn sync_folder(path: &Path) -> Result<(), MembershipError> {
    if cfg!(unix) {
        File::open(path)
            .and_then(|folder| folder.sync_all())
            .map_err(MembershipError::io(path, "it cannot be written to disk"))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, MembershipError> {
    let read = || {
        let file = File::open(path)?;
        if file.metadata()?.len() > FILE_BYTES_MAX {
            return Err(io::Error::new(ErrorKind::FileTooLarge, "it is far larger than such a file can be"));
        }
        fs::read(path)
    };
    match read() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(MembershipError::io(path, "it cannot be read")(error)),
    }
}

/// Reads a file with a secret, which is wiped from memory when dropped.
fn read_text(path: &Path) -> Result<Option<zeroize::Zeroizing<String>>, MembershipError> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(zeroize::Zeroizing::new(text))),
        Err(_) => Err(MembershipError::damaged(path, "it is no text: put the file back from a copy")),
    }
}
