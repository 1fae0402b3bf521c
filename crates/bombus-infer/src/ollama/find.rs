//! Finds Ollama servers on this machine.

use std::net::IpAddr;
use std::time::Duration;

use futures::future::join_all;
use reqwest::Client;
use tokio::time::timeout;

/// Where an Ollama server listens unless it is told otherwise.
pub(super) const DEFAULT_URL: &str = "http://127.0.0.1:11434";

/// Its port.
const DEFAULT_PORT: u16 = 11434;
/// Longest wait for servers to show themselves; all are asked at once.
const FIND_TIME_MAX: Duration = Duration::from_millis(300);
/// What an Ollama server answers to `GET /`. Bombus answers the same, since clients look for it.
const GREETING: &str = "Ollama is running";

/// Returns the addresses of the Ollama servers that answer, within 300 ms: of the one that `OLLAMA_HOST` names, and of the one at the usual
/// port of this machine. Nodes of Bombus, which answer in Ollama's dialect too, are left out.
pub async fn find_local() -> Vec<String> {
    let named = std::env::var("OLLAMA_HOST").ok().and_then(|text| url_of_host(&text));
    let mut urls: Vec<String> = named.into_iter().collect();
    if !urls.iter().any(|url| url == DEFAULT_URL) {
        urls.push(DEFAULT_URL.to_owned());
    }
    answering(urls).await
}

/// Returns those of the addresses at which an Ollama server answers in time.
pub(crate) async fn answering(urls: Vec<String>) -> Vec<String> {
    let client = Client::builder().tcp_nodelay(true).no_proxy().build();
    let Ok(client) = client else { return Vec::new() };
    let asked = urls.into_iter().map(async |url| {
        let is_there = timeout(FIND_TIME_MAX, is_ollama(&client, &url)).await.unwrap_or(false);
        tracing::debug!(upstream.url = url, found = is_there, "looked for an Ollama server");
        is_there.then_some(url)
    });
    join_all(asked).await.into_iter().flatten().collect()
}

async fn is_ollama(client: &Client, url: &str) -> bool {
    let Ok(mut response) = client.get(url).send().await else { return false };
    let Ok(Some(begin)) = response.chunk().await else { return false };
    if !response.status().is_success() || !begin.starts_with(GREETING.as_bytes()) {
        return false;
    }
    let health = client.get(format!("{}/health", url.trim_end_matches('/'))).send().await;
    !health.is_ok_and(|health| health.status().is_success())
}

/// Reads `OLLAMA_HOST` as Ollama does: host, port and scheme may be left out, and an address that stands for all is this machine.
fn url_of_host(text: &str) -> Option<String> {
    let text = text.trim().trim_matches(['"', '\'']);
    if text.is_empty() {
        return None;
    }
    let (scheme, rest, port) = match text.split_once("://") {
        Some(("http", rest)) => ("http", rest, 80),
        Some(("https", rest)) => ("https", rest, 443),
        Some(_) => return None,
        None => ("http", text, DEFAULT_PORT),
    };
    let (address, path) =
        rest.split_once('/').map_or((rest, ""), |(address, path)| (address, path.trim_end_matches('/')));
    let (host, port) = match address.rsplit_once(':') {
        // A bare IPv6 address has colons too.
        Some((host, digits)) if !host.contains(':') || host.ends_with(']') => (host, digits.parse().unwrap_or(port)),
        _ => (address, port),
    };
    let host = match host.trim_matches(['[', ']']) {
        "" | "localhost" => "127.0.0.1".to_owned(),
        host => match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) if address.is_unspecified() => "127.0.0.1".to_owned(),
            Ok(IpAddr::V6(address)) if address.is_unspecified() => "[::1]".to_owned(),
            Ok(IpAddr::V6(address)) => format!("[{address}]"),
            _ => host.to_owned(),
        },
    };
    let path = if path.is_empty() { String::new() } else { format!("/{path}") };
    Some(format!("{scheme}://{host}:{port}{path}"))
}

#[cfg(test)]
mod tests {
    use bombus_testkit::upstream::{Script, Upstream};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_host_is_read_as_ollama_reads_it() {
        let cases = [
            ("", None),
            ("0.0.0.0", Some(DEFAULT_URL)),
            ("0.0.0.0:11434", Some(DEFAULT_URL)),
            (":8000", Some("http://127.0.0.1:8000")),
            ("localhost", Some(DEFAULT_URL)),
            ("example.com", Some("http://example.com:11434")),
            ("http://example.com", Some("http://example.com:80")),
            ("https://example.com/ollama/", Some("https://example.com:443/ollama")),
            ("[::]:1234", Some("http://[::1]:1234")),
            ("::1", Some("http://[::1]:11434")),
            ("\"10.0.0.7:99\"", Some("http://10.0.0.7:99")),
            ("10.0.0.7:word", Some("http://10.0.0.7:11434")),
            ("ftp://example.com", None),
        ];
        for (text, expected) in cases {
            assert_eq!(url_of_host(text).as_deref(), expected, "{text:?}");
        }
    }

    #[tokio::test]
    async fn only_servers_that_are_ollama_are_found() {
        let (ollama, node, other, hanging) = tokio::join!(
            async { Upstream::start().await.unwrap() },
            async { Upstream::start().await.unwrap() },
            async { Upstream::start().await.unwrap() },
            async { Upstream::start().await.unwrap() },
        );
        ollama.on("GET /", Script::text(200, GREETING));
        node.on("GET /", Script::text(200, GREETING));
        node.on("GET /health", Script::json(200, &json!({"status": "ok", "node_id": "n"})));
        other.on("GET /", Script::text(200, "Welcome to nginx"));
        hanging.on("GET /", Script::hang());
        let urls = [&ollama, &node, &other, &hanging].map(Upstream::url).to_vec();
        let gone = Upstream::refusing().await.unwrap();
        assert_eq!(answering([urls, vec![gone]].concat()).await, [ollama.url()]);
    }
}
