use std::sync::Arc;

use anyhow::Result;
use bombus_http::Sample;
use bombus_infer::discover::{OLLAMA_ADDRESS, OccasionalBackend};
use bombus_infer::fake::FakeBackend;
use bombus_infer::models::{ModelStore, ollama_directories};
use bombus_infer::ollama::{OllamaBackend, OllamaConfig};
use bombus_infer::openai::OpenAiBackend;
use bombus_infer::{Backend, Backends, NamedBackend, NamingBackend};
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::config::{BackendConfig, BackendKind, Config, EmbeddedConfig};
use crate::data_dir::DataDir;
use crate::failure::{Exit, Failure};

/// The configured backends, ready to be asked.
pub(crate) struct RunningBackends {
    backends: Backends,
    /// The embedded ones, by name.
    engines: Vec<(String, Arc<engine::Engine>)>,
}

impl RunningBackends {
    /// Starts every backend of the configuration. Models are loaded when they are first asked for.
    pub(crate) fn start(config: &Config, data_dir: &DataDir) -> Result<Self> {
        let mut named = Vec::new();
        let mut engines = Vec::new();
        for BackendConfig { name, kind, options } in &config.backends {
            let backend: Arc<dyn Backend> = match kind {
                BackendKind::Fake(script) => Arc::new(FakeBackend::new(script.clone())),
                BackendKind::Embedded(config) => {
                    let engine = Arc::new(engine::start(config, open_models(data_dir)?)?);
                    engines.push((name.clone(), engine.clone()));
                    engine
                }
                BackendKind::Ollama(config) => {
                    Arc::new(rendering(set_up(name, OllamaBackend::new(name, config.clone()))?))
                }
                BackendKind::OpenAi(config) => {
                    let server = Arc::new(set_up(name, OpenAiBackend::new(name, config.clone()))?);
                    Arc::new(set_up(name, NamingBackend::open(name, &data_dir.names(), server))?)
                }
                // A node that has Ollama's port would find itself there.
                BackendKind::LocalOllama if config.api.listen.port() == OLLAMA_ADDRESS.port() => continue,
                BackendKind::LocalOllama => {
                    let ollama = set_up(name, OllamaBackend::new(name, OllamaConfig::default()))?;
                    Arc::new(OccasionalBackend::ollama(Arc::new(rendering(ollama))))
                }
            };
            named.push(NamedBackend {
                options: options.clone(),
                ..NamedBackend::new(name.clone(), kind.as_str(), backend)
            });
        }
        Ok(Self { backends: Backends::configured(named, config.route), engines })
    }

    /// Returns the backends in order of preference.
    pub(crate) fn backends(&self) -> &Backends {
        &self.backends
    }

    /// Returns the names of all models of this node.
    pub(crate) async fn model_names(&self) -> Vec<String> {
        let listed = self.backends.models().await;
        let own = listed.into_iter().filter(|listed| listed.first && listed.node.is_none());
        own.map(|listed| listed.info.name.to_string()).collect()
    }

    /// Returns the work that keeps what is known about the backends fresh.
    pub(crate) fn refresh(&self) -> impl Fn() -> BoxFuture<'static, ()> + Send + 'static {
        let backends = self.backends.clone();
        move || {
            let backends = backends.clone();
            async move { backends.watch().await }.boxed()
        }
    }

    /// Returns what the engines have to say to `/metrics`.
    pub(crate) fn samples(&self) -> impl Fn() -> Vec<Sample> + Send + Sync + 'static {
        let engines = self.engines.clone();
        move || engines.iter().flat_map(|(name, engine)| engine::samples(name, engine)).collect()
    }

    /// Ends what the backends started.
    pub(crate) async fn stop(self) {
        for (_, engine) in self.engines.into_iter().rev() {
            engine::stop(&engine).await;
        }
    }
}

/// Names the backend that cannot be used as it is configured.
fn set_up<T>(name: &str, backend: Result<T, impl std::fmt::Display>) -> Result<T> {
    backend.map_err(|error| {
        Failure::new(Exit::Usage, format!("backend '{name}' cannot be set up: {error}"))
            .hint("bombus config show prints its settings")
            .into()
    })
}

/// Lets an Ollama server go on with answers that broke off elsewhere, in builds that can make its models' prompts.
fn rendering(ollama: OllamaBackend) -> OllamaBackend {
    match engine::renderer() {
        Some(renderer) => ollama.with_renderer(renderer),
        None => ollama,
    }
}

/// Opens the model store of a data directory, with the models of an Ollama on this machine.
pub(crate) fn open_models(data_dir: &DataDir) -> Result<ModelStore> {
    Ok(ModelStore::open_with_ollama(data_dir.models(), ollama_directories())?)
}

#[cfg(feature = "embedded")]
mod engine {
    use std::sync::Arc;

    use anyhow::{Context, Result};
    use bombus_http::{Sample, SampleKind};
    use bombus_infer::models::ModelStore;
    use bombus_infer::ollama::ChatTemplateRenderer;

    use super::EmbeddedConfig;
    use crate::platform;

    pub(super) type Engine = bombus_llama::EmbeddedBackend;

    pub(super) fn renderer() -> Option<Arc<dyn ChatTemplateRenderer>> {
        Some(Arc::new(bombus_llama::JinjaRenderer))
    }

    pub(super) fn start(config: &EmbeddedConfig, models: ModelStore) -> Result<Engine> {
        let program = platform::own_program().context("the path of this program is not known")?;
        Ok(Engine::start(config.clone(), models, program))
    }

    pub(super) async fn stop(engine: &Engine) {
        engine.shutdown().await;
    }

    pub(super) fn samples(backend: &str, engine: &Engine) -> Vec<Sample> {
        let state = engine.state();
        let sample = |name, kind, help, value| {
            let labels = vec![("backend", backend.to_owned())];
            Sample { name, kind, help, labels, value }
        };
        let requests = |word: &str, count: usize| {
            let help = "Requests that have a slot, and that wait for one or for their model";
            let mut sample = sample("engine_requests", SampleKind::Gauge, help, count as f64);
            sample.labels.push(("state", word.to_owned()));
            sample
        };
        let models = "Models in memory, each in an engine process";
        let memory = "Memory that these models may take, estimated from their files";
        let deaths = "Engine processes that ended without being told to";
        vec![
            sample("engine_models", SampleKind::Gauge, models, state.models as f64),
            sample("engine_memory_bytes", SampleKind::Gauge, memory, state.memory_bytes as f64),
            requests("running", state.running),
            requests("waiting", state.waiting),
            sample("engine_deaths", SampleKind::Counter, deaths, state.deaths as f64),
        ]
    }
}

/// Stands for the engine in builds without it: it cannot be started, so no value of it exists.
#[cfg(not(feature = "embedded"))]
mod engine {
    use std::sync::Arc;

    use anyhow::Result;
    use async_trait::async_trait;
    use bombus_core::chat::{ChatRequest, EmbedRequest, EmbedResponse};
    use bombus_core::model::ModelInfo;
    use bombus_http::Sample;
    use bombus_infer::models::ModelStore;
    use bombus_infer::ollama::ChatTemplateRenderer;
    use bombus_infer::{Backend, BackendError, ChatStream, Health};

    use super::{EmbeddedConfig, Exit, Failure};

    pub(super) enum Engine {}

    pub(super) fn renderer() -> Option<Arc<dyn ChatTemplateRenderer>> {
        None
    }

    pub(super) fn start(_config: &EmbeddedConfig, _models: ModelStore) -> Result<Engine> {
        Err(Failure::new(
            Exit::Usage,
            "this build of bombus has no embedded engine, and the configuration asks for one",
        )
        .hint("build it with the cargo feature `embedded`, or configure other [[backends]]")
        .into())
    }

    pub(super) async fn stop(engine: &Engine) {
        match *engine {}
    }

    pub(super) fn samples(_backend: &str, engine: &Engine) -> Vec<Sample> {
        match *engine {}
    }

    #[async_trait]
    impl Backend for Engine {
        async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
            match *self {}
        }

        async fn chat(&self, _request: ChatRequest) -> Result<ChatStream, BackendError> {
            match *self {}
        }

        async fn embed(&self, _request: EmbedRequest) -> Result<EmbedResponse, BackendError> {
            match *self {}
        }

        async fn health(&self) -> Health {
            match *self {}
        }
    }
}
