use serde_json::Value;

use crate::harness::{Home, Node, fake};

#[tokio::test]
async fn without_a_node_there_is_nothing_to_pause_and_nobody_else_to_ask() {
    let home = Home::new(&fake(""));
    for command in [
        &["pause"][..],
        &["resume"],
        &["drain"],
        &["undrain"],
        &["ask", "--remote", "hi"],
        &["ask", "--node", "hive", "hi"],
        &["route", "--remote"],
        &["bench", "--remote"],
    ] {
        let refused = home.run(command).await;
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(4), ""), "{command:?}: {}", refused.stderr);
        assert!(refused.stderr.contains("no node runs") && refused.stderr.contains("bombus up"), "{}", refused.stderr);
    }
    let here = home.run(&["ask", "--local", "--quiet", "hi"]).await;
    assert_eq!((here.code, here.stdout.as_str()), (Some(0), "hi\n"), "{}", here.stderr);
}

#[tokio::test]
async fn a_node_is_paused_drained_and_back_again() {
    let home = Home::new(&fake(""));
    let _node = Node::start(&home).await;
    for (command, wanted) in [
        ("pause", "paused: it takes no more requests of other nodes; bombus resume ends that\n"),
        ("drain", "draining: it takes no more requests of other nodes; bombus undrain ends that\n"),
        ("undrain", "paused: it takes no more requests of other nodes; bombus resume ends that\n"),
    ] {
        let said = home.run(&[command]).await;
        assert_eq!((said.code, said.stdout.as_str()), (Some(0), wanted), "{command}: {}", said.stderr);
        let here = home.run(&["ask", "--quiet", "hi"]).await;
        assert_eq!(
            (here.code, here.stdout.as_str()),
            (Some(0), "hi\n"),
            "it still answers for itself: {}",
            here.stderr
        );
    }
    let swarm = home.run(&["swarm", "--json"]).await.stdout;
    let swarm: Value = serde_json::from_str(&swarm).unwrap();
    assert_eq!(swarm["paused"].as_array().map(Vec::len), Some(1), "{swarm}");
    let resumed = home.run(&["resume", "--json"]).await.stdout;
    let resumed: Value = serde_json::from_str(&resumed).unwrap();
    assert_eq!((&resumed["paused"], &resumed["draining"]), (&Value::Bool(false), &Value::Bool(false)), "{resumed}");
    let drained = home.run(&["drain", "--wait"]).await;
    assert_eq!(drained.code, Some(0), "nothing runs for others: {}", drained.stderr);
}

#[tokio::test]
async fn where_a_question_may_be_answered_is_up_to_whoever_asks() {
    let home = Home::new(&fake(""));
    let node = Node::start(&home).await;
    for flags in [&["--local"][..], &["--node", node.id()]] {
        let answered = home.run(&[&["ask", "--quiet"], flags, &["hi"]].concat()).await;
        assert_eq!((answered.code, answered.stdout.as_str()), (Some(0), "hi\n"), "{flags:?}: {}", answered.stderr);
    }
    let nobody = home.run(&["ask", "--node", "nobody", "hi"]).await;
    assert_eq!((nobody.code, nobody.stdout.as_str()), (Some(3), ""), "{}", nobody.stderr);
    assert!(nobody.stderr.contains("'nobody'") && nobody.stderr.contains("(this node)"), "{}", nobody.stderr);
    let alone = home.run(&["ask", "--remote", "hi"]).await;
    assert_ne!(alone.code, Some(0), "there is no other node");
    let both = home.run(&["ask", "--local", "--remote", "hi"]).await;
    assert_eq!(both.code, Some(2), "{}", both.stderr);
}
