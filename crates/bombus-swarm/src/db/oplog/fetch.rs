//! Catches up with a peer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_net::{NetStream, OpenError};
use orbitdb::cid::Hash;
use orbitdb::manifest::Address;
use orbitdb::replica::Examined;
use orbitdb::sync::Peer;
use orbitdb::{DatabaseError, Gain};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::super::error::DbError;
use super::super::shared::{Shared, aside};
use super::OPLOG_PROTOCOL;
use super::turns::{Progress, Turns};
use super::wire::{self, Answer, Request};

/// How many pieces wait to be checked. When so many do, the stream is not read, and the peer waits.
const PIECES_MAX: usize = 2;
/// How many pieces that were checked wait to join.
const CHECKED_MAX: usize = 1;
/// After how many bytes what came is made safe, so that little waits in memory.
const FLUSH_BYTES: usize = 8 << 20;
/// How often a peer that has too much to do is asked again, and the longest pause before that.
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Why catching up ended before its end.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum CatchUpError {
    /// No stream to the peer, or none of this protocol.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The stream failed, or the peer said what it must not.
    #[error("the stream failed: {0}")]
    Stream(#[from] io::Error),
    /// The peer took too long.
    #[error("the peer said nothing for too long")]
    Silent,
    /// The peer serves others.
    #[error("the peer is busy with others")]
    Busy,
    /// Of what the peer sent nothing is a part of the log, or all of it was here already.
    #[error("nothing of what the peer sent is a part of the log, or all of it was here already")]
    Useless,
    /// The database takes nothing any more.
    #[error(transparent)]
    Database(#[from] DbError),
}

impl From<DatabaseError> for CatchUpError {
    fn from(error: DatabaseError) -> Self {
        Self::Database(error.into())
    }
}

/// Fetches what a peer has of a log and this node lacks; when it returns, that has joined and is safe.
pub(in super::super) async fn catch_up(
    shared: &Arc<Shared>,
    address: Address,
    turns: &Arc<Turns>,
    peer: &NodeId,
) -> Result<(), CatchUpError> {
    let _turn = turns.take().await;
    let mut busy = 0;
    loop {
        match ask(shared, address, turns, peer).await? {
            Asked::All => return Ok(()),
            Asked::More => {}
            Asked::Busy(pause) if busy < BUSY_TRIES => {
                busy += 1;
                sleep(pause.min(BUSY_PAUSE_MAX)).await;
            }
            Asked::Busy(_) => return Err(CatchUpError::Busy),
        }
    }
}

enum Asked {
    All,
    More,
    Busy(Duration),
}

async fn ask(shared: &Arc<Shared>, address: Address, turns: &Arc<Turns>, peer: &NodeId) -> Result<Asked, CatchUpError> {
    let config = &shared.config.oplog;
    let Some(database) = shared.database(&address) else { return Ok(Asked::All) };
    let have = database.have();
    drop(database);
    let request = Request { address: address.to_string(), have: have.iter().map(Hash::to_string).collect() };
    let asked = async {
        let mut stream = shared.net.open_stream(peer, OPLOG_PROTOCOL).await?;
        wire::write(&mut stream, &request).await?;
        let answer: Answer = wire::read(&mut stream).await?;
        Ok::<_, CatchUpError>((stream, answer))
    };
    let (stream, answer) = timeout(config.answer_limit(), asked).await.map_err(|_| CatchUpError::Silent)??;
    match answer {
        Answer::Unknown {} | Answer::Sending { entries: 0, .. } => Ok(Asked::All),
        Answer::Busy { retry_ms } => Ok(Asked::Busy(Duration::from_millis(retry_ms))),
        Answer::Sending { entries, more } => {
            let most = config.entries_max.max(1) as u64;
            tracing::debug!(db.address = %address, peer.id = %peer, entries, "catching up with a peer");
            let progress = turns.begin(peer, entries.min(most));
            let is_new = receive(shared, address, peer, stream, Announced { entries, most }, &progress).await?;
            let more = more || entries > most;
            match (more, is_new) {
                (true, true) => Ok(Asked::More),
                // To the same question it would give the same answer.
                (true, false) => Err(CatchUpError::Useless),
                (false, _) => Ok(Asked::All),
            }
        }
    }
}

/// How many entries a peer said it would send.
struct Announced {
    entries: u64,
    /// So many are taken at once, whatever it said.
    most: u64,
}

/// Takes the pieces of a stream: while one joins the next one is checked, and the one after that comes. Returns whether anything was not here.
async fn receive(
    shared: &Arc<Shared>,
    address: Address,
    peer: &NodeId,
    mut stream: NetStream,
    announced: Announced,
    progress: &Progress,
) -> Result<bool, CatchUpError> {
    let limit = shared.config.oplog.stall_limit();
    // Each entry may name an identity of its own.
    let blocks_max = announced.entries.min(announced.most).saturating_mul(2);
    let (piece_sender, mut pieces) = mpsc::channel(PIECES_MAX);
    let (checked_sender, mut checked) = mpsc::channel(CHECKED_MAX);
    let read = async move {
        let mut blocks = 0_u64;
        loop {
            let piece = timeout(limit, wire::read_piece(&mut stream)).await.map_err(|_| CatchUpError::Silent)??;
            blocks += piece.len() as u64;
            if blocks > blocks_max && announced.entries > announced.most {
                return Ok(());
            }
            if blocks > blocks_max {
                let more = io::Error::new(io::ErrorKind::InvalidData, "more blocks than were announced");
                return Err(more.into());
            }
            // Who checks has ended, and tells why.
            if piece.is_empty() || piece_sender.send(piece).await.is_err() {
                return Ok::<_, CatchUpError>(());
            }
        }
    };
    let check = async move {
        let mut examiner = None;
        while let Some(piece) = pieces.recv().await {
            let database = shared.database(&address).ok_or(DatabaseError::Closed)?;
            let mut with = examiner.take().unwrap_or_else(|| database.examiner(Peer::new(peer.as_str())));
            let (taken, with) = aside(async move {
                let (blocks, bytes) = (piece.len(), piece.iter().map(Vec::len).sum());
                let examined = database.examine(&mut with, &piece);
                Ok((Taken { examined, blocks, bytes }, with))
            })
            .await?;
            examiner = Some(with);
            // Who lets them join has ended, and tells why.
            if checked_sender.send(taken).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let join = async {
        let (mut unsafe_bytes, mut brought, mut any_new) = (0, Instant::now(), false);
        while let Some(Taken { examined, blocks, bytes }) = checked.recv().await {
            unsafe_bytes += bytes;
            let flush = unsafe_bytes >= FLUSH_BYTES;
            if flush {
                unsafe_bytes = 0;
            }
            let gain = join(shared, address, examined, flush).await?;
            let is_new = gain.new > 0;
            progress.done(blocks, bytes, gain.new);
            if is_new {
                (brought, any_new) = (Instant::now(), true);
            } else if gain.known == 0 || brought.elapsed() >= limit {
                // Where both have written since they parted, a peer can only guess where that was: what is known comes first, but not for long.
                return Err(CatchUpError::Useless);
            }
        }
        if let Some(database) = shared.database(&address) {
            database.flush().await?;
        }
        Ok(any_new)
    };
    let ((), (), is_new) = tokio::try_join!(read, check, join)?;
    Ok(is_new)
}

/// A piece that was checked.
struct Taken {
    examined: Examined,
    blocks: usize,
    bytes: usize,
}

/// Lets a piece join.
async fn join(shared: &Arc<Shared>, address: Address, examined: Examined, flush: bool) -> Result<Gain, CatchUpError> {
    let database = shared.database(&address).ok_or(DatabaseError::Closed)?;
    let now = shared.now();
    let gain = aside(async move {
        let gain = database.join(now, examined).await?;
        if flush {
            database.flush().await?;
        }
        Ok(gain)
    });
    Ok(gain.await?)
}
