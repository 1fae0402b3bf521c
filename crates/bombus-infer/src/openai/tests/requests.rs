use bombus_core::chat::{
    DialectOptions, Image, ImageSource, Overflow, Part, ResponseFormat, Sampling, SchemaLabel, Think, Tool, ToolCall,
    ToolChoice,
};

use super::*;

fn written(request: &ChatRequest, provider: Provider) -> Value {
    Value::Object(request::body(request, "m", provider).unwrap())
}

/// Builds the body without what stands in every one.
fn special(request: &ChatRequest, provider: Provider) -> Value {
    let mut body = written(request, provider);
    for field in ["model", "messages", "prompt", "stream", "stream_options"] {
        body.as_object_mut().unwrap().remove(field);
    }
    body
}

fn raw() -> ChatRequest {
    ChatRequest::new("m", Prompt::Raw("x".to_owned()))
}

#[test]
fn a_conversation_is_said_with_all_that_is_in_it() {
    let call = ToolCall { id: "c1".to_owned(), name: "see".to_owned(), arguments: "{\"x\":1}".to_owned() };
    let data = ImageSource::Data { media_type: "image/png".to_owned(), base64: "iVBO".to_owned() };
    let closely = Image { detail: Some("high".to_owned()), ..Image::from(ImageSource::Url("https://a/b".to_owned())) };
    let look = vec![Part::Text("Look".to_owned()), Part::Image(data.into()), Part::Image(closely)];
    let messages = vec![
        Message::text(Role::System, "Be brief."),
        Message { content: look, name: Some("Ann".to_owned()), ..Message::text(Role::User, "") },
        Message {
            content: Vec::new(),
            tool_calls: vec![call],
            thinking: Some("Hm.".to_owned()),
            ..Message::text(Role::Assistant, "")
        },
        Message { tool_call_id: Some("c1".to_owned()), ..Message::text(Role::Tool, "a bee") },
    ];
    let request = ChatRequest::new("m", Prompt::Chat(messages));
    let function = json!({"name": "see", "arguments": "{\"x\":1}"});
    let mut said = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "name": "Ann", "content": [
            {"type": "text", "text": "Look"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}},
            {"type": "image_url", "image_url": {"url": "https://a/b", "detail": "high"}},
        ]},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "content": "a bee", "tool_call_id": "c1"},
    ]);
    let expected = |messages: &Value| json!({"model": "m", "messages": messages, "stream": true, "stream_options": {"include_usage": true}});
    assert_eq!(written(&request, Provider::OpenAi), expected(&said));
    said[2]["reasoning_content"] = json!("Hm.");
    assert_eq!(written(&request, Provider::LlamaCpp), expected(&said));
}

#[test]
fn tools_go_with_the_choice_among_them() {
    let tool = Tool {
        name: "see".to_owned(),
        description: Some("Sees.".to_owned()),
        parameters: json!({"type": "object"}),
        strict: Some(true),
    };
    let request = ChatRequest { tools: vec![tool], ..ask("x") };
    let tools = json!([{"type": "function", "function": {"name": "see", "description": "Sees.", "parameters": {"type": "object"}, "strict": true}}]);
    assert_eq!(special(&request, Provider::Other), json!({"tools": tools}));
    for (choice, said) in [
        (ToolChoice::None, json!("none")),
        (ToolChoice::Required, json!("required")),
        (ToolChoice::Named("see".to_owned()), json!({"type": "function", "function": {"name": "see"}})),
    ] {
        let request = ChatRequest { tool_choice: choice.clone(), ..request.clone() };
        assert_eq!(special(&request, Provider::Other), json!({"tools": tools, "tool_choice": said}));
        assert_eq!(special(&ChatRequest { tool_choice: choice, ..ask("x") }, Provider::Other), json!({}));
    }
    // llama-server passes over a name.
    let other = Tool { name: "hear".to_owned(), ..request.tools[0].clone() };
    let two = ChatRequest { tools: vec![other, request.tools[0].clone()], ..request };
    let named = ChatRequest { tool_choice: ToolChoice::Named("see".to_owned()), ..two };
    assert_eq!(special(&named, Provider::LlamaCpp), json!({"tools": tools, "tool_choice": "required"}));
    assert_eq!(special(&named, Provider::Other)["tools"].as_array().map(Vec::len), Some(2));
}

#[test]
fn log_probabilities_without_others_are_asked_for_in_each_servers_way() {
    let request = ChatRequest { logprobs: Some(0), ..ask("x") };
    assert_eq!(special(&request, Provider::Other), json!({"logprobs": true}));
    assert_eq!(special(&request, Provider::LlamaCpp), json!({"logprobs": true, "top_logprobs": 1}));
}

#[test]
fn options_are_said_in_each_providers_words() {
    let sampling = Sampling {
        temperature: Some(0.7),
        top_p: Some(0.9),
        top_k: Some(40),
        min_p: Some(0.05),
        seed: Some(7),
        repeat_penalty: Some(1.1),
        repeat_last_n: Some(64),
        presence_penalty: Some(0.5),
        frequency_penalty: Some(-0.5),
        logit_bias: vec![(42, -100.0)],
    };
    let stop = vec!["\n".to_owned()];
    let request = ChatRequest { sampling, stop, max_tokens: Some(9), logprobs: Some(2), ..ask("x") };
    let common = json!({
        "stop": ["\n"], "logprobs": true, "top_logprobs": 2, "temperature": 0.7, "top_p": 0.9, "seed": 7,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {"42": -100.0},
    });
    let with = |more: Value| {
        let mut all = common.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    assert_eq!(special(&request, Provider::OpenAi), with(json!({"max_completion_tokens": 9})));
    let local = json!({"max_tokens": 9, "top_k": 40, "min_p": 0.05, "repeat_penalty": 1.1});
    assert_eq!(special(&request, Provider::Other), with(local.clone()));
    let mut llama = with(local);
    llama["repeat_last_n"] = json!(64);
    assert_eq!(special(&request, Provider::LlamaCpp), llama);
    let vllm = json!({"max_tokens": 9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1});
    assert_eq!(special(&request, Provider::Vllm), with(vllm));
}

#[test]
fn a_given_seed_never_asks_llama_server_for_a_random_one() {
    let sampling = Sampling { seed: Some(u32::MAX), ..Sampling::default() };
    let seed = special(&ChatRequest { sampling, ..ask("x") }, Provider::LlamaCpp)["seed"].as_u64();
    assert!(seed.is_some_and(|seed| seed < u64::from(u32::MAX)), "{seed:?}");
}

#[test]
fn llama_server_is_told_the_options_of_ollama_that_it_knows() {
    let options = json!({"typical_p": 0.5, "mirostat": 2, "mirostat_tau": 4.0, "num_gpu": 1, "num_thread": 4});
    let Value::Object(ollama) = options else { panic!("an object is needed") };
    let overflow = Overflow { keep_tokens: Some(5), ..Overflow::default() };
    let request = ChatRequest { dialect: DialectOptions { ollama, ..DialectOptions::default() }, overflow, ..ask("x") };
    let known = json!({"typical_p": 0.5, "mirostat": 2, "mirostat_tau": 4.0, "n_keep": 5});
    assert_eq!(special(&request, Provider::LlamaCpp), known);
    for provider in [Provider::OpenAi, Provider::Vllm, Provider::Other] {
        assert_eq!(special(&request, provider), json!({}));
    }
}

#[test]
fn legacy_completions_have_their_own_words() {
    let request = ChatRequest { logprobs: Some(0), suffix: Some("end".to_owned()), max_tokens: Some(3), ..raw() };
    assert_eq!(special(&request, Provider::OpenAi), json!({"logprobs": 0, "suffix": "end", "max_tokens": 3}));
    assert_eq!(written(&raw(), Provider::Other)["prompt"], "x");
    let tokens = ChatRequest::new("m", Prompt::Tokens(vec![1, 2]));
    assert_eq!(written(&tokens, Provider::Other)["prompt"], json!([1, 2]));
}

#[test]
fn forms_are_strict_where_their_schema_allows_it() {
    let format = |schema: Value| {
        let request = ChatRequest { response_format: ResponseFormat::JsonSchema(schema), ..ask("x") };
        special(&request, Provider::OpenAi)["response_format"]["json_schema"].clone()
    };
    let open = json!({"type": "object"});
    assert_eq!(format(open.clone()), json!({"name": "answer", "schema": open, "strict": false}));
    assert_eq!(format(json!({"type": "object", "additionalProperties": false}))["strict"], true);
    let object = |request| ChatRequest { response_format: ResponseFormat::JsonObject, ..request };
    let any_object = json!({"type": "json_object", "schema": {"type": "object"}});
    assert_eq!(special(&object(ask("x")), Provider::LlamaCpp), json!({"response_format": any_object}));
    assert_eq!(special(&object(ask("x")), Provider::Other), json!({"response_format": {"type": "json_object"}}));
    let any = json!({"name": "answer", "schema": {"type": "object"}, "strict": false});
    let with_schema = json!({"response_format": {"type": "json_schema", "json_schema": any}});
    assert_eq!(special(&object(ask("x")), Provider::LmStudio), with_schema);
    assert_eq!(special(&object(raw()), Provider::LlamaCpp), json!({"json_schema": {"type": "object"}}));
}

#[test]
fn a_form_keeps_the_name_and_the_strictness_that_the_client_gave_it() {
    let schema = json!({"type": "object", "additionalProperties": false});
    let schema_label =
        SchemaLabel { name: Some("bee".to_owned()), description: Some("A bee.".to_owned()), strict: Some(false) };
    let request = ChatRequest { response_format: ResponseFormat::JsonSchema(schema.clone()), schema_label, ..ask("x") };
    let named = json!({"name": "bee", "description": "A bee.", "schema": schema, "strict": false});
    assert_eq!(special(&request, Provider::OpenAi)["response_format"]["json_schema"], named);
}

#[test]
fn fields_of_the_dialect_reach_its_servers_as_they_came() {
    let fields = json!({"parallel_tool_calls": false, "user": "ann", "metadata": {"a": "b"}, "temperature": 2});
    let Value::Object(openai) = fields else { panic!("an object is needed") };
    let dialect = DialectOptions { openai, ..DialectOptions::default() };
    let sampling = Sampling { temperature: Some(0.5), ..Sampling::default() };
    let request = ChatRequest { dialect, sampling, ..ask("x") };
    let said = json!({"parallel_tool_calls": false, "user": "ann", "metadata": {"a": "b"}, "temperature": 0.5});
    for provider in [Provider::OpenAi, Provider::LlamaCpp, Provider::Vllm, Provider::Other] {
        assert_eq!(special(&request, provider), said, "what has a place in our vocabulary is said from there");
    }
}

#[test]
fn fields_that_no_client_of_this_node_could_send_stay_here() {
    let user = "x".repeat(20_000);
    let fields = json!({"store": true, "user": user, "n": 64, "web_search_options": {}, "model": "dear", "tools": []});
    let Value::Object(openai) = fields else { panic!("an object is needed") };
    let request = ChatRequest { dialect: DialectOptions { openai, ..DialectOptions::default() }, ..ask("x") };
    for provider in [Provider::OpenAi, Provider::LlamaCpp, Provider::Vllm, Provider::Other] {
        assert_eq!(special(&request, provider), json!({"store": true}));
    }
}

#[test]
fn thinking_is_asked_for_where_the_provider_understands_it() {
    let think = |think: Think, provider| special(&ChatRequest { think: Some(think), ..ask("x") }, provider);
    let level = || Think::Level("high".to_owned());
    for provider in [Provider::OpenAi, Provider::Other] {
        assert_eq!(think(Think::Off, provider), json!({}));
        assert_eq!(think(Think::On, provider), json!({}), "models that do not think would refuse it");
    }
    assert_eq!(think(Think::Level("max".to_owned()), Provider::Other), json!({"reasoning_effort": "high"}));
    assert_eq!(think(level(), Provider::OpenAi), json!({"reasoning_effort": "high"}));
    assert_eq!(think(Think::Off, Provider::Vllm), json!({"chat_template_kwargs": {"enable_thinking": false}}));
    assert_eq!(think(Think::On, Provider::LlamaCpp), json!({"chat_template_kwargs": {"enable_thinking": true}}));
}

#[test]
fn an_effort_in_the_words_of_the_dialect_stays_as_it_is() {
    let openai = Map::from_iter([("reasoning_effort".to_owned(), json!("none"))]);
    let dialect = DialectOptions { openai, ..DialectOptions::default() };
    let request = ChatRequest { think: Some(Think::Off), dialect, ..ask("x") };
    assert_eq!(special(&request, Provider::OpenAi), json!({"reasoning_effort": "none"}));
    let by_template = json!({"chat_template_kwargs": {"enable_thinking": false}});
    assert_eq!(special(&request, Provider::LlamaCpp), by_template);
}

#[test]
fn what_the_dialect_has_no_words_for_is_refused() {
    let refused = |request: ChatRequest, provider| match request::body(&request, "m", provider) {
        Err(BackendError::Unsupported { param, .. }) => Some(param),
        _ => None,
    };
    let earlier = ChatRequest { earlier_tokens: vec![1], ..raw() };
    assert_eq!(refused(earlier, Provider::LlamaCpp), Some("earlier_tokens"));
    let template = ChatRequest { template: Some("{{ .Prompt }}".to_owned()), ..ask("x") };
    assert_eq!(refused(template, Provider::LlamaCpp), Some("template"));
    let filled = ChatRequest { suffix: Some("end".to_owned()), ..raw() };
    assert_eq!(refused(filled, Provider::LlamaCpp), Some("suffix"));
    let endless = ChatRequest { ignore_eos: true, ..ask("x") };
    assert_eq!(refused(endless.clone(), Provider::OpenAi), Some("ignore_eos"));
    assert_eq!(special(&endless, Provider::Other), json!({"ignore_eos": true}));
}
