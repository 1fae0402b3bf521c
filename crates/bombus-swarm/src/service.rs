//! The swarm's service: its parts, kept going.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::BootId;
use bombus_net::NetHandle;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::config::SwarmConfig;
use crate::facts::OwnFacts;
use crate::handle::SwarmHandle;
use crate::shared::Shared;
use crate::supervised::{PartEnded, keep_going};
use crate::view::ViewInput;
use crate::{hello, help, liveness, presence, topics};

/// How often the view is told that time has passed.
const TICK: Duration = Duration::from_secs(1);
/// After how many of those ticks it is told what the links look like.
const TICKS_TO_LINKS: u32 = 5;
/// A peer that nothing but its messages speaks for is gone after so many of its presence messages were missed, and not before the time below.
const MISSED_MAX: u64 = 4;
const SILENT_AFTER_MS_MIN: u64 = 60_000;

/// Runs the swarm; made by [`swarm`].
pub struct SwarmService {
    shared: Arc<Shared>,
}

/// Makes the two halves of the swarm: the service, which runs as one task, and the handle for everybody else.
///
/// `facts` are what this node says of itself; whoever holds the other end keeps them up to date.
#[must_use]
pub fn swarm(config: SwarmConfig, net: NetHandle, facts: watch::Receiver<OwnFacts>) -> (SwarmHandle, SwarmService) {
    let shared = Arc::new(Shared::new(config, net, facts, BootId::new(random())));
    (SwarmHandle::new(Arc::clone(&shared)), SwarmService { shared })
}

/// Returns a number that nobody can foresee; nothing secret rests on it.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl SwarmService {
    /// Runs until `stop`, and says goodbye to all peers then, within half a second. The mesh has to run until this has returned.
    ///
    /// It has parts that need each other but not each other's memory: the topics, the first words between nodes, the failure detector,
    /// what this node tells, its answers to requests for help, and the passing of time. One that fails or panics is logged and started
    /// anew after a pause of half a second, which doubles up to 30 s; the view, the events and all streams of handles go on meanwhile.
    pub async fn run(self, stop: CancellationToken) {
        let (shared, stop) = (&self.shared, &stop);
        tokio::join!(
            keep_going("topics", stop.clone(), || topics::follow_all(shared, stop)),
            keep_going("first words", stop.clone(), || hello::greet_all(shared, stop)),
            keep_going("failure detector", stop.clone(), || liveness::watch_all(shared, stop)),
            keep_going("presence", stop.clone(), || presence::tell_all(shared, stop)),
            keep_going("help", stop.clone(), || help::answer_all(shared, stop)),
            keep_going("passing of time", stop.clone(), || pass_time(shared, stop)),
        );
        shared.events.close();
    }
}

async fn pass_time(shared: &Shared, stop: &CancellationToken) -> Result<(), PartEnded> {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ticks_to_links = 0;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => {
                if ticks_to_links == 0 {
                    shared.look_at_links();
                    ticks_to_links = TICKS_TO_LINKS;
                }
                ticks_to_links -= 1;
                let nodes = shared.view().nodes() as u64;
                shared.apply(ViewInput::Tick { silent_after_ms: silent_after_ms(shared, nodes) });
                expect_the_unreached(shared);
            }
        }
    }
}

/// Has the mesh find ways to those that only others reach. In a large swarm, ways are found when they are needed.
fn expect_the_unreached(shared: &Shared) {
    let unreached = if shared.is_crowd() { BTreeSet::new() } else { shared.view().unreached().cloned().collect() };
    shared.net.expect(unreached);
}

fn silent_after_ms(shared: &Shared, nodes: u64) -> u64 {
    let cadence = &shared.config.cadence;
    let presence_ms = cadence.presence_ms_min.max(nodes.saturating_mul(cadence.presence_ms_per_node));
    presence_ms.saturating_mul(MISSED_MAX).max(SILENT_AFTER_MS_MIN)
}
