use serde_json::Value;

use crate::harness::{Home, finish};

#[tokio::test]
async fn every_value_is_shown_with_its_origin() {
    let home = Home::new("name = 'from the file'\n[log]\nlevel = 'warn'\n");
    let mut command = home.command(&["config", "show", "--json", "--log-level", "debug"]);
    command.env("BOMBUS_API__LISTEN", "127.0.0.1:1");
    let shown: Value = serde_json::from_str(&finish(command).await.stdout).unwrap();
    let file = format!("file {}", home.config_file().display());
    let data_dir = home.data_dir();
    let mut wanted = vec![
        ("data_dir", data_dir.to_str().unwrap(), "environment BOMBUS_DATA_DIR"),
        ("name", "from the file", file.as_str()),
        ("api.listen", "127.0.0.1:1", "environment BOMBUS_API__LISTEN"),
        ("log.level", "debug", "flag --log-level"),
        ("default_model", "smollm2:135m", "default"),
    ];
    if cfg!(feature = "embedded") {
        wanted.push(("backends.0.kind", "embedded", "default"));
    }
    for (key, value, origin) in wanted {
        assert_eq!((&shown[key]["value"], &shown[key]["origin"]), (&value.into(), &origin.into()), "{key}");
    }
    assert!(!home.data_dir().exists(), "showing the configuration makes no data directory");
}

#[tokio::test]
async fn data_lies_where_the_system_keeps_data_unless_a_place_is_named() {
    let home = Home::new("");
    let make_key = async |data_home: Option<&str>| {
        let mut command = home.command(&["keys", "create", "laptop"]);
        command.env_remove("BOMBUS_DATA_DIR").env_remove("XDG_DATA_HOME");
        command.envs(data_home.map(|folder| ("XDG_DATA_HOME", home.path(folder))));
        let made = finish(command).await;
        assert_eq!(made.code, Some(0), "{}", made.stderr);
    };
    make_key(Some("of-this-user")).await;
    assert!(home.path("of-this-user/bombus/keys.json").is_file());
    assert!(!home.path(".local").exists() && !home.data_dir().exists());
    // HOME is the folder of the test.
    make_key(None).await;
    assert!(home.path(".local/share/bombus/keys.json").is_file());
}

#[tokio::test]
async fn the_table_names_each_key_once() {
    let home = Home::new("");
    let shown = home.run(&["config", "show"]).await;
    let keys: Vec<_> = shown.stdout.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key).collect();
    assert!(keys.contains(&"api.limits.grace_ms") && keys.contains(&"log.rotation"), "{}", shown.stdout);
    assert!(shown.stdout.lines().all(|line| line.contains("# ")), "{}", shown.stdout);
}

#[tokio::test]
async fn backends_are_shown_and_their_secrets_are_not() {
    let home = Home::new(
        "[[backends]]\nkind = 'openai'\nurl = 'http://u:s3cret@127.0.0.1:1/v1'\napi_key_env = 'SOME_KEY'\n\
         headers = { x-key = 's3cret' }\n[[backends]]\nkind = 'openai'\nurl = 'http://127.0.0.1:2'\n",
    );
    let mut command = home.command(&["config", "show"]);
    command.env("SOME_KEY", "s3cret");
    let shown = finish(command).await;
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    for part in ["backends.0.name = \"openai\"", "backends.1.name = \"openai-2\"", "\"SOME_KEY\"", "x-key"] {
        assert!(shown.stdout.contains(part), "{} lacks {part}", shown.stdout);
    }
    assert!(!shown.stdout.contains("s3cret"), "{}", shown.stdout);
}

#[tokio::test]
async fn a_mistake_in_the_file_stops_every_command_that_reads_it() {
    let home = Home::new("[api]\nlissten = '127.0.0.1:1'\n");
    for arguments in [vec!["up"], vec!["ask", "hi"], vec!["config", "show"], vec!["models", "list"]] {
        let failed = home.run(&arguments).await;
        assert_eq!((failed.code, failed.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        for part in ["error: unknown key `api.lissten`", "config.toml", "did you mean `api.listen`?"] {
            assert!(failed.stderr.contains(part), "{arguments:?}: {}", failed.stderr);
        }
    }
}

#[tokio::test]
async fn a_named_file_that_is_missing_is_an_error() {
    let home = Home::new("");
    let failed = home.run(&["config", "show", "--config", "none.toml"]).await;
    assert_eq!(failed.code, Some(2));
    assert!(failed.stderr.contains("none.toml"), "{}", failed.stderr);
}

#[tokio::test]
async fn notices_about_a_node_config_file_go_to_stderr() {
    let home = Home::new("");
    std::fs::write(home.path("config.json"), r#"{"nodeId": "w1", "orbitDbDirectory": "db", "logLevel": "warn"}"#)
        .unwrap();
    let shown = home.run(&["config", "show", "--json", "--config", "config.json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&shown.stdout).unwrap()["name"]["value"], "w1");
    assert_eq!(shown.stderr.lines().count(), 1, "{}", shown.stderr);
    assert!(
        shown.stderr.starts_with("note: ") && shown.stderr.contains("orbitDbDirectory is ignored"),
        "{}",
        shown.stderr
    );
}
