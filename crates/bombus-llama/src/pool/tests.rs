mod logs;

use std::path::Path;
use std::time::Duration;

use bombus_core::chat::{EmbedInput, KeepAlive};
use bombus_infer::BackendError;
use bombus_infer::models::LocalModel;
use tempfile::TempDir;
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{EngineState, Lease, Machine, Pool, PoolHandle, backoff};
use crate::EmbeddedConfig;
use crate::child::RunFailure;
use crate::scripted::{self, request, starts};

const LIMIT: Duration = Duration::from_secs(30);
/// What a process needs beside its model, in MB.
const PROCESS_MB: u64 = 96;

/// A pool over scripted engines.
struct Bench {
    folder: TempDir,
    pool: PoolHandle,
    _stop: DropGuard,
}

impl Bench {
    /// Starts a pool that may use this memory.
    fn with_memory(memory_mb: u64) -> Self {
        Self::with(EmbeddedConfig { memory_mb, ..EmbeddedConfig::default() })
    }

    fn with(config: EmbeddedConfig) -> Self {
        let stop = CancellationToken::new();
        let machine = Machine { ram_mb: 1_000, cores: 1 };
        let (pool, handle) = Pool::new(config, machine, scripted::program().to_owned(), stop.clone());
        // Ends with the guard; where it fails, every request does.
        tokio::spawn(pool.run());
        Self { folder: tempfile::tempdir().unwrap(), pool: handle, _stop: stop.drop_guard() }
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn model(&self, name: &str, script: &str) -> LocalModel {
        scripted::model(self.folder(), name, 100, script)
    }

    async fn acquire(&self, model: &LocalModel) -> Result<Lease, BackendError> {
        timeout(LIMIT, self.pool.acquire(model.clone(), None)).await.expect("the pool answers in time")
    }

    /// Has the process of a model die, and waits for the news.
    async fn kill(&self, model: &LocalModel) {
        let lease = self.acquire(model).await.unwrap();
        let died = async {
            let mut run = lease.process.chat(request("die")).await.unwrap();
            while let Some(Ok(_)) = run.next().await {}
        };
        timeout(LIMIT, died).await.unwrap();
    }
}

/// Returns whether the process behind a lease answers.
async fn answers(lease: &Lease) -> bool {
    match lease.process.chat(request("Hi")).await {
        Ok(mut run) => matches!(timeout(LIMIT, run.next()).await.unwrap(), Some(Ok(_))),
        Err(_) => false,
    }
}

#[test]
fn the_pause_after_a_death_grows_to_its_limit() {
    let pauses: Vec<u128> = [1, 2, 3, 8, 40].map(|deaths| backoff(deaths).as_millis()).to_vec();
    assert_eq!(pauses, [0, 500, 1_000, 30_000, 30_000]);
}

#[tokio::test]
async fn who_waits_for_a_process_that_dies_gets_its_successor() {
    for script in ["crash load", "vanish load"] {
        let bench = Bench::with_memory(1_000);
        let model = bench.model("a", script);
        let (one, two) = tokio::join!(bench.acquire(&model), bench.acquire(&model));
        let (one, two) = (one.unwrap(), two.unwrap());
        let answered = [answers(&one).await, answers(&two).await];
        // A process may still seem alive when it is handed out; the next request comes after the news of its death.
        assert!(script != "crash load" || answered == [true; 2]);
        let lease = bench.acquire(&model).await.unwrap();
        assert!(answers(&lease).await);
        assert_eq!((bench.pool.state(1).deaths, starts(&model)), (1, 2), "{script}");
    }
}

#[tokio::test]
async fn a_model_that_crashes_while_it_loads_is_named_and_given_pauses() {
    let bench = Bench::with_memory(1_000);
    let model = bench.model("a", "crash");
    // The pause begins with the second death, which is told a while later.
    let begun = Instant::now();
    let error = bench.acquire(&model).await.err();
    let Some(BackendError::ModelUnusable { reason, .. }) = error else { panic!("{error:?}") };
    assert!(reason.contains("died of signal"), "{reason}");
    assert_eq!(starts(&model), 2);
    assert!(bench.acquire(&model).await.is_err());
    assert!(begun.elapsed() >= Duration::from_millis(400), "there was no pause");
    assert_eq!(starts(&model), 3);
}

#[tokio::test]
async fn a_model_that_its_process_refuses_is_tried_at_every_request() {
    let bench = Bench::with_memory(1_000);
    let model = bench.model("a", "refuse refuse load");
    for _ in 0..2 {
        assert!(matches!(bench.acquire(&model).await.err(), Some(BackendError::OutOfMemory { .. })));
    }
    assert!(answers(&bench.acquire(&model).await.unwrap()).await);
    assert_eq!(bench.pool.state(1).deaths, 0);
}

#[tokio::test]
async fn a_processor_that_the_engine_cannot_use_is_told_in_place_of_a_crash() {
    let bench = Bench::with_memory(1_000);
    let model = bench.model("a", "unsuited");
    let error = bench.acquire(&model).await.err();
    let Some(BackendError::ModelUnusable { reason, .. }) = &error else { panic!("{error:?}") };
    assert!(reason.contains("this processor lacks AVX2") && reason.contains("use another backend"), "{reason}");
    assert_eq!((bench.pool.state(1).deaths, starts(&model)), (0, 1));
}

#[tokio::test]
async fn requests_wait_for_the_end_of_a_short_pause() {
    let bench = Bench::with_memory(1_000);
    let model = bench.model("a", "load");
    bench.kill(&model).await;
    // The pause begins with the second death, which is told a while later.
    let begun = Instant::now();
    bench.kill(&model).await;
    let (one, two) = tokio::join!(bench.acquire(&model), bench.acquire(&model));
    assert!(begun.elapsed() >= Duration::from_millis(400), "there was no pause");
    assert!(answers(&one.unwrap()).await && answers(&two.unwrap()).await);
    assert_eq!(starts(&model), 3);
}

#[tokio::test]
async fn an_embedding_fails_with_its_process_and_works_on_the_next() {
    let bench = Bench::with_memory(1_000);
    let model = bench.model("a", "load");
    let lease = bench.acquire(&model).await.unwrap();
    let embed = |lease: Lease, text: &'static str| async move {
        timeout(LIMIT, lease.process.embed(vec![EmbedInput::Text(text.into())], false)).await.unwrap()
    };
    let failure = embed(lease, "die").await;
    let Err(RunFailure::Died(reason)) = failure else { panic!("{failure:?}") };
    assert!(reason.contains("died of signal"), "{reason}");
    let lease = bench.acquire(&model).await.unwrap();
    assert_eq!(embed(lease, "Hi").await.unwrap().vectors, [[1.0]]);
}

#[tokio::test]
async fn a_model_gets_its_turn_though_another_is_never_idle() {
    let bench = Bench::with_memory(100 + PROCESS_MB);
    let (busy, wanted) = (bench.model("busy", "load"), bench.model("wanted", "load"));
    let mut held = bench.acquire(&busy).await.unwrap();
    let (pool, other) = (bench.pool.clone(), wanted.clone());
    let mut turn = tokio::spawn(async move { pool.acquire(other, None).await });
    // Each request comes before the last is done, as with steady traffic.
    let lease = timeout(LIMIT, async {
        loop {
            tokio::select! {
                biased;
                lease = &mut turn => return lease.unwrap().unwrap(),
                lease = bench.acquire(&busy) => held = lease.unwrap(),
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
            if let Ok(next) = timeout(Duration::from_millis(100), bench.acquire(&busy)).await {
                held = next.unwrap();
            } else {
                // It is held back, so the last request ends.
                break;
            }
        }
        drop(held);
        turn.await.unwrap().unwrap()
    })
    .await
    .expect("the other model gets its turn");
    assert!(answers(&lease).await);
    drop(lease);
    assert!(answers(&bench.acquire(&busy).await.unwrap()).await, "and then the first again");
}

#[tokio::test]
async fn nothing_is_unloaded_where_that_would_not_make_enough_room() {
    let bench = Bench::with_memory(2 * (100 + PROCESS_MB));
    let (held, idle) = (bench.model("held", "load"), bench.model("idle", "load"));
    let large = scripted::model(bench.folder(), "large", 200, "load");
    let lease = bench.acquire(&held).await.unwrap();
    drop(bench.acquire(&idle).await.unwrap());
    let (pool, other) = (bench.pool.clone(), large.clone());
    let waiting = tokio::spawn(async move { pool.acquire(other, None).await });
    // Requests are served in turn, so the pool has seen the one for the large model when it answers this one.
    tokio::task::yield_now().await;
    assert!(answers(&bench.acquire(&held).await.unwrap()).await);
    assert!(bench.pool.is_warm(&idle.path));
    drop(lease);
    assert!(answers(&timeout(LIMIT, waiting).await.unwrap().unwrap().unwrap()).await);
    assert!(!bench.pool.is_warm(&idle.path));
}

#[tokio::test]
async fn the_longest_unused_model_leaves_whichever_was_loaded_first() {
    let bench = Bench::with_memory(2 * (100 + PROCESS_MB));
    let [a, b, c] = ["a", "b", "c"].map(|name| bench.model(name, "load"));
    for model in [&a, &b, &a] {
        drop(bench.acquire(model).await.unwrap());
    }
    let warm = || [&a, &b, &c].map(|model| bench.pool.is_warm(&model.path));
    drop(bench.acquire(&c).await.unwrap());
    assert_eq!(warm(), [true, false, true], "a was used after b");
    drop(bench.acquire(&b).await.unwrap());
    assert_eq!(warm(), [false, true, true], "c was used after a");
}

#[tokio::test]
async fn a_model_is_loaded_only_when_the_one_that_left_for_it_is_gone() {
    let bench = Bench::with_memory(100 + PROCESS_MB);
    let models = [bench.model("a", "alone"), bench.model("b", "alone")];
    for model in models.iter().cycle().take(6) {
        assert!(answers(&bench.acquire(model).await.unwrap()).await);
    }
    assert_eq!(bench.pool.state(1).deaths, 0);
}

#[tokio::test]
async fn what_there_is_to_do_is_known_without_asking() {
    let bench = Bench::with_memory(100 + PROCESS_MB);
    let (busy, wanted) = (bench.model("busy", "load"), bench.model("wanted", "load"));
    let nothing = EngineState { models: 0, memory_bytes: 0, running: 0, waiting: 0, deaths: 0 };
    assert_eq!(bench.pool.state(1), nothing);
    let lease = bench.acquire(&busy).await.unwrap();
    let one = EngineState { models: 1, memory_bytes: (100 + PROCESS_MB) << 20, ..nothing };
    assert_eq!(bench.pool.state(1), one);

    let runs = [lease.process.chat(request("hold")).await.unwrap(), lease.process.chat(request("hold")).await.unwrap()];
    assert_eq!(bench.pool.state(1), EngineState { running: 1, waiting: 1, ..one });
    let pool = bench.pool.clone();
    let waiting = tokio::spawn(async move { pool.acquire(wanted, None).await.map(drop) });
    // Requests are served in turn, so the pool has seen the one for memory when it answers this one.
    tokio::task::yield_now().await;
    drop(bench.acquire(&busy).await.unwrap());
    assert_eq!(bench.pool.state(2), EngineState { running: 2, waiting: 1, ..one });
    drop((runs, lease));
    timeout(LIMIT, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(bench.pool.state(2), one, "the other model has its place");
}

#[tokio::test]
async fn requests_to_a_pool_that_failed_are_told_so() {
    let stop = CancellationToken::new();
    let machine = Machine { ram_mb: 1_000, cores: 1 };
    let (pool, handle) = Pool::new(EmbeddedConfig::default(), machine, scripted::program().to_owned(), stop.clone());
    drop(pool);
    let folder = tempfile::tempdir().unwrap();
    let model = scripted::model(folder.path(), "a", 1, "load");
    let error = handle.acquire(model.clone(), None).await.err().unwrap();
    assert!(error.to_string().contains("restart the node"), "{error}");
    stop.cancel();
    let error = handle.acquire(model, None).await.err().unwrap();
    assert!(error.to_string().contains("shutting down"), "{error}");
}

#[tokio::test]
async fn no_more_requests_wait_for_a_model_than_may() {
    let bench =
        Bench::with(EmbeddedConfig { memory_mb: 100 + PROCESS_MB, slots: 1, queue: 2, ..EmbeddedConfig::default() });
    let (held, wanted) = (bench.model("held", "load"), bench.model("wanted", "load"));
    let lease = bench.acquire(&held).await.unwrap();
    let requests: Vec<_> = (0..5)
        .map(|_| {
            let (pool, model) = (bench.pool.clone(), wanted.clone());
            tokio::spawn(async move { pool.acquire(model, None).await.map(drop) })
        })
        .collect();
    tokio::task::yield_now().await;
    assert!(answers(&bench.acquire(&held).await.unwrap()).await);
    drop(lease);
    let mut refused = 0;
    for request in requests {
        match timeout(LIMIT, request).await.unwrap().unwrap() {
            Ok(()) => {}
            Err(BackendError::Overloaded { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(refused, 2);
}

async fn leaves(bench: &Bench, model: &LocalModel) {
    let gone = async {
        while bench.pool.is_warm(&model.path) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, gone).await.expect("the model leaves");
}

#[tokio::test]
async fn a_model_that_is_not_to_be_kept_leaves_with_its_last_request() {
    let bench = Bench::with_memory(1_000);
    let model = bench.model("a", "load");
    let keep = |keep| timeout(LIMIT, bench.pool.acquire(model.clone(), keep));
    let first = keep(Some(KeepAlive::Seconds(0))).await.unwrap().unwrap();
    let second = bench.acquire(&model).await.unwrap();
    drop(first);
    // The second said nothing, so it is kept as the configuration says.
    drop(second);
    assert!(answers(&bench.acquire(&model).await.unwrap()).await);
    let running = bench.pool.running().await.unwrap();
    assert!(matches!(&running[..], [engine] if engine.expires_in.is_some_and(|rest| rest > Duration::from_secs(200))));

    let held = keep(Some(KeepAlive::Forever)).await.unwrap().unwrap();
    assert_eq!(bench.pool.running().await.unwrap()[0].expires_in, None);
    bench.pool.unload(model.path.clone()).await.unwrap();
    assert!(answers(&held).await, "a running request is not disturbed");
    drop(held);
    leaves(&bench, &model).await;
    assert!(bench.pool.running().await.unwrap().is_empty());
    assert_eq!(starts(&model), 1);
}

#[tokio::test]
async fn names_for_the_same_weights_share_a_process() {
    let bench = Bench::with_memory(1_000);
    let model = bench.model("a", "load");
    let other = LocalModel { name: bombus_core::model::ModelName::parse("b").unwrap(), ..model.clone() };
    let (one, two) = (bench.acquire(&model).await.unwrap(), bench.acquire(&other).await.unwrap());
    assert!(answers(&one).await && answers(&two).await);
    assert_eq!(starts(&model), 1);
    let names: Vec<String> =
        bench.pool.running().await.unwrap().iter().map(|engine| engine.model.name.to_string()).collect();
    assert_eq!(names, ["b:latest"]);
}
