//! `GET /api/tags`, `GET /api/ps` and `POST /api/show`.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use bombus_core::model::{ModelCapability, ModelDetails, ModelInfo, ModelName, RunningModel};
use bombus_infer::{BackendError, NamedBackend};
use futures::future::join_all;
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::response::{Details, Process, Processes, ShowResponse, ShownMessage, Tag, Tags};
use super::{model_name, modelfile, places, timestamp};
use crate::app::{App, SharedApp};
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::models::{self, Found, Places};

/// Longest list of a model's file that is told without being asked for.
const LIST_LENGTH_MAX: usize = 5;
/// A client that shows this key of the model's file to people as the model's name.
const COPILOT_AGENT: &str = "GitHubCopilotChat/";

/// Lists the models of the swarm, each name once, newest first.
#[utoipa::path(get, operation_id = "ollama_tags", path = "/api/tags", tag = "ollama",
    responses((status = 200, description = "The models", body = Tags)))]
pub(crate) async fn list(State(app): State<SharedApp>) -> Json<Tags> {
    let mut found = models::all(&app).await;
    found.sort_by_key(|found| std::cmp::Reverse(found.listed.info.modified_unix_s));
    Json(Tags { models: found.into_iter().map(tag).collect() })
}

fn tag(Found { listed, places }: Found) -> Tag {
    let info = listed.info;
    Tag {
        name: info.name.to_string(),
        model: info.name.to_string(),
        modified_at: timestamp::of_unix(info.modified_unix_s),
        size: info.size_bytes.unwrap_or(0),
        digest: digest(&info),
        details: Details::of(&info),
        bombus: places,
    }
}

/// Returns the digest of the weights, or one that stands for it: clients cut pieces off it without looking.
fn digest(info: &ModelInfo) -> String {
    info.sha256.clone().unwrap_or_else(|| hex::encode(Sha256::digest(info.name.as_str())))
}

/// Lists the models in the memory of the swarm's nodes, each name once as its most preferred place has it, those that stay longest first.
#[utoipa::path(get, operation_id = "ollama_ps", path = "/api/ps", tag = "ollama",
    responses((status = 200, description = "The models in memory", body = Processes)))]
pub(crate) async fn running(State(app): State<SharedApp>) -> Json<Processes> {
    let backends = app.services.backends.all();
    let asked = backends.iter().map(async |named| (named, running_at(&app, named).await));
    let mut running: Vec<(RunningModel, Places)> = Vec::new();
    for (named, models) in join_all(asked).await {
        for model in models {
            let at = running.iter().position(|(other, _)| other.info.name == model.info.name).unwrap_or_else(|| {
                running.push((model, Places::default()));
                running.len() - 1
            });
            running[at].1.add_backend(&app, named);
        }
    }
    running.sort_by_key(|(model, _)| std::cmp::Reverse(model.expires_unix_s.unwrap_or(u64::MAX)));
    let models = running.into_iter().map(|(model, places)| Process {
        name: model.info.name.to_string(),
        model: model.info.name.to_string(),
        size: model.memory_bytes,
        digest: digest(&model.info),
        details: Details::of(&model.info),
        expires_at: model.expires_unix_s.map_or_else(|| timestamp::NEVER.to_owned(), timestamp::of_unix),
        size_vram: model.gpu_bytes,
        context_length: model.context_tokens,
        bombus: places,
    });
    Json(Processes { models: models.collect() })
}

/// Asks one backend what it has in memory. One that cannot tell is left out.
async fn running_at(app: &App, named: &NamedBackend) -> Vec<RunningModel> {
    places::wait(app, places::LIST_TIME_MAX, named.backend.running()).await.unwrap_or_else(|error| {
        tracing::warn!(backend.name = named.name, error = error.message, "models in memory could not be listed");
        Vec::new()
    })
}

/// Asks for everything about a model.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaShowRequest)]
pub(crate) struct ShowRequest {
    /// Name of the model.
    model: Option<String>,
    /// The older name of `model`.
    name: Option<String>,
    /// A system message to show in place of the model's own.
    system: Option<String>,
    /// Tells long lists of the model's file too, for example its vocabulary.
    verbose: Option<bool>,
}

/// Tells everything about a model.
#[utoipa::path(post, operation_id = "ollama_show", path = "/api/show", tag = "ollama", request_body = ShowRequest,
    responses((status = 200, description = "The model", body = ShowResponse)))]
pub(crate) async fn show(
    State(app): State<SharedApp>,
    headers: HeaderMap,
    JsonBody { value: given, .. }: JsonBody<ShowRequest>,
) -> Result<Json<ShowResponse>, ApiError> {
    let model = model_name(&app, given.model.filter(|name| !name.is_empty()).or(given.name))?;
    let (info, mut details) = described(&app, &model).await?;
    if let Some(system) = given.system.filter(|system| !system.is_empty()) {
        details.system = system;
    }
    let mut model_info = model_info(&info, &mut details, given.verbose.unwrap_or(false));
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    if agent.is_some_and(|agent| agent.starts_with(COPILOT_AGENT)) {
        model_info.insert("general.basename".to_owned(), model.into());
    }
    Ok(Json(shown(&info, details, model_info)))
}

/// Asks the backends that have a model about it, most preferred first, until one tells; all together no longer than a single one.
async fn described(app: &App, model: &str) -> Result<(ModelInfo, ModelDetails), ApiError> {
    let places = places::having(app, model).await?;
    let mut trouble = None;
    let told = async {
        for (index, place) in places.iter().enumerate() {
            // One that hangs does not make the client wait while others are left.
            let limit = if index + 1 < places.len() { places::LIST_TIME_MAX } else { places::ASK_TIME_MAX };
            match places::wait(app, limit, place.backend.backend.details(&place.name_there())).await {
                Ok(Some(details)) => return Some((place.info.clone(), details)),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(
                        backend.name = place.backend.name,
                        error = error.message,
                        "a model could not be described"
                    );
                    trouble.get_or_insert(error);
                }
            }
        }
        None
    };
    let told = timeout(places::ASK_TIME_MAX, told).await;
    match told {
        Ok(Some(told)) => Ok(told),
        Ok(None) => Err(trouble.unwrap_or_else(|| ApiError::model_not_found(model))),
        Err(_) => Err(trouble.unwrap_or_else(|| BackendError::TimedOut { after: places::ASK_TIME_MAX }.into())),
    }
}

fn shown(info: &ModelInfo, details: ModelDetails, model_info: Map<String, Value>) -> ShowResponse {
    let parent_model = details.parent.as_ref().map(ModelName::to_string).unwrap_or_default();
    ShowResponse {
        modelfile: modelfile::write(&info.name, &details),
        parameters: modelfile::parameters(&details.parameters),
        license: details.licenses.join("\n"),
        // What Ollama says of models without a template.
        template: if details.template.is_empty() { "{{ .Prompt }}".to_owned() } else { details.template },
        system: details.system,
        renderer: details.renderer,
        parser: details.parser,
        details: Details { parent_model, ..Details::of(info) },
        messages: details
            .messages
            .iter()
            .map(|message| ShownMessage { role: message.role.as_str(), content: message.joined_text() })
            .collect(),
        model_info,
        projector_info: details.projector,
        capabilities: capability_names(&info.capabilities),
        modified_at: timestamp::of_unix(info.modified_unix_s),
        requires: details.requires,
    }
}

/// Returns the keys of the model's file, with those that clients look for even where the backend does not know the file.
fn model_info(info: &ModelInfo, details: &mut ModelDetails, verbose: bool) -> Map<String, Value> {
    let mut keys = std::mem::take(&mut details.metadata);
    for told_elsewhere in ["general.name", "tokenizer.chat_template"] {
        keys.shift_remove(told_elsewhere);
    }
    if !verbose {
        for list in keys.values_mut().filter_map(Value::as_array_mut).filter(|list| list.len() > LIST_LENGTH_MAX) {
            list.clear();
        }
    }
    if let Some(family) = &info.family {
        let architecture = keys.entry("general.architecture").or_insert_with(|| family.as_str().into()).clone();
        let architecture = architecture.as_str().unwrap_or(family);
        if let Some(tokens) = info.context_tokens {
            keys.entry(format!("{architecture}.context_length")).or_insert_with(|| tokens.into());
        }
    }
    if let Some(parameters) = info.parameters {
        keys.entry("general.parameter_count").or_insert_with(|| parameters.into());
    }
    keys
}

/// Names what a model can do. One that generates text is not called an embedding model, too: clients would ask it for vectors alone.
fn capability_names(capabilities: &[ModelCapability]) -> Vec<String> {
    let generates = capabilities.contains(&ModelCapability::Completion);
    let told = capabilities.iter().filter(|capability| !generates || **capability != ModelCapability::Embedding);
    told.map(|capability| capability_name(*capability).to_owned()).collect()
}

fn capability_name(capability: ModelCapability) -> &'static str {
    match capability {
        ModelCapability::Completion => "completion",
        ModelCapability::Tools => "tools",
        ModelCapability::Embedding => "embedding",
        ModelCapability::Vision => "vision",
        ModelCapability::Thinking => "thinking",
        ModelCapability::Insert => "insert",
    }
}
