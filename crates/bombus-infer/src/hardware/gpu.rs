//! Graphics processors: NVIDIA's by its management library, AMD's by the kernel's files, Apple's by the machine's memory.

use std::fs;
use std::path::{Path, PathBuf};

use bombus_core::capability::{Gpu, Hardware};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

const MB: u64 = 1 << 20;

/// Where Linux lists graphics cards.
const LINUX_CARDS: &str = "/sys/class/drm";

/// The graphics processors of this machine.
pub(super) struct Gpus {
    nvidia: Option<Nvml>,
    amd: Vec<PathBuf>,
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
        Self { nvidia, amd: amd_cards(Path::new(LINUX_CARDS)) }
    }

    /// Looks at their memory.
    pub(super) fn look(&self, hardware: &Hardware) -> Vec<Gpu> {
        let mut gpus = self.nvidia.as_ref().map(nvidia_gpus).unwrap_or_default();
        gpus.extend(self.amd.iter().filter_map(|card| amd_gpu(card)));
        if cfg!(all(target_os = "macos", target_arch = "aarch64")) {
            gpus.push(Gpu {
                name: hardware.cpu_model.clone(),
                vram_total_mb: hardware.ram_total_mb,
                vram_free_mb: hardware.ram_available_mb,
            });
        }
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
                vram_total_mb: memory.total / MB,
                vram_free_mb: memory.free / MB,
            })
        })
        .collect()
}

/// Lists the cards whose driver (amdgpu) tells their memory.
fn amd_cards(cards: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(cards)
        .into_iter()
        .flatten()
        .flatten()
        // `card0` is a card, `card0-DP-1` one of its sockets.
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with("card") && !name.contains('-')))
        .map(|entry| entry.path().join("device"))
        .filter(|device| device.join("mem_info_vram_total").exists())
        .collect();
    found.sort();
    found
}

fn amd_gpu(device: &Path) -> Option<Gpu> {
    let read = |file: &str| fs::read_to_string(device.join(file)).ok();
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let total = number("mem_info_vram_total")?;
    let used = number("mem_info_vram_used").unwrap_or(0);
    let name = read("product_name").map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    Some(Gpu {
        name: name.unwrap_or_else(|| "AMD GPU".to_owned()),
        vram_total_mb: total / MB,
        vram_free_mb: total.saturating_sub(used) / MB,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_of_amd_tell_their_memory_in_files() {
        let cards = tempfile::tempdir().unwrap();
        let device = cards.path().join("card1/device");
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(cards.path().join("card0/device")).unwrap();
        fs::create_dir_all(cards.path().join("card1-DP-1")).unwrap();
        fs::write(device.join("mem_info_vram_total"), "17163091968\n").unwrap();
        fs::write(device.join("mem_info_vram_used"), "1073741824\n").unwrap();
        let found: Vec<Gpu> = amd_cards(cards.path()).iter().filter_map(|card| amd_gpu(card)).collect();
        assert_eq!(found, [Gpu { name: "AMD GPU".to_owned(), vram_total_mb: 16_368, vram_free_mb: 15_344 }]);
    }
}
