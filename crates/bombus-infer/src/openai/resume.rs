//! Answers that another run began. llama-server renders the conversation and goes on behind its text; vLLM continues its last message.
//!
//! Facts are from llama.cpp's `tools/server/README.md` and vLLM's page on its server (`continue_final_message`). llama-server continues a
//! last message of the assistant too, but sends it back with the first piece, and refuses that to models that think.

use bombus_core::chat::{ChatRequest, Message, Prompt, Resume, Role};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{COMPLETIONS_PATH, Provider, request};
use crate::BackendError;
use crate::resumed::{Resumed, goes_on_by_text, has_pictures, think_filter, unsupported};
use crate::upstream::{UpstreamClient, UpstreamError};

/// Largest rendered conversation.
const RENDERED_BYTES_MAX: usize = 64 << 20;

/// What is asked of a server in place of the request.
pub(super) struct Asked {
    pub(super) path: &'static str,
    pub(super) body: Map<String, Value>,
}

/// Returns whether a server of this provider can go on with the answer to a request.
pub(super) fn is_possible(request: &ChatRequest, provider: Provider) -> bool {
    let has_no_text = |resume: &Resume| resume.text.is_empty() && !resume.is_new();
    let is_chat = matches!(request.prompt, Prompt::Chat(_));
    provider.continues()
        && goes_on_by_text(request)
        && match provider {
            Provider::LlamaCpp => !has_pictures(request),
            // Templates put thoughts in order that stand in a message, and vLLM does not find the place to go on from again.
            _ => !is_chat || !request.resume.as_ref().is_some_and(has_no_text),
        }
}

/// Says a request that goes on with an answer in the words of its server.
///
/// # Errors
///
/// [`BackendError::Unsupported`] where it cannot be said; whatever llama-server says to the conversation.
pub(super) async fn ask(
    client: &UpstreamClient,
    mut request: ChatRequest,
    resume: &Resume,
    id: &str,
    provider: Provider,
) -> Result<(Resumed, Asked), BackendError> {
    let rendered = match &request.prompt {
        Prompt::Raw(text) => text.clone(),
        Prompt::Chat(messages) if provider == Provider::LlamaCpp => {
            let rendered = render(client, messages, &request, provider).await;
            rendered.map_err(|error| error.into_backend(client.name(), &request.model, false))?
        }
        Prompt::Chat(_) if provider == Provider::Vllm => return continue_message(request, resume, id),
        _ => return Err(unsupported("this server has no way to be told its beginning")),
    };
    let is_chat = matches!(request.prompt, Prompt::Chat(_));
    let think = if is_chat { think_filter(&rendered, request.think.as_ref()) } else { None };
    let resumed = Resumed::new(&request, resume, think);
    request.prompt = Prompt::Raw(rendered + resumed.beginning());
    request.max_tokens = resumed.tokens_left(request.max_tokens);
    let body = request::body(&request, id, provider)?;
    Ok((resumed, Asked { path: COMPLETIONS_PATH, body }))
}

/// Asks vLLM to continue a last message.
fn continue_message(mut request: ChatRequest, resume: &Resume, id: &str) -> Result<(Resumed, Asked), BackendError> {
    let resumed = Resumed::without_blanks(&request, resume);
    let begins = !resumed.beginning().is_empty();
    if let Prompt::Chat(messages) = &mut request.prompt
        && begins
    {
        let thinking = Some(resume.thinking.clone()).filter(|thinking| !thinking.is_empty());
        messages.push(Message { thinking, ..Message::text(Role::Assistant, resumed.beginning()) });
    }
    request.max_tokens = resumed.tokens_left(request.max_tokens);
    let mut body = request::body(&request, id, Provider::Vllm)?;
    if begins {
        let fields = [("add_generation_prompt", false), ("continue_final_message", true), ("echo", false)];
        body.extend(fields.map(|(field, value)| (field.to_owned(), json!(value))));
    }
    Ok((resumed, Asked { path: "chat/completions", body }))
}

/// Asks llama-server for the text that its model is given of a conversation; that stands beside the dialect's own paths.
async fn render(
    client: &UpstreamClient,
    messages: &[Message],
    request: &ChatRequest,
    provider: Provider,
) -> Result<String, UpstreamError> {
    #[derive(Deserialize)]
    struct Rendered {
        prompt: String,
    }
    let mut body = Map::new();
    body.insert("messages".to_owned(), request::messages(messages, provider));
    if let Some(think) = &request.think {
        provider.put_think(think, &mut body);
    }
    let rendered: Rendered =
        client.post_json("../apply-template", Some(&request.model), &body, RENDERED_BYTES_MAX).await?;
    Ok(rendered.prompt)
}
