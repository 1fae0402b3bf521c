//! Graphics cards of AMD and Intel, as the kernel of Linux tells them in files.

use std::fs;
use std::path::{Path, PathBuf};

use bombus_core::capability::{Gpu, GpuVendor};

use super::MB;

/// Where distributions keep the names of PCI devices.
const PCI_NAMES: [&str; 2] = ["/usr/share/hwdata/pci.ids", "/usr/share/misc/pci.ids"];
/// Largest list of names that is read; real ones have about 1.5 MB.
const PCI_NAMES_BYTES_MAX: u64 = 16 << 20;
/// Most cards and tiles that are looked at.
const CARDS_MAX: usize = 64;

/// A graphics card.
pub(super) struct Card {
    name: String,
    vendor: GpuVendor,
    /// Files whose numbers together are its memory in bytes.
    total: Vec<PathBuf>,
    /// The file with what of it is used, in bytes.
    used: Option<PathBuf>,
}

impl Card {
    /// Looks at its memory now.
    pub(super) fn look(&self) -> Gpu {
        let total: u64 = self.total.iter().filter_map(|file| number(file)).sum();
        let used = self.used.as_deref().and_then(number).unwrap_or(0);
        Gpu {
            name: self.name.clone(),
            vendor: Some(self.vendor),
            vram_total_mb: total / MB,
            vram_free_mb: total.saturating_sub(used) / MB,
        }
    }

    /// Describes a card by its folder; `None` for those of other makers.
    fn read(card: &Path) -> Option<Self> {
        let device = card.join("device");
        let id = |file: &str| text(&device.join(file)).map(|id| id.trim_start_matches("0x").to_owned());
        let vendor = match id("vendor")?.as_str() {
            "1002" => GpuVendor::Amd,
            "8086" => GpuVendor::Intel,
            _ => return None,
        };
        let (total, used) = match vendor {
            GpuVendor::Amd => (vec![device.join("mem_info_vram_total")], Some(device.join("mem_info_vram_used"))),
            _ => (intel_memory(card, &device), None),
        };
        let name = text(&device.join("product_name"))
            .or_else(|| PCI_NAMES.iter().find_map(|list| name_in(Path::new(list), &id("vendor")?, &id("device")?)));
        let fallback = if vendor == GpuVendor::Amd { "AMD GPU" } else { "Intel GPU" };
        Some(Self { name: name.unwrap_or_else(|| fallback.to_owned()), vendor, total, used })
    }
}

/// Names the files with the memory of a card of Intel's: of the driver xe one for each tile, of some versions of i915 one for the card.
/// Processors with graphics inside have none, since they share the machine's memory.
fn intel_memory(card: &Path, device: &Path) -> Vec<PathBuf> {
    let tiles = entries(device, |name| name.strip_prefix("tile").is_some_and(|number| number.parse::<u8>().is_ok()));
    let mut files: Vec<PathBuf> = tiles.into_iter().map(|tile| tile.join("physical_vram_size_bytes")).collect();
    files.retain(|file| file.exists());
    if files.is_empty() {
        files = [card, device].map(|folder| folder.join("lmem_total_bytes")).to_vec();
        files.retain(|file| file.exists());
        files.truncate(1);
    }
    files
}

/// Lists the cards of AMD and Intel.
pub(super) fn cards(folder: &Path) -> Vec<Card> {
    // `card0` is a card, `card0-DP-1` one of its sockets.
    let cards = entries(folder, |name| name.strip_prefix("card").is_some_and(|number| number.parse::<u16>().is_ok()));
    cards.iter().filter_map(|card| Card::read(card)).collect()
}

fn entries(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(&wanted))
        .map(|entry| entry.path())
        .take(CARDS_MAX)
        .collect();
    found.sort();
    found
}

fn text(file: &Path) -> Option<String> {
    fs::read_to_string(file).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn number(file: &Path) -> Option<u64> {
    text(file)?.parse().ok()
}

/// Finds a device in a list of PCI ids: makers stand at the beginning of a line, their devices after one tab.
fn name_in(list: &Path, vendor: &str, device: &str) -> Option<String> {
    if fs::metadata(list).ok()?.len() > PCI_NAMES_BYTES_MAX {
        return None;
    }
    let bytes = fs::read(list).ok()?;
    let list = String::from_utf8_lossy(&bytes);
    let of_vendor = list.lines().skip_while(|line| line.split_once("  ").is_none_or(|(id, _)| id != vendor)).skip(1);
    of_vendor
        .take_while(|line| line.starts_with(['\t', '#']) || line.is_empty())
        .filter_map(|line| line.strip_prefix('\t')?.split_once("  "))
        .find(|(id, _)| *id == device)
        .map(|(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lays out the files of a driver, as paths below the folder of the cards, with what they hold.
    fn driver(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }

    fn memory_of(folder: &tempfile::TempDir) -> Vec<(Option<GpuVendor>, u64, u64)> {
        let gpus = cards(folder.path()).into_iter().map(|card| card.look());
        gpus.map(|gpu| (gpu.vendor, gpu.vram_total_mb, gpu.vram_free_mb)).collect()
    }

    #[test]
    fn cards_of_amd_tell_their_memory_and_what_is_used() {
        let folder = driver(&[
            ("card0/device/vendor", "0x10de\n"),
            ("card1/device/vendor", "0x1002\n"),
            ("card1/device/mem_info_vram_total", "17163091968\n"),
            ("card1/device/mem_info_vram_used", "1073741824\n"),
            ("card1-DP-1/device/vendor", "0x1002\n"),
            ("renderD128/device/vendor", "0x1002\n"),
        ]);
        assert_eq!(memory_of(&folder), [(Some(GpuVendor::Amd), 16_368, 15_344)]);
    }

    #[test]
    fn cards_of_intel_tell_their_memory_by_tile_or_at_once() {
        let xe = driver(&[
            ("card0/device/vendor", "0x8086"),
            ("card0/device/tile0/physical_vram_size_bytes", "8589934592"),
            ("card0/device/tile1/physical_vram_size_bytes", "8589934592"),
        ]);
        assert_eq!(memory_of(&xe), [(Some(GpuVendor::Intel), 16_384, 16_384)]);
        let i915 = driver(&[("card0/device/vendor", "0x8086"), ("card0/lmem_total_bytes", "6442450944")]);
        assert_eq!(memory_of(&i915), [(Some(GpuVendor::Intel), 6_144, 6_144)]);
        let inside_the_processor = driver(&[("card0/device/vendor", "0x8086")]);
        assert_eq!(memory_of(&inside_the_processor), [(Some(GpuVendor::Intel), 0, 0)]);
    }

    #[test]
    fn names_come_from_the_driver_or_from_the_list_of_pci_devices() {
        let named = driver(&[("card0/device/vendor", "0x1002"), ("card0/device/product_name", "Radeon PRO W7900\n")]);
        assert_eq!(cards(named.path())[0].look().name, "Radeon PRO W7900");
        let list = driver(&[(
            "pci.ids",
            "# names\n1002  Advanced Micro Devices\n\t56a0  Other\n8086  Intel Corporation\n\t46a6  UHD\n\n\t56a0  DG2 [Arc A770]\n\t\t1849 1  Board\n10de  NVIDIA\n",
        )]);
        let path = list.path().join("pci.ids");
        assert_eq!(name_in(&path, "8086", "56a0").as_deref(), Some("DG2 [Arc A770]"));
        assert_eq!(name_in(&path, "8086", "ffff"), None);
        assert_eq!(name_in(&path, "abcd", "56a0"), None);
    }
}
