//! What becomes of requests.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bombus_core::chat::{
    ChatRequest, ImageSource, KeepAlive, Message, Overflow, Part, Prompt, ResponseFormat, Role, Think, ToolCall,
};
use bombus_core::model::ModelCapability;
use bombus_infer::{BackendError, NamedBackend};
use serde_json::{Value, json};

use super::{chat, generate, saying_good_day};
use crate::testing::{Scripted, get, loopback, model, post, refusing, services, services_over};

async fn generate_seen(more: Value) -> ChatRequest {
    let backend = saying_good_day();
    let seen = backend.seen.clone();
    let answer = generate(backend, more).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    seen.lock().unwrap().remove(0)
}

async fn chat_seen(more: Value) -> ChatRequest {
    let backend = thinker();
    let seen = backend.seen.clone();
    let answer = chat(backend, more).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    seen.lock().unwrap().remove(0)
}

fn thinker() -> Scripted {
    use ModelCapability::{Completion, Insert, Thinking, Tools, Vision};
    Scripted { models: vec![model("m", &[Completion, Tools, Vision, Thinking, Insert])], ..saying_good_day() }
}

#[tokio::test]
async fn a_prompt_becomes_a_conversation_whose_tokens_are_told() {
    let seen = generate_seen(json!({"system": "Be brief.", "context": [1, 2], "template": "{{ .Prompt }}"})).await;
    let expected = ChatRequest {
        earlier_tokens: vec![1, 2],
        return_tokens: true,
        template: Some("{{ .Prompt }}".into()),
        overflow: Overflow { truncate: true, shift: true, keep_tokens: None },
        ..ChatRequest::new(
            "m",
            Prompt::Chat(vec![Message::text(Role::System, "Be brief."), Message::text(Role::User, "hello there")]),
        )
    };
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_raw_prompt_stays_as_it_is() {
    let seen = generate_seen(json!({"raw": true, "truncate": false, "shift": false})).await;
    assert_eq!(seen.prompt, Prompt::Raw("hello there".into()));
    assert_eq!((seen.return_tokens, seen.overflow), (false, Overflow::default()));
}

#[tokio::test]
async fn a_suffix_is_filled_in_to() {
    let backend = thinker();
    let seen = backend.seen.clone();
    assert_eq!(generate(backend, json!({"suffix": "the end"})).await.status, 200);
    let seen = seen.lock().unwrap().remove(0);
    assert_eq!((seen.prompt, seen.suffix.as_deref()), (Prompt::Raw("hello there".into()), Some("the end")));
}

#[tokio::test]
async fn options_and_what_stands_beside_them_are_handed_on() {
    let seen = chat_seen(json!({
        "options": {"temperature": 0, "seed": 7, "num_predict": 5, "num_ctx": 512, "num_keep": 3, "stop": ["."], "num_gpu": 0, "numa": true},
        "keep_alive": "5m", "think": "low", "format": "json", "logprobs": true, "top_logprobs": 4, "shift": false,
    }))
    .await;
    assert_eq!((seen.sampling.temperature, seen.sampling.seed), (Some(0.0), Some(7)));
    assert_eq!((seen.max_tokens, seen.context_tokens, seen.logprobs), (Some(5), Some(512), Some(4)));
    assert_eq!(seen.overflow, Overflow { truncate: true, shift: false, keep_tokens: Some(3) });
    assert_eq!(seen.stop, ["."]);
    assert_eq!(Value::Object(seen.dialect.ollama), json!({"num_gpu": 0, "numa": true}), "Ollama servers know them");
    assert_eq!(seen.keep_alive, Some(KeepAlive::Seconds(300)));
    assert_eq!((seen.think, seen.response_format), (Some(Think::Level("low".into())), ResponseFormat::JsonObject));
}

#[tokio::test]
async fn null_is_taken_for_every_field_that_may_be_missing() {
    let nothing = json!({
        "options": null, "keep_alive": null, "think": null, "format": null, "stream": null, "tools": null,
        "truncate": null, "shift": null, "logprobs": null, "top_logprobs": null,
    });
    assert_eq!(chat_seen(nothing).await, chat_seen(json!({})).await);
    assert_eq!(chat_seen(json!({"format": ""})).await.response_format, ResponseFormat::Text);
}

#[tokio::test]
async fn a_schema_keeps_the_order_of_its_fields() {
    let schema = json!({"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}});
    let ResponseFormat::JsonSchema(seen) = chat_seen(json!({"format": schema})).await.response_format else {
        panic!("a schema is wanted")
    };
    assert_eq!(seen.to_string(), schema.to_string());
}

#[tokio::test]
async fn a_model_that_can_think_does_so_unless_it_is_told_not_to() {
    assert_eq!(chat_seen(json!({})).await.think, Some(Think::On));
    assert_eq!(chat_seen(json!({"think": false})).await.think, Some(Think::Off));
    assert_eq!(generate_seen(json!({})).await.think, None, "this one cannot think");
}

#[tokio::test]
async fn a_developer_speaks_as_the_system_does() {
    let turns = |role: &str| json!({"messages": [{"role": role, "content": "Be brief."}]});
    let seen = chat_seen(turns("Developer")).await;
    assert_eq!(seen.prompt, Prompt::Chat(vec![Message::text(Role::System, "Be brief.")]));
    let refused = chat(saying_good_day(), turns("nobody")).await;
    assert_eq!((refused.status.as_u16(), refused.body.contains("messages[0].role")), (400, true), "{}", refused.body);
}

#[tokio::test]
async fn calls_and_their_answers_find_each_other_without_ids() {
    let call = |name: &str, arguments: Value| json!({"function": {"name": name, "arguments": arguments}});
    let seen = chat_seen(json!({"messages": [
        {"role": "USER", "content": "weather and time?"},
        {"role": "assistant", "thinking": "Tools.", "tool_calls": [
            call("weather", json!({"z": 1, "a": 2})), call("time", json!("{\"in\":\"UTC\"}")), {"id": "own", "function": {"name": "time"}},
        ]},
        {"role": "tool", "tool_name": "time", "content": "noon"},
        {"role": "tool", "content": "sunny"},
        {"role": "tool", "tool_call_id": "own", "content": "midnight"},
    ]}))
    .await;
    let Prompt::Chat(messages) = seen.prompt else { panic!("a conversation is wanted") };
    let calls = |id: &str, name: &str, arguments: &str| ToolCall {
        id: id.into(),
        name: name.into(),
        arguments: arguments.into(),
    };
    assert_eq!(
        messages[1].tool_calls,
        [
            calls("call_1_0", "weather", "{\"z\":1,\"a\":2}"),
            calls("call_1_1", "time", "{\"in\":\"UTC\"}"),
            calls("own", "time", "{}"),
        ]
    );
    assert_eq!(messages[1].thinking.as_deref(), Some("Tools."));
    let answered: Vec<_> =
        messages[2..].iter().map(|message| (message.tool_call_id.as_deref(), message.name.as_deref())).collect();
    assert_eq!(
        answered,
        [(Some("call_1_1"), Some("time")), (Some("call_1_0"), Some("weather")), (Some("own"), Some("time"))]
    );
}

#[tokio::test]
async fn tools_without_parameters_take_none() {
    let seen =
        chat_seen(json!({"tools": [{"type": "function", "function": {"name": "now", "description": "The time"}}]}))
            .await;
    assert_eq!(
        (seen.tools[0].name.as_str(), &seen.tools[0].parameters),
        ("now", &json!({"type": "object", "properties": {}}))
    );
}

#[tokio::test]
async fn pictures_are_known_by_their_first_bytes() {
    for (bytes, expected) in [
        (&b"\x89PNG\r\n\x1a\n...."[..], "image/png"),
        (b"\xff\xd8\xff\xe0....", "image/jpeg"),
        (b"GIF89a..", "image/gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"BM......", "image/bmp"),
        (b"something else", "application/octet-stream"),
    ] {
        let base64 = STANDARD.encode(bytes);
        let broken = format!("{}\r\n{}", &base64[..4], &base64[4..]);
        let of_chat = json!({"messages": [{"role": "user", "content": "What is it?", "images": [broken]}]});
        for seen in [chat_seen(of_chat).await, generate_seen(json!({"images": [broken]})).await] {
            let Prompt::Chat(messages) = seen.prompt else { panic!("a conversation is wanted") };
            let image = ImageSource::Data { media_type: expected.into(), base64: base64.clone() };
            assert_eq!(messages[0].content[1], Part::Image(image.into()));
        }
    }
}

#[tokio::test]
async fn pictures_go_with_a_raw_prompt_which_says_where_they_stand() {
    let base64 = STANDARD.encode([0xff, 0xd8, 0xff]);
    let seen = generate_seen(json!({"raw": true, "prompt": "[img-0]What is it?", "images": [base64]})).await;
    assert_eq!(seen.prompt, Prompt::Raw("[img-0]What is it?".into()));
    assert_eq!(seen.images, [ImageSource::Data { media_type: "image/jpeg".into(), base64 }.into()]);
}

#[tokio::test]
async fn without_anything_to_answer_a_model_is_loaded_or_unloaded() {
    let backend = saying_good_day();
    let moves = backend.moves.clone();
    let router = loopback(services(backend));
    for (path, more, reason) in [
        ("/api/generate", json!({}), "load"),
        ("/api/generate", json!({"prompt": "", "keep_alive": -1}), "load"),
        ("/api/generate", json!({"keep_alive": 0}), "unload"),
        ("/api/chat", json!({"messages": [], "keep_alive": "10m"}), "load"),
        ("/api/chat", json!({"keep_alive": "0s", "stream": false}), "unload"),
    ] {
        let answer = post(&router, path, super::with(json!({"model": "m"}), more)).await;
        let told = answer.json();
        assert_eq!((&told["done"], &told["done_reason"]), (&json!(true), &json!(reason)), "{path}: {told}");
        assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"));
        let text = if path == "/api/chat" { &told["message"]["content"] } else { &told["response"] };
        assert_eq!(text, "");
    }
    let empty = post(&router, "/api/embed", json!({"model": "m", "input": []})).await.json();
    assert_eq!(empty["embeddings"], json!([]));
    post(&router, "/api/embeddings", json!({"model": "m", "keep_alive": 0})).await;
    assert_eq!(
        *moves.lock().unwrap(),
        [
            "load m:latest None",
            "load m:latest Some(Forever)",
            "unload m:latest",
            "load m:latest Some(Seconds(600))",
            "unload m:latest",
            "load m:latest None",
            "unload m:latest",
        ]
    );
}

#[tokio::test]
async fn a_model_is_loaded_where_it_can_be_with_the_options_of_the_request() {
    let down = || refusing(BackendError::Unavailable { reason: "the runner stopped".into() });
    let second = saying_good_day();
    let loads = second.loads_seen.clone();
    let backends = vec![
        NamedBackend::new("first", "ollama", Arc::new(down())),
        NamedBackend::new("second", "ollama", Arc::new(second)),
    ];
    let router = loopback(services_over(backends));
    let request = json!({"model": "m", "keep_alive": 60, "options": {"num_ctx": 8192, "num_gpu": 3}});
    for path in ["/api/generate", "/api/chat", "/api/embed", "/api/embeddings", "/api/generate"] {
        let answer = post(&router, path, request.clone()).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        assert!(answer.header("x-bombus-route").unwrap().contains(";m:latest;second;"), "{path}");
    }
    let states = get(&router, "/backends").await.json();
    assert_eq!(states["backends"][0]["error"], "the runner stopped", "{states}");
    let loads = loads.lock().unwrap();
    for load in loads.iter() {
        assert_eq!((load.keep_alive, load.context_tokens), (Some(KeepAlive::Seconds(60)), Some(8192)));
        assert_eq!(load.dialect.ollama["num_gpu"], 3);
    }
    assert_eq!(loads.len(), 5);
}

#[tokio::test]
async fn the_default_model_answers_where_none_is_named() {
    let backend = saying_good_day();
    let services = crate::Services { default_model: Some("m".into()), ..services(backend) };
    let answer = post(&loopback(services), "/api/generate", json!({"prompt": "hello", "stream": false})).await;
    assert_eq!(answer.json()["model"], "m");
}
