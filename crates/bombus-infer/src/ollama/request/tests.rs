use bombus_core::chat::{Overflow, Sampling};

use super::*;

fn asked(messages: Vec<Message>) -> ChatRequest {
    ChatRequest::new("m", Prompt::Chat(messages))
}

fn said(request: &ChatRequest) -> Value {
    match Call::of(request).unwrap() {
        Call::Chat(chat) => serde_json::to_value(chat).unwrap(),
        Call::Generate(generate) => serde_json::to_value(generate).unwrap(),
    }
}

fn refused(request: &ChatRequest) -> &'static str {
    match Call::of(request) {
        Err(BackendError::Unsupported { param, .. } | BackendError::InvalidRequest { param: Some(param), .. }) => param,
        other => panic!("{other:?}"),
    }
}

fn user(text: &str) -> Message {
    Message::text(Role::User, text)
}

#[test]
fn a_plain_conversation_says_only_what_was_asked_for() {
    let expected = json!({
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "options": {},
        "truncate": false,
        "shift": false,
    });
    assert_eq!(said(&asked(vec![user("Hi")])), expected);
}

#[test]
fn a_given_seed_never_asks_ollama_for_a_random_one() {
    let sampling = Sampling { seed: Some(u32::MAX), ..Sampling::default() };
    let seed = said(&ChatRequest { sampling, ..asked(vec![user("Hi")]) })["options"]["seed"].as_u64();
    assert!(seed.is_some_and(|seed| seed < u64::from(u32::MAX)), "{seed:?}");
}

#[test]
fn every_option_has_its_word() {
    let engine = Map::from_iter([("num_gpu".to_owned(), json!(0)), ("mirostat".to_owned(), json!(2))]);
    let request = ChatRequest {
        sampling: Sampling {
            temperature: Some(0.5),
            top_p: Some(0.25),
            top_k: Some(0),
            min_p: Some(0.125),
            seed: Some(7),
            repeat_penalty: Some(1.5),
            repeat_last_n: Some(32),
            presence_penalty: Some(-1.0),
            frequency_penalty: Some(2.0),
            logit_bias: Vec::new(),
        },
        stop: vec!["END".into()],
        max_tokens: Some(9),
        logprobs: Some(0),
        think: Some(Think::Level("high".into())),
        overflow: Overflow { truncate: true, shift: true, keep_tokens: Some(5) },
        keep_alive: Some(KeepAlive::Forever),
        response_format: ResponseFormat::JsonObject,
        dialect: DialectOptions { ollama: engine.clone(), ..DialectOptions::default() },
        ..asked(vec![user("Hi")])
    };
    let said = said(&request);
    let options = json!({
        "num_gpu": 0, "mirostat": 2,
        "num_predict": 9, "num_keep": 5, "temperature": 0.5, "top_p": 0.25, "top_k": 0, "min_p": 0.125, "seed": 7,
        "repeat_penalty": 1.5, "repeat_last_n": 32, "presence_penalty": -1.0, "frequency_penalty": 2.0, "stop": ["END"],
    });
    assert_eq!(said["options"], options);
    assert_eq!((&said["think"], &said["format"], &said["keep_alive"]), (&json!("high"), &json!("json"), &json!(-1)));
    assert_eq!((&said["logprobs"], &said["top_logprobs"]), (&json!(true), &json!(0)));
    assert_eq!((&said["shift"], &said["truncate"]), (&json!(true), &json!(false)));

    let dialect = DialectOptions { ollama: engine.clone(), ..DialectOptions::default() };
    let vectors = EmbedRequest { dialect, ..EmbedRequest::new("m", vec![EmbedInput::Text("x".into())]) };
    assert_eq!(embed(&vectors).unwrap().options.others, engine);
}

#[test]
fn what_has_a_place_in_our_vocabulary_is_said_from_there_alone() {
    let all = wire::Options {
        num_ctx: Some(1),
        num_predict: Some(1),
        num_keep: Some(1),
        temperature: Some(1.0),
        top_p: Some(1.0),
        top_k: Some(1),
        min_p: Some(1.0),
        seed: Some(1),
        repeat_penalty: Some(1.0),
        repeat_last_n: Some(1),
        presence_penalty: Some(1.0),
        frequency_penalty: Some(1.0),
        stop: vec!["END".into()],
        others: Map::new(),
    };
    let Value::Object(mut ollama) = serde_json::to_value(all).unwrap() else { panic!("options are an object") };
    ollama.insert("num_gpu".into(), json!(1));
    let dialect = DialectOptions { ollama, ..DialectOptions::default() };
    let only = Map::from_iter([("num_gpu".to_owned(), json!(1))]);
    let request = ChatRequest { dialect: dialect.clone(), ..asked(vec![user("Hi")]) };
    assert_eq!(said(&request)["options"], json!(only));
    let vectors = EmbedRequest { dialect, ..EmbedRequest::new("m", vec![EmbedInput::Text("x".into())]) };
    assert_eq!(embed(&vectors).unwrap().options.others, only);
}

#[test]
fn how_much_to_think_is_said_in_words_that_ollama_takes() {
    for (word, expected) in
        [("high", json!("high")), ("minimal", json!("low")), ("xhigh", json!("high")), ("deep", json!(true))]
    {
        let request = ChatRequest { think: Some(Think::Level(word.into())), ..asked(vec![user("Hi")]) };
        assert_eq!(said(&request)["think"], expected, "{word}");
    }
}

#[test]
fn arguments_of_calls_are_objects_and_tools_that_answer_have_names() {
    let call = ToolCall { id: "c1".into(), name: "weather".into(), arguments: r#"{"city":"Ulm"}"#.into() };
    let caller = Message { tool_calls: vec![call.clone()], content: Vec::new(), ..Message::text(Role::Assistant, "") };
    let answer = Message { tool_call_id: Some("c1".into()), ..Message::text(Role::Tool, "rain") };
    let said = said(&asked(vec![user("Weather?"), caller, answer.clone()]));
    let calls = json!([{"id": "c1", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}]);
    assert_eq!(said["messages"][1], json!({"role": "assistant", "content": "", "tool_calls": calls}));
    let tool = json!({"role": "tool", "content": "rain", "tool_name": "weather", "tool_call_id": "c1"});
    assert_eq!(said["messages"][2], tool);

    let broken = ToolCall { arguments: "{\"city\":".into(), ..call };
    let caller = Message { tool_calls: vec![broken], ..Message::text(Role::Assistant, "") };
    assert_eq!(refused(&asked(vec![user("Weather?"), caller, answer])), "messages");
}

#[test]
fn tools_are_left_out_where_none_is_to_be_called_and_cannot_be_forced() {
    let tool = Tool { name: "weather".into(), description: None, parameters: json!({"type": "object"}), strict: None };
    let with = |tool_choice| ChatRequest { tools: vec![tool.clone()], tool_choice, ..asked(vec![user("Hi")]) };
    let function = json!({"name": "weather", "parameters": {"type": "object"}});
    assert_eq!(said(&with(ToolChoice::Auto))["tools"], json!([{"type": "function", "function": function}]));
    assert_eq!(said(&with(ToolChoice::None)).get("tools"), None);
    assert_eq!(refused(&with(ToolChoice::Required)), "tool_choice");
    assert_eq!(refused(&with(ToolChoice::Named("weather".into()))), "tool_choice");
}

#[test]
fn pictures_go_along_and_addresses_do_not() {
    let with =
        |image| Message { content: vec![Part::Text("What?".into()), Part::Image(Image::from(image))], ..user("") };
    let data = ImageSource::Data { media_type: "image/png".into(), base64: "AAAA".into() };
    assert_eq!(said(&asked(vec![with(data)]))["messages"][0]["images"], json!(["AAAA"]));
    let inline = ImageSource::Url("data:image/png;base64,BBBB".into());
    assert_eq!(said(&asked(vec![with(inline)]))["messages"][0]["images"], json!(["BBBB"]));
    assert_eq!(refused(&asked(vec![with(ImageSource::Url("https://example.com/a.png".into()))])), "messages");
}

#[test]
fn what_chat_has_no_place_for_goes_to_generate() {
    let system = Message::text(Role::System, "Be brief");
    let conversation = vec![system, user("Hi")];
    let with_template = ChatRequest {
        template: Some("{{ .Prompt }}".into()),
        earlier_tokens: vec![1, 2],
        return_tokens: true,
        ..asked(conversation)
    };
    let expected = json!({
        "model": "m", "prompt": "Hi", "system": "Be brief", "template": "{{ .Prompt }}", "context": [1, 2],
        "options": {}, "truncate": false, "shift": false,
    });
    assert_eq!(said(&with_template), expected);

    let longer = vec![user("Hi"), Message::text(Role::Assistant, "Hello"), user("Bye")];
    assert_eq!(refused(&ChatRequest { template: Some("x".into()), ..asked(longer.clone()) }), "template");
    assert_eq!(refused(&ChatRequest { earlier_tokens: vec![1], ..asked(longer.clone()) }), "earlier_tokens");
    assert!(said(&ChatRequest { return_tokens: true, ..asked(longer) }).get("messages").is_some());
}

#[test]
fn a_raw_prompt_goes_as_it_stands_unless_the_template_is_needed() {
    let raw = |text: &str| ChatRequest::new("m", Prompt::Raw(text.into()));
    assert_eq!(said(&raw("Once"))["raw"], json!(true));
    let filling = said(&ChatRequest { suffix: Some("end".into()), ..raw("Once") });
    assert_eq!((filling.get("raw"), &filling["suffix"]), (None, &json!("end")));
    assert_eq!(refused(&raw("")), "prompt");
    assert_eq!(refused(&ChatRequest { earlier_tokens: vec![1], ..raw("x") }), "earlier_tokens");
    assert_eq!(refused(&ChatRequest::new("m", Prompt::Tokens(vec![1]))), "prompt");
}

#[test]
fn what_ollama_cannot_do_is_not_dropped_in_silence() {
    assert_eq!(refused(&asked(Vec::new())), "messages");
    let request = asked(vec![user("Hi")]);
    assert_eq!(refused(&ChatRequest { ignore_eos: true, ..request.clone() }), "ignore_eos");
    let sampling = Sampling { logit_bias: vec![(1, 1.0)], ..Sampling::default() };
    assert_eq!(refused(&ChatRequest { sampling, ..request.clone() }), "logit_bias");
    let response_format = ResponseFormat::JsonSchema(json!(true));
    assert_eq!(refused(&ChatRequest { response_format, ..request }), "response_format");
    let tokens = EmbedRequest::new("m", vec![EmbedInput::Tokens(vec![1])]);
    assert!(matches!(embed(&tokens), Err(BackendError::Unsupported { param: "inputs", .. })));
}

#[test]
fn pictures_beside_a_raw_prompt_are_handed_on() {
    let image = ImageSource::Data { media_type: "image/png".into(), base64: "AAAA".into() };
    let request =
        ChatRequest { images: vec![image.into()], ..ChatRequest::new("m", Prompt::Raw("[img-0]What?".into())) };
    let said = said(&request);
    assert_eq!(
        (&said["images"], &said["raw"], &said["prompt"]),
        (&json!(["AAAA"]), &json!(true), &json!("[img-0]What?"))
    );
}
