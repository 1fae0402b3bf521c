//! A double of Ollama's registry: manifests, and blobs behind a redirect to another server; and of the directory that Ollama
//! keeps them in.

use std::path::Path;
use std::{fs, io};

use serde_json::{Value, json};

use crate::origin::{Origin, Resource};
use crate::sha256;

/// The double.
pub struct Registry {
    /// The registry itself.
    pub site: Origin,
    /// Where the blobs are.
    pub storage: Origin,
}

/// Returns a manifest whose weights have this hash and size, with the other layers that models of Ollama have.
#[must_use]
pub fn manifest(weights_sha256: &str, weights_bytes: usize) -> Value {
    let layer = |kind: &str, hash: &str, bytes: usize| json!({"mediaType": format!("application/vnd.ollama.image.{kind}"), "digest": format!("sha256:{hash}"), "size": bytes});
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": format!("sha256:{}", "1".repeat(64)),
            "size": 485,
        },
        "layers": [
            layer("model", weights_sha256, weights_bytes),
            layer("template", &"2".repeat(64), 1482),
            layer("license", &"3".repeat(64), 11343),
        ],
    })
}

impl Registry {
    /// Starts the double without any model.
    ///
    /// # Errors
    ///
    /// When no port can be had.
    pub async fn start() -> io::Result<Self> {
        Ok(Self { site: Origin::start().await?, storage: Origin::start().await? })
    }

    /// Adds a model, for example `library/qwen3` with tag `8b`. `serve` changes how its weights are served.
    pub fn put(&self, repository: &str, tag: &str, weights: &[u8], serve: impl FnOnce(Resource) -> Resource) {
        let hash = sha256(weights);
        let blob = format!("/v2/{repository}/blobs/sha256:{hash}");
        self.put_manifest(repository, tag, &manifest(&hash, weights.len()));
        self.site.put(&blob, Resource::redirect(&format!("{}/{hash}", self.storage.url())));
        self.storage.put(&format!("/{hash}"), serve(Resource::of(weights)));
    }

    /// Adds a manifest alone.
    pub fn put_manifest(&self, repository: &str, tag: &str, manifest: &Value) {
        self.site.put(&format!("/v2/{repository}/manifests/{tag}"), Resource::of(manifest.to_string()));
    }
}

/// Lays a model into a directory as Ollama does. `place` is registry, namespace and model, for example
/// `registry.ollama.ai/library/qwen3`.
///
/// # Errors
///
/// When the files cannot be written.
pub fn lay_into_ollama_directory(directory: &Path, place: &str, tag: &str, weights: &[u8]) -> io::Result<()> {
    let hash = sha256(weights);
    let blobs = directory.join("blobs");
    let manifests = directory.join("manifests").join(place);
    fs::create_dir_all(&blobs)?;
    fs::create_dir_all(&manifests)?;
    fs::write(blobs.join(format!("sha256-{hash}")), weights)?;
    fs::write(manifests.join(tag), manifest(&hash, weights.len()).to_string())
}
