//! Submits tasks, and puts together what came of them.

use std::sync::Arc;
use std::time::Duration;

use bombus_core::tasks::dispatch::{Input, TaskFacts};
use bombus_core::tasks::report::{TaskReport, joined};
use bombus_core::tasks::{ResultDocument, TaskDocument, TaskId, TaskStatus, TaskView};
use futures::future::join_all;
use futures::stream::{self, StreamExt};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::error::TasksError;
use super::facts::{class, needs};
use super::news::{PartResult, TaskFilter, TaskPage, TaskResultReport};
use super::plan::{attempts, plan};
use super::sealed;
use super::shared::{Draft, Shared};
use super::submission::Submission;
use crate::store::{ListFilter, StoreError, TaskStore, TaskSummary, TaskUpdate, is_cursor};

/// Most tasks that this node looks after before it takes no more.
const OPEN_MAX: usize = 100_000;
/// How many answers are read at once.
const ANSWERS_AT_ONCE: usize = 16;
/// Most tasks on a page.
const PAGE_MAX: usize = 1_000;
/// How long a result that was accepted may take to come here.
const RESULT_LIMIT: Duration = Duration::from_secs(5);
/// How long the first entry of a task may take that another request submits at the same time.
const SUBMITTING_LIMIT: Duration = Duration::from_secs(10);
/// How many pages of the store are looked through for one: where fewer fit, the page is shorter than it may be.
const LOOKED_THROUGH_MAX: usize = 50;

/// Submits a task; it is safe when this returns.
pub(super) async fn submit(shared: &Arc<Shared>, mut submission: Submission) -> Result<TaskReport, TasksError> {
    let store = shared.store().await?;
    let open = shared.open_tasks();
    if open >= OPEN_MAX {
        return Err(TasksError::Full { open });
    }
    let id = match submission.id.take() {
        Some(id) => id,
        None => store.draft()?.id,
    };
    // Others have to know it, too: who looks after the task while this node is away, and who reads how it stands.
    submission.max_attempts = attempts(submission.max_attempts, shared.config.max_attempts);
    let workers = sealed::workers(shared.config.seal, &submission)?;
    let mut plan = plan(submission, id, shared.me.as_str(), store.now_ms())?;
    if workers.is_some() {
        plan.documents.iter_mut().for_each(|document| document.encrypted = Some(true));
    }
    let is_whole = plan.documents.len() == 1 && plan.documents[0].id == plan.id;
    // The id may be that of a task that was cut otherwise.
    let known_otherwise = if is_whole { !store.parts(&plan.id).is_empty() } else { store.summary(&plan.id).is_some() };
    if known_otherwise {
        return Err(TasksError::Conflict(plan.id));
    }
    // Nothing is written where any part of it is known and asks for something else.
    let known = plan.documents.iter().filter(|document| store.summary(&document.id).is_some());
    let repeated = join_all(known.map(|document| same(shared, &store, &plan.id, document))).await;
    let all_known = repeated.len() == plan.documents.len();
    repeated.into_iter().collect::<Result<(), TasksError>>()?;
    if all_known {
        return shared.report(&plan.id).await;
    }
    let sealed = match workers {
        Some(workers) => sealed::seal_all(shared, &plan.documents, workers).await?,
        None => plan.documents.clone(),
    };
    shared.fresh().extend(plan.documents.iter().map(|document| document.id.clone()));
    let created = join_all(
        sealed
            .into_iter()
            .zip(&plan.documents)
            .map(|(sealed, document)| create(shared, &store, &plan.id, sealed, document)),
    )
    .await;
    created.into_iter().collect::<Result<(), TasksError>>()?;
    shared.report(&plan.id).await
}

async fn create(
    shared: &Arc<Shared>,
    store: &TaskStore,
    whole: &TaskId,
    sealed: TaskDocument,
    document: &TaskDocument,
) -> Result<(), TasksError> {
    let id = &document.id;
    let facts = TaskFacts::submitted(&sealed, shared.me.clone(), class(&sealed), needs(store, &sealed));
    let (written, heard) = oneshot::channel();
    let is_first = {
        let mut drafts = shared.drafts();
        let is_first = !drafts.contains_key(id);
        if is_first {
            drafts.insert(id.clone(), Draft { document: Arc::new(sealed), written: Some(written) });
        }
        is_first
    };
    if !is_first {
        return same(shared, store, whole, document).await;
    }
    // It is placed before it is written, so that where somebody takes it at once, its first entry says so.
    shared.input(Input::Submit(Box::new(facts)));
    match shared.stop.run_until_cancelled(heard).await {
        Some(Ok(Ok(()))) => Ok(()),
        Some(Ok(Err(TasksError::Store(StoreError::Exists(_))))) => same(shared, store, whole, document).await,
        Some(Ok(Err(error))) => {
            shared.fresh().remove(id);
            Err(error)
        }
        Some(Err(_)) | None => Err(TasksError::Unavailable),
    }
}

/// Refuses a task that is known and asks for something else.
async fn same(
    shared: &Arc<Shared>,
    store: &TaskStore,
    whole: &TaskId,
    document: &TaskDocument,
) -> Result<(), TasksError> {
    // It may just be created by another request.
    let known = shared.stop.run_until_cancelled(timeout(SUBMITTING_LIMIT, known(store, &document.id))).await;
    let Some(Ok(())) = known else { return Err(TasksError::Unavailable) };
    // The view of a task that is not over lacks what is compared.
    let known = store.view(&document.id).await?.ok_or(TasksError::Unavailable)?;
    let known = store.whole_task(&known.task).await?;
    // Who submits again may be another node, and later.
    if sealed::asks_the_same(shared, known, document) { Ok(()) } else { Err(TasksError::Conflict(whole.clone())) }
}

/// Waits until a task is known.
async fn known(store: &TaskStore, id: &TaskId) {
    let mut updates = store.updates();
    while store.summary(id).is_none() && updates.next().await.is_some() {}
}

/// Waits for the end of a task.
pub(super) async fn wait(shared: &Arc<Shared>, id: &TaskId) -> Result<TaskReport, TasksError> {
    let store = shared.store().await?;
    let mut updates = store.updates();
    loop {
        let report = shared.report(id).await?;
        if is_over(shared, &report).await? {
            // The last of it may have come between the two looks.
            return if report.settled { Ok(report) } else { shared.report(id).await };
        }
        let waited = shared.stop.run_until_cancelled(about(&mut updates, id)).await;
        if waited != Some(true) {
            return Err(TasksError::Unavailable);
        }
    }
}

/// Waits for a change of a task or of one of its parts; false once there are no more changes.
pub(super) async fn about(updates: &mut crate::store::TaskUpdates, id: &TaskId) -> bool {
    loop {
        match updates.next().await {
            Some(TaskUpdate::Changed(view)) => {
                if view.task.id == *id || view.task.parent_task_id.as_ref() == Some(id) {
                    return true;
                }
            }
            Some(TaskUpdate::Lagged(_)) => return true,
            None => return false,
        }
    }
}

/// Says whether nothing more happens to a task.
pub(super) async fn is_over(shared: &Shared, report: &TaskReport) -> Result<bool, TasksError> {
    if report.settled || !report.is_final() {
        return Ok(report.settled);
    }
    // Nobody settles the task of a peer that knows no grants.
    if !report.parts.is_empty() {
        let store = shared.store().await?;
        let is_over = |id: &TaskId| store.summary(id).is_some_and(|part| part.over);
        return Ok(report.parts.iter().all(|part| is_over(&part.id)));
    }
    Ok(shared.view(&report.id).await?.is_some_and(|view| view.is_over()))
}

/// Tells what came of a task.
pub(super) async fn result(shared: &Arc<Shared>, id: &TaskId) -> Result<Option<TaskResultReport>, TasksError> {
    let store = shared.store().await?;
    if let Some(view) = whole_view(&store, id).await? {
        return of_one(shared, &store, &view).await;
    }
    let parts = store.parts(id);
    if parts.is_empty() {
        return Err(TasksError::UnknownTask(id.clone()));
    }
    let views = stream::iter(parts).map(async |part| {
        let Some(view) = whole_view(&store, &part.id).await? else { return Ok(None) };
        let result = match &view.result {
            Some(result) => Some(sealed::open_answer(shared, store.whole_result(result).await?)),
            None => None,
        };
        Ok::<_, TasksError>(Some((view, result)))
    });
    let read: Vec<_> = views.buffered(ANSWERS_AT_ONCE).collect().await;
    let read: Vec<Read> = read.into_iter().filter_map(Result::transpose).collect::<Result<_, _>>()?;
    let is_sealed = read.iter().any(|(_, result)| result.as_ref().is_some_and(|(_, sealed)| *sealed));
    let read: Vec<_> = read.into_iter().map(|(view, result)| (view, result.map(|(result, _)| result))).collect();
    Ok(of_parts(id, &read).map(|report| TaskResultReport { sealed: is_sealed, ..report }))
}

/// A part, and its answer with whether that was sealed.
type Read = (Arc<TaskView>, Option<(ResultDocument, bool)>);

/// Reads a task. The databases come one after the other: for the result that its requester has accepted it waits a moment.
async fn whole_view(store: &TaskStore, id: &TaskId) -> Result<Option<Arc<TaskView>>, TasksError> {
    let mut updates = store.updates();
    let looking = async {
        loop {
            let view = store.view(id).await?;
            let lacks = |view: &TaskView| view.status == TaskStatus::Completed && view.result.is_none();
            if !view.as_deref().is_some_and(lacks) || !about(&mut updates, id).await {
                return Ok(view);
            }
        }
    };
    match timeout(RESULT_LIMIT, looking).await {
        Ok(view) => view,
        Err(_) => Ok(store.view(id).await?),
    }
}

async fn of_one(shared: &Shared, store: &TaskStore, view: &TaskView) -> Result<Option<TaskResultReport>, TasksError> {
    let result = match &view.result {
        Some(result) => Some(sealed::open_answer(shared, store.whole_result(result).await?)),
        None => None,
    };
    if result.is_none() && !view.status.is_final() {
        return Ok(None);
    }
    let report = TaskReport::of(view);
    let (mut result, is_sealed) = result.unwrap_or_else(|| (ResultDocument::new(report.id.clone(), "", 0), false));
    if let Some(answer) = &result.answer {
        result.response = answer.text().to_owned();
        result.embedding = answer.vector();
    }
    Ok(Some(TaskResultReport {
        sealed: is_sealed,
        complete: report.status == TaskStatus::Completed && view.result.is_some(),
        kind: report.kind,
        settled: report.settled,
        model: if result.model.is_empty() { report.model } else { result.model },
        worker: report.worker,
        response: result.response,
        embedding: result.embedding,
        answer: result.answer,
        total_duration_ns: result.total_duration_ns,
        prompt_eval_count: result.prompt_eval_count,
        eval_count: result.eval_count,
        eval_duration_ns: result.eval_duration_ns,
        completed_at: report.completed_at,
        error: report.error,
        parts: Vec::new(),
        id: report.id,
    }))
}

fn of_parts(id: &TaskId, read: &[(Arc<TaskView>, Option<ResultDocument>)]) -> Option<TaskResultReport> {
    let views: Vec<&TaskView> = read.iter().map(|(view, _)| &**view).collect();
    let report = TaskReport::of_parts(id, &views)?;
    let result_of = |part: &TaskId| {
        let mut found = read.iter().filter(|(view, _)| view.task.id == *part);
        found.next().and_then(|(_, result)| result.as_ref())
    };
    if !report.is_final() && read.iter().all(|(_, result)| result.is_none()) {
        return None;
    }
    let whole = joined(id, &views, |part| result_of(&part.task.id).map(|result| result.response.clone()));
    let sum = |fact: fn(&ResultDocument) -> Option<u64>| {
        let facts: Vec<u64> = read.iter().filter_map(|(_, result)| result.as_ref().and_then(fact)).collect();
        (!facts.is_empty()).then(|| facts.iter().sum())
    };
    let parts = report.parts.iter().map(|part| PartResult {
        id: part.id.clone(),
        index: part.index,
        status: part.status,
        response: result_of(&part.id).map(|result| result.response.clone()),
        error: part.error.clone(),
    });
    let model = read.iter().find_map(|(_, result)| result.as_ref().map(|result| result.model.clone()));
    Some(TaskResultReport {
        sealed: false,
        parts: parts.collect(),
        complete: report.status == TaskStatus::Completed && whole.is_some(),
        response: whole.unwrap_or_default(),
        kind: report.kind.clone(),
        settled: report.settled,
        model: model.unwrap_or_else(|| report.model.clone()),
        worker: None,
        embedding: None,
        answer: None,
        total_duration_ns: sum(|result| result.total_duration_ns),
        prompt_eval_count: sum(|result| result.prompt_eval_count),
        eval_count: sum(|result| result.eval_count),
        eval_duration_ns: sum(|result| result.eval_duration_ns),
        completed_at: report.completed_at,
        error: report.error.clone(),
        id: report.id,
    })
}

/// Lists tasks. Of parts, the first one stands for the parent.
pub(super) async fn list(shared: &Arc<Shared>, filter: &TaskFilter) -> Result<TaskPage, TasksError> {
    let store = shared.store().await?;
    let limit = filter.limit.clamp(1, PAGE_MAX);
    if filter.cursor.as_deref().is_some_and(|cursor| !is_cursor(cursor)) {
        return Err(TasksError::invalid("cursor", "it is not where a page of a list ended"));
    }
    let only = match filter.statuses[..] {
        // The status of a parent is made of those of its parts.
        [status] if filter.parent.is_some() => Some(status),
        _ => None,
    };
    let mut page = TaskPage { tasks: Vec::new(), next: filter.cursor.clone() };
    for _ in 0..LOOKED_THROUGH_MAX {
        let found = store.list(&ListFilter {
            status: only,
            requester: filter.mine.then(|| shared.me.to_string()),
            batch: filter.batch.clone(),
            parent: filter.parent.clone(),
            whole: false,
            cursor: page.next.take(),
            limit: limit - page.tasks.len(),
        });
        for summary in &found.tasks {
            if let Some(report) = listed(shared, filter, summary).await? {
                page.tasks.push(report);
            }
        }
        page.next = found.next;
        if page.next.is_none() || page.tasks.len() >= limit {
            break;
        }
    }
    Ok(page)
}

async fn listed(shared: &Shared, filter: &TaskFilter, summary: &TaskSummary) -> Result<Option<TaskReport>, TasksError> {
    let stands_for = match &summary.parent {
        Some(parent) if filter.parent.is_none() => {
            if summary.chunk_index != Some(0) {
                return Ok(None);
            }
            parent
        }
        _ => {
            if summary.over && !filter.has_status(summary.status) {
                return Ok(None);
            }
            &summary.id
        }
    };
    let report = match shared.report(stands_for).await {
        // Its entries are being read.
        Err(TasksError::UnknownTask(_)) => return Ok(None),
        report => report?,
    };
    Ok(Some(report).filter(|report| filter.has_status(report.status)))
}
