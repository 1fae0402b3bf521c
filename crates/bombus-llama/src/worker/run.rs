//! One request while it is computed.

use std::ops::Range;
use std::time::Instant;

use bombus_core::chat::{ChatEvent, ChatRequest, Delta, FinishReason, Timings, TokenLogprob, Usage};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;

use super::RunError;
use super::endless::EndlessGuard;
use super::prompt::PromptReader;
use super::sampler::TokenSampler;
use super::schema::grammar_for;
use super::text::{StopFilter, Utf8Decoder};
use super::thinking::{ThinkFilter, Thought};
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
    /// Tokens generated so far, and most that may be.
    generated: usize,
    generated_max: usize,
    /// Most tokens that prompt and answer may have together.
    context_tokens: usize,
    /// Where the answer may go on when the context is full: how many tokens at the beginning stay then.
    shift_keep: Option<usize>,
    endless: EndlessGuard,
    /// Turns that were left out of the prompt, until that is told.
    left_out: Option<usize>,
    returns_tokens: bool,
    decoder: Utf8Decoder,
    stops: StopFilter,
    think: Option<ThinkFilter>,
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
        let wanted = request.context_tokens.map_or(usize::MAX, |tokens| tokens as usize);
        let context_tokens = context_tokens.min(wanted);
        let prompt = prompts.read(&request, context_tokens)?;
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
        // What has to have a form gets it when the thoughts are over.
        let holds_grammar = grammar.is_some() && prompt.think.as_ref().is_some_and(ThinkFilter::is_thinking);
        let banned = if request.ignore_eos { prompts.end_tokens() } else { &[] };
        let mut sampler = TokenSampler::new(model, &request.sampling, grammar.as_deref(), banned)?;
        sampler.accept_prompt(&prompt.tokens);
        sampler.hold_grammar(holds_grammar);
        let wanted = request.max_tokens.map_or(usize::MAX, |max| max as usize);
        let generated_max =
            if request.overflow.shift { EndlessGuard::tokens_max(wanted, context_tokens) } else { wanted };
        let keep_tokens = prompts.keep_tokens(&request).min(context_tokens / 2);
        Ok(Self {
            id,
            sampler,
            credit: i64::from(credit),
            logprobs: request.logprobs,
            prompt_tokens,
            cached_tokens: None,
            generated: 0,
            generated_max,
            context_tokens,
            shift_keep: request.overflow.shift.then_some(keep_tokens),
            endless: EndlessGuard::default(),
            left_out: prompt.left_out,
            returns_tokens: request.return_tokens,
            decoder: Utf8Decoder::default(),
            stops: StopFilter::new(request.stop),
            think: prompt.think,
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
        self.tools.is_some() || self.think.as_ref().is_some_and(ThinkFilter::is_thinking)
    }

    /// Returns whether no further token may be generated.
    pub(crate) fn is_full(&self) -> bool {
        self.generated >= self.generated_max || (self.fills_context() && self.shift_keep.is_none())
    }

    fn fills_context(&self) -> bool {
        self.tokens.len() >= self.context_tokens
    }

    /// Makes room in a full context, where the run may go on: forgets the oldest half of its tokens, except those at the beginning that
    /// stay. Returns which.
    pub(crate) fn shift(&mut self) -> Option<Range<usize>> {
        let keep = self.shift_keep.filter(|_| self.fills_context())?;
        let dropped = keep..keep + ((self.tokens.len() - keep) / 2).max(1);
        self.tokens.drain(dropped.clone());
        Some(dropped)
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
        self.tell_truncated(events);
        self.tokens.push(token);
        self.generated += 1;
        // Without a moving context the answer ends with its context at the latest.
        let is_stuck = self.shift_keep.is_some() && self.endless.is_stuck(bytes);
        let text = self.decoder.push(bytes);
        let (delta, stopped) = self.stops.push(&text, logprob);
        self.hand_on(delta, events);
        if stopped { Some(FinishReason::Stop) } else { (is_stuck || self.is_full()).then_some(FinishReason::Length) }
    }

    /// Hands on what was held back, and the end.
    pub(crate) fn finish(mut self, mut finish: FinishReason) -> Vec<ChatEvent> {
        let mut events = Vec::new();
        self.tell_truncated(&mut events);
        let text = self.decoder.finish();
        let (delta, _) = self.stops.push(&text, None);
        self.hand_on(delta, &mut events);
        let rest = self.stops.finish();
        self.hand_on(rest, &mut events);
        if let Some(mut think) = self.think.take() {
            self.hand_on_thought(think.finish(), &mut events);
        }
        if let Some(tools) = &mut self.tools {
            events.extend(tools.finish());
            if tools.has_calls() && finish == FinishReason::Stop {
                finish = FinishReason::ToolCalls;
            }
        }
        let (usage, timings) = (self.usage(), self.timings());
        let tokens = if self.returns_tokens {
            self.tokens.iter().map(|token| token.0.unsigned_abs()).collect()
        } else {
            Vec::new()
        };
        events.push(ChatEvent::Done { finish, usage, timings, tokens });
        events
    }

    fn tell_truncated(&mut self, events: &mut Vec<ChatEvent>) {
        if let Some(left_out) = self.left_out.take() {
            events.push(ChatEvent::Truncated { messages: count(left_out), prompt_tokens: count(self.prompt_tokens) });
        }
    }

    fn hand_on(&mut self, delta: Delta, events: &mut Vec<ChatEvent>) {
        let Some(think) = &mut self.think else { return self.hand_on_answer(delta, events) };
        let thought = think.push(delta);
        if !think.is_thinking() {
            self.sampler.hold_grammar(false);
        }
        self.hand_on_thought(thought, events);
    }

    fn hand_on_thought(&mut self, thought: Thought, events: &mut Vec<ChatEvent>) {
        if !thought.thinking.is_empty() {
            events.push(ChatEvent::Thinking(Delta::text(thought.thinking)));
        }
        self.hand_on_answer(thought.answer, events);
    }

    fn hand_on_answer(&mut self, delta: Delta, events: &mut Vec<ChatEvent>) {
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
            completion_tokens: count(self.generated),
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
