//! `databases.json`: which databases this node keeps, and how it opens them.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use orbitdb::manifest::{Address, DatabaseType};
use orbitdb::{Database, Known};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::DbError;
use crate::platform::{create_private_file, sync_directory};

/// The newest format that is known.
const FORMAT: u32 = 1;

/// A database that this node keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(with = "as_text")]
    pub(super) address: Address,
    pub(super) name: String,
    #[serde(with = "as_name")]
    pub(super) r#type: DatabaseType,
    /// The field that holds the keys of documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) index_by: Option<String>,
    /// Whether a program opened it as relaxed. What the configuration says is not noted, so that it can be taken back.
    #[serde(default)]
    pub(super) relaxed: bool,
    /// The database of capabilities that guards it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "as_text_or_none")]
    pub(super) guard: Option<Address>,
    /// Whether it is opened at the start.
    pub(super) open: bool,
}

impl Record {
    pub(super) fn of(database: &Database, relaxed: bool, open: bool) -> Self {
        let manifest = database.manifest();
        Self {
            address: database.address(),
            name: manifest.name.clone(),
            r#type: manifest.r#type,
            index_by: (manifest.r#type == DatabaseType::Documents).then(|| database.index_by().to_owned()),
            relaxed,
            guard: database.guard().map(Database::address),
            open,
        }
    }

    pub(super) fn known(&self) -> Known {
        Known { address: self.address, name: self.name.clone(), r#type: self.r#type }
    }
}

#[derive(Serialize, Deserialize)]
struct Contents {
    format: u32,
    databases: Vec<Record>,
}

/// The file, and what is in it.
#[derive(Debug, Clone)]
pub(super) struct Records {
    path: PathBuf,
    records: Vec<Record>,
}

impl Records {
    /// Reads the file of a directory; where there is none, no database is kept.
    pub(super) fn read(directory: &Path) -> Result<Self, DbError> {
        let path = directory.join("databases.json");
        let contents: Option<Contents> = read_versioned(&path, FORMAT)?;
        Ok(Self { path, records: contents.map(|contents| contents.databases).unwrap_or_default() })
    }

    pub(super) fn all(&self) -> &[Record] {
        &self.records
    }

    pub(super) fn get(&self, address: &Address) -> Option<&Record> {
        self.records.iter().find(|record| record.address == *address)
    }

    /// Takes the record that a name or an address means.
    pub(super) fn find(&self, name_or_address: &str) -> Result<&Record, DbError> {
        let not_found = || DbError::NotFound(name_or_address.to_owned());
        if let Ok(address) = name_or_address.parse() {
            return self.get(&address).ok_or_else(not_found);
        }
        let mut named = self.records.iter().filter(|record| record.name == name_or_address);
        match (named.next(), named.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => Err(not_found()),
            (Some(_), Some(_)) => Err(DbError::Ambiguous {
                name: name_or_address.to_owned(),
                addresses: self
                    .records
                    .iter()
                    .filter(|record| record.name == name_or_address)
                    .map(|record| record.address)
                    .collect(),
            }),
        }
    }

    pub(super) fn put(&mut self, record: Record) {
        match self.records.iter_mut().find(|other| other.address == record.address) {
            Some(other) => *other = record,
            None => self.records.push(record),
        }
    }

    pub(super) fn remove(&mut self, address: &Address) {
        self.records.retain(|record| record.address != *address);
    }

    /// Writes the file: after a crash it is the old or the new one.
    pub(super) fn write(&self) -> Result<(), DbError> {
        let contents = Contents { format: FORMAT, databases: self.records.clone() };
        let written = serde_json::to_vec_pretty(&contents).map_err(io::Error::from);
        let written = written.and_then(|bytes| replace(&self.path, &bytes));
        written.map_err(|error| DbError::Records { path: self.path.clone(), doing: "written", error })
    }
}

/// Reads a file of JSON that says which format it has; none where there is no file. It blocks.
pub(crate) fn read_versioned<T: DeserializeOwned>(path: &Path, newest: u32) -> Result<Option<T>, DbError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let failed = |error| DbError::Records { path: path.to_owned(), doing: "read", error };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let format: Format = serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))?;
    if format.format > newest {
        return Err(DbError::Newer { path: path.to_owned(), found: format.format, known: newest });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(error.into()))
}

/// Replaces a file that only its owner may read, so that it is whole at any time.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    let mut file = create_private_file(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    sync_directory(path)
}

mod as_text {
    use orbitdb::manifest::Address;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(address: &Address, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(address)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

mod as_text_or_none {
    use orbitdb::manifest::Address;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(address: &Option<Address>, serializer: S) -> Result<S::Ok, S::Error> {
        match address {
            Some(address) => serializer.collect_str(address),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Address>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}

mod as_name {
    use orbitdb::manifest::DatabaseType;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(r#type: &DatabaseType, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(r#type.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DatabaseType, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use orbitdb::cid::Hash;
    use tempfile::TempDir;

    use super::*;

    fn record(name: &str, number: u8) -> Record {
        Record {
            address: Address::new(Hash::of(&[number])),
            name: name.to_owned(),
            r#type: DatabaseType::Documents,
            index_by: Some("id".to_owned()),
            relaxed: true,
            guard: Some(Address::new(Hash::of(b"guard"))),
            open: false,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let directory = TempDir::new().unwrap();
        let mut records = Records::read(directory.path()).unwrap();
        assert_eq!(records.all(), []);
        records.put(record("a", 1));
        records.put(Record { index_by: None, guard: None, ..record("b", 2) });
        records.put(Record { open: true, ..record("a", 1) });
        records.write().unwrap();
        let read = Records::read(directory.path()).unwrap();
        assert_eq!(read.all(), records.all());
        assert!(read.get(&record("a", 1).address).unwrap().open, "the later word counts");
    }

    #[test]
    fn names_are_found_unless_two_have_one() {
        let mut records = Records { path: PathBuf::new(), records: vec![record("a", 1), record("b", 2)] };
        assert_eq!(records.find("b").unwrap(), &record("b", 2));
        assert_eq!(records.find(&record("b", 2).address.to_string()).unwrap(), &record("b", 2));
        assert!(matches!(records.find("c"), Err(DbError::NotFound(_))));
        records.put(record("b", 3));
        assert!(matches!(records.find("b"), Err(DbError::Ambiguous { addresses, .. }) if addresses.len() == 2));
        records.remove(&record("b", 2).address);
        assert_eq!(records.find("b").unwrap(), &record("b", 3));
    }

    #[test]
    fn a_newer_or_damaged_file_is_not_taken_for_an_empty_one() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("databases.json");
        fs::write(&path, r#"{ "format": 2, "tables": [] }"#).unwrap();
        assert!(matches!(Records::read(directory.path()), Err(DbError::Newer { found: 2, .. })));
        fs::write(&path, r#"{ "format": 1, "databases": [{}] }"#).unwrap();
        assert!(matches!(Records::read(directory.path()), Err(DbError::Records { doing: "read", .. })));
    }
}
