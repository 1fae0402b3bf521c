use bombus_testkit::upstream::{Script, Upstream};
use serde_json::{Value, json};

use crate::harness::{Home, Node, Process, Signal, fake, fake_named, mode, no_backends, server};
use crate::terminal::{CTRL_C, CTRL_D, Terminal};

#[tokio::test]
async fn each_line_of_a_pipe_is_a_turn() {
    let home = Home::new(&fake(""));
    for with_node in [false, true] {
        let _node = if with_node { Some(Node::start(&home).await) } else { None };
        let said = home.run_with_stdin(&["chat"], "one\n\n\"\"\"two\nthree\"\"\"\n//etc\n").await;
        assert_eq!((said.code, said.stdout.as_str()), (Some(0), "one\ntwo\nthree\n/etc\n"), "{}", said.stderr);
        assert_eq!(said.stderr, "");
    }
}

#[tokio::test]
async fn json_is_one_object_on_a_line_for_each_answer() {
    let home = Home::new(&fake(""));
    let said = home.run_with_stdin(&["chat", "--json", "--system", "short"], "a\nb c\n").await;
    let answers: Vec<Value> = said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [first, second] = answers.as_slice() else { panic!("{}", said.stdout) };
    assert_eq!((&first["answer"], &second["answer"]), (&"a".into(), &"b c".into()));
    assert_eq!(second["usage"]["prompt_tokens"], 5, "the system message, the turn before and its answer are sent too");
}

#[tokio::test]
async fn a_conversation_is_saved_loaded_and_forgotten() {
    let home = Home::new(&(no_backends() + &fake_named("fake", "models = ['fake', 'other']")));
    let first = home.run_with_stdin(&["chat"], "one\n/system be brief\n/model other\n/save talk.json\n").await;
    assert_eq!((first.code, first.stdout.as_str()), (Some(0), "one\n"), "{}", first.stderr);
    assert_eq!(first.stderr, "2 turns saved in talk.json\n");
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(home.path("talk.json")).unwrap()).unwrap();
    let messages = json!([{ "role": "user", "content": "one" }, { "role": "assistant", "content": "one" }]);
    assert_eq!(
        (&saved["messages"], &saved["model"], &saved["system"]),
        (&messages, &"other".into(), &"be brief".into())
    );
    assert_eq!(mode(&home.path("talk.json")), 0o600);

    let second = home.run_with_stdin(&["chat", "--json"], "/load talk.json\ntwo\n/clear\nthree\n").await;
    let answers: Vec<Value> = second.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers[0]["model"], "other:latest", "{}", second.stderr);
    assert_eq!(answers[0]["usage"]["prompt_tokens"], 5);
    assert_eq!(answers[1]["usage"]["prompt_tokens"], 3, "the system message stays");
}

#[tokio::test]
async fn a_mistake_in_a_pipe_ends_it_with_a_hint() {
    let home = Home::new(&fake(""));
    for (stdin, code, error) in [
        ("/sav x\n", 2, "there is no command /sav"),
        ("/load nothing.json\n", 3, "nothing.json is not a file"),
        ("/model nope\n", 3, "model 'nope' not found"),
        ("\"\"\"open\n", 2, "stdin ended inside of a text"),
    ] {
        let failed = home.run_with_stdin(&["chat"], stdin).await;
        assert_eq!((failed.code, failed.stdout.as_str()), (Some(code), ""), "{stdin}: {}", failed.stderr);
        assert!(failed.stderr.contains(error), "{stdin}: {}", failed.stderr);
    }
    std::fs::write(home.path("notes.txt"), "mine").unwrap();
    let refused = home.run_with_stdin(&["chat"], "hi\n/save notes.txt\n").await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert_eq!(std::fs::read_to_string(home.path("notes.txt")).unwrap(), "mine");
}

#[tokio::test]
async fn a_signal_ends_a_chat_in_a_pipe() {
    let home = Home::new(&fake("reply = 'tick'\ntokens = 1000000\ntoken_ms = 10"));
    let mut command = home.command(&["chat"]);
    std::fs::write(home.path("said"), "hi\nho\n").unwrap();
    command.stdin(std::fs::File::open(home.path("said")).unwrap());
    let mut chatting = Process::start(command);
    assert_eq!(chatting.stdout_bytes(8).await, "ticktick");
    chatting.signal(Signal::Interrupt);
    assert_eq!(chatting.ended().await.code(), Some(130), "{}", chatting.stderr());
}

#[tokio::test]
async fn in_a_terminal_there_is_a_history_and_markdown_is_readable() {
    let home = Home::new(&fake(""));
    let node = Node::start(&home).await;
    let mut chat = Terminal::start(&home.command(&["chat"]));
    chat.shows(node.id()).await;
    chat.shows(">>> ").await;
    chat.enters("some **bold** words");
    chat.shows("\u{1b}[1mbold").await;
    chat.shows("answer tokens").await;
    chat.shows(">>> ").await;
    chat.enters("/nonsense");
    chat.shows("there is no command /nonsense").await;
    chat.shows(">>> ").await;
    chat.types("/mod\t f\t");
    chat.shows("/model").await;
    chat.types("\u{15}");
    // Up twice: the command that there was none of, then the question.
    chat.types("\u{1b}[A\u{1b}[A");
    chat.shows("some **bold** words").await;
    chat.enters("");
    chat.shows("answer tokens").await;
    chat.shows(">>> ").await;
    chat.types(CTRL_D);
    assert_eq!(chat.ended().await.code(), Some(0), "{}", chat.screen());
    let history = std::fs::read_to_string(home.data_dir().join("chat_history")).unwrap();
    assert!(history.contains("some **bold** words"), "{history}");
    assert_eq!(mode(&home.data_dir().join("chat_history")), 0o600);
}

/// Enters what is obeyed without a word, and waits for the next prompt.
async fn in_silence(chat: &mut Terminal, command: &str) {
    chat.enters(command);
    chat.shows("\n").await;
    chat.shows(">>> ").await;
}

#[tokio::test]
async fn every_command_works_at_the_keyboard() {
    let home = Home::new(&(no_backends() + &fake_named("fake", "models = ['fake', 'other']")));
    let mut chat = Terminal::start(&home.command(&["chat"]));
    chat.shows(">>> ").await;
    chat.enters("one");
    chat.shows(": 1 prompt tokens, 1 answer tokens").await;
    chat.shows(">>> ").await;
    in_silence(&mut chat, "/model other").await;
    chat.enters("/model");
    chat.shows("other; there are: fake:latest, other:latest").await;
    chat.shows(">>> ").await;
    chat.enters("/system");
    chat.shows("no system message").await;
    chat.shows(">>> ").await;
    in_silence(&mut chat, "/system be brief").await;
    chat.enters("/system");
    chat.shows("be brief").await;
    chat.shows(">>> ").await;
    chat.enters("/save talk.json");
    chat.shows("2 turns saved in talk.json").await;
    chat.shows(">>> ").await;
    in_silence(&mut chat, "/clear").await;
    chat.enters("two");
    // The system message stays, and the turns before are gone.
    chat.shows(": 3 prompt tokens").await;
    chat.shows(">>> ").await;
    chat.enters("/load talk.json");
    chat.shows("2 turns loaded; the model is other").await;
    chat.shows(">>> ").await;
    chat.enters("three");
    chat.shows(": 5 prompt tokens").await;
    chat.shows(">>> ").await;
    chat.enters("/model nope");
    chat.shows("model 'nope' not found").await;
    chat.shows(">>> ").await;
    chat.enters("/quit");
    assert_eq!(chat.ended().await.code(), Some(0), "{}", chat.screen());
}

#[tokio::test]
async fn a_line_is_edited_and_one_of_an_earlier_chat_comes_back() {
    let home = Home::new(&fake(""));
    let mut first = Terminal::start(&home.command(&["chat"]));
    first.shows(">>> ").await;
    // Home, a word; end, back over a letter; one word to the left and away with it.
    first.types("bees mekX");
    first.types("\u{1b}[H");
    first.types("wild ");
    first.types("\u{1b}[F\u{7f}\u{17}");
    first.enters("buzz");
    first.shows(": 3 prompt tokens, 3 answer tokens").await;
    first.shows(">>> ").await;
    first.enters("/quit");
    assert_eq!(first.ended().await.code(), Some(0), "{}", first.screen());
    let history = std::fs::read_to_string(home.data_dir().join("chat_history")).unwrap();
    assert!(history.lines().any(|line| line == "wild bees buzz"), "{history}");

    let mut second = Terminal::start(&home.command(&["chat"]));
    second.shows(">>> ").await;
    // Up twice: the command that ended the first chat, then its question.
    second.types("\u{1b}[A\u{1b}[A");
    second.shows("wild bees buzz").await;
    second.enters("");
    second.shows(": 3 prompt tokens, 3 answer tokens").await;
    second.shows(">>> ").await;
    second.types(CTRL_D);
    assert_eq!(second.ended().await.code(), Some(0), "{}", second.screen());
}

/// What requests to the scripted server of these tests begin with.
const CHAT: &str = "POST /v1/chat/completions";

/// A short answer of a server that counts no tokens.
fn short_answer() -> Script {
    let said = json!({ "id": "c", "model": "fake", "choices": [{ "index": 0, "delta": { "content": "Hello" } }] });
    let end = json!({ "id": "c", "model": "fake", "choices": [{ "index": 0, "delta": {}, "finish_reason": "stop" }] });
    Script::events(&[said, end]).done()
}

/// The configuration of a node whose only backend is that server.
fn scripted(upstream: &Upstream) -> String {
    upstream.on("GET /v1/models", Script::json(200, &json!({ "data": [{ "id": "fake", "owned_by": "test" }] })));
    no_backends() + &server("openai", "scripted", &upstream.url(), "")
}

#[tokio::test]
async fn a_question_that_gets_no_answer_takes_no_turn_with_it() {
    let upstream = Upstream::start().await.unwrap();
    let message = "the request exceeds the available context size";
    let too_long = json!({ "error": { "code": 400, "message": message, "n_prompt_tokens": 900, "n_ctx": 512 } });
    let too_long = Script::json(400, &too_long);
    upstream.once(CHAT, short_answer());
    upstream.once(CHAT, short_answer());
    upstream.on(CHAT, too_long.clone());
    let home = Home::new(&scripted(&upstream));
    let mut chat = Terminal::start(&home.command(&["chat"]));
    chat.shows(">>> ").await;
    for question in ["one", "two"] {
        chat.enters(question);
        chat.shows("answer tokens").await;
        chat.shows(">>> ").await;
    }
    chat.enters("far too long");
    chat.shows("error: ").await;
    chat.shows(">>> ").await;
    chat.enters("/save talk.json");
    chat.shows("4 turns saved").await;
    chat.shows(">>> ").await;
    assert!(!chat.screen().contains("left out"), "{}", chat.screen());

    // What gets an answer without the oldest turns leaves them out from then on.
    upstream.once(CHAT, too_long);
    upstream.on(CHAT, short_answer());
    chat.enters("three");
    chat.shows("note: the 4 oldest turns are left out").await;
    chat.shows(">>> ").await;
    chat.enters("/save talk.json");
    chat.shows("2 turns saved").await;
    chat.shows(">>> ").await;
    chat.enters("/quit");
    assert_eq!(chat.ended().await.code(), Some(0), "{}", chat.screen());
}

#[tokio::test]
async fn a_chat_goes_on_with_the_node_that_was_started_again() {
    let home = Home::new(&fake(""));
    let node = Node::start(&home).await;
    let mut chat = Terminal::start(&home.command(&["chat"]));
    chat.shows(">>> ").await;
    chat.enters("one");
    chat.shows(": 1 prompt tokens").await;
    chat.shows(">>> ").await;

    node.stop().await;
    chat.enters("two");
    chat.shows("does not answer").await;
    chat.shows(">>> ").await;

    let again = Node::start(&home).await;
    chat.enters("/model");
    chat.shows("there are: fake").await;
    chat.shows(">>> ").await;
    chat.enters("three");
    // The question that got no answer is forgotten, the turn before it is not.
    chat.shows(": 3 prompt tokens").await;
    chat.shows(">>> ").await;
    again.crash().await;

    let _third = Node::start(&home).await;
    chat.enters("four");
    chat.shows(": 5 prompt tokens").await;
    chat.shows(">>> ").await;
    chat.enters("/quit");
    assert_eq!(chat.ended().await.code(), Some(0), "{}", chat.screen());
}

#[tokio::test]
async fn ctrl_c_stops_the_answer_and_then_the_chat() {
    let home = Home::new(&fake("reply = 'tick'\ntokens = 1000000\ntoken_ms = 10"));
    let mut chat = Terminal::start(&home.command(&["chat"]));
    chat.shows(">>> ").await;
    chat.enters("hi");
    chat.shows("tickticktick").await;
    chat.types(CTRL_C);
    chat.shows("Ctrl-C again").await;
    chat.shows(">>> ").await;
    chat.enters("/help");
    chat.shows("/clear").await;
    chat.shows(">>> ").await;
    chat.types(CTRL_C);
    chat.shows("Ctrl-C again").await;
    chat.shows(">>> ").await;
    chat.types(CTRL_C);
    assert_eq!(chat.ended().await.code(), Some(130), "{}", chat.screen());
}

#[tokio::test]
async fn several_lines_in_quotes_are_one_turn() {
    let home = Home::new(&fake(""));
    let mut chat = Terminal::start(&home.command(&["chat", "--quiet"]));
    chat.shows(">>> ").await;
    chat.enters("\"\"\"first");
    chat.enters("second\"\"\"");
    chat.shows("first\r\nsecond\r\n").await;
    chat.shows(">>> ").await;
    chat.enters("/quit");
    assert_eq!(chat.ended().await.code(), Some(0), "{}", chat.screen());
}
