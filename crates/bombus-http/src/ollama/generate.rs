//! `POST /api/generate`.

use axum::extract::State;
use axum::response::Response;
use bombus_core::chat::{Message, Part, Prompt, Role};
use bombus_core::model::ModelCapability;
use bombus_infer::LoadRequest;
use tokio::time::Instant;

use super::answer::{self, Form, Head};
use super::request::GenerateRequest;
use super::response::GenerateResponse;
use super::{model_name, residence, translate};
use crate::app::SharedApp;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::inference::{Answers, Scoped};

/// Answers a prompt, as lines of JSON or as one object. Without a prompt it loads the model, or unloads it.
#[utoipa::path(post, operation_id = "ollama_generate", path = "/api/generate", tag = "ollama", request_body = GenerateRequest,
    responses((status = 200, description = "The answer; a line for each piece of it unless `stream` is false", content(
        (GenerateResponse = "application/json"), (GenerateResponse = "application/x-ndjson")
    ))))]
pub(crate) async fn create(
    State(app): State<SharedApp>,
    Scoped(scope): Scoped,
    JsonBody { value: mut given, .. }: JsonBody<GenerateRequest>,
) -> Result<Response, ApiError> {
    let begun = Instant::now();
    let mut common = given.take_common();
    let (named, stream) = (common.model.take(), common.stream);
    let mut request = translate::generation(common)?;
    let head = Head {
        form: Form::Generate,
        model: model_name(&app, named)?,
        begun,
        with_logprobs: request.logprobs.is_some(),
    };
    let prompt = given.prompt.take().unwrap_or_default();
    if residence::ends_at_once(request.keep_alive) && prompt.is_empty() {
        let route = residence::unload(&app, &head.model, &scope).await?;
        return Ok(head.without_text("unload", route));
    }

    let form = PromptForm::of(given, prompt)?;
    let target = residence::target(&app, &head, &mut request, form.needs(), &scope).await?;
    request.model.clone_from(&head.model);
    if form.prompt.is_empty() {
        let route = residence::load(&app, &target, LoadRequest::from(&request)).await?;
        return Ok(head.without_text("load", route));
    }
    request.return_tokens = !form.raw;
    request.template = form.template;
    request.earlier_tokens = form.context;
    let images = translate::pictures("images", form.images)?;
    if form.raw || form.suffix.is_some() {
        // Raw means raw: what would make a template of it is left out.
        request.suffix = form.suffix.filter(|_| !form.raw);
        request.prompt = Prompt::Raw(form.prompt);
        request.images = images;
    } else {
        let system = form.system.map(|system| Message::text(Role::System, system));
        let mut asked = Message::text(Role::User, form.prompt);
        asked.content.extend(images.into_iter().map(Part::Image));
        request.prompt = Prompt::Chat(system.into_iter().chain([asked]).collect());
    }
    let answers = Answers::begin(&app, target, vec![request]).await?;
    answer::respond(answers, head, stream).await
}

/// What a prompt is made of. Empty texts are none.
struct PromptForm {
    prompt: String,
    suffix: Option<String>,
    system: Option<String>,
    template: Option<String>,
    context: Vec<u32>,
    images: Vec<String>,
    raw: bool,
}

impl PromptForm {
    fn of(given: GenerateRequest, prompt: String) -> Result<Self, ApiError> {
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        let form = Self {
            prompt,
            suffix: filled(given.suffix),
            system: filled(given.system),
            template: filled(given.template),
            context: given.context.unwrap_or_default(),
            images: given.images.unwrap_or_default(),
            raw: given.raw.unwrap_or(false),
        };
        if form.raw && (form.template.is_some() || form.system.is_some() || !form.context.is_empty()) {
            let message = "raw mode does not support template, system, or context";
            return Err(ApiError::unsupported("raw", message));
        }
        if form.context.len() > translate::CONTEXT_TOKENS_MAX {
            let message = format!("'context' may hold up to {} tokens", translate::CONTEXT_TOKENS_MAX);
            return Err(ApiError::invalid_value("context", message));
        }
        if let Some(token) = form.context.iter().find(|token| i32::try_from(**token).is_err()) {
            let message = format!("'context' has the token {token}, which no vocabulary has");
            return Err(ApiError::invalid_value("context", message));
        }
        Ok(form)
    }

    /// Returns what the model has to be able to do.
    fn needs(&self) -> Vec<ModelCapability> {
        let mut needs = vec![ModelCapability::Completion];
        if self.suffix.is_some() {
            needs.push(ModelCapability::Insert);
        }
        if !self.images.is_empty() {
            needs.push(ModelCapability::Vision);
        }
        needs
    }
}
