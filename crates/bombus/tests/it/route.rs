use serde_json::Value;

use crate::harness::{Home, Node, fake_named, no_backends};

fn two() -> Home {
    let first = fake_named("first", "models = ['fake', 'mine']");
    Home::new(&(no_backends() + &first + &fake_named("second", "aliases = { other = 'fake' }")))
}

#[tokio::test]
async fn the_most_preferred_of_equals_comes_first() {
    let home = two();
    for with_node in [false, true] {
        let _node = if with_node { Some(Node::start(&home).await) } else { None };
        let short = home.run(&["route", "fake"]).await;
        assert_eq!((short.code, short.stdout.as_str()), (Some(0), "first  fake:latest\n"), "{}", short.stderr);
        let default = home.run(&["route"]).await;
        assert_eq!(default.stdout, short.stdout, "the default model is asked about where none is named");

        let alias = home.run(&["route", "other", "--json"]).await;
        let alias: Value = serde_json::from_str(&alias.stdout).unwrap();
        assert_eq!(alias["candidates"][0]["backend"], "second");
        assert!(alias["candidates"][0]["model"].as_str().is_some_and(|model| model.starts_with("fake")), "{alias}");
        assert!(alias["candidates"][1]["rejected"].is_string(), "{alias}");

        let explained = home.run(&["route", "fake", "--explain"]).await.stdout;
        let lines: Vec<&str> = explained.lines().collect();
        assert!(lines[0].starts_with("BACKEND ") && lines[0].contains("WHY"), "{explained}");
        assert!(lines[1].starts_with("first ") && lines[2].starts_with("second "), "{explained}");
        assert!(lines[1].contains("in memory"), "{explained}");
    }
}

#[tokio::test]
async fn a_model_that_nobody_has_is_not_found() {
    let home = two();
    for with_node in [false, true] {
        let _node = if with_node { Some(Node::start(&home).await) } else { None };
        let missing = home.run(&["route", "nope"]).await;
        assert_eq!((missing.code, missing.stdout.as_str()), (Some(3), ""), "{}", missing.stderr);
        assert!(missing.stderr.contains("error: model 'nope' not found"), "{}", missing.stderr);
        assert!(missing.stderr.contains("hint: bombus models pull nope"), "{}", missing.stderr);
        let explained = home.run(&["route", "nope", "--explain"]).await;
        assert_eq!((explained.code, explained.stdout.lines().count()), (Some(3), 3), "{}", explained.stdout);
    }
}
