//! Ollama's registry, which speaks the OCI distribution protocol: `/v2/NAMESPACE/MODEL/manifests/TAG` and `/blobs/DIGEST`.

use futures::future::try_join_all;
use reqwest::Client;
use reqwest::header::ACCEPT;
use sha2::{Digest, Sha256};

use super::super::ollama::{DEFAULT_REGISTRY, OllamaLayer, OllamaManifest, TEXT_LAYER_BYTES_MAX, TextKind};
use super::added::Added;
use super::download::{Source, get, get_json};
use super::{Place, PullConfig, PullError, Weights};

const MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Most layers of text that a model may have; real ones have up to about eight.
const TEXTS_MAX: usize = 64;
/// How many of them are fetched at a time.
const TEXTS_AT_A_TIME: usize = 8;
/// Most bytes that they may have together. It leaves the manifest of the store room for them.
const TEXTS_BYTES_MAX: usize = 4 << 20;

/// Asks the registry which file a name stands for, and what the name adds to it. Returns where it comes from, the file, and what is
/// added.
pub(super) async fn resolve(
    client: &Client,
    config: &PullConfig,
    [registry, namespace, model, tag]: &[String; 4],
) -> Result<(String, Weights, Added), PullError> {
    let base = base_url(config, registry);
    let repository = format!("{base}/v2/{namespace}/{model}");
    let url = format!("{repository}/manifests/{tag}");
    let request = client.get(&url).header(ACCEPT, MANIFEST_TYPE);
    let manifest: OllamaManifest = get_json(config, request, &url).await.map_err(|error| match error {
        PullError::Refused { status: status @ (401 | 404), .. } => PullError::NotFound {
            source_name: registry.clone(),
            reference: format!("{namespace}/{model}:{tag}"),
            detail: format!("status {status}; see {} for what there is", search_page(registry)),
        },
        other => other,
    })?;
    let (sha256, size_bytes) = manifest.weights().map_err(|reason| PullError::Reference {
        reference: format!("{namespace}/{model}:{tag}"),
        reason: reason.to_owned(),
    })?;
    let texts = texts_of(client, config, &manifest, &repository, &url).await?;
    let source = Source { url: format!("{repository}/blobs/sha256:{sha256}"), token: None };
    Ok((url, Weights { sha256, size_bytes, place: Place::Web(source) }, Added::Layers(texts)))
}

/// Fetches the layers of text.
async fn texts_of(
    client: &Client,
    config: &PullConfig,
    manifest: &OllamaManifest,
    repository: &str,
    manifest_url: &str,
) -> Result<Vec<(TextKind, String)>, PullError> {
    let refuse = |reason: String| Err(PullError::Protocol { url: manifest_url.to_owned(), reason });
    let layers: Vec<(TextKind, &OllamaLayer)> = manifest.texts().collect();
    if layers.len() > TEXTS_MAX {
        return refuse(format!("the model has {} layers of text, and up to {TEXTS_MAX} are read", layers.len()));
    }
    let mut texts = Vec::with_capacity(layers.len());
    for some in layers.chunks(TEXTS_AT_A_TIME) {
        let mut fetches = Vec::with_capacity(some.len());
        for &(kind, layer) in some {
            fetches.push(text_of(client, config, repository, kind, layer));
        }
        texts.extend(try_join_all(fetches).await?);
    }
    let bytes: usize = texts.iter().map(|(_, text)| text.len()).sum();
    if bytes > TEXTS_BYTES_MAX {
        return refuse(format!(
            "the model's layers of text have {bytes} bytes together, and up to {TEXTS_BYTES_MAX} are read"
        ));
    }
    Ok(texts)
}

/// Fetches a layer of text and checks its hash.
async fn text_of(
    client: &Client,
    config: &PullConfig,
    repository: &str,
    kind: TextKind,
    layer: &OllamaLayer,
) -> Result<(TextKind, String), PullError> {
    let url = format!("{repository}/blobs/{}", layer.digest);
    let refuse = |reason: String| Err(PullError::Protocol { url: url.clone(), reason });
    let what = kind.name();
    let Some(expected) = layer.sha256() else {
        return refuse(format!("the digest of the model's {what} layer is not a SHA-256"));
    };
    if !usize::try_from(layer.size).is_ok_and(|bytes| bytes <= TEXT_LAYER_BYTES_MAX) {
        let bytes = layer.size;
        return refuse(format!(
            "the model's {what} layer has {bytes} bytes, and up to {TEXT_LAYER_BYTES_MAX} are read"
        ));
    }
    let body = get(config, client.get(&url), &url, TEXT_LAYER_BYTES_MAX).await?;
    let found = hex::encode(Sha256::digest(&body));
    if found != expected {
        let (what, expected) = (format!("{url} (the model's {what} layer)"), expected.to_owned());
        return Err(PullError::WrongHash { what, expected, found });
    }
    match String::from_utf8(body) {
        Ok(text) => Ok((kind, text)),
        Err(_) => refuse(format!("the model's {what} layer is no text in UTF-8")),
    }
}

fn base_url(config: &PullConfig, registry: &str) -> String {
    let host = registry.split(':').next().unwrap_or_default();
    match host {
        DEFAULT_REGISTRY => config.registry_url.trim_end_matches('/').to_owned(),
        "localhost" | "127.0.0.1" => format!("http://{registry}"),
        _ => format!("https://{registry}"),
    }
}

fn search_page(registry: &str) -> String {
    if registry == DEFAULT_REGISTRY { "https://ollama.com/search".to_owned() } else { format!("https://{registry}") }
}
