//! What the node and an engine process say to each other over the process's stdin and stdout.
//!
//! Each message is JSON behind its length (32 bits, big endian). Both ends are the same binary, so there are no versions.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use bombus_core::chat::{ChatEvent, ChatRequest, EmbedInput, EmbedResponse};
use bombus_infer::BackendError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::pool::RETRY_AFTER;

/// Longest message in bytes. A request's body may have 32 MiB, and 2,048 vectors of 8,192 dimensions take about 200 MiB as JSON.
pub(crate) const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// Number of a run, unique within one engine process.
pub(crate) type RunId = u64;

/// From the node to an engine process. The first message is always [`ToWorker::Load`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    Load(LoadOptions),
    Chat {
        id: RunId,
        /// How many events may be sent before more credit comes: the back-pressure of a slow client.
        credit: u32,
        request: Box<ChatRequest>,
    },
    Embed {
        id: RunId,
        inputs: Vec<EmbedInput>,
        /// Whether the ends of inputs that are too long are cut off.
        truncate: bool,
    },
    Credit {
        id: RunId,
        events: u32,
    },
    Cancel {
        id: RunId,
    },
}

/// From an engine process to the node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromWorker {
    Loaded,
    LoadFailed(LoadFailure),
    Event {
        id: RunId,
        event: ChatEvent,
    },
    /// These runs are behind others. Told about once a second, as long as the process computes.
    Waiting {
        ids: Vec<RunId>,
    },
    Failed {
        id: RunId,
        error: RunError,
    },
    Embedded {
        id: RunId,
        response: EmbedResponse,
    },
}

/// Says why a model cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LoadFailure {
    pub(crate) reason: String,
    /// Whether memory was what it lacked.
    pub(crate) out_of_memory: bool,
}

impl From<String> for LoadFailure {
    fn from(reason: String) -> Self {
        Self { reason, out_of_memory: false }
    }
}

/// How a model is to be loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LoadOptions {
    pub(crate) path: PathBuf,
    pub(crate) kind: ModelKind,
    /// Tokens that one run may have, prompt and answer together.
    pub(crate) context_tokens: u32,
    /// Tokens that the KV cache holds, all runs together.
    pub(crate) kv_tokens: u32,
    /// Runs that are computed together.
    pub(crate) slots: u32,
    /// Tokens computed in one step.
    pub(crate) batch_tokens: u32,
    pub(crate) threads: u32,
    pub(crate) gpu_layers: u32,
    /// Memory for caches that no run uses, outside of the KV cache.
    pub(crate) shelf_bytes: u64,
}

/// What a model is loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ModelKind {
    Generate,
    Embed,
}

/// Says why a single run failed; the engine goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum RunError {
    #[error("{message}")]
    Invalid { param: String, message: String },
    #[error("{message}")]
    Unsupported { param: String, message: String },
    #[error("{message}")]
    DeadEnd { param: String, message: String },
    #[error("too many requests are waiting to be read")]
    Overloaded,
    #[error("the prompt has {prompt_tokens} tokens, the context {context_tokens}")]
    ContextExceeded { prompt_tokens: u32, context_tokens: u32 },
    #[error("{0}")]
    Interrupted(String),
}

impl RunError {
    pub(crate) fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::Invalid { param: param.to_owned(), message: message.into() }
    }

    pub(crate) fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self::Unsupported { param: param.to_owned(), message: message.into() }
    }
}

impl From<RunError> for BackendError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Invalid { param, message } => Self::InvalidRequest { param: Some(known_param(&param)), message },
            RunError::Unsupported { param, message } => Self::Unsupported { param: known_param(&param), message },
            RunError::DeadEnd { param, message } => Self::DeadEnd { param: known_param(&param), message },
            RunError::Overloaded => Self::Overloaded { retry_after: RETRY_AFTER },
            RunError::ContextExceeded { prompt_tokens, context_tokens } => {
                Self::ContextExceeded { prompt_tokens, context_tokens }
            }
            RunError::Interrupted(reason) => Self::Interrupted { reason },
        }
    }
}

fn known_param(name: &str) -> &'static str {
    const PARAMS: [&str; 10] = [
        "inputs",
        "logit_bias",
        "messages",
        "model",
        "response_format",
        "suffix",
        "template",
        "think",
        "tool_choice",
        "tools",
    ];
    PARAMS.into_iter().find(|known| *known == name).unwrap_or("prompt")
}

/// Reads one message, or `None` at the end of the stream.
///
/// # Errors
///
/// Any I/O error; [`io::ErrorKind::InvalidData`] for an overlong message or one that is not of this protocol.
pub(crate) fn read_message<T: DeserializeOwned>(reader: &mut impl Read) -> io::Result<Option<T>> {
    read_frame(reader)?.map(|frame| serde_json::from_slice(&frame).map_err(io::Error::from)).transpose()
}

/// Reads the bytes of one message, or `None` at the end of the stream.
///
/// # Errors
///
/// Any I/O error; [`io::ErrorKind::InvalidData`] for an overlong message.
pub(crate) fn read_frame(reader: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match reader.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes is too long")));
    }
    let mut frame = vec![0; length];
    reader.read_exact(&mut frame)?;
    Ok(Some(frame))
}

/// Finds out which run a message belongs to that cannot be read as a whole, because it is nested too deeply for example.
pub(crate) fn run_of_unreadable(frame: &[u8]) -> Option<RunId> {
    #[derive(Deserialize)]
    enum Request {
        Chat { id: RunId },
        Embed { id: RunId },
    }
    match serde_json::from_slice(frame).ok()? {
        Request::Chat { id } | Request::Embed { id } => Some(id),
    }
}

/// Writes one message.
///
/// # Errors
///
/// Any I/O error; [`io::ErrorKind::InvalidData`] for an overlong message.
pub(crate) fn write_message(writer: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    writer.write_all(&encode_message(message)?)
}

/// Encodes one message with its length before it.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidData`] for an overlong message.
pub(crate) fn encode_message(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes is too long")));
    }
    bytes[..4].copy_from_slice(&u32::try_from(length).expect("the limit is below 2^32").to_be_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_were_sent() {
        let mut bytes = Vec::new();
        write_message(&mut bytes, &ToWorker::Cancel { id: 7 }).unwrap();
        write_message(&mut bytes, &ToWorker::Credit { id: 8, events: 3 }).unwrap();
        let mut reader = bytes.as_slice();
        assert!(matches!(read_message(&mut reader).unwrap(), Some(ToWorker::Cancel { id: 7 })));
        assert!(matches!(read_message(&mut reader).unwrap(), Some(ToWorker::Credit { id: 8, events: 3 })));
        assert!(read_message::<ToWorker>(&mut reader).unwrap().is_none());
    }

    #[test]
    fn the_run_of_a_request_nested_too_deeply_is_still_known() {
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        let frame = format!(r#"{{"Chat":{{"id":7,"credit":1,"request":{deep}}}}}"#);
        assert!(serde_json::from_str::<ToWorker>(&frame).is_err());
        assert_eq!(run_of_unreadable(frame.as_bytes()), Some(7));
        assert_eq!(run_of_unreadable(b"{"), None);
    }

    #[test]
    fn garbage_and_overlong_messages_are_errors() {
        let overlong = [0xff, 0xff, 0xff, 0xff, b'{'];
        assert!(read_message::<ToWorker>(&mut overlong.as_slice()).is_err());
        let garbage = [0, 0, 0, 2, b'x', b'y'];
        assert!(read_message::<ToWorker>(&mut garbage.as_slice()).is_err());
        let cut_off = [0, 0, 0, 9, b'{'];
        assert!(read_message::<ToWorker>(&mut cut_off.as_slice()).is_err());
    }
}
