use std::io::Seek;

use serde_json::Value;

use crate::harness::{Home, Node, Process, Signal, fake, fake_named, finish, no_backends};
use crate::model::eventually;

#[tokio::test]
async fn the_running_node_answers_and_stdout_has_the_answer_alone() {
    let home = Home::new(&fake(""));
    let _node = Node::start(&home).await;
    let asked = home.run(&["ask", "why", "is the sky  blue?"]).await;
    assert_eq!((asked.code, asked.stdout.as_str()), (Some(0), "why is the sky  blue?\n"), "{}", asked.stderr);
    assert_eq!(asked.stderr.lines().count(), 1, "{}", asked.stderr);
    for part in ["by fake of node ", "5 answer tokens"] {
        assert!(asked.stderr.contains(part), "{:?} lacks {part:?}", asked.stderr);
    }
}

#[tokio::test]
async fn without_a_node_the_command_runs_the_model_itself() {
    let home = Home::new(&fake(""));
    let asked = home.run(&["ask", "hello"]).await;
    assert_eq!((asked.code, asked.stdout.as_str()), (Some(0), "hello\n"), "{}", asked.stderr);
    assert!(asked.stderr.contains("in this process"), "{}", asked.stderr);
}

#[tokio::test]
async fn a_node_that_crashed_does_not_keep_anyone_from_asking() {
    let home = Home::new(&fake(""));
    Node::start(&home).await.crash().await;
    let asked = home.run(&["ask", "hello"]).await;
    assert_eq!((asked.code, asked.stdout.as_str()), (Some(0), "hello\n"), "{}", asked.stderr);
    assert!(asked.stderr.contains("in this process"), "{}", asked.stderr);
}

#[tokio::test]
async fn the_prompt_comes_from_arguments_and_stdin() {
    let home = Home::new(&fake(""));
    for (arguments, stdin, answer, remark) in [
        (vec!["ask"], "from a pipe\n", "from a pipe\n", None),
        (vec!["ask", "-"], "from a pipe", "from a pipe\n", None),
        (vec!["ask", "say", "-"], "this", "say\n\nthis\n", None),
        (vec!["ask", "say", "this"], "", "say this\n", None),
        (vec!["ask", "explain", "this:"], "a\nb\n", "explain this:\n\na\nb\n", Some("4 bytes from stdin added")),
    ] {
        let asked = home.run_with_stdin(&arguments, stdin).await;
        assert_eq!((asked.code, asked.stdout.as_str()), (Some(0), answer), "{arguments:?}: {}", asked.stderr);
        assert!(asked.stderr.contains(remark.unwrap_or("")), "{arguments:?}: {}", asked.stderr);
        assert_eq!(asked.stderr.contains("note: "), remark.is_some(), "{arguments:?}: {}", asked.stderr);
    }
    let nothing = home.run_with_stdin(&["ask"], "").await;
    assert_eq!(nothing.code, Some(2));
    assert!(nothing.stderr.starts_with("error: there is no prompt\nhint: "), "{}", nothing.stderr);
}

#[tokio::test]
async fn a_piece_of_an_answer_may_be_long() {
    let home = Home::new(&fake(""));
    let word = "x".repeat(2_000_000);
    for with_node in [false, true] {
        let _node = if with_node { Some(Node::start(&home).await) } else { None };
        let asked = home.run_with_stdin(&["ask"], &word).await;
        assert_eq!((asked.code, asked.stdout.len()), (Some(0), word.len() + 1), "{}", asked.stderr);
        assert_eq!(asked.stdout.trim_end(), word);
    }
}

#[tokio::test]
async fn a_loop_over_lines_can_keep_them_for_its_next_question() {
    let home = Home::new(&fake(""));
    std::fs::write(home.path("list"), "second\nthird\n").unwrap();
    let mut list = std::fs::File::open(home.path("list")).unwrap();
    let mut command = home.command(&["ask", "--no-stdin", "first"]);
    command.stdin(list.try_clone().unwrap());
    let asked = finish(command).await;
    assert_eq!((asked.code, asked.stdout.as_str()), (Some(0), "first\n"), "{}", asked.stderr);
    assert_eq!(list.stream_position().unwrap(), 0, "not a byte of the list was read");

    let contradiction = home.run(&["ask", "--no-stdin", "-"]).await;
    assert_eq!(contradiction.code, Some(2));
    assert!(contradiction.stderr.contains("--no-stdin"), "{}", contradiction.stderr);
}

#[tokio::test]
async fn quiet_leaves_nothing_but_the_answer() {
    let home = Home::new(&fake(""));
    let asked = home.run(&["ask", "--quiet", "hello"]).await;
    assert_eq!((asked.stdout.as_str(), asked.stderr.as_str()), ("hello\n", ""));
}

#[tokio::test]
async fn json_is_one_object_with_the_same_fields_both_ways() {
    let home = Home::new(&fake("reply = 'a b c d'"));
    let arguments =
        ["ask", "--json", "--max-tokens", "3", "--temperature", "0", "--seed", "1", "--system", "short", "hi"];
    let alone: Value = serde_json::from_str(&home.run(&arguments).await.stdout).unwrap();
    let node = Node::start(&home).await;
    let remote: Value = serde_json::from_str(&home.run(&arguments).await.stdout).unwrap();
    for answer in [&alone, &remote] {
        assert_eq!(answer["answer"], "a b c");
        assert_eq!(answer["finish_reason"], "length");
        assert_eq!(answer["usage"]["completion_tokens"], 3);
        assert_eq!(answer["model"], "fake:latest");
        assert_eq!(answer["route"]["backend"], "fake");
        assert!(answer["timings"]["prompt_ms"].is_number());
    }
    assert_eq!(alone["route"]["node"], Value::Null);
    assert_eq!(remote["route"]["node"], node.id());
    let fields = |answer: &Value| answer.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(fields(&alone), fields(&remote));
}

#[tokio::test]
async fn an_unknown_model_is_not_found_and_says_how_to_get_it() {
    let home = Home::new(&fake(""));
    let alone = home.run(&["ask", "--model", "nope", "hi"]).await;
    let _node = Node::start(&home).await;
    let remote = home.run(&["ask", "--model", "nope", "hi"]).await;
    for asked in [alone, remote] {
        assert_eq!((asked.code, asked.stdout.as_str()), (Some(3), ""), "{}", asked.stderr);
        assert!(asked.stderr.contains("error: model 'nope' not found"), "{}", asked.stderr);
        assert!(asked.stderr.contains("hint: bombus models pull nope"), "{}", asked.stderr);
    }
}

#[tokio::test]
async fn the_default_model_is_the_nodes_own() {
    let home = Home::new("");
    let other = home.path("other.toml");
    std::fs::write(&other, fake("models = ['special']").replace("'fake'\n[api]", "'special'\n[api]")).unwrap();
    let _node = Node::start_with(&home, &["--config", other.to_str().unwrap()]).await;
    let asked = home.run(&["ask", "hello"]).await;
    assert_eq!((asked.code, asked.stdout.as_str()), (Some(0), "hello\n"), "{}", asked.stderr);
}

#[tokio::test]
async fn an_answer_that_breaks_off_shows_what_came_and_fails() {
    let home = Home::new(&fake("reply = 'a b c d'\nfail = 'after:2'\ncontinues = false"));
    let alone = home.run(&["ask", "hi"]).await;
    let _node = Node::start(&home).await;
    let remote = home.run(&["ask", "hi"]).await;
    for asked in [alone, remote] {
        assert_eq!(asked.stdout, "a b\n", "{}", asked.stderr);
        assert_eq!(asked.code, Some(4), "{}", asked.stderr);
        assert!(asked.stderr.contains("error: ") && asked.stderr.contains("as configured"), "{}", asked.stderr);
    }
}

#[tokio::test]
async fn a_backend_that_refuses_is_unavailable() {
    let home = Home::new(&fake("fail = 'refuse'"));
    let alone = home.run(&["ask", "hi"]).await;
    let _node = Node::start(&home).await;
    let remote = home.run(&["ask", "hi"]).await;
    for asked in [alone, remote] {
        assert_eq!((asked.code, asked.stdout.as_str()), (Some(4), ""), "{}", asked.stderr);
        assert!(asked.stderr.contains("hint: "), "{}", asked.stderr);
    }
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_an_error_and_no_reason_to_run_a_second_one() {
    let home = Home::new(&fake(""));
    let mut node = Node::start(&home).await;
    node.process().signal(Signal::Pause);
    let asked = home.run(&["ask", "hi"]).await;
    let examined = home.run(&["doctor"]).await;
    node.process().signal(Signal::Resume);
    assert_eq!((asked.code, asked.stdout.as_str()), (Some(4), ""), "{}", asked.stderr);
    assert!(asked.stderr.contains("does not answer") && asked.stderr.contains("hint: "), "{}", asked.stderr);
    assert!(examined.stdout.contains("FAIL  node: process"), "{}", examined.stdout);
    node.stop().await;
}

#[tokio::test]
async fn a_stdin_that_stays_open_is_remarked_upon() {
    let home = Home::new(&fake(""));
    let mut command = home.command(&["ask", "hi"]);
    command.stdin(std::process::Stdio::piped());
    let mut asking = Process::start(command);
    asking.stderr_shows("note: reading the rest of the prompt from stdin").await;
    asking.close_stdin();
    assert_eq!(asking.ended().await.code(), Some(0), "{}", asking.stderr());
    assert_eq!(asking.stdout_rest().await, "hi\n");
}

#[tokio::test]
async fn a_prompt_that_is_no_text_is_refused() {
    let home = Home::new(&fake(""));
    std::fs::write(home.path("picture"), [0xff, 0xd8, 0xff]).unwrap();
    let mut command = home.command(&["ask", "-"]);
    command.stdin(std::fs::File::open(home.path("picture")).unwrap());
    let refused = finish(command).await;
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("not UTF-8"), "{}", refused.stderr);
}

#[tokio::test]
async fn a_reader_that_goes_away_stops_the_answer_without_a_complaint() {
    let home = Home::new(&fake("reply = 'tick'\ntokens = 1000000\ntoken_ms = 5"));
    let mut asking = Process::start(home.command(&["ask", "hi"]));
    assert_eq!(asking.stdout_bytes(4).await, "tick");
    asking.close_stdout();
    assert_eq!((asking.ended().await.code(), asking.stderr().as_str()), (Some(0), ""));
}

#[tokio::test]
async fn ctrl_c_stops_the_answer_and_keeps_what_came() {
    let home = Home::new(&fake("reply = 'tick'\ntokens = 1000000\ntoken_ms = 10"));
    let node = Node::start(&home).await;
    for arguments in [vec!["ask", "hi"], vec!["ask", "hi", "--data-dir", "elsewhere"]] {
        let mut asking = Process::start(home.command(&arguments));
        assert_eq!(asking.stdout_bytes(8).await, "ticktick");
        asking.signal(Signal::Interrupt);
        assert_eq!(asking.ended().await.code(), Some(130), "{}", asking.stderr());
        let rest = asking.stdout_rest().await;
        assert!(rest.ends_with('\n') && rest.trim_end().replace("tick", "").is_empty(), "{rest:?}");
        assert_eq!(asking.stderr(), "stopped\n");
    }
    node.stop().await;
}

#[tokio::test]
async fn ctrl_c_ends_a_wait_for_the_first_token() {
    let home = Home::new(&fake("fail = 'hang'"));
    let _node = Node::start(&home).await;
    let mut asking = Process::start(home.command(&["ask", "--log-level", "debug", "hi"]));
    asking.stderr_shows("\"asking\"").await;
    asking.signal(Signal::Interrupt);
    assert_eq!(asking.ended().await.code(), Some(130), "{}", asking.stderr());
}

#[tokio::test]
async fn interrupted_json_says_so() {
    let home = Home::new(&fake("reply = 'tick'\ntokens = 1000000\ntoken_ms = 1"));
    let _node = Node::start(&home).await;
    let mut asking = Process::start(home.command(&["ask", "--json", "--log-level", "debug", "hi"]));
    asking.stderr_shows("\"asking\"").await;
    asking.signal(Signal::Interrupt);
    assert_eq!(asking.ended().await.code(), Some(130), "{}", asking.stderr());
    let answer: Value = serde_json::from_str(&asking.stdout_rest().await).unwrap();
    assert_eq!(answer["finish_reason"], "interrupted");
}

#[tokio::test]
async fn a_second_ctrl_c_ends_the_program_even_while_nobody_reads_its_output() {
    let home = Home::new(&fake("reply = 'tick'\ntokens = 1000000"));
    let _node = Node::start(&home).await;
    let mut asking = Process::start(home.command(&["ask", "--log-level", "bombus=debug", "hi"]));
    eventually("a full pipe", async || asking.stdout_bytes_waiting() >= 60_000).await;
    asking.signal(Signal::Interrupt);
    asking.stderr_shows("another one ends the program").await;
    asking.signal(Signal::Interrupt);
    assert_eq!(asking.ended().await.code(), Some(130), "{}", asking.stderr());
}

#[tokio::test]
async fn an_explained_answer_names_every_backend_and_who_answered() {
    let config = no_backends() + &fake_named("first", "models = ['fake']") + &fake_named("other", "models = ['else']");
    let home = Home::new(&config);
    let alone = home.run(&["ask", "--explain", "--quiet", "hi"]).await;
    let _node = Node::start(&home).await;
    let remote = home.run(&["ask", "--explain", "--quiet", "hi"]).await;
    for asked in [alone, remote] {
        assert_eq!((asked.code, asked.stdout.as_str()), (Some(0), "hi\n"), "{}", asked.stderr);
        let lines: Vec<&str> = asked.stderr.lines().collect();
        let [first, other, answered] = lines[..] else { panic!("{lines:?}") };
        assert!(first.starts_with("first  ") && first.contains("in memory"), "{first}");
        assert!(other.starts_with("other  no: ") && other.contains("does not have this model"), "{other}");
        assert_eq!(answered, "answered by first, because: only");
    }
    let json: Value = serde_json::from_str(&home.run(&["ask", "--explain", "--json", "hi"]).await.stdout).unwrap();
    assert_eq!(json["placement"][0]["backend"], "first");
    assert!(json["placement"][0]["score"].is_number() && json["placement"][1]["rejected"].is_string(), "{json}");
    assert_eq!(json["route"]["reason"], "only");
}
