//! Tells the swarm that this node is there, and what it can do.

use std::sync::Arc;

use bombus_core::topics::cadence::{Cadence, CadenceInput, CadenceOutput};
use bombus_core::topics::{PresencePing, TopicMessage};
use bombus_net::NetEvent;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use crate::facts::OwnFacts;
use crate::shared::Shared;
use crate::supervised::PartEnded;

/// For so long after a connection began, the topics may not yet have found a way to the peer, in milliseconds: a change that is published in
/// that time is published once more.
const WAYS_ARE_FOUND_MS: u64 = 2_000;

/// Publishes presence and capabilities until `stop`.
pub(crate) async fn tell_all(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), PartEnded> {
    let mut events = shared.net.events();
    let mut facts = shared.facts.clone();
    let mut revision = shared.revision();
    let mut generations = shared.task_generations.subscribe();
    let mut teller = Teller::new(shared.config.cadence, shared.boot().bits(), facts.borrow_and_update().clone());
    let mut facts_end = false;
    let mut outputs = teller.on(shared.clocks.ms(), CadenceInput::Tick);
    loop {
        publish(shared, &outputs).await;
        let wake = shared.clocks.at(teller.wake_ms);
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            changed = facts.changed(), if !facts_end => {
                facts_end = changed.is_err();
                outputs = teller.on_facts(shared.clocks.ms(), facts.borrow_and_update().clone());
            }
            Ok(()) = generations.changed() => outputs = teller.on_news(shared.clocks.ms()),
            event = events.next() => {
                let event = event.ok_or(PartEnded::MeshEnded)?;
                if matches!(event, NetEvent::PeerConnected { .. } | NetEvent::Lagged(_)) {
                    teller.connected_ms = Some(shared.clocks.ms());
                }
                outputs.clear();
            }
            Ok(()) = revision.changed() => {
                let nodes = shared.view().nodes();
                outputs = teller.on_nodes(shared.clocks.ms(), nodes);
            }
            () = sleep_until(wake) => outputs = teller.on(shared.clocks.ms(), CadenceInput::Tick),
        }
    }
}

async fn publish(shared: &Shared, outputs: &[CadenceOutput]) {
    for output in outputs {
        let message = match output {
            CadenceOutput::PublishPresence => presence(shared),
            CadenceOutput::PublishCapabilities => TopicMessage::Capabilities(shared.own()),
            CadenceOutput::WakeAt(_) => continue,
        };
        // A failure is counted there; the next time comes.
        drop(shared.publish(&message).await);
    }
}

fn presence(shared: &Shared) -> TopicMessage {
    let own = shared.own();
    TopicMessage::PresencePing(PresencePing {
        node_id: own.node_id,
        name: own.name.unwrap_or_default(),
        timestamp: own.timestamp,
        version: own.version,
        boot: own.boot,
    })
}

/// Decides when what is told (pure).
struct Teller {
    cadence: Cadence,
    told: OwnFacts,
    nodes: usize,
    wake_ms: u64,
    /// When the last connection began.
    connected_ms: Option<u64>,
    /// Whether what is told next has changed.
    changed: bool,
}

impl Teller {
    fn new(config: bombus_core::topics::cadence::CadenceConfig, seed: u64, facts: OwnFacts) -> Self {
        let cadence = Cadence::new(config, seed);
        Self { cadence, told: facts, nodes: 1, wake_ms: 0, connected_ms: None, changed: false }
    }

    fn on_facts(&mut self, now_ms: u64, facts: OwnFacts) -> Vec<CadenceOutput> {
        if !facts.differs_from(&self.told) {
            return Vec::new();
        }
        self.told = facts;
        self.on_news(now_ms)
    }

    /// Takes note of something that is to be told soon.
    fn on_news(&mut self, now_ms: u64) -> Vec<CadenceOutput> {
        self.changed = true;
        self.on(now_ms, CadenceInput::Changed)
    }

    fn on_nodes(&mut self, now_ms: u64, nodes: usize) -> Vec<CadenceOutput> {
        if nodes == self.nodes {
            return Vec::new();
        }
        self.nodes = nodes;
        self.on(now_ms, CadenceInput::Nodes(nodes))
    }

    fn on(&mut self, now_ms: u64, input: CadenceInput) -> Vec<CadenceOutput> {
        let mut outputs = self.cadence.on(now_ms, input);
        let told = outputs.contains(&CadenceOutput::PublishCapabilities);
        if told && std::mem::take(&mut self.changed) {
            let missed_by_some = self.connected_ms.is_some_and(|at_ms| now_ms < at_ms + WAYS_ARE_FOUND_MS);
            if missed_by_some {
                outputs.extend(self.cadence.on(now_ms, CadenceInput::Joined));
            }
        }
        if let Some(CadenceOutput::WakeAt(wake_ms)) = outputs.last() {
            self.wake_ms = *wake_ms;
        }
        outputs
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::topics::cadence::CadenceConfig;

    use super::*;

    fn facts(models: &[&str]) -> OwnFacts {
        OwnFacts { models: models.iter().map(|name| (*name).to_owned()).collect(), ..OwnFacts::default() }
    }

    fn tells(outputs: &[CadenceOutput]) -> bool {
        outputs.contains(&CadenceOutput::PublishCapabilities)
    }

    /// Goes on until capabilities are told, and returns when.
    fn next_told(teller: &mut Teller) -> u64 {
        loop {
            let now_ms = teller.wake_ms;
            if tells(&teller.on(now_ms, CadenceInput::Tick)) {
                return now_ms;
            }
        }
    }

    #[test]
    fn a_change_is_told_at_once_and_load_alone_is_none() {
        let mut teller = Teller::new(CadenceConfig::default(), 1, facts(&["a"]));
        assert!(tells(&teller.on(0, CadenceInput::Tick)));
        assert!(teller.on_facts(6_000, OwnFacts { cpu_percent: 80.0, ..facts(&["a"]) }).is_empty());
        assert!(tells(&teller.on_facts(7_000, facts(&["b"]))));
        assert!(!tells(&teller.on_facts(8_000, facts(&["c"]))), "five seconds lie between two of them");
        assert_eq!(next_told(&mut teller), 12_000);
        assert!(next_told(&mut teller) > 12_000 + 26_000, "what everybody was told is not told again");
    }

    #[test]
    fn a_change_that_a_new_peer_may_have_missed_is_told_again() {
        let mut teller = Teller::new(CadenceConfig::default(), 1, facts(&["a"]));
        teller.on(0, CadenceInput::Tick);
        teller.connected_ms = Some(9_500);
        assert!(tells(&teller.on_facts(10_000, facts(&["b"]))));
        let again = next_told(&mut teller);
        assert!((15_000..=17_000).contains(&again), "{again}");
    }

    #[test]
    fn more_nodes_make_each_of_them_rarer() {
        let mut teller = Teller::new(CadenceConfig::default(), 1, facts(&[]));
        teller.on(0, CadenceInput::Tick);
        assert!(teller.on_nodes(1, 1).is_empty());
        teller.on_nodes(1, 100);
        let first = next_told(&mut teller);
        let second = next_told(&mut teller);
        assert!(second - first >= 270_000, "{first} {second}");
    }
}
