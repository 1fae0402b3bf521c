//! One file from several peers at once: in ranges, gone on with where it broke off, checked by its hash.

mod chase;
mod plan;
mod ranges;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};

use super::super::peers::{PeerCopy, PeerReadError, PeerSource};
use super::super::store::{ModelStore, StoreError};
use super::download::partial_path;
use super::{PullConfig, PullError, PullProgress, PullStage, Report, check_space};
use crate::platform::write_all_at;
use chase::{Chase, digest_of};
use plan::Plan;
use ranges::{read_map, write_map};

pub(super) use ranges::{cut_at_first_gap, map_path};

/// Most peers that send at a time; others take the place of those that fail.
const PEERS_MAX: usize = 4;
/// Streams to each of them, so that one is on its way while the next range is asked for.
const STREAMS_PER_PEER: usize = 2;
/// Bytes are written in pieces of about this size, off the threads that serve others.
const PIECE_BYTES: usize = 1 << 20;
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// How often it is written down what is here.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How many times in a row a stream fails without a byte before its peer is left alone.
const FAILURES_MAX: u32 = 3;
/// How long a peer may say in a row that it is busy.
const BUSY_MAX: Duration = Duration::from_secs(120);
/// Least and longest time before a busy peer is asked again.
const BUSY_PAUSE: Range<Duration> = Duration::from_millis(50)..Duration::from_secs(10);
/// A peer that sends less than this within the time for a stall has stalled.
const STALL_BYTES_MIN: u64 = 64 << 10;

/// A file to be fetched from peers.
pub(super) struct Job<'a> {
    pub(super) sha256: &'a str,
    pub(super) size_bytes: u64,
    /// The lock on this file. Writes hold on to it: one that is under way when a pull is dropped must not meet the next pull's.
    pub(super) lock: &'a Arc<File>,
    pub(super) source: &'a Arc<dyn PeerSource>,
    pub(super) copies: Vec<PeerCopy>,
}

/// Why a file did not come from peers.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotFetched {
    /// No peer sends it, or none sends the right bytes; what came is kept where it may be right.
    #[error("{0}")]
    Peers(String),
    /// This machine cannot take it.
    #[error(transparent)]
    Here(PullError),
}

impl From<StoreError> for NotFetched {
    fn from(error: StoreError) -> Self {
        Self::Here(error.into())
    }
}

/// Names the peers that a file comes from, for people.
pub(super) fn names(copies: &[PeerCopy]) -> String {
    let names: Vec<&str> = copies.iter().take(PEERS_MAX).map(|copy| copy.node_name.as_str()).collect();
    let more = if copies.len() > PEERS_MAX { ", ..." } else { "" };
    format!("{}{more}", names.join(", "))
}

/// Fetches a file into its partial file and returns that once it is whole and has the right hash.
pub(super) async fn fetch(
    store: &ModelStore,
    config: &PullConfig,
    job: Job<'_>,
    report: Report<'_>,
) -> Result<PathBuf, NotFetched> {
    let mut fetch = Fetch::open(store, config, job).await?;
    let fetched = fetch.run(report).await;
    match fetched {
        Ok(()) => fetch.finish(),
        Err(error) => {
            // Whoever goes on, goes on from here.
            if let Err(error) = fetch.save().await {
                tracing::debug!(%error, "what came from peers cannot be written down");
            }
            Err(error)
        }
    }
}

/// The work on one file.
struct Fetch {
    store: ModelStore,
    sha256: String,
    partial: PathBuf,
    map: PathBuf,
    shared: Shared,
    /// The peers that may send, by number.
    usable: VecDeque<usize>,
    /// Bytes that some peer sent of a file that was wrong as a whole, until it is known who was at fault.
    suspects: Vec<Suspect>,
}

/// What all streams of a file share.
struct Shared {
    source: Arc<dyn PeerSource>,
    copies: Vec<PeerCopy>,
    file: Arc<File>,
    lock: Arc<File>,
    /// Held for some microseconds, and never across a wait.
    plan: Mutex<Plan>,
    /// There is something to take again.
    released: Notify,
    whole: Notify,
    stall: Duration,
    /// After the first failure of a stream; it doubles with the next.
    pause: Duration,
    size_bytes: u64,
}

struct Suspect {
    range: Range<u64>,
    peer: usize,
    digest: [u8; 32],
}

/// The streams at work, each with its peer.
type Streams<'a> = FuturesUnordered<BoxFuture<'a, (usize, Ended)>>;

/// Why a stream to a peer ended.
enum Ended {
    /// The peer is no use.
    Lost(String),
    /// This machine cannot take the file.
    Here(std::io::Error),
}

/// Why a range did not come whole.
enum RangeFailure {
    Peer(PeerReadError),
    Here(std::io::Error),
}

/// Begins the streams to a peer.
fn begin<'a>(shared: &'a Shared, peer: usize, streams: &Streams<'a>, sending: &mut Vec<usize>) {
    for _ in 0..STREAMS_PER_PEER {
        sending.push(peer);
        streams.push(Box::pin(async move { (peer, shared.stream_from(peer).await) }));
    }
}

impl Fetch {
    async fn open(store: &ModelStore, config: &PullConfig, job: Job<'_>) -> Result<Self, NotFetched> {
        let Job { sha256, size_bytes, lock, source, copies } = job;
        let (partial, map) = (partial_path(store, sha256), map_path(store, sha256));
        let have = read_map(&partial, &map, size_bytes);
        check_space(store, size_bytes - have.bytes())?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&partial);
        let file = file.map_err(StoreError::io(&partial))?;
        if file.metadata().map_err(StoreError::io(&partial))?.len() > size_bytes {
            file.set_len(size_bytes).map_err(StoreError::io(&partial))?;
        }
        // Before the first byte behind a gap: without a map all that the file has would count.
        write_map(store, &map, &have)?;
        let usable = (0..copies.len()).collect();
        let shared = Shared {
            source: Arc::clone(source),
            copies,
            file: Arc::new(file),
            lock: Arc::clone(lock),
            plan: Mutex::new(Plan::new(size_bytes, config.peer_range_bytes, have)),
            released: Notify::new(),
            whole: Notify::new(),
            stall: config.peer_stall_timeout,
            pause: config.retry_after,
            size_bytes,
        };
        let (store, sha256) = (store.clone(), sha256.to_owned());
        Ok(Self { store, sha256, partial, map, shared, usable, suspects: Vec::new() })
    }

    /// Fetches until the file is right. Where it is wrong as a whole, it is fetched from one peer alone, so that it shows who is at fault.
    async fn run(&mut self, report: Report<'_>) -> Result<(), NotFetched> {
        let mut alone = false;
        loop {
            let asked: VecDeque<usize> =
                if alone { self.usable.iter().copied().take(1).collect() } else { self.usable.clone() };
            let reason = match self.gather(asked, &mut *report).await {
                Ok(found) if found == self.sha256 => {
                    self.name_those_at_fault().await?;
                    return Ok(());
                }
                Ok(_) => {
                    self.narrow_down().await?;
                    "what it sent is not what it promised".to_owned()
                }
                Err(NotFetched::Peers(reason)) if alone => {
                    self.usable.pop_front();
                    self.forget_all().await?;
                    reason
                }
                Err(error) => return Err(error),
            };
            alone = true;
            if self.usable.is_empty() {
                return Err(NotFetched::Peers(reason));
            }
        }
    }

    /// Brings the file to its end from these peers, and returns its hash in lower-case hex.
    async fn gather(&self, asked: VecDeque<usize>, report: Report<'_>) -> Result<String, NotFetched> {
        let mut saving = None;
        let gathered = self.gather_and_save(asked, report, &mut saving).await;
        if let Some(saving) = saving {
            // What it writes is older than what is written next; and where the map goes away next, it must not come back.
            let saved = saving.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            return gathered.and_then(|hash| saved.map(|()| hash).map_err(NotFetched::from));
        }
        gathered
    }

    /// Does so, and leaves in `saving` what may still be writing down what is here.
    async fn gather_and_save(
        &self,
        mut asked: VecDeque<usize>,
        report: Report<'_>,
        saving: &mut Option<JoinHandle<Result<(), StoreError>>>,
    ) -> Result<String, NotFetched> {
        let shared = &self.shared;
        // The streams of a round before may have been dropped in the middle of something.
        shared.plan().release_all();
        let here = shared.plan().have().bytes();
        report(PullProgress::new(PullStage::Downloading, here, Some(shared.size_bytes)));
        let (mut streams, mut sending) = (Streams::new(), Vec::new());
        while sending.len() < PEERS_MAX * STREAMS_PER_PEER
            && let Some(peer) = asked.pop_front()
        {
            begin(shared, peer, &streams, &mut sending);
        }
        let mut chase = Chase::new(Arc::clone(&shared.file), Arc::clone(&shared.lock));
        let mut saved = Instant::now();
        let mut tick = interval(TELL_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_whole = shared.plan().is_whole();
        let mut reason = "no peer that has it can be asked".to_owned();
        loop {
            let prefix = shared.plan().have().prefix();
            if is_whole && chase.done() == shared.size_bytes {
                break;
            }
            chase.go(prefix, is_whole);
            tokio::select! {
                biased;
                Some((peer, ended)) = streams.next(), if !is_whole => match ended {
                    Ended::Here(error) => {
                        let left = shared.size_bytes - shared.plan().have().bytes();
                        return Err(self.store.write_error(&self.partial, error, left).into());
                    }
                    Ended::Lost(why) => {
                        let copy = &shared.copies[peer];
                        let at = sending.iter().position(|sends| *sends == peer);
                        at.map(|at| sending.swap_remove(at));
                        if !sending.contains(&peer) {
                            tracing::info!(peer.id = %copy.node, peer.name = copy.node_name, reason = why, "a peer sends no more of a model");
                            reason = format!("{}: {why}", copy.node_name);
                            asked.pop_front().inspect(|next| begin(shared, *next, &streams, &mut sending));
                        }
                        if streams.is_empty() && !shared.plan().is_whole() {
                            return Err(NotFetched::Peers(reason));
                        }
                    }
                },
                () = shared.whole.notified(), if !is_whole => {
                    is_whole = shared.plan().is_whole();
                    if is_whole {
                        // What others are still sending is here already.
                        streams.clear();
                    }
                }
                hashed = chase.step(), if chase.is_busy() => hashed.map_err(StoreError::io(&self.partial))?,
                ended = async { saving.as_mut().expect("it is asked only while it saves").await }, if saving.is_some() => {
                    *saving = None;
                    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
                }
                _ = tick.tick() => {
                    let done = shared.plan().have().bytes();
                    if is_whole {
                        report(PullProgress::new(PullStage::Verifying, chase.done(), Some(shared.size_bytes)));
                    } else {
                        report(PullProgress::new(PullStage::Downloading, done, Some(shared.size_bytes)));
                    }
                    if saving.is_none() && saved.elapsed() >= SAVE_EVERY {
                        saved = Instant::now();
                        *saving = Some(spawn_blocking(self.saves()));
                    }
                }
            }
        }
        report(PullProgress::new(PullStage::Downloading, shared.size_bytes, Some(shared.size_bytes)));
        Ok(chase.finish())
    }

    /// After a wrong hash: either it is known who is at fault, or all but what one peer sent is forgotten, and that one sends the rest.
    async fn narrow_down(&mut self) -> Result<(), NotFetched> {
        let (chosen, is_alone) = {
            let plan = self.shared.plan();
            let chosen = plan.most_from();
            (chosen, chosen.is_some_and(|peer| plan.is_all_from(peer)))
        };
        if let Some(peer) = chosen.filter(|_| is_alone) {
            self.accuse(peer);
            self.usable.retain(|usable| *usable != peer);
            return self.forget_all().await;
        }
        let forgotten = self.shared.plan().keep_only(chosen);
        self.save().await?;
        for (range, peer) in forgotten {
            let digest = self.digest(range.clone()).await?;
            self.suspects.push(Suspect { range, peer, digest });
        }
        if let Some(peer) = chosen {
            self.usable.retain(|usable| *usable != peer);
            self.usable.push_front(peer);
        }
        Ok(())
    }

    async fn name_those_at_fault(&mut self) -> Result<(), NotFetched> {
        let mut at_fault = Vec::new();
        for Suspect { range, peer, digest } in std::mem::take(&mut self.suspects) {
            if !at_fault.contains(&peer) && self.digest(range).await? != digest {
                at_fault.push(peer);
                self.accuse(peer);
            }
        }
        Ok(())
    }

    fn accuse(&self, peer: usize) {
        let PeerCopy { node, node_name, .. } = &self.shared.copies[peer];
        tracing::warn!(
            peer.id = %node, peer.name = node_name, model.sha256 = self.sha256,
            "a peer sent other bytes than the model has; its copy may be damaged"
        );
    }

    async fn forget_all(&self) -> Result<(), NotFetched> {
        self.shared.plan().keep_only(None);
        self.save().await
    }

    async fn digest(&self, range: Range<u64>) -> Result<[u8; 32], NotFetched> {
        let (file, lock) = (Arc::clone(&self.shared.file), Arc::clone(&self.shared.lock));
        let work = move || {
            let _lock = lock;
            digest_of(&file, range)
        };
        let digest = spawn_blocking(work).await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        Ok(digest.map_err(StoreError::io(&self.partial))?)
    }

    /// Writes down what is here now.
    async fn save(&self) -> Result<(), NotFetched> {
        let saved = spawn_blocking(self.saves()).await;
        Ok(saved.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?)
    }

    fn saves(&self) -> impl FnOnce() -> Result<(), StoreError> + Send + 'static {
        let (store, map, partial) = (self.store.clone(), self.map.clone(), self.partial.clone());
        let (file, lock) = (Arc::clone(&self.shared.file), Arc::clone(&self.shared.lock));
        let have = self.shared.plan().have().clone();
        move || {
            let _lock = lock;
            // What the map says has to be on the disk before it.
            file.sync_data().map_err(StoreError::io(&partial))?;
            write_map(&store, &map, &have)
        }
    }

    /// Takes the map away: the file has no gap any more.
    fn finish(self) -> Result<PathBuf, NotFetched> {
        fs::remove_file(&self.map).map_err(StoreError::io(&self.map))?;
        Ok(self.partial)
    }
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches range after range from a peer, until it is of no use any more. Where there is nothing to fetch, waits for something.
    async fn stream_from(&self, peer: usize) -> Ended {
        let (mut failures, mut busy_since) = (0, None::<Instant>);
        loop {
            let mut released = pin!(self.released.notified());
            released.as_mut().enable();
            let taken = self.plan().take(peer);
            let Some((id, range)) = taken else {
                released.await;
                continue;
            };
            let begin = range.start;
            let came = self.range_from(peer, id, range).await;
            let progressed = self.plan().left(id).start > begin;
            self.plan().release(id);
            self.released.notify_waiters();
            let failure = match came {
                Ok(()) => {
                    (failures, busy_since) = (0, None);
                    continue;
                }
                Err(RangeFailure::Here(error)) => return Ended::Here(error),
                Err(RangeFailure::Peer(failure)) => failure,
            };
            let pause = match failure {
                PeerReadError::Refused(reason) => return Ended::Lost(format!("it refuses: {reason}")),
                PeerReadError::Busy { retry_after } => {
                    if busy_since.get_or_insert_with(Instant::now).elapsed() > BUSY_MAX {
                        return Ended::Lost("it is busy with other transfers".to_owned());
                    }
                    retry_after.clamp(BUSY_PAUSE.start, BUSY_PAUSE.end)
                }
                PeerReadError::Failed(reason) => {
                    failures = if progressed { 1 } else { failures + 1 };
                    if failures >= FAILURES_MAX {
                        return Ended::Lost(reason);
                    }
                    self.pause * 2_u32.pow(failures - 1)
                }
            };
            sleep(pause).await;
        }
    }

    /// Fetches one range, as far as it is not given to another peer meanwhile.
    async fn range_from(&self, peer: usize, id: u64, range: Range<u64>) -> Result<(), RangeFailure> {
        let failed = |reason: String| RangeFailure::Peer(PeerReadError::Failed(reason));
        let stalled = || failed(format!("it sent next to nothing for {} s", self.stall.as_secs_f32()));
        let mut deadline = Instant::now() + self.stall;
        let begun = timeout_at(deadline, self.source.read(&self.copies[peer], range)).await;
        let mut bytes = begun.map_err(|_| stalled())?.map_err(RangeFailure::Peer)?;
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let mut since_deadline = 0;
        loop {
            let next = timeout_at(deadline, bytes.next()).await;
            let (more, end) = match next {
                Ok(Some(Ok(more))) => (more, None),
                Ok(Some(Err(error))) => (Bytes::new(), Some(failed(error.to_string()))),
                Ok(None) => (Bytes::new(), Some(failed("it ended too early".to_owned()))),
                Err(_) => (Bytes::new(), Some(stalled())),
            };
            since_deadline += more.len() as u64;
            if since_deadline >= STALL_BYTES_MIN {
                (deadline, since_deadline) = (Instant::now() + self.stall, 0);
            }
            piece.extend_from_slice(&more);
            let left = {
                let left = self.plan().left(id);
                left.end - left.start
            };
            if piece.len() as u64 >= left || piece.len() >= PIECE_BYTES || end.is_some() {
                let writing = Instant::now();
                piece = self.write(id, piece).await.map_err(RangeFailure::Here)?;
                // It is not the peer's fault that this disk is slow.
                deadline += writing.elapsed();
                if self.plan().left(id).is_empty() {
                    return Ok(());
                }
            }
            if let Some(end) = end {
                return Err(end);
            }
        }
    }

    /// Writes a piece of a range and returns its memory, emptied.
    async fn write(&self, id: u64, mut piece: Vec<u8>) -> std::io::Result<Vec<u8>> {
        let place = self.plan().begin_write(id, piece.len() as u64);
        let bytes = usize::try_from(place.end - place.start).unwrap_or(0);
        piece.truncate(bytes);
        let (file, lock) = (Arc::clone(&self.file), Arc::clone(&self.lock));
        let work = move || {
            let _lock = lock;
            write_all_at(&file, &piece, place.start)?;
            piece.clear();
            std::io::Result::Ok(piece)
        };
        let piece = spawn_blocking(work).await.map_err(std::io::Error::other)??;
        let mut plan = self.plan();
        plan.written(id);
        if plan.is_whole() {
            self.whole.notify_one();
        }
        Ok(piece)
    }
}

/// Says whether a part of a file came from peers, and is kept.
pub(super) fn is_begun(store: &ModelStore, sha256: &str) -> bool {
    let (partial, map): (PathBuf, PathBuf) = (partial_path(store, sha256), map_path(store, sha256));
    let has = |path: &Path| fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0);
    has(&partial) && map.exists()
}
