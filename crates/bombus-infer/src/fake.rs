//! A scripted backend: fixed models, replies, pace and failures, for tests, benchmarks and trying out clients.

use std::time::Duration;

use async_trait::async_trait;
use bombus_core::chat::{
    ChatEvent, ChatRequest, Delta, EmbedInput, EmbedRequest, EmbedResponse, FinishReason, Message, Prompt, Resume,
    Role, Timings, Trace, Usage,
};
use bombus_core::model::{ModelCapability, ModelInfo, ModelName};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::{Backend, BackendError, ChatStream, Health};

/// The script of a [`FakeBackend`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FakeConfig {
    /// Models that it claims to have.
    pub models: Vec<ModelName>,
    /// `echo` repeats the last user message; anything else is the answer itself.
    pub reply: String,
    /// Number of tokens to send, the reply repeated or cut as needed; an empty reply stays empty. `None`: the reply once.
    pub tokens: Option<u32>,
    /// Time to the first token.
    pub first_token_ms: u64,
    /// Time between tokens.
    pub token_ms: u64,
    /// How it fails, if it does.
    pub fail: Option<FakeFailure>,
    /// Whether it goes on with answers that another run began.
    pub continues: bool,
    /// What it says is the SHA-256 of its models' weights. Fakes with the same one and the same reply go on from each other's tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl Default for FakeConfig {
    fn default() -> Self {
        Self {
            models: vec![ModelName::parse("fake").expect("a plain word is a model name")],
            reply: "echo".to_owned(),
            tokens: None,
            first_token_ms: 0,
            token_ms: 0,
            fail: None,
            continues: true,
            sha256: None,
        }
    }
}

/// A scripted failure, written `refuse`, `after:N`, `hang` or `garbage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FakeFailure {
    /// Every request fails before it begins.
    Refuse,
    /// The stream breaks off after it has written this many tokens, the making of vectors after this many inputs.
    After(u32),
    /// Nothing ever comes.
    Hang,
    /// Replacement characters come instead of the reply, zeros instead of vectors.
    Garbage,
}

impl TryFrom<String> for FakeFailure {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "refuse" => Ok(Self::Refuse),
            "hang" => Ok(Self::Hang),
            "garbage" => Ok(Self::Garbage),
            other => other
                .strip_prefix("after:")
                .and_then(|count| count.parse().ok())
                .map(Self::After)
                .ok_or_else(|| format!("{text:?} is not one of refuse, after:N, hang, garbage")),
        }
    }
}

impl From<FakeFailure> for String {
    fn from(failure: FakeFailure) -> Self {
        match failure {
            FakeFailure::Refuse => "refuse".into(),
            FakeFailure::After(count) => format!("after:{count}"),
            FakeFailure::Hang => "hang".into(),
            FakeFailure::Garbage => "garbage".into(),
        }
    }
}

/// A backend that follows a script.
#[derive(Debug, Clone)]
pub struct FakeBackend {
    config: FakeConfig,
}

impl FakeBackend {
    /// Takes the script.
    #[must_use]
    pub fn new(config: FakeConfig) -> Self {
        Self { config }
    }

    /// Fails, or never returns, where the script says so of every request.
    async fn begin(&self) -> Result<(), BackendError> {
        match self.config.fail {
            Some(FakeFailure::Refuse) => {
                Err(BackendError::Unavailable { reason: "the fake backend refuses, as configured".into() })
            }
            Some(FakeFailure::Hang) => std::future::pending().await,
            _ => Ok(()),
        }
    }

    fn check_model(&self, model: &str) -> Result<(), BackendError> {
        let known = ModelName::parse(model).is_ok_and(|name| self.config.models.contains(&name));
        if known { Ok(()) } else { Err(BackendError::ModelNotFound { model: model.to_owned() }) }
    }
}

/// Vectors of the fake model have this many dimensions.
const EMBEDDING_DIMENSIONS: usize = 8;

#[async_trait]
impl Backend for FakeBackend {
    async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
        let describe = |name: &ModelName| ModelInfo {
            family: Some("fake".into()),
            context_tokens: Some(1 << 20),
            capabilities: vec![ModelCapability::Completion, ModelCapability::Tools, ModelCapability::Embedding],
            warm: true,
            continues: self.config.continues,
            sha256: self.config.sha256.clone(),
            ..ModelInfo::named(name.clone())
        };
        Ok(self.config.models.iter().map(describe).collect())
    }

    async fn chat(&self, request: ChatRequest) -> Result<ChatStream, BackendError> {
        self.check_model(&request.model)?;
        if request.resume.is_some() && !self.config.continues {
            let message = "the fake backend goes on with no answer, as configured".to_owned();
            return Err(BackendError::Unsupported { param: "resume", message });
        }
        self.begin().await?;
        Ok(Box::pin(answer(self.config.clone(), request)))
    }

    async fn embed(&self, request: EmbedRequest) -> Result<EmbedResponse, BackendError> {
        self.check_model(&request.model)?;
        self.begin().await?;
        if let Some(FakeFailure::After(count)) = self.config.fail
            && request.inputs.len() > count as usize
        {
            return Err(BackendError::Interrupted { reason: "the fake backend fails here, as configured".into() });
        }
        if self.config.fail == Some(FakeFailure::Garbage) {
            let vectors = vec![vec![0.0; EMBEDDING_DIMENSIONS]; request.inputs.len()];
            return Ok(EmbedResponse::new(vectors, 0));
        }
        let words = |input: &EmbedInput| match input {
            EmbedInput::Text(text) => split_tokens(text).len(),
            EmbedInput::Tokens(tokens) => tokens.len(),
        };
        let prompt_tokens = request.inputs.iter().map(words).sum::<usize>() as u32;
        Ok(EmbedResponse::new(request.inputs.iter().map(unit_vector).collect(), prompt_tokens))
    }

    async fn health(&self) -> Health {
        match self.config.fail {
            Some(FakeFailure::Refuse) => Health::Unavailable("refuses, as configured".into()),
            _ => Health::Ready,
        }
    }
}

fn answer(config: FakeConfig, request: ChatRequest) -> impl futures::Stream<Item = Result<ChatEvent, BackendError>> {
    async_stream::stream! {
        let begun = Instant::now();
        let prompt = prompt_text(&request.prompt);
        let reply = if config.reply == "echo" { prompt.last } else { config.reply };
        let pieces = split_tokens(&reply);
        let wanted = if pieces.is_empty() { 0 } else { config.tokens.unwrap_or(pieces.len() as u32) };
        let count = wanted.min(request.max_tokens.unwrap_or(u32::MAX));
        let Place { written, mut rest, mut untold } = place_in(&pieces, request.resume.as_ref(), config.sha256.as_deref());

        // Even a sleep of no time takes until the timer's next tick, a millisecond.
        if config.first_token_ms > 0 {
            sleep(Duration::from_millis(config.first_token_ms)).await;
        }
        let first_token = Instant::now();
        for (index, at) in (written..count).enumerate() {
            if config.fail == Some(FakeFailure::After(index as u32)) {
                yield Err(BackendError::Interrupted { reason: "the fake backend fails here, as configured".into() });
                return;
            }
            if index > 0 && config.token_ms > 0 {
                sleep(Duration::from_millis(config.token_ms)).await;
            }
            let token = at % pieces.len() as u32;
            let piece = pieces[token as usize];
            let text = match config.fail {
                Some(FakeFailure::Garbage) => "\u{fffd}",
                _ => &piece[piece.len() - rest.take().unwrap_or(piece.len())..],
            };
            untold.push(token);
            let trace = request.traced.then(|| Trace { tokens: std::mem::take(&mut untold), held: Vec::new() });
            yield Ok(ChatEvent::Delta(Delta { trace, ..Delta::text(text) }));
        }
        yield Ok(ChatEvent::Done {
            finish: if count < wanted { FinishReason::Length } else { FinishReason::Stop },
            usage: Usage {
                prompt_tokens: prompt.tokens,
                completion_tokens: count.max(written),
                ..Usage::default()
            },
            timings: Timings {
                prompt_ms: (first_token - begun).as_secs_f64() * 1000.0,
                generate_ms: first_token.elapsed().as_secs_f64() * 1000.0,
                ..Timings::default()
            },
            tokens: Vec::new(),
        });
    }
}

/// Where in its reply a run begins.
#[derive(Default)]
struct Place {
    /// Tokens that are written already.
    written: u32,
    /// How many bytes of the next one are left, where a part of it was handed on.
    rest: Option<usize>,
    /// The tokens of the beginning, which whoever goes on by the text tells with its own first one.
    untold: Vec<u32>,
}

/// Finds the place behind the beginning of an answer: by its tokens where they are the fake's own, else by its text.
fn place_in(pieces: &[&str], resume: Option<&Resume>, sha256: Option<&str>) -> Place {
    let Some(resume) = resume.filter(|_| !pieces.is_empty()) else { return Place::default() };
    if let Some(tokens) = resume.tokens_for(sha256) {
        return Place { written: tokens.len() as u32, ..Place::default() };
    }
    let mut left = resume.text.as_str();
    let mut untold = Vec::new();
    for (token, piece) in (0..pieces.len() as u32).zip(pieces).cycle() {
        if left.is_empty() {
            break;
        }
        let Some(after) = left.strip_prefix(piece) else {
            // A part of it was handed on, or something else was: then as much of that counts as written.
            if piece.starts_with(left) {
                return Place { written: untold.len() as u32, rest: Some(piece.len() - left.len()), untold };
            }
            let written = untold.len() + split_tokens(left).len();
            return Place { written: written as u32, rest: None, untold };
        };
        untold.push(token);
        left = after;
    }
    Place { written: untold.len() as u32, rest: None, untold }
}

struct PromptText {
    last: String,
    tokens: u32,
}

fn prompt_text(prompt: &Prompt) -> PromptText {
    match prompt {
        Prompt::Chat(messages) => PromptText {
            last: messages.iter().rfind(|m| m.role == Role::User).map(Message::joined_text).unwrap_or_default(),
            tokens: messages.iter().map(|m| split_tokens(&m.joined_text()).len() as u32).sum(),
        },
        Prompt::Raw(text) => PromptText { last: text.clone(), tokens: split_tokens(text).len() as u32 },
        Prompt::Tokens(tokens) => PromptText { last: format!("{tokens:?}"), tokens: tokens.len() as u32 },
    }
}

/// Cuts a text into words that keep the spaces before them, so that joining them gives the text again.
fn split_tokens(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut start = 0;
    let mut previous = ' ';
    for (at, character) in text.char_indices() {
        if character == ' ' && previous != ' ' {
            pieces.push(&text[start..at]);
            start = at;
        }
        previous = character;
    }
    if start < text.len() {
        pieces.push(&text[start..]);
    }
    pieces
}

/// Spreads an input's bytes over a vector of length 1, so that equal inputs give equal vectors.
fn unit_vector(input: &EmbedInput) -> Vec<f32> {
    let bytes = match input {
        EmbedInput::Text(text) => text.clone().into_bytes(),
        EmbedInput::Tokens(tokens) => tokens.iter().flat_map(|token| token.to_le_bytes()).collect(),
    };
    let mut vector = [1.0_f32; EMBEDDING_DIMENSIONS];
    for (index, byte) in bytes.iter().enumerate() {
        vector[index % EMBEDDING_DIMENSIONS] += f32::from(*byte);
    }
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.iter().map(|value| value / length).collect()
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    fn ask(text: &str) -> ChatRequest {
        ChatRequest::new("fake", Prompt::Chat(vec![Message::text(Role::User, text)]))
    }

    async fn run(config: FakeConfig, request: ChatRequest) -> Vec<Result<ChatEvent, BackendError>> {
        FakeBackend::new(config).chat(request).await.unwrap().collect().await
    }

    fn text_of(events: &[Result<ChatEvent, BackendError>]) -> String {
        events
            .iter()
            .filter_map(|event| match event {
                Ok(ChatEvent::Delta(delta)) => Some(delta.text.as_str()),
                _ => None,
            })
            .collect()
    }

    #[tokio::test]
    async fn echo_returns_the_text_unchanged() {
        let said = " two  spaces, ümläut\nand a line ";
        let events = run(FakeConfig::default(), ask(said)).await;
        assert_eq!(text_of(&events), said);
        assert!(matches!(events.last(), Some(Ok(ChatEvent::Done { finish: FinishReason::Stop, .. }))));
    }

    #[tokio::test]
    async fn max_tokens_ends_the_reply_early_and_says_so() {
        let request = ChatRequest { max_tokens: Some(2), ..ask("a b c d") };
        let events = run(FakeConfig::default(), request).await;
        assert_eq!(text_of(&events), "a b");
        assert!(matches!(events.last(), Some(Ok(ChatEvent::Done { finish: FinishReason::Length, .. }))));
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_come_at_the_configured_pace() {
        let config = FakeConfig { tokens: Some(5), first_token_ms: 100, token_ms: 10, ..FakeConfig::default() };
        let begun = Instant::now();
        let events = run(config, ask("x")).await;
        assert_eq!(begun.elapsed(), Duration::from_millis(140));
        assert_eq!(events.len(), 6);
    }

    #[tokio::test]
    async fn a_configured_failure_breaks_the_stream_off() {
        let config = FakeConfig { fail: Some(FakeFailure::After(1)), ..FakeConfig::default() };
        let events = run(config, ask("a b c")).await;
        assert_eq!(text_of(&events), "a");
        assert!(matches!(events.last(), Some(Err(BackendError::Interrupted { .. }))));
    }

    #[tokio::test]
    async fn an_empty_reply_counts_no_tokens() {
        let config = FakeConfig { tokens: Some(5), reply: String::new(), ..FakeConfig::default() };
        let events = run(config, ask("a b")).await;
        let [Ok(ChatEvent::Done { usage, finish: FinishReason::Stop, .. })] = &events[..] else { panic!("{events:?}") };
        assert_eq!(usage.completion_tokens, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn vectors_fail_as_answers_do() {
        let embed = async |fail| {
            let inputs = ["a", "b"].map(|text| EmbedInput::Text(text.to_owned())).to_vec();
            let backend = FakeBackend::new(FakeConfig { fail: Some(fail), ..FakeConfig::default() });
            let work = backend.embed(EmbedRequest::new("fake", inputs));
            tokio::time::timeout(Duration::from_secs(60), work).await.map(|answer| answer.map(|answer| answer.vectors))
        };
        assert!(matches!(embed(FakeFailure::Refuse).await, Ok(Err(BackendError::Unavailable { .. }))));
        assert!(matches!(embed(FakeFailure::After(1)).await, Ok(Err(BackendError::Interrupted { .. }))));
        assert!(matches!(embed(FakeFailure::After(2)).await, Ok(Ok(vectors)) if vectors.len() == 2));
        assert_eq!(embed(FakeFailure::Garbage).await, Ok(Ok(vec![vec![0.0; EMBEDDING_DIMENSIONS]; 2])));
        assert!(embed(FakeFailure::Hang).await.is_err());
    }

    async fn go_on(config: FakeConfig, request: ChatRequest, resume: Resume) -> Vec<Result<ChatEvent, BackendError>> {
        run(config, ChatRequest { resume: Some(resume), traced: true, ..request }).await
    }

    #[tokio::test]
    async fn it_goes_on_from_any_place_and_counts_the_whole_answer() {
        let said = " two  spaces, ümläut\nand a line ";
        let whole = run(FakeConfig::default(), ask(said)).await;
        for (cut, _) in said.char_indices() {
            let resume = Resume { text: said[..cut].to_owned(), ..Resume::default() };
            let events = go_on(FakeConfig::default(), ask(said), resume).await;
            assert_eq!(text_of(&events), said[cut..]);
            let usage = |events: &[Result<ChatEvent, BackendError>]| match events.last() {
                Some(Ok(ChatEvent::Done { usage, .. })) => *usage,
                other => panic!("{other:?}"),
            };
            assert_eq!(usage(&events), usage(&whole));
        }
    }

    #[tokio::test]
    async fn it_goes_on_from_tokens_of_the_same_weights_alone() {
        let config = FakeConfig { sha256: Some("aa".into()), tokens: Some(6), ..FakeConfig::default() };
        // The tokens say another place than the text does, so that it shows which of them counted.
        let resume = Resume { tokens: vec![0, 1, 2], text: "a b".into(), ..Resume::default() };
        let same = Resume { sha256: Some("aa".into()), ..resume.clone() };
        assert_eq!(text_of(&go_on(config.clone(), ask("a b c d"), same).await), " da b");
        let other = Resume { sha256: Some("bb".into()), ..resume };
        let events = go_on(config, ask("a b c d"), other).await;
        assert_eq!(text_of(&events), " c da b");
        let Some(Ok(ChatEvent::Delta(Delta { trace: Some(trace), .. }))) = events.first() else { panic!("{events:?}") };
        assert_eq!(trace.tokens, [0, 1, 2], "who goes on by the text tells all tokens");
    }

    #[tokio::test]
    async fn a_fake_that_goes_on_with_nothing_says_so() {
        let config = FakeConfig { continues: false, ..FakeConfig::default() };
        let backend = FakeBackend::new(config);
        let request = ChatRequest { resume: Some(Resume::default()), ..ask("a b") };
        assert!(matches!(backend.chat(request).await.err(), Some(BackendError::Unsupported { param: "resume", .. })));
        assert!(!backend.models().await.unwrap()[0].continues);
    }

    #[test]
    fn failures_are_read_from_their_written_form() {
        let parse = |text: &str| FakeFailure::try_from(text.to_owned());
        assert_eq!(parse("after:12"), Ok(FakeFailure::After(12)));
        assert!(parse("after:x").is_err() && parse("later").is_err());
    }
}
