//! The requester's side of an offer: one stream to the worker, as long as the attempt.

use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_core::tasks::dispatch::{Decline, Input, Outcome};
use bombus_core::tasks::{Epoch, TaskId};
use bombus_net::OpenError;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::shared::Shared;
use super::talk::Talk;
use super::wire::{Ask, Offer, Said, WORD_BYTES_MAX, Word, short};
use super::{TASK_PROTOCOL, sealed};

/// How many words to a worker may wait; when it reads none for so long, its stream is ended, and the grant is offered anew.
const WORDS_MAX: usize = 32;
/// How long a stream to a worker may take to open.
const OPEN_LIMIT: Duration = Duration::from_secs(3);

/// An offer that is under way.
pub(super) struct Offering {
    epoch: Epoch,
    number: u64,
    words: mpsc::Sender<Word>,
    /// Ends the stream without a word.
    replaced: CancellationToken,
}

/// How an offer's stream ended.
enum Ended {
    /// The grant is not taken.
    Declined(Decline),
    /// Without a last word.
    Broken,
    /// All was said.
    InOrder,
}

/// Offers a grant. An earlier stream of the same task is dropped.
pub(super) fn begin(shared: &Arc<Shared>, task: TaskId, epoch: Epoch, worker: NodeId, grant: String, resume: bool) {
    let (words, heard) = mpsc::channel(WORDS_MAX);
    let (number, replaced) = (shared.number(), CancellationToken::new());
    let offering = Offering { epoch, number, words, replaced: replaced.clone() };
    if let Some(before) = shared.offers().insert(task.clone(), offering) {
        before.replaced.cancel();
    }
    let me = Arc::clone(shared);
    shared.spawn("an offer", async move {
        let talking = converse(&me, &task, epoch, &worker, (grant, resume), heard);
        let ended = replaced.run_until_cancelled(talking).await;
        let is_ours = |offering: &Offering| offering.number == number;
        if me.offers().get(&task).is_some_and(is_ours) {
            me.offers().remove(&task);
        }
        match ended {
            Some(Ended::Declined(reason)) => me.input(Input::Declined { task, epoch, reason }),
            Some(Ended::Broken) => me.input(Input::Broken { task, epoch }),
            Some(Ended::InOrder) | None => {}
        }
    });
}

/// Tells the worker something, where its stream stands. After a revocation nothing more is heard of it.
pub(super) fn tell(shared: &Shared, task: &TaskId, epoch: Epoch, word: Word) {
    let mut offers = shared.offers();
    let Some(offering) = offers.get(task).filter(|offering| offering.epoch == epoch) else { return };
    if offering.words.try_send(word).is_err() || word == Word::Revoked {
        // Who waits for words sees that there are no more, behind those that wait.
        offers.remove(task);
    }
}

/// Returns a task as its worker is to read it, and the generation in which it stands.
async fn document_for(shared: &Shared, task: &TaskId, worker: &NodeId) -> Option<(String, u64)> {
    let store = shared.store_now()?;
    let (document, generation) = (store.get_task(task).ok().flatten()?, store.generation_of(task)?);
    let document = sealed::for_worker(shared, &store, document, worker).await;
    let told = document.inspect_err(|error| {
        tracing::warn!(task.id = %task, peer.id = %worker, %error, "a sealed task cannot be offered to a node");
    });
    Some((serde_json::to_string(&told.ok()?).ok()?, generation))
}

async fn converse(
    shared: &Arc<Shared>,
    task: &TaskId,
    epoch: Epoch,
    worker: &NodeId,
    (grant, resume): (String, bool),
    mut words: mpsc::Receiver<Word>,
) -> Ended {
    // Its death has to be known soon.
    let _watched = shared.swarm.watch(worker);
    let Some((document, generation)) = document_for(shared, task, worker).await else {
        return Ended::Declined(Decline::NotAble);
    };
    let opening = shared.opening(worker);
    // It is never closed.
    let mut permit = opening.acquire().await.ok();
    let stream = match timeout(OPEN_LIMIT, shared.net.open_stream(worker, TASK_PROTOCOL)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(OpenError::UnsupportedProtocol { .. })) => return Ended::Declined(Decline::NotAble),
        Ok(Err(_)) | Err(_) => return Ended::Declined(Decline::Unreachable),
    };
    if matches!(words.try_recv(), Ok(Word::Revoked)) {
        return Ended::InOrder;
    }
    let mut talk = Talk::new(stream, WORD_BYTES_MAX);
    let offer = Ask::Offer(Offer { task: document, epoch: epoch.0, grant, generation, resume });
    if talk.say(&offer).await.is_err() {
        return Ended::Broken;
    }
    loop {
        tokio::select! {
            biased;
            word = words.recv() => {
                let Some(word) = word else { return Ended::Broken };
                if talk.say(&word).await.is_err() {
                    return if word == Word::Revoked { Ended::InOrder } else { Ended::Broken };
                }
                if word == Word::Revoked {
                    // It is over whether that is heard or not.
                    drop(talk.end().await);
                    return Ended::InOrder;
                }
            }
            said = talk.hear::<Said>() => {
                let Ok(said) = said else { return Ended::Broken };
                drop(permit.take());
                if let Some(ended) = heard(shared, task, epoch, said) {
                    return ended;
                }
            }
        }
    }
}

/// Takes what the worker says; tells how the stream ended where that was the last.
fn heard(shared: &Arc<Shared>, task: &TaskId, epoch: Epoch, said: Said) -> Option<Ended> {
    let finished = |outcome: Outcome| {
        shared.input(Input::Finished { task: task.clone(), epoch, outcome });
        Some(Ended::InOrder)
    };
    match said {
        Said::Accepted { began } => {
            shared.input(Input::Accepted { task: task.clone(), epoch });
            if began {
                shared.live.begin(task, epoch);
                shared.input(Input::Began { task: task.clone(), epoch });
            }
            None
        }
        Said::Declined { reason, began } => Some(Ended::Declined(reason.decline(began))),
        Said::Began => {
            shared.live.begin(task, epoch);
            shared.input(Input::Began { task: task.clone(), epoch });
            None
        }
        Said::Renewed { beat } => {
            shared.input(Input::Renewed { task: task.clone(), epoch, beat });
            None
        }
        Said::Piece { anew, text, tokens, .. } => {
            shared.live.begin(task, epoch).write_to(epoch, anew, &text, tokens);
            None
        }
        Said::Completed => finished(Outcome::Completed),
        Said::Failed { reason, retry } => finished(Outcome::Failed { reason: short(reason), retry }),
        Said::HandedBack => finished(Outcome::HandedBack),
        Said::Seen { .. } | Said::Done | Said::Refused | Said::Unknown => None,
    }
}
