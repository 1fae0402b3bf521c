//! The embedded engine with a real model.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};

use crate::faults::kill;
use crate::harness::{Home, Node, client, within};
use crate::model::{MODEL, chat, eventually, find, home_with_changed_model, home_with_model, text_of, with};

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[tokio::test]
async fn a_conversation_does_not_compute_its_history_again() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    let question = "Name three colours, and say for each of them where it is found in nature.";
    let first = node.answer(&chat(question, 30)).await;
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let second = node
        .answer(&with(
            chat("", 5),
            &json!({ "messages": [
                { "role": "user", "content": question },
                { "role": "assistant", "content": content(&first) },
                { "role": "user", "content": "Go on." },
            ] }),
        ))
        .await;
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let before = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(cached >= before, "the first turn's {before} prompt tokens are cached, {cached} were used");
    node.stop().await;
}

#[tokio::test]
async fn conversations_that_take_turns_in_one_slot_keep_their_caches() {
    let question = "Name three colours, and say for each of them where it is found in nature.";
    let second_turn = async |node: &Node, between: &[&str]| {
        let first = node.answer(&chat(question, 30)).await;
        for other in between {
            node.answer(&chat(other, 10)).await;
        }
        let messages = json!([
            { "role": "user", "content": question },
            { "role": "assistant", "content": content(&first) },
            { "role": "user", "content": "Go on." },
        ]);
        node.answer(&with(chat("", 20), &json!({ "messages": messages }))).await
    };
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let home = home_with_model("slots = 1").await;
    let node = Node::start(&home).await;
    let disturbed = second_turn(&node, &["How deep is the sea?", "Why is the sky blue?"]).await;
    node.stop().await;
    let node = Node::start(&home).await;
    let undisturbed = second_turn(&node, &[]).await;
    node.stop().await;
    assert!(cached(&undisturbed) > 30);
    assert_eq!(cached(&disturbed), cached(&undisturbed));
    assert_eq!(content(&disturbed), content(&undisturbed));
}

#[tokio::test]
async fn the_same_seed_gives_the_same_answer() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    let request = with(chat("Tell me a story.", 24), &json!({ "temperature": 1.2, "seed": 42 }));
    let first = node.answer(&request).await;
    let again = node.answer(&request).await;
    assert_eq!(content(&first), content(&again));
    let other = node.answer(&with(request.clone(), &json!({ "seed": 43 }))).await;
    assert_ne!(content(&first), content(&other));
    // Those whose lower 32 bits are llama.cpp's word for a random one.
    for seed in [i64::from(u32::MAX), i64::MAX] {
        let request = with(request.clone(), &json!({ "seed": seed }));
        let (first, again) = (node.answer(&request).await, node.answer(&request).await);
        assert_eq!(content(&first), content(&again), "seed {seed}");
    }
    node.stop().await;
}

#[tokio::test]
async fn each_limit_of_the_choice_leaves_only_the_likeliest_token() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    let request = chat("Tell me a story.", 8);
    let likeliest = node.answer(&request).await;
    let wide = json!({ "temperature": 2, "seed": 7, "top_k": 0, "top_p": 1, "min_p": 0 });
    let wide = with(request, &wide);
    let free = node.answer(&wide).await;
    assert_ne!(content(&free), content(&likeliest));
    for limit in [json!({ "top_k": 1 }), json!({ "top_p": 0.001 }), json!({ "min_p": 1 })] {
        let limited = node.answer(&with(wide.clone(), &limit)).await;
        assert_eq!(content(&limited), content(&likeliest), "{limit}");
    }
    node.stop().await;
}

#[tokio::test]
async fn each_penalty_falls_on_what_stands_already() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    // Continues 8 times token 5,000 by one token. Returns its text and how likely it was.
    let next = async |options: &Value| {
        let request =
            json!({ "model": MODEL, "prompt": vec![5_000; 8], "max_tokens": 1, "temperature": 0, "logprobs": 0 });
        let (status, answer) = node.post("/v1/completions", &with(request, options)).await;
        assert_eq!(status, 200, "{answer}");
        let choice = &answer["choices"][0];
        let logprob = choice["logprobs"]["token_logprobs"][0].as_f64().unwrap();
        (choice["text"].as_str().unwrap().to_owned(), logprob)
    };
    let (standing, standing_logprob) = next(&json!({ "logit_bias": { "5000": 100 } })).await;
    let (new, new_logprob) = next(&json!({ "logit_bias": { "6000": 100 } })).await;
    assert_ne!(standing, new, "a bias of 100 makes any token the answer");
    // The token that stands already leads the new one by 1, and both lead all others by far.
    let new_bias = 49.0 + standing_logprob - new_logprob;
    let biased = json!({ "logit_bias": { "5000": 50, "6000": new_bias } });
    assert_eq!(next(&biased).await.0, standing);
    for penalty in [json!({ "presence_penalty": 2 }), json!({ "frequency_penalty": 2 }), json!({ "repeat_penalty": 2 })]
    {
        assert_eq!(next(&with(biased.clone(), &penalty)).await.0, new, "{penalty}");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_token_with_a_bias_of_minus_100_is_not_chosen() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    let options = json!({ "temperature": 0, "num_predict": 1 });
    let question = "Name a colour.";
    let generate = json!({ "model": MODEL, "prompt": question, "stream": false, "options": options });
    let (_, generated) = node.post("/api/generate", &generate).await;
    // Its context ends with the token that was chosen.
    let token = generated["context"].as_array().unwrap().last().unwrap().to_string();
    let request = chat(question, 1);
    let likeliest = node.answer(&request).await;
    assert_eq!(content(&likeliest), generated["response"].as_str().unwrap());
    let without = node.answer(&with(request, &json!({ "logit_bias": { token: -100 } }))).await;
    assert_ne!(content(&without), content(&likeliest));
    node.stop().await;
}

#[tokio::test]
async fn a_prompt_just_under_the_context_is_answered_and_one_just_over_it_refused() {
    let home = home_with_model("context_tokens = 256").await;
    let node = Node::start(&home).await;
    let complete = async |tokens: usize| {
        let prompt = vec![5_000; tokens];
        node.post("/v1/completions", &json!({ "model": MODEL, "prompt": prompt, "ignore_eos": true })).await
    };
    let (status, under) = complete(255).await;
    assert_eq!((status, under["choices"][0]["finish_reason"].as_str()), (200, Some("length")), "{under}");
    assert_eq!(under["usage"]["completion_tokens"], 1);
    let (status, over) = complete(256).await;
    assert_eq!((status, over["error"]["code"].as_str()), (400, Some("context_length_exceeded")));
    let message = over["error"]["message"].as_str().unwrap();
    assert!(message.matches("256").count() == 2, "both numbers: {message}");

    let far_over = json!({ "model": MODEL, "prompt": "a word ".repeat(1 << 18) });
    let (status, over) = node.post("/v1/completions", &far_over).await;
    assert_eq!((status, over["error"]["code"].as_str()), (400, Some("context_length_exceeded")));
    let message = over["error"]["message"].as_str().unwrap();
    assert!(message.contains("more tokens than fit") && message.contains("256"), "it was counted: {message}");
    node.stop().await;
}

#[tokio::test]
async fn without_a_prompt_the_model_begins_a_text_of_its_own() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    let request = json!({ "model": MODEL, "max_tokens": 4, "ignore_eos": true });
    for more in [json!({}), json!({ "prompt": "" }), json!({ "prompt": [""] })] {
        let (status, answer) = node.post("/v1/completions", &with(request.clone(), &more)).await;
        assert_eq!((status, answer["usage"]["completion_tokens"].as_u64()), (200, Some(4)), "{answer}");
    }
    node.stop().await;
}

#[tokio::test]
async fn control_tokens_in_user_text_are_only_text() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    let prompt_tokens = async |text: &str| {
        let answer = node.answer(&chat(text, 1)).await;
        answer["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let empty = prompt_tokens("").await;
    assert!(prompt_tokens("<|im_end|>").await >= empty + 4, "as the control token it would be one token");
    node.stop().await;
}

#[tokio::test]
async fn a_conversation_is_the_text_that_the_models_template_makes_of_it() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    let messages =
        json!([{ "role": "system", "content": "Be brief." }, { "role": "user", "content": "Name a colour." }]);
    let chat = node.answer(&with(chat("", 12), &json!({ "messages": messages }))).await;
    let text =
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n";
    let raw = json!({ "model": MODEL, "prompt": text, "max_tokens": 12, "temperature": 0 });
    let (_, raw) = node.post("/v1/completions", &raw).await;
    assert_eq!(chat["usage"]["prompt_tokens"], raw["usage"]["prompt_tokens"]);
    assert_eq!(content(&chat), raw["choices"][0]["text"].as_str().unwrap());
    node.stop().await;
}

#[tokio::test]
async fn a_stop_text_that_spans_tokens_ends_the_answer_before_it() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    let request = chat("Count from one to twenty in words.", 40);
    let whole = content(&node.answer(&request).await).to_owned();
    let stop: String = whole.chars().skip(7).take(9).collect();
    let expected = whole.split_once(&stop).unwrap().0;
    let stopped = node.answer(&with(request.clone(), &json!({ "stop": [stop] }))).await;
    assert_eq!(content(&stopped), expected);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let mut events = node.stream(with(request, &json!({ "stop": [stop] }))).await;
    let streamed: String = events.rest().await.iter().map(|event| text_of(event)).collect();
    assert_eq!(streamed, expected);
    node.stop().await;
}

#[tokio::test]
async fn an_answer_by_schema_fits_it() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    let schema = json!({
        "type": "object",
        "properties": {
            "city": { "type": "string", "maxLength": 20 },
            "size": { "enum": ["small", "large"] },
            "rivers": { "type": "array", "items": { "type": "string", "maxLength": 12 }, "minItems": 1, "maxItems": 2 },
        },
        "required": ["city", "size", "rivers"],
        "additionalProperties": false,
    });
    let format =
        json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "c", "schema": schema } } });
    let answer = node.answer(&with(chat("Describe a city.", 200), &format)).await;
    let city: Value = serde_json::from_str(content(&answer)).unwrap();
    assert_eq!(city.as_object().unwrap().keys().collect::<Vec<_>>(), ["city", "size", "rivers"]);
    assert!(["small", "large"].contains(&city["size"].as_str().unwrap()));
    node.stop().await;
}

#[tokio::test]
async fn an_answer_by_schema_ends_with_its_form_though_its_end_is_to_be_passed_over() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    let schema = json!({ "name": "c", "schema": { "enum": ["a"] } });
    let more = json!({ "ignore_eos": true, "response_format": { "type": "json_schema", "json_schema": schema } });
    let answer = node.answer(&with(chat("Say a.", 60), &more)).await;
    let choice = &answer["choices"][0];
    assert_eq!((content(&answer).trim(), choice["finish_reason"].as_str()), ("\"a\"", Some("stop")));
    node.stop().await;
}

/// The small model has no place for tools in its template, so it gets one: a template of the same length, put into its file.
async fn home_with_tool_model(lines: &str) -> Home {
    let template = "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}. Use <tool_call>.<|im_end|>\n{% endif %}\
                    {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n{#";
    home_with_changed_model(lines, "tools", |bytes| {
        let begin = find(bytes, b"{% for message in messages %}").unwrap();
        let length = usize::try_from(u64::from_le_bytes(bytes[begin - 8..begin].try_into().unwrap())).unwrap();
        let padded = format!("{template}{}#}}", " ".repeat(length - template.len() - 2));
        bytes[begin..begin + length].copy_from_slice(padded.as_bytes());
    })
    .await
}

#[tokio::test]
async fn a_model_with_a_place_for_tools_calls_one_and_others_say_that_they_cannot() {
    let home = home_with_tool_model("").await;
    let node = Node::start(&home).await;
    let tools = json!({
        "tools": [{ "type": "function", "function": {
            "name": "weather",
            "parameters": { "type": "object", "properties": { "city": { "enum": ["Paris", "Rome"] } }, "required": ["city"] },
        } }],
        "tool_choice": "required",
    });
    let request = with(chat("How is the weather in Rome?", 100), &tools);
    let answer = node.answer(&with(request.clone(), &json!({ "model": "tools" }))).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    let call = &choice["message"]["tool_calls"][0]["function"];
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(call["name"], "weather");
    assert!(["Paris", "Rome"].contains(&arguments["city"].as_str().unwrap()), "{arguments}");

    let (status, refused) = node.post("/v1/chat/completions", &request).await;
    assert_eq!((status, refused["error"]["param"].as_str()), (400, Some("tools")), "{refused}");
    node.stop().await;
}

#[tokio::test]
async fn a_template_that_makes_its_renderer_panic_ends_one_request_alone() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    let template = "{{ 'x'|indent(18446744073709551615) }}";
    let request = json!({ "model": MODEL, "prompt": "x", "template": template, "stream": false });
    let (status, refused) = node.post("/api/generate", &request).await;
    assert_eq!(status, 400, "{refused}");
    assert!(refused["error"].as_str().is_some_and(|error| error.contains("template")), "{refused}");
    node.answer(&chat("Hi", 1)).await;
    node.stop().await;
}

#[tokio::test]
async fn runs_that_do_not_fit_into_the_cache_together_wait_for_each_other() {
    let home = home_with_model("context_tokens = 256\nkv_tokens = 300").await;
    let node = Node::start(&home).await;
    let request = with(chat("Tell me about the sea.", 120), &json!({ "ignore_eos": true }));
    let answers = join_all((0..6).map(|_| node.answer(&request))).await;
    for answer in answers {
        assert_eq!(answer["usage"]["completion_tokens"], 120);
    }
    node.stop().await;
}

#[tokio::test]
async fn a_run_that_loses_its_room_to_another_is_waited_for_however_long_that_takes() {
    // Both prompts leave little room in the cache. The older answer gets it, and then takes longer than an answer may stand still.
    let lines = "context_tokens = 1024\nkv_tokens = 1024\nbatch_tokens = 32\n[api.limits]\nnext_token_ms_max = 3500";
    let home = home_with_model(lines).await;
    let node = Node::start(&home).await;
    let more = json!({ "ignore_eos": true, "stream_options": { "include_usage": true } });
    let ask = |word: &str, tokens| node.stream(with(chat(&word.repeat(400), tokens), &more));
    let mut older = ask("sea ", 550).await;
    older.first_text().await;
    let mut younger = ask("hill ", 150).await;
    let (older, younger) = tokio::join!(older.rest(), younger.rest());
    let usage = |events: Vec<String>| {
        let events = events.iter().filter_map(|data| serde_json::from_str::<Value>(data).ok());
        events
            .map(|event| event["usage"].clone())
            .find(|usage| !usage.is_null())
            .expect("an answer ends with its usage")
    };
    let (older, younger) = (usage(older), usage(younger));
    assert_eq!((&older["completion_tokens"], &younger["completion_tokens"]), (&json!(550), &json!(150)));
    let together = [&older, &younger].iter().filter_map(|usage| usage["total_tokens"].as_u64()).sum::<u64>();
    assert!(together > 1_024 + 300, "both fitted: {older}, {younger}");
    node.stop().await;
}

#[tokio::test]
async fn a_long_prompt_does_not_hold_up_a_running_answer() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    let mut running = node.stream(with(chat("Tell me a long story.", 2_000), &json!({ "ignore_eos": true }))).await;
    running.first_text().await;
    let prompt = chat(&"many words ".repeat(900), 1);
    let mut tokens = 0;
    {
        let mut late = std::pin::pin!(node.answer(&prompt));
        loop {
            tokio::select! {
                biased;
                answer = &mut late => {
                    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() > 1_500);
                    break;
                }
                event = running.next() => {
                    event.expect("the answer goes on");
                    tokens += 1;
                }
            }
        }
    }
    assert!(tokens >= 10, "{tokens} tokens of the running answer came while the long prompt was read");
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_slot() {
    let home = home_with_model("slots = 1").await;
    let node = Node::start(&home).await;
    for _ in 0..3 {
        let mut stream = node.stream(with(chat("Tell me a long story.", 8_000), &json!({ "ignore_eos": true }))).await;
        stream.first_text().await;
        let begun = Instant::now();
        for _ in 0..100 {
            stream.next().await.expect("the answer goes on");
        }
        // By its pace the abandoned answer would go on for 79 times as long as the part that was read.
        let limit = (begun.elapsed() * 20).max(Duration::from_secs(5));
        drop(stream);
        tokio::time::timeout(limit, node.answer(&chat("Hi", 1))).await.expect("the slot is free at once");
    }
    node.stop().await;
}

/// Reads a value of a node's metrics.
async fn metric(node: &Node, name: &str) -> f64 {
    let metrics = within("metrics", node.get("/metrics").await.text()).await.unwrap();
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} is missing: {metrics}")).parse().unwrap()
}

#[tokio::test]
async fn the_metrics_tell_what_the_engine_has_in_memory_and_to_do() {
    const MODELS: &str = "bombus_engine_models{backend=\"embedded\"}";
    const MEMORY: &str = "bombus_engine_memory_bytes{backend=\"embedded\"}";
    const RUNNING: &str = "bombus_engine_requests{backend=\"embedded\",state=\"running\"}";
    const WAITING: &str = "bombus_engine_requests{backend=\"embedded\",state=\"waiting\"}";
    const DEATHS: &str = "bombus_engine_deaths_total{backend=\"embedded\"}";
    let home = home_with_model("slots = 1").await;
    let node = Node::start(&home).await;
    for name in [MODELS, MEMORY, RUNNING, WAITING, DEATHS] {
        assert_eq!(metric(&node, name).await, 0.0, "{name}");
    }

    let request = with(chat("Tell me a long story.", 4_000), &json!({ "ignore_eos": true }));
    let mut running = node.stream(request.clone()).await;
    running.first_text().await;
    let waiting = tokio::spawn(client().post(node.url("/v1/chat/completions")).json(&request).send());
    let has = async |name: &str, value: f64| metric(&node, name).await == value;
    eventually("a request that waits", async || has(WAITING, 1.0).await).await;
    assert_eq!((metric(&node, MODELS).await, metric(&node, RUNNING).await), (1.0, 1.0));
    let loaded: Value = within("what is loaded", node.get("/api/ps").await.json()).await.unwrap();
    assert_eq!(Some(metric(&node, MEMORY).await), loaded["models"][0]["size"].as_f64(), "{loaded}");
    waiting.abort();
    drop(running);
    eventually("the end of both", async || has(RUNNING, 0.0).await && has(WAITING, 0.0).await).await;

    kill(node.engine().await);
    eventually("the news of a death", async || has(DEATHS, 1.0).await).await;
    node.stop().await;
}

#[tokio::test]
async fn the_longest_unused_model_makes_room_for_another() {
    let home = home_with_tool_model("context_tokens = 256\nmemory_mb = 300").await;
    let node = Node::start(&home).await;
    node.answer(&chat("Hi", 1)).await;
    assert!(node.is_warm(MODEL).await);
    node.answer(&with(chat("Hi", 1), &json!({ "model": "tools" }))).await;
    assert!(node.is_warm("tools:latest").await && !node.is_warm(MODEL).await);
    node.answer(&chat("Hi", 1)).await;
    node.stop().await;
}

#[tokio::test]
async fn a_model_that_nobody_uses_leaves_memory() {
    let home = home_with_model("idle_unload_s = 1").await;
    let node = Node::start(&home).await;
    node.answer(&chat("Hi", 1)).await;
    eventually("the unloading", async || !node.is_warm(MODEL).await && node.engines().is_empty()).await;
    node.answer(&chat("Hi", 1)).await;
    node.stop().await;
}

#[tokio::test]
async fn a_model_too_large_for_the_memory_allowed_is_refused_with_the_numbers() {
    let home = home_with_model("memory_mb = 100").await;
    let node = Node::start(&home).await;
    let (status, refused) = node.post("/v1/chat/completions", &chat("Hi", 1)).await;
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(
        status == 503 && message.contains("94 MB weights") && message.contains("100 MB may be used"),
        "{status} {message}"
    );
    node.stop().await;
}

#[tokio::test]
async fn two_runs_of_one_prompt_share_what_is_computed() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    let prompt = "Once upon a time there was a forest. ".repeat(20);
    let mut running = node.stream(with(chat(&prompt, 500), &json!({ "ignore_eos": true }))).await;
    running.first_text().await;
    let beside = node.answer(&chat(&prompt, 1)).await;
    let usage = &beside["usage"];
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(
        cached + 1,
        usage["prompt_tokens"].as_u64().unwrap(),
        "all but the last token come from the run beside it"
    );
    node.stop().await;
}

#[tokio::test]
async fn requests_with_one_prompt_that_come_together_compute_it_once() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    let request = chat(&"Once upon a time there was a forest. ".repeat(20), 1);
    let answers = join_all((0..4).map(|_| node.answer(&request))).await;
    let computed = |answer: &Value| {
        let usage = &answer["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        usage["prompt_tokens"].as_u64().unwrap() - cached
    };
    let mut computed: Vec<u64> = answers.iter().map(computed).collect();
    computed.sort_unstable();
    assert!(computed[..3].iter().all(|tokens| *tokens == 1) && computed[3] > 100, "{computed:?}");
    node.stop().await;
}
