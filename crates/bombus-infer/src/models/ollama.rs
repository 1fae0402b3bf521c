//! The models of an Ollama on this machine, read only: its blobs are GGUF files.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use bombus_core::chat::{Message, Role};
use bombus_core::model::ModelName;
use serde::Deserialize;

use super::defaults::ModelDefaults;
use super::local::{LocalModel, ModelSource};
use crate::gguf::GgufInfo;

/// Media type of the layer that is the weights.
pub(super) const MODEL_LAYER: &str = "application/vnd.ollama.image.model";
/// Media type of a layer that changes the weights (LoRA).
pub(super) const ADAPTER_LAYER: &str = "application/vnd.ollama.image.adapter";
/// Media type of the layer that is the prompt template.
const TEMPLATE_LAYER: &str = "application/vnd.ollama.image.template";
/// What the media types of all layers begin with.
const LAYER: &str = "application/vnd.ollama.image.";
/// Largest layer that is read into memory: templates and licences have some tens of kilobytes.
pub(super) const TEXT_LAYER_BYTES_MAX: usize = 1 << 20;
/// The registry that names without a host belong to.
pub(super) const DEFAULT_REGISTRY: &str = "registry.ollama.ai";
/// The namespace that names without one belong to.
pub(super) const DEFAULT_NAMESPACE: &str = "library";

/// Most manifests that are looked at in one directory.
const MANIFESTS_MAX: usize = 4096;
/// Largest manifest that is read; real ones have about one kilobyte.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// A manifest of Ollama's, on disk and in its registry (OCI image manifest, schema version 2).
#[derive(Debug, Deserialize)]
pub(super) struct OllamaManifest {
    #[serde(default)]
    pub(super) layers: Vec<OllamaLayer>,
}

/// A part of a model.
#[derive(Debug, Deserialize)]
pub(super) struct OllamaLayer {
    #[serde(rename = "mediaType")]
    pub(super) media_type: String,
    pub(super) digest: String,
    #[serde(default)]
    pub(super) size: u64,
}

/// What a layer of text says about a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextKind {
    /// The prompt template, in Go's notation.
    Template,
    /// The system message of conversations that bring none.
    System,
    /// Defaults of options, a JSON object.
    Params,
    /// A licence; there may be several.
    License,
    /// Messages that stand before every conversation, a JSON array.
    Messages,
}

impl TextKind {
    /// Returns what Ollama calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Template => "template",
            Self::System => "system",
            Self::Params => "params",
            Self::License => "license",
            Self::Messages => "messages",
        }
    }

    fn of(layer: &OllamaLayer) -> Option<Self> {
        let name = layer.media_type.strip_prefix(LAYER)?;
        let all = [Self::Template, Self::System, Self::Params, Self::License, Self::Messages];
        all.into_iter().find(|kind| kind.name() == name)
    }
}

impl OllamaManifest {
    /// Lists the layers of text, each after what it says.
    pub(super) fn texts(&self) -> impl Iterator<Item = (TextKind, &OllamaLayer)> {
        self.layers.iter().filter_map(|layer| Some((TextKind::of(layer)?, layer)))
    }

    /// Returns the hash and size of the weights, or why there are none that could be used.
    pub(super) fn weights(&self) -> Result<(String, u64), &'static str> {
        if self.layers.iter().any(|layer| layer.media_type == ADAPTER_LAYER) {
            return Err("it changes another model's weights by an adapter, which is not supported");
        }
        let mut layers = self.layers.iter().filter(|layer| layer.media_type == MODEL_LAYER);
        match (layers.next(), layers.next()) {
            (None, _) => Err("it has no GGUF weights"),
            (Some(_), Some(_)) => Err("its weights are split into several files, which is not supported"),
            (Some(layer), None) => match layer.sha256() {
                Some(hash) => Ok((hash.to_owned(), layer.size)),
                None => Err("its digest is not a SHA-256"),
            },
        }
    }
}

/// Returns the directories where an Ollama on this machine keeps its models: `OLLAMA_MODELS`, or else the user's and the
/// system service's. They need not exist.
#[must_use]
pub fn ollama_directories() -> Vec<PathBuf> {
    if let Some(directory) = std::env::var_os("OLLAMA_MODELS").filter(|value| !value.is_empty()) {
        return vec![directory.into()];
    }
    std::env::home_dir()
        .map(|home| home.join(".ollama/models"))
        .into_iter()
        .chain([PathBuf::from("/usr/share/ollama/.ollama/models")])
        .collect()
}

/// Reads the models of Ollama's directories.
pub(super) struct OllamaModels {
    directories: Vec<PathBuf>,
    /// Headers by the hash of their file, which therefore never change.
    headers: Mutex<HashMap<String, GgufInfo>>,
}

impl OllamaModels {
    pub(super) fn new(directories: Vec<PathBuf>) -> Self {
        Self { directories, headers: Mutex::new(HashMap::new()) }
    }

    /// Lists what can be used; a name that several directories have is the first one's.
    pub(super) fn list(&self) -> Vec<LocalModel> {
        let mut models: Vec<LocalModel> = Vec::new();
        for directory in &self.directories {
            let manifests = directory.join("manifests");
            for path in files_at_depth(&manifests, 4) {
                let Some(name) = path.strip_prefix(&manifests).ok().and_then(name_of) else { continue };
                if models.iter().any(|model| model.name == name) {
                    continue;
                }
                models.extend(self.read(directory, &path, name));
            }
        }
        models
    }

    pub(super) fn get(&self, name: &ModelName) -> Option<LocalModel> {
        let parts = registry_parts(name)?;
        self.directories.iter().find_map(|directory| {
            let manifests = directory.join("manifests");
            let place = place_on_disk(&manifests, &parts)?;
            self.read(directory, &manifests.join(&place), name_of(&place)?)
        })
    }

    /// Returns the template that an Ollama gives a model, in Go's notation.
    pub(super) fn go_template(&self, name: &ModelName) -> Option<String> {
        let parts = registry_parts(name)?;
        self.directories.iter().find_map(|directory| {
            let manifests = directory.join("manifests");
            let path = manifests.join(place_on_disk(&manifests, &parts)?);
            fs::metadata(&path).ok().filter(|metadata| metadata.len() <= MANIFEST_BYTES_MAX)?;
            let manifest: OllamaManifest = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
            manifest.layers.iter().find(|layer| layer.media_type == TEMPLATE_LAYER)?.text(directory)
        })
    }

    fn read(&self, directory: &Path, manifest: &Path, name: ModelName) -> Option<LocalModel> {
        let metadata = fs::metadata(manifest).ok().filter(|metadata| metadata.len() <= MANIFEST_BYTES_MAX)?;
        let parsed: OllamaManifest = serde_json::from_slice(&fs::read(manifest).ok()?).ok()?;
        let (sha256, size_bytes) = match parsed.weights() {
            Ok(weights) => weights,
            Err(reason) => {
                tracing::debug!(model = %name, reason, "a model of Ollama is left out");
                return None;
            }
        };
        let path = directory.join("blobs").join(format!("sha256-{sha256}"));
        if fs::metadata(&path).ok()?.len() != size_bytes {
            return None;
        }
        let info = self.header(&sha256, &path)?;
        let defaults = defaults_of(parsed.texts(), &info, |layer| layer.text(directory));
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        Some(LocalModel {
            name,
            info,
            defaults,
            path,
            sha256,
            size_bytes,
            modified_unix_s: modified.map_or(0, |age| age.as_secs()),
            source: ModelSource::Ollama,
        })
    }

    fn header(&self, sha256: &str, path: &Path) -> Option<GgufInfo> {
        let mut headers = self.headers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = headers.get(sha256) {
            return Some(known.clone());
        }
        let header = match GgufInfo::read(path) {
            Ok(header) => header,
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "a model of Ollama is left out");
                return None;
            }
        };
        if headers.len() >= MANIFESTS_MAX {
            headers.clear();
        }
        headers.insert(sha256.to_owned(), header.clone());
        Some(header)
    }
}

/// Makes what a model's name adds to its weights of its layers of text; those that cannot be read are left out. Its template counts
/// only where the weights have none of their own: the same template stands in both, and the file's can do more.
pub(super) fn defaults_of<L>(
    layers: impl IntoIterator<Item = (TextKind, L)>,
    info: &GgufInfo,
    read: impl Fn(L) -> Option<String>,
) -> ModelDefaults {
    let mut defaults = ModelDefaults::default();
    for (kind, layer) in layers {
        if kind == TextKind::Template && info.chat_template.is_some() {
            continue;
        }
        let Some(text) = read(layer) else { continue };
        match kind {
            TextKind::Template => defaults.template = Some(text),
            TextKind::System => defaults.system = Some(text),
            TextKind::Params => defaults.parameters = serde_json::from_str(&text).unwrap_or_default(),
            TextKind::License => defaults.licenses.push(text),
            TextKind::Messages => defaults.messages = messages_of(&text),
        }
    }
    defaults
}

fn messages_of(text: &str) -> Vec<Message> {
    #[derive(Deserialize)]
    struct Turn {
        role: Role,
        #[serde(default)]
        content: String,
    }
    let turns: Vec<Turn> = serde_json::from_str(text).unwrap_or_default();
    turns.into_iter().map(|turn| Message::text(turn.role, turn.content)).collect()
}

impl OllamaLayer {
    /// Returns the hash of what the layer holds, in lower-case hex; `None` where the digest is none.
    pub(super) fn sha256(&self) -> Option<&str> {
        self.digest.strip_prefix("sha256:").filter(|hash| super::store::is_sha256(hash))
    }

    /// Reads a layer that is text; `None` for one that is not there or too large.
    fn text(&self, directory: &Path) -> Option<String> {
        let path = directory.join("blobs").join(format!("sha256-{}", self.sha256()?));
        let bytes = usize::try_from(fs::metadata(&path).ok()?.len()).ok()?;
        if bytes > TEXT_LAYER_BYTES_MAX {
            return None;
        }
        fs::read_to_string(path).ok()
    }
}

/// Splits a name into registry, namespace, model and tag; `None` for a name that Ollama's registry cannot have.
pub(super) fn registry_parts(name: &ModelName) -> Option<[String; 4]> {
    let (path, tag) = name.split_tag();
    let parts: Vec<&str> = path.split('/').collect();
    let [registry, namespace, model] = match parts.as_slice() {
        [model] => [DEFAULT_REGISTRY, DEFAULT_NAMESPACE, model],
        [namespace, model] => [DEFAULT_REGISTRY, namespace, model],
        [registry, namespace, model] => [*registry, *namespace, *model],
        _ => return None,
    };
    Some([registry.to_owned(), namespace.to_owned(), model.to_owned(), tag.to_owned()])
}

/// Spells a manifest's place as the directories do: on file systems that ignore case, what was asked for may be spelt otherwise.
fn place_on_disk(manifests: &Path, parts: &[String; 4]) -> Option<PathBuf> {
    let mut place = PathBuf::new();
    for part in parts {
        let directory = manifests.join(&place);
        fs::symlink_metadata(directory.join(part)).ok()?;
        let names: Vec<_> = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.file_name()).collect();
        let exact = names.iter().find(|name| *name == part.as_str());
        place.push(exact.or_else(|| names.iter().find(|name| name.eq_ignore_ascii_case(part)))?);
    }
    Some(place)
}

/// Makes the name of a model of its manifest's place: registry, namespace, model, tag.
fn name_of(place: &Path) -> Option<ModelName> {
    let parts: Vec<&str> = place.iter().map(OsStr::to_str).collect::<Option<_>>()?;
    let [registry, namespace, model, tag] = parts.as_slice() else { return None };
    let short = match (*registry, *namespace) {
        (DEFAULT_REGISTRY, DEFAULT_NAMESPACE) => format!("{model}:{tag}"),
        (DEFAULT_REGISTRY, _) => format!("{namespace}/{model}:{tag}"),
        _ => format!("{registry}/{namespace}/{model}:{tag}"),
    };
    ModelName::parse(&short).ok()
}

/// Lists the files that lie so many directories deep.
fn files_at_depth(directory: &Path, depth: usize) -> Vec<PathBuf> {
    let mut level = vec![directory.to_owned()];
    for _ in 0..depth {
        level = level
            .iter()
            .flat_map(fs::read_dir)
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .take(MANIFESTS_MAX)
            .collect();
        level.sort();
    }
    level.retain(|path| path.is_file());
    level
}
