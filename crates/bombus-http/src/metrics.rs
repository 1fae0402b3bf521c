//! What `/metrics` shows, in the OpenMetrics text format.
//!
//! Every label has a bounded set of values: route templates, methods, status classes, the backends of the configuration, and the names of
//! the first [`MODEL_LABELS_MAX`] models that were asked. Models beyond these are counted together, since clients may make and remove as
//! many names as they like. Nothing else that a client writes becomes a label.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_core::model::ModelName;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Counts what a node does. Clones count together.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

/// A value that another part of the node reports when it is asked, for example how much memory a model takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Name in snake case with its unit last, without the prefix `bombus_`, and without the `_total` that counters get.
    pub name: &'static str,
    /// How the value moves; the same for all samples of one name.
    pub kind: SampleKind,
    /// What it means, in one sentence without the full stop.
    pub help: &'static str,
    /// Labels with values from a bounded set.
    pub labels: Vec<(&'static str, String)>,
    /// The value now.
    pub value: f64,
}

/// How a sample's value moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleKind {
    /// Up and down.
    Gauge,
    /// Up only, from zero at the start of the node.
    Counter,
}

type Source = Box<dyn Fn() -> Vec<Sample> + Send + Sync>;
type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

struct Inner {
    registry: Registry,
    sources: Arc<Sources>,
    /// Models whose names are labels.
    models: Mutex<HashSet<String>>,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Histograms<RouteLabels>,
    requests_in_flight: Gauge,
    answers_running: Gauge,
    prompt_tokens: Family<ModelLabels, Counter>,
    cached_tokens: Family<ModelLabels, Counter>,
    completion_tokens: Family<ModelLabels, Counter>,
    first_token_seconds: Histograms<ModelLabels>,
    queue_seconds: Histograms<ModelLabels>,
    routed: Family<PlaceLabels, Counter>,
    continued: Family<PlaceLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    method: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

/// Whether it was this node or another one. Which other one is not told: nodes come and go.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PlaceLabels {
    place: &'static str,
}

impl PlaceLabels {
    fn of(remote: bool) -> Self {
        Self { place: if remote { "remote" } else { "local" } }
    }
}

/// How many names of models become labels, until the node starts again.
const MODEL_LABELS_MAX: usize = 256;
/// What stands for all further models. It is the name of none: those have a tag.
const OTHER: &str = "other";
/// What stands for the backends of all other nodes.
const PEER: &str = "peer";

/// Names a backend as labels do: other nodes' are all one, since nobody here bounds how many names those have.
fn label_of(node: Option<&NodeId>, backend: &str) -> String {
    if node.is_some() { PEER.to_owned() } else { backend.to_owned() }
}

/// The model and the backend that ran it, by the names that the node itself has for them; made by [`Metrics::labels`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ModelLabels {
    model: String,
    backend: String,
}

impl ModelLabels {
    /// Returns what stands for the backend.
    pub(crate) fn backend(&self) -> &str {
        &self.backend
    }

    /// Another backend runs the model now.
    pub(crate) fn move_to(&mut self, node: Option<&NodeId>, backend: &str) {
        self.backend = label_of(node, backend);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Starts all counts at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut inner = Inner {
            registry: Registry::with_prefix("bombus"),
            sources: Arc::default(),
            models: Mutex::default(),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(request_buckets),
            requests_in_flight: Gauge::default(),
            answers_running: Gauge::default(),
            prompt_tokens: Family::default(),
            cached_tokens: Family::default(),
            completion_tokens: Family::default(),
            first_token_seconds: Family::new_with_constructor(token_buckets),
            queue_seconds: Family::new_with_constructor(token_buckets),
            routed: Family::default(),
            continued: Family::default(),
        };
        let registry = &mut inner.registry;
        registry.register("http_requests", "HTTP requests finished", inner.requests.clone());
        registry.register_with_unit(
            "http_request",
            "Time from a request's head to the end of its answer",
            Unit::Seconds,
            inner.request_seconds.clone(),
        );
        registry.register("http_requests_in_flight", "HTTP requests begun", inner.requests_in_flight.clone());
        registry.register("answers_running", "Answers being generated", inner.answers_running.clone());
        registry.register("prompt_tokens", "Tokens read", inner.prompt_tokens.clone());
        registry.register("cached_tokens", "Prompt tokens that were not computed again", inner.cached_tokens.clone());
        registry.register("completion_tokens", "Tokens written", inner.completion_tokens.clone());
        registry.register_with_unit(
            "first_token",
            "Time from a request to its first token",
            Unit::Seconds,
            inner.first_token_seconds.clone(),
        );
        registry.register_with_unit(
            "queue",
            "Time spent waiting for a slot",
            Unit::Seconds,
            inner.queue_seconds.clone(),
        );
        registry.register(
            "requests_routed",
            "Requests for answers and vectors that a backend here or another node took on",
            inner.routed.clone(),
        );
        registry.register(
            "answers_continued",
            "Answers that broke off and with which a backend here or another node went on",
            inner.continued.clone(),
        );
        registry.register_collector(Box::new(inner.sources.clone()));
        Self(Arc::new(inner))
    }

    /// Adds a source of samples, asked each time that `/metrics` is read. It must not block.
    pub fn add_source(&self, source: impl Fn() -> Vec<Sample> + Send + Sync + 'static) {
        self.0.sources.0.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(source));
    }

    /// Returns how many answers are being generated.
    #[must_use]
    pub fn answers_running(&self) -> u64 {
        self.0.answers_running.get().max(0).unsigned_abs()
    }

    pub(crate) fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(8 << 10);
        prometheus_client::encoding::text::encode(&mut text, &self.0.registry)?;
        Ok(text)
    }

    /// Names a model, and the backend of this node or of another one that runs it, as labels do.
    pub(crate) fn labels(&self, model: &ModelName, node: Option<&NodeId>, backend: &str) -> ModelLabels {
        let mut models = self.0.models.lock().unwrap_or_else(PoisonError::into_inner);
        let model = model.to_string();
        let is_label = models.contains(&model) || models.len() < MODEL_LABELS_MAX && models.insert(model.clone());
        ModelLabels { model: if is_label { model } else { OTHER.to_owned() }, backend: label_of(node, backend) }
    }

    pub(crate) fn request_begun(&self) {
        self.0.requests_in_flight.inc();
    }

    pub(crate) fn request_ended(&self, route: &str, method: &'static str, status: &'static str, took: Duration) {
        let inner = &self.0;
        inner.requests_in_flight.dec();
        inner.requests.get_or_create(&RequestLabels { route: route.to_owned(), method, status }).inc();
        inner.request_seconds.get_or_create(&RouteLabels { route: route.to_owned() }).observe(took.as_secs_f64());
    }

    /// Counts a request that was refused before it could be begun; how long that took is not known.
    pub(crate) fn request_refused_unread(&self, route: &str, method: &'static str, status: &'static str) {
        self.0.requests.get_or_create(&RequestLabels { route: route.to_owned(), method, status }).inc();
    }

    pub(crate) fn answer_begun(&self) {
        self.0.answers_running.inc();
    }

    pub(crate) fn answer_ended(&self) {
        self.0.answers_running.dec();
    }

    pub(crate) fn routed(&self, remote: bool) {
        self.0.routed.get_or_create(&PlaceLabels::of(remote)).inc();
    }

    pub(crate) fn continued(&self, remote: bool) {
        self.0.continued.get_or_create(&PlaceLabels::of(remote)).inc();
    }

    pub(crate) fn first_token(&self, labels: &ModelLabels, after: Duration) {
        self.0.first_token_seconds.get_or_create(labels).observe(after.as_secs_f64());
    }

    pub(crate) fn queued(&self, labels: &ModelLabels, queue_ms: f64) {
        self.0.queue_seconds.get_or_create(labels).observe(queue_ms / 1000.0);
    }

    pub(crate) fn tokens_read(&self, labels: &ModelLabels, prompt: u32, cached: u32) {
        self.0.prompt_tokens.get_or_create(labels).inc_by(prompt.into());
        self.0.cached_tokens.get_or_create(labels).inc_by(cached.into());
    }

    pub(crate) fn tokens_written(&self, labels: &ModelLabels, count: u32) {
        self.0.completion_tokens.get_or_create(labels).inc_by(count.into());
    }
}

fn request_buckets() -> Histogram {
    Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0])
}

fn token_buckets() -> Histogram {
    Histogram::new([0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0])
}

#[derive(Default)]
struct Sources(RwLock<Vec<Source>>);

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

impl Collector for Sources {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families: BTreeMap<&'static str, Vec<Sample>> = BTreeMap::new();
        for source in self.0.read().unwrap_or_else(PoisonError::into_inner).iter() {
            for sample in source() {
                families.entry(sample.name).or_default().push(sample);
            }
        }
        for (name, samples) in families {
            let help = format!("{}.", samples[0].help);
            let kind = samples[0].kind;
            let metric_type = match kind {
                SampleKind::Gauge => MetricType::Gauge,
                SampleKind::Counter => MetricType::Counter,
            };
            let mut family = encoder.encode_descriptor(name, &help, None, metric_type)?;
            for sample in &samples {
                let mut metric = family.encode_family(&sample.labels)?;
                match kind {
                    SampleKind::Gauge => metric.encode_gauge(&sample.value)?,
                    SampleKind::Counter => metric.encode_counter::<NoLabelSet, _, u64>(&sample.value, None)?,
                }
            }
        }
        Ok(())
    }
}
