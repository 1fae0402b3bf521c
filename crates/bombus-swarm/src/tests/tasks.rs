//! Durable tasks, on whole nodes with real connections on the loopback address.

mod faults;
mod following;
mod generations;
mod parts;
mod sealing;
mod sharing;
mod telling;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bombus_core::chat::{
    ChatEvent, ChatRequest, Delta, EmbedRequest, EmbedResponse, FinishReason, Message, Prompt, Timings, Usage,
};
use bombus_core::identity::{NodeId, NodeKey};
use bombus_core::model::{ModelCapability, ModelInfo, ModelName};
use bombus_core::tasks::report::TaskReport;
use bombus_core::tasks::{TaskId, TaskStatus};
use bombus_infer::{Backend, BackendError, Backends, ChatStream, Health, NamedBackend};
use futures::StreamExt;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::db::config as db_config;
use super::harness::{LIMIT, Mesh, Node, until_it_shows};
use super::hasty;
use crate::db::db;
use crate::route::{RunConfig, ShareConfig, route};
use crate::seal::SealKey;
use crate::tasks::{Submission, TaskRunCounts, TaskRuns, TasksConfig, TasksError, TasksHandle, Work, tasks};
use crate::{EventItem, EventStream, SwarmConfig, SwarmEvent};

/// Longest wait for a task to end, attempts, leases and grace times included.
const TASK_LIMIT: Duration = Duration::from_secs(240);

/// Settings with a tenth of the usual times.
fn hasty_tasks() -> TasksConfig {
    TasksConfig {
        lease_ms: 1_500,
        renew_ms: 500,
        grace_ms: 3_000,
        rank_step_ms: 100,
        settle_ms: 200,
        bid_ms: 200,
        backoff_ms: 50,
        ..TasksConfig::default()
    }
}

/// As [`hasty_tasks`], with leases that no busy machine lets run out: for tests in which nobody dies.
fn calm_tasks() -> TasksConfig {
    TasksConfig { lease_ms: 60_000, renew_ms: 20_000, grace_ms: 120_000, ..hasty_tasks() }
}

/// How a [`Model`] behaves from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// It says what it was asked, word by word.
    Echo,
    /// It says the first word, and then nothing.
    Hang,
    /// It breaks off after the first word where the prompt has this one.
    FailOn(&'static str),
    /// It refuses everything.
    Refuse,
}

/// A model that counts what it is asked.
struct Model {
    name: &'static str,
    mood: watch::Sender<Mood>,
    word_ms: AtomicU64,
    running: Arc<AtomicU32>,
    asked: Mutex<BTreeMap<String, u32>>,
}

struct Counted(Arc<AtomicU32>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Model {
    fn new(mood: Mood) -> Arc<Self> {
        Self::named("echo", mood)
    }

    fn named(name: &'static str, mood: Mood) -> Arc<Self> {
        let mood = watch::Sender::new(mood);
        Arc::new(Self { name, mood, word_ms: AtomicU64::new(0), running: Arc::default(), asked: Mutex::default() })
    }

    fn check(&self) -> Result<(), BackendError> {
        if *self.mood.borrow() == Mood::Refuse { Err(refusal()) } else { Ok(()) }
    }

    fn running(&self) -> u32 {
        self.running.load(Ordering::SeqCst)
    }

    /// How often each prompt was asked.
    fn asked(&self) -> BTreeMap<String, u32> {
        self.asked.lock().unwrap().clone()
    }

    fn asked_in_all(&self) -> u32 {
        self.asked().values().sum()
    }
}

fn refusal() -> BackendError {
    BackendError::InvalidRequest { param: None, message: "as the test wants".to_owned() }
}

fn prompt_of(request: &ChatRequest) -> String {
    match &request.prompt {
        Prompt::Chat(messages) => messages.last().map(Message::joined_text).unwrap_or_default(),
        Prompt::Raw(text) => text.clone(),
        Prompt::Tokens(_) => String::new(),
    }
}

#[async_trait]
impl Backend for Model {
    async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
        let info = ModelInfo::named(ModelName::parse(self.name).unwrap());
        let capabilities = vec![ModelCapability::Completion, ModelCapability::Embedding];
        Ok(vec![ModelInfo { capabilities, warm: true, ..info }])
    }

    async fn chat(&self, request: ChatRequest) -> Result<ChatStream, BackendError> {
        self.check()?;
        let prompt = prompt_of(&request);
        *self.asked.lock().unwrap().entry(prompt.clone()).or_default() += 1;
        self.running.fetch_add(1, Ordering::SeqCst);
        let counted = Counted(Arc::clone(&self.running));
        let mut mood = self.mood.subscribe();
        let pause = Duration::from_millis(self.word_ms.load(Ordering::SeqCst));
        let words: Vec<String> = prompt.split_inclusive(' ').map(str::to_owned).collect();
        let count = u32::try_from(words.len()).unwrap();
        Ok(async_stream::stream! {
            let _counted = counted;
            for (index, word) in words.into_iter().enumerate() {
                if index > 0 {
                    let now = *mood.borrow_and_update();
                    if matches!(now, Mood::FailOn(text) if prompt.contains(text)) {
                        yield Err(refusal());
                        return;
                    }
                    drop(mood.wait_for(|mood| *mood != Mood::Hang).await);
                }
                if !pause.is_zero() {
                    sleep(pause).await;
                }
                yield Ok(ChatEvent::Delta(Delta::text(word)));
            }
            let usage = Usage { prompt_tokens: count, completion_tokens: count, ..Usage::default() };
            yield Ok(ChatEvent::Done { finish: FinishReason::Stop, usage, timings: Timings::default(), tokens: Vec::new() });
        }
        .boxed())
    }

    async fn embed(&self, request: EmbedRequest) -> Result<EmbedResponse, BackendError> {
        self.check()?;
        Ok(EmbedResponse::new(vec![vec![0.5, 0.25]; request.inputs.len()], 3))
    }

    async fn health(&self) -> Health {
        Health::Ready
    }
}

fn backend(name: &str, model: &Arc<Model>) -> NamedBackend {
    NamedBackend::new(name, "fake", Arc::clone(model) as Arc<dyn Backend>)
}

/// A node with tasks.
struct Working {
    node: Node,
    backends: Backends,
    tasks: TasksHandle,
    runs: TaskRuns,
    /// In the order in which they are stopped.
    parts: Vec<(CancellationToken, JoinHandle<()>)>,
    directory: TempDir,
}

impl Working {
    /// Starts a node that has a model, or has none.
    async fn start(number: u8, seeds: &[&Working], model: Option<&Arc<Model>>) -> Self {
        Self::start_with(number, seeds, model, hasty_tasks(), TempDir::new().unwrap()).await
    }

    /// As [`Working::start`], for tests in which nobody dies: however busy the machine is, nobody is taken for dead, and what runs is not begun anew.
    async fn start_calmly(number: u8, seeds: &[&Working], model: Option<&Arc<Model>>) -> Self {
        let (named, directory) = (model.map(|model| backend("model", model)), TempDir::new().unwrap());
        let (named, share) = (named.into_iter().collect(), ShareConfig::default());
        Self::start_on(SwarmConfig::default(), number, seeds, named, share, calm_tasks(), directory).await
    }

    async fn start_with(
        number: u8,
        seeds: &[&Working],
        model: Option<&Arc<Model>>,
        config: TasksConfig,
        directory: TempDir,
    ) -> Self {
        let named = model.map(|model| backend("model", model)).into_iter().collect();
        Self::start_on(hasty(), number, seeds, named, ShareConfig::default(), config, directory).await
    }

    async fn start_on(
        swarm: SwarmConfig,
        number: u8,
        seeds: &[&Working],
        backends: Vec<NamedBackend>,
        share: ShareConfig,
        config: TasksConfig,
        directory: TempDir,
    ) -> Self {
        let seeds: Vec<&Mesh> = seeds.iter().map(|seed| &seed.node.mesh).collect();
        let node = Node::start_with(number, &seeds, swarm).await;
        let backends = Backends::new(backends);
        for own in backends.all() {
            backends.refresh(&own.name).await;
        }
        let (net, swarm) = (node.mesh.net.clone(), node.swarm.clone());
        let share = RunConfig { share, ..RunConfig::default() };
        let (route, route_service) = route(share, net.clone(), swarm.clone(), backends.clone());
        let (db, db_service) = db(db_config(), net.clone(), directory.path()).unwrap();
        let key = Arc::new(NodeKey::from_secret(&[number; 32]));
        let seal_key = SealKey::from_secret(&[number; 32]);
        let claim = seal_key.public().claimed_by(&key);
        node.facts.send_modify(|facts| facts.seal_key = Some(claim));
        let runs = TaskRuns::default();
        let (tasks, service) = tasks(config, net, swarm, backends.clone(), route, db, key, seal_key, runs.clone());
        let stops: [CancellationToken; 3] = std::array::from_fn(|_| CancellationToken::new());
        let running = [
            tokio::spawn(service.run(stops[0].clone())),
            tokio::spawn(route_service.run(stops[1].clone())),
            tokio::spawn(db_service.run(stops[2].clone())),
        ];
        let working = Self { node, backends, tasks, runs, parts: stops.into_iter().zip(running).collect(), directory };
        timeout(LIMIT, working.tasks.size()).await.expect("the store opens").unwrap();
        working
    }

    fn id(&self) -> NodeId {
        self.node.id()
    }

    /// Waits until this node knows what another one offers.
    async fn knows(&self, peer: &Working) {
        self.node.sees_whole(&peer.id()).await;
        let offers = || {
            let states = self.backends.states();
            states.iter().any(|state| state.node.as_ref() == Some(&peer.id()) && state.ready && state.models > 0)
        };
        let told_its_key = || self.node.swarm.seal_key(&peer.id()).is_some();
        until_it_shows(|| async {}, || offers() && told_its_key()).await;
    }

    async fn submit(&self, prompt: &str) -> TaskId {
        self.tasks.submit(Submission::prompt("echo", prompt)).await.unwrap().id
    }

    /// Waits for the end of a task, and returns it.
    async fn ends(&self, id: &TaskId) -> TaskReport {
        match timeout(TASK_LIMIT, self.tasks.wait(id)).await {
            Ok(report) => report.unwrap(),
            Err(_) => panic!("it does not end: {:#?}", self.tasks.report(id).await),
        }
    }

    /// Waits until a task stands in a certain way here.
    async fn sees(&self, id: &TaskId, looks: impl Fn(&TaskReport) -> bool) -> TaskReport {
        let shown = async {
            loop {
                match self.tasks.report(id).await {
                    Ok(report) if looks(&report) => return report,
                    Ok(_) | Err(TasksError::UnknownTask(_)) => sleep(Duration::from_millis(10)).await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        match timeout(TASK_LIMIT, shown).await {
            Ok(report) => report,
            Err(_) => panic!("it does not become so: {:#?}", self.tasks.report(id).await),
        }
    }

    async fn response(&self, id: &TaskId) -> String {
        let result = timeout(LIMIT, self.tasks.result(id)).await.expect("the result can be had");
        result.unwrap().expect("there is one").response
    }

    /// Ends it without a word, as a crash does; what it stored is left.
    async fn crash(self) -> TempDir {
        self.tasks.cut_off();
        self.node.crash().await;
        // What was stored is let go as at the end of a process; nobody hears of it.
        for (stop, part) in self.parts {
            stop.cancel();
            drop(timeout(LIMIT, part).await);
        }
        self.directory
    }

    async fn stop(self) -> TempDir {
        self.tasks.drain(Duration::from_secs(1)).await;
        for (stop, part) in self.parts {
            stop.cancel();
            timeout(LIMIT, part).await.expect("a part stops").unwrap();
        }
        self.node.stop().await;
        self.directory
    }
}

/// Waits for an event of a kind about a task.
async fn event_of(events: &mut EventStream, kind: &str, task: &TaskId) -> SwarmEvent {
    let found = async {
        loop {
            match events.next().await {
                Some(EventItem::Event(event)) if event.kind == kind && event.data["task_id"] == task.as_str() => {
                    return event;
                }
                Some(EventItem::Event(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    timeout(LIMIT, found).await.unwrap_or_else(|_| panic!("no {kind} of {task}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_runs_its_own_task() {
    let model = Model::new(Mood::Echo);
    let node = Working::start_calmly(1, &[], Some(&model)).await;
    let mut events = node.node.swarm.events(None);
    let submitted = node.tasks.submit(Submission::prompt("echo", "hello you there")).await.unwrap();
    assert_ne!(submitted.status, TaskStatus::Pending, "its first entry says who has it");
    let report = node.ends(&submitted.id).await;
    assert_eq!((report.status, report.settled, report.attempt), (TaskStatus::Completed, true, 1));
    assert_eq!((report.worker.as_deref(), report.progress.done), (Some(node.id().as_str()), 1));
    assert_eq!(node.response(&submitted.id).await, "hello you there");
    let result = node.tasks.result(&submitted.id).await.unwrap().unwrap();
    assert_eq!((result.eval_count, result.model.as_str(), result.complete), (Some(3), "echo", true));
    for kind in ["task:created", "task:claimed", "task:completed"] {
        assert_eq!(event_of(&mut events, kind, &submitted.id).await.data["model"], "echo");
    }
    let vector = Work::Embedding { text: "text".to_owned() };
    let vector = node.tasks.submit(Submission::new("echo", vector)).await.unwrap().id;
    let ping = Work::Ping { payload: serde_json::json!({ "n": 1 }) };
    let ping = node.tasks.submit(Submission::new("", ping)).await.unwrap().id;
    assert_eq!(node.ends(&vector).await.status, TaskStatus::Completed);
    assert_eq!(node.tasks.result(&vector).await.unwrap().unwrap().embedding, Some(vec![0.5, 0.25]));
    assert_eq!(node.ends(&ping).await.status, TaskStatus::Completed);
    assert_eq!(node.response(&ping).await, "{\"n\":1}");
    assert_eq!(model.asked_in_all(), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_runs_where_the_model_is_and_is_read_anywhere() {
    let model = Model::new(Mood::Echo);
    let a = Working::start_calmly(1, &[], None).await;
    let b = Working::start_calmly(2, &[&a], Some(&model)).await;
    let c = Working::start_calmly(3, &[&a, &b], None).await;
    a.knows(&b).await;
    let begun = Instant::now();
    let id = a.submit("over there").await;
    let report = a.ends(&id).await;
    println!("two nodes: {:?}", begun.elapsed());
    assert_eq!((report.status, report.worker.as_deref()), (TaskStatus::Completed, Some(b.id().as_str())));
    assert_eq!(a.response(&id).await, "over there");
    let seen = c.sees(&id, |report| report.settled).await;
    assert_eq!((seen.status, seen.requester.as_str()), (TaskStatus::Completed, a.id().as_str()));
    assert_eq!(c.response(&id).await, "over there");
    assert_eq!(model.asked_in_all(), 1);
    for node in [a, b, c] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_tasks_run_once_each_on_two_workers() {
    let (left, right) = (Model::new(Mood::Echo), Model::new(Mood::Echo));
    let a = Working::start_calmly(1, &[], None).await;
    let b = Working::start_calmly(2, &[&a], Some(&left)).await;
    let c = Working::start_calmly(3, &[&a, &b], Some(&right)).await;
    a.knows(&b).await;
    a.knows(&c).await;
    let begun = Instant::now();
    let ids = futures::future::join_all((0..100).map(|number| {
        let a = &a;
        async move { a.submit(&format!("task {number}")).await }
    }));
    let ids = ids.await;
    let submitted = begun.elapsed();
    let ended = futures::future::join_all(ids.iter().map(|id| a.ends(id))).await;
    println!("100 tasks: submitted after {submitted:?}, ended after {:?}", begun.elapsed());
    let first = ended.iter().map(|report| report.created_at).min().unwrap();
    let after = |time: fn(&TaskReport) -> Option<u64>| {
        let mut times: Vec<u64> = ended.iter().filter_map(time).map(|time| time - first).collect();
        times.sort_unstable();
        [0, 25, 50, 75, 99].map(|place| times[place])
    };
    println!(
        "granted after {:?} ms, accepted after {:?} ms",
        after(|report| report.claimed_at),
        after(|report| report.completed_at)
    );
    assert!(ended.iter().all(|report| report.status == TaskStatus::Completed && report.settled));
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(a.response(id).await, format!("task {number}"));
    }
    let mut asked = left.asked();
    for (prompt, count) in right.asked() {
        *asked.entry(prompt).or_default() += count;
    }
    assert!(asked.len() == 100 && asked.values().all(|count| *count == 1), "{asked:?}");
    assert!(left.asked_in_all() > 0 && right.asked_in_all() > 0);
    for (node, model) in [(&b, &left), (&c, &right)] {
        let asked = u64::from(model.asked_in_all());
        assert_eq!(node.runs.now(), TaskRunCounts { begun: asked, completed: asked, ..TaskRunCounts::default() });
    }
    assert_eq!(a.runs.now(), TaskRunCounts::default(), "who asks does not work");
    for node in [a, b, c] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_key_twice_is_the_same_task_also_at_another_node_and_with_another_body_it_is_refused() {
    let model = Model::new(Mood::Echo);
    let a = Working::start_calmly(1, &[], Some(&model)).await;
    let b = Working::start_calmly(2, &[&a], None).await;
    let of_key =
        |prompt: &str| Submission { id: Some(TaskId::of_key("invoice 17")), ..Submission::prompt("echo", prompt) };
    let (one, other) = tokio::join!(a.tasks.submit(of_key("one")), a.tasks.submit(of_key("one")));
    let id = one.unwrap().id;
    assert_eq!(other.unwrap().id, id);
    a.ends(&id).await;
    assert_eq!(a.tasks.submit(of_key("one")).await.unwrap().status, TaskStatus::Completed);
    assert!(matches!(a.tasks.submit(of_key("two")).await, Err(TasksError::Conflict(_))));
    b.sees(&id, |report| report.settled).await;
    assert_eq!(b.tasks.submit(of_key("one")).await.unwrap().requester, a.id().as_str());
    assert!(matches!(b.tasks.submit(of_key("two")).await, Err(TasksError::Conflict(_))));
    assert_eq!(model.asked_in_all(), 1);
    for node in [a, b] {
        node.stop().await;
    }
}
