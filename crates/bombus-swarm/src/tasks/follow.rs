//! What happens to a task, told on any node.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_stream::stream;
use bombus_core::identity::NodeId;
use bombus_core::tasks::report::TaskReport;
use bombus_core::tasks::{Epoch, TaskId, TaskStatus};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::TASK_PROTOCOL;
use super::error::TasksError;
use super::live::Piece;
use super::news::TaskNews;
use super::orchestrate::{about, is_over, result};
use super::shared::Shared;
use super::talk::Talk;
use super::wire::{Ask, Said, WORD_BYTES_MAX};
use crate::store::TaskUpdate;

/// How many pieces of an answer wait for a reader; whoever writes them waits then.
const PIECES_MAX: usize = 64;
/// How long a peer may take to say the first of an answer.
const FOLLOW_LIMIT: Duration = Duration::from_secs(3);
/// Pause before an answer that is not to be had is looked for again.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a result that is accepted may take to come here.
const RESULT_LIMIT: Duration = Duration::from_secs(10);

/// Tells what happens to a task until it has ended.
pub(super) async fn follow(shared: &Arc<Shared>, id: &TaskId) -> Result<BoxStream<'static, TaskNews>, TasksError> {
    let (shared, id) = (Arc::clone(shared), id.clone());
    let store = shared.store().await?;
    let mut updates = store.updates();
    let mut report = shared.report(&id).await?;
    let news = stream! {
        let mut told = Told::default();
        let mut pieces: Option<mpsc::Receiver<Piece>> = None;
        yield TaskNews::State(Box::new(report.clone()));
        loop {
            if !report.parts.is_empty() {
                for text in told.of_parts(&shared, &id, &report).await {
                    yield TaskNews::Token { text };
                }
            }
            if is_over(&shared, &report).await.unwrap_or(true) {
                // The last of it may have come between the two looks.
                if let (false, Ok(now)) = (report.settled, shared.report(&id).await) {
                    report = now;
                    for text in told.of_parts(&shared, &id, &report).await {
                        yield TaskNews::Token { text };
                    }
                }
                for news in told.rest(&shared, &report).await {
                    yield news;
                }
                yield TaskNews::Done(Box::new(report));
                return;
            }
            if report.parts.is_empty() && pieces.is_none() && is_running(&report) {
                pieces = Some(read(&shared, &report));
            }
            tokio::select! {
                biased;
                piece = next_of(&mut pieces) => match piece {
                    Some(piece) => for news in told.piece(&report, piece) {
                        yield news;
                    },
                    None => pieces = None,
                },
                changed = about(&mut updates, &id) => {
                    if !changed {
                        return;
                    }
                    // Should it fail, the node is stopping.
                    let Ok(now) = shared.report(&id).await else { return };
                    if now != report {
                        report = now;
                        yield TaskNews::State(Box::new(report.clone()));
                    }
                }
            }
        }
    };
    Ok(news.boxed())
}

fn is_running(report: &TaskReport) -> bool {
    matches!(report.status, TaskStatus::Claimed | TaskStatus::Running)
}

async fn next_of(pieces: &mut Option<mpsc::Receiver<Piece>>) -> Option<Piece> {
    match pieces {
        Some(pieces) => pieces.recv().await,
        None => std::future::pending().await,
    }
}

/// What a reader was told of an answer.
#[derive(Default)]
struct Told {
    epoch: Option<Epoch>,
    text: String,
    /// Of a parent: the parts whose answers it has.
    parts: HashSet<TaskId>,
}

impl Told {
    fn piece(&mut self, report: &TaskReport, piece: Piece) -> Vec<TaskNews> {
        let mut news = Vec::new();
        if piece.anew && self.epoch != Some(piece.epoch) {
            if self.epoch.is_some() {
                // Its piece may come before the entry of its grant.
                let number = report.attempt.max(1) + u32::from(report.epoch < piece.epoch);
                news.push(TaskNews::Attempt { number, epoch: piece.epoch });
            }
            self.epoch = Some(piece.epoch);
            self.text.clear();
        } else if piece.anew {
            // The same answer from its beginning, as another node tells it.
            let text = piece.text.get(self.text.len()..).unwrap_or_default().to_owned();
            return self.add(text, news);
        }
        self.add(piece.text, news)
    }

    fn add(&mut self, text: String, mut news: Vec<TaskNews>) -> Vec<TaskNews> {
        if !text.is_empty() {
            self.text.push_str(&text);
            news.push(TaskNews::Token { text });
        }
        news
    }

    /// Tells what is missing of the answer that was accepted.
    async fn rest(&mut self, shared: &Arc<Shared>, report: &TaskReport) -> Vec<TaskNews> {
        if report.status != TaskStatus::Completed {
            return Vec::new();
        }
        let answer = timeout(RESULT_LIMIT, async {
            loop {
                match result(shared, &report.id).await {
                    Ok(Some(answer)) if answer.sealed => return None,
                    Ok(Some(answer)) if answer.complete => return Some(answer.response),
                    Ok(_) => sleep(PAUSE).await,
                    Err(_) => return None,
                }
            }
        });
        let Ok(Some(answer)) = answer.await else { return Vec::new() };
        if let Some(rest) = answer.strip_prefix(self.text.as_str()) {
            return self.add(rest.to_owned(), Vec::new());
        }
        // Another attempt than the one that was told is the one that counts.
        self.text.clear();
        let news = vec![TaskNews::Attempt { number: report.attempt.max(1), epoch: report.epoch }];
        self.add(answer, news)
    }

    /// Returns the answers of the next parts in order, with what stands between them, where no part sums up the others.
    async fn of_parts(&mut self, shared: &Arc<Shared>, id: &TaskId, report: &TaskReport) -> Vec<String> {
        if report.parts.iter().any(|part| part.index.is_none()) {
            return Vec::new();
        }
        let mut texts = Vec::new();
        for part in &report.parts {
            if self.parts.contains(&part.id) {
                continue;
            }
            let is_next = part.index == u32::try_from(self.parts.len()).ok();
            if !is_next || !part.settled || part.status != TaskStatus::Completed {
                break;
            }
            let Ok(Some(answer)) = result(shared, &part.id).await else { break };
            if !answer.complete || answer.sealed {
                break;
            }
            let joiner = shared.view(&part.id).await.ok().flatten().and_then(|view| view.task.join.clone());
            let joiner = joiner.unwrap_or_else(|| bombus_core::tasks::chunk::JOINER.to_owned());
            let text = if self.parts.is_empty() { answer.response } else { format!("{joiner}{}", answer.response) };
            tracing::trace!(task.id = %id, part.id = %part.id, "a part of an answer is told");
            self.parts.insert(part.id.clone());
            self.text.push_str(&text);
            texts.push(text);
        }
        texts
    }
}

/// Reads an answer where it is written: here, or at the worker, or at the requester.
fn read(shared: &Arc<Shared>, report: &TaskReport) -> mpsc::Receiver<Piece> {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    let (me, task) = (Arc::clone(shared), report.id.clone());
    let peers = report.worker.iter().chain([&report.requester]).filter_map(|peer| NodeId::parse(peer).ok());
    let peers: Vec<NodeId> = peers.filter(|peer| *peer != shared.me).collect();
    shared.spawn("the reading of an answer", async move {
        let reading = async {
            if let Some(live) = me.live.get(&task) {
                let mut reader = live.read();
                loop {
                    let Some(piece) = reader.take() else {
                        reader.changed().await;
                        continue;
                    };
                    let ended = piece.ended;
                    if sender.send(piece).await.is_err() || ended {
                        return;
                    }
                }
            }
            for peer in peers {
                if read_at(&me, &peer, &task, &sender).await {
                    return;
                }
            }
            sleep(PAUSE).await;
        };
        tokio::select! {
            biased;
            () = sender.closed() => {}
            () = reading => {}
        }
    });
    receiver
}

/// Reads an answer at a peer; says whether it had anything.
async fn read_at(shared: &Shared, peer: &NodeId, task: &TaskId, sender: &mpsc::Sender<Piece>) -> bool {
    let asked = async {
        let stream = shared.net.open_stream(peer, TASK_PROTOCOL).await.ok()?;
        let mut talk = Talk::new(stream, WORD_BYTES_MAX);
        talk.say(&Ask::Follow { task: task.clone() }).await.ok()?;
        let first = talk.hear::<Said>().await.ok()?;
        Some((talk, first))
    };
    let Ok(Some((mut talk, first))) = timeout(FOLLOW_LIMIT, asked).await else { return false };
    let mut said = first;
    let mut any = false;
    loop {
        match said {
            Said::Piece { anew, epoch, text, tokens } => {
                any = true;
                let piece = Piece { anew, epoch: Epoch(epoch), text, tokens, ended: false };
                if sender.send(piece).await.is_err() {
                    return true;
                }
            }
            Said::Unknown => {}
            _ => return any,
        }
        said = match talk.hear().await {
            Ok(said) => said,
            Err(_) => return any,
        };
    }
}

/// Tells of each task that changes.
pub(super) fn updates(shared: &Arc<Shared>) -> BoxStream<'static, TaskReport> {
    let shared = Arc::clone(shared);
    stream! {
        let Ok(store) = shared.store().await else { return };
        let mut updates = store.updates();
        while let Some(Some(update)) = shared.stop.run_until_cancelled(updates.next()).await {
            let TaskUpdate::Changed(view) = update else { continue };
            match &view.task.parent_task_id {
                None => yield shared.report_of(&view),
                Some(parent) => {
                    if let Ok(report) = shared.report(parent).await {
                        yield report;
                    }
                }
            }
        }
    }
    .boxed()
}
