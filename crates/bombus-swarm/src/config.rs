//! Settings of the swarm.

use std::time::Duration;

use bombus_core::liveness::DetectorConfig;
use bombus_core::topics::cadence::CadenceConfig;

use crate::clock::WallClock;
use crate::view::ViewLimits;

/// Settings of the swarm. The defaults suit nodes; tests shorten them.
#[derive(Debug, Clone)]
pub struct SwarmConfig {
    /// Tells the time of day.
    pub clock: WallClock,
    /// When presence and capabilities are published.
    pub cadence: CadenceConfig,
    /// How peers are found to be gone.
    pub detector: DetectorConfig,
    /// Limits of the view.
    pub view: ViewLimits,
    /// Up to how many nodes each keeps a connection to each: there, a connection that ends is a sign of death. As
    /// [`bombus_net::NetConfig::mesh_max`].
    pub mesh_max: usize,
    /// How long the first exchange of capabilities with a peer may take.
    pub hello_limit: Duration,
    /// How long a stop may take to say goodbye to all.
    pub goodbye_limit: Duration,
    /// How long a node that said goodbye, but is in the same swarm still, is silent before it takes part again.
    pub farewell_silence: Duration,
}

impl Default for SwarmConfig {
    fn default() -> Self {
        Self {
            clock: WallClock::default(),
            cadence: CadenceConfig::default(),
            detector: DetectorConfig::default(),
            view: ViewLimits::default(),
            mesh_max: 32,
            hello_limit: Duration::from_secs(5),
            goodbye_limit: Duration::from_millis(500),
            farewell_silence: Duration::from_secs(10),
        }
    }
}
