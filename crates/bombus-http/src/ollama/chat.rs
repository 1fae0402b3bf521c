//! `POST /api/chat`.

use axum::extract::State;
use axum::response::Response;
use bombus_core::chat::{Part, Prompt};
use bombus_core::model::ModelCapability;
use bombus_infer::LoadRequest;
use tokio::time::Instant;

use super::answer::{self, Form, Head};
use super::request::ChatRequest;
use super::response::ChatResponse;
use super::{model_name, residence, translate};
use crate::app::SharedApp;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::inference::{Answers, Scoped};

/// Answers a conversation, as lines of JSON or as one object. Without messages it loads the model, or unloads it.
#[utoipa::path(post, operation_id = "ollama_chat", path = "/api/chat", tag = "ollama", request_body = ChatRequest,
    responses((status = 200, description = "The answer; a line for each piece of it unless `stream` is false", content(
        (ChatResponse = "application/json"), (ChatResponse = "application/x-ndjson")
    ))))]
pub(crate) async fn create(
    State(app): State<SharedApp>,
    Scoped(scope): Scoped,
    JsonBody { value: mut given, .. }: JsonBody<ChatRequest>,
) -> Result<Response, ApiError> {
    let begun = Instant::now();
    let mut common = given.take_common();
    let (named, stream) = (common.model.take(), common.stream);
    let mut request = translate::generation(common)?;
    let head =
        Head { form: Form::Chat, model: model_name(&app, named)?, begun, with_logprobs: request.logprobs.is_some() };
    let messages = translate::messages(given.messages.unwrap_or_default())?;
    if residence::ends_at_once(request.keep_alive) && messages.is_empty() {
        let route = residence::unload(&app, &head.model, &scope).await?;
        return Ok(head.without_text("unload", route));
    }

    request.tools = translate::tools(given.tools.unwrap_or_default())?;
    let mut needs = vec![ModelCapability::Completion];
    if !request.tools.is_empty() {
        needs.push(ModelCapability::Tools);
    }
    if messages.iter().flat_map(|message| &message.content).any(|part| matches!(part, Part::Image(_))) {
        needs.push(ModelCapability::Vision);
    }
    let target = residence::target(&app, &head, &mut request, needs, &scope).await?;
    request.model.clone_from(&head.model);
    if messages.is_empty() {
        let route = residence::load(&app, &target, LoadRequest::from(&request)).await?;
        return Ok(head.without_text("load", route));
    }
    request.prompt = Prompt::Chat(messages);
    let answers = Answers::begin(&app, target, vec![request]).await?;
    answer::respond(answers, head, stream).await
}
