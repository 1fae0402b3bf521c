use serde_json::Value;

use crate::harness::{Home, Node, Process, Signal, fake, fake_named, no_backends, server};

#[tokio::test]
async fn every_backend_is_measured_and_failures_stand_beside() {
    let config = no_backends()
        + &fake_named("slow", "reply = 'a b c d e f g h'\nfirst_token_ms = 60\ntoken_ms = 20")
        + &fake_named("broken", "fail = 'refuse'")
        + &fake_named("without", "models = ['else']");
    let home = Home::new(&config);
    let benched = home.run(&["bench", "fake", "--json", "--tokens", "6", "--rounds", "2"]).await;
    assert_eq!(benched.code, Some(0), "{}", benched.stderr);
    let results: Value = serde_json::from_str(&benched.stdout).unwrap();
    let of = |name: &str| {
        let backends = results["backends"].as_array().unwrap();
        backends.iter().find(|backend| backend["backend"] == name).unwrap().clone()
    };
    let slow = of("slow");
    assert_eq!(slow["rounds"].as_array().unwrap().len(), 2);
    assert_eq!(slow["rounds"][0]["completion_tokens"], 6);
    assert!(slow["first_token_ms"].as_f64().unwrap() >= 60.0, "{slow}");
    let speed = slow["tokens_per_second"].as_f64().unwrap();
    assert!(speed > 1.0 && speed <= 51.0, "{slow}");
    assert!(of("broken")["error"].as_str().unwrap().contains("as configured"), "{results}");
    assert!(of("without")["error"].as_str().unwrap().contains("does not have this model"), "{results}");
    assert!(benched.stderr.contains("slow: round 2 of 2"), "{}", benched.stderr);

    let table = home.run(&["bench", "fake", "--quiet", "--tokens", "2", "--rounds", "1"]).await;
    assert!(table.stdout.starts_with("BACKEND ") && table.stdout.lines().count() == 4, "{}", table.stdout);
    assert_eq!(table.stderr, "");
}

#[tokio::test]
async fn candidates_of_every_kind_are_measured_and_explained() {
    let upstream_home = Home::new(&fake("reply = 'a b c d'"));
    let upstream = Node::start(&upstream_home).await;
    let config = no_backends()
        + &fake_named("script", "reply = 'a b c d'")
        + &server("ollama", "by-ollama", &upstream.url(""), "")
        + &server("openai", "by-openai", &upstream.url("/v1"), "");
    let home = Home::new(&config);
    let benched = home.run(&["bench", "fake", "--json", "--tokens", "3", "--rounds", "1"]).await;
    assert_eq!(benched.code, Some(0), "{}", benched.stderr);
    let results: Value = serde_json::from_str(&benched.stdout).unwrap();
    let names = |list: &Value| {
        let mut names: Vec<String> =
            list.as_array().unwrap().iter().map(|entry| entry["backend"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&results["backends"]), ["by-ollama", "by-openai", "script"]);
    for backend in results["backends"].as_array().unwrap() {
        assert_eq!(backend["rounds"][0]["completion_tokens"], 3, "{backend}");
        assert!(backend["first_token_ms"].is_number() && backend["error"].is_null(), "{backend}");
    }

    let asked = home.run(&["ask", "--explain", "--json", "hi"]).await;
    let asked: Value = serde_json::from_str(&asked.stdout).unwrap_or_else(|_| panic!("{}", asked.stderr));
    assert_eq!(names(&asked["placement"]), ["by-ollama", "by-openai", "script"]);
    let scored = |candidate: &Value| candidate["score"].is_number();
    assert!(asked["placement"].as_array().unwrap().iter().all(scored), "{asked}");
}

#[tokio::test]
async fn where_nobody_answers_there_is_nothing_to_measure() {
    let home = Home::new(&(no_backends() + &fake_named("broken", "fail = 'refuse'")));
    assert_eq!(home.run(&["bench", "nope"]).await.code, Some(3));
    let failed = home.run(&["bench", "fake"]).await;
    assert_eq!(failed.code, Some(4), "{}", failed.stderr);
    assert!(failed.stderr.contains("hint: bombus backends"), "{}", failed.stderr);
}

#[tokio::test]
async fn a_signal_ends_a_measurement() {
    let home = Home::new(&(no_backends() + &fake_named("hangs", "fail = 'hang'")));
    for (signal, code) in [(Signal::Interrupt, 130), (Signal::Terminate, 143)] {
        let mut benching = Process::start(home.command(&["bench", "fake"]));
        benching.stderr_shows("hangs: first answer").await;
        benching.signal(signal);
        assert_eq!(benching.ended().await.code(), Some(code), "{}", benching.stderr());
    }
}
