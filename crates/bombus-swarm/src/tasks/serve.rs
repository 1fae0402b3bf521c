//! Answers the streams that peers open: offers, and short questions.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_core::model::{ModelCapability, ModelName};
use bombus_core::tasks::dispatch::{Input, Offered};
use bombus_core::tasks::{Epoch, TaskDocument, TaskId, TaskKind, proof_holds};
use bombus_net::NetStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::live::{Piece, Reader};
use super::shared::Shared;
use super::talk::Talk;
use super::wire::{ASK_BYTES_MAX, Ask, DeclineWord, Offer, PIECE_BYTES_MAX, Said, WORD_BYTES_MAX, Word};
use super::{TASK_PROTOCOL, cancel, driver, sealed};
use crate::places::Places;
use crate::streams::answer_each;
use crate::supervised::PartEnded;

/// Most streams at a time; those beyond are reset.
const STREAMS_MAX: usize = 4_096;
/// How many of them may be one peer's.
const STREAMS_PER_PEER_MAX: usize = 1_024;
/// How long a peer may take to say what it wants.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// How many words to a requester may wait; when it reads none for so long, its stream is ended.
const WORDS_MAX: usize = 32;
/// Least time between two pieces of an answer, so that a short one comes with its result alone.
const PIECES_EVERY: Duration = Duration::from_millis(50);

/// A task as its offer said.
pub(super) struct TakenTask {
    pub(super) document: Arc<TaskDocument>,
    /// The generation of the databases in which it stands.
    pub(super) generation: u64,
}

/// The stream of a requester.
pub(super) struct Listener {
    number: u64,
    pub(super) said: mpsc::Sender<Said>,
}

/// Answers all peers until `stop`.
pub(super) async fn serve_all(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), PartEnded> {
    let incoming = shared.net.accept(TASK_PROTOCOL)?;
    let places = Places::new(STREAMS_MAX, STREAMS_PER_PEER_MAX);
    answer_each(incoming, &places, stop, TASK_PROTOCOL, |peer, stream| {
        let shared = Arc::clone(shared);
        async move { answer(&shared, peer, stream).await }
    })
    .await
}

async fn answer(shared: &Arc<Shared>, peer: NodeId, stream: NetStream) -> io::Result<()> {
    let mut talk = Talk::new(stream, ASK_BYTES_MAX);
    let ask = timeout(ASK_LIMIT, talk.hear::<Ask>()).await??;
    talk.expect(WORD_BYTES_MAX);
    match ask {
        Ask::Offer(offer) => offered(shared, peer, talk, offer).await,
        Ask::Follow { task } => followed(shared, talk, &peer, &task).await,
        Ask::Cancel { task } => {
            let said = if cancel::asked(shared, &task).await { Said::Done } else { Said::Refused };
            talk.say(&said).await?;
            talk.end().await
        }
        Ask::Around { task, requester } => {
            talk.say(&driver::answer(shared, &task, requester.as_ref())).await?;
            talk.end().await
        }
    }
}

/// Takes an offer, and says what becomes of it.
async fn offered(shared: &Arc<Shared>, peer: NodeId, mut talk: Talk, offer: Offer) -> io::Result<()> {
    let document = read(&offer.task).filter(|document| is_by(document, &peer));
    let Some(document) = document else {
        talk.say(&Said::Declined { reason: DeclineWord::NotAble, began: false }).await?;
        return talk.end().await;
    };
    let (task, epoch) = (document.id.clone(), Epoch(offer.epoch));
    // Its return has to be known soon, and its death.
    let _watched = shared.swarm.watch(&peer);
    let (said, words) = mpsc::channel(WORDS_MAX);
    let number = shared.number();
    shared.listeners().insert((task.clone(), epoch), Listener { number, said });
    let able = is_able(shared, &document, Some(&peer)) && shared.can_write();
    let offered = Offered {
        task: task.clone(),
        requester: peer,
        epoch,
        grant: offer.grant,
        resume: offer.resume,
        able,
        priority: document.priority(),
        timeout: document.timeout_ms.map(Duration::from_millis),
    };
    let taken = TakenTask { document: Arc::new(document), generation: offer.generation };
    shared.documents().insert(task.clone(), taken);
    shared.input(Input::Offered(Box::new(offered)));
    let ended = listen(shared, &task, epoch, talk, words).await;
    let mut listeners = shared.listeners();
    let key = (task, epoch);
    if listeners.get(&key).is_some_and(|listener| listener.number == number) {
        listeners.remove(&key);
    }
    ended
}

async fn listen(
    shared: &Arc<Shared>,
    task: &TaskId,
    epoch: Epoch,
    mut talk: Talk,
    mut words: mpsc::Receiver<Said>,
) -> io::Result<()> {
    let mut pieces: Option<Pieces> = None;
    loop {
        tokio::select! {
            biased;
            said = words.recv() => {
                // Another stream has taken its place, or it was not read.
                let Some(said) = said else { return Ok(()) };
                talk.say(&said).await?;
                if said.is_last() {
                    return talk.end().await;
                }
                if matches!(said, Said::Began | Said::Accepted { began: true }) {
                    pieces = shared.live.get(task).map(|live| Pieces::of(live.read()));
                }
            }
            word = talk.hear::<Word>() => match word? {
                Word::Acknowledged { beat } => {
                    shared.input(Input::Acknowledged { task: task.clone(), epoch, beat });
                }
                Word::Revoked => {
                    shared.documents().remove(task);
                    shared.input(Input::Revoked { task: task.clone(), epoch });
                    return talk.end().await;
                }
                Word::Unknown => {}
            },
            piece = next_of(&mut pieces) => say_piece(&mut talk, &piece).await?,
        }
    }
}

/// Says what is written of an answer here, until nothing follows.
async fn followed(shared: &Arc<Shared>, mut talk: Talk, peer: &NodeId, task: &TaskId) -> io::Result<()> {
    let view = shared.view(task).await.ok().flatten();
    let live = shared.live.get(task).filter(|_| sealed::may_follow(view.as_deref(), peer));
    let Some(live) = live else {
        talk.say(&Said::Refused).await?;
        return talk.end().await;
    };
    let mut pieces = Some(Pieces::at_once(live.read()));
    loop {
        tokio::select! {
            biased;
            // Nothing more is to be heard but the end.
            word = talk.hear::<Word>() => drop(word?),
            piece = next_of(&mut pieces) => {
                say_piece(&mut talk, &piece).await?;
                if piece.ended {
                    talk.say(&Said::Done).await?;
                    return talk.end().await;
                }
            }
        }
    }
}

async fn say_piece(talk: &mut Talk, piece: &Piece) -> io::Result<()> {
    let Piece { anew, epoch, text, tokens, .. } = piece;
    let mut rest = text.as_str();
    let mut anew = *anew;
    loop {
        let (now, later) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES_MAX));
        talk.say(&Said::Piece { anew, epoch: epoch.0, text: now.to_owned(), tokens: *tokens }).await?;
        (rest, anew) = (later, false);
        if rest.is_empty() {
            return Ok(());
        }
    }
}

/// Pieces of an answer, not too many of them.
struct Pieces {
    reader: Reader,
    next_at: Instant,
    has_news: bool,
}

impl Pieces {
    fn of(reader: Reader) -> Self {
        Self { reader, next_at: Instant::now() + PIECES_EVERY, has_news: true }
    }

    fn at_once(reader: Reader) -> Self {
        Self { reader, next_at: Instant::now(), has_news: true }
    }

    /// Waits for the next piece. Safe to cancel.
    async fn next(&mut self) -> Piece {
        loop {
            if !self.has_news {
                self.reader.changed().await;
                self.has_news = true;
            }
            sleep_until(self.next_at).await;
            self.has_news = false;
            if let Some(piece) = self.reader.take() {
                self.next_at = Instant::now() + PIECES_EVERY;
                return piece;
            }
        }
    }
}

async fn next_of(pieces: &mut Option<Pieces>) -> Piece {
    match pieces {
        Some(pieces) => pieces.next().await,
        None => std::future::pending().await,
    }
}

fn read(json: &str) -> Option<TaskDocument> {
    TaskDocument::read(serde_json::from_str(json).ok()?).ok()
}

/// Says whether a task belongs to a peer, which has proven that it is who it says.
fn is_by(document: &TaskDocument, peer: &NodeId) -> bool {
    let (Some(identity), Some(proof)) = (&document.requester_identity, &document.requester_proof) else { return false };
    document.requester_peer_id == peer.as_str() && proof_holds(peer, &document.id, identity, proof)
}

/// Says whether this node can run a task, and does so for this requester.
pub(super) fn is_able(shared: &Shared, document: &TaskDocument, requester: Option<&NodeId>) -> bool {
    if !shared.config.work || !document.may_be_claimed_by(&shared.me) {
        return false;
    }
    let of_another = requester != Some(&shared.me);
    let capability = match document.kind() {
        TaskKind::Ping => return !of_another || shared.route.refusal(requester, None).is_none(),
        TaskKind::Inference => ModelCapability::Completion,
        TaskKind::Embedding => ModelCapability::Embedding,
        TaskKind::Other(_) => return false,
    };
    let Ok(name) = ModelName::parse(&document.model) else { return false };
    if of_another && shared.route.refusal(requester, Some(&name)).is_some() {
        return false;
    }
    let known = shared.backends.known();
    known.iter().any(|listed| listed.info.name == name && listed.info.capabilities.contains(&capability))
}
