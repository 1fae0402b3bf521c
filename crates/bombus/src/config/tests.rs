use std::fs;

use bombus_swarm::route::Manage;
use serde_json::json;

use super::load::{Settings, Sources};
use super::{BackendKind, ConfigError};

struct Setup {
    folder: tempfile::TempDir,
    sources: Sources,
}

fn setup() -> Setup {
    Setup { folder: tempfile::tempdir().unwrap(), sources: Sources::default() }
}

impl Setup {
    fn file(mut self, name: &str, text: &str) -> Self {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        self.sources.file = Some(path);
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.push((name.into(), value.into()));
        self
    }

    fn flag(mut self, flag: &'static str, key: &'static str, value: &str) -> Self {
        self.sources.flags.push((flag, key, value.into()));
        self
    }

    fn load(&self) -> Settings {
        Settings::load(&self.sources).unwrap_or_else(|error| panic!("{error}"))
    }

    fn error(&self) -> String {
        match Settings::load(&self.sources) {
            Ok(settings) => panic!("it loaded: {:?}", settings.entries),
            Err(error) => error.to_string(),
        }
    }
}

#[test]
fn each_layer_overrides_the_one_below_and_leaves_its_name() {
    let all = setup()
        .file("c.toml", "name = 'f'\ndefault_model = 'f'\n[api]\nlisten = '127.0.0.1:1'\n[log]\nlevel = 'warn'\n")
        .env("BOMBUS_DEFAULT_MODEL", "e")
        .env("BOMBUS_API__LISTEN", "127.0.0.1:2")
        .flag("--api", "api.listen", "127.0.0.1:3");
    let settings = all.load();
    let file = format!("file {}", all.sources.file.as_ref().unwrap().display());
    for (key, value, origin) in [
        ("name", json!("f"), file.as_str()),
        ("default_model", json!("e:latest"), "environment BOMBUS_DEFAULT_MODEL"),
        ("api.listen", json!("127.0.0.1:3"), "flag --api"),
        ("api.limits.grace_ms", json!(10_000), "default"),
        ("log.level", json!("warn"), file.as_str()),
        ("log.file", json!(null), "default"),
        ("backends.0.kind", json!("embedded"), "default"),
    ] {
        let entry = settings.entries.iter().find(|entry| entry.key == key).unwrap();
        assert_eq!((&entry.value, entry.origin.as_str()), (&value, origin), "{key}");
    }
    assert!(settings.is_set("log.level") && !settings.is_set("api.limits.grace_ms"));
}

#[test]
fn environment_values_are_read_as_the_type_of_their_setting() {
    let settings = setup()
        .env("BOMBUS_NAME", "123")
        .env("BOMBUS_API__CORS_ORIGINS", "http://a, http://b")
        .env("BOMBUS_API__ALLOWED_HOSTS", "[\"c\"]")
        .env("BOMBUS_API__LIMITS__GRACE_MS", "5")
        .env("BOMBUS_LOG", "debug")
        .env("BOMBUS_BACKENDS", "[{kind=\"fake\", token_ms=3}]")
        .load();
    let config = settings.config;
    assert_eq!(config.name, "123");
    assert_eq!(config.api.cors_origins, ["http://a", "http://b"]);
    assert_eq!(config.api.allowed_hosts, ["c"]);
    assert_eq!((config.api.limits.grace_ms, config.log.level.as_str()), (5, "debug"));
    assert!(matches!(&config.backends[0].kind, BackendKind::Fake(fake) if fake.token_ms == 3));
}

#[test]
fn foreign_variables_do_no_harm_and_mistyped_ones_are_noted() {
    let mut all = setup().env("BOMBUS_API__LISTN", "x");
    for foreign in ["BOMBUS_SERVICE_HOST", "BOMBUS_PORT", "BOMBUS_PORT_7890_TCP_ADDR", "BOMBUS_TEST_ALL", "BOMBUS_BIN"]
    {
        all = all.env(foreign, "10.0.0.1");
    }
    let settings = all.load();
    let [notice] = settings.notices.as_slice() else { panic!("{:?}", settings.notices) };
    assert!(notice.contains("BOMBUS_API__LISTN") && notice.contains("did you mean BOMBUS_API__LISTEN?"), "{notice}");
}

#[test]
fn backends_in_a_file_replace_the_default() {
    let text =
        "[[backends]]\nkind = 'fake'\nname = 'slow'\nmodels = ['a']\nfail = 'after:3'\n[[backends]]\nkind = 'fake'\n";
    let all = setup().file("c.toml", text);
    let settings = all.load();
    let names: Vec<_> = settings.config.backends.iter().map(|backend| backend.name.as_str()).collect();
    assert_eq!(names, ["slow", "fake"]);
    let file = format!("file {}", all.sources.file.as_ref().unwrap().display());
    assert_eq!(settings.origin("backends.0.fail"), file);
    assert_eq!(settings.origin("backends.0.token_ms"), "default");
}

#[test]
fn errors_name_the_key_the_place_and_the_remedy() {
    for (text, wanted) in [
        ("[api]\nlissten = 'x'\n", vec!["unknown key `api.lissten`", "c.toml", "did you mean `api.listen`?"]),
        ("defaultmodel = 'x'\n", vec!["unknown key `defaultmodel`", "did you mean `default_model`?"]),
        ("listen = 'x'\n", vec!["unknown key `listen`", "did you mean `api.listen`?"]),
        ("zzz = 1\n", vec!["unknown key `zzz` in file"]),
        (
            "[api.limits]\ngrace_ms = 'soon'\n",
            vec!["`api.limits.grace_ms`", "c.toml", "expected a whole number", "the text \"soon\""],
        ),
        (
            "[api.limits]\nconnections_max = 0\n",
            vec!["`api.limits.connections_max` in file", "c.toml", "it is 0, but has to be from 1 to 1000000"],
        ),
        ("[api.limits]\nfirst_token_ms_max = 0\n", vec!["`api.limits.first_token_ms_max`", "it is 0", "from 1 to"]),
        ("[[backends]]\nkind = 'ollama'\ntimeout_ms = 0\n", vec!["`backends.0.timeout_ms`", "c.toml", "at least 1"]),
        (
            "[[backends]]\nkind = 'openai'\nurl = 'http://a'\ntimeout_ms = 0\n",
            vec!["`backends.0.timeout_ms`", "c.toml", "at least 1"],
        ),
        ("[tasks]\ntimeout_s = 0\n", vec!["`tasks`", "c.toml", "timeout_s = 0", "from 1 to"]),
        ("[tasks]\nretain_s = 0\n", vec!["`tasks`", "c.toml", "retain_s = 0", "gone as soon as"]),
        ("api = 3\n", vec!["`api`", "c.toml", "expected a table", "the number 3"]),
        ("[api]\nlisten = 'everywhere'\n", vec!["`api.listen`", "c.toml", "ADDR:PORT"]),
        ("default_model = 'a b'\n", vec!["`default_model`", "not a model name"]),
        ("[log]\nlevel = 'loud'\n", vec!["`log.level`", "not a log level"]),
        ("[log]\nrotation = 'weekly'\n", vec!["`log.rotation`", "\"weekly\" is not one of hourly, daily, never"]),
        ("[[backends]]\nkind = 'fake'\ntokn_ms = 3\n", vec!["unknown key `backends.0.tokn_ms`", "c.toml", "token_ms"]),
        (
            "[[backends]]\nkind = 'fake'\ntoken_ms = 'x'\n",
            vec!["`backends.0.token_ms`", "c.toml", "expected a whole number"],
        ),
        ("[[backends]]\nkind = 'fake'\nfail = 'later'\n", vec!["`backends.0.fail`", "c.toml", "after:N"]),
        (
            "[[backends]]\nkind = 'ollma'\n",
            vec!["`backends.0.kind`", "\"ollma\" is not one of embedded, ollama, openai, fake"],
        ),
        ("[[backends]]\nkind = 'ollama'\nurl = 'here:11434'\n", vec!["`backends.0.url`", "http://127.0.0.1:8080"]),
        ("[[backends]]\nkind = 'ollama'\nalises = 'x'\n", vec!["`backends.0.alises`", "`backends.0.aliases`?"]),
        (
            "[[backends]]\nkind = 'openai'\nurl = 'http://a'\nmax_concurrent = 0\n",
            vec!["`backends.0.max_concurrent`", "leave it away"],
        ),
        (
            "[[backends]]\nkind = 'fake'\naliases = { 'a b' = 'fake' }\n",
            vec!["`backends.0.aliases.a b`", "not a model name"],
        ),
        ("[[backends]]\nkind = 'fake'\nname = 'a;b'\n", vec!["`backends.0.name`", "is no name"]),
        ("[p2p]\nlisten = 'everywhere'\n", vec!["`p2p.listen`", "c.toml", "expected a list"]),
        ("[p2p]\nlisten = ['everywhere']\n", vec!["`p2p.listen`", "c.toml", "\"everywhere\"", "0.0.0.0:7891"]),
        ("[p2p]\nlisten = ['/ip4/0.0.0.0/tcp/0/ws']\n", vec!["`p2p.listen`", "/ip4/0.0.0.0/tcp/7891"]),
        ("[p2p]\nseeds = ['192.0.2.7:7891']\n", vec!["`p2p.seeds`", "\"192.0.2.7:7891\"", "/ip4/192.0.2.7/tcp/7891"]),
        ("[p2p]\nexternal = ['hive.example']\n", vec!["`p2p.external`", "/dns4/hive.example/tcp/7891"]),
        ("[p2p]\nmdns = 'no'\n", vec!["`p2p.mdns`", "expected true or false"]),
        ("[p2p]\nsedes = []\n", vec!["unknown key `p2p.sedes`", "did you mean `p2p.seeds`?"]),
        ("[share]\nserv = true\n", vec!["unknown key `share.serv`", "did you mean `share.serve`?"]),
        ("[share]\nmodels = ['a b']\n", vec!["`share.models`", "c.toml", "not a model name"]),
        ("[share]\nmanage = 3\n", vec!["`share.manage`", "c.toml", "true, false, or a list of names or ids"]),
        ("[share]\nmax_slots = 'all'\n", vec!["`share.max_slots`", "a whole number"]),
        ("[route]\nstall = 3\n", vec!["unknown key `route.stall`", "route.stall_ms"]),
        ("[route]\nremote = 'yes'\n", vec!["`route.remote`", "expected true or false"]),
        ("[discover]\nollma = true\n", vec!["unknown key `discover.ollma`", "did you mean `discover.ollama`?"]),
        ("[[backends]]\nmodels = []\n", vec!["`backends.0`", "`kind` is missing"]),
        ("[backends]\nkind = 'fake'\n", vec!["`backends`", "[[backends]]"]),
        (
            "[[backends]]\nkind = 'fake'\nname = 'a'\n[[backends]]\nkind = 'embedded'\nname = 'a'\n",
            vec!["`backends.1`", "two backends are called"],
        ),
        ("name = \n", vec!["c.toml", "not valid TOML"]),
    ] {
        let error = setup().file("c.toml", text).error();
        for part in wanted {
            assert!(error.contains(part), "{text:?} gives {error:?}, which lacks {part:?}");
        }
    }
}

#[test]
fn backends_without_a_name_are_numbered_past_the_names_that_are_taken() {
    let text = "[[backends]]\nkind = 'ollama'\n[[backends]]\nkind = 'ollama'\n[[backends]]\nkind = 'openai'\n\
                url = 'http://127.0.0.1:1/v1'\nname = 'ollama-2'\n[[backends]]\nkind = 'fake'\n";
    let settings = setup().file("c.toml", text).load();
    let names: Vec<_> = settings.config.backends.iter().map(|backend| backend.name.as_str()).collect();
    assert_eq!(names, ["ollama", "ollama-3", "ollama-2", "fake"]);
}

#[test]
fn a_server_that_is_the_node_itself_is_refused() {
    let with = |listen: &str, kind: &str, url: &str| {
        setup().file("c.toml", &format!("[api]\nlisten = '{listen}'\n[[backends]]\nkind = '{kind}'\nurl = '{url}'\n"))
    };
    for (listen, url) in [
        ("127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("127.0.0.1:11434", "http://LocalHost.:11434/v1"),
        ("127.0.0.1:11434", "http://bee.localhost:11434"),
        ("127.0.0.1:11434", "http://0.0.0.0:11434"),
        ("127.0.0.1:11434", "http://[::ffff:127.0.0.1]:11434"),
        ("127.0.0.1:80", "http://127.0.0.1"),
        ("0.0.0.0:11434", "http://127.0.0.2:11434"),
        ("[::]:11434", "http://[::1]:11434"),
        ("[::]:11434", "http://localhost:11434"),
        ("192.0.2.7:11434", "http://192.0.2.7:11434/v1"),
    ] {
        for kind in ["ollama", "openai"] {
            let error = with(listen, kind, url).error();
            for part in ["`backends.0.url` in file", "c.toml", "the node itself", listen, "another server"] {
                assert!(error.contains(part), "{kind} {listen} {url}: {error}");
            }
        }
    }
    for (listen, url) in [
        ("127.0.0.1:7890", "http://127.0.0.1:11434"),
        ("127.0.0.1:11434", "http://127.0.0.2:11434"),
        ("127.0.0.1:11434", "http://192.0.2.7:11434"),
        ("127.0.0.1:11434", "http://tower:11434"),
        ("192.0.2.7:11434", "http://localhost:11434"),
        ("0.0.0.0:11434", "http://192.0.2.7:11434"),
        ("127.0.0.1:0", "http://127.0.0.1:11434"),
    ] {
        assert_eq!(with(listen, "openai", url).load().config.backends.len(), 1, "{listen} {url}");
    }
    let by_default =
        setup().file("c.toml", "[[backends]]\nkind = 'ollama'\n").env("BOMBUS_API__LISTEN", "127.0.0.1:11434");
    assert!(by_default.error().contains("`backends.0.url`"), "{}", by_default.error());
}

#[test]
fn options_are_read_for_every_kind() {
    let text = "[[backends]]\nkind = 'ollama'\nmodels = ['a']\nmax_concurrent = 3\n[backends.aliases]\nbest = 'a'\n\
                [[backends]]\nkind = 'fake'\nmodels = ['b']\naliases = { best = 'b' }\n";
    let settings = setup().file("c.toml", text).load();
    let [ollama, fake] = settings.config.backends.as_slice() else { panic!("two backends") };
    assert_eq!(
        (ollama.options.models.as_slice(), ollama.options.max_concurrent),
        (["a".to_owned()].as_slice(), Some(3))
    );
    assert_eq!(ollama.options.aliases["best"], "a");
    assert_eq!(fake.options.aliases["best"], "b");
    assert!(fake.options.models.is_empty(), "the models of a script are its own");
    assert!(matches!(&fake.kind, BackendKind::Fake(script) if script.models[0].as_str() == "b:latest"));
}

#[test]
fn no_secret_is_shown() {
    let text = "[[backends]]\nkind = 'openai'\nurl = 'https://me:s3cret@host/v1?key=s3cret'\napi_key_env = 'MY_KEY'\n\
                headers = { x-key = 's3cret' }\n";
    let settings = setup().file("c.toml", text).load();
    let shown = format!("{:?}", settings.entries);
    assert!(!shown.contains("s3cret"), "{shown}");
    assert!(shown.contains("MY_KEY") && shown.contains("x-key") && shown.contains("(hidden)"), "{shown}");

    let mistake = "[[backends]]\nkind = 'openai'\nurl = 'http://a'\napi_key_env = 'sk-s3cret'\n";
    let error = setup().file("c.toml", mistake).error();
    assert!(error.contains("not the key itself") && !error.contains("s3cret"), "{error}");
}

#[test]
fn ollama_is_looked_for_unless_that_is_switched_off_or_backends_are_named() {
    let names = |setup: Setup| {
        let backends = setup.load().config.backends;
        backends.iter().map(|backend| backend.name.clone()).collect::<Vec<_>>()
    };
    let engine: &[&str] = if cfg!(feature = "embedded") { &["embedded"] } else { &[] };
    assert_eq!(names(setup()), [engine, &["ollama"]].concat());
    assert_eq!(names(setup().file("c.toml", "[discover]\nollama = false\n")), engine);
    assert_eq!(names(setup().env("BOMBUS_DISCOVER__OLLAMA", "false")), engine);
    assert_eq!(names(setup().file("c.toml", "[[backends]]\nkind = 'fake'\n")), ["fake"]);
}

#[cfg(feature = "embedded")]
#[test]
fn settings_of_the_engine_are_checked_at_once() {
    let error = setup().file("c.toml", "[[backends]]\nkind = 'embedded'\nslots = 0\n").error();
    assert!(error.contains("`backends.0`") && error.contains("slots is 0"), "{error}");
}

#[test]
fn limits_of_databases_that_do_not_fit_together_are_told_with_their_names() {
    let error = setup().file("c.toml", "[db]\nblock_kb_max = 4096\n").error();
    assert!(error.contains("block_kb_max = 4096") && error.contains("bitswap.block_bytes_max"), "{error}");
}

#[test]
fn an_error_in_the_environment_names_the_variable() {
    let error = setup().env("BOMBUS_API__LIMITS__GRACE_MS", "soon").error();
    assert!(error.contains("`api.limits.grace_ms` in environment BOMBUS_API__LIMITS__GRACE_MS"), "{error}");
    let mixed = setup().file("c.toml", "[api.limits]\ngrace_ms = 5\n").env("BOMBUS_API__LIMITS__CONNECTIONS_MAX", "0");
    let error = mixed.error();
    assert!(
        error.contains("`api.limits.connections_max` in environment BOMBUS_API__LIMITS__CONNECTIONS_MAX"),
        "{error}"
    );
}

#[test]
fn a_file_must_exist_and_say_by_its_name_what_it_is() {
    let mut missing = setup();
    missing.sources.file = Some(missing.folder.path().join("none.toml"));
    assert!(matches!(Settings::load(&missing.sources), Err(ConfigError::Unreadable { .. })));
    let unknown = setup().file("c.yaml", "");
    assert!(matches!(Settings::load(&unknown.sources), Err(ConfigError::UnknownType { .. })));
}

#[test]
fn a_json_file_with_the_names_of_node_config_is_understood() {
    let settings = setup()
        .file(
            "config.json",
            r#"{"nodeId": "worker-1", "ollamaHost": "localhost", "ollamaPort": 11434, "orbitDbDirectory": "./db",
                "bootstrapPeers": ["/dns4/hive.example/tcp/7891"], "listenAddresses": ["/ip4/0.0.0.0/tcp/0"],
                "models": ["tinyllama", "phi:2"],
                "maxConcurrentTasks": 2, "logLevel": "warn"}"#,
        )
        .load();
    assert_eq!((settings.config.name.as_str(), settings.config.log.level.as_str()), ("worker-1", "warn"));
    assert_eq!(settings.config.default_model.as_str(), "tinyllama:latest");
    assert_eq!(settings.config.share.models, ["tinyllama", "phi:2"]);
    assert!(settings.origin("share.models").ends_with("config.json"), "{}", settings.origin("share.models"));
    let [notice] = settings.notices.as_slice() else { panic!("{:?}", settings.notices) };
    assert!(
        notice.contains("config.json: orbitDbDirectory is ignored: databases lie in the data directory"),
        "{notice}"
    );
    assert_eq!(settings.config.tasks.max_concurrent, Some(2));
    assert_eq!(settings.config.p2p.listen, ["0.0.0.0:0".parse().unwrap()]);
    assert_eq!(settings.config.p2p.seeds, ["/dns4/hive.example/tcp/7891"]);
    let Some(BackendKind::Ollama(ollama)) = settings.config.backends.last().map(|backend| &backend.kind) else {
        panic!("{:?}", settings.config.backends)
    };
    assert_eq!(ollama.url, "http://localhost:11434");
}

#[test]
fn an_ollama_of_node_config_may_have_an_address_of_ipv6() {
    for (host, url) in [("::1", "http://[::1]:11434"), ("[::1]", "http://[::1]:11434"), ("::", "http://[::]:11434")] {
        let settings = setup().file("config.json", &json!({ "ollamaHost": host }).to_string()).load();
        let Some(BackendKind::Ollama(ollama)) = settings.config.backends.last().map(|backend| &backend.kind) else {
            panic!("{:?}", settings.config.backends)
        };
        assert_eq!(ollama.url, url);
    }
}

#[test]
fn the_mesh_listens_on_both_families_unless_it_is_told_otherwise() {
    let config = setup().load().config.p2p;
    let both = ["0.0.0.0:7891".parse().unwrap(), "[::]:7891".parse().unwrap()];
    assert_eq!(config.listen, both);
    assert!(config.seeds.is_empty() && config.external.is_empty() && config.mdns && config.relay && !config.open);
}

#[test]
fn the_mesh_is_configured_by_file_environment_and_flags() {
    let all = setup()
        .file("c.toml", "[p2p]\nlisten = ['127.0.0.1:1', '/ip6/::1/tcp/2']\nrelay = false\nmdns = true\n")
        .env("BOMBUS_P2P__EXTERNAL", "/ip4/192.0.2.7/tcp/1, /dns4/hive.example/tcp/2")
        .env("BOMBUS_P2P__MDNS", "false")
        .flag("--seed", "p2p.seeds", "/ip4/192.0.2.8/tcp/7891\n/ip4/192.0.2.9/tcp/7891")
        .flag("--open", "p2p.open", "true");
    let settings = all.load();
    let config = &settings.config.p2p;
    assert_eq!(config.listen, ["127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap()]);
    assert_eq!(config.external, ["/ip4/192.0.2.7/tcp/1", "/dns4/hive.example/tcp/2"]);
    assert_eq!(config.seeds, ["/ip4/192.0.2.8/tcp/7891", "/ip4/192.0.2.9/tcp/7891"]);
    assert!(config.open && !config.mdns && !config.relay);
    assert_eq!(settings.origin("p2p.mdns"), "environment BOMBUS_P2P__MDNS");
    assert_eq!(settings.origin("p2p.seeds"), "flag --seed");
    assert!(settings.is_set("p2p.listen"));
}

#[test]
fn a_node_does_everything_for_others_but_have_its_models_changed_unless_it_is_told_otherwise() {
    let settings = setup().load();
    let share = &settings.config.share;
    assert!(share.serve && share.models.is_empty() && share.peers.is_empty() && share.max_slots.is_none());
    assert_eq!(share.manage, Manage::Everybody(false));
    assert!(settings.config.route.remote);
    assert_eq!(settings.origin("route.stall_ms"), "default");
}

#[test]
fn what_is_done_for_others_is_configured_by_file_and_environment() {
    let all = setup()
        .file(
            "c.toml",
            "[share]\nmodels = ['qwen3', 'a:b']\nmanage = ['bee']\n[route]\nremote = false\nstall_ms = 500\n",
        )
        .env("BOMBUS_SHARE__PEERS", "bee, wasp")
        .env("BOMBUS_SHARE__MAX_SLOTS", "2")
        .env("BOMBUS_SHARE__SERVE", "false")
        .env("BOMBUS_ROUTE__WEIGHTS__WARM", "5");
    let settings = all.load();
    let share = &settings.config.share;
    assert_eq!(
        (share.models.as_slice(), share.peers.as_slice()),
        (&["qwen3", "a:b"].map(str::to_owned)[..], &["bee", "wasp"].map(str::to_owned)[..])
    );
    assert_eq!((share.serve, share.max_slots), (false, Some(2)));
    assert_eq!(share.manage, Manage::These(vec!["bee".to_owned()]));
    let route = settings.config.route;
    assert_eq!((route.remote, route.stall_ms, route.weights.warm), (false, 500, 5.0));
    assert_eq!(settings.origin("share.max_slots"), "environment BOMBUS_SHARE__MAX_SLOTS");
    assert!(settings.origin("route.stall_ms").ends_with("c.toml"));
    let named = setup().env("BOMBUS_SHARE__MANAGE", "bee,wasp").load().config.share.manage;
    assert_eq!(named, Manage::These(vec!["bee".to_owned(), "wasp".to_owned()]));
    assert_eq!(setup().env("BOMBUS_SHARE__MANAGE", "true").load().config.share.manage, Manage::Everybody(true));
}

#[test]
fn our_own_names_win_over_those_of_node_config() {
    let text = r#"{"name": "ours", "nodeId": "theirs", "api": {"limits": {"grace_ms": 1}},
                   "default_model": "a", "models": ["b"], "share": {"models": ["c"]}}"#;
    let settings = setup().file("config.json", text).load();
    assert_eq!((settings.config.name.as_str(), settings.config.api.limits.grace_ms), ("ours", 1));
    assert_eq!(
        (settings.config.default_model.as_str(), settings.config.share.models),
        ("a:latest", vec!["c".to_owned()])
    );
}
