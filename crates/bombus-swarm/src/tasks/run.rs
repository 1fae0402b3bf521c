//! Runs a task over this node's own backends.

mod whole;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::chat::{ChatEvent, EmbedInput, EmbedRequest};
use bombus_core::identity::NodeId;
use bombus_core::model::{ModelCapability, ModelName};
use bombus_core::placement::{Need, Scope};
use bombus_core::tasks::chunk::{JOINER, fill};
use bombus_core::tasks::dispatch::{Input, Outcome, RunId};
use bombus_core::tasks::{Epoch, ResultDocument, TaskDocument, TaskId, TaskKind, WholeAnswer};
use bombus_infer::{BackendError, Routed};
use futures::{FutureExt, StreamExt};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::live::Live;
use super::sealed;
use super::shared::Shared;
use super::wire::short;
use crate::route::need_of;
use crate::seal::{OpenError, OpenedTask, PublicSealKey};
use crate::store::{StoreError, TaskStore};

/// Longest answer, in bytes.
const RESPONSE_BYTES_MAX: usize = 16 << 20;
/// A run that takes longer says in the database that it has begun.
const NOTED_AFTER: Duration = Duration::from_millis(500);
/// How long the answers that a task needs may take to come here, when its requester has them.
const ANSWERS_LIMIT: Duration = Duration::from_secs(30);

/// A run on this node.
pub(super) struct Running {
    cancel: CancellationToken,
    /// The grant under which it began.
    epoch: Epoch,
    /// The generation in which the task was offered.
    offered_in: Option<u64>,
    product: Option<Product>,
}

/// What a run has made.
#[derive(Debug, Clone, Default, PartialEq)]
struct Product {
    response: String,
    model: String,
    embedding: Option<Vec<f64>>,
    /// Of a request as a whole, in place of `response` and `embedding`.
    answer: Option<Box<WholeAnswer>>,
    /// Who can read the answer, where it is sealed.
    sealed: Option<Value>,
    total: Duration,
    eval_count: Option<u64>,
    prompt_eval_count: Option<u64>,
    eval_ns: Option<u64>,
}

/// Why a run has made nothing.
#[derive(Debug)]
enum Failure {
    /// The task, or this node.
    Failed { reason: String, retry: bool },
    /// This node has too much to do.
    TooMuch,
}

impl Failure {
    fn passing(reason: impl Into<String>) -> Self {
        Self::Failed { reason: short(reason.into()), retry: true }
    }

    fn lasting(reason: impl Into<String>) -> Self {
        Self::Failed { reason: short(reason.into()), retry: false }
    }
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Overloaded { .. } => Self::TooMuch,
            // What is wrong with the task itself is wrong everywhere.
            BackendError::InvalidRequest { .. } | BackendError::Unsupported { .. } => Self::lasting(error.to_string()),
            error => Self::passing(error.to_string()),
        }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self::passing(error.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::passing(error.to_string())
    }
}

/// Begins a run.
pub(super) fn begin(shared: &Arc<Shared>, task: TaskId, run: RunId, epoch: Epoch, grant: String) {
    let cancel = CancellationToken::new();
    let (document, offered_in) = match shared.documents().remove(&task) {
        Some(taken) => (Some(taken.document), Some(taken.generation)),
        None => (None, None),
    };
    shared.runs().insert(run, Running { cancel: cancel.clone(), epoch, offered_in, product: None });
    let live = shared.live.begin(&task, epoch);
    shared.counted.begin();
    let me = Arc::clone(shared);
    shared.spawn("a run", async move {
        let working = async {
            tokio::select! {
                biased;
                made = make(&me, &task, document, epoch, &live) => made,
                () = note(&me, &task, epoch, &grant) => Err(Failure::passing("the run was not waited for")),
            }
        };
        let made = cancel.run_until_cancelled(AssertUnwindSafe(working).catch_unwind()).await;
        let outcome = match made {
            Some(Ok(Ok(product))) => {
                if let Some(running) = me.runs().get_mut(&run) {
                    running.product = Some(product);
                }
                Outcome::Completed
            }
            Some(Ok(Err(Failure::Failed { reason, retry }))) => Outcome::Failed { reason, retry },
            Some(Ok(Err(Failure::TooMuch))) => Outcome::HandedBack,
            Some(Err(_)) => {
                tracing::error!(task.id = %task, "the run of a task panicked");
                Outcome::Failed {
                    reason: "the run failed for a reason that lies in the program".to_owned(),
                    retry: true,
                }
            }
            None => Outcome::HandedBack,
        };
        live.end();
        me.counted.end(&outcome);
        me.input(Input::RunEnded { task, run, outcome });
    });
}

/// Ends a run at once. Returns the grant under which it began; none for one that is known no more.
pub(super) fn abort(shared: &Shared, run: RunId) -> Option<Epoch> {
    let running = shared.runs().remove(&run)?;
    running.cancel.cancel();
    Some(running.epoch)
}

/// Returns the generation in which the task of a run was offered; none for one of this node, which stands here.
pub(super) fn offered_in(shared: &Shared, run: RunId) -> Option<u64> {
    shared.runs().get(&run)?.offered_in
}

/// Forgets what a run has made.
pub(super) fn forget(shared: &Shared, run: RunId) {
    shared.runs().remove(&run);
}

/// Makes the document of what a run has come to; none where there is nothing to write.
pub(super) fn result_of(
    shared: &Shared,
    task: &TaskId,
    run: RunId,
    (epoch, grant): (Epoch, &str),
    outcome: &Outcome,
) -> Option<ResultDocument> {
    let mut document = ResultDocument::new(task.clone(), shared.me.as_str(), 0);
    document.epoch = Some(epoch);
    document.grant = Some(grant.to_owned());
    match outcome {
        Outcome::Completed => {
            let product = shared.runs().get(&run)?.product.clone()?;
            document.response = product.response;
            document.model = product.model;
            document.embedding = product.embedding;
            document.answer = product.answer;
            document.sealed = product.sealed;
            document.total_duration_ns = Some(nanos(product.total));
            document.eval_count = product.eval_count;
            document.prompt_eval_count = product.prompt_eval_count;
            document.eval_duration_ns = product.eval_ns;
        }
        Outcome::Failed { reason, .. } => document.error = Some(reason.clone()),
        Outcome::HandedBack => return None,
    }
    Some(document)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Says in the database that a run has begun that takes longer than a moment; it never returns.
async fn note(shared: &Shared, task: &TaskId, epoch: Epoch, grant: &str) {
    sleep(NOTED_AFTER).await;
    if let Some(store) = shared.store_now()
        && let Err(error) = store.running(task, epoch, grant).await
    {
        // The entries about the task may not have come here yet.
        tracing::debug!(task.id = %task, %error, "the begin of a run was not written");
    }
    std::future::pending::<()>().await;
}

async fn make(
    shared: &Shared,
    task: &TaskId,
    document: Option<Arc<TaskDocument>>,
    epoch: Epoch,
    live: &Live,
) -> Result<Product, Failure> {
    let begun = Instant::now();
    let store = shared.store_now().ok_or_else(|| Failure::passing("the store of tasks is being closed"))?;
    let (document, is_own) = match document {
        // A node offers itself nothing.
        Some(document) => (document, false),
        None => {
            let known = store.get_task(task)?;
            let document = known.ok_or_else(|| Failure::passing("the task is not known here"))?;
            (Arc::new(document), is_own(shared, &store, task).await?)
        }
    };
    let only = if is_own { None } else { shared.route.shared_models() };
    let only = only.as_deref();
    let OpenedTask { task: document, reply_to } = sealed::opened(shared, &store.whole_task(&document).await?)?;
    let prompt = prompt_of(&store, &document).await?;
    let mut product = match document.kind() {
        TaskKind::Inference | TaskKind::Embedding if document.request.is_some() => {
            whole::made(shared, &document, only, epoch, live).await?
        }
        TaskKind::Inference => answer(shared, &document, &prompt, only, epoch, live).await?,
        TaskKind::Embedding => embed(shared, &document, prompt, only).await?,
        TaskKind::Ping => Product { response: prompt, ..Product::default() },
        TaskKind::Other(kind) => {
            return Err(Failure::passing(format!("this node does not know tasks of the kind '{kind}'")));
        }
    };
    product.total = begun.elapsed();
    match reply_to {
        Some(reply_to) => seal(shared, &document, reply_to, product),
        None => Ok(product),
    }
}

/// Says whether a task is one of this node, which is sure only with a proof.
async fn is_own(shared: &Shared, store: &TaskStore, task: &TaskId) -> Result<bool, StoreError> {
    let view = match store.unfinished_view(task) {
        Some(view) => Some(view),
        None => store.view(task).await?,
    };
    Ok(view.is_some_and(|view| view.requester.proven && view.requester.peer.as_ref() == Some(&shared.me)))
}

/// Seals what was made to the requester.
fn seal(
    shared: &Shared,
    document: &TaskDocument,
    reply_to: PublicSealKey,
    product: Product,
) -> Result<Product, Failure> {
    let requester = NodeId::parse(&document.requester_peer_id).map_err(|error| Failure::lasting(error.to_string()))?;
    let plain = ResultDocument {
        response: product.response,
        embedding: product.embedding,
        answer: product.answer,
        ..ResultDocument::new(document.id.clone(), shared.me.as_str(), 0)
    };
    let sealed = sealed::seal_answer(shared, &plain, requester, reply_to);
    let ResultDocument { response, embedding, answer, sealed, .. } =
        sealed.map_err(|error| Failure::passing(error.to_string()))?;
    Ok(Product { response, embedding, answer, sealed, ..product })
}

/// Returns what the model is asked: the prompt, or a template with the answers that the task needs.
async fn prompt_of(store: &TaskStore, document: &TaskDocument) -> Result<String, Failure> {
    let Some(template) = document.reduce.as_ref().filter(|_| !document.depends_on().is_empty()) else {
        return Ok(document.prompt.clone());
    };
    let collecting = async {
        let mut answers = Vec::with_capacity(document.depends_on().len());
        for task in document.depends_on() {
            answers.push(answer_to(store, task).await?);
        }
        Ok::<_, Failure>(answers)
    };
    let answers = timeout(ANSWERS_LIMIT, collecting).await;
    let answers = answers.map_err(|_| Failure::passing("the answers that it needs have not come here in time"))??;
    Ok(fill(template, &answers.join(document.join.as_deref().unwrap_or(JOINER))))
}

/// Waits for the answer to a task whose requester has accepted it.
async fn answer_to(store: &TaskStore, task: &TaskId) -> Result<String, Failure> {
    let mut updates = store.updates();
    loop {
        if store.summary(task).is_some_and(|summary| summary.over)
            && let Some(result) = store.get_result(task).await?
        {
            return Ok(result.response);
        }
        if updates.next().await.is_none() {
            return Err(Failure::passing("the store of tasks is being closed"));
        }
    }
}

/// Answers a prompt, by one of the models that may do so (`None`: by any).
async fn answer(
    shared: &Shared,
    document: &TaskDocument,
    prompt: &str,
    only: Option<&[ModelName]>,
    epoch: Epoch,
    live: &Live,
) -> Result<Product, Failure> {
    let request = document.chat_request(prompt);
    let need = need_of(&request).only(only.map(<[_]>::to_vec));
    let route = shared.backends.route(&request.model, &need).await?;
    let Routed { value: mut events, model, .. } = route.chat(request).await?;
    let mut product = Product { model: named(&model, &document.model), ..Product::default() };
    while let Some(event) = events.next().await {
        match event? {
            ChatEvent::Delta(delta) => {
                if product.response.len() + delta.text.len() > RESPONSE_BYTES_MAX {
                    return Err(Failure::lasting(format!("the answer has more than {RESPONSE_BYTES_MAX} bytes")));
                }
                live.write(epoch, &delta.text, 1);
                product.response.push_str(&delta.text);
            }
            ChatEvent::Thinking(_) => live.write(epoch, "", 1),
            ChatEvent::Done { usage, timings, .. } => {
                product.eval_count = Some(u64::from(usage.completion_tokens));
                product.prompt_eval_count = Some(u64::from(usage.prompt_tokens));
                product.eval_ns = Some((timings.generate_ms.max(0.0) * 1e6) as u64);
                return Ok(product);
            }
            _ => {}
        }
    }
    Err(Failure::passing("the answer broke off without saying why"))
}

/// Names a model as it was asked for, where that is its name.
fn named(model: &ModelName, asked: &str) -> String {
    if ModelName::parse(asked).is_ok_and(|asked| asked == *model) { asked.to_owned() } else { model.to_string() }
}

async fn embed(
    shared: &Shared,
    document: &TaskDocument,
    text: String,
    only: Option<&[ModelName]>,
) -> Result<Product, Failure> {
    let need = Need::of([ModelCapability::Embedding]).within(Scope::Local).only(only.map(<[_]>::to_vec));
    let route = shared.backends.route(&document.model, &need).await?;
    let request = EmbedRequest::new(document.model.clone(), vec![EmbedInput::Text(text)]);
    let Routed { value, model, .. } = route.embed(request).await?;
    let vector = value.vectors.into_iter().next().ok_or_else(|| Failure::passing("no vector was made"))?;
    Ok(Product {
        model: named(&model, &document.model),
        embedding: Some(vector.into_iter().map(f64::from).collect()),
        prompt_eval_count: Some(u64::from(value.prompt_tokens)),
        ..Product::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_try_may_do_is_tried_again() {
        let is_tried_again = |error: BackendError| matches!(Failure::from(error), Failure::Failed { retry: true, .. });
        let message = String::new;
        assert!(is_tried_again(BackendError::Interrupted { reason: message() }));
        assert!(is_tried_again(BackendError::DeadEnd { param: "tools", message: message() }));
        assert!(!is_tried_again(BackendError::Unsupported { param: "tools", message: message() }));
        assert!(!is_tried_again(BackendError::InvalidRequest { param: None, message: message() }));
    }
}
