//! Graphics processors: NVIDIA's by its management library, AMD's and Intel's by the kernel's files, Apple's by the machine's memory.

mod apple;
mod drm;

use std::path::Path;

use bombus_core::capability::{Gpu, GpuVendor, Hardware};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use drm::Card;

const MB: u64 = 1 << 20;

/// Where Linux lists graphics cards.
const LINUX_CARDS: &str = "/sys/class/drm";

/// The graphics processors of this machine.
pub(super) struct Gpus {
    nvidia: Option<Nvml>,
    cards: Vec<Card>,
    apple: Option<apple::Chip>,
}

impl Gpus {
    /// Finds them. NVIDIA's library is loaded where there is one.
    pub(super) fn find() -> Self {
        let nvidia = match Nvml::init() {
            Ok(nvml) => Some(nvml),
            // No driver is the usual case; a driver that does not work is worth a line.
            Err(NvmlError::LibloadingError(_) | NvmlError::DriverNotLoaded) => None,
            Err(error) => {
                tracing::warn!(%error, "NVIDIA's driver is here but does not answer, so its GPUs are not used");
                None
            }
        };
        Self { nvidia, cards: drm::cards(Path::new(LINUX_CARDS)), apple: apple::Chip::of_this_machine() }
    }

    /// Looks at their memory.
    pub(super) fn look(&self, hardware: &Hardware) -> Vec<Gpu> {
        let mut gpus = self.nvidia.as_ref().map(nvidia_gpus).unwrap_or_default();
        gpus.extend(self.cards.iter().map(Card::look));
        gpus.extend(self.apple.as_ref().map(|chip| chip.look(hardware)));
        gpus
    }
}

/// Reads what NVIDIA's library tells; a GPU that it cannot tell about (lost, or split into parts) is left out.
fn nvidia_gpus(nvml: &Nvml) -> Vec<Gpu> {
    let count = nvml.device_count().unwrap_or(0);
    (0..count)
        .filter_map(|index| {
            let device = nvml.device_by_index(index).ok()?;
            let memory = device.memory_info().ok()?;
            Some(Gpu {
                name: device.name().unwrap_or_else(|_| "NVIDIA GPU".to_owned()),
                vendor: Some(GpuVendor::Nvidia),
                vram_total_mb: memory.total / MB,
                vram_free_mb: memory.free / MB,
            })
        })
        .collect()
}
