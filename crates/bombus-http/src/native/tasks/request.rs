//! What clients send to submit a task. Fields that are not named here are tolerated and have no effect.

use std::time::Duration;

use bombus_core::chat::{Message, Role};
use bombus_core::model::ModelName;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::checked_id;
use crate::app::App;
use crate::body::parse;
use crate::error::ApiError;
use crate::mesh::choose;
use crate::openai::whole;
use crate::tasks::{BatchPlace, Chunking, NewTask, TaskInput, TaskOptions, TaskType, Work};

/// Where a client names none.
const PRIORITY: u8 = 5;
const TIMEOUT_S: u32 = 300;
const MAX_CHUNK_CHARS_MAX: usize = 1 << 20;
const JOINER_BYTES_MAX: usize = 1_024;
const TEMPLATE_BYTES_MAX: usize = 8_192;
const MODEL_BYTES_MAX: usize = 256;
const ITEM_BYTES_MAX: usize = 256;
const ATTEMPTS_MAX: u32 = 10;
const SEAL_TO_MAX: u32 = 8;
const MESSAGES_MAX: usize = 4_096;
const STOPS_MAX: usize = 16;

/// A task.
#[derive(Deserialize, ToSchema)]
pub(crate) struct TaskRequest {
    /// Its id; without it the node makes one. The same id with the same content is the same task.
    #[schema(pattern = "^[A-Za-z0-9._:-]{1,128}$")]
    task_id: Option<String>,
    /// What kind of work it is.
    #[serde(default)]
    #[schema(default = "inference")]
    task_type: TaskType,
    /// What is to be done. Of a ping it may be any object.
    #[schema(value_type = Payload)]
    payload: Map<String, Value>,
    /// 1 to 10; more comes first.
    #[serde(default, deserialize_with = "whole::option")]
    #[schema(minimum = 1, maximum = 10, default = 5)]
    priority: Option<u8>,
    /// The time that an attempt may take.
    #[serde(default, deserialize_with = "whole::option")]
    #[schema(minimum = 1, maximum = 3600, default = 300)]
    timeout_seconds: Option<u32>,
    /// Cuts a long prompt into tasks of their own, whose answers are put together again in their order.
    #[serde(default)]
    #[schema(default = "none")]
    chunk: Chunking,
    /// Most characters of a chunk.
    #[serde(default, deserialize_with = "whole::option")]
    #[schema(minimum = 1, maximum = 1_048_576)]
    max_chunk: Option<usize>,
    /// What stands between the answers of the chunks.
    #[schema(max_length = 1024)]
    joiner: Option<String>,
    /// A template that each chunk is put into, in place of `{text}`.
    #[schema(max_length = 8_192)]
    map: Option<String>,
    /// A template that the answers of all chunks are put into, in place of `{text}`, for one more answer that stands for the whole.
    #[schema(max_length = 8_192)]
    reduce: Option<String>,
    /// The node that is to do it, and no other: its name, its id, or a beginning of either that no other has.
    to: Option<String>,
    /// Whether prompt and answer are sealed, so that only the nodes can read them that are to do it, and the one that it belongs to. Without a
    /// word the node's configuration says.
    #[serde(default)]
    encrypt: Option<bool>,
    /// To how many of the nodes that could do it the task is sealed, the best first: only they may go on with it while the one that it belongs
    /// to is away. It says `encrypt`, too.
    #[serde(default, deserialize_with = "whole::option")]
    #[schema(minimum = 1, maximum = 8)]
    seal_to: Option<u32>,
    /// How often it is tried.
    #[serde(default, deserialize_with = "whole::option")]
    #[schema(minimum = 1, maximum = 10)]
    max_attempts: Option<u32>,
    /// The batch that it belongs to.
    batch: Option<BatchPlace>,
}

/// The work: `prompt` or `messages` of an inference, `text` of an embedding.
#[derive(Default, Deserialize, ToSchema)]
pub(crate) struct Payload {
    /// The model; without it, the node's default model.
    model: Option<String>,
    /// The text that is answered.
    prompt: Option<String>,
    /// The conversation that is answered, in place of `prompt`.
    messages: Option<Vec<TaskMessage>>,
    /// Instructions that hold for the whole of it.
    system: Option<String>,
    /// The text of which a vector is made.
    text: Option<String>,
    /// 0 always takes the likeliest token.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f32>,
    /// Most tokens to generate.
    #[serde(default, deserialize_with = "whole::option")]
    #[schema(minimum = 1)]
    max_tokens: Option<u32>,
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// Keeps only this many likeliest tokens; 0 keeps all.
    #[serde(default, deserialize_with = "whole::option")]
    top_k: Option<u32>,
    /// Texts at which the answer ends.
    #[schema(max_items = 16)]
    stop: Option<Vec<String>>,
    /// Makes the answer repeatable.
    #[serde(default, deserialize_with = "whole::option")]
    seed: Option<u32>,
    /// `json`: the answer is a JSON object.
    format: Option<Format>,
    /// The same in Ollama's words.
    options: Option<Options>,
}

/// Options by the names that Ollama has for them. Those beside them in the payload win.
#[derive(Default, Deserialize, ToSchema)]
pub(crate) struct Options {
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f32>,
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    #[serde(default, deserialize_with = "whole::option")]
    top_k: Option<u32>,
    /// Most tokens to generate; negative for as many as there are.
    #[serde(default, deserialize_with = "whole::option")]
    num_predict: Option<i64>,
    stop: Option<Vec<String>>,
    #[serde(default, deserialize_with = "whole::option")]
    seed: Option<u32>,
}

/// The forms of an answer.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// A JSON object.
    Json,
}

/// One turn of a conversation.
#[derive(Deserialize, ToSchema)]
pub(crate) struct TaskMessage {
    role: TaskRole,
    content: String,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TaskRole {
    System,
    User,
    Assistant,
}

impl TaskRequest {
    /// Checks the request, and makes a task of it.
    pub(super) fn task(self, app: &App, idempotency_key: Option<String>) -> Result<NewTask, ApiError> {
        let to = self.to.as_deref().map(|to| node_of(app, to)).transpose()?;
        self.checked(idempotency_key, to, app.services.default_model.as_deref())
    }

    /// Checks what is the same at all nodes.
    fn checked(
        self,
        idempotency_key: Option<String>,
        to: Option<String>,
        default_model: Option<&str>,
    ) -> Result<NewTask, ApiError> {
        if self.task_id.is_some() && idempotency_key.is_some() {
            let message = "a request has a `task_id` or an Idempotency-Key, not both: either names the task";
            return Err(ApiError::invalid_value("task_id", message));
        }
        let seal_to = within("seal_to", self.seal_to, 1, SEAL_TO_MAX)?;
        if self.encrypt == Some(false) && seal_to.is_some() {
            return Err(ApiError::invalid_value(
                "seal_to",
                "leave `seal_to` out, or say `encrypt`: a task that is not to be sealed is sealed to nobody",
            ));
        }
        let (work, model) = work(self.task_type, self.payload)?;
        let model = match self.task_type {
            TaskType::Ping => None,
            _ => Some(model.or_else(|| default_model.map(str::to_owned)).ok_or_else(|| {
                ApiError::missing("payload.model", "name `payload.model`: this node has no default model")
            })?),
        };
        let chunks_well =
            self.chunk == Chunking::None || matches!(&work, Work::Inference { input: TaskInput::Prompt(_), .. });
        if !chunks_well {
            return Err(ApiError::invalid_value("chunk", "only a `prompt` is cut into chunks"));
        }
        Ok(NewTask {
            task_id: self.task_id.map(|id| checked_id("task_id", id)).transpose()?,
            idempotency_key,
            work,
            model,
            chunking: self.chunk,
            max_chunk: within("max_chunk", self.max_chunk, 1, MAX_CHUNK_CHARS_MAX)?,
            joiner: self.joiner.map(|joiner| short("joiner", joiner, 0, JOINER_BYTES_MAX)).transpose()?,
            map: self.map.map(|map| short("map", map, 1, TEMPLATE_BYTES_MAX)).transpose()?,
            reduce: self.reduce.map(|reduce| short("reduce", reduce, 1, TEMPLATE_BYTES_MAX)).transpose()?,
            to,
            seal_to: seal_to.or((self.encrypt == Some(true)).then_some(1)),
            priority: within("priority", self.priority, 1, 10)?.unwrap_or(PRIORITY),
            timeout: Duration::from_secs(
                within("timeout_seconds", self.timeout_seconds, 1, 3_600)?.unwrap_or(TIMEOUT_S).into(),
            ),
            max_attempts: within("max_attempts", self.max_attempts, 1, ATTEMPTS_MAX)?,
            batch: self.batch.map(batch).transpose()?,
        })
    }
}

/// Checks a request for a task, the body of `POST /task`, as far as that is the same at all nodes: forms, lengths, ranges, and what goes with what.
///
/// # Errors
///
/// Says what is wrong.
pub fn check(request: &Value) -> Result<(), String> {
    let bytes = serde_json::to_vec(request).map_err(|error| error.to_string())?;
    let request = parse::<TaskRequest>(&bytes);
    let checked = request.and_then(|request| request.checked(None, None, Some("default")));
    checked.map(drop).map_err(|error| error.text().into_owned())
}

fn work(task_type: TaskType, payload: Map<String, Value>) -> Result<(Work, Option<String>), ApiError> {
    if task_type == TaskType::Ping {
        return Ok((Work::Ping { payload }, None));
    }
    let mut payload: Payload = typed(payload)?;
    let model = payload.model.take().map(model_name).transpose()?;
    if task_type == TaskType::Embedding {
        let text =
            payload.text.ok_or_else(|| ApiError::missing("payload.text", "an embedding needs `payload.text`"))?;
        if payload.prompt.is_some() || payload.messages.is_some() {
            let message = "an embedding is made of `payload.text` alone: a prompt is for an inference";
            return Err(ApiError::invalid_value("payload.text", message));
        }
        if text.is_empty() {
            return Err(ApiError::invalid_value("payload.text", "'payload.text' is empty"));
        }
        return Ok((Work::Embedding { text }, model));
    }
    let options = options(&mut payload)?;
    let input = match (payload.prompt, payload.messages) {
        (Some(prompt), None) if prompt.is_empty() => {
            return Err(ApiError::invalid_value("payload.prompt", "'payload.prompt' is empty"));
        }
        (Some(prompt), None) => TaskInput::Prompt(prompt),
        (None, Some(messages)) if !messages.is_empty() && messages.len() <= MESSAGES_MAX => {
            TaskInput::Messages(messages.into_iter().map(message).collect())
        }
        (None, Some(_)) => {
            let text = format!("'payload.messages' has to have 1 to {MESSAGES_MAX} messages");
            return Err(ApiError::invalid_value("payload.messages", text));
        }
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid_value(
                "payload.messages",
                "say `payload.prompt` or `payload.messages`, not both",
            ));
        }
        (None, None) => {
            return Err(ApiError::missing(
                "payload.prompt",
                "an inference needs `payload.prompt` or `payload.messages`",
            ));
        }
    };
    Ok((Work::Inference { input, system: payload.system, options }, model))
}

/// Takes what may be the name of a model, be it that none is called so yet.
fn model_name(name: String) -> Result<String, ApiError> {
    let name = short("payload.model", name, 1, MODEL_BYTES_MAX)?;
    match ModelName::parse(&name) {
        Ok(_) => Ok(name),
        Err(error) => Err(ApiError::invalid_value("payload.model", format!("'payload.model': {error}"))),
    }
}

fn typed<T: DeserializeOwned>(payload: Map<String, Value>) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(Value::Object(payload)).map_err(|error| {
        let path = format!("payload.{}", error.path());
        let message = format!("'{path}' has the wrong form: {}", error.inner());
        ApiError::invalid_value(path, message)
    })
}

fn options(payload: &mut Payload) -> Result<TaskOptions, ApiError> {
    let other = payload.options.take().unwrap_or_default();
    let predicted = other.num_predict.filter(|count| *count >= 0).map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    let temperature = payload.temperature.or(other.temperature);
    let top_p = payload.top_p.or(other.top_p);
    let stop = payload.stop.take().or(other.stop).unwrap_or_default();
    if stop.len() > STOPS_MAX || stop.iter().any(String::is_empty) {
        let message = format!("'payload.stop' has to have at most {STOPS_MAX} texts, none of them empty");
        return Err(ApiError::invalid_value("payload.stop", message));
    }
    Ok(TaskOptions {
        temperature: within_float("payload.temperature", temperature, 2.0)?,
        top_p: within_float("payload.top_p", top_p, 1.0)?,
        top_k: payload.top_k.or(other.top_k),
        max_tokens: within("payload.max_tokens", payload.max_tokens.or(predicted), 1, u32::MAX)?,
        stop,
        seed: payload.seed.or(other.seed),
        json: payload.format.is_some(),
    })
}

fn message(message: TaskMessage) -> Message {
    let role = match message.role {
        TaskRole::System => Role::System,
        TaskRole::User => Role::User,
        TaskRole::Assistant => Role::Assistant,
    };
    Message::text(role, message.content)
}

/// Finds the node that people call so, this one among them.
fn node_of(app: &App, wanted: &str) -> Result<String, ApiError> {
    let own = app.services.node.node_id.to_string();
    let peers = app.services.mesh.as_ref().map(|mesh| mesh.peers()).unwrap_or_default();
    let known = peers.iter().map(|peer| (peer.node_id.as_str(), peer.hostname.as_str()));
    let known = known.chain(std::iter::once((own.as_str(), app.services.node.name.as_str())));
    Ok(choose(wanted, known).map_err(|error| ApiError::from(error).at("to"))?.to_owned())
}

fn batch(place: BatchPlace) -> Result<BatchPlace, ApiError> {
    let BatchPlace { id, item, total } = place;
    let item = short("batch.item", item, 1, ITEM_BYTES_MAX)?;
    if item.chars().any(char::is_control) {
        return Err(ApiError::invalid_value("batch.item", "'batch.item' has to be without control characters"));
    }
    let total = within("batch.total", total, 1, u32::MAX)?;
    Ok(BatchPlace { id: checked_id("batch.id", id)?, item, total })
}

fn short(param: &'static str, text: String, bytes_min: usize, bytes_max: usize) -> Result<String, ApiError> {
    if (bytes_min..=bytes_max).contains(&text.len()) {
        return Ok(text);
    }
    Err(ApiError::invalid_value(param, format!("'{param}' has to have {bytes_min} to {bytes_max} bytes")))
}

fn within<T>(param: &'static str, value: Option<T>, min: T, max: T) -> Result<Option<T>, ApiError>
where
    T: Copy + PartialOrd + std::fmt::Display,
{
    match value {
        Some(value) if value < min || value > max => {
            Err(ApiError::invalid_value(param, format!("'{param}' has to be from {min} to {max}")))
        }
        value => Ok(value),
    }
}

fn within_float(param: &'static str, value: Option<f32>, max: f32) -> Result<Option<f32>, ApiError> {
    within(param, value, 0.0, max)
}
