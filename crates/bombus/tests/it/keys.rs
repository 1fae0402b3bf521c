use serde_json::Value;

use crate::harness::{Home, mode};

#[tokio::test]
async fn a_key_is_shown_once_and_kept_as_a_hash() {
    let home = Home::new("");
    let made = home.run(&["keys", "create", "laptop"]).await;
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let secret = made.stdout.trim();
    assert!(secret.len() > 32 && made.stdout.lines().count() == 1, "{}", made.stdout);
    let file = home.data_dir().join("keys.json");
    assert_eq!(mode(&file), 0o600);
    assert_eq!(mode(&home.data_dir()), 0o700);
    assert!(!std::fs::read_to_string(&file).unwrap().contains(secret));

    let listed = home.run(&["keys", "list"]).await;
    assert!(listed.stdout.contains("laptop") && !listed.stdout.contains(secret), "{}", listed.stdout);
    let listed: Value = serde_json::from_str(&home.run(&["keys", "list", "--json"]).await.stdout).unwrap();
    assert_eq!(listed[0]["name"], "laptop");
}

#[tokio::test]
async fn names_are_used_once_and_unknown_ones_are_not_found() {
    let home = Home::new("");
    assert_eq!(home.run(&["keys", "create", "a"]).await.code, Some(0));
    assert_eq!(home.run(&["keys", "create", "a"]).await.code, Some(2));
    assert_eq!(home.run(&["keys", "create", "no spaces"]).await.code, Some(2));
    assert_eq!(home.run(&["keys", "revoke", "b"]).await.code, Some(3));
    assert_eq!(home.run(&["keys", "revoke", "a"]).await.code, Some(0));
    let empty = home.run(&["keys", "list"]).await;
    assert_eq!(empty.stdout, "");
    assert!(empty.stderr.contains("no API keys"), "{}", empty.stderr);
}
