//! One request while it is computed.

use std::ops::Range;
use std::time::Instant;

use bombus_core::chat::output::Output;
use bombus_core::chat::{ChatEvent, ChatRequest, FinishReason, Timings, TokenLogprob, Usage};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;

use super::RunError;
use super::endless::EndlessGuard;
use super::prompt::PromptReader;
use super::resume::{Beginning, read_beginning};
use super::sampler::TokenSampler;
use super::schema::grammar_for;
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
    /// What is told before everything else.
    before: Vec<ChatEvent>,
    returns_tokens: bool,
    output: Output,
    tools: Option<ToolFilter>,
    arrived: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    ended: Option<FinishReason>,
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
        let keep_tokens = prompts.keep_tokens(&request);
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
        let (grammar, field) = match prompt.grammar {
            Some(grammar) => (Some(grammar), "tools"),
            None => (grammar_for(&request.response_format)?, "response_format"),
        };
        let is_traced = request.traced && prompt.tools.is_none();
        let output = Output::new(request.stop, prompt.think, is_traced);
        let beginning = request.resume.map(|resume| {
            if prompt.tools.is_some() {
                return Err(RunError::unsupported("tools", "an answer that may call tools cannot be continued"));
            }
            Ok(read_beginning(prompts, &output, &resume))
        });
        let beginning = beginning.transpose()?;
        let seed = request.sampling.seed;
        let banned = if request.ignore_eos { prompts.end_tokens() } else { &[] };
        let grammar = grammar.as_deref().map(|text| (text, field));
        let mut sampler = TokenSampler::new(model, &request.sampling, grammar, banned)?;
        sampler.accept_prompt(&prompt.tokens);
        // What has to have a form gets it when the thoughts are over.
        sampler.hold_grammar(output.is_thinking());
        let wanted = request.max_tokens.map_or(usize::MAX, |max| max as usize);
        let generated_max =
            if request.overflow.shift { EndlessGuard::tokens_max(wanted, context_tokens) } else { wanted };
        let truncated =
            |left_out| ChatEvent::Truncated { messages: count(left_out), prompt_tokens: count(prompt_tokens) };
        let mut run = Self {
            id,
            sampler,
            credit: i64::from(credit),
            logprobs: request.logprobs,
            prompt_tokens,
            cached_tokens: None,
            generated: 0,
            generated_max,
            context_tokens,
            shift_keep: request.overflow.shift.then_some(keep_tokens.min(context_tokens / 2)),
            endless: EndlessGuard::default(),
            before: prompt.left_out.map(truncated).into_iter().collect(),
            returns_tokens: request.return_tokens,
            output,
            tools: prompt.tools.map(ToolFilter::new),
            tokens: prompt.tokens,
            arrived: Instant::now(),
            started: None,
            first_token: None,
            ended: None,
        };
        if let Some(beginning) = beginning {
            run.go_on_from(beginning, seed.is_some(), prompts)?;
        }
        Ok(run)
    }

    /// Brings the run to where another one broke off. Whoever asked has what that one handed on.
    fn go_on_from(
        &mut self,
        beginning: Beginning,
        is_seeded: bool,
        prompts: &PromptReader<'_>,
    ) -> Result<(), RunError> {
        let mut is_stuck = false;
        for (token, is_thought) in beginning.tokens {
            self.sampler.hold_grammar(is_thought);
            self.sampler.accept_answer(token, is_seeded)?;
            self.tokens.push(token);
            is_stuck = self.shift_keep.is_some() && self.endless.is_stuck(&prompts.bytes_of(token, is_thought));
            self.shift();
        }
        self.generated = beginning.generated;
        self.output = beginning.output;
        self.sampler.hold_grammar(self.output.is_thinking());
        self.before = beginning.events;
        self.ended = if beginning.stopped {
            Some(FinishReason::Stop)
        } else {
            (is_stuck || self.is_full()).then_some(FinishReason::Length)
        };
        Ok(())
    }

    /// Returns why the answer ends before anything is computed, if it does: because another run had come to its end.
    pub(crate) fn ended(&self) -> Option<FinishReason> {
        self.ended
    }

    /// Notes that a slot was given, with this many tokens in its cache already.
    pub(crate) fn start(&mut self, cached_tokens: usize) {
        self.started.get_or_insert_with(Instant::now);
        self.cached_tokens.get_or_insert(cached_tokens.min(self.prompt_tokens));
    }

    /// Returns whether the answer has begun.
    pub(crate) fn is_generating(&self) -> bool {
        self.first_token.is_some() || self.generated > 0
    }

    /// Returns whether this run has written, and lost to others what it needs to go on.
    pub(crate) fn catches_up(&self, cached_tokens: usize) -> bool {
        self.first_token.is_some() && self.tokens.len() > cached_tokens + 1
    }

    /// Returns whether the run has to wait until its client takes what was sent.
    pub(crate) fn is_paused(&self) -> bool {
        self.credit <= 0
    }

    /// Returns whether control tokens are to be written out: models of some kinds write tool calls with them.
    pub(crate) fn shows_control_tokens(&self) -> bool {
        self.tools.is_some() || self.output.is_thinking()
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
        events.append(&mut self.before);
        self.tokens.push(token);
        self.generated += 1;
        // Without a moving context the answer ends with its context at the latest.
        let is_stuck = self.shift_keep.is_some() && self.endless.is_stuck(bytes);
        let first = events.len();
        let stopped = self.output.push(Some(token.0.unsigned_abs()), bytes, logprob, events);
        if !self.output.is_thinking() {
            self.sampler.hold_grammar(false);
        }
        self.find_calls(first, events);
        if stopped { Some(FinishReason::Stop) } else { (is_stuck || self.is_full()).then_some(FinishReason::Length) }
    }

    /// Hands on what was held back, and the end.
    pub(crate) fn finish(mut self, mut finish: FinishReason) -> Vec<ChatEvent> {
        let mut events = std::mem::take(&mut self.before);
        let first = events.len();
        self.output.finish(&mut events);
        self.find_calls(first, &mut events);
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

    /// Separates calls of tools, where the model was given any, from the text of the events from `first` on.
    fn find_calls(&mut self, first: usize, events: &mut Vec<ChatEvent>) {
        let Some(tools) = &mut self.tools else { return };
        for event in events.split_off(first) {
            match event {
                ChatEvent::Delta(delta) => events.extend(tools.push(delta)),
                other => events.push(other),
            }
        }
    }

    fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: count(self.prompt_tokens),
            cached_tokens: count(self.cached_tokens.unwrap_or(0)),
            completion_tokens: count(self.generated),
            ..Usage::default()
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
