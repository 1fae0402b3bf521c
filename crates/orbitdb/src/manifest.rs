//! What a database is: its manifest, its address, and the block of its `ipfs` access controller.

use std::{fmt, str::FromStr};

use crate::{
    cbor::{DecodeError, EncodeError, Map, Value},
    cid::{Hash, HashError},
};

/// Greatest size of a manifest or a controller's block in bytes.
pub const BLOCK_BYTES_MAX: usize = 1 << 20;

const SCHEME: &str = "/orbitdb/";
const IPFS: &str = "/ipfs/";

/// The address of a database, "/orbitdb/zdpu...": the name of its manifest. At once the id of its log and its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(Hash);

/// How a database is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DatabaseType {
    /// A list of events.
    Events,
    /// Documents, each under the value of one of its fields.
    Documents,
    /// Values under keys.
    KeyValue,
}

/// Who says whose entries count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerAddress {
    /// A list that never changes, in the block of this name.
    Ipfs(Hash),
    /// A database of capabilities.
    OrbitDb(Address),
}

/// What a database is. The same manifest gives the same address anywhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Its name.
    pub name: String,
    /// How it is read.
    pub r#type: DatabaseType,
    /// Who says whose entries count.
    pub controller: ControllerAddress,
    /// What its creator noted besides.
    pub meta: Option<Value>,
}

/// Why a block is no manifest or controller, or a text no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The block is no value.
    #[error("the block is no value: {0}")]
    Value(#[from] DecodeError),
    /// A field is missing, of another kind or unknown.
    #[error("the field \"{0}\" is missing, of another kind or unknown")]
    Field(&'static str),
    /// The type is not known.
    #[error("databases of the type \"{0}\" are not known: events, documents and keyvalue are")]
    Type(String),
    /// The address is none.
    #[error("\"{0}\" is no address: one reads /orbitdb/zdpu...")]
    Address(String),
    /// The block is larger than [`BLOCK_BYTES_MAX`].
    #[error("the block is larger than {BLOCK_BYTES_MAX} bytes")]
    Size,
}

impl Address {
    /// Takes the name of a manifest.
    #[must_use]
    pub const fn new(manifest: Hash) -> Self {
        Self(manifest)
    }

    /// Returns the name of the manifest.
    #[must_use]
    pub const fn manifest(&self) -> Hash {
        self.0
    }

    /// Returns the id of the protocol by which heads are exchanged.
    #[must_use]
    pub fn heads_protocol(&self) -> String {
        format!("/orbitdb/heads{self}")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SCHEME}{}", self.0)
    }
}

impl FromStr for Address {
    type Err = ManifestError;

    fn from_str(text: &str) -> Result<Self, ManifestError> {
        let parsed = text.strip_prefix(SCHEME).ok_or(HashError).and_then(Hash::from_str);
        parsed.map(Self).map_err(|_| ManifestError::Address(text.to_owned()))
    }
}

impl DatabaseType {
    /// Returns its name in manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Documents => "documents",
            Self::KeyValue => "keyvalue",
        }
    }
}

impl FromStr for DatabaseType {
    type Err = ManifestError;

    fn from_str(text: &str) -> Result<Self, ManifestError> {
        let known = [Self::Events, Self::Documents, Self::KeyValue].into_iter().find(|r#type| r#type.name() == text);
        known.ok_or_else(|| ManifestError::Type(text.to_owned()))
    }
}

impl fmt::Display for ControllerAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipfs(hash) => write!(formatter, "{IPFS}{hash}"),
            Self::OrbitDb(address) => address.fmt(formatter),
        }
    }
}

impl FromStr for ControllerAddress {
    type Err = ManifestError;

    fn from_str(text: &str) -> Result<Self, ManifestError> {
        match text.strip_prefix(IPFS) {
            Some(hash) => hash.parse().map(Self::Ipfs).map_err(|_| ManifestError::Address(text.to_owned())),
            None => text.parse().map(Self::OrbitDb),
        }
    }
}

impl Manifest {
    /// Returns the block.
    ///
    /// # Errors
    ///
    /// [`EncodeError`] when what the creator noted has no form.
    pub fn block(&self) -> Result<Vec<u8>, EncodeError> {
        let mut map = Map::new();
        map.insert("name", self.name.as_str());
        map.insert("type", self.r#type.name());
        map.insert("accessController", self.controller.to_string());
        if let Some(meta) = &self.meta {
            map.insert("meta", meta.clone());
        }
        Value::Map(map).encode()
    }

    /// Reads a block.
    ///
    /// # Errors
    ///
    /// [`ManifestError`] when it is no manifest of a type that is known.
    pub fn read(block: &[u8]) -> Result<Self, ManifestError> {
        let mut map = fields(block)?;
        let mut text = |name| match map.remove(name) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(ManifestError::Field(name)),
        };
        let (name, r#type, controller) = (text("name")?, text("type")?.parse()?, text("accessController")?.parse()?);
        let meta = map.remove("meta");
        if !map.is_empty() {
            return Err(ManifestError::Field("(more)"));
        }
        Ok(Self { name, r#type, controller, meta })
    }
}

/// Returns the block of an `ipfs` access controller with a write list.
#[must_use]
pub fn controller_block(write: &[String]) -> Vec<u8> {
    let list = write.iter().map(|id| Value::from(id.as_str())).collect::<Vec<_>>();
    let value = Value::map([("type", Value::from("ipfs")), ("write", list.into())]);
    value.encode().expect("text in two levels has a form")
}

/// Reads the write list of an `ipfs` access controller.
///
/// # Errors
///
/// [`ManifestError`] when the block is none.
pub fn read_controller(block: &[u8]) -> Result<Vec<String>, ManifestError> {
    let map = fields(block)?;
    if map.get("type").and_then(Value::as_text) != Some("ipfs") {
        return Err(ManifestError::Field("type"));
    }
    let list = map.get("write").and_then(Value::as_list).ok_or(ManifestError::Field("write"))?;
    list.iter().map(|id| id.as_text().map(str::to_owned).ok_or(ManifestError::Field("write"))).collect()
}

fn fields(block: &[u8]) -> Result<Map, ManifestError> {
    if block.len() > BLOCK_BYTES_MAX {
        return Err(ManifestError::Size);
    }
    match Value::decode(block)? {
        Value::Map(map) => Ok(map),
        _ => Err(DecodeError::Kind.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_that_was_written_is_read() {
        let controller = ControllerAddress::Ipfs(Hash::of(&controller_block(&["*".to_owned()])));
        let manifest = Manifest { name: "n".into(), r#type: DatabaseType::Events, controller, meta: Some(Value::Null) };
        assert_eq!(Manifest::read(&manifest.block().unwrap()), Ok(manifest.clone()));
        let address = Address::new(Hash::of(&manifest.block().unwrap()));
        assert_eq!(address.to_string().parse(), Ok(address));
        assert_eq!(address.heads_protocol(), format!("/orbitdb/heads{address}"));
        let guarded = Manifest { controller: ControllerAddress::OrbitDb(address), meta: None, ..manifest };
        assert_eq!(Manifest::read(&guarded.block().unwrap()), Ok(guarded));
        assert_eq!(read_controller(&controller_block(&["a".into(), "b".into()])).unwrap(), ["a", "b"]);
    }

    #[test]
    fn other_blocks_and_texts_are_refused() {
        let read = |pairs: &[(&str, &str)]| {
            let value = Value::map(pairs.iter().map(|(key, value)| (*key, Value::from(*value))));
            Manifest::read(&value.encode().unwrap())
        };
        let access = ("accessController", "/ipfs/zdpuAwKJDKp1C2UFkZ18GELaKzyCxaH4A8jQSpLiRKEcnBDxq");
        assert!(read(&[("name", "n"), ("type", "events"), access]).is_ok());
        assert_eq!(read(&[("name", "n"), ("type", "tables"), access]), Err(ManifestError::Type("tables".into())));
        assert_eq!(read(&[("name", "n"), ("type", "events")]), Err(ManifestError::Field("accessController")));
        let odd = ("accessController", "/other/zdpu");
        assert_eq!(read(&[("name", "n"), ("type", "events"), odd]), Err(ManifestError::Address("/other/zdpu".into())));
        assert!(matches!(read_controller(&[0xa0]), Err(ManifestError::Field("type"))));
        assert!(matches!(read_controller(&[0x00]), Err(ManifestError::Value(_))));
        for text in ["", "/orbitdb/", "/orbitdb/zdpu", "zdpuAwKJDKp1C2UFkZ18GELaKzyCxaH4A8jQSpLiRKEcnBDxq"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
