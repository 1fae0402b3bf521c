use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures::future::join_all;
use reqwest::{Client, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::timeout;

use crate::ollama::find_local;

/// Where an Ollama listens unless it is told otherwise.
pub const OLLAMA_ADDRESS: SocketAddr = local(11_434);

/// Where servers of models usually listen, and which do.
const USUAL: [(SocketAddr, ServerKind); 5] = [
    (OLLAMA_ADDRESS, ServerKind::Ollama),
    (local(8_080), ServerKind::LlamaServer),
    (local(1_234), ServerKind::LmStudio),
    (local(8_000), ServerKind::Vllm),
    (local(4_000), ServerKind::LiteLlm),
];

/// Longest wait for all that a server is asked.
const ASK_TIME_MAX: Duration = Duration::from_millis(500);
/// How much of an answer is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// How many models of a server are named.
const MODELS_MAX: usize = 256;
/// Longest name of a model that is shown, in bytes.
const NAME_BYTES_MAX: usize = 256;

const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// A server of models that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FoundServer {
    /// What it is.
    pub kind: ServerKind,
    /// What a `[[backends]]` entry would have as `url`.
    pub url: String,
    /// Its version, where it tells.
    pub version: Option<String>,
    /// Its models, at most 256; `None` where it was not asked for them.
    pub models: Option<Vec<String>>,
    /// Whether it tells nothing without a key.
    pub needs_key: bool,
}

/// The servers that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerKind {
    /// Another Bombus node.
    Bombus,
    /// Ollama.
    Ollama,
    /// llama.cpp's own server.
    LlamaServer,
    /// LM Studio.
    LmStudio,
    /// vLLM.
    Vllm,
    /// LiteLLM.
    #[serde(rename = "litellm")]
    LiteLlm,
    /// Some other server of OpenAI's dialect.
    OpenAi,
}

impl ServerKind {
    /// Returns what people call it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bombus => "Bombus",
            Self::Ollama => "Ollama",
            Self::LlamaServer => "llama-server",
            Self::LmStudio => "LM Studio",
            Self::Vllm => "vLLM",
            Self::LiteLlm => "LiteLLM",
            Self::OpenAi => "OpenAI's dialect",
        }
    }

    /// Returns the `kind` of a `[[backends]]` entry for it.
    #[must_use]
    pub fn backend_kind(self) -> &'static str {
        if self == Self::Ollama { "ollama" } else { "openai" }
    }

    /// Recognises a server by who it says its models belong to.
    fn of_owner(owner: &str) -> Option<Self> {
        match owner {
            "llamacpp" => Some(Self::LlamaServer),
            "organization_owner" => Some(Self::LmStudio),
            "vllm" => Some(Self::Vllm),
            _ => None,
        }
    }
}

/// Looks at the ports of this machine where servers of models usually listen, at these addresses, and where `OLLAMA_HOST` says that an
/// Ollama is. All are asked at once and have 500 ms to answer.
pub async fn local_servers(also: &[SocketAddr]) -> Vec<FoundServer> {
    let Ok(client) = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build() else {
        return Vec::new();
    };
    let usual: BTreeSet<SocketAddr> = USUAL.iter().map(|(address, _)| *address).collect();
    let others: BTreeSet<SocketAddr> = also.iter().copied().filter(|address| !usual.contains(address)).collect();
    let others = others.into_iter().map(|address| (address, ServerKind::OpenAi));
    let asked = USUAL.into_iter().chain(others).map(async |(address, usual)| look(&client, address, usual).await);
    let (found, ollamas) = futures::join!(join_all(asked), find_local());
    let mut found: Vec<FoundServer> = found.into_iter().flatten().collect();
    for url in ollamas {
        if !found.iter().any(|server| server.url == url) {
            found.push(FoundServer { kind: ServerKind::Ollama, url, version: None, models: None, needs_key: false });
        }
    }
    found
}

/// Asks one address what it is, by all the ways in which such servers say it, at once.
async fn look(client: &Client, address: SocketAddr, usual: ServerKind) -> Option<FoundServer> {
    let base = format!("http://{address}");
    let ask = async |path: &str| timeout(ASK_TIME_MAX, get(client, format!("{base}{path}"))).await.ok().flatten();
    let (root, health, version, models) =
        futures::join!(ask("/"), ask("/health"), ask("/api/version"), ask("/v1/models"));
    let version = version.and_then(|(_, body)| serde_json::from_slice::<Version>(&body).ok());
    if let Some(node) = health.and_then(|(_, body)| serde_json::from_slice::<NodeHealth>(&body).ok()) {
        let (models, needs_key) = read_models(models);
        let names = models.unwrap_or_default();
        return Some(found(ServerKind::Bombus, format!("{base}/v1"), Some(node.version), names, needs_key));
    }
    if root.is_some_and(|(_, body)| body.starts_with(b"Ollama is running")) {
        let models = read_models(models).0.unwrap_or_default();
        return Some(found(ServerKind::Ollama, base, version.map(|version| version.version), models, false));
    }
    let (models, needs_key) = read_models(models);
    if models.is_none() && !needs_key {
        return None;
    }
    let models = models.unwrap_or_default();
    let kind = models.iter().find_map(|model| ServerKind::of_owner(&model.owned_by)).unwrap_or(usual);
    // On its usual port, Ollama was recognised above.
    let kind = if kind == ServerKind::Ollama { ServerKind::OpenAi } else { kind };
    Some(found(kind, format!("{base}/v1"), None, models, needs_key))
}

fn found(
    kind: ServerKind,
    url: String,
    version: Option<String>,
    models: Vec<ListedModel>,
    needs_key: bool,
) -> FoundServer {
    let short = |text: String| text.chars().filter(|character| !character.is_control()).take(NAME_BYTES_MAX).collect();
    let models = models.into_iter().take(MODELS_MAX).map(|model| short(model.id)).collect();
    FoundServer { kind, url, version: version.map(short), models: Some(models), needs_key }
}

/// Reads the answer to `/v1/models`: the models, or that a key is needed. A refusal counts only if it is in JSON, as those of such
/// servers are: any web page may ask for a password.
fn read_models(answer: Option<(StatusCode, Vec<u8>)>) -> (Option<Vec<ListedModel>>, bool) {
    let Some((status, body)) = answer else { return (None, false) };
    if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
        return (None, serde_json::from_slice::<Value>(&body).is_ok_and(|body| body.is_object()));
    }
    (serde_json::from_slice::<ModelList>(&body).ok().map(|list| list.data), false)
}

/// Gets a page, as long as it is not larger than is read.
async fn get(client: &Client, url: String) -> Option<(StatusCode, Vec<u8>)> {
    let mut response = client.get(url).send().await.ok()?;
    let mut body = Vec::new();
    while let Some(bytes) = response.chunk().await.ok()? {
        if body.len() + bytes.len() > ANSWER_BYTES_MAX {
            return None;
        }
        body.extend_from_slice(&bytes);
    }
    Some((response.status(), body))
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

/// What tells a Bombus node from others that answer `/health`.
#[derive(Deserialize)]
struct NodeHealth {
    #[serde(rename = "node_id")]
    _node_id: String,
    #[serde(rename = "peer_count")]
    _peer_count: u64,
    version: String,
}

#[derive(Deserialize)]
struct ModelList {
    data: Vec<ListedModel>,
}

#[derive(Deserialize)]
struct ListedModel {
    id: String,
    #[serde(default)]
    owned_by: String,
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Serves pages by path on a free port; everything else is 404.
    async fn server(pages: &'static [(&'static str, &'static str, &'static str)]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // Ends with the test's runtime; a connection that fails is a page that was not asked for to its end.
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 4096];
                let read = stream.read(&mut head).await.unwrap_or(0);
                let head = String::from_utf8_lossy(&head[..read]).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default();
                let page = pages.iter().find(|(page, ..)| *page == path);
                let (_, status, body) = page.copied().unwrap_or(("", "404 Not Found", "no"));
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    async fn look_at(address: SocketAddr, usual: ServerKind) -> Option<FoundServer> {
        look(&Client::builder().no_proxy().build().unwrap(), address, usual).await
    }

    #[tokio::test]
    async fn servers_are_told_apart_by_what_they_answer() {
        let ollama = server(&[
            ("/", "200 OK", "Ollama is running"),
            ("/api/version", "200 OK", r#"{"version":"0.24.0"}"#),
            ("/v1/models", "200 OK", r#"{"object":"list","data":[{"id":"m:latest","owned_by":"library"}]}"#),
        ])
        .await;
        let found = look_at(ollama, ServerKind::OpenAi).await.unwrap();
        assert_eq!((found.kind, found.version.as_deref()), (ServerKind::Ollama, Some("0.24.0")));
        assert_eq!((found.url, found.models), (format!("http://{ollama}"), Some(vec!["m:latest".to_owned()])));

        let node = server(&[
            ("/", "200 OK", "Ollama is running"),
            ("/health", "200 OK", r#"{"node_id":"12D3","peer_count":0,"version":"0.1.0"}"#),
        ])
        .await;
        assert_eq!(look_at(node, ServerKind::OpenAi).await.unwrap().kind, ServerKind::Bombus);

        let llama = server(&[
            ("/health", "200 OK", r#"{"status":"ok"}"#),
            ("/v1/models", "200 OK", r#"{"models":[],"data":[{"id":"x.gguf","owned_by":"llamacpp"}]}"#),
        ])
        .await;
        let found = look_at(llama, ServerKind::Vllm).await.unwrap();
        assert_eq!((found.kind, found.url), (ServerKind::LlamaServer, format!("http://{llama}/v1")));
    }

    #[tokio::test]
    async fn a_server_that_wants_a_key_is_found_without_its_models() {
        let proxy = server(&[("/v1/models", "401 Unauthorized", r#"{"error":{"message":"no key"}}"#)]).await;
        let found = look_at(proxy, ServerKind::LiteLlm).await.unwrap();
        assert_eq!((found.kind, found.needs_key, found.models), (ServerKind::LiteLlm, true, Some(Vec::new())));
    }

    #[tokio::test]
    async fn other_web_servers_are_none() {
        let page = server(&[("/", "200 OK", "<html>"), ("/v1/models", "401 Unauthorized", "<html>password")]).await;
        assert_eq!(look_at(page, ServerKind::LlamaServer).await, None);
        let web_ui = server(&[("/api/version", "200 OK", r#"{"version":"1"}"#)]).await;
        assert_eq!(look_at(web_ui, ServerKind::LlamaServer).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_hangs_holds_nobody_up() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let begun = tokio::time::Instant::now();
        assert_eq!(look_at(silent.local_addr().unwrap(), ServerKind::Vllm).await, None);
        assert_eq!(begun.elapsed(), ASK_TIME_MAX);
    }
}
