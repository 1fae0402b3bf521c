//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bombus_core::chat::{ChatRequest, Delta, Prompt, Think, ToolCallDelta};
use bombus_core::model::ModelCapability;
use bombus_core::placement::Need;

use super::logprobs::CompletionLogprobs;
use super::request::{Common, CompletionRequest};
use super::response::{Completion, CompletionChoice, ServerSentEvent, Usage};
use super::stream::{self, Chunks, Collected, End, EventWriter, StreamPlan, finish_name};
use super::text_or_list::TextOrList;
use super::translate::{self, EmptyText, Input};
use super::{now_unix_s, unique_id};
use crate::app::SharedApp;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::inference::{Answers, Scoped, Target};

/// The dialect's own default for `max_tokens`.
const MAX_TOKENS_DEFAULT: u32 = 16;
/// Most continuations of all prompts together.
pub(super) const ANSWERS_MAX: usize = 128;

/// Continues texts, whole or as a stream of server-sent events.
#[utoipa::path(post, operation_id = "create_completion", path = "/v1/completions", tag = "openai", request_body = CompletionRequest,
    responses((status = 200, description = "The continuations; a stream of them where `stream` is true", content(
        (Completion = "application/json"), (ServerSentEvent = "text/event-stream")
    ))))]
pub(crate) async fn create(
    State(app): State<SharedApp>,
    Scoped(scope): Scoped,
    JsonBody { value: mut request, bytes }: JsonBody<CompletionRequest>,
) -> Result<Response, ApiError> {
    let common = request.take_common();
    let (stream, include_usage, count) = (common.stream, common.include_usage, common.n);
    translate::check_count(count)?;
    check_unsupported(&request, count)?;
    let prompt = request.prompt.take().unwrap_or_else(|| TextOrList::Text(String::new()));
    let inputs = translate::inputs("prompt", prompt, EmptyText::Allowed)?;
    let plan = StreamPlan { include_usage, answers_per_prompt: count as usize, answers: inputs.len() * count as usize };
    if plan.answers > ANSWERS_MAX {
        let message = format!("{} continuations are wanted, but at most {ANSWERS_MAX} are given at once", plan.answers);
        return Err(ApiError::invalid_value("prompt", message));
    }
    // Each prompt is copied `n` times, what stands beside them once for each answer.
    let prompt_bytes = inputs.iter().map(Input::bytes).sum();
    translate::check_copies("n", count as usize, prompt_bytes)?;
    translate::check_copies("prompt", plan.answers, bytes.saturating_sub(prompt_bytes))?;
    let echoes = if request.echo.unwrap_or(false) { echoes(&inputs, count)? } else { Vec::new() };
    let form = form(&mut request, common, String::new(), &inputs)?;
    let mut need = Need::of([ModelCapability::Completion]).within(scope);
    need.capabilities.extend(form.suffix.as_ref().map(|_| ModelCapability::Insert));
    let target = Target::find(&app, request.model, need).await?.for_answers(count);
    let model = target.model.clone();
    let requests = inputs.into_iter().flat_map(|input| {
        let request = ChatRequest { model: model.clone(), ..of_input(&form, input) };
        translate::repeat(&request, count).collect::<Vec<_>>()
    });
    let requests = requests.collect();
    let answers = Answers::begin(&app, target, requests).await?;
    let chunks = CompletionChunks {
        id: unique_id("cmpl"),
        created: now_unix_s(),
        model,
        fingerprint: app.fingerprint.clone(),
        with_logprobs: request.logprobs.is_some(),
        include_usage,
        offsets: vec![0; plan.answers],
        echoes,
    };
    if stream {
        return Ok(stream::respond(answers, chunks, plan));
    }
    let mut all = stream::collect(answers, &plan).await?;
    for (answer, echo) in all.answers.iter_mut().zip(&chunks.echoes) {
        answer.text.insert_str(0, echo);
    }
    let choices: Vec<_> = all.answers.iter().enumerate().map(|(index, answer)| chunks.choice(index, answer)).collect();
    let whole = chunks.completion(&choices);
    let completion = Completion { usage: Some(Some(all.usage)), timings: all.timings, bombus: all.extras, ..whole };
    Ok((all.headers, Json(completion)).into_response())
}

/// Refuses what is not supported.
pub(super) fn check_unsupported(request: &CompletionRequest, count: u32) -> Result<(), ApiError> {
    if request.best_of.is_some_and(|best_of| best_of != count) {
        return Err(ApiError::unsupported("best_of", "'best_of' is not supported beyond the value of 'n'"));
    }
    if request.echo.unwrap_or(false) && request.logprobs.is_some() {
        return Err(ApiError::unsupported("echo", "'echo' is not supported together with 'logprobs'"));
    }
    Ok(())
}

/// Reads what the requests for all inputs have in common.
pub(super) fn form(
    request: &mut CompletionRequest,
    common: Common,
    model: String,
    inputs: &[Input],
) -> Result<ChatRequest, ApiError> {
    let max_tokens = Some(request.max_tokens.unwrap_or(MAX_TOKENS_DEFAULT));
    let nothing = Prompt::Raw(String::new());
    let form = translate::generation(common, model, nothing, max_tokens, "logprobs", request.logprobs)?;
    // Ollama looks for thoughts in what continues a text, too, and this dialect has no place for them. All are told not to: whoever answers in
    // the end, the model may be one that thinks.
    Ok(ChatRequest { suffix: suffix(request.suffix.take(), inputs)?, think: Some(Think::Off), ..form })
}

/// Makes the request for an input.
pub(super) fn of_input(form: &ChatRequest, input: Input) -> ChatRequest {
    let prompt = match input {
        Input::Text(text) => Prompt::Raw(text),
        Input::Tokens(tokens) => Prompt::Tokens(tokens),
    };
    ChatRequest { prompt, ..form.clone() }
}

/// Returns what is to stand after each continuation, where that is anything.
fn suffix(suffix: Option<String>, inputs: &[Input]) -> Result<Option<String>, ApiError> {
    let suffix = suffix.filter(|text| !text.is_empty());
    if suffix.is_some() && inputs.iter().any(|input| matches!(input, Input::Tokens(_))) {
        return Err(ApiError::unsupported("suffix", "'suffix' is not supported for prompts of token ids"));
    }
    Ok(suffix)
}

/// Returns, for each continuation, the prompt that it begins with.
fn echoes(inputs: &[Input], count: u32) -> Result<Vec<String>, ApiError> {
    let mut echoes = Vec::with_capacity(inputs.len() * count as usize);
    for input in inputs {
        let Input::Text(text) = input else {
            return Err(ApiError::unsupported("echo", "'echo' is not supported for prompts of token ids"));
        };
        echoes.extend(std::iter::repeat_n(text.clone(), count as usize));
    }
    Ok(echoes)
}

struct CompletionChunks {
    id: String,
    created: u64,
    model: String,
    fingerprint: Arc<str>,
    with_logprobs: bool,
    include_usage: bool,
    /// Where each continuation's next token begins, in characters.
    offsets: Vec<usize>,
    /// What each continuation begins with; empty where that is nothing.
    echoes: Vec<String>,
}

impl CompletionChunks {
    fn choice<'a>(&self, index: usize, answer: &'a Collected) -> CompletionChoice<'a> {
        let logprobs = self.with_logprobs.then(|| {
            let mut logprobs = CompletionLogprobs::default();
            logprobs.extend(&answer.logprobs, &mut 0);
            logprobs
        });
        let finish_reason = answer.finish.map(finish_name);
        CompletionChoice { index, text: &answer.text, logprobs, finish_reason }
    }

    /// Builds the object, or a chunk of a stream, without anything beside its choices.
    fn completion<'a>(&'a self, choices: &'a [CompletionChoice<'a>]) -> Completion<'a> {
        Completion {
            id: &self.id,
            object: "text_completion",
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices,
            usage: self.include_usage.then_some(None),
            timings: None,
            bombus: None,
        }
    }

    fn write(&self, choice: CompletionChoice<'_>, out: &mut EventWriter) {
        out.event(&self.completion(&[choice]));
    }
}

impl Chunks for CompletionChunks {
    fn open(&mut self, index: usize, out: &mut EventWriter) {
        if let Some(text) = self.echoes.get(index) {
            self.write(CompletionChoice { index, text, logprobs: None, finish_reason: None }, out);
        }
    }

    fn delta(&mut self, index: usize, delta: Delta, out: &mut EventWriter) {
        let logprobs = self.with_logprobs.then(|| {
            let mut logprobs = CompletionLogprobs::default();
            logprobs.extend(&delta.logprobs, &mut self.offsets[index]);
            logprobs
        });
        self.write(CompletionChoice { index, text: &delta.text, logprobs, finish_reason: None }, out);
    }

    /// Backends are told not to look for thoughts ([`form`]); where one comes all the same, there is no place for it.
    fn thinking(&mut self, _: usize, _: &str, _: &mut EventWriter) {}

    /// Calls of tools do not occur without a chat template.
    fn tool_call(&mut self, _: usize, _: &ToolCallDelta, _: &mut EventWriter) {}

    fn finish(&mut self, index: usize, End { reason, timings, extras }: End, out: &mut EventWriter) {
        let choice = CompletionChoice { index, text: "", logprobs: None, finish_reason: Some(finish_name(reason)) };
        out.event(&Completion { timings, bombus: extras, ..self.completion(&[choice]) });
    }

    fn usage(&mut self, usage: Usage, out: &mut EventWriter) {
        out.event(&Completion { usage: self.include_usage.then_some(Some(usage)), ..self.completion(&[]) });
    }
}
