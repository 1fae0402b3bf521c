use crate::harness::Home;

#[tokio::test]
async fn every_shell_gets_completions_with_all_commands() {
    let home = Home::new("");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = home.run(&["completions", shell]).await;
        assert_eq!(script.code, Some(0));
        for command in [
            "up", "ask", "chat", "models", "backends", "route", "bench", "detect", "peers", "swarm", "ping", "events",
            "invite", "join", "leave", "kick", "rekey", "owner", "service", "keys", "doctor", "config",
        ] {
            assert!(script.stdout.contains(command), "{shell} lacks {command}");
        }
        assert!(!script.stdout.contains("engine-worker"), "{shell} shows the engine's own command");
    }
}

#[tokio::test]
async fn the_version_names_what_is_built_in() {
    let home = Home::new("");
    let version = home.run(&["--version"]).await.stdout;
    assert!(version.starts_with(&format!("bombus {} (features: ", env!("CARGO_PKG_VERSION"))), "{version}");
    assert_eq!(version.contains("llama.cpp"), cfg!(feature = "embedded"), "{version}");
    let listed = version.split_once("features: ").unwrap().1.split([';', ')']).next().unwrap();
    for (feature, built_in) in [
        ("embedded", cfg!(feature = "embedded")),
        ("cuda", cfg!(feature = "cuda")),
        ("metal", cfg!(feature = "metal")),
        ("rocm", cfg!(feature = "rocm")),
        ("vulkan", cfg!(feature = "vulkan")),
    ] {
        assert_eq!(listed.split(", ").any(|name| name == feature), built_in, "{feature}: {version}");
    }
}

#[tokio::test]
async fn wrong_usage_is_exit_code_2_and_the_codes_are_documented() {
    let home = Home::new("");
    let wrong = home.run(&["upp"]).await;
    assert_eq!((wrong.code, wrong.stdout.as_str()), (Some(2), ""));
    let help = home.run(&["--help"]).await;
    assert!(help.stdout.contains("Exit codes: 0 done"), "{}", help.stdout);
}
