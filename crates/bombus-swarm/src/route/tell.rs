//! Tells each connected peer what this node offers it, whenever that changes.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_core::model::{ModelInfo, ModelName};
use bombus_net::{NetEvent, NetStream, OpenError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::share;
use super::told::Own;
use super::wire::{Load, Telling, VERSION, push};
use super::{OFFERS_PROTOCOL, Shared};
use crate::supervised::PartEnded;

/// Time between two looks at what this node has. What peers ask for is seen at once.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a peer may be called something else before it counts for lists of names.
const NAMES_EVERY: Duration = Duration::from_secs(2);
/// Pause before a stream is opened again.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause: it doubles with every failure.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Tells all connected peers until `stop`.
pub(super) async fn tell_all(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), PartEnded> {
    let mut events = shared.net.events();
    let mut standing = shared.standing.subscribe();
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Requests of peers come and go faster than anybody needs to be told.
    let pause = shared.config.tell_every / 2;
    let (mut looked, mut due): (Instant, Option<Instant>) = (Instant::now(), None);
    let (news, _) = watch::channel(Own::look(shared));
    let mut tellers = Tellers { shared: Arc::clone(shared), news, tasks: JoinSet::new(), by_peer: HashMap::new() };
    tellers.look_who_is_there();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            event = events.next() => match event.ok_or(PartEnded::MeshEnded)? {
                NetEvent::PeerConnected { peer, .. } => tellers.begin(peer),
                NetEvent::PeerDisconnected { peer, .. } => tellers.end(&peer),
                NetEvent::Rebuilt { .. } | NetEvent::Lagged(_) => tellers.look_who_is_there(),
                _ => {}
            },
            Some(_) = tellers.tasks.join_next() => tellers.by_peer.retain(|_, task| !task.is_finished()),
            Ok(()) = standing.changed() => {
                standing.mark_unchanged();
                due = due.or_else(|| Some(Instant::now().max(looked + pause)));
            }
            () = sleep_until(due.unwrap_or(looked)), if due.is_some() => {
                tellers.look();
                (looked, due) = (Instant::now(), None);
            }
            _ = looks.tick() => tellers.look(),
        }
    }
}

struct Tellers {
    shared: Arc<Shared>,
    news: watch::Sender<Own>,
    /// Dropping it ends them all.
    tasks: JoinSet<()>,
    by_peer: HashMap<NodeId, AbortHandle>,
}

impl Tellers {
    fn look(&self) {
        let own = Own::look(&self.shared);
        self.news.send_if_modified(|told| {
            let changed = *told != own;
            if changed {
                *told = own;
            }
            changed
        });
    }

    fn look_who_is_there(&mut self) {
        let connected = self.shared.net.peers().into_iter().filter(|peer| peer.connected.is_some());
        let connected: Vec<NodeId> = connected.map(|peer| peer.node_id).collect();
        let lost: Vec<NodeId> = self.by_peer.keys().filter(|peer| !connected.contains(peer)).cloned().collect();
        lost.iter().for_each(|peer| self.end(peer));
        connected.into_iter().for_each(|peer| self.begin(peer));
    }

    fn begin(&mut self, peer: NodeId) {
        if self.by_peer.get(&peer).is_none_or(AbortHandle::is_finished) {
            // It opens its stream again whatever happens, and ends with the connection; one that panics begins with the next.
            let task = self.tasks.spawn(tell(Arc::clone(&self.shared), peer.clone(), self.news.subscribe()));
            self.by_peer.insert(peer, task);
        }
    }

    fn end(&mut self, peer: &NodeId) {
        if let Some(task) = self.by_peer.remove(peer) {
            task.abort();
        }
    }
}

async fn tell(shared: Arc<Shared>, peer: NodeId, mut news: watch::Receiver<Own>) {
    let mut pause = PAUSE_MIN;
    loop {
        let begun = Instant::now();
        match shared.net.open_stream(&peer, OFFERS_PROTOCOL).await {
            Ok(stream) => {
                let stream = stream.in_background();
                if let Err(error) = tell_over(&shared, &peer, &mut news, stream).await {
                    tracing::debug!(peer.id = %peer, %error, "a peer is told no longer what this node offers");
                }
            }
            Err(OpenError::Stopped) => return,
            // It may begin to speak it a moment later.
            Err(error) => tracing::trace!(peer.id = %peer, %error, "a peer cannot be told what this node offers"),
        }
        if begun.elapsed() >= PAUSE_MAX {
            pause = PAUSE_MIN;
        }
        sleep(pause).await;
        // To open a stream would dial a peer that is away: who comes back is told then.
        if !is_connected(&shared, &peer) {
            return;
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn is_connected(shared: &Shared, peer: &NodeId) -> bool {
    shared.net.peers().iter().any(|known| known.node_id == *peer && known.connected.is_some())
}

async fn tell_over(
    shared: &Shared,
    peer: &NodeId,
    news: &mut watch::Receiver<Own>,
    mut stream: NetStream,
) -> io::Result<()> {
    let config = &shared.config;
    let mut told: Option<(Models, Load)> = None;
    let mut bytes = Vec::new();
    loop {
        let own = news.borrow_and_update().clone();
        let is_told = is_told(shared, peer);
        let models: Models = if is_told { (own.models.clone(), own.by_text.clone()) } else { Models::default() };
        let load = own.load_for(shared, peer);
        let models_changed = told.as_ref().is_none_or(|(before, _)| *before != models);
        if models_changed || told.as_ref().is_none_or(|(_, before)| *before != load) {
            bytes.clear();
            let (all, by_text) = &models;
            let by_text: &[ModelName] = if models_changed { by_text } else { &[] };
            push(&mut bytes, &Telling { v: VERSION, models: models_changed.then_some(&all[..]), by_text, load })?;
            timeout(config.tell_limit, async {
                stream.write_all(&bytes).await?;
                stream.flush().await
            })
            .await??;
            told = Some((models, load));
            sleep(config.tell_every).await;
        }
        let mut nothing = [0; 1];
        tokio::select! {
            biased;
            changed = news.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
            }
            ended = stream.read(&mut nothing) => {
                return Err(ended.err().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()));
            }
            () = sleep(NAMES_EVERY), if !config.share.peers.is_empty() => {}
        }
    }
}

/// What a peer is told it may use, and which of that goes on with answers by the text alone.
type Models = (Arc<Vec<ModelInfo>>, Arc<Vec<ModelName>>);

fn is_told(shared: &Shared, peer: &NodeId) -> bool {
    let share = &shared.config.share;
    // The name is looked up where it matters only.
    let name = match share.peers.is_empty() {
        true => String::new(),
        false => shared.swarm.peer(peer).map(|peer| peer.name).unwrap_or_default(),
    };
    share::is_told(share, peer, &name)
}
