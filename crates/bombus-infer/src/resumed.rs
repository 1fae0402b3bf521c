//! Answers that another run began, on servers that can be told of that only by text.
use async_stream::stream;
use bombus_core::chat::output::{FollowedText, Output, ThinkFilter};
use bombus_core::chat::{
    ChatEvent, ChatRequest, Delta, FinishReason, Message, Part, Prompt, ResponseFormat, Resume, Role, Think, Timings,
    ToolChoice, Usage,
};
use futures::StreamExt;

use crate::{BackendError, ChatStream};

/// Shortest beginning that is known again where a server sends it back: a shorter one may be what the model writes next.
const ECHO_BYTES_MIN: usize = 16;
/// Marks of forms of thoughts and answers that are not written as they are read, so that text cannot begin them.
const OTHER_MARKS: [&str; 6] =
    ["<|channel", "[THINK]", "<|START_THINKING|>", "<seed:think>", "\u{25c1}think\u{25b7}", "<thinking>"];

/// Returns whether the answers of a model with this chat template can be begun as text.
pub(crate) fn answers_plainly(template: &str) -> bool {
    !OTHER_MARKS.iter().any(|mark| template.contains(mark))
}

/// Returns whether an answer to this can go on by its text alone. A form cannot be demanded of the end of an answer, and calls of tools
/// are not told as they were written.
pub(crate) fn goes_on_by_text(request: &ChatRequest) -> bool {
    let has_tools = !request.tools.is_empty() && request.tool_choice != ToolChoice::None;
    let is_plain = request.response_format == ResponseFormat::Text && request.suffix.is_none();
    let is_models_own = request.template.is_none() && request.earlier_tokens.is_empty();
    let prompt_is_whole = match &request.prompt {
        Prompt::Chat(messages) => messages.last().is_some_and(|last| last.role != Role::Assistant),
        Prompt::Raw(_) => true,
        Prompt::Tokens(_) => false,
    };
    !has_tools && is_plain && is_models_own && prompt_is_whole
}

/// Returns whether a prompt has pictures, which no rendered text has a place for.
pub(crate) fn has_pictures(request: &ChatRequest) -> bool {
    let Prompt::Chat(messages) = &request.prompt else { return !request.images.is_empty() };
    let is_picture = |part: &Part| matches!(part, Part::Image(_));
    messages.iter().any(|message: &Message| message.content.iter().any(is_picture))
}

/// Returns whether an answer to this can go on wherever its text is enough to go on: it has no form, no tools and no pictures.
#[must_use]
pub fn goes_on_as_text(request: &ChatRequest) -> bool {
    goes_on_by_text(request) && !has_pictures(request)
}

/// Makes the filter for the thoughts in a raw answer to a rendered conversation.
pub(crate) fn think_filter(rendered: &str, think: Option<&Think>) -> Option<ThinkFilter> {
    (think != Some(&Think::Off)).then(|| ThinkFilter::new(rendered.trim_end().ends_with("<think>")))
}

/// Builds the error for a request that cannot go on.
pub(crate) fn unsupported(what: &str) -> BackendError {
    BackendError::Unsupported {
        param: "resume",
        message: format!("an answer that broke off cannot go on here: {what}"),
    }
}

/// An answer that goes on, as long as the server has not answered.
#[derive(Debug)]
pub(crate) struct Resumed {
    output: Output,
    /// What was not handed on before, although it could have been.
    events: Vec<ChatEvent>,
    /// Why the answer ends at once, if it does.
    ended: Option<FinishReason>,
    /// The answer so far as the model has to read it.
    beginning: String,
    completion_tokens: u32,
}

impl Resumed {
    /// Takes up the beginning of the answer to a request. `think` tells thoughts apart, where the server does not.
    pub(crate) fn new(request: &ChatRequest, resume: &Resume, think: Option<ThinkFilter>) -> Self {
        // The beginning of a character cannot be told as text; the model writes it again.
        let held = resume.held.utf8_chunks().next().map_or(&b""[..], |chunk| chunk.valid().as_bytes()).to_vec();
        let resume = Resume { held, ..resume.clone() };
        let FollowedText { output, parts, events, stopped } =
            Output::new(request.stop.clone(), think, false).follow_text(&resume);
        let is_full = request.max_tokens.is_some_and(|most| resume.completion_tokens >= most);
        let ended = if stopped { Some(FinishReason::Stop) } else { is_full.then_some(FinishReason::Length) };
        let beginning = parts.iter().map(|part| String::from_utf8_lossy(&part.bytes)).collect();
        Self { output, events, ended, beginning, completion_tokens: resume.completion_tokens }
    }

    /// As [`Resumed::new`], for a server that cuts the blanks off the end of what it is told.
    pub(crate) fn without_blanks(request: &ChatRequest, resume: &Resume) -> Self {
        let held_is_blank = resume.held.trim_ascii().is_empty();
        let text = if held_is_blank { resume.text.trim_end() } else { &resume.text };
        let held = resume.held.trim_ascii_end().to_vec();
        let cut = Resume { text: text.to_owned(), held, ..resume.clone() };
        let mut resumed = Self::new(request, &cut, None);
        resumed.output.pass_over(&resume.text[text.len()..]);
        resumed
    }

    /// Returns the answer so far, in the model's own marks.
    pub(crate) fn beginning(&self) -> &str {
        &self.beginning
    }

    /// Returns how many tokens may still be generated.
    pub(crate) fn tokens_left(&self, max_tokens: Option<u32>) -> Option<u32> {
        max_tokens.map(|most| most.saturating_sub(self.completion_tokens).max(1))
    }

    /// Returns whether the answer had come to its end, so that the server need not be asked.
    pub(crate) fn is_at_end(&self) -> bool {
        self.ended.is_some()
    }

    /// Ends the answer without the server, in the way known or in this one.
    pub(crate) fn end(mut self, otherwise: FinishReason) -> ChatStream {
        let mut events = std::mem::take(&mut self.events);
        self.output.finish(&mut events);
        let usage = Usage { completion_tokens: self.completion_tokens, ..Usage::default() };
        let finish = self.ended.unwrap_or(otherwise);
        events.push(ChatEvent::Done { finish, usage, timings: Timings::default(), tokens: Vec::new() });
        futures::stream::iter(events.into_iter().map(Ok)).boxed()
    }

    /// Takes the server's answer, or what kept it from answering.
    ///
    /// # Errors
    ///
    /// The server's, but for a context that is full with the beginning: that is the answer's end.
    pub(crate) fn take(self, answer: Result<ChatStream, BackendError>) -> Result<ChatStream, BackendError> {
        match answer {
            Ok(answer) => Ok(self.go_on(answer)),
            Err(BackendError::ContextExceeded { .. }) if self.completion_tokens > 0 => {
                Ok(self.end(FinishReason::Length))
            }
            Err(error) => Err(error),
        }
    }

    fn go_on(mut self, mut answer: ChatStream) -> ChatStream {
        Box::pin(stream! {
            for event in std::mem::take(&mut self.events) {
                yield Ok(event);
            }
            let mut pieces = 0_u32;
            while let Some(event) = answer.next().await {
                let mut events = Vec::new();
                let stopped = match event {
                    // After the answer's first word there are no thoughts any more, whatever a server takes for some.
                    Ok(ChatEvent::Delta(delta) | ChatEvent::Thinking(delta)) => {
                        let delta = if pieces == 0 { self.without_echo(delta) } else { delta };
                        pieces = pieces.saturating_add(1);
                        self.push(delta, &mut events)
                    }
                    Ok(ChatEvent::Done { finish, usage, timings, tokens }) => {
                        self.output.finish(&mut events);
                        let usage = self.whole(usage);
                        events.push(ChatEvent::Done { finish, usage, timings, tokens });
                        false
                    }
                    Ok(ChatEvent::Truncated { .. }) => false,
                    Ok(other) => {
                        events.push(other);
                        false
                    }
                    Err(error) => {
                        yield Err(error);
                        return;
                    }
                };
                for event in events {
                    yield Ok(event);
                }
                if stopped {
                    let usage = self.whole(Usage { completion_tokens: pieces, ..Usage::default() });
                    let (finish, timings) = (FinishReason::Stop, Timings::default());
                    yield Ok(ChatEvent::Done { finish, usage, timings, tokens: Vec::new() });
                    return;
                }
            }
        })
    }

    fn push(&mut self, delta: Delta, events: &mut Vec<ChatEvent>) -> bool {
        let mut logprobs = delta.logprobs.into_iter();
        let stopped = self.output.push(None, delta.text.as_bytes(), logprobs.next(), events);
        stopped || logprobs.any(|logprob| self.output.push(None, b"", Some(logprob), events))
    }

    /// Takes the beginning off the first piece of an answer, where the server has sent it back.
    fn without_echo(&self, mut delta: Delta) -> Delta {
        if self.beginning.len() >= ECHO_BYTES_MIN
            && let Some(rest) = delta.text.strip_prefix(&self.beginning)
        {
            delta.text = rest.to_owned();
        }
        delta
    }

    /// Counts the beginning as written, and not as read.
    fn whole(&self, usage: Usage) -> Usage {
        let prompt_tokens = usage.prompt_tokens.saturating_sub(self.completion_tokens);
        Usage {
            prompt_tokens,
            cached_tokens: usage.cached_tokens.min(prompt_tokens),
            completion_tokens: usage.completion_tokens.saturating_add(self.completion_tokens),
            ..usage
        }
    }
}
