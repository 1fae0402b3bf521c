//! Answers of the embedded engine that another run began, with a real model.

use std::path::PathBuf;

use bombus_core::chat::{
    ChatEvent, ChatRequest, FinishReason, Message, Prompt, ResponseFormat, Resume, Role, Tool, Usage,
};
use bombus_core::model::ModelName;
use bombus_infer::models::ModelStore;
use bombus_infer::{Backend, BackendError};
use bombus_llama::{EmbeddedBackend, EmbeddedConfig};
use futures::TryStreamExt;
use serde_json::{Value, json};

use crate::harness::{Home, within};
use crate::model::{MODEL, home_with_model};

/// The embedded engine on its own, without a node around it.
struct Engine {
    backend: EmbeddedBackend,
    sha256: String,
    _home: Home,
}

/// What came of an answer, as far as it was read.
#[derive(Debug, Clone, Default, PartialEq)]
struct Had {
    text: String,
    tokens: Vec<u32>,
    held: Vec<u8>,
    end: Option<(FinishReason, Usage)>,
}

impl Had {
    fn of(events: &[ChatEvent]) -> Self {
        let mut had = Self::default();
        events.iter().for_each(|event| had.take(event));
        had
    }

    fn take(&mut self, event: &ChatEvent) {
        match event {
            ChatEvent::Delta(delta) => {
                self.text.push_str(&delta.text);
                if let Some(trace) = &delta.trace {
                    self.tokens.extend(&trace.tokens);
                    self.held.clone_from(&trace.held);
                }
            }
            ChatEvent::Done { finish, usage, .. } => self.end = Some((*finish, *usage)),
            other => panic!("{other:?}"),
        }
    }

    /// The beginning of an answer for weights that have the same tokens, or for others.
    fn resume(&self, sha256: Option<&str>) -> Resume {
        Resume {
            sha256: sha256.map(str::to_owned),
            tokens: self.tokens.clone(),
            text: self.text.clone(),
            held: self.held.clone(),
            completion_tokens: u32::try_from(self.tokens.len()).unwrap(),
            ..Resume::default()
        }
    }
}

impl Engine {
    async fn start(config: EmbeddedConfig) -> Self {
        let home = home_with_model("").await;
        let store = ModelStore::open(home.data_dir().join("models")).unwrap();
        let program = PathBuf::from(env!("CARGO_BIN_EXE_bombus"));
        let backend = EmbeddedBackend::start(EmbeddedConfig { threads: 2, ..config }, store, program);
        let info = backend.model(&ModelName::parse(MODEL).unwrap()).await.unwrap().unwrap();
        assert!(info.continues, "every model that generates can be continued");
        Self { backend, sha256: info.sha256.unwrap(), _home: home }
    }

    async fn try_run(&self, request: ChatRequest) -> Result<Vec<ChatEvent>, BackendError> {
        let answer = async { self.backend.chat(request).await?.try_collect().await };
        within("an answer", answer).await
    }

    async fn run(&self, request: &ChatRequest) -> Vec<ChatEvent> {
        self.try_run(request.clone()).await.unwrap()
    }

    /// Goes on from what was had, and returns that with what came: the same tokens, or the same text with `by_text`.
    async fn go_on(&self, request: &ChatRequest, had: &Had, by_text: bool) -> Had {
        let sha256 = if by_text { None } else { Some(self.sha256.as_str()) };
        let events = self.run(&ChatRequest { resume: Some(had.resume(sha256)), ..request.clone() }).await;
        let mut had = had.clone();
        if by_text {
            // Such a run tells the tokens of the beginning too.
            had.tokens.clear();
        }
        events.iter().for_each(|event| had.take(event));
        had
    }
}

fn ask(text: &str, max_tokens: u32) -> ChatRequest {
    let prompt = Prompt::Chat(vec![Message::text(Role::User, text)]);
    let mut request = ChatRequest { max_tokens: Some(max_tokens), traced: true, ..ChatRequest::new(MODEL, prompt) };
    request.sampling.temperature = Some(0.0);
    request
}

#[tokio::test]
async fn an_answer_that_breaks_off_goes_on_without_a_seam() {
    let engine = Engine::start(EmbeddedConfig::default()).await;
    let (mut same, mut same_by_text, mut cuts) = (0, 0, 0);
    for question in ["Count from one to thirty in words.", "Repeat after me: Ünïcödé 🐝🐝🐝 naïve 東京 café."]
    {
        let request = ask(question, 48);
        let events = engine.run(&request).await;
        let whole = Had::of(&events);
        let (finish, usage) = whole.end.unwrap();
        for cut in (0..events.len() - 1).step_by(5) {
            let had = Had::of(&events[..cut]);
            let told = engine.go_on(&request, &had, false).await;
            assert!(told.text.starts_with(&had.text), "{told:?}");
            let (_, resumed) = told.end.unwrap();
            assert_eq!(resumed.prompt_tokens, usage.prompt_tokens);
            assert_eq!(resumed.completion_tokens as usize, told.tokens.len(), "every token is told once");
            let by_text = engine.go_on(&request, &had, true).await;
            assert_eq!(by_text.end.unwrap().1.prompt_tokens, usage.prompt_tokens);
            cuts += 1;
            same += u32::from((&told.text, told.end.unwrap().0) == (&whole.text, finish));
            same_by_text += u32::from(by_text.text == whole.text);
        }
    }
    println!("of {cuts} continuations {same} by tokens and {same_by_text} by text gave the undisturbed answer");
    assert!(same * 10 >= cuts * 9, "{same} of {cuts} are the undisturbed answer");
    assert!(same_by_text * 2 >= cuts, "{same_by_text} of {cuts} are the undisturbed answer");
    engine.backend.shutdown().await;
}

#[tokio::test]
async fn a_seeded_answer_goes_on_with_the_numbers_that_come_next() {
    let engine = Engine::start(EmbeddedConfig::default()).await;
    let mut request = ask("Tell me a story.", 32);
    request.sampling.temperature = Some(1.2);
    request.sampling.seed = Some(42);
    request.sampling.repeat_penalty = Some(1.3);
    let events = engine.run(&request).await;
    let whole = Had::of(&events);
    for cut in [1, 7, 20] {
        let told = engine.go_on(&request, &Had::of(&events[..cut]), false).await;
        assert_eq!(told.text, whole.text, "from {cut}");
    }
    engine.backend.shutdown().await;
}

#[tokio::test]
async fn a_stop_text_is_found_where_the_seam_goes_through_it() {
    let engine = Engine::start(EmbeddedConfig::default()).await;
    let free = Had::of(&engine.run(&ask("Count from one to twenty in words.", 40)).await);
    let stop: String = free.text.chars().skip(17).take(9).collect();
    let request = ChatRequest { stop: vec![stop.clone()], ..ask("Count from one to twenty in words.", 40) };
    let events = engine.run(&request).await;
    let whole = Had::of(&events);
    assert_eq!(
        (whole.text.as_str(), whole.end.unwrap().0),
        (&free.text[..free.text.find(&stop).unwrap()], FinishReason::Stop)
    );
    for cut in (0..events.len() - 1).step_by(3) {
        let had = Had::of(&events[..cut]);
        for by_text in [false, true] {
            let told = engine.go_on(&request, &had, by_text).await;
            assert_eq!((&told.text, told.end.unwrap().0), (&whole.text, FinishReason::Stop), "from {cut}");
        }
    }
    // The cut that matters, whatever the model's tokens are: a part of the stop text stands before the seam.
    let half: String = stop.chars().take(4).collect();
    let had = Had { text: whole.text.clone(), held: half.into_bytes(), ..Had::default() };
    let told = engine.go_on(&request, &had, true).await;
    assert_eq!((&told.text, told.end.unwrap().0), (&whole.text, FinishReason::Stop));
    engine.backend.shutdown().await;
}

#[tokio::test]
async fn an_answer_with_a_form_keeps_it_across_the_seam() {
    let engine = Engine::start(EmbeddedConfig::default()).await;
    let schema = json!({
        "type": "object",
        "properties": { "name": { "type": "string", "maxLength": 12 }, "legs": { "type": "integer", "maximum": 99 } },
        "required": ["name", "legs"], "additionalProperties": false,
    });
    let request = ChatRequest {
        response_format: ResponseFormat::JsonSchema(schema),
        ..ask("Describe a bee as JSON with the members name and legs.", 60)
    };
    let events = engine.run(&request).await;
    for cut in (0..events.len() - 1).step_by(3) {
        for by_text in [false, true] {
            let told = engine.go_on(&request, &Had::of(&events[..cut]), by_text).await;
            let parsed: Value = serde_json::from_str(&told.text).unwrap_or_else(|error| panic!("{error}: {told:?}"));
            assert!(parsed["name"].is_string() && parsed["legs"].is_i64(), "{parsed}");
        }
    }
    let broken = Had { text: "Bees have".to_owned(), ..Had::default() };
    let error = engine.try_run(ChatRequest { resume: Some(broken.resume(None)), ..request }).await.unwrap_err();
    assert!(error.to_string().contains("demanded form"), "{error}");
    engine.backend.shutdown().await;
}

#[tokio::test]
async fn an_answer_that_had_come_to_its_end_ends_at_once() {
    let engine = Engine::start(EmbeddedConfig { context_tokens: 128, ..EmbeddedConfig::default() }).await;
    let request = ask("Count from one to twenty in words.", 12);
    let events = engine.run(&request).await;
    let whole = Had::of(&events);
    let had = Had::of(&events[..events.len() - 1]);
    for by_text in [false, true] {
        let told = engine.go_on(&request, &had, by_text).await;
        assert_eq!((&told.text, told.end.unwrap().0), (&whole.text, FinishReason::Length));
        assert_eq!(told.end.unwrap().1.completion_tokens, 12);
    }
    let stopped = ChatRequest { stop: vec![whole.text[3..8].to_owned()], ..request.clone() };
    let told = engine.go_on(&stopped, &Had { end: None, ..had }, true).await;
    assert_eq!(told.end.unwrap().0, FinishReason::Stop);

    // A context that is full with what the other run wrote ends the answer as it would have there.
    let endless = ChatRequest { max_tokens: None, ignore_eos: true, ..request };
    let events = engine.run(&endless).await;
    let whole = Had::of(&events);
    assert_eq!(whole.end.unwrap().0, FinishReason::Length);
    let told = engine.go_on(&endless, &Had::of(&events[..events.len() - 1]), false).await;
    assert_eq!((&told.text, told.end.unwrap().0), (&whole.text, FinishReason::Length));
    engine.backend.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_continued_is_refused() {
    let engine = Engine::start(EmbeddedConfig::default()).await;
    let tool = Tool { name: "look".into(), description: None, parameters: json!({ "type": "object" }), strict: None };
    let request = ChatRequest { tools: vec![tool], resume: Some(Resume::default()), ..ask("Hi", 5) };
    assert!(!engine.backend.can_resume(&request));
    let error = engine.try_run(request).await.unwrap_err();
    assert!(matches!(error, BackendError::Unsupported { param: "tools", .. }), "{error:?}");
    engine.backend.shutdown().await;
}
