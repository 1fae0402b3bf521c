//! Runs requests as a whole: everything that a model tells is kept.

use bombus_core::chat::{ChatEvent, ChatRequest, EmbedRequest, Prompt, Think, TokenLogprob, ToolCall, ToolCallDelta};
use bombus_core::model::{ModelCapability, ModelName};
use bombus_core::placement::{Need, Scope};
use bombus_core::tasks::{ChatAnswer, Epoch, TaskDocument, WholeAnswer, WholeRequest};
use bombus_infer::Routed;
use futures::StreamExt;

use super::{Failure, Product, RESPONSE_BYTES_MAX, named};
use crate::route::need_of;
use crate::tasks::live::Live;
use crate::tasks::shared::Shared;

/// What stands for the logarithm of a probability of zero: neither JSON nor the blocks of a database can write that.
const LOGPROB_MIN: f32 = -9999.0;
/// About how many bytes a token with its log probability takes, and each that could have stood in its place.
const LOGPROB_BYTES: usize = 80;

/// Does what the request of a task asks for, which has to be there as a whole, by one of the models that may do so (`None`: by any).
pub(super) async fn made(
    shared: &Shared,
    document: &TaskDocument,
    only: Option<&[ModelName]>,
    epoch: Epoch,
    live: &Live,
) -> Result<Product, Failure> {
    match document.request.as_deref() {
        Some(whole @ WholeRequest::Chat { .. }) => chat(shared, document, whole, only, epoch, live).await,
        Some(WholeRequest::Embed { request, form }) => embed(shared, document, request, form, only).await,
        Some(WholeRequest::Elsewhere) | None => Err(Failure::passing("the request of the task is not there")),
    }
}

async fn chat(
    shared: &Shared,
    document: &TaskDocument,
    whole: &WholeRequest,
    only: Option<&[ModelName]>,
    epoch: Epoch,
    live: &Live,
) -> Result<Product, Failure> {
    let WholeRequest::Chat { answers: answers_each, form, .. } = whole else {
        return Err(Failure::lasting("the task asks for no text"));
    };
    let mut product =
        Product { eval_count: Some(0), prompt_eval_count: Some(0), eval_ns: Some(0), ..Product::default() };
    let (mut answers, mut room) = (Vec::new(), RESPONSE_BYTES_MAX);
    for request in whole.each() {
        // Whoever follows the task reads the first answer.
        let watched = answers.is_empty().then_some((live, epoch));
        answers.push(one(shared, document, request, only, watched, &mut room, &mut product).await?);
    }
    let (answers_each, form) = (*answers_each, form.clone());
    product.answer = Some(Box::new(WholeAnswer::Chat { answers, answers_each, form }));
    Ok(product)
}

async fn one(
    shared: &Shared,
    document: &TaskDocument,
    mut request: ChatRequest,
    only: Option<&[ModelName]>,
    watched: Option<(&Live, Epoch)>,
    room: &mut usize,
    product: &mut Product,
) -> Result<ChatAnswer, Failure> {
    request.model.clone_from(&document.model);
    let mut need = need_of(&request).only(only.map(<[_]>::to_vec));
    need.capabilities.extend(request.suffix.as_ref().map(|_| ModelCapability::Insert));
    let route = shared.backends.route(&request.model, &need).await?;
    request.think = think_of(&request, route.best().1.capabilities.contains(&ModelCapability::Thinking));
    let Routed { value: mut events, model, .. } = route.chat(request).await?;
    product.model = named(&model, &document.model);
    let mut written = Written::default();
    while let Some(event) = events.next().await {
        let bytes = match event? {
            ChatEvent::Delta(delta) => {
                if let Some((live, epoch)) = watched {
                    live.write(epoch, &delta.text, 1);
                }
                written.delta(&delta.text, delta.logprobs)
            }
            ChatEvent::Thinking(delta) => {
                if let Some((live, epoch)) = watched {
                    live.write(epoch, "", 1);
                }
                written.thinking.push_str(&delta.text);
                delta.text.len()
            }
            ChatEvent::ToolCall(piece) => written.tool_call(piece),
            ChatEvent::Done { finish, usage, timings, .. } => {
                let add = |sum: &mut Option<u64>, more: u64| *sum = Some(sum.unwrap_or_default() + more);
                add(&mut product.eval_count, usage.completion_tokens.into());
                add(&mut product.prompt_eval_count, usage.prompt_tokens.into());
                add(&mut product.eval_ns, (timings.generate_ms.max(0.0) * 1e6) as u64);
                let Written { text, thinking, tool_calls, logprobs } = written;
                let tool_calls = tool_calls.into_iter().map(|(_, call)| call).collect();
                return Ok(ChatAnswer { text, thinking, tool_calls, logprobs, finish, usage });
            }
            _ => 0,
        };
        let too_long = || Failure::lasting(format!("the answer has more than {RESPONSE_BYTES_MAX} bytes"));
        *room = room.checked_sub(bytes).ok_or_else(too_long)?;
    }
    Err(Failure::passing("the answer broke off without saying why"))
}

/// Says what the model of a request is told of thinking. Clients say it of conversations to every model, and what cannot think does not need to
/// be told so. Not to think about how a text goes on is told to all: another one, which can, may answer in its place.
fn think_of(request: &ChatRequest, can_think: bool) -> Option<Think> {
    let is_chat = matches!(request.prompt, Prompt::Chat(_));
    request.think.clone().filter(|_| can_think || !is_chat)
}

/// An answer as far as it has come. Its methods return about how many bytes more it takes.
#[derive(Default)]
struct Written {
    text: String,
    thinking: String,
    tool_calls: Vec<(u32, ToolCall)>,
    logprobs: Vec<TokenLogprob>,
}

impl Written {
    fn delta(&mut self, text: &str, logprobs: Vec<TokenLogprob>) -> usize {
        let mut bytes = text.len();
        self.text.push_str(text);
        for mut token in logprobs {
            bytes += LOGPROB_BYTES * (1 + token.top.len());
            for of in std::iter::once(&mut token.token).chain(&mut token.top) {
                of.logprob = if of.logprob.is_finite() { of.logprob.max(LOGPROB_MIN) } else { LOGPROB_MIN };
            }
            self.logprobs.push(token);
        }
        bytes
    }

    fn tool_call(&mut self, piece: ToolCallDelta) -> usize {
        let bytes = LOGPROB_BYTES + piece.arguments.len();
        let known = self.tool_calls.iter_mut().find(|(index, _)| *index == piece.index);
        match known {
            Some((_, call)) => call.arguments.push_str(&piece.arguments),
            None => {
                let (id, name) = (piece.id.unwrap_or_default(), piece.name.unwrap_or_default());
                self.tool_calls.push((piece.index, ToolCall { id, name, arguments: piece.arguments }));
            }
        }
        bytes
    }
}

async fn embed(
    shared: &Shared,
    document: &TaskDocument,
    request: &EmbedRequest,
    form: &str,
    only: Option<&[ModelName]>,
) -> Result<Product, Failure> {
    let need = Need::of([ModelCapability::Embedding]).within(Scope::Local).only(only.map(<[_]>::to_vec));
    let route = shared.backends.route(&document.model, &need).await?;
    let request = EmbedRequest { model: document.model.clone(), ..request.clone() };
    let wanted = request.dimensions;
    let Routed { value: response, model, .. } = route.embed(request).await?;
    if let (Some(wanted), Some(vector)) = (wanted, response.vectors.first())
        && u32::try_from(vector.len()) != Ok(wanted)
    {
        let message = format!("the vectors of the model have no more than {} dimensions", vector.len());
        return Err(Failure::lasting(message));
    }
    Ok(Product {
        model: named(&model, &document.model),
        prompt_eval_count: Some(u64::from(response.prompt_tokens)),
        answer: Some(Box::new(WholeAnswer::Embed { response, form: form.to_owned() })),
        ..Product::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_goes_on_without_thoughts_whoever_answers() {
        let text = ChatRequest { think: Some(Think::Off), ..ChatRequest::new("m", Prompt::Raw("Once".into())) };
        let chat = ChatRequest { prompt: Prompt::Chat(Vec::new()), ..text.clone() };
        assert_eq!([true, false].map(|can| think_of(&text, can)), [Some(Think::Off), Some(Think::Off)]);
        assert_eq!([true, false].map(|can| think_of(&chat, can)), [Some(Think::Off), None]);
    }
}
