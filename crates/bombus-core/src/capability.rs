//! Capabilities and tiers of a machine, by mycoSwarm's rules, so that its users find the same words here.

use serde::{Deserialize, Serialize};

/// Facts about a machine from which its tiers and capabilities follow. Memory in MB (2^20 bytes), disk in GB (2^30 bytes).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Hardware {
    /// Marketing name of the CPU.
    pub cpu_model: String,
    /// Hardware threads.
    pub cpu_threads: u32,
    /// Physical cores; 0 where unknown.
    #[serde(default)]
    pub cpu_cores: u32,
    /// Physical memory.
    pub ram_total_mb: u64,
    /// Memory that can be used without swapping.
    pub ram_available_mb: u64,
    /// Size of the file system that holds the data directory.
    pub disk_total_gb: f64,
    /// Free space on it.
    pub disk_free_gb: f64,
    /// The graphics processors.
    pub gpus: Vec<Gpu>,
    /// Address on the local network, where there is one.
    pub lan_ip: Option<String>,
    /// The network interfaces that have addresses, loopback left out.
    #[serde(default)]
    pub interfaces: Vec<NetworkInterface>,
    /// Operating system, for example `linux`.
    pub os: String,
    /// Processor architecture, for example `x86_64`.
    pub architecture: String,
}

/// A graphics processor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    /// Marketing name.
    pub name: String,
    /// Who made it, where known.
    #[serde(default)]
    pub vendor: Option<GpuVendor>,
    /// Its memory; on Apple silicon the machine's memory. 0 where it shares the machine's, or where nothing tells.
    pub vram_total_mb: u64,
    /// What of it is free. Where only the whole is told, all of it.
    pub vram_free_mb: u64,
}

/// The makers of graphics processors that models run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuVendor {
    /// AMD.
    Amd,
    /// Apple.
    Apple,
    /// Intel.
    Intel,
    /// NVIDIA.
    Nvidia,
}

/// A network interface of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInterface {
    /// The system's name for it, for example `eth0`.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Negotiated speed in megabits per second, where the driver tells it.
    pub speed_mbit: Option<u64>,
}

/// How much model the best GPU carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuTier {
    /// Less than 3,500 MB, or no GPU.
    None,
    /// From 3,500 MB.
    Entry,
    /// From 7,000 MB.
    Mid,
    /// From 14,000 MB.
    High,
    /// From 20,000 MB.
    Ultra,
}

/// What a machine can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeTier {
    /// Fewer than 4 hardware threads and no GPU of use.
    Edge,
    /// At least 4 hardware threads.
    Light,
    /// A GPU of tier entry.
    Worker,
    /// A GPU of tier mid or high.
    Specialist,
    /// A GPU of tier ultra.
    Executive,
}

/// Something that a node can do for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// Runs models on a GPU.
    GpuInference,
    /// Runs models on the CPU.
    CpuInference,
    /// Does general work.
    CpuWorker,
    /// Works on files.
    FileProcessing,
    /// Runs code.
    CodeExecution,
    /// Keeps data for others.
    Storage,
    /// Can coordinate others.
    Coordinator,
}

impl GpuTier {
    /// Classifies a GPU by its memory in MB.
    #[must_use]
    pub fn of_memory(vram_mb: u64) -> Self {
        match vram_mb {
            20_000.. => Self::Ultra,
            14_000.. => Self::High,
            7_000.. => Self::Mid,
            3_500.. => Self::Entry,
            _ => Self::None,
        }
    }
}

impl Hardware {
    /// Returns the GPU with the most memory.
    #[must_use]
    pub fn best_gpu(&self) -> Option<&Gpu> {
        self.gpus.iter().max_by_key(|gpu| gpu.vram_total_mb)
    }

    /// Classifies the best GPU.
    #[must_use]
    pub fn gpu_tier(&self) -> GpuTier {
        GpuTier::of_memory(self.best_gpu().map_or(0, |gpu| gpu.vram_total_mb))
    }

    /// Classifies the machine.
    #[must_use]
    pub fn node_tier(&self) -> NodeTier {
        match self.gpu_tier() {
            GpuTier::Ultra => NodeTier::Executive,
            GpuTier::High | GpuTier::Mid => NodeTier::Specialist,
            GpuTier::Entry => NodeTier::Worker,
            GpuTier::None if self.cpu_threads >= 4 => NodeTier::Light,
            GpuTier::None => NodeTier::Edge,
        }
    }

    /// Estimates the largest model that the best GPU holds, in billions of parameters (4-bit weights, 1,500 MB kept aside); 0
    /// without a GPU.
    #[must_use]
    pub fn max_model_params_b(&self) -> f64 {
        params_b(self.best_gpu().map_or(0, |gpu| gpu.vram_total_mb))
    }

    /// Estimates by the same rule the largest model that the machine's own memory holds, for the processor to run.
    #[must_use]
    pub fn max_model_params_b_cpu(&self) -> f64 {
        params_b(self.ram_total_mb)
    }

    /// Lists what the machine can do. Without a working backend both kinds of inference are off.
    #[must_use]
    pub fn capabilities(&self, has_backend: bool) -> Vec<Capability> {
        let enough_threads = self.cpu_threads >= 2;
        [
            (Capability::GpuInference, has_backend && self.gpu_tier() != GpuTier::None),
            (Capability::CpuInference, has_backend && self.ram_total_mb >= 4_096 && enough_threads),
            (Capability::CpuWorker, enough_threads),
            (Capability::FileProcessing, enough_threads),
            (Capability::CodeExecution, enough_threads),
            (Capability::Storage, self.disk_free_gb >= 5.0),
            (Capability::Coordinator, self.lan_ip.is_some() && enough_threads),
        ]
        .into_iter()
        .filter_map(|(capability, holds)| holds.then_some(capability))
        .collect()
    }
}

fn params_b(memory_mb: u64) -> f64 {
    let params_b = memory_mb.saturating_sub(1_500) as f64 / 600.0;
    (params_b * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(threads: u32, vram_mb: u64) -> Hardware {
        Hardware {
            cpu_threads: threads,
            ram_total_mb: 8_192,
            disk_free_gb: 100.0,
            lan_ip: Some("192.0.2.1".into()),
            gpus: vec![Gpu { name: "test".into(), vendor: None, vram_total_mb: vram_mb, vram_free_mb: vram_mb }],
            ..Hardware::default()
        }
    }

    #[test]
    fn tiers_change_exactly_at_their_limits() {
        for (vram_mb, gpu, node) in [
            (24_576, GpuTier::Ultra, NodeTier::Executive),
            (20_000, GpuTier::Ultra, NodeTier::Executive),
            (19_999, GpuTier::High, NodeTier::Specialist),
            (14_000, GpuTier::High, NodeTier::Specialist),
            (13_999, GpuTier::Mid, NodeTier::Specialist),
            (7_000, GpuTier::Mid, NodeTier::Specialist),
            (6_999, GpuTier::Entry, NodeTier::Worker),
            (3_500, GpuTier::Entry, NodeTier::Worker),
            (3_499, GpuTier::None, NodeTier::Light),
        ] {
            assert_eq!((machine(8, vram_mb).gpu_tier(), machine(8, vram_mb).node_tier()), (gpu, node), "{vram_mb} MB");
        }
        assert_eq!(machine(3, 0).node_tier(), NodeTier::Edge);
    }

    #[test]
    fn without_a_backend_nothing_infers() {
        let capabilities = machine(8, 24_576).capabilities(false);
        assert!(!capabilities.contains(&Capability::GpuInference) && !capabilities.contains(&Capability::CpuInference));
        assert!(capabilities.contains(&Capability::Coordinator));
    }

    #[test]
    fn the_largest_model_follows_the_gpu_memory() {
        assert_eq!(machine(8, 24_576).max_model_params_b(), 38.5);
        assert_eq!(machine(8, 1_000).max_model_params_b(), 0.0);
    }
}
