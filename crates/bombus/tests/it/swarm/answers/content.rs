//! What a client may count on where another worker goes on: limits, usage, both dialects, answers that come as a whole.

use serde_json::{Value, json};

use super::client::{Question, words};
use super::{Swarm, slow_worker, team, worker};
use crate::harness::{Signal, within};
use crate::model::eventually;

/// Kills the one of two workers that answers, as soon as its first token is there: what comes then takes seconds.
async fn kill_the_busy_one(swarm: &Swarm) -> usize {
    let victim = swarm.busy_one(&[1, 2]).await;
    let has_begun = async || {
        let shown = swarm.member(victim).get("/backends").await;
        let own = shown["backends"].as_array().unwrap().iter().find(|backend| backend["kind"] == "fake");
        own.expect("a worker has a backend")["first_token_ms"].is_number()
    };
    eventually("the first token", has_begun).await;
    swarm.member(victim).signal(Signal::Kill);
    victim
}

#[tokio::test]
async fn the_most_tokens_count_over_the_seam_and_usage_is_told_once() {
    let pace = worker(20, 70, "");
    let mut swarm = team(&[pace.clone(), pace]).await;
    let text = words(5, 80);
    let limited = text.split(' ').take(40).collect::<Vec<_>>().join(" ");
    let question = Question::new(&text).with(&json!({ "max_tokens": 40 }));
    let undisturbed = question.answer(swarm.member(0)).await;
    undisturbed.assert_whole(&limited, "length");
    // At the last words the whole answer may be there before its worker is gone.
    for (kill_at, seams_min) in [(1, 1), (10, 1), (38, 0)] {
        let mut stream = question.ask(swarm.member(0)).await;
        let victim = swarm.index_of(stream.so_far().node());
        stream.until_words(kill_at).await;
        swarm.kill(victim).await;
        let answer = stream.rest().await;
        answer.assert_whole(&limited, "length");
        assert_eq!(answer.usage, undisturbed.usage, "the prompt is counted once, too");
        assert!((seams_min..=1).contains(&answer.seams.len()), "{answer:?}");
        swarm.restart(victim).await;
        swarm.offers_of("fake", &[1, 2]).await;
    }
}

#[tokio::test]
async fn an_answer_that_comes_as_a_whole_survives_its_worker_too() {
    let pace = slow_worker("");
    let swarm = team(&[pace.clone(), pace]).await;
    let text = words(6, 60);
    let whole = json!({ "model": "fake", "messages": [{ "role": "user", "content": text }] });
    let asked = swarm.member(0).post("/v1/chat/completions", &whole);
    let ((status, answer), victim) = futures::future::join(asked, kill_the_busy_one(&swarm)).await;
    assert_eq!((status, &answer["choices"][0]["message"]["content"]), (200, &text.as_str().into()), "{answer}");
    assert_eq!(answer["usage"]["completion_tokens"], 60, "{answer}");
    let continued = answer["bombus"]["continued"].as_array().unwrap_or_else(|| panic!("{answer}"));
    assert!(continued[0].to_string().contains(swarm.id(3 - victim)), "{answer}");
}

#[tokio::test]
async fn ollamas_stream_goes_on_too_and_says_so_in_its_last_object() {
    let pace = slow_worker("");
    let text = words(7, 60);
    for (path, field) in [("/api/chat", "message"), ("/api/generate", "response")] {
        let swarm = team(&[pace.clone(), pace.clone()]).await;
        let request = match field {
            "message" => json!({ "model": "fake", "messages": [{ "role": "user", "content": text }] }),
            _ => json!({ "model": "fake", "prompt": text }),
        };
        let ask = async {
            let response = swarm.member(0).client().post(swarm.member(0).url(path)).json(&request).send();
            within("an answer", async { response.await.unwrap().text().await }).await.unwrap()
        };
        let (answer, victim) = futures::future::join(ask, kill_the_busy_one(&swarm)).await;
        let objects: Vec<Value> = answer.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let piece = |object: &Value| match field {
            "message" => object["message"]["content"].as_str().unwrap_or_default().to_owned(),
            _ => object["response"].as_str().unwrap_or_default().to_owned(),
        };
        assert_eq!(objects.iter().map(piece).collect::<String>(), text);
        let last = objects.last().unwrap();
        assert_eq!((&last["done"], &last["eval_count"]), (&true.into(), &60.into()), "{last}");
        let continued = last["continued"].as_array().unwrap_or_else(|| panic!("{last}"));
        assert!(continued[0].to_string().contains(swarm.id(3 - victim)), "{last}");
    }
}

#[tokio::test]
async fn a_completion_of_text_goes_on_too() {
    let pace = slow_worker("");
    let swarm = team(&[pace.clone(), pace]).await;
    let text = words(8, 60);
    let request = json!({ "model": "fake", "prompt": text, "max_tokens": 100 });
    let asked = swarm.member(0).post("/v1/completions", &request);
    let ((status, answer), _) = futures::future::join(asked, kill_the_busy_one(&swarm)).await;
    assert_eq!((status, &answer["choices"][0]["text"]), (200, &text.as_str().into()), "{answer}");
}

#[tokio::test]
async fn several_answers_at_once_end_with_an_error_where_a_worker_of_theirs_dies() {
    let pace = slow_worker("");
    let mut swarm = team(&[pace.clone(), pace]).await;
    let text = words(10, 60);
    let question = json!({
        "model": "fake", "stream": true, "n": 2, "messages": [{ "role": "user", "content": text }],
    });
    let url = swarm.member(0).url("/v1/chat/completions");
    let asked = swarm.member(0).client().post(url).json(&question).send();
    let mut response = within("the beginning of two answers", asked).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut told = String::new();
    let mut is_killed = false;
    while let Ok(Some(bytes)) = within("more of two answers", response.chunk()).await {
        told.push_str(&String::from_utf8_lossy(&bytes));
        if !is_killed && told.matches("\"content\"").count() > 10 {
            is_killed = true;
            for index in [1, 2] {
                swarm.kill(index).await;
            }
        }
    }
    assert!(is_killed && told.contains("\"error\"") && !told.contains("[DONE]"), "{told}");
    assert!(!told.contains("continued"), "nobody goes on with one of several: {told}");
}

#[tokio::test]
async fn who_cannot_go_on_with_an_answer_is_not_chosen_for_it() {
    let pace = slow_worker("");
    let mut swarm = team(&[pace.clone(), slow_worker("continues = false"), pace]).await;
    let text = words(11, 90);
    let mut tries = 0;
    let (mut stream, first) = loop {
        let stream = Question::new(&text).ask(swarm.member(0)).await;
        let first = swarm.index_of(stream.so_far().node());
        if first != 2 {
            break (stream, first);
        }
        tries += 1;
        assert!(tries < 50, "only the one answers that cannot go on");
    };
    stream.until_words(10).await;
    swarm.kill(first).await;
    for count in 11..85 {
        stream.until_words(count).await;
        if !stream.so_far().seams.is_empty() {
            break;
        }
    }
    assert!(stream.so_far().seams[0].starts_with(swarm.id(4 - first)), "{:?}", stream.so_far());
    swarm.kill(4 - first).await;
    let answer = stream.rest().await;
    assert!(answer.error.as_ref().is_some_and(|error| error["message"].is_string()), "{answer:?}");
    assert!(!answer.done && text.starts_with(&answer.text) && answer.seams.len() == 1, "{answer:?}");
    // For a new one it is as good as any.
    let text = words(12, 5);
    let answer = Question::new(&text).answer(swarm.member(0)).await;
    answer.assert_whole(&text, "stop");
    assert_eq!(answer.node(), swarm.id(2));
}

#[tokio::test]
async fn the_command_line_prints_the_whole_answer_and_says_who_took_over() {
    let pace = slow_worker("");
    let swarm = team(&[pace.clone(), pace]).await;
    let text = words(9, 60);
    let arguments = ["ask", "--explain", &text];
    let asked = swarm.member(0).run(&arguments);
    let (finished, victim) = futures::future::join(asked, kill_the_busy_one(&swarm)).await;
    assert_eq!((finished.code, finished.stdout.trim_end()), (Some(0), text.as_str()), "{}", finished.stderr);
    let other = format!("node{}", 3 - victim);
    assert!(finished.stderr.contains(&other), "{}", finished.stderr);
}
