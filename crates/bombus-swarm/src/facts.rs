//! What this node says of itself.

use bombus_core::capability::{Capability, Hardware};
use bombus_core::identity::{BootId, NodeId};
use bombus_core::topics::{Capabilities, NodeStatus, SealKeyClaim, Timestamp};

/// Most entries of lists, and most bytes of their texts, with room below the limits of messages: 240 models with the longest names are
/// 60 KiB of the 64 that a message may have.
const MODELS_MAX: usize = 240;
const MODEL_NAME_MAX: usize = 200;
const LIST_MAX: usize = 32;
const NAME_MAX: usize = 128;

/// Facts about this node, which its owner keeps up to date.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OwnFacts {
    /// What people call the node.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Port of the HTTP API.
    pub api_port: u16,
    /// The machine.
    pub hardware: Hardware,
    /// The models that it runs.
    pub models: Vec<String>,
    /// What runs models. Without anything, the node offers no inference.
    pub backends: Vec<String>,
    /// Command-line programs on the PATH that can work on tasks, such as `claude`, `codex`, `gemini` and `ollama`.
    pub installed: Vec<String>,
    /// Requests that run now.
    pub running: u32,
    /// Requests that may run at once; 0 where nothing limits them.
    pub slots: u32,
    /// How busy all processors together are, 0 to 100.
    pub cpu_percent: f64,
    /// How busy the graphics processors are, 0 to 100, where that is known.
    pub gpu_percent: Option<f64>,
    /// Whether the node finishes what runs and takes nothing new.
    pub draining: bool,
    /// The key that texts for the node are sealed to, where it has one.
    pub seal_key: Option<SealKeyClaim>,
}

impl OwnFacts {
    /// Says what the node is doing.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        match self.running {
            _ if self.draining => NodeStatus::Draining,
            0 => NodeStatus::Idle,
            _ => NodeStatus::Busy,
        }
    }

    /// Says whether nothing new can begin now.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.slots > 0 && self.running >= self.slots
    }

    /// Writes the facts as the message that peers get. What is beyond the limits of messages stays out: names that are too long, and the
    /// ends of lists that are.
    #[must_use]
    pub fn capabilities(&self, node_id: &NodeId, boot: BootId, now: Timestamp) -> Capabilities {
        let hardware = &self.hardware;
        let gpu = hardware.best_gpu();
        Capabilities {
            cpu: Some(round(self.cpu_percent)),
            gpu: Some(self.gpu_percent.map_or(0.0, round)),
            models: some_of(&self.models, MODELS_MAX, MODEL_NAME_MAX),
            installed: some_of(&self.installed, LIST_MAX, NAME_MAX),
            status: self.status(),
            name: Some(beginning_of(&self.name, NAME_MAX)),
            version: Some(beginning_of(&self.version, NAME_MAX)),
            ip: hardware.lan_ip.clone(),
            api: Some(self.api_port),
            node_tier: Some(hardware.node_tier()),
            gpu_tier: Some(hardware.gpu_tier()),
            gpu_name: gpu.map(|gpu| beginning_of(&gpu.name, NAME_MAX)),
            vram_total_mb: gpu.map(|gpu| gpu.vram_total_mb),
            capabilities: hardware.capabilities(!self.backends.is_empty()).into_iter().map(name_of).collect(),
            backends: some_of(&self.backends, LIST_MAX, NAME_MAX),
            running: Some(self.running),
            slots: (self.slots > 0).then_some(self.slots),
            boot: Some(boot),
            seal_key: self.seal_key.clone(),
            ..Capabilities::new(node_id.to_string(), now)
        }
    }

    /// Says whether peers should be told of a change at once: all but the load of the processors, and requests that come and go but leave the
    /// node about as full as it was.
    #[must_use]
    pub fn differs_from(&self, told: &Self) -> bool {
        let kept = |facts: &Self| {
            let hardware = &facts.hardware;
            (
                facts.status(),
                facts.is_full(),
                hardware.node_tier(),
                hardware.best_gpu().map(|gpu| (gpu.name.clone(), gpu.vram_total_mb)),
                hardware.lan_ip.clone(),
                hardware.capabilities(!facts.backends.is_empty()),
            )
        };
        self.name != told.name
            || self.version != told.version
            || self.api_port != told.api_port
            || self.models != told.models
            || self.backends != told.backends
            || self.installed != told.installed
            || self.slots != told.slots
            || self.seal_key != told.seal_key
            || self.running.abs_diff(told.running) >= (self.slots / 4).max(1)
            || kept(self) != kept(told)
    }
}

fn name_of(capability: Capability) -> String {
    match capability {
        Capability::GpuInference => "gpu_inference",
        Capability::CpuInference => "cpu_inference",
        Capability::CpuWorker => "cpu_worker",
        Capability::FileProcessing => "file_processing",
        Capability::CodeExecution => "code_execution",
        Capability::Storage => "storage",
        Capability::Coordinator => "coordinator",
    }
    .to_owned()
}

/// Returns a list without texts that are no names or have more than `bytes_max` bytes, and at most `max` of the rest.
fn some_of(list: &[String], max: usize, bytes_max: usize) -> Vec<String> {
    let is_name = |text: &&String| (1..=bytes_max).contains(&text.len()) && !text.contains(char::is_control);
    list.iter().filter(is_name).take(max).cloned().collect()
}

/// Returns as many whole characters of a text as fit into `bytes_max` bytes.
fn beginning_of(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].to_owned()
}

/// Rounds to one digit, as such numbers are not known any better.
fn round(percent: f64) -> f64 {
    if percent.is_finite() { (percent.clamp(0.0, 100.0) * 10.0).round() / 10.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;
    use bombus_core::topics::TopicMessage;

    use super::*;

    fn facts() -> OwnFacts {
        OwnFacts { name: "oak".into(), cpu_percent: 12.345, slots: 2, ..OwnFacts::default() }
    }

    #[test]
    fn only_what_matters_is_told_at_once() {
        let told = facts();
        let busy_processor = OwnFacts { cpu_percent: 99.0, ..told.clone() };
        assert!(!busy_processor.differs_from(&told));
        let begins = OwnFacts { running: 1, ..told.clone() };
        assert!(begins.differs_from(&told), "idle became busy");
        let of_sixteen = |running| OwnFacts { running, slots: 16, ..told.clone() };
        assert!(!of_sixteen(8).differs_from(&of_sixteen(5)), "about as much as before");
        assert!(of_sixteen(9).differs_from(&of_sixteen(5)), "a quarter of the slots more");
        assert!(of_sixteen(5).differs_from(&of_sixteen(9)), "and less");
        assert!(of_sixteen(16).differs_from(&of_sixteen(15)), "it is full now");
        let of_three = |running| OwnFacts { running, slots: 3, ..told.clone() };
        assert!(of_three(2).differs_from(&of_three(1)), "one of few");
        assert!(OwnFacts { running: 2, ..told.clone() }.differs_from(&begins), "no slot is left");
        assert!(OwnFacts { models: vec!["m".into()], ..told.clone() }.differs_from(&told));
        assert!(OwnFacts { draining: true, ..told.clone() }.differs_from(&told));
    }

    #[test]
    fn however_much_there_is_to_tell_it_fits_into_a_message() {
        let many = |text: &str, length: usize| vec![text.repeat(length); 1_000];
        let facts = OwnFacts {
            name: "é".repeat(100),
            models: many("m", MODEL_NAME_MAX),
            backends: many("b", NAME_MAX),
            installed: [many("i", NAME_MAX + 1), many("\u{1b}", 3), vec!["claude".to_owned()]].concat(),
            ..facts()
        };
        let node_id = NodeKey::from_secret(&[1; 32]).node_id();
        let told = facts.capabilities(&node_id, BootId::new(1), Timestamp::from_unix_ms(0));
        assert_eq!(told.name.as_deref(), Some("é".repeat(64).as_str()));
        assert_eq!((told.models.len(), told.backends.len()), (MODELS_MAX, LIST_MAX));
        assert_eq!(told.installed, ["claude"], "what is no name of a program stays out");
        assert!(TopicMessage::Capabilities(told).encode().is_ok());
    }

    #[test]
    fn numbers_that_are_no_percentages_stay_out_of_messages() {
        let node_id = NodeKey::from_secret(&[1; 32]).node_id();
        let cpu = |cpu_percent| {
            let facts = OwnFacts { cpu_percent, ..facts() };
            facts.capabilities(&node_id, BootId::new(1), Timestamp::from_unix_ms(0)).cpu
        };
        assert_eq!(
            [cpu(12.345), cpu(f64::NAN), cpu(-1.0), cpu(140.0)],
            [Some(12.3), Some(0.0), Some(0.0), Some(100.0)]
        );
    }
}
