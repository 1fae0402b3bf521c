//! How large messages and their fields may be. All nodes judge by these numbers, so they belong to the protocol.

use super::{
    Capabilities, PresencePing, TaskBroadcast, TaskClaim, TaskHelpRequest, TaskHelpResponse, TaskResult, TopicMessage,
};

/// The largest message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Ids of tasks and nodes, and names of capabilities and programs, in bytes.
const NAME_MAX: usize = 128;
/// Names of models, of repositories and of hardware, in bytes.
const LONG_NAME_MAX: usize = 256;
/// URLs and reasons, in bytes.
const TEXT_MAX: usize = 2_048;
/// What a task asks for, in bytes.
const INPUT_MAX: usize = 48 * 1024;
/// Entries of a list of models.
const MODELS_MAX: usize = 512;
/// Entries of the other lists, and parameters of a task.
const LIST_MAX: usize = 64;
/// A load of more than this is no percentage, however many processors there are.
const PERCENT_MAX: f64 = 100_000.0;

/// Says that a message is larger than the protocol allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` is too large: at most {max} {unit} are allowed")]
pub struct BoundsError {
    /// The field, or `message` for the whole.
    pub field: &'static str,
    /// The limit.
    pub max: usize,
    /// What the limit counts.
    pub unit: &'static str,
}

type Checked = Result<(), BoundsError>;

/// Checks the size of an encoded message.
pub(super) fn check_size(bytes: &[u8]) -> Checked {
    limit("message", bytes.len(), MESSAGE_BYTES_MAX, "bytes")
}

/// Checks every field of a message.
pub(super) fn check(message: &TopicMessage) -> Checked {
    match message {
        TopicMessage::Capabilities(message) => capabilities(message),
        TopicMessage::Task(message) => task(message),
        TopicMessage::TaskClaim(message) => claim(message),
        TopicMessage::TaskResult(message) => result(message),
        TopicMessage::PresencePing(message) => presence(message),
        TopicMessage::TaskHelpRequest(message) => help_request(message),
        TopicMessage::TaskHelpResponse(message) => help_response(message),
    }
}

fn capabilities(message: &Capabilities) -> Checked {
    text("node_id", &message.node_id, NAME_MAX)?;
    percent("cpu", message.cpu)?;
    percent("gpu", message.gpu)?;
    list("models", &message.models, MODELS_MAX, LONG_NAME_MAX)?;
    list("installed", &message.installed, LIST_MAX, NAME_MAX)?;
    optional("name", message.name.as_deref(), NAME_MAX)?;
    optional("version", message.version.as_deref(), NAME_MAX)?;
    optional("ip", message.ip.as_deref(), NAME_MAX)?;
    optional("gpu_name", message.gpu_name.as_deref(), LONG_NAME_MAX)?;
    list("capabilities", &message.capabilities, LIST_MAX, NAME_MAX)?;
    list("backends", &message.backends, LIST_MAX, NAME_MAX)?;
    let seal_key = message.seal_key.as_ref();
    optional("seal_key", seal_key.map(|claim| claim.key.as_str()), NAME_MAX)?;
    optional("seal_key", seal_key.map(|claim| claim.signature.as_str()), NAME_MAX)?;
    let generations = message.task_generations.as_ref();
    limit("task_generations", generations.map_or(0, |told| told.open.len()), LIST_MAX, "entries")?;
    limit("task_generations", generations.map_or(0, |told| told.unfinished.len()), LIST_MAX, "entries")
}

fn task(message: &TaskBroadcast) -> Checked {
    text("task_id", &message.task_id, NAME_MAX)?;
    text("repo", &message.repo, LONG_NAME_MAX)?;
    text("issue_url", &message.issue_url, TEXT_MAX)?;
    text("model", &message.model, LONG_NAME_MAX)?;
    text("input", &message.input, INPUT_MAX)?;
    limit("params", message.params.len(), LIST_MAX, "entries")
}

fn claim(message: &TaskClaim) -> Checked {
    text("task_id", &message.task_id, NAME_MAX)?;
    text("node_id", &message.node_id, NAME_MAX)
}

fn result(message: &TaskResult) -> Checked {
    text("task_id", &message.task_id, NAME_MAX)?;
    text("node_id", &message.node_id, NAME_MAX)?;
    text("result_type", &message.result_type, NAME_MAX)?;
    text("result_url", &message.result_url, TEXT_MAX)
}

fn presence(message: &PresencePing) -> Checked {
    text("node_id", &message.node_id, NAME_MAX)?;
    text("name", &message.name, NAME_MAX)?;
    optional("version", message.version.as_deref(), NAME_MAX)
}

fn help_request(message: &TaskHelpRequest) -> Checked {
    text("task_id", &message.task_id, NAME_MAX)?;
    text("from_node", &message.from_node, NAME_MAX)?;
    text("reason", &message.reason, TEXT_MAX)?;
    text("requested_capability", &message.requested_capability, LONG_NAME_MAX)
}

fn help_response(message: &TaskHelpResponse) -> Checked {
    text("task_id", &message.task_id, NAME_MAX)?;
    text("from_node", &message.from_node, NAME_MAX)?;
    list("capabilities", &message.capabilities, LIST_MAX, LONG_NAME_MAX)
}

fn limit(field: &'static str, size: usize, max: usize, unit: &'static str) -> Checked {
    if size <= max { Ok(()) } else { Err(BoundsError { field, max, unit }) }
}

fn text(field: &'static str, text: &str, max: usize) -> Checked {
    limit(field, text.len(), max, "bytes")
}

fn optional(field: &'static str, value: Option<&str>, max: usize) -> Checked {
    value.map_or(Ok(()), |value| text(field, value, max))
}

fn list(field: &'static str, list: &[String], entries_max: usize, text_max: usize) -> Checked {
    limit(field, list.len(), entries_max, "entries")?;
    list.iter().try_for_each(|entry| text(field, entry, text_max))
}

fn percent(field: &'static str, value: Option<f64>) -> Checked {
    let fits = value.is_none_or(|value| (0.0..=PERCENT_MAX).contains(&value));
    if fits { Ok(()) } else { Err(BoundsError { field, max: 100_000, unit: "percent" }) }
}
