//! What changes the models: `/api/create`, `/api/copy`, `/api/delete`, `/api/pull` and, in vain, `/api/push`.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use bombus_infer::{CreateRequest as CoreRequest, PullRequest as CorePullRequest};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::blobs::sha256_of;
use super::options::Options;
use super::progress;
use super::request::RequestMessage;
use super::response::ProgressLine;
use super::{places, schema, translate};
use crate::app::SharedApp;
use crate::body::JsonBody;
use crate::error::ApiError;

/// Most characters of a name of Ollama's, such as that of a renderer, and of a fact about a model.
const NAME_CHARS_MAX: usize = 128;
/// Most capabilities that a model may be said to have.
const CAPABILITIES_MAX: usize = 64;

/// Names a model to fetch.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaPullRequest)]
pub(crate) struct PullRequest {
    /// Name of the model.
    model: Option<String>,
    /// The older name of `model`.
    name: Option<String>,
    /// Lets an Ollama server ask the model's registry over HTTP without TLS.
    insecure: Option<bool>,
    /// Tells how it goes on, one JSON object a line; so it is where this is left out.
    stream: Option<bool>,
}

/// Fetches a model.
#[utoipa::path(post, operation_id = "ollama_pull", path = "/api/pull", tag = "ollama", request_body = PullRequest,
    responses((status = 200, description = "How it goes on, or, where `stream` is false, its end", content(
        (ProgressLine = "application/json"), (ProgressLine = "application/x-ndjson")
    ))))]
pub(crate) async fn pull(
    State(app): State<SharedApp>,
    JsonBody { value: given, .. }: JsonBody<PullRequest>,
) -> Result<Response, ApiError> {
    let model = required(given.model, given.name)?;
    places::parse(&model)?;
    let named = places::for_new(&app, Some(&model)).await?;
    let library = places::library(&named)?;
    let request = CorePullRequest { name: model, insecure: given.insecure.unwrap_or(false) };
    let steps = places::wait(&app, progress::STEP_TIME_MAX, library.pull(request)).await?;
    progress::respond(app.clone(), named.name.clone(), steps, given.stream.unwrap_or(true)).await
}

/// Sends a model to a registry, which no node does.
#[utoipa::path(post, operation_id = "ollama_push", path = "/api/push", tag = "ollama", request_body = PullRequest)]
pub(crate) async fn push(JsonBody { value: given, .. }: JsonBody<PullRequest>) -> Result<StatusCode, ApiError> {
    let model = required(given.model, given.name)?;
    let message = format!("model '{model}' cannot be pushed: this node sends models to no registry");
    Err(ApiError::unsupported("model", message))
}

/// Names a model to remove.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaDeleteRequest)]
pub(crate) struct DeleteRequest {
    /// Name of the model.
    model: Option<String>,
    /// The older name of `model`.
    name: Option<String>,
}

/// Removes a model.
#[utoipa::path(delete, operation_id = "ollama_delete", path = "/api/delete", tag = "ollama", request_body = DeleteRequest,
    responses((status = 200, description = "It is gone")))]
pub(crate) async fn delete(
    State(app): State<SharedApp>,
    JsonBody { value: given, .. }: JsonBody<DeleteRequest>,
) -> Result<StatusCode, ApiError> {
    let model = required(given.model, given.name)?;
    if places::parse(&model).is_err() {
        return Err(ApiError::invalid_value("model", format!("name {model:?} is invalid")));
    }
    let place = places::managed(&app, &model).await?;
    if let Some(there) = &place.alias_of {
        let backend = &place.backend.name;
        let message = format!(
            "'{model}' is an alias of '{there}' in the configuration of backend '{backend}'; remove '{there}' itself, or the alias there"
        );
        return Err(ApiError::invalid_value("model", message));
    }
    let library = places::library(&place.backend)?;
    let was_there = places::wait(&app, places::ASK_TIME_MAX, library.delete(&place.name_there())).await?;
    app.services.backends.refresh(&place.backend.name).await;
    if was_there { Ok(StatusCode::OK) } else { Err(ApiError::model_not_found(&model)) }
}

/// Names a model to copy and its second name.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaCopyRequest)]
pub(crate) struct CopyRequest {
    /// Name of the model.
    source: String,
    /// Its second name, which is taken from the model that had it.
    destination: String,
}

/// Gives a model a second name.
#[utoipa::path(post, operation_id = "ollama_copy", path = "/api/copy", tag = "ollama", request_body = CopyRequest,
    responses((status = 200, description = "It has both names")))]
pub(crate) async fn copy(
    State(app): State<SharedApp>,
    JsonBody { value: given, .. }: JsonBody<CopyRequest>,
) -> Result<StatusCode, ApiError> {
    let parse = |param: &'static str, name: &str| {
        places::parse(name).map_err(|_| ApiError::invalid_value(param, format!("{param} {name:?} is invalid")))
    };
    parse("source", &given.source)?;
    let to = parse("destination", &given.destination)?;
    let not_found = |error: ApiError| match error.code {
        Some("model_not_found") => ApiError { message: format!("model {:?} not found", given.source), ..error },
        _ => error,
    };
    let place = places::managed(&app, &given.source).await.map_err(not_found)?;
    places::check_unaliased(&place.backend, "destination", &to)?;
    let library = places::library(&place.backend)?;
    let was_there = places::wait(&app, places::ASK_TIME_MAX, library.copy(&place.name_there(), &to)).await?;
    app.services.backends.refresh(&place.backend.name).await;
    if was_there { Ok(StatusCode::OK) } else { Err(not_found(ApiError::model_not_found(&given.source))) }
}

/// Describes a model to make.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaCreateRequest)]
pub(crate) struct CreateRequest {
    /// Name of the new model.
    model: Option<String>,
    /// The older name of `model`.
    name: Option<String>,
    /// The model whose weights and defaults it takes over.
    from: Option<String>,
    /// Files with weights by name, each as the digest of one that was sent to `/api/blobs`; used where `from` is missing.
    #[schema(schema_with = schema::files)]
    files: Option<BTreeMap<String, String>>,
    /// Files with adapters in the same form.
    #[schema(schema_with = schema::files)]
    adapters: Option<BTreeMap<String, String>>,
    /// Its prompt template.
    template: Option<String>,
    /// Its licence, or a list of them.
    #[schema(schema_with = schema::licenses)]
    license: Option<Value>,
    /// Its system message.
    system: Option<String>,
    /// Its defaults of options.
    #[schema(schema_with = schema::options)]
    parameters: Option<Map<String, Value>>,
    /// Messages that stand before every conversation.
    messages: Option<Vec<RequestMessage>>,
    /// What makes its prompts in place of the template, by Ollama's name; for Ollama servers.
    #[schema(max_length = 128)]
    renderer: Option<String>,
    /// What reads its answers, by Ollama's name; for Ollama servers.
    #[schema(max_length = 128)]
    parser: Option<String>,
    /// The oldest version of Ollama that can run it; for Ollama servers.
    #[schema(max_length = 128)]
    requires: Option<String>,
    /// Facts in place of those that its file tells; for Ollama servers.
    #[schema(schema_with = schema::info)]
    info: Option<Map<String, Value>>,
    /// Quantisation that the weights are to be brought to.
    quantize: Option<String>,
    /// The older name of `quantize`.
    quantization: Option<String>,
    /// Tells how it goes on, one JSON object a line; so it is where this is left out.
    stream: Option<bool>,
}

/// Makes a model of another one or of files.
#[utoipa::path(post, operation_id = "ollama_create", path = "/api/create", tag = "ollama", request_body = CreateRequest,
    responses((status = 200, description = "How it goes on, or, where `stream` is false, its end", content(
        (ProgressLine = "application/json"), (ProgressLine = "application/x-ndjson")
    ))))]
pub(crate) async fn create(
    State(app): State<SharedApp>,
    JsonBody { value: given, .. }: JsonBody<CreateRequest>,
) -> Result<Response, ApiError> {
    let stream = given.stream.unwrap_or(true);
    let mut request = creation(given)?;
    let named = match request.from.as_mut() {
        Some(from) => {
            let (named, name_there) = places::for_derived(&app, from).await?;
            *from = name_there;
            named
        }
        None => places::for_new(&app, None).await?,
    };
    places::check_unaliased(&named, "model", &places::parse(&request.name)?)?;
    let library = places::library(&named)?;
    let steps = places::wait(&app, progress::STEP_TIME_MAX, library.create(request)).await?;
    progress::respond(app.clone(), named.name.clone(), steps, stream).await
}

fn creation(given: CreateRequest) -> Result<CoreRequest, ApiError> {
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let name = filled(given.model).or(given.name).unwrap_or_default();
    places::parse(&name)?;
    let from = filled(given.from);
    if let Some(from) = &from {
        places::parse(from)?;
    }
    let files = files("files", given.files)?;
    if from.is_none() && files.is_empty() {
        return Err(ApiError::missing("from", "neither 'from' or 'files' was specified"));
    }
    let parameters = given.parameters.unwrap_or_default();
    Options::read(Some(parameters.clone())).map_err(|error| {
        let param = error.param.as_deref().unwrap_or_default().replace("options.", "parameters.");
        ApiError { param: Some(param.into()), ..error }
    })?;
    Ok(CoreRequest {
        name,
        from,
        files,
        adapters: self::files("adapters", given.adapters)?,
        template: filled(given.template),
        licenses: licenses(given.license)?,
        system: filled(given.system),
        parameters,
        messages: translate::messages(given.messages.unwrap_or_default())?,
        quantize: filled(given.quantize).or_else(|| filled(given.quantization)),
        renderer: short("renderer", given.renderer)?,
        parser: short("parser", given.parser)?,
        requires: short("requires", given.requires)?,
        info: info(given.info)?,
    })
}

fn is_short(text: &str) -> bool {
    text.chars().nth(NAME_CHARS_MAX).is_none()
}

fn short(param: &'static str, given: Option<String>) -> Result<Option<String>, ApiError> {
    let given = given.filter(|text| !text.is_empty());
    if given.as_deref().is_none_or(is_short) {
        return Ok(given);
    }
    Err(ApiError::invalid_value(param, format!("'{param}' may have up to {NAME_CHARS_MAX} characters")))
}

/// Reads facts about a model; those that nobody knows have no effect. An Ollama server breaks down over one of another type.
fn info(given: Option<Map<String, Value>>) -> Result<Map<String, Value>, ApiError> {
    let is_text = |value: &Value| value.as_str().is_some_and(is_short);
    let is_list = |values: &[Value]| values.len() <= CAPABILITIES_MAX && values.iter().all(is_text);
    let mut info = Map::new();
    for (name, value) in given.unwrap_or_default().into_iter().filter(|(_, value)| !value.is_null()) {
        let (fits, wanted) = match name.as_str() {
            "base_name" | "model_family" | "parameter_size" | "quantization_level" => (is_text(&value), "a short text"),
            "context_length" | "embedding_length" => (value.is_number(), "a number"),
            "capabilities" => (value.as_array().is_some_and(|values| is_list(values)), "a list of short texts"),
            _ => continue,
        };
        if !fits {
            return Err(ApiError::invalid_value(format!("info.{name}"), format!("'info.{name}' has to be {wanted}")));
        }
        info.insert(name, value);
    }
    Ok(info)
}

/// Reads names of files with their digests. A name that leads out of a folder is refused.
fn files(param: &'static str, given: Option<BTreeMap<String, String>>) -> Result<BTreeMap<String, String>, ApiError> {
    let mut files = BTreeMap::new();
    for (name, digest) in given.unwrap_or_default() {
        let inside = !name.is_empty() && name.split(['/', '\\']).all(|part| !["", ".", ".."].contains(&part));
        if !inside {
            return Err(ApiError::invalid_value(param, "file path must be relative"));
        }
        files.insert(name, sha256_of(&digest)?);
    }
    Ok(files)
}

fn licenses(given: Option<Value>) -> Result<Vec<String>, ApiError> {
    let wrong = || ApiError::invalid_value("license", "'license' has to be a text or a list of texts");
    match given {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) if text.is_empty() => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![text]),
        Some(Value::Array(texts)) => {
            let texts =
                texts.into_iter().map(|text| if let Value::String(text) = text { Ok(text) } else { Err(wrong()) });
            texts.collect()
        }
        Some(_) => Err(wrong()),
    }
}

/// Returns the name of a model under either of its keys.
fn required(model: Option<String>, name: Option<String>) -> Result<String, ApiError> {
    let named = [model, name].into_iter().flatten().find(|name| !name.is_empty());
    named.ok_or_else(|| ApiError::missing("model", "model is required"))
}
