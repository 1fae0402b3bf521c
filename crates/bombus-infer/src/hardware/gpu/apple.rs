//! Apple silicon, whose graphics processor works in the machine's own memory.

use std::process::Command;

use bombus_core::capability::{Gpu, GpuVendor, Hardware};

use super::MB;

/// Where macOS has the program, whatever `PATH` says.
const SYSCTL: &str = "/usr/sbin/sysctl";
/// The chip's name, its memory in bytes, and how much of it graphics may take in MB where somebody has set that (0 else).
const KEYS: [&str; 3] = ["machdep.cpu.brand_string", "hw.memsize", "iogpu.wired_limit_mb"];

/// What the kernel says about an Apple chip.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chip {
    name: String,
    memory_mb: u64,
    gpu_limit_mb: Option<u64>,
}

impl Chip {
    /// Asks the kernel of this machine; `None` where it is not an Apple chip.
    pub(super) fn of_this_machine() -> Option<Self> {
        if !cfg!(all(target_os = "macos", target_arch = "aarch64")) {
            return None;
        }
        // A key that this version of macOS does not know is told on stderr, and the others come all the same.
        let output = Command::new(SYSCTL).args(KEYS).output().ok()?;
        Self::parse(&String::from_utf8_lossy(&output.stdout))
    }

    /// Reads `key: value` lines.
    fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| {
            text.lines().find_map(|line| line.split_once(": ").filter(|(name, _)| *name == key)).map(|(_, value)| value)
        };
        let number = |key: &str| value(key)?.trim().parse::<u64>().ok();
        Some(Self {
            name: value(KEYS[0]).map_or_else(|| "Apple GPU".to_owned(), |name| name.trim().to_owned()),
            memory_mb: number(KEYS[1])? / MB,
            gpu_limit_mb: number(KEYS[2]).filter(|limit| *limit > 0),
        })
    }

    /// Counts the machine's memory as the GPU's, up to the limit that is set for it.
    pub(super) fn look(&self, hardware: &Hardware) -> Gpu {
        let total = self.gpu_limit_mb.unwrap_or(self.memory_mb);
        Gpu {
            name: self.name.clone(),
            vendor: Some(GpuVendor::Apple),
            vram_total_mb: total,
            vram_free_mb: hardware.ram_available_mb.min(total),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_memory_is_the_gpus_up_to_its_limit() {
        let hardware = Hardware { ram_available_mb: 12_000, ..Hardware::default() };
        let text = "machdep.cpu.brand_string: Apple M2 Pro\nhw.memsize: 17179869184\niogpu.wired_limit_mb: 0\n";
        let gpu = Chip::parse(text).unwrap().look(&hardware);
        assert_eq!((gpu.name.as_str(), gpu.vram_total_mb, gpu.vram_free_mb), ("Apple M2 Pro", 16_384, 12_000));
        let limited = Chip::parse(&text.replace("_mb: 0", "_mb: 10000")).unwrap().look(&hardware);
        assert_eq!((limited.vram_total_mb, limited.vram_free_mb), (10_000, 10_000));
        let old = Chip::parse("machdep.cpu.brand_string: Apple M1\nhw.memsize: 8589934592\n").unwrap();
        assert_eq!(old.look(&hardware).vram_total_mb, 8_192);
        assert_eq!(Chip::parse(""), None);
    }
}
