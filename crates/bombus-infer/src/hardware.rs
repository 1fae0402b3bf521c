//! Looks at the machine: processor, memory, disk, graphics processors, address on the local network.

mod gpu;
mod network;

use std::path::{Path, PathBuf};

use bombus_core::capability::Hardware;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use gpu::Gpus;

const MB: u64 = 1 << 20;
const GB: f64 = (1_u64 << 30) as f64;

/// Looks at the machine once. Blocks for some milliseconds; longer where a graphics driver has to wake up.
///
/// Memory is what a container may use where it is limited. What cannot be found out is zero, empty or absent.
#[must_use]
pub fn probe(data_dir: &Path) -> Hardware {
    Probe::new(data_dir).hardware
}

/// A look at the machine that can be repeated at little cost, every few seconds.
pub struct Probe {
    system: Option<System>,
    gpus: Gpus,
    data_dir: PathBuf,
    hardware: Hardware,
    cpu_usage_percent: f32,
}

impl Probe {
    /// Looks for the first time. The disk is the one that holds `data_dir`, which should exist.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        let kinds = RefreshKind::nothing()
            .with_memory(MemoryRefreshKind::nothing().with_ram())
            .with_cpu(CpuRefreshKind::nothing().with_usage());
        let system = System::new_with_specifics(kinds)
            .inspect_err(|error| tracing::warn!(%error, "the machine's memory and processor cannot be looked at"))
            .ok();
        let cpu = system.as_ref().and_then(|system| system.cpus().first());
        let hardware = Hardware {
            cpu_model: cpu.map(|cpu| cpu.brand().trim().to_owned()).unwrap_or_default(),
            cpu_threads: std::thread::available_parallelism()
                .map_or(0, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
            cpu_cores: System::physical_core_count().map_or(0, |count| u32::try_from(count).unwrap_or(u32::MAX)),
            os: std::env::consts::OS.to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            ..Hardware::default()
        };
        let mut probe =
            Self { system, gpus: Gpus::find(), data_dir: data_dir.to_owned(), hardware, cpu_usage_percent: 0.0 };
        probe.look_at_memory();
        probe.look_at_the_rest();
        probe.hardware.interfaces = network::interfaces();
        probe
    }

    /// Looks again at what changes: memory, disk, processor usage, graphics memory, address. Blocks for about a millisecond.
    pub fn refresh(&mut self) -> &Hardware {
        if let Some(system) = &mut self.system {
            system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
            system.refresh_cpu_usage();
            self.cpu_usage_percent = system.global_cpu_usage();
        }
        self.look_at_memory();
        self.look_at_the_rest();
        &self.hardware
    }

    /// Returns what the last look saw.
    #[must_use]
    pub fn hardware(&self) -> &Hardware {
        &self.hardware
    }

    /// Returns how busy all processors together were between the last two looks, 0 to 100; 0 after the first. Looks less than
    /// 200 ms apart give the value before.
    #[must_use]
    pub fn cpu_usage_percent(&self) -> f32 {
        self.cpu_usage_percent
    }

    fn look_at_memory(&mut self) {
        let Some(system) = &self.system else { return };
        let (mut total, mut available) = (system.total_memory(), system.available_memory());
        if let Some(limits) = system.cgroup_limits().filter(|limits| limits.total_memory < total) {
            // What a container has free by its own count leaves out the page cache, which is given back when it is needed.
            total = limits.total_memory;
            available = available.min(total.saturating_sub(limits.rss));
        }
        self.hardware.ram_total_mb = total / MB;
        self.hardware.ram_available_mb = available / MB;
    }

    fn look_at_the_rest(&mut self) {
        if let Ok(disk) = fs4::statvfs(&self.data_dir) {
            self.hardware.disk_total_gb = disk.total_space() as f64 / GB;
            self.hardware.disk_free_gb = disk.available_space() as f64 / GB;
        }
        self.hardware.gpus = self.gpus.look(&self.hardware);
        self.hardware.lan_ip = network::lan_address().map(|address| address.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_the_parts_that_every_machine_has() {
        let directory = tempfile::tempdir().unwrap();
        let mut probe = Probe::new(directory.path());
        let first = probe.hardware().clone();
        assert!(first.cpu_threads > 0 && !first.cpu_model.is_empty());
        assert!(first.ram_available_mb > 0 && first.ram_available_mb <= first.ram_total_mb);
        assert!(first.disk_free_gb > 0.0 && first.disk_free_gb <= first.disk_total_gb);
        let again = probe.refresh();
        assert_eq!((again.ram_total_mb, &again.cpu_model), (first.ram_total_mb, &first.cpu_model));
        assert!((0.0..=100.0).contains(&probe.cpu_usage_percent()));
    }

    #[test]
    fn a_directory_that_is_not_there_has_no_disk() {
        assert_eq!(probe(Path::new("/nowhere/at/all")).disk_total_gb, 0.0);
    }
}
