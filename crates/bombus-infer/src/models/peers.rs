//! Models that other nodes have: what a pull needs of the swarm, which puts the real one behind it.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bombus_core::identity::NodeId;
use bombus_core::model::ModelName;
use serde::{Deserialize, Serialize};

use super::defaults::ModelDefaults;
use super::store::is_sha256;
use crate::ByteStream;

/// Largest description of a model that travels, as JSON in bytes.
pub const MANIFEST_BYTES_MAX: usize = 256 << 10;
/// Largest size of weights that is believed, in bytes.
const WEIGHTS_BYTES_MAX: u64 = 1 << 46;

/// A model as its node describes it to others: the weights by their hash, and what the name adds to them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SharedModel {
    /// Its name there.
    pub name: ModelName,
    /// SHA-256 of the weights in lower-case hex.
    pub sha256: String,
    /// Size of the weights in bytes.
    pub size_bytes: u64,
    /// What the name adds.
    #[serde(default)]
    pub defaults: ModelDefaults,
    /// The template of an Ollama's model in Go's notation, also where the weights have one of their own in Jinja, which the defaults
    /// then leave alone: another Ollama has no use for that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub go_template: Option<String>,
}

/// Says why a description of a model was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("what it tells about the model makes no sense: {0}")]
pub struct BadDescription(String);

impl SharedModel {
    /// Writes the description down; where it would be larger than 256 KiB, without the texts of licences. `None` where it is larger
    /// without them, too.
    #[must_use]
    pub fn encode(&self) -> Option<String> {
        let encoded = |model: &Self| {
            let text = serde_json::to_string(model).expect("a description has text keys only");
            (text.len() <= MANIFEST_BYTES_MAX).then_some(text)
        };
        encoded(self).or_else(|| {
            let mut short = self.clone();
            short.defaults.licenses.clear();
            encoded(&short)
        })
    }

    /// Reads a description that came from elsewhere. Fields that are not known here are ignored.
    ///
    /// # Errors
    ///
    /// [`BadDescription`] where it is too large, is none, or tells no SHA-256 or no believable size.
    pub fn decode(text: &str) -> Result<Self, BadDescription> {
        if text.len() > MANIFEST_BYTES_MAX {
            return Err(BadDescription(format!("it has more than {MANIFEST_BYTES_MAX} bytes")));
        }
        let model: Self = serde_json::from_str(text).map_err(|error| BadDescription(error.to_string()))?;
        if !is_sha256(&model.sha256) {
            return Err(BadDescription("its sha256 is not 64 lower-case hex digits".to_owned()));
        }
        if model.size_bytes == 0 || model.size_bytes > WEIGHTS_BYTES_MAX {
            return Err(BadDescription(format!("weights of {} bytes", model.size_bytes)));
        }
        Ok(model)
    }
}

/// What is looked for at other nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The model with this name, whatever its weights are.
    Name(ModelName),
    /// Weights with this SHA-256 (lower-case hex), whatever they are called.
    Weights(String),
}

/// A model at another node.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerCopy {
    /// The node.
    pub node: NodeId,
    /// What people call it.
    pub node_name: String,
    /// The model there.
    pub model: SharedModel,
}

/// Says why a peer sends nothing, or nothing more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerReadError {
    /// It sends as much as it may at a time.
    #[error("it is busy with other transfers")]
    Busy {
        /// When it may be worth asking again.
        retry_after: Duration,
    },
    /// It does not give this node the weights, now or later.
    #[error("it refuses: {0}")]
    Refused(String),
    /// It cannot be reached, or does not speak as it should.
    #[error("{0}")]
    Failed(String),
}

/// The other nodes, as those that have models.
#[async_trait]
pub trait PeerSource: Send + Sync + 'static {
    /// Asks the other nodes for a model, within a few seconds. Those that do not answer are left out; nobody is no error.
    async fn find(&self, wanted: &Wanted) -> Vec<PeerCopy>;

    /// Begins to read bytes of a copy's weights: exactly those of the range, at most 64 MiB. Dropping the stream ends the transfer.
    /// The caller puts a limit on each wait.
    ///
    /// # Errors
    ///
    /// [`PeerReadError`] before the first byte; what goes wrong later ends the stream with an error.
    async fn read(&self, copy: &PeerCopy, range: Range<u64>) -> Result<ByteStream, PeerReadError>;
}

/// The place for the other nodes, which are known only after the backends have begun. Clones share it; it is filled once.
#[derive(Clone, Default)]
pub struct Peers(Arc<OnceLock<Arc<dyn PeerSource>>>);

impl Peers {
    /// Fills the place. Returns whether it was empty.
    pub fn set(&self, source: Arc<dyn PeerSource>) -> bool {
        self.0.set(source).is_ok()
    }

    /// Returns the other nodes, where they are known.
    #[must_use]
    pub fn get(&self) -> Option<&Arc<dyn PeerSource>> {
        self.0.get()
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Peers").field(&self.0.get().is_some()).finish()
    }
}

/// Chooses which weights count where peers have different ones under one name: those that most have, and of as many the least hash, so
/// that every node chooses alike. Returns the peers that have them.
pub(crate) fn most_agree(copies: Vec<PeerCopy>) -> Vec<PeerCopy> {
    let weights = |copy: &PeerCopy| (copy.model.sha256.clone(), copy.model.size_bytes);
    let votes = |of: &(String, u64)| copies.iter().filter(|copy| weights(copy) == *of).count();
    let chosen = copies.iter().map(weights).max_by(|a, b| votes(a).cmp(&votes(b)).then_with(|| b.cmp(a)));
    match chosen {
        Some(chosen) => copies.into_iter().filter(|copy| weights(copy) == chosen).collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;

    fn copy(number: u8, letter: char) -> PeerCopy {
        PeerCopy {
            node: NodeKey::from_secret(&[number; 32]).node_id(),
            node_name: format!("node-{number}"),
            model: SharedModel {
                name: ModelName::parse("m").unwrap(),
                sha256: letter.to_string().repeat(64),
                size_bytes: 10,
                defaults: ModelDefaults::default(),
                go_template: None,
            },
        }
    }

    #[test]
    fn the_weights_that_most_peers_have_are_chosen() {
        let names = |copies| most_agree(copies).into_iter().map(|copy| copy.node_name).collect::<Vec<_>>();
        assert_eq!(names(vec![copy(1, 'a'), copy(2, 'b'), copy(3, 'b')]), ["node-2", "node-3"]);
        assert_eq!(names(vec![copy(1, 'b'), copy(2, 'a')]), ["node-2"]);
        assert_eq!(names(Vec::new()), Vec::<String>::new());
    }

    #[test]
    fn a_description_that_makes_no_sense_is_refused() {
        let good = copy(1, 'a').model;
        assert_eq!(SharedModel::decode(&good.encode().unwrap()), Ok(good.clone()));
        for bad in [
            SharedModel { sha256: "../../x".to_owned(), ..good.clone() },
            SharedModel { size_bytes: 0, ..good.clone() },
            SharedModel { size_bytes: u64::MAX, ..good.clone() },
        ] {
            assert!(SharedModel::decode(&bad.encode().unwrap()).is_err());
        }
        assert!(SharedModel::decode("{}").is_err());
        assert!(SharedModel::decode(&" ".repeat(MANIFEST_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn a_large_description_travels_without_its_licences() {
        let mut model = copy(1, 'a').model;
        model.defaults.licenses = vec!["l".repeat(MANIFEST_BYTES_MAX)];
        model.defaults.system = Some("Be brief.".to_owned());
        let told = SharedModel::decode(&model.encode().unwrap()).unwrap();
        assert_eq!((told.defaults.licenses.len(), told.defaults.system.as_deref()), (0, Some("Be brief.")));
        model.defaults.system = Some("s".repeat(MANIFEST_BYTES_MAX));
        assert_eq!(model.encode(), None);
    }
}
