//! The streams that carry the failure detector's datagrams away: one to each peer, each with a task and a short queue of its own, so that a
//! peer whose stream takes no bytes holds up nobody else.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bombus_core::identity::NodeId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::FromPeer;
use crate::wire::write_datagram;

/// Opens streams to peers.
pub(crate) trait Opener: Clone + Send + Sync + 'static {
    /// What it opens.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send;

    /// Opens a stream to a peer.
    fn open(&self, peer: &NodeId) -> impl Future<Output = Result<Self::Stream, OpenFailed>> + Send;
}

/// Why there is no stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OpenFailed {
    /// The peer does not speak the protocol: it is no Bombus node.
    Unsupported,
    /// Anything else; it may work later.
    Failed(String),
}

/// Limits of one peer's stream.
#[derive(Debug, Clone)]
pub(crate) struct LinkLimits {
    /// Datagrams that wait; the newest is dropped beyond that.
    pub(crate) queue: usize,
    /// How old a datagram may be when its turn comes: what is older says nothing any more.
    pub(crate) age: Duration,
    /// How long opening may take.
    pub(crate) open: Duration,
    /// How long one datagram may take to be written.
    pub(crate) write: Duration,
    /// After how long without a datagram the stream ends.
    pub(crate) idle: Duration,
    /// Pause after the first failure; it doubles with each.
    pub(crate) pause_min: Duration,
    /// Longest pause.
    pub(crate) pause_max: Duration,
    /// Most peers with a stream.
    pub(crate) peers: usize,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self {
            queue: 16,
            age: Duration::from_secs(2),
            open: Duration::from_secs(3),
            write: Duration::from_secs(2),
            idle: Duration::from_secs(60),
            pause_min: Duration::from_millis(250),
            pause_max: Duration::from_secs(10),
            peers: 1_024,
        }
    }
}

/// What became of datagrams.
#[derive(Debug, Default)]
pub(crate) struct LinkCounts {
    /// Written to a stream.
    pub(crate) sent: AtomicU64,
    /// Their bytes.
    pub(crate) sent_bytes: AtomicU64,
    /// Dropped: a queue was full, a peer was not reached a moment before, or they were too old.
    pub(crate) dropped: AtomicU64,
    /// Streams that failed, or took no bytes for too long.
    pub(crate) broken: AtomicU64,
    /// Streams that could not be opened.
    pub(crate) unopened: AtomicU64,
}

impl LinkCounts {
    pub(crate) fn add(counter: &AtomicU64, number: u64) {
        counter.fetch_add(number, Ordering::Relaxed);
    }
}

/// All streams that carry datagrams away.
pub(crate) struct Links<O> {
    opener: O,
    limits: LinkLimits,
    counts: Arc<LinkCounts>,
    /// Told when a stream stands, which says that the peer speaks the protocol.
    up: mpsc::Sender<FromPeer>,
    writers: HashMap<NodeId, mpsc::Sender<Queued>>,
    tasks: JoinSet<NodeId>,
    /// The last datagram for each peer, once it is time for it.
    goodbyes: watch::Sender<HashMap<NodeId, Vec<u8>>>,
}

enum Queued {
    Open,
    Datagram { bytes: Vec<u8>, at: Instant },
}

impl<O: Opener> Links<O> {
    pub(crate) fn new(opener: O, limits: LinkLimits, counts: Arc<LinkCounts>, up: mpsc::Sender<FromPeer>) -> Self {
        let goodbyes = watch::Sender::new(HashMap::new());
        Self { opener, limits, counts, up, writers: HashMap::new(), tasks: JoinSet::new(), goodbyes }
    }

    /// Sends a datagram, or drops it.
    pub(crate) fn send(&mut self, peer: &NodeId, bytes: Vec<u8>) {
        self.queue(peer, Queued::Datagram { bytes, at: Instant::now() });
    }

    /// Opens a new stream for a connection that has just begun, whatever was wrong before.
    pub(crate) fn open(&mut self, peer: &NodeId) {
        // The task before ends by that, with the stream over the connection before.
        self.writers.remove(peer);
        self.queue(peer, Queued::Open);
    }

    /// Takes note that a peer speaks the protocol: where it did not at first, since that part of it began later, its stream is opened now.
    pub(crate) fn speaks(&self, peer: &NodeId) {
        if let Some(writer) = self.writers.get(peer) {
            // A writer that has its hands full is one that works.
            drop(writer.try_send(Queued::Open));
        }
    }

    fn queue(&mut self, peer: &NodeId, queued: Queued) {
        let refused = match self.writers.get(peer) {
            Some(writer) => match writer.try_send(queued) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(_)) => None,
                Err(mpsc::error::TrySendError::Closed(queued)) => Some(queued),
            },
            None => Some(queued),
        };
        let started =
            refused.is_some_and(|queued| self.start(peer).is_some_and(|writer| writer.try_send(queued).is_ok()));
        if !started {
            LinkCounts::add(&self.counts.dropped, 1);
        }
    }

    fn start(&mut self, peer: &NodeId) -> Option<&mpsc::Sender<Queued>> {
        if self.writers.len() >= self.limits.peers {
            return None;
        }
        let (sender, queue) = mpsc::channel(self.limits.queue);
        let writer = Writer {
            opener: self.opener.clone(),
            peer: peer.clone(),
            limits: self.limits.clone(),
            counts: Arc::clone(&self.counts),
            up: self.up.clone(),
            stream: None,
            failures: 0,
            retry_at: None,
            speaks: None,
        };
        // One that fails counts that, and ends; the next datagram starts another.
        self.tasks.spawn(writer.run(queue, self.goodbyes.subscribe()));
        self.writers.insert(peer.clone(), sender);
        self.writers.get(peer)
    }

    /// Waits for a task to end, and forgets it. Pending while none does. Safe to cancel.
    pub(crate) async fn reap(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok(peer)) => {
                if self.writers.get(&peer).is_some_and(mpsc::Sender::is_closed) {
                    self.writers.remove(&peer);
                }
            }
            Some(Err(error)) => {
                tracing::error!(%error, "a task that sends to a peer failed");
                self.writers.retain(|_, writer| !writer.is_closed());
            }
            None => std::future::pending().await,
        }
    }

    /// Sends each peer its last datagram, and waits until they have taken it, up to a limit.
    pub(crate) async fn say_goodbye(mut self, goodbyes: Vec<(NodeId, Vec<u8>)>, limit: Duration) {
        for (peer, _) in &goodbyes {
            if !self.writers.contains_key(peer) {
                self.start(peer);
            }
        }
        self.goodbyes.send_replace(goodbyes.into_iter().collect());
        let all_taken = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(limit, all_taken).await.is_err() {
            tracing::debug!(missed = self.tasks.len(), "not every peer took the goodbye in time");
        }
    }
}

/// One peer's stream.
struct Writer<O: Opener> {
    opener: O,
    peer: NodeId,
    limits: LinkLimits,
    counts: Arc<LinkCounts>,
    up: mpsc::Sender<FromPeer>,
    stream: Option<O::Stream>,
    failures: u32,
    retry_at: Option<Instant>,
    /// Whether the peer speaks the protocol, as far as its answer to the last try says.
    speaks: Option<bool>,
}

impl<O: Opener> Writer<O> {
    async fn run(
        mut self,
        mut queue: mpsc::Receiver<Queued>,
        mut goodbyes: watch::Receiver<HashMap<NodeId, Vec<u8>>>,
    ) -> NodeId {
        loop {
            tokio::select! {
                biased;
                Ok(()) = goodbyes.changed() => {
                    let goodbye = goodbyes.borrow().get(&self.peer).cloned();
                    if let Some(goodbye) = goodbye {
                        self.say_goodbye(&goodbye).await;
                    }
                    break;
                }
                queued = timeout(self.limits.idle, queue.recv()) => match queued {
                    Ok(Some(queued)) => self.take(queued).await,
                    Ok(None) | Err(_) => {
                        self.shut_down().await;
                        break;
                    }
                }
            }
        }
        self.peer
    }

    async fn take(&mut self, queued: Queued) {
        if matches!(queued, Queued::Open) && self.speaks == Some(false) {
            self.retry_at = None;
        }
        if self.retry_at.is_some_and(|retry_at| Instant::now() < retry_at) {
            LinkCounts::add(&self.counts.dropped, 1);
            return;
        }
        match queued {
            Queued::Open => {
                self.stand().await;
            }
            Queued::Datagram { at, .. } if at.elapsed() > self.limits.age => LinkCounts::add(&self.counts.dropped, 1),
            Queued::Datagram { bytes, .. } => {
                // The stream may have ended with a connection that another one has replaced.
                let sent = self.write(&bytes).await || self.write(&bytes).await;
                if !sent {
                    LinkCounts::add(&self.counts.dropped, 1);
                }
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> bool {
        let limit = self.limits.write;
        let Some(stream) = self.stand().await else { return false };
        match timeout(limit, write_datagram(stream, bytes)).await {
            Ok(Ok(())) => {
                self.failures = 0;
                LinkCounts::add(&self.counts.sent, 1);
                LinkCounts::add(&self.counts.sent_bytes, 2 + bytes.len() as u64);
                true
            }
            Ok(Err(_)) => {
                self.stream = None;
                LinkCounts::add(&self.counts.broken, 1);
                false
            }
            Err(_) => {
                self.stream = None;
                LinkCounts::add(&self.counts.broken, 1);
                self.pause();
                false
            }
        }
    }

    /// Returns the stream, which is opened where there is none.
    async fn stand(&mut self) -> Option<&mut O::Stream> {
        if self.stream.is_none() && self.retry_at.is_none_or(|retry_at| Instant::now() >= retry_at) {
            let opened = timeout(self.limits.open, self.opener.open(&self.peer)).await;
            match opened.unwrap_or_else(|_| Err(OpenFailed::Failed("it took too long".to_owned()))) {
                Ok(stream) => {
                    self.retry_at = None;
                    self.speaks = Some(true);
                    self.stream = Some(stream);
                    // Nobody listens only when all of this ends.
                    drop(self.up.send(FromPeer::Up(self.peer.clone())).await);
                }
                // Where it did before, that part of the peer is being started again.
                Err(OpenFailed::Unsupported) if self.speaks == Some(true) => {
                    LinkCounts::add(&self.counts.unopened, 1);
                    self.pause();
                }
                Err(OpenFailed::Unsupported) => {
                    self.speaks = Some(false);
                    self.retry_at = Some(Instant::now() + self.limits.idle);
                }
                Err(OpenFailed::Failed(why)) => {
                    tracing::debug!(peer = %self.peer, why, "no stream for the failure detector");
                    LinkCounts::add(&self.counts.unopened, 1);
                    self.pause();
                }
            }
        }
        self.stream.as_mut()
    }

    fn pause(&mut self) {
        let pause = self.limits.pause_min.saturating_mul(1 << self.failures.min(10)).min(self.limits.pause_max);
        self.failures += 1;
        self.retry_at = Some(Instant::now() + pause);
    }

    /// Sends the last datagram, and waits for the peer to end the stream: then it has taken it.
    async fn say_goodbye(&mut self, goodbye: &[u8]) {
        if !self.write(goodbye).await && !self.write(goodbye).await {
            return;
        }
        if let Some(stream) = &mut self.stream
            && stream.shutdown().await.is_ok()
        {
            let mut rest = [0; 16];
            while stream.read(&mut rest).await.is_ok_and(|count| count > 0) {}
        }
    }

    async fn shut_down(&mut self) {
        if let Some(mut stream) = self.stream.take() {
            drop(timeout(self.limits.write, stream.shutdown()).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bombus_core::identity::NodeKey;
    use tokio::io::DuplexStream;

    use super::*;
    use crate::wire::read_datagram;

    /// Opens pipes; their other ends come out of a channel.
    #[derive(Clone)]
    struct Pipes {
        others: mpsc::Sender<(NodeId, DuplexStream)>,
        bytes: usize,
        failures: Arc<Mutex<Vec<OpenFailed>>>,
    }

    impl Opener for Pipes {
        type Stream = DuplexStream;

        async fn open(&self, peer: &NodeId) -> Result<DuplexStream, OpenFailed> {
            if let Some(failure) = self.failures.lock().unwrap().pop() {
                return Err(failure);
            }
            let (own, other) = tokio::io::duplex(self.bytes);
            self.others.send((peer.clone(), other)).await.unwrap();
            Ok(own)
        }
    }

    struct Bench {
        links: Links<Pipes>,
        others: mpsc::Receiver<(NodeId, DuplexStream)>,
        up: mpsc::Receiver<FromPeer>,
        counts: Arc<LinkCounts>,
    }

    fn bench(bytes: usize, failures: Vec<OpenFailed>) -> Bench {
        let (sender, others) = mpsc::channel(64);
        let (up_sender, up) = mpsc::channel(64);
        let counts = Arc::new(LinkCounts::default());
        let pipes = Pipes { others: sender, bytes, failures: Arc::new(Mutex::new(failures)) };
        let links = Links::new(pipes, LinkLimits::default(), Arc::clone(&counts), up_sender);
        Bench { links, others, up, counts }
    }

    fn peer(number: u8) -> NodeId {
        NodeKey::from_secret(&[number; 32]).node_id()
    }

    fn dropped(bench: &Bench) -> u64 {
        bench.counts.dropped.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_no_bytes_holds_nobody_up() {
        let mut bench = bench(64, Vec::new());
        let (stuck, well) = (peer(1), peer(2));
        bench.links.send(&stuck, vec![1; 60]);
        let (_, _stuck_end) = bench.others.recv().await.unwrap();
        for _ in 0..40 {
            bench.links.send(&stuck, vec![1; 60]);
        }
        assert!(dropped(&bench) >= 20, "what the queue does not hold is dropped at once");
        bench.links.send(&well, vec![2; 60]);
        let (to, mut well_end) = bench.others.recv().await.unwrap();
        let began = Instant::now();
        assert_eq!((to, read_datagram(&mut well_end).await.unwrap()), (well, vec![2; 60]));
        assert!(began.elapsed() < Duration::from_millis(100));
        bench.links.send(&peer(2), vec![3; 60]);
        assert_eq!(read_datagram(&mut well_end).await.unwrap(), vec![3; 60]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_stream_is_given_up_and_opened_anew_after_a_pause() {
        let mut bench = bench(64, Vec::new());
        bench.links.send(&peer(1), vec![1; 60]);
        bench.links.send(&peer(1), vec![1; 60]);
        let (_, mut stuck) = bench.others.recv().await.unwrap();
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(read_datagram(&mut stuck).await.unwrap(), vec![1; 60]);
        assert!(read_datagram(&mut stuck).await.is_err(), "the stream has ended");
        bench.links.send(&peer(1), vec![2; 8]);
        let (_, mut again) = bench.others.recv().await.unwrap();
        assert_eq!(read_datagram(&mut again).await.unwrap(), vec![2; 8]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_ended_is_replaced_for_the_same_datagram() {
        let mut bench = bench(4_096, Vec::new());
        bench.links.send(&peer(1), vec![1]);
        let (_, first) = bench.others.recv().await.unwrap();
        drop(first);
        bench.links.send(&peer(1), vec![2]);
        bench.links.send(&peer(1), vec![3]);
        let (_, mut second) = bench.others.recv().await.unwrap();
        let datagram = read_datagram(&mut second).await.unwrap();
        assert!(datagram == [2] || datagram == [3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_not_reached_is_tried_again_with_growing_pauses_and_at_once_when_it_connects() {
        let failure = || OpenFailed::Failed("unreachable".to_owned());
        let mut bench = bench(4_096, vec![failure(), failure(), failure()]);
        for _ in 0..3 {
            bench.links.send(&peer(1), vec![1]);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(bench.counts.unopened.load(Ordering::Relaxed), 1, "one try, and a pause");
        tokio::time::sleep(Duration::from_secs(1)).await;
        bench.links.send(&peer(1), vec![1]);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(bench.counts.unopened.load(Ordering::Relaxed), 2);
        bench.links.open(&peer(1));
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(bench.counts.unopened.load(Ordering::Relaxed), 3, "a new connection does not wait for the pause");
        bench.links.open(&peer(1));
        assert!(matches!(bench.up.recv().await, Some(FromPeer::Up(up)) if up == peer(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_speak_the_protocol_is_left_alone() {
        let mut bench = bench(4_096, vec![OpenFailed::Unsupported]);
        bench.links.open(&peer(1));
        tokio::time::sleep(Duration::from_secs(20)).await;
        bench.links.send(&peer(1), vec![1]);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(bench.others.try_recv().is_err() && bench.up.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_begins_to_speak_late_is_not_left_alone_until_the_pause_is_over() {
        let mut bench = bench(4_096, vec![OpenFailed::Unsupported]);
        bench.links.send(&peer(1), vec![1]);
        tokio::time::sleep(Duration::from_secs(1)).await;
        bench.links.send(&peer(1), vec![2]);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(bench.others.try_recv().is_err(), "it said that it does not speak this");
        bench.links.speaks(&peer(1));
        let began = Instant::now();
        let (_, mut other) = bench.others.recv().await.unwrap();
        assert!(began.elapsed() < Duration::from_millis(100));
        bench.links.send(&peer(1), vec![3]);
        assert_eq!(read_datagram(&mut other).await.unwrap(), vec![3]);
        bench.links.speaks(&peer(1));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(bench.others.try_recv().is_err(), "one stream is enough");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_spoke_before_is_soon_asked_again() {
        let mut bench = bench(4_096, Vec::new());
        bench.links.send(&peer(1), vec![1]);
        let (_, other) = bench.others.recv().await.unwrap();
        drop(other);
        *bench.links.opener.failures.lock().unwrap() = vec![OpenFailed::Unsupported; 2];
        let began = Instant::now();
        let again = async {
            loop {
                bench.links.send(&peer(1), vec![2]);
                tokio::select! {
                    opened = bench.others.recv() => return opened,
                    () = tokio::time::sleep(Duration::from_millis(400)) => {}
                }
            }
        };
        again.await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_goodbye_is_waited_for_up_to_its_limit() {
        let mut bench = bench(4_096, Vec::new());
        bench.links.open(&peer(1));
        let (_, mut taker) = bench.others.recv().await.unwrap();
        let taken = tokio::spawn(async move { read_datagram(&mut taker).await.unwrap() });
        let began = Instant::now();
        bench.links.say_goodbye(vec![(peer(1), b"bye".to_vec())], Duration::from_millis(500)).await;
        assert!(
            began.elapsed() < Duration::from_millis(100),
            "the peer ended the stream, so there is nothing to wait for"
        );
        assert_eq!(taken.await.unwrap(), b"bye");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_take_the_goodbye_delays_the_stop_no_longer_than_the_limit() {
        let mut bench = bench(4_096, Vec::new());
        bench.links.open(&peer(1));
        let (_, _deaf) = bench.others.recv().await.unwrap();
        let began = Instant::now();
        let goodbyes = vec![(peer(1), b"bye".to_vec()), (peer(2), b"bye".to_vec())];
        bench.links.say_goodbye(goodbyes, Duration::from_millis(500)).await;
        assert_eq!(began.elapsed(), Duration::from_millis(500));
    }
}
