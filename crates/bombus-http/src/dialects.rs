//! What one dialect asks reaches servers of both whole, and so does what they answer: each dialect before real backends of each kind, whose
//! servers are scripted.

use std::sync::Arc;

use axum::Router;
use bombus_infer::openai::Provider;
use bombus_infer::{NamedBackend, OllamaBackend, OllamaConfig, OpenAiBackend, OpenAiConfig};
use bombus_testkit::upstream::{Script, Upstream};
use serde_json::{Value, json};

use crate::testing::{loopback, post, services_over};

/// The first bytes of a picture.
const PICTURE: &str = "iVBORw0KGgo=";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    OpenAi,
    Ollama,
}

use Dialect::{Ollama, OpenAi};

/// Who asks, and who answers.
const PAIRS: [(Dialect, Dialect); 4] = [(OpenAi, OpenAi), (OpenAi, Ollama), (Ollama, OpenAi), (Ollama, Ollama)];

impl Dialect {
    fn path(self) -> &'static str {
        match self {
            OpenAi => "/v1/chat/completions",
            Ollama => "/api/chat",
        }
    }

    /// A server of this dialect that calls a tool, and a node before it.
    async fn served(self) -> (Upstream, Router) {
        let upstream = Upstream::start().await.unwrap();
        upstream.on(&format!("POST {}", self.path()), self.calling());
        let (kind, backend): (_, Arc<dyn bombus_infer::Backend>) = match self {
            OpenAi => {
                let (models, provider) = (vec!["m".to_owned()], Some(Provider::LlamaCpp));
                let config =
                    OpenAiConfig { url: upstream.url().to_owned(), models, provider, ..OpenAiConfig::default() };
                ("openai", Arc::new(OpenAiBackend::new("far", config).unwrap()))
            }
            Ollama => {
                let listed = json!({"name": "m:latest", "model": "m:latest", "digest": "d1", "details": {}});
                let shown = json!({
                    "details": {}, "model_info": {"general.architecture": "llama", "llama.context_length": 8192},
                    "capabilities": ["completion", "tools", "vision", "thinking"],
                });
                upstream.on("GET /", Script::text(200, "Ollama is running"));
                upstream.on("GET /api/version", Script::json(200, &json!({"version": "0.24.0"})));
                upstream.on("GET /api/tags", Script::json(200, &json!({ "models": [listed] })));
                upstream.on("GET /api/ps", Script::json(200, &json!({"models": []})));
                upstream.on("POST /api/show", Script::json(200, &shown));
                let config = OllamaConfig { url: upstream.url().to_owned(), ..OllamaConfig::default() };
                ("ollama", Arc::new(OllamaBackend::new("far", config).unwrap()))
            }
        };
        (upstream, loopback(services_over(vec![NamedBackend::new("far", kind, backend)])))
    }

    /// An answer with a thought, a token of several bytes, and a call.
    fn calling(self) -> Script {
        let other = json!({"token": "?", "logprob": -1.5, "bytes": [226, 130]});
        let token = json!({"token": "€", "logprob": -0.5, "bytes": [226, 130, 172], "top_logprobs": [other]});
        match self {
            OpenAi => {
                let delta = |delta: Value| json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]});
                let call = json!({"index": 0, "id": "c9", "type": "function", "function": {"name": "see", "arguments": "{\"x\":1}"}});
                let mut text = delta(json!({"content": "€"}));
                text["choices"][0]["logprobs"] = json!({ "content": [token] });
                let end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]});
                let usage = json!({"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 3}});
                let thought = delta(json!({"role": "assistant", "content": null, "reasoning_content": "Hm."}));
                Script::events(&[thought, text, delta(json!({ "tool_calls": [call] })), end, usage]).done()
            }
            Ollama => {
                let said = |message: Value| json!({"model": "m", "message": message, "done": false});
                let call = json!({"id": "c9", "function": {"name": "see", "arguments": {"x": 1}}});
                let mut text = said(json!({"role": "assistant", "content": "€"}));
                text["logprobs"] = json!([token]);
                let done = json!({
                    "model": "m", "message": {"role": "assistant", "content": ""}, "done": true, "done_reason": "stop",
                    "prompt_eval_count": 12, "eval_count": 3,
                });
                let thought = said(json!({"role": "assistant", "content": "", "thinking": "Hm."}));
                Script::lines(&[thought, text, said(json!({"content": "", "tool_calls": [call]})), done])
            }
        }
    }

    /// A conversation with everything that a turn may have, as clients of this dialect say it.
    fn conversation(self) -> Value {
        let arguments = json!({"x": 1});
        let (seen, called) = match self {
            OpenAi => {
                let url = format!("data:image/png;base64,{PICTURE}");
                let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "see", "arguments": arguments.to_string()}});
                (
                    json!({"role": "user", "content": [
                        {"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}},
                    ]}),
                    json!({
                        "role": "assistant", "content": null, "reasoning_content": "Hm.", "tool_calls": [call("c1"), call("c2")],
                    }),
                )
            }
            Ollama => {
                let call = |id: &str| json!({"id": id, "function": {"name": "see", "arguments": arguments}});
                (
                    json!({"role": "user", "content": "What?", "images": [PICTURE]}),
                    json!({"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [call("c1"), call("c2")]}),
                )
            }
        };
        let name = if self == OpenAi { "name" } else { "tool_name" };
        json!([
            {"role": "system", "content": "Be brief."}, {"role": "system", "content": "Be kind."}, seen, called,
            {"role": "tool", "content": "a bee", "tool_call_id": "c1", name: "see"},
            {"role": "tool", "content": "a wasp", "tool_call_id": "c2", name: "see"},
            {"role": "user", "content": "So?"},
        ])
    }

    /// The same options in the words of this dialect, and the fields in which its servers get them.
    fn options(self) -> Value {
        let schema = json!({"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}});
        match self {
            OpenAi => json!({
                "temperature": 0.5, "top_p": 0.25, "top_k": 40, "min_p": 0.125, "seed": 7, "repeat_penalty": 1.5, "repeat_last_n": 64,
                "presence_penalty": 0.5, "frequency_penalty": -0.5, "stop": ["END"], "max_tokens": 9, "logprobs": true, "top_logprobs": 1,
                "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": false}},
            }),
            Ollama => json!({
                "options": {
                    "temperature": 0.5, "top_p": 0.25, "top_k": 40, "min_p": 0.125, "seed": 7, "repeat_penalty": 1.5,
                    "repeat_last_n": 64, "presence_penalty": 0.5, "frequency_penalty": -0.5, "stop": ["END"], "num_predict": 9,
                },
                "logprobs": true, "top_logprobs": 1, "format": schema,
            }),
        }
    }

    /// The tool, as both dialects have it.
    fn ask(self) -> Value {
        let function = json!({"name": "see", "description": "Sees.", "parameters": {"type": "object"}});
        let mut request = json!({
            "model": "m", "stream": false, "messages": self.conversation(), "tools": [{"type": "function", "function": function}],
        });
        request.as_object_mut().unwrap().extend(self.options().as_object().unwrap().clone());
        request
    }
}

#[tokio::test]
async fn what_either_dialect_asks_reaches_servers_of_both_whole() {
    for (front, back) in PAIRS {
        let (upstream, router) = back.served().await;
        let answer = post(&router, front.path(), front.ask()).await;
        assert_eq!(answer.status, 200, "{front:?} to {back:?}: {}", answer.body);
        let line = format!("POST {}", back.path());
        let sent = upstream.requests().into_iter().find(|request| request.line == line).unwrap().json();
        let mut expected = back.ask();
        let fields = expected.as_object_mut().unwrap();
        fields.remove("stream");
        for (field, value) in fields {
            assert_eq!(&sent[field], value, "{field}: {front:?} to {back:?}");
        }
    }
}

#[tokio::test]
async fn what_servers_of_either_dialect_answer_reaches_clients_of_both_whole() {
    for (front, back) in PAIRS {
        let (_upstream, router) = back.served().await;
        let answer = post(&router, front.path(), front.ask()).await.json();
        let (place, words) = match front {
            OpenAi => (&answer["choices"][0], ["reasoning_content", "finish_reason", "tool_calls"]),
            Ollama => (&answer, ["thinking", "done_reason", "stop"]),
        };
        let [thoughts, ending, reason] = words;
        let which = format!("{front:?} from {back:?}: {answer}");
        assert_eq!(
            (&place["message"]["content"], &place["message"][thoughts]),
            (&json!("€"), &json!("Hm.")),
            "{which}"
        );
        assert_eq!(place[ending], reason, "{which}");
        let call = &place["message"]["tool_calls"][0];
        assert_eq!((&call["id"], &call["function"]["name"]), (&json!("c9"), &json!("see")), "{which}");
        let arguments = &call["function"]["arguments"];
        let token = match front {
            OpenAi => {
                assert_eq!(arguments.as_str(), Some("{\"x\":1}"), "{which}");
                let usage = &answer["usage"];
                assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(12), &json!(3)), "{which}");
                &place["logprobs"]["content"][0]
            }
            Ollama => {
                assert_eq!(arguments, &json!({"x": 1}), "{which}");
                assert_eq!((&answer["prompt_eval_count"], &answer["eval_count"]), (&json!(12), &json!(3)), "{which}");
                &answer["logprobs"][0]
            }
        };
        assert_eq!((&token["token"], &token["bytes"]), (&json!("€"), &json!([226, 130, 172])), "{which}");
        assert_eq!(token["top_logprobs"][0]["bytes"], json!([226, 130]), "the half of a character: {which}");
    }
}
