//! What this node tells others of itself, kept up to date beside its work.

use std::path::Path;
use std::time::Duration;

use bombus_http::NodeSample;
use bombus_infer::{BackendState, Backends};
use bombus_swarm::OwnFacts;
use bombus_swarm::route::RouteHandle;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, interval};

use crate::config::BackendConfig;

/// Time between two looks at what runs.
const RUNNING_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two looks at the lists of models.
const MODELS_INTERVAL: Duration = Duration::from_secs(5);
/// Time between two looks for programs.
const PROGRAMS_INTERVAL: Duration = Duration::from_secs(60);

/// Programs that can work on tasks, or run models, by the names of their commands.
const PROGRAMS: &[&str] = &[
    "aider",
    "amp",
    "claude",
    "codex",
    "copilot",
    "crush",
    "cursor-agent",
    "droid",
    "gemini",
    "goose",
    "llama-server",
    "lms",
    "ollama",
    "opencode",
    "qwen",
    "vllm",
];

/// Where the facts come from.
#[derive(Clone)]
pub(super) struct FactsSource {
    pub(super) backends: Backends,
    pub(super) route: RouteHandle,
    /// Requests that the configured backends take at a time, by the backend's name; none where nothing limits them.
    pub(super) slots: Vec<(String, Option<u32>)>,
    pub(super) sample: watch::Receiver<NodeSample>,
    pub(super) facts: watch::Sender<OwnFacts>,
}

/// Reads from the configuration how many requests each backend takes at a time.
pub(super) fn slots(backends: &[BackendConfig]) -> Vec<(String, Option<u32>)> {
    let of = |backend: &BackendConfig| {
        let own = match &backend.kind {
            #[cfg(feature = "embedded")]
            crate::config::BackendKind::Embedded(config) => Some(config.slots),
            _ => None,
        };
        let limits = own.into_iter().chain(backend.options.max_concurrent);
        (backend.name.clone(), limits.min())
    };
    backends.iter().map(of).collect()
}

impl FactsSource {
    /// Returns the work that keeps the facts up to date.
    pub(super) fn keep(self) -> impl Fn() -> BoxFuture<'static, ()> + Send + 'static {
        move || self.clone().keep_looking().boxed()
    }

    async fn keep_looking(self) {
        let mut ticks = interval(RUNNING_INTERVAL);
        let (mut models_due, mut programs_due) = (Instant::now(), Instant::now());
        loop {
            ticks.tick().await;
            let now = Instant::now();
            let models = if now >= models_due {
                models_due = now + MODELS_INTERVAL;
                Some(self.models().await)
            } else {
                None
            };
            let installed = if now >= programs_due {
                programs_due = now + PROGRAMS_INTERVAL;
                programs().await
            } else {
                None
            };
            let mut states = self.backends.states();
            states.retain(|state| state.node.is_none());
            let sample = self.sample.borrow().clone();
            self.backends.set_gpu_memory_mb(sample.hardware.best_gpu().map_or(0, |gpu| gpu.vram_total_mb));
            self.facts.send_if_modified(|facts| {
                let before = facts.clone();
                facts.hardware = sample.hardware;
                facts.cpu_percent = f64::from(sample.cpu_usage_percent);
                facts.running = states.iter().map(|state| state.running).sum();
                facts.backends = working(&states);
                facts.slots = sum_of_slots(&self.slots, &facts.backends);
                if let Some(models) = models {
                    facts.models = models;
                }
                if let Some(installed) = installed {
                    facts.installed = installed;
                }
                *facts != before
            });
        }
    }

    /// Names the models that every member may use.
    async fn models(&self) -> Vec<String> {
        let mut listed = self.backends.models().await;
        listed.retain(|listed| listed.node.is_none() && listed.first && self.route.is_for_all(listed));
        listed.into_iter().map(|listed| listed.info.name.to_string()).collect()
    }
}

/// Names the backends that can run models. An Ollama that was only looked for and has no models is none.
fn working(states: &[BackendState]) -> Vec<String> {
    let works = |state: &&BackendState| state.ready && (state.models > 0 || state.kind == "embedded");
    states.iter().filter(works).map(|state| state.name.clone()).collect()
}

/// Adds up what the working backends take at a time; 0 where nothing limits them.
fn sum_of_slots(slots: &[(String, Option<u32>)], working: &[String]) -> u32 {
    slots.iter().filter(|(name, _)| working.contains(name)).filter_map(|(_, slots)| *slots).sum()
}

/// Looks for programs; none where the look fails, so that what was seen before stays.
async fn programs() -> Option<Vec<String>> {
    let looked = spawn_blocking(|| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders: Vec<_> = std::env::split_paths(&path).collect();
        found_in(&folders)
    });
    looked.await.inspect_err(|error| tracing::warn!(%error, "programs could not be looked for")).ok()
}

fn found_in(folders: &[impl AsRef<Path>]) -> Vec<String> {
    let is_there = |name: &&&str| {
        let file = format!("{name}{}", std::env::consts::EXE_SUFFIX);
        folders.iter().any(|folder| crate::platform::is_program(&folder.as_ref().join(&file)))
    };
    PROGRAMS.iter().filter(is_there).map(|name| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(name: &str, kind: &'static str, ready: bool, models: usize) -> BackendState {
        BackendState {
            name: name.to_owned(),
            kind,
            node: None,
            node_name: None,
            peer: None,
            ready,
            error: None,
            breaker: "closed",
            retry_ms: None,
            running: 0,
            waiting: 0,
            max_concurrent: None,
            first_token_ms: None,
            tokens_per_second: None,
            models,
        }
    }

    #[test]
    fn only_backends_that_can_run_models_are_told() {
        let states = [
            state("embedded", "embedded", true, 0),
            state("ollama", "ollama", true, 0),
            state("cloud", "openai", true, 3),
            state("dead", "openai", false, 3),
        ];
        assert_eq!(working(&states), ["embedded", "cloud"]);
    }

    #[test]
    fn slots_of_backends_that_work_add_up() {
        let slots = [("a".to_owned(), Some(8)), ("b".to_owned(), None), ("c".to_owned(), Some(2))];
        assert_eq!(sum_of_slots(&slots, &["a".to_owned(), "b".to_owned()]), 8);
        assert_eq!(sum_of_slots(&slots, &["b".to_owned()]), 0);
    }

    #[cfg(unix)]
    #[test]
    fn programs_are_files_that_can_be_run() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        for (name, mode) in [("claude", 0o755), ("codex", 0o644), ("unknown", 0o755)] {
            let path = folder.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::fs::create_dir(folder.path().join("gemini")).unwrap();
        assert_eq!(found_in(&[folder.path()]), ["claude"]);
    }
}
