use std::time::Duration;

use bombus_infer::discover::OLLAMA_ADDRESS;
use bombus_infer::ollama::{OllamaBackend, OllamaConfig, find_local};
use bombus_infer::openai::OpenAiBackend;
use bombus_infer::{Backend, BackendError};
use futures::future::join_all;
use tokio::time::timeout;

use super::Check;
use crate::config::{BackendConfig, BackendKind, Config};

/// Longest wait for a backend to list its models.
const LIST_TIME_MAX: Duration = Duration::from_secs(5);

/// Whether the servers that are configured as backends answer, take the key and have models. All are asked at once.
pub(super) async fn reachable(config: &Config) -> Vec<Check> {
    join_all(config.backends.iter().map(check)).await.into_iter().flatten().collect()
}

/// Looks at one backend; those inside this process have checks of their own.
async fn check(backend: &BackendConfig) -> Option<Check> {
    let name = format!("backend {}", backend.name);
    Some(match &backend.kind {
        BackendKind::Embedded(_) | BackendKind::Fake(_) => return None,
        BackendKind::LocalOllama => local_ollama(name).await,
        BackendKind::Ollama(config) => match OllamaBackend::new(&backend.name, config.clone()) {
            Ok(server) => ask(name, &config.url, &server).await,
            Err(error) => unusable(name, &error),
        },
        BackendKind::OpenAi(config) => match OpenAiBackend::new(&backend.name, config.clone()) {
            Ok(server) => ask(name, &config.url, &server).await,
            Err(error) => unusable(name, &error),
        },
    })
}

fn unusable(name: String, error: &impl std::fmt::Display) -> Check {
    Check::fail(name, format!("{error}"), "correct its [[backends]] entry; bombus config show prints it")
}

async fn local_ollama(name: String) -> Check {
    let url = format!("http://{OLLAMA_ADDRESS}");
    if !find_local().await.contains(&url) {
        return Check::ok(name, "no Ollama runs on its usual port; it is used as soon as one does");
    }
    match OllamaBackend::new(&name, OllamaConfig::default()) {
        Ok(server) => ask(name, &url, &server).await,
        Err(error) => unusable(name, &error),
    }
}

async fn ask(name: String, url: &str, server: &dyn Backend) -> Check {
    // What stands before an `@` may be a password.
    let place = reqwest::Url::parse(url)
        .map_or_else(|_| "its address".to_owned(), |url| url.host_str().unwrap_or("its host").to_owned());
    match timeout(LIST_TIME_MAX, server.models()).await {
        Ok(Ok(models)) if models.is_empty() => {
            Check::warn(name, format!("{place} answers and has no models"), "pull or load a model there")
        }
        Ok(Ok(models)) => Check::ok(name, format!("{place} answers and has {} models", models.len())),
        Ok(Err(error @ BackendError::Rejected { .. })) => {
            let remedy = "put the right key where api_key_env or api_key_file of its [[backends]] entry says";
            Check::fail(name, error.to_string(), remedy)
        }
        Ok(Err(error)) => Check::fail(name, error.to_string(), "start that server, or correct its url in [[backends]]"),
        Err(_) => {
            let found = format!("{place} does not list its models within {} s", LIST_TIME_MAX.as_secs());
            Check::fail(name, found, "look at that server's log, or start it again")
        }
    }
}
