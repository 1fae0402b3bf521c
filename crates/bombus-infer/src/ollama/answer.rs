//! Says an answer of Ollama's in the events of this crate.

use std::collections::HashSet;
use std::time::Duration;

use async_stream::stream;
use bombus_core::chat::{
    ChatEvent, Delta, FinishReason, Timings, TokenAlternative, TokenLogprob, ToolCallDelta, Usage,
};
use futures::StreamExt;
use serde_json::Value;
use tokio::time::timeout;
use uuid::Uuid;

use super::context::{Cut, Need, judge, refuses_long_prompts};
use super::wire::{Answer, Logprob, ToolCall};
use super::{AnswerStream, OllamaClient, OllamaError};
use crate::{BackendError, ChatStream};

/// Longest wait for the server's version, at the end of an answer.
const VERSION_TIME_MAX: Duration = Duration::from_secs(5);

/// What the reader of an answer has to know about its request.
pub(super) struct Asked {
    /// The backend's name.
    pub(super) backend: String,
    pub(super) client: OllamaClient,
    pub(super) model: String,
    pub(super) need: Need,
    /// Tokens that the context holds, as far as that is known.
    pub(super) window: Option<u32>,
    /// Whether the prompt may have been cut.
    pub(super) may_cut: bool,
    /// Whether the tokens are to be told.
    pub(super) return_tokens: bool,
    /// Whether nothing is to be generated, which Ollama cannot be told.
    pub(super) mute: bool,
}

/// Says a stream of pieces as events. `first` is its first piece, `before` an event that comes before all.
pub(super) fn events(asked: Asked, before: Option<ChatEvent>, first: Answer, mut rest: AnswerStream) -> ChatStream {
    Box::pin(stream! {
        let is_cut_told = matches!(before, Some(ChatEvent::Truncated { .. }));
        if let Some(event) = before {
            yield Ok(event);
        }
        let mut calls = Calls::default();
        let mut next: Option<Result<Answer, OllamaError>> = Some(Ok(first));
        while let Some(piece) = next {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => {
                    yield Err(error.into_backend(&asked.backend, &asked.model, true));
                    return;
                }
            };
            let done = piece.done.then(|| Ending::of(&piece));
            let tokens = if asked.return_tokens { piece.context.clone() } else { Vec::new() };
            if !asked.mute {
                for event in said(piece, &mut calls) {
                    yield Ok(event);
                }
            }
            if let Some(mut ending) = done {
                if !is_cut_told && let Err(error) = check(&asked, ending.usage.prompt_tokens).await {
                    yield Err(error);
                    return;
                }
                if asked.mute {
                    ending.finish = FinishReason::Length;
                    ending.usage.completion_tokens = 0;
                } else if calls.count > 0 && ending.finish == FinishReason::Stop {
                    ending.finish = FinishReason::ToolCalls;
                }
                let Ending { finish, usage, timings } = ending;
                yield Ok(ChatEvent::Done { finish, usage, timings, tokens });
            }
            next = rest.next().await;
        }
    })
}

/// The calls of one answer so far.
#[derive(Default)]
struct Calls {
    count: u32,
    ids: HashSet<String>,
}

impl Calls {
    /// Says a call, which comes whole. Ids that are missing or were used already are made.
    fn say(&mut self, call: ToolCall) -> ChatEvent {
        let given = call.id.filter(|id| !id.is_empty() && !self.ids.contains(id));
        let id = given.unwrap_or_else(|| format!("call_{}", Uuid::new_v4().simple()));
        self.ids.insert(id.clone());
        let arguments = match call.function.arguments {
            Value::Null => "{}".to_owned(),
            Value::String(text) => text,
            arguments => arguments.to_string(),
        };
        let index = self.count;
        self.count += 1;
        ChatEvent::ToolCall(ToolCallDelta { index, id: Some(id), name: Some(call.function.name), arguments })
    }
}

/// Says what a piece carries, but for its end.
fn said(piece: Answer, calls: &mut Calls) -> Vec<ChatEvent> {
    let Answer { response, thinking, message, logprobs, .. } = piece;
    let mut events = Vec::new();
    let thinking = if thinking.is_empty() { message.thinking } else { thinking };
    let thinks = !thinking.is_empty();
    if thinks {
        events.push(ChatEvent::Thinking(Delta::text(thinking)));
    }
    let text = if response.is_empty() { message.content } else { response };
    // The log probabilities of a thought have no place beside it.
    if !text.is_empty() || (!logprobs.is_empty() && !thinks) {
        events.push(ChatEvent::Delta(Delta { text, logprobs: logprobs.into_iter().map(token).collect(), trace: None }));
    }
    events.extend(message.tool_calls.into_iter().map(|call| calls.say(call)));
    events
}

/// Ollama tells no token ids.
fn token(token: Logprob) -> TokenLogprob {
    let alternative = |token: Logprob| TokenAlternative {
        id: 0,
        bytes: if token.bytes.is_empty() { token.token.into_bytes() } else { token.bytes },
        logprob: token.logprob,
    };
    let top = token.top_logprobs.clone().into_iter().map(alternative).collect();
    TokenLogprob { token: alternative(token), top }
}

/// How an answer ended.
struct Ending {
    finish: FinishReason,
    usage: Usage,
    timings: Timings,
}

impl Ending {
    fn of(piece: &Answer) -> Self {
        let ms = |nanoseconds: i64| nanoseconds.max(0) as f64 / 1e6;
        Self {
            finish: if piece.done_reason == "length" { FinishReason::Length } else { FinishReason::Stop },
            usage: Usage {
                prompt_tokens: piece.prompt_eval_count,
                completion_tokens: piece.eval_count,
                ..Usage::default()
            },
            timings: Timings {
                load_ms: ms(piece.load_duration),
                queue_ms: 0.0,
                prompt_ms: ms(piece.prompt_eval_duration),
                generate_ms: ms(piece.eval_duration),
            },
        }
    }
}

/// Compares what the server says that it read with what the prompt needed. It says so at the end alone, so that a cut that was allowed,
/// but nobody was told of, can only be logged.
///
/// # Errors
///
/// [`BackendError::ContextExceeded`] where the prompt was cut for sure, and nobody allowed that.
async fn check(asked: &Asked, prompt_eval_count: u32) -> Result<(), BackendError> {
    let (backend, model, tokens_estimated) = (&asked.backend, &asked.model, asked.need.prompt_tokens);
    match judge(prompt_eval_count, asked.window, asked.need) {
        Cut::No => Ok(()),
        Cut::Suspected => {
            tracing::warn!(
                backend.name = backend,
                model.name = model,
                prompt_eval_count,
                tokens_estimated,
                "upstream read far fewer tokens than the prompt seems to have; it may have cut it"
            );
            Ok(())
        }
        Cut::Filled => {
            let version = timeout(VERSION_TIME_MAX, asked.client.without_retries().version()).await;
            let cuts = matches!(version, Ok(Ok(version)) if !refuses_long_prompts(&version));
            if !cuts {
                return Ok(());
            }
            if asked.may_cut {
                tracing::warn!(
                    backend.name = backend,
                    model.name = model,
                    prompt_eval_count,
                    tokens_estimated,
                    "upstream cut the prompt without a word; from version 0.12.6 on Ollama lets it be told what was left out"
                );
                return Ok(());
            }
            tracing::error!(
                backend.name = backend,
                model.name = model,
                prompt_eval_count,
                tokens_estimated,
                "upstream cut the prompt, which it was told not to; Ollama obeys from version 0.12.6 on"
            );
            Err(too_long(asked.need, prompt_eval_count))
        }
    }
}

/// Builds the error for a prompt that is longer than its context. The server does not tell how long it is, so that is estimated.
pub(super) fn too_long(need: Need, context_tokens: u32) -> BackendError {
    let prompt_tokens = need.prompt_tokens.max(context_tokens.saturating_add(1));
    BackendError::ContextExceeded { prompt_tokens, context_tokens }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn piece(document: Value) -> Vec<ChatEvent> {
        said(serde_json::from_value(document).unwrap(), &mut Calls::default())
    }

    #[test]
    fn both_endpoints_say_the_same() {
        let delta = |text: &str| ChatEvent::Delta(Delta::text(text));
        assert_eq!(piece(json!({"response": "Hi", "done": false})), [delta("Hi")]);
        assert_eq!(piece(json!({"message": {"role": "assistant", "content": "Hi"}})), [delta("Hi")]);
        let thought = ChatEvent::Thinking(Delta::text("Hm"));
        assert_eq!(piece(json!({"response": "", "thinking": "Hm"})), std::slice::from_ref(&thought));
        assert_eq!(piece(json!({"message": {"thinking": "Hm", "content": "Hi"}})), [thought, delta("Hi")]);
        assert_eq!(piece(json!({"response": "", "done": true, "context": null, "logprobs": null})), []);
    }

    #[test]
    fn calls_are_whole_and_their_ids_are_unique() {
        let call = |id: Value| json!({"id": id, "function": {"name": "f", "arguments": {"b": 1, "a": "x"}}});
        let events = piece(json!({"message": {"tool_calls": [call("c".into()), call("c".into()), call(Value::Null)]}}));
        let mut ids = HashSet::new();
        for (index, event) in events.iter().enumerate() {
            let ChatEvent::ToolCall(call) = event else { panic!("{event:?}") };
            assert_eq!((call.index as usize, call.name.as_deref()), (index, Some("f")));
            assert_eq!(call.arguments, r#"{"b":1,"a":"x"}"#);
            ids.insert(call.id.clone().unwrap());
        }
        assert!(ids.len() == 3 && ids.contains("c"), "{ids:?}");
    }

    #[test]
    fn log_probabilities_keep_their_bytes() {
        let logprob = json!({"token": "ü", "logprob": -0.5, "bytes": [195, 188], "top_logprobs": [{"token": "a", "logprob": -1.0}]});
        let [ChatEvent::Delta(delta)] = &piece(json!({"response": "", "logprobs": [logprob]}))[..] else { panic!() };
        assert_eq!(delta.logprobs[0].token.bytes, [195, 188]);
        assert_eq!((delta.logprobs[0].top[0].bytes.as_slice(), delta.logprobs[0].top[0].logprob), (&b"a"[..], -1.0));
    }
}
