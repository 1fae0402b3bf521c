//! From what a model writes to the events of its answer: whole characters, thoughts told apart, stop texts found, and, where another run
//! began the answer, nothing of what that one handed on.

mod beginning;
mod text;
mod thinking;

#[cfg(test)]
mod tests;

use self::text::{StopFilter, Utf8Decoder};
use self::thinking::Thought;
use crate::chat::{ChatEvent, Delta, Resume, TokenLogprob, Trace};

pub use beginning::{Part, PartKind};
pub use thinking::ThinkFilter;

/// The way of one answer from a model's bytes to its events.
#[derive(Debug, Clone)]
pub struct Output {
    decoder: Utf8Decoder,
    stops: StopFilter,
    think: Option<ThinkFilter>,
    /// What another run handed on already and has not come by here yet.
    seam: Option<Box<Seam>>,
    /// Tokens that no event has told yet, where events are to tell them.
    untold: Option<Vec<u32>>,
    /// What was left out between the last thought and the answer's first character, if both came at once.
    between: String,
}

/// What is still to be passed over.
#[derive(Debug, Clone, Default)]
struct Seam {
    thinking: String,
    text: String,
    /// Whether something else came than was expected.
    is_broken: bool,
}

/// An [`Output`] that stands where the tokens of an answer so far have brought it.
#[derive(Debug)]
pub struct FollowedTokens {
    /// Goes on from there.
    pub output: Output,
    /// How many of the tokens, from the first on, were written before the answer itself began.
    pub thoughts: usize,
    /// What was not handed on before, although it could have been.
    pub events: Vec<ChatEvent>,
    /// Whether a stop text was reached.
    pub stopped: bool,
}

/// An [`Output`] that stands where the text of an answer so far has brought it.
#[derive(Debug)]
pub struct FollowedText {
    /// Goes on from there.
    pub output: Output,
    /// The answer so far as the model has to read it.
    pub parts: Vec<Part>,
    /// What was not handed on before, although it could have been.
    pub events: Vec<ChatEvent>,
    /// Whether a stop text was reached.
    pub stopped: bool,
}

impl Output {
    /// Begins an answer. It ends at the first of the texts in `stop`; with `think` thoughts are told apart; where it is `traced` every
    /// piece tells what stands behind it, see [`Trace`].
    #[must_use]
    pub fn new(stop: Vec<String>, think: Option<ThinkFilter>, traced: bool) -> Self {
        Self {
            decoder: Utf8Decoder::default(),
            stops: StopFilter::new(stop),
            think,
            seam: None,
            untold: traced.then(Vec::new),
            between: String::new(),
        }
    }

    /// Returns whether the answer itself may not have begun yet.
    #[must_use]
    pub fn is_thinking(&self) -> bool {
        self.think.as_ref().is_some_and(ThinkFilter::is_thinking)
    }

    /// Takes more of what the model writes, with the token that it came from and its log probability where there are any, and adds the
    /// events that may leave. Returns whether a stop text was reached.
    pub fn push(
        &mut self,
        token: Option<u32>,
        bytes: &[u8],
        logprob: Option<TokenLogprob>,
        events: &mut Vec<ChatEvent>,
    ) -> bool {
        let first = events.len();
        let text = self.decoder.push(bytes);
        let (delta, stopped) = self.stops.push(&text, logprob);
        self.hand_on(delta, events);
        if let Some(untold) = &mut self.untold {
            untold.extend(token);
            self.trace(&mut events[first..]);
        }
        stopped
    }

    /// Adds what was held back, at the end of the answer.
    pub fn finish(&mut self, events: &mut Vec<ChatEvent>) {
        let first = events.len();
        let text = self.decoder.finish();
        let (delta, _) = self.stops.push(&text, None);
        self.hand_on(delta, events);
        let rest = self.stops.finish();
        self.hand_on(rest, events);
        if let Some(think) = &mut self.think {
            let thought = think.finish();
            self.hand_on_thought(thought, events);
        }
        self.trace(&mut events[first..]);
    }

    /// Follows an answer by its tokens. `bytes_of` tells a token's bytes; those of control tokens only where its second argument says so.
    /// `None` where the tokens are not those of what was handed on, which counts more than they do. Has to come before everything else.
    #[must_use]
    pub fn follow_tokens(
        &self,
        resume: &Resume,
        tokens: &[u32],
        bytes_of: impl Fn(u32, bool) -> Vec<u8>,
    ) -> Option<FollowedTokens> {
        let mut output = self.silent();
        let (thinking, text) = (resume.thinking.clone(), resume.text.clone());
        output.seam = Some(Box::new(Seam { thinking, text, is_broken: false }));
        let (mut thoughts, mut stopped, mut events) = (0, false, Vec::new());
        for &token in tokens {
            let is_thinking = output.is_thinking();
            thoughts += usize::from(is_thinking);
            stopped = output.push(None, &bytes_of(token, is_thinking), None, &mut events);
            if stopped {
                break;
            }
        }
        let Seam { thinking, text, is_broken } = output.seam.as_deref().cloned().unwrap_or_default();
        // What did not come by has to be what is held back now: it was let go at the end of the answer.
        let mut held = output.think.as_ref().map_or("", ThinkFilter::held).to_owned();
        held.push_str(output.stops.held());
        if is_broken || !held.starts_with(&format!("{thinking}{text}")) {
            return None;
        }
        output.untold.clone_from(&self.untold);
        Some(FollowedTokens { output, thoughts, events, stopped })
    }

    /// Follows an answer by its text. Has to come before everything else.
    #[must_use]
    pub fn follow_text(&self, resume: &Resume) -> FollowedText {
        let mut output = self.silent();
        let (parts, held) = beginning::parts(resume, self.think.as_ref().map(ThinkFilter::is_opened));
        let (mut stopped, mut events) = (false, Vec::new());
        for part in &parts {
            stopped = stopped || output.push(None, &part.bytes, None, &mut events);
        }
        events.clear();
        output.between.clear();
        // All that was handed on already, even where it would be held back here.
        let (mut thinking, mut text) = (String::new(), String::new());
        let handed_on = if resume.text.is_empty() { &mut thinking } else { &mut text };
        handed_on.push_str(output.think.as_ref().map_or("", ThinkFilter::held));
        handed_on.push_str(output.stops.held());
        output.seam = Some(Box::new(Seam { thinking, text, is_broken: false }));
        if let Some(held) = held.as_ref().filter(|_| !stopped) {
            stopped = output.push(None, &held.bytes, None, &mut events);
        }
        output.untold.clone_from(&self.untold);
        FollowedText { output, parts: beginning::joined(parts, held), events, stopped }
    }

    /// Passes over this text too, should it come next: it was handed on already, but the model writes it again.
    pub fn pass_over(&mut self, text: &str) {
        self.seam.get_or_insert_default().text.push_str(text);
    }

    /// Lets the next event tell these tokens too, or the first of `events`, which were made before they were known.
    pub fn tell_tokens(&mut self, tokens: impl IntoIterator<Item = u32>, events: &mut [ChatEvent]) {
        if let Some(untold) = &mut self.untold {
            untold.extend(tokens);
            self.trace(events);
        }
    }

    /// Returns a copy that tells no tokens.
    fn silent(&self) -> Self {
        Self { untold: None, ..self.clone() }
    }

    fn hand_on(&mut self, delta: Delta, events: &mut Vec<ChatEvent>) {
        match &mut self.think {
            None => self.say(delta, events),
            Some(think) => {
                let thought = think.push(delta);
                self.hand_on_thought(thought, events);
            }
        }
    }

    fn hand_on_thought(&mut self, mut thought: Thought, events: &mut Vec<ChatEvent>) {
        if let Some(seam) = self.seam.as_deref_mut() {
            seam.is_broken |= !pass_over(&mut seam.thinking, &mut thought.thinking);
        }
        if !thought.thinking.is_empty() {
            events.push(ChatEvent::Thinking(Delta::text(thought.thinking)));
        }
        if !thought.between.is_empty() {
            self.between = thought.between;
        }
        self.say(thought.answer, events);
    }

    fn say(&mut self, mut delta: Delta, events: &mut Vec<ChatEvent>) {
        if delta.text.is_empty() && delta.logprobs.is_empty() {
            return;
        }
        if let Some(seam) = self.seam.as_deref_mut() {
            let had_text = !delta.text.is_empty();
            seam.is_broken |= !pass_over(&mut seam.text, &mut delta.text);
            if had_text && delta.text.is_empty() {
                return;
            }
        }
        events.push(ChatEvent::Delta(delta));
    }

    /// Tells in events that have just been made what stands behind each of them.
    fn trace(&mut self, events: &mut [ChatEvent]) {
        let Some(untold) = self.untold.as_mut().filter(|_| !events.is_empty()) else { return };
        let mut tokens = Some(std::mem::take(untold));
        let mut held = self.unsaid();
        let mut before_answer = false;
        let between = std::mem::take(&mut self.between);
        let count = events.len();
        for (index, event) in events.iter_mut().rev().enumerate() {
            let delta = match event {
                ChatEvent::Delta(delta) => {
                    before_answer = true;
                    delta
                }
                ChatEvent::Thinking(delta) => {
                    if std::mem::take(&mut before_answer) {
                        held.splice(0..0, between.bytes());
                    }
                    delta
                }
                _ => continue,
            };
            // All of them belong to the first, so that none is missing if that is all that arrives.
            let tokens = if index + 1 == count { tokens.take() } else { None };
            delta.trace = Some(Trace { tokens: tokens.unwrap_or_default(), held: held.clone() });
            held.splice(0..0, delta.text.bytes());
        }
    }

    /// Returns all that was written behind the last character that was handed on.
    fn unsaid(&self) -> Vec<u8> {
        let mut unsaid = self.think.as_ref().map_or_else(String::new, ThinkFilter::unsaid).into_bytes();
        unsaid.extend_from_slice(self.stops.held().as_bytes());
        unsaid.extend_from_slice(self.decoder.tail());
        unsaid
    }
}

/// Takes from the beginning of `text` what is still to be passed over, and returns whether it was as expected.
fn pass_over(expected: &mut String, text: &mut String) -> bool {
    let same = expected.chars().zip(text.chars()).take_while(|(a, b)| a == b);
    let bytes: usize = same.map(|(character, _)| character.len_utf8()).sum();
    text.drain(..bytes);
    expected.drain(..bytes);
    let is_as_expected = expected.is_empty() || text.is_empty();
    if !is_as_expected {
        expected.clear();
    }
    is_as_expected
}
