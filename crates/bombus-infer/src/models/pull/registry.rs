//! Ollama's registry, which speaks the OCI distribution protocol: `/v2/NAMESPACE/MODEL/manifests/TAG` and `/blobs/DIGEST`.

use reqwest::Client;
use reqwest::header::ACCEPT;

use super::super::ollama::{DEFAULT_REGISTRY, OllamaManifest};
use super::download::{Source, get_json};
use super::{Place, PullConfig, PullError, Weights};

const MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Asks the registry which file a name stands for. Returns where it comes from, and the file.
pub(super) async fn resolve(
    client: &Client,
    config: &PullConfig,
    [registry, namespace, model, tag]: &[String; 4],
) -> Result<(String, Weights), PullError> {
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
    let source = Source { url: format!("{repository}/blobs/sha256:{sha256}"), token: None };
    Ok((url, Weights { sha256, size_bytes, place: Place::Web(source) }))
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
