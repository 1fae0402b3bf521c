//! One stream of `/bombus/membership/1`, from either end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::exchange::{Token, share_of};
use super::rules::CHANGES_MAX;
use super::wire::{ChangeHash, Frame, Frames};
use super::{SignedChange, SwarmId, SwarmKey};

/// How long whoever opened a stream may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(12);
/// How long a served stream may take in all: longer than any hand-over.
const SERVED_LIMIT: Duration = Duration::from_secs(20);

/// What a node has to offer, as of one moment.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) swarm_id: SwarmId,
    /// The one that counts first.
    pub(super) changes: Vec<SignedChange>,
    pub(super) key: SwarmKey,
}

/// What a served stream asks of the service.
#[derive(Debug)]
pub(super) enum Request {
    /// Which of these changes are new?
    Offer { from: NodeId, swarm_id: String, changes: Vec<ChangeHash>, reply: oneshot::Sender<Vec<ChangeHash>> },
    /// Take this change.
    Change {
        from: NodeId,
        change: Box<SignedChange>,
        key: Option<SwarmKey>,
        within: Duration,
        reply: oneshot::Sender<Taken>,
    },
    /// Whoever sent the key has heard whom it reached.
    Told { token: Token },
}

/// What the service did with a change.
#[derive(Debug)]
pub(super) struct Taken {
    /// It is on disk, or says nothing that is not there already.
    pub(super) stored: bool,
    /// It brought a new key: whom that reached is told here when the hand-over ends.
    pub(super) passed: Option<(Token, oneshot::Receiver<Vec<NodeId>>)>,
}

/// Offers everything to a peer, and returns whom the peer reached in turn once it has everything.
///
/// # Errors
///
/// When the peer did not get everything within the time.
pub(super) async fn push<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    parcel: Arc<Parcel>,
    within: Duration,
) -> io::Result<Vec<NodeId>> {
    let ends = Instant::now() + within;
    let mut frames = Frames::new(stream);
    if !timeout_at(ends, hand(&mut frames, &parcel, within)).await?? {
        return Ok(Vec::new());
    }
    // The peer has it all. That it says nothing of others any more is no failure.
    let heard = timeout_at(ends, frames.next()).await;
    // It waits for the end of the stream, so that what it said is not lost when it goes over.
    let _ = frames.finish().await;
    Ok(match heard {
        Ok(Ok(Some(Frame::Passed { reached }))) => reached,
        _ => Vec::new(),
    })
}

/// Hands over what the peer lacks, and says whether something is to be heard of others.
async fn hand<S: AsyncRead + AsyncWrite + Unpin>(
    frames: &mut Frames<S>,
    parcel: &Parcel,
    within: Duration,
) -> io::Result<bool> {
    let changes = parcel.changes.iter().map(SignedChange::hash).collect();
    frames.send(&Frame::Offer { swarm_id: parcel.swarm_id.to_string(), changes }).await?;
    let Some(Frame::Want { changes: wanted }) = frames.next().await? else {
        return Err(unexpected("no answer to the offer"));
    };
    let mut new_key = false;
    for change in parcel.changes.iter().filter(|change| wanted.contains(&change.hash())) {
        let key = (change.key_hash() == parcel.key.hash()).then(|| parcel.key.clone());
        new_key |= key.is_some();
        let within_ms = u32::try_from(share_of(within).as_millis()).unwrap_or(u32::MAX);
        frames.send(&Frame::Change { change: Box::new(change.clone()), key, within_ms }).await?;
        match frames.next().await? {
            Some(Frame::Ack { change: hash, stored: true }) if hash == change.hash() => {}
            Some(Frame::Ack { .. }) => return Err(unexpected("the change was not taken")),
            _ => return Err(unexpected("no answer to the change")),
        }
    }
    if !new_key {
        frames.finish().await?;
    }
    Ok(new_key)
}

/// Answers a stream that a peer opened.
///
/// # Errors
///
/// When the peer does not keep to the protocol or is silent for too long, or when the service is gone.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    from: NodeId,
    stream: S,
    service: mpsc::Sender<Request>,
) -> io::Result<()> {
    let mut passed = None;
    let served = timeout(SERVED_LIMIT, answer_all(from, stream, &service, &mut passed)).await;
    if let Some((token, _)) = passed {
        // However it ended: nobody has to wait for this peer any more.
        let _ = service.send(Request::Told { token }).await;
    }
    served?
}

async fn answer_all<S: AsyncRead + AsyncWrite + Unpin>(
    from: NodeId,
    stream: S,
    service: &mpsc::Sender<Request>,
    passed: &mut Option<(Token, oneshot::Receiver<Vec<NodeId>>)>,
) -> io::Result<()> {
    let mut frames = Frames::new(stream);
    let Some(Frame::Offer { swarm_id, changes }) = timeout(SILENCE_MAX, frames.next()).await?? else {
        return Err(unexpected("no offer"));
    };
    let (reply, answer) = oneshot::channel();
    let wanted = ask(service, Request::Offer { from: from.clone(), swarm_id, changes, reply }, answer).await?;
    frames.send(&Frame::Want { changes: wanted }).await?;
    // No more are wanted than may be offered; then comes the end, or what is told.
    for _ in 0..=CHANGES_MAX {
        let to_tell = async {
            match passed {
                Some((_, told)) => told.await.ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            frame = timeout(SILENCE_MAX, frames.next()) => match frame?? {
                Some(Frame::Change { change, key, within_ms }) => {
                    let hash = change.hash();
                    let (reply, answer) = oneshot::channel();
                    let within = Duration::from_millis(within_ms.into());
                    let change = Request::Change { from: from.clone(), change, key, within, reply };
                    let taken = ask(service, change, answer).await?;
                    if taken.passed.is_some() {
                        *passed = taken.passed;
                    }
                    frames.send(&Frame::Ack { change: hash, stored: taken.stored }).await?;
                }
                Some(_) => return Err(unexpected("no change")),
                None => return Ok(()),
            },
            reached = to_tell => {
                let Some(reached) = reached else { return Ok(()) };
                frames.send(&Frame::Passed { reached }).await?;
                frames.finish().await?;
                // The end says that it was heard.
                timeout(SILENCE_MAX, frames.next()).await??;
                return Ok(());
            }
        }
    }
    Err(unexpected("too many changes"))
}

async fn ask<T>(service: &mpsc::Sender<Request>, request: Request, answer: oneshot::Receiver<T>) -> io::Result<T> {
    let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the membership service is gone");
    service.send(request).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())
}

fn unexpected(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
