//! One request while it is computed.

use std::time::Instant;

use bombus_core::chat::{ChatEvent, ChatRequest, Delta, FinishReason, Timings, TokenLogprob, Usage};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;

use super::RunError;
use super::prompt::PromptReader;
use super::sampler::TokenSampler;
use super::schema::grammar_for;
use super::text::{StopFilter, Utf8Decoder};
use super::tools::ToolFilter;
use crate::protocol::RunId;

/// A request with everything that its computation needs and has brought so far.
pub(crate) struct Run {
    pub(crate) id: RunId,
    /// Prompt and answer.
    pub(crate) tokens: Vec<LlamaToken>,
    pub(crate) sampler: TokenSampler,
    /// Events that may still be sent before the client has to take some.
    pub(crate) credit: i64,
    /// `Some(k)`: log probabilities with `k` alternatives are wanted.
    pub(crate) logprobs: Option<u8>,
    prompt_tokens: usize,
    /// Prompt tokens that did not have to be computed, as of the first start.
    cached_tokens: Option<usize>,
    /// Length of `tokens` at which the run ends.
    tokens_max: usize,
    decoder: Utf8Decoder,
    stops: StopFilter,
    tools: Option<ToolFilter>,
    arrived: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
}

impl Run {
    /// Reads a request, as far as that is possible without computing anything.
    pub(crate) fn new(
        id: RunId,
        credit: u32,
        request: ChatRequest,
        model: &LlamaModel,
        prompts: &PromptReader<'_>,
        context_tokens: usize,
    ) -> Result<Self, RunError> {
        let prompt = prompts.read(&request)?;
        let prompt_tokens = prompt.tokens.len();
        if prompt_tokens == 0 {
            return Err(RunError::invalid("prompt", "the prompt is empty"));
        }
        if prompt_tokens >= context_tokens {
            return Err(RunError::ContextExceeded {
                prompt_tokens: count(prompt_tokens),
                context_tokens: count(context_tokens),
            });
        }
        let grammar = match prompt.grammar {
            Some(grammar) => Some(grammar),
            None => grammar_for(&request.response_format)?,
        };
        let banned = if request.ignore_eos { prompts.end_tokens() } else { &[] };
        let mut sampler = TokenSampler::new(model, &request.sampling, grammar.as_deref(), banned)?;
        sampler.accept_prompt(&prompt.tokens);
        let answer_max = request.max_tokens.map_or(usize::MAX, |max| max as usize);
        Ok(Self {
            id,
            sampler,
            credit: i64::from(credit),
            logprobs: request.logprobs,
            prompt_tokens,
            cached_tokens: None,
            tokens_max: prompt_tokens.saturating_add(answer_max).min(context_tokens),
            decoder: Utf8Decoder::default(),
            stops: StopFilter::new(request.stop),
            tools: prompt.tools.map(ToolFilter::new),
            tokens: prompt.tokens,
            arrived: Instant::now(),
            started: None,
            first_token: None,
        })
    }

    /// Notes that a slot was given, with this many tokens in its cache already.
    pub(crate) fn start(&mut self, cached_tokens: usize) {
        self.started.get_or_insert_with(Instant::now);
        self.cached_tokens.get_or_insert(cached_tokens.min(self.prompt_tokens));
    }

    /// Returns whether the answer has begun.
    pub(crate) fn is_generating(&self) -> bool {
        self.first_token.is_some()
    }

    /// Returns whether the run has to wait until its client takes what was sent.
    pub(crate) fn is_paused(&self) -> bool {
        self.credit <= 0
    }

    /// Returns whether control tokens are to be written out: models of some kinds write tool calls with them.
    pub(crate) fn shows_control_tokens(&self) -> bool {
        self.tools.is_some()
    }

    /// Returns whether no further token may be generated.
    pub(crate) fn is_full(&self) -> bool {
        self.tokens.len() >= self.tokens_max
    }

    /// Notes that the prompt is computed.
    pub(crate) fn note_prompt_computed(&mut self) {
        self.first_token.get_or_insert_with(Instant::now);
    }

    /// Takes the chosen token, with its bytes, and hands on what may leave. Returns why the answer ends, if it does.
    pub(crate) fn take_token(
        &mut self,
        token: LlamaToken,
        bytes: &[u8],
        logprob: Option<TokenLogprob>,
        events: &mut Vec<ChatEvent>,
    ) -> Option<FinishReason> {
        self.tokens.push(token);
        let text = self.decoder.push(bytes);
        let (delta, stopped) = self.stops.push(&text, logprob);
        self.hand_on(delta, events);
        if stopped { Some(FinishReason::Stop) } else { self.is_full().then_some(FinishReason::Length) }
    }

    /// Hands on what was held back, and the end.
    pub(crate) fn finish(mut self, mut finish: FinishReason) -> Vec<ChatEvent> {
        let mut events = Vec::new();
        let text = self.decoder.finish();
        let (delta, _) = self.stops.push(&text, None);
        self.hand_on(delta, &mut events);
        let rest = self.stops.finish();
        self.hand_on(rest, &mut events);
        if let Some(tools) = &mut self.tools {
            events.extend(tools.finish());
            if tools.has_calls() && finish == FinishReason::Stop {
                finish = FinishReason::ToolCalls;
            }
        }
        let (usage, timings) = (self.usage(), self.timings());
        events.push(ChatEvent::Done { finish, usage, timings, tokens: Vec::new() });
        events
    }

    fn hand_on(&mut self, delta: Delta, events: &mut Vec<ChatEvent>) {
        if delta.text.is_empty() && delta.logprobs.is_empty() {
            return;
        }
        match &mut self.tools {
            Some(tools) => events.extend(tools.push(delta)),
            None => events.push(ChatEvent::Delta(delta)),
        }
    }

    fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: count(self.prompt_tokens),
            cached_tokens: count(self.cached_tokens.unwrap_or(0)),
            completion_tokens: count(self.tokens.len() - self.prompt_tokens),
        }
    }

    fn timings(&self) -> Timings {
        let now = Instant::now();
        let started = self.started.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        let ms = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1000.0;
        Timings {
            load_ms: 0.0,
            queue_ms: ms(self.arrived, started),
            prompt_ms: ms(started, first_token),
            generate_ms: ms(first_token, now),
        }
    }
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
