use std::sync::Arc;

use bombus_core::chat::{ImageSource, Part, ResponseFormat, Resume, Think, Usage};
use bombus_core::model::ModelName;

use super::*;
use crate::ollama::{ChatTemplateRenderer, ModelTemplate};

const TEMPLATE: &str = "{{ range .Messages }}<{{ .Role }}>{{ .Content }}{{ end }}<assistant>";

/// Writes what it is given.
struct Renderer;

impl ChatTemplateRenderer for Renderer {
    fn render(
        &self,
        template: &ModelTemplate<'_>,
        messages: &[Message],
        think: Option<&Think>,
    ) -> Result<String, String> {
        if messages.iter().any(|message| message.joined_text() == "unspeakable") {
            return Err("it will not be said".to_owned());
        }
        assert_eq!(template.source, TEMPLATE);
        let turns = messages.iter().map(|turn| format!("<{}>{}", turn.role.as_str(), turn.joined_text()));
        let opening = if think == Some(&Think::On) { "<think>\n" } else { "" };
        Ok(format!("{}<assistant>{opening}", turns.collect::<String>()))
    }
}

/// A server with a model whose prompts can be made here, and a backend that has asked it what it has.
async fn prepared(with: Value) -> (Upstream, OllamaBackend) {
    let upstream = server().await;
    let mut facts = json!({ "template": TEMPLATE });
    with.as_object().unwrap().iter().for_each(|(key, value)| facts[key] = value.clone());
    upstream.on("POST /api/show", show(&facts));
    let backend = backend(&upstream).with_renderer(Arc::new(Renderer));
    backend.models().await.unwrap();
    (upstream, backend)
}

fn resumed(request: ChatRequest, text: &str, held: &str) -> ChatRequest {
    let resume =
        Resume { text: text.to_owned(), held: held.as_bytes().to_vec(), completion_tokens: 4, ..Resume::default() };
    ChatRequest { resume: Some(resume), ..request }
}

fn generated(texts: &[&str], reason: &str) -> Script {
    let end = json!({"response": "", "done": true, "done_reason": reason, "prompt_eval_count": 16, "eval_count": 2});
    let pieces = texts.iter().map(|text| json!({"response": text, "done": false})).chain([end]);
    Script::lines(&pieces.collect::<Vec<_>>())
}

#[tokio::test]
async fn an_answer_goes_on_behind_the_prompt_that_its_template_makes() {
    let with = json!({"system": "Be brief.", "messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]});
    let (upstream, backend) = prepared(with).await;
    assert!(backend.models().await.unwrap()[0].continues);
    upstream.on("POST /api/generate", generated(&["ee,", " four"], "length"));
    let request = ChatRequest { max_tokens: Some(6), stop: vec!["\n".into()], ..ask("Count") };
    let request = resumed(request, "One, two,", " thr");
    assert!(backend.can_resume(&request));
    let events: Vec<_> = backend.chat(request).await.unwrap().map(Result::unwrap).collect().await;
    let Some(ChatEvent::Done { finish, usage, .. }) = events.last() else { panic!("{events:?}") };
    let whole = Usage { prompt_tokens: 12, completion_tokens: 6, ..Usage::default() };
    assert_eq!((*finish, *usage), (FinishReason::Length, whole));
    let text = events
        .iter()
        .filter_map(|event| if let ChatEvent::Delta(delta) = event { Some(delta.text.as_str()) } else { None });
    assert_eq!(text.collect::<String>(), " three, four");
    let body = requests(&upstream, "POST /api/generate")[0].json();
    assert_eq!(body["prompt"], "<system>Be brief.<user>1<assistant>2<user>Count<assistant>One, two, thr");
    assert_eq!(
        (&body["raw"], &body["options"]["num_predict"], &body["options"]["stop"]),
        (&json!(true), &json!(2), &json!(["\n"]))
    );
}

#[tokio::test]
async fn a_thought_that_broke_off_goes_on() {
    let (upstream, backend) = prepared(json!({"capabilities": ["completion", "thinking"]})).await;
    upstream.on("POST /api/generate", generated(&[" see.\n</th", "ink>\n\nYes"], "stop"));
    let mut request = resumed(ask("Count"), "", "");
    request.resume.as_mut().unwrap().thinking = "Let me".to_owned();
    let events: Vec<_> = backend.chat(request).await.unwrap().map(Result::unwrap).collect().await;
    let texts = events.iter().filter_map(|event| match event {
        ChatEvent::Thinking(delta) => Some(format!("({})", delta.text)),
        ChatEvent::Delta(delta) => Some(delta.text.clone()),
        _ => None,
    });
    assert_eq!(texts.collect::<String>(), "( see.)Yes");
    let body = requests(&upstream, "POST /api/generate")[0].json();
    assert_eq!((&body["prompt"], &body["think"]), (&json!("<user>Count<assistant><think>\nLet me"), &json!(false)));
}

#[tokio::test]
async fn a_stop_text_across_the_seam_ends_the_answer() {
    let (upstream, backend) = prepared(json!({})).await;
    upstream.on("POST /api/generate", generated(&["D", " of all"], "stop"));
    let request = ChatRequest { stop: vec!["END".into()], ..ask("Count") };
    let outcome = run(&backend, resumed(request, "x ", "EN")).await;
    assert_eq!(outcome, Outcome { text: String::new(), finish: Some(FinishReason::Stop), error: None });
}

#[tokio::test]
async fn an_answer_that_is_at_its_end_or_fills_the_context_ends() {
    let (upstream, backend) = prepared(json!({})).await;
    let outcome = run(&backend, resumed(ChatRequest { max_tokens: Some(4), ..ask("Count") }, "One", " tw")).await;
    assert_eq!(outcome, Outcome { text: " tw".to_owned(), finish: Some(FinishReason::Length), error: None });
    assert_eq!(requests(&upstream, "POST /api/generate").len(), 0);
    upstream.on("POST /api/generate", too_long());
    let outcome = run(&backend, resumed(ask("Count"), "One", "")).await;
    assert_eq!(outcome, Outcome { text: String::new(), finish: Some(FinishReason::Length), error: None });
}

#[tokio::test]
async fn what_cannot_go_on_is_known_beforehand() {
    let (upstream, ready) = prepared(json!({})).await;
    let picture = Part::Image(ImageSource::Data { media_type: "image/png".into(), base64: "iVBO".into() }.into());
    let seen = ChatRequest::new(
        "small",
        Prompt::Chat(vec![Message { content: vec![picture], ..Message::text(Role::User, "") }]),
    );
    let with_form = ChatRequest { response_format: ResponseFormat::JsonObject, ..ask("x") };
    for (request, possible) in [(ask("x"), true), (seen, false), (with_form, false)] {
        let request = resumed(request, "One", "");
        assert_eq!(ready.can_resume(&request), possible);
        let refused = if possible { None } else { Some("resume") };
        let error = if possible { None } else { run(&ready, request).await.error };
        let param = error.map(|error| match error {
            BackendError::Unsupported { param, .. } => param,
            other => panic!("{other:?}"),
        });
        assert_eq!(param, refused);
    }
    let error = run(&ready, resumed(ask("unspeakable"), "One", "")).await.error.unwrap();
    assert!(error.to_string().contains("it will not be said"), "{error}");

    // Nobody renders, or there is nothing to render.
    let bare = backend(&upstream);
    assert!(!bare.models().await.unwrap()[0].continues && !bare.can_resume(&resumed(ask("x"), "One", "")));
    for with in [
        json!({"template": "{{ .Prompt }}"}),
        json!({"modelfile": "FROM x\nRENDERER own\nPARSER own\n"}),
        json!({"template": "{{ range .Messages }}<|channel|>{{ end }}"}),
    ] {
        let (_upstream, backend) = prepared(with.clone()).await;
        let name = ModelName::parse("small").unwrap();
        assert!(!backend.model(&name).await.unwrap().unwrap().continues, "{with}");
        assert!(!backend.can_resume(&resumed(ask("x"), "One", "")), "{with}");
    }
}

#[tokio::test]
async fn the_template_of_the_file_stands_in_for_one_that_only_passes_prompts_on() {
    let with = json!({"template": "{{ .Prompt }}", "model_info": {"tokenizer.chat_template": TEMPLATE}});
    let (_upstream, backend) = prepared(with).await;
    assert!(backend.models().await.unwrap()[0].continues);
}
