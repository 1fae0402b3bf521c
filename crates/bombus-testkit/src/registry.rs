//! A double of Ollama's registry: manifests and texts, and weights behind a redirect to another server; and of the directory that Ollama
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
    /// Where the weights are.
    pub storage: Origin,
}

/// The template that models here have, in Go's notation.
pub const TEMPLATE: &str = "{{ .System }} {{ .Prompt }}";
/// The licence that models here have.
pub const LICENSE: &str = "Do with it what you like.";

/// Returns a manifest whose weights have this hash and size, with the other layers that models of Ollama have.
#[must_use]
pub fn manifest(weights_sha256: &str, weights_bytes: usize) -> Value {
    manifest_of(weights_sha256, weights_bytes, &[("template", TEMPLATE), ("license", LICENSE)])
}

/// Returns a manifest with these layers of text, each after its kind, for example `system`.
fn manifest_of(weights_sha256: &str, weights_bytes: usize, texts: &[(&str, &str)]) -> Value {
    let layer = |kind: &str, hash: &str, bytes: usize| json!({"mediaType": format!("application/vnd.ollama.image.{kind}"), "digest": format!("sha256:{hash}"), "size": bytes});
    let mut layers = vec![layer("model", weights_sha256, weights_bytes)];
    layers.extend(texts.iter().map(|(kind, text)| layer(kind, &sha256(text.as_bytes()), text.len())));
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": format!("sha256:{}", "1".repeat(64)),
            "size": 485,
        },
        "layers": layers,
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
        self.put_manifest(repository, tag, &manifest(&sha256(weights), weights.len()));
        self.put_weights(repository, weights, serve);
    }

    /// Adds a model with these layers of text in place of the usual ones, each after its kind, for example `system`.
    pub fn put_with_texts(&self, repository: &str, tag: &str, weights: &[u8], texts: &[(&str, &str)]) {
        self.put_manifest(repository, tag, &manifest_of(&sha256(weights), weights.len(), texts));
        self.put_weights(repository, weights, |blob| blob);
        for (_, text) in texts {
            self.put_text(repository, text, Resource::of(*text));
        }
    }

    /// Adds a manifest without its weights, and the texts that models have.
    pub fn put_manifest(&self, repository: &str, tag: &str, manifest: &Value) {
        self.site.put(&format!("/v2/{repository}/manifests/{tag}"), Resource::of(manifest.to_string()));
        for text in [TEMPLATE, LICENSE] {
            self.put_text(repository, text, Resource::of(text));
        }
    }

    /// Changes what is answered to who asks for a text of a model. The registry has texts itself.
    pub fn put_text(&self, repository: &str, text: &str, answer: Resource) {
        self.site.put(&format!("/v2/{repository}/blobs/sha256:{}", sha256(text.as_bytes())), answer);
    }

    fn put_weights(&self, repository: &str, weights: &[u8], serve: impl FnOnce(Resource) -> Resource) {
        let hash = sha256(weights);
        let blob = format!("/v2/{repository}/blobs/sha256:{hash}");
        self.site.put(&blob, Resource::redirect(&format!("{}/{hash}", self.storage.url())));
        self.storage.put(&format!("/{hash}"), serve(Resource::of(weights)));
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
    for text in [TEMPLATE, LICENSE] {
        fs::write(blobs.join(format!("sha256-{}", sha256(text.as_bytes()))), text)?;
    }
    fs::write(manifests.join(tag), manifest(&hash, weights.len()).to_string())
}
