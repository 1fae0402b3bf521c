//! `bombus detect`: what this machine is, what it can run, and what runs on it already.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Result;
use bombus_core::capability::{Capability, Gpu, GpuTier, GpuVendor, Hardware, NetworkInterface, NodeTier};
use bombus_infer::discover::{FoundServer, local_servers};
use bombus_infer::hardware;
use bombus_infer::models::catalogue::catalogue;
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::doctor::nearest_existing;
use super::{Global, output};

mod backends;

use backends::Configured;

/// Arguments of `bombus detect`.
#[derive(Debug, Args)]
pub(crate) struct DetectArgs {
    /// As one JSON object
    #[arg(long)]
    json: bool,
    /// Look for a server of models here too; may be given several times
    #[arg(long, value_name = "ADDR:PORT")]
    probe: Vec<SocketAddr>,
}

/// What was found, by the names that `/identity` and `/status` have for it.
#[derive(Debug, Serialize)]
struct Detected {
    hostname: String,
    os: String,
    os_version: String,
    architecture: String,
    cpu_model: String,
    /// Hardware threads, as in `/identity`.
    cpu_cores: u32,
    cpu_physical_cores: u32,
    ram_total_mb: u64,
    ram_available_mb: u64,
    disk_total_gb: f64,
    disk_free_gb: f64,
    gpus: Vec<Gpu>,
    gpu_name: Option<String>,
    vram_total_mb: u64,
    vram_free_mb: u64,
    lan_ip: Option<String>,
    interfaces: Vec<NetworkInterface>,
    gpu_tier: GpuTier,
    node_tier: NodeTier,
    capabilities: Vec<Capability>,
    /// The largest model that the GPU holds, in billions of parameters.
    max_model_params_b: f64,
    /// The same of the machine's memory, where the processor computes.
    max_model_params_b_cpu: f64,
    /// Models of the catalogue that fit into memory now.
    models_advised: Vec<String>,
    /// Whether this build has the embedded engine and the processor can run it.
    embedded_engine: bool,
    /// The configured backends; of the running node where one runs.
    backends: Vec<Configured>,
    servers: Vec<FoundServer>,
    notes: Vec<String>,
}

pub(super) fn run(global: &Global, args: &DetectArgs) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    let data_dir = global.data_dir_path()?.0;
    let looks = async { Ok(tokio::join!(local_servers(&args.probe), backends::configured(&settings, &data_dir))) };
    let (servers, (backends, trouble)) = super::block_on(looks)?;
    let hardware = hardware::probe(nearest_existing(&data_dir));
    let mut detected = Detected::new(hardware, servers, backends);
    detected.notes.extend(trouble);
    if args.json {
        output::print_json(&detected)?;
    } else {
        output::print(&detected.text())?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Detected {
    fn new(hardware: Hardware, servers: Vec<FoundServer>, backends: Vec<Configured>) -> Self {
        let engine = engine();
        let has_backend = backends.iter().any(|backend| backend.works(engine.is_ok(), &servers));
        let available_mb = hardware.ram_available_mb;
        let mut notes = Vec::new();
        if let Err(reason) = &engine {
            notes.push(reason.clone());
        }
        notes.extend(hardware.best_gpu().and_then(|gpu| build_note(gpu.vendor?)));
        let best = hardware.best_gpu().cloned();
        Self {
            hostname: sysinfo::System::host_name().unwrap_or_default(),
            os_version: sysinfo::System::long_os_version().unwrap_or_default(),
            gpu_tier: hardware.gpu_tier(),
            node_tier: hardware.node_tier(),
            capabilities: hardware.capabilities(has_backend),
            max_model_params_b: hardware.max_model_params_b(),
            max_model_params_b_cpu: hardware.max_model_params_b_cpu(),
            models_advised: catalogue()
                .into_iter()
                .filter(|entry| entry.ram_mb <= available_mb)
                .map(|entry| entry.name)
                .collect(),
            embedded_engine: engine.is_ok(),
            backends,
            servers,
            notes,
            gpu_name: best.as_ref().map(|gpu| gpu.name.clone()),
            vram_total_mb: best.as_ref().map_or(0, |gpu| gpu.vram_total_mb),
            vram_free_mb: best.as_ref().map_or(0, |gpu| gpu.vram_free_mb),
            os: hardware.os,
            architecture: hardware.architecture,
            cpu_model: hardware.cpu_model,
            cpu_cores: hardware.cpu_threads,
            cpu_physical_cores: hardware.cpu_cores,
            ram_total_mb: hardware.ram_total_mb,
            ram_available_mb: hardware.ram_available_mb,
            disk_total_gb: tenths(hardware.disk_total_gb),
            disk_free_gb: tenths(hardware.disk_free_gb),
            gpus: hardware.gpus,
            lan_ip: hardware.lan_ip,
            interfaces: hardware.interfaces,
        }
    }

    fn text(&self) -> String {
        let mut lines = vec![
            ("machine", format!("{}, {} on {}", self.hostname, self.os_version, self.architecture)),
            ("processor", format!("{}, {}", self.cpu_model, self.threads())),
            ("memory", format!("{} MB, {} MB available", self.ram_total_mb, self.ram_available_mb)),
            ("disk", format!("{:.1} GB, {:.1} GB free", self.disk_total_gb, self.disk_free_gb)),
        ];
        lines.extend(self.gpus.iter().map(|gpu| ("gpu", of_gpu(gpu))));
        if self.gpus.is_empty() {
            lines.push(("gpu", "none found".to_owned()));
        }
        lines.push(("network", self.lan_ip.clone().unwrap_or_else(|| "no address beyond this machine".to_owned())));
        lines.extend(self.interfaces.iter().map(|interface| ("interface", of_interface(interface))));
        lines.push(("gpu tier", name_of(self.gpu_tier)));
        lines.push(("node tier", name_of(self.node_tier)));
        lines.push(("can", self.capabilities.iter().map(name_of).collect::<Vec<_>>().join(", ")));
        lines.push(("largest model", self.largest_model()));
        lines.extend(self.backends.iter().map(|backend| ("backend", backend.line())));
        lines.extend(self.servers.iter().map(|server| ("found", of_server(server, &self.backends))));
        if self.servers.is_empty() {
            lines.push(("found", "no other server of models on its usual port".to_owned()));
        }
        lines.extend(self.notes.iter().map(|note| ("note", note.clone())));
        lines.into_iter().map(|(name, value)| format!("{name:13}  {value}\n")).collect()
    }

    fn threads(&self) -> String {
        match self.cpu_physical_cores {
            0 => format!("{} threads", self.cpu_cores),
            cores => format!("{cores} cores, {} threads", self.cpu_cores),
        }
    }

    fn largest_model(&self) -> String {
        let on_cpu = format!("about {:.1} B parameters on the processor", self.max_model_params_b_cpu);
        let size = if self.max_model_params_b > 0.0 {
            format!("about {:.1} B parameters on the GPU, {on_cpu}", self.max_model_params_b)
        } else {
            on_cpu
        };
        match self.models_advised.as_slice() {
            [] => size,
            [only] => format!("{size}; bombus models pull {only}"),
            // A pull takes one name.
            [first, others @ ..] => format!("{size}; bombus models pull {first}, or {}", others.join(", ")),
        }
    }
}

fn of_gpu(gpu: &Gpu) -> String {
    match gpu.vram_total_mb {
        0 => format!("{}, in the machine's memory", gpu.name),
        total => format!("{}, {total} MB, {} MB free", gpu.name, gpu.vram_free_mb),
    }
}

fn of_interface(interface: &NetworkInterface) -> String {
    let speed = interface.speed_mbit.map(|speed| format!(", {speed} Mbit/s")).unwrap_or_default();
    format!("{}: {}{speed}", interface.name, interface.addresses.join(", "))
}

/// Names a server with the lines by which it becomes a backend, unless it is one.
fn of_server(server: &FoundServer, backends: &[Configured]) -> String {
    let version = server.version.as_deref().map(|version| format!(" {version}")).unwrap_or_default();
    let models = match (server.needs_key, server.models.as_ref().map(Vec::len)) {
        (true, _) => ", it wants a key".to_owned(),
        (false, None) => String::new(),
        (false, Some(1)) => ", 1 model".to_owned(),
        (false, Some(count)) => format!(", {count} models"),
    };
    let found = format!("{}{version}{models}", server.kind.as_str());
    if let Some(backend) = backends.iter().find(|backend| backend.is(server)) {
        return format!("{found}; it is the backend {}", backend.name);
    }
    format!("{found}; as a backend: kind = \"{}\", url = \"{}\"", server.kind.backend_kind(), server.url)
}

/// Says whether the embedded engine works here.
#[cfg(feature = "embedded")]
fn engine() -> Result<(), String> {
    bombus_llama::cpu::check()
}

#[cfg(not(feature = "embedded"))]
fn engine() -> Result<(), String> {
    Err("this build of bombus has no embedded engine".to_owned())
}

/// Says how the embedded engine would come to use the GPU, where this build does not.
fn build_note(vendor: GpuVendor) -> Option<String> {
    let features: &[(&str, bool)] = match vendor {
        GpuVendor::Nvidia => &[("cuda", cfg!(feature = "cuda")), ("vulkan", cfg!(feature = "vulkan"))],
        GpuVendor::Amd => &[("rocm", cfg!(feature = "rocm")), ("vulkan", cfg!(feature = "vulkan"))],
        GpuVendor::Intel => &[("vulkan", cfg!(feature = "vulkan"))],
        GpuVendor::Apple => &[("metal", cfg!(feature = "metal"))],
    };
    if !cfg!(feature = "embedded") || features.iter().any(|(_, built_in)| *built_in) {
        return None;
    }
    let names = features.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" or ");
    Some(format!(
        "the embedded engine of this build uses the processor; one built with the feature {names} uses the GPU"
    ))
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Returns a word as its serialised form has it.
fn name_of(word: impl Serialize) -> String {
    match serde_json::to_value(word) {
        Ok(Value::String(name)) => name,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use bombus_infer::discover::ServerKind;

    use super::*;

    fn machine() -> Hardware {
        Hardware {
            cpu_model: "Test CPU".into(),
            cpu_threads: 8,
            cpu_cores: 4,
            ram_total_mb: 16_384,
            ram_available_mb: 8_000,
            disk_total_gb: 100.0,
            disk_free_gb: 50.0,
            gpus: vec![Gpu {
                name: "Test GPU".into(),
                vendor: Some(GpuVendor::Amd),
                vram_total_mb: 16_368,
                vram_free_mb: 15_000,
            }],
            lan_ip: Some("192.0.2.7".into()),
            ..Hardware::default()
        }
    }

    #[test]
    fn the_text_names_every_part() {
        let server = FoundServer {
            kind: ServerKind::Ollama,
            url: "http://127.0.0.1:11434".into(),
            version: Some("0.24.0".into()),
            models: Some(vec!["m:latest".into()]),
            needs_key: false,
        };
        let ready = Configured {
            name: "cloud".into(),
            kind: "openai".into(),
            url: Some("https://api.example.com/v1".into()),
            ready: Some(true),
            error: None,
            models: Some(2),
        };
        let text = Detected::new(machine(), vec![server.clone()], vec![ready]).text();
        for wanted in [
            "backend        cloud: openai, https://api.example.com/v1, ready, 2 models",
            "processor      Test CPU, 4 cores, 8 threads",
            "memory         16384 MB, 8000 MB available",
            "gpu            Test GPU, 16368 MB, 15000 MB free",
            "network        192.0.2.7",
            "gpu tier       high",
            "node tier      specialist",
            "gpu_inference",
            "about 24.8 B parameters on the GPU, about 24.8 B parameters on the processor",
            "found          Ollama 0.24.0, 1 model; as a backend: kind = \"ollama\", url = \"http://127.0.0.1:11434\"",
        ] {
            assert!(text.contains(wanted), "{text}\nlacks {wanted:?}");
        }
        let used = Configured {
            name: "near".into(),
            kind: "ollama".into(),
            url: Some("http://localhost:11434/".into()),
            ready: Some(false),
            error: Some("refused".into()),
            models: Some(0),
        };
        let text = Detected::new(machine(), vec![server], vec![used]).text();
        assert!(text.contains("backend        near: ollama, http://localhost:11434/, down: refused"), "{text}");
        assert!(text.contains("found          Ollama 0.24.0, 1 model; it is the backend near"), "{text}");
    }

    #[test]
    fn inference_takes_a_backend_that_works() {
        let infers = |servers: &[FoundServer], backends: &[Configured]| {
            let detected = Detected::new(machine(), servers.to_vec(), backends.to_vec());
            detected.capabilities.contains(&Capability::CpuInference)
        };
        let found = [FoundServer {
            kind: ServerKind::Ollama,
            url: "http://127.0.0.1:11434".into(),
            version: None,
            models: None,
            needs_key: false,
        }];
        let backend = |kind: &str, url: Option<&str>, ready| Configured {
            name: kind.into(),
            kind: kind.into(),
            url: url.map(str::to_owned),
            ready,
            error: None,
            models: None,
        };
        let near = |ready| [backend("ollama", Some("http://localhost:11434"), ready)];
        assert!(!infers(&[], &[]), "an engine that nobody configured runs nothing");
        assert!(!infers(&found, &[]), "a server that is no backend is not asked");
        assert!(!infers(&[], &near(None)));
        assert!(infers(&found, &near(None)));
        assert!(!infers(&found, &near(Some(false))), "the node knows better");
        assert_eq!(infers(&[], &[backend("embedded", None, None)]), engine().is_ok());
        assert!(!infers(&[], &[backend("embedded", None, Some(false))]));
        assert!(infers(&[], &[backend("openai", Some("https://api.example.com/v1"), Some(true))]));
    }

    #[test]
    fn the_pull_that_is_advised_names_one_model() {
        let mut detected = Detected::new(machine(), Vec::new(), Vec::new());
        let mut advised = |names: &[&str]| {
            detected.models_advised = names.iter().map(|name| (*name).to_owned()).collect();
            detected.largest_model()
        };
        assert!(advised(&["small"]).ends_with("; bombus models pull small"));
        assert!(advised(&["small", "large", "base"]).ends_with("; bombus models pull small, or large, base"));
        assert!(!advised(&[]).contains("pull"));
    }
}
