//! When a node says that it is there, and what it can do: more rarely the more nodes there are.

use crate::random::Random;

/// Intervals, in milliseconds. Each is kept to within a tenth, so that nodes do not speak in chorus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CadenceConfig {
    /// Presence comes this often at most.
    pub presence_ms_min: u64,
    /// With many nodes, presence comes after this times their number.
    pub presence_ms_per_node: u64,
    /// Unchanged capabilities come this often at most.
    pub capabilities_ms_min: u64,
    /// With many nodes, unchanged capabilities come after this times their number.
    pub capabilities_ms_per_node: u64,
    /// Changed capabilities come this often at most.
    pub change_ms_min: u64,
}

impl Default for CadenceConfig {
    fn default() -> Self {
        Self {
            presence_ms_min: 5_000,
            presence_ms_per_node: 1_500,
            capabilities_ms_min: 30_000,
            capabilities_ms_per_node: 3_000,
            change_ms_min: 5_000,
        }
    }
}

/// What a [`Cadence`] is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CadenceInput {
    /// The time of the last [`CadenceOutput::WakeAt`] has come, or the node begins.
    Tick,
    /// So many nodes are in the swarm, this one included.
    Nodes(usize),
    /// What this node would say about its capabilities has changed.
    Changed,
    /// A node came that has not heard this one's capabilities.
    Joined,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CadenceOutput {
    /// Publish `presence_ping`.
    PublishPresence,
    /// Publish `capabilities`.
    PublishCapabilities,
    /// Hand in [`CadenceInput::Tick`] at this time, in milliseconds by the caller's clock. Comes last, every time; only the latest counts.
    WakeAt(u64),
}

/// Decides when to publish presence and capabilities. Both are due at the first input.
#[derive(Debug, Clone)]
pub struct Cadence {
    config: CadenceConfig,
    random: Random,
    nodes: u64,
    presence: Schedule,
    capabilities: Schedule,
}

/// One message that comes again and again.
#[derive(Debug, Clone, Copy, Default)]
struct Schedule {
    published_ms: Option<u64>,
    due_ms: u64,
}

impl Cadence {
    /// Begins, alone in the swarm. The same seed gives the same jitter.
    #[must_use]
    pub fn new(config: CadenceConfig, seed: u64) -> Self {
        Self {
            config,
            random: Random::new(seed),
            nodes: 1,
            presence: Schedule::default(),
            capabilities: Schedule::default(),
        }
    }

    /// Takes an input at the time `now_ms` of a clock that never goes back.
    pub fn on(&mut self, now_ms: u64, input: CadenceInput) -> Vec<CadenceOutput> {
        match input {
            CadenceInput::Tick => {}
            CadenceInput::Nodes(nodes) => self.resize(nodes),
            CadenceInput::Changed => self.capabilities.hasten(now_ms, self.config.change_ms_min),
            CadenceInput::Joined => {
                // When a hundred nodes start together, each of them would answer each of the others.
                let spacing_ms = self.config.change_ms_min.max(self.capabilities_ms() / 10);
                let pause_ms = self.random.below(self.config.change_ms_min / 5 + 1);
                self.capabilities.hasten(now_ms + pause_ms, spacing_ms);
            }
        }
        let mut outputs = Vec::new();
        if now_ms >= self.presence.due_ms {
            outputs.push(CadenceOutput::PublishPresence);
            let interval_ms = self.random.around(self.presence_ms());
            self.presence.published(now_ms, interval_ms);
        }
        if now_ms >= self.capabilities.due_ms {
            outputs.push(CadenceOutput::PublishCapabilities);
            let interval_ms = self.random.around(self.capabilities_ms());
            self.capabilities.published(now_ms, interval_ms);
        }
        outputs.push(CadenceOutput::WakeAt(self.presence.due_ms.min(self.capabilities.due_ms)));
        outputs
    }

    fn resize(&mut self, nodes: usize) {
        self.nodes = nodes.max(1) as u64;
        // A swarm that grew rarer intervals gets them from the next message on; one that shrank does not wait for the old ones.
        let (presence_ms, capabilities_ms) = (self.presence_ms(), self.capabilities_ms());
        self.presence.within(self.random.around(presence_ms));
        self.capabilities.within(self.random.around(capabilities_ms));
    }

    fn presence_ms(&self) -> u64 {
        self.config.presence_ms_min.max(self.nodes.saturating_mul(self.config.presence_ms_per_node))
    }

    fn capabilities_ms(&self) -> u64 {
        self.config.capabilities_ms_min.max(self.nodes.saturating_mul(self.config.capabilities_ms_per_node))
    }
}

impl Schedule {
    fn published(&mut self, now_ms: u64, interval_ms: u64) {
        *self = Self { published_ms: Some(now_ms), due_ms: now_ms.saturating_add(interval_ms) };
    }

    /// Makes it due at `at_ms`, but no sooner than `spacing_ms` after the last one.
    fn hasten(&mut self, at_ms: u64, spacing_ms: u64) {
        let earliest_ms = self.published_ms.map_or(0, |published_ms| published_ms.saturating_add(spacing_ms));
        self.due_ms = self.due_ms.min(at_ms.max(earliest_ms));
    }

    /// Makes it due within an interval after the last one.
    fn within(&mut self, interval_ms: u64) {
        if let Some(published_ms) = self.published_ms {
            self.due_ms = self.due_ms.min(published_ms.saturating_add(interval_ms));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a cadence from 0 to `until_ms` and returns when it published presence and capabilities.
    fn run(cadence: &mut Cadence, until_ms: u64, inputs: &[(u64, CadenceInput)]) -> (Vec<u64>, Vec<u64>) {
        let (mut presence, mut capabilities) = (Vec::new(), Vec::new());
        let (mut inputs, mut wake_ms) = (inputs.iter().peekable(), 0);
        loop {
            let (now_ms, input) = match inputs.peek() {
                Some((at_ms, input)) if *at_ms <= wake_ms => {
                    inputs.next();
                    (*at_ms, *input)
                }
                _ => (wake_ms, CadenceInput::Tick),
            };
            if now_ms > until_ms {
                return (presence, capabilities);
            }
            for output in cadence.on(now_ms, input) {
                match output {
                    CadenceOutput::PublishPresence => presence.push(now_ms),
                    CadenceOutput::PublishCapabilities => capabilities.push(now_ms),
                    CadenceOutput::WakeAt(at_ms) => wake_ms = at_ms,
                }
            }
        }
    }

    fn gaps(times: &[u64]) -> Vec<u64> {
        times.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    #[test]
    fn both_come_at_once_and_then_more_rarely_the_more_nodes_there_are() {
        for (nodes, presence_ms, capabilities_ms) in
            [(1, 5_000, 30_000), (3, 5_000, 30_000), (10, 15_000, 30_000), (100, 150_000, 300_000)]
        {
            let mut cadence = Cadence::new(CadenceConfig::default(), 7);
            let (presence, capabilities) = run(&mut cadence, 3_600_000, &[(0, CadenceInput::Nodes(nodes))]);
            assert_eq!((presence[0], capabilities[0]), (0, 0));
            for (gaps, interval_ms) in [(gaps(&presence), presence_ms), (gaps(&capabilities), capabilities_ms)] {
                assert!(gaps.len() > 8);
                assert!(gaps.iter().all(|gap| gap.abs_diff(interval_ms) <= interval_ms / 10), "{nodes}: {gaps:?}");
                assert!(gaps.iter().any(|gap| *gap != gaps[0]), "there is jitter");
            }
        }
    }

    #[test]
    fn a_change_is_told_at_once_and_a_row_of_changes_every_five_seconds() {
        let changes: Vec<_> = (0..200).map(|index| (10_000 + index * 100, CadenceInput::Changed)).collect();
        let (_, capabilities) = run(&mut Cadence::new(CadenceConfig::default(), 7), 35_000, &changes);
        assert_eq!(capabilities[..5], [0, 10_000, 15_000, 20_000, 25_000]);
        assert_eq!(capabilities.len(), 6, "the last change is told too: {capabilities:?}");
        assert_eq!(capabilities[5], 30_000);
    }

    #[test]
    fn a_node_that_joins_hears_of_the_others_within_seconds() {
        let (_, capabilities) =
            run(&mut Cadence::new(CadenceConfig::default(), 7), 12_000, &[(10_000, CadenceInput::Joined)]);
        assert_eq!(capabilities.len(), 2);
        assert!((10_000..=11_000).contains(&capabilities[1]));
    }

    #[test]
    fn a_swarm_that_shrinks_does_not_wait_for_the_long_intervals() {
        let inputs = [(0, CadenceInput::Nodes(100)), (20_000, CadenceInput::Nodes(2))];
        let (presence, capabilities) = run(&mut Cadence::new(CadenceConfig::default(), 7), 60_000, &inputs);
        assert!(presence[1] <= 20_000 && presence.len() > 6, "{presence:?}");
        assert!(capabilities[1] <= 33_000, "{capabilities:?}");
    }
}
