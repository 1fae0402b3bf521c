//! Tasks that do what a test wants.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use crate::tasks::{
    BatchPlace, DroppedGeneration, FailedAttempt, InferenceResult, KeptGeneration, NewTask, TaskChunk, TaskCounts,
    TaskFilter, TaskGeneration, TaskInfo, TaskNews, TaskNode, TaskPage, TaskProgress, TaskPrune, TaskResult, TaskRuns,
    TaskState, TaskType, Tasks, TasksError, TasksPruned, WhyKept,
};

/// The one task there is.
pub(crate) const ID: &str = "task-1";

/// One task, which remembers what was asked of it.
#[derive(Clone, Default)]
pub(crate) struct ScriptedTasks {
    /// Why a task that is submitted waits.
    pub(crate) waiting: Option<String>,
    pub(crate) news: Vec<TaskNews>,
    pub(crate) refusal: Option<TasksError>,
    /// Whether the task never ends.
    pub(crate) endless: bool,
    pub(crate) told: Arc<Mutex<Vec<String>>>,
    pub(crate) submitted: Arc<Mutex<Vec<NewTask>>>,
}

/// A task that one node has failed at and another one has done.
pub(crate) fn completed() -> TaskInfo {
    let node = |id: &str, name: &str| TaskNode { node_id: id.into(), hostname: name.into() };
    let result = InferenceResult {
        response: "Hello".into(),
        model: "m:latest".into(),
        total_duration_ms: Some(250.0),
        prompt_eval_count: Some(3),
        eval_count: Some(5),
        eval_duration_ms: Some(200.0),
        tokens_per_second: Some(25.0),
    };
    TaskInfo {
        task_id: ID.into(),
        task_type: TaskType::Inference,
        status: TaskState::Completed,
        settled: true,
        cancelling: false,
        result: Some(TaskResult::Inference(result)),
        error: None,
        duration_seconds: 1.5,
        node_id: Some("12D3KooWHive".into()),
        hostname: Some("hive".into()),
        model: Some("m:latest".into()),
        requester: node("12D3KooWSelf", "bee"),
        waiting: None,
        mine: true,
        created_at: 1_763_700_000.25,
        completed_at: Some(1_763_700_001.75),
        priority: 5,
        epoch: 2,
        encrypted: false,
        attempt: 2,
        attempts: vec![FailedAttempt {
            epoch: 1,
            worker: node("12D3KooWWasp", "wasp"),
            reason: "the connection ended".into(),
            at: 1_763_700_001.0,
        }],
        progress: TaskProgress { done: 1, total: 1, tokens: 5 },
        chunks: Vec::new(),
        parent: None,
        batch: Some(BatchPlace { id: "nightly".into(), item: "a".into(), total: Some(3) }),
    }
}

/// A task that waits.
pub(crate) fn pending() -> TaskInfo {
    TaskInfo {
        status: TaskState::Pending,
        settled: false,
        result: None,
        node_id: None,
        hostname: None,
        completed_at: None,
        epoch: 0,
        attempt: 0,
        attempts: Vec::new(),
        progress: TaskProgress { done: 0, total: 1, tokens: 0 },
        batch: None,
        ..completed()
    }
}

impl ScriptedTasks {
    fn answer<T>(&self, what: String, value: T) -> Result<T, TasksError> {
        self.told.lock().unwrap().push(what);
        self.refusal.clone().map_or(Ok(value), Err)
    }

    fn known<T>(&self, id: &str, what: &str, value: T) -> Result<T, TasksError> {
        let value = self.answer(format!("{what} {id}"), value)?;
        if id == ID { Ok(value) } else { Err(TasksError::UnknownTask("no task has this id".into())) }
    }

    pub(crate) fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }
}

#[async_trait]
impl Tasks for ScriptedTasks {
    async fn submit(&self, task: NewTask) -> Result<TaskInfo, TasksError> {
        let chunks = task.max_chunk.map_or(0, |_| 2);
        let chunk = |index| TaskChunk {
            task_id: format!("{ID}-{index}"),
            index: Some(index),
            status: TaskState::Pending,
            error: None,
        };
        self.submitted.lock().unwrap().push(task);
        self.answer(
            "submit".into(),
            TaskInfo { chunks: (0..chunks).map(chunk).collect(), waiting: self.waiting.clone(), ..pending() },
        )
    }

    async fn info(&self, task_id: &str, result: bool) -> Result<TaskInfo, TasksError> {
        let info = if self.endless { pending() } else { completed() };
        let kept = info.result.clone().filter(|_| result);
        self.known(task_id, "info", TaskInfo { result: kept, ..info })
    }

    async fn wait(&self, task_id: &str) -> Result<(), TasksError> {
        self.known(task_id, "wait", ())?;
        if self.endless {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn cancel(&self, task_id: &str) -> Result<TaskInfo, TasksError> {
        let info = TaskInfo { status: TaskState::Cancelled, result: None, ..completed() };
        self.known(task_id, "cancel", info)
    }

    async fn list(&self, filter: TaskFilter) -> Result<TaskPage, TasksError> {
        let TaskFilter { status, mine, batch, cursor, limit } = filter;
        let tasks = vec![pending(), TaskInfo { result: None, ..completed() }];
        let page = TaskPage { tasks, next: Some("after-1".into()) };
        self.answer(format!("list {status:?} {mine} {batch:?} {cursor:?} {limit}"), page)
    }

    async fn follow(&self, task_id: &str) -> Result<BoxStream<'static, TaskNews>, TasksError> {
        let news = stream::iter(self.news.clone());
        let news = if self.endless { news.chain(stream::pending()).boxed() } else { news.boxed() };
        self.known(task_id, "follow", news)
    }

    async fn prune(&self, wanted: TaskPrune) -> Result<TasksPruned, TasksError> {
        let TaskPrune { older_than, keep, dry_run } = wanted;
        let pruned = TasksPruned {
            dry_run,
            tasks: 7,
            bytes: 2_048,
            begun: Some(3),
            dropped: vec![DroppedGeneration { generation: 1, tasks: 7, bytes: 2_048 }],
            kept: vec![KeptGeneration {
                generation: 2,
                tasks: 9,
                why: WhyKept::Unfinished,
                unfinished: 1,
                task_ids: vec![ID.into()],
            }],
        };
        self.answer(format!("prune {older_than:?} {keep:?} {dry_run}"), pruned)
    }

    fn counts(&self) -> TaskCounts {
        TaskCounts {
            tasks: vec![(TaskState::Pending, 2), (TaskState::Completed, 7)],
            running_here: 1,
            runs: TaskRuns { begun: 12, completed: 7, failed: 3, stopped: 1 },
            entries: 30,
            stored_bytes: 4_096,
            refused: [("proof".to_owned(), 3), ("superseded".to_owned(), 2)].into(),
            history_lost: 4,
            generations: vec![TaskGeneration {
                generation: 2,
                tasks: 9,
                unfinished: 2,
                entries: 30,
                stored_bytes: 4_096,
            }],
            database: Some("swarm-tasks.2".into()),
            address: Some("/orbitdb/zdpuAddress".into()),
        }
    }
}
