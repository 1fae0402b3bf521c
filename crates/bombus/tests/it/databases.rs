//! Replicated databases of real nodes, by the command line and by HTTP.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::{Finished, Home, Node, fake};

mod shared;

/// The id of an identity, which nobody has: the generator of the curve.
const SOMEBODY: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
/// The id of a node.
const NODE: &str = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";

/// Runs `bombus db` and expects this exit code.
async fn run(home: &Home, arguments: &[&str], code: i32) -> Finished {
    let finished = home.run(&[&["db"], arguments].concat()).await;
    assert_eq!(finished.code, Some(code), "{arguments:?}: {}{}", finished.stdout, finished.stderr);
    finished
}

/// Runs `bombus db` with `--json` and reads its one JSON object.
async fn object(home: &Home, arguments: &[&str]) -> Value {
    let said = run(home, &[arguments, &["--json"]].concat(), 0).await.stdout;
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {said}"))
}

/// Runs `bombus db` with `--json` and reads a JSON object from every line.
async fn lines(home: &Home, arguments: &[&str]) -> Vec<Value> {
    let said = run(home, &[arguments, &["--json"]].concat(), 0).await.stdout;
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns the databases of a list but for those that durable tasks are kept in.
pub(crate) fn beside_tasks(listed: &Value) -> Value {
    let databases = listed["databases"].as_array().expect("a list has databases");
    databases
        .iter()
        .filter(|entry| !entry["name"].as_str().is_some_and(|name| name.starts_with("swarm-")))
        .cloned()
        .collect()
}

/// The values of rows.
fn values(rows: &[Value]) -> Vec<&Value> {
    rows.iter().map(|row| &row["value"]).collect()
}

/// The folders of the databases of all swarms of a home.
fn stored(home: &Home) -> Vec<PathBuf> {
    let swarms = std::fs::read_dir(home.data_dir().join("swarms")).unwrap();
    let folders = swarms.map(|swarm| swarm.unwrap().path().join("databases")).filter(|folder| folder.is_dir());
    let files = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap());
    files.map(|file| file.unwrap().path()).collect()
}

#[tokio::test]
async fn without_a_node_there_are_no_databases() {
    let home = Home::new(&fake(""));
    let refused = run(&home, &["list"], 4).await;
    assert!(refused.stderr.contains("no node runs") && refused.stderr.contains("bombus up"), "{}", refused.stderr);
    let home = Home::new(&format!("{}[db]\nenabled = false\n", fake("")));
    let _node = Node::start(&home).await;
    let refused = run(&home, &["list"], 4).await;
    assert!(refused.stderr.contains("db.enabled"), "{}", refused.stderr);
}

#[tokio::test]
async fn documents_are_put_found_changed_and_taken_away() {
    let home = Home::new(&fake(""));
    let node = Node::start(&home).await;
    let made = run(&home, &["create", "people", "--type", "documents", "--index-by", "id"], 0).await;
    let address = made.stdout.trim();
    assert!(address.starts_with("/orbitdb/zdpu") && made.stdout.lines().count() == 1, "{}", made.stdout);

    for (id, city, age) in [("a", "Bern", 30), ("b", "Basel", 40), ("c", "Bern", 50)] {
        let person = json!({ "id": id, "home": { "city": city }, "age": age, "picture": { "/": { "bytes": "AQID" } } });
        let hash = run(&home, &["put", "people", &person.to_string()], 0).await.stdout;
        assert!(hash.starts_with("zdpu"), "{hash}");
    }
    let got = object(&home, &["get", "people", "b"]).await;
    assert_eq!((&got["key"], &got["value"]["home"]["city"]), (&json!("b"), &json!("Basel")));
    assert_eq!(got["value"]["picture"], json!({ "/": { "bytes": "AQID" } }), "bytes come out as they went in");
    let found = lines(&home, &["query", "people", "home.city=Bern"]).await;
    assert_eq!(found.iter().map(|row| &row["key"]).collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(lines(&home, &["query", "people", "home.city=Bern", "age=50"]).await.len(), 1);
    assert_eq!(lines(&home, &["query", "people", "age=\"50\""]).await.len(), 0, "the text 50 is not the number");

    let piped = home.run_with_stdin(&["db", "put", "people", "-"], "{\"id\": \"a\", \"age\": 31}\n").await;
    assert_eq!(piped.code, Some(0), "{}", piped.stderr);
    run(&home, &["del", "people", "c"], 0).await;
    let all = lines(&home, &["all", "people"]).await;
    assert_eq!(all.iter().map(|row| &row["key"]).collect::<Vec<_>>(), ["b", "a"], "the oldest first");
    assert_eq!(all[1]["value"], json!({ "id": "a", "age": 31 }));
    let newest = lines(&home, &["all", "people", "--newest", "-n", "1"]).await;
    assert_eq!(newest, [all[1].clone()]);
    let text = run(&home, &["all", "people"], 0).await.stdout;
    assert!(text.ends_with("a  {\"id\":\"a\",\"age\":31}\n"), "{text}");

    let info = object(&home, &["info", "people"]).await;
    assert_eq!((&info["entries"], &info["rows"], &info["index_by"]), (&json!(5), &json!(2), &json!("id")), "{info}");
    assert_eq!(info["heads"].as_array().map(Vec::len), Some(1));
    assert_eq!((&info["refused"], &info["peers"]), (&json!({}), &json!([])));
    assert_eq!(info["access"]["write"], json!([info["identity"]]), "{info}");
    let shown = run(&home, &["info", "people"], 0).await.stdout;
    assert!(shown.contains(address) && shown.contains("documents, with their keys in id"), "{shown}");

    let listed = object(&home, &["list"]).await;
    assert_eq!(
        beside_tasks(&listed),
        json!([{ "name": "people", "address": address, "type": "documents", "open": true }])
    );
    let tail = address.rsplit('/').next().unwrap();
    assert_eq!(object(&home, &["info", tail]).await["name"], "people", "the last part of an address names it, too");
    let by_path = node.get(&format!("/db/{}", address.replace('/', "%2F"))).await;
    assert_eq!(by_path.json::<Value>().await.unwrap()["address"], address);
    node.stop().await;
}

#[tokio::test]
async fn values_stand_under_keys_and_events_in_their_order() {
    let home = Home::new(&fake(""));
    let node = Node::start(&home).await;
    run(&home, &["create", "settings", "--type", "keyvalue"], 0).await;
    let odd = "a/b ?&%\u{e9}";
    for (key, value) in [("name", "hive"), (odd, "3"), ("name", "-1.5")] {
        run(&home, &["put", "settings", key, value], 0).await;
    }
    assert_eq!(run(&home, &["get", "settings", "name"], 0).await.stdout, "-1.5\n");
    assert_eq!(object(&home, &["get", "settings", odd]).await["value"], 3);
    run(&home, &["put", "settings", "motto", "two words"], 0).await;
    assert_eq!(run(&home, &["get", "settings", "motto"], 0).await.stdout, "two words\n", "a text is shown plain");
    run(&home, &["del", "settings", "name"], 0).await;
    let gone = run(&home, &["get", "settings", "name"], 3).await;
    assert_eq!(gone.stdout, "", "{}", gone.stderr);
    run(&home, &["del", "settings", "name"], 3).await;

    run(&home, &["create", "log", "--type", "events"], 0).await;
    for number in 0..70 {
        let (status, answer) =
            node.post("/db/log/add", &json!({ "value": { "n": number, "even": number % 2 == 0 } })).await;
        assert_eq!(status, 200, "{answer}");
    }
    let all = lines(&home, &["all", "log"]).await;
    let numbers: Vec<_> = all.iter().map(|row| row["value"]["n"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..70).collect::<Vec<_>>(), "over several pages");
    assert!(all[0].get("key").is_none(), "{}", all[0]);
    let newest = lines(&home, &["all", "log", "--newest", "-n", "66"]).await;
    assert_eq!((&newest[0]["value"]["n"], &newest[65]["value"]["n"]), (&json!(69), &json!(4)));
    let third = all[3]["hash"].as_str().unwrap();
    assert_eq!(object(&home, &["get", "log", third]).await["value"]["n"], 3);
    assert_eq!(lines(&home, &["query", "log", "even=true", "-n", "5"]).await.len(), 5);
    run(&home, &["add", "log", "{\"n\": 100, \"b\": {\"/\": {\"bytes\": \"AQID\"}}}"], 0).await;
    for (condition, count) in [("n=1e2", 1), ("n=100.0", 1), ("b./.bytes=AQID", 0), ("n=\"100\"", 0)] {
        assert_eq!(lines(&home, &["query", "log", condition]).await.len(), count, "{condition}");
    }
    let bounded = node.get(&format!("/db/log/all?gt={third}&amount=2")).await.text().await.unwrap();
    assert!(bounded.lines().count() == 2 && bounded.contains("\"n\":4"), "{bounded}");
    let unknown = node.get("/db/log/all?gt=zdpuAwKJDKp1C2UFkZ18GELaKzyCxaH4A8jQSpLiRKEcnBDxq").await;
    assert_eq!(unknown.status(), 400);
    node.stop().await;
}

#[tokio::test]
async fn what_cannot_be_done_says_why_and_what_to_do() {
    let home = Home::new(&fake(""));
    let _node = Node::start(&home).await;
    run(&home, &["create", "docs", "--type", "documents"], 0).await;
    run(&home, &["create", "log", "--type", "events", "--write", "*"], 0).await;
    let others = run(&home, &["create", "others", "--type", "events", "--write", SOMEBODY], 0).await;
    assert!(others.stderr.contains("fixed") && !others.stderr.contains("grant"), "{}", others.stderr);
    run(&home, &["create", "keys", "--type", "keyvalue"], 0).await;
    run(&home, &["create", "shut", "--type", "documents", "--index-by", "id"], 0).await;
    for closed in ["keys", "shut"] {
        run(&home, &["close", closed], 0).await;
    }
    for (arguments, code, wanted) in [
        (&["info", "none"][..], 3, "bombus db list"),
        (&["create", "docs", "--type", "tables"], 2, "documents"),
        (&["create", "docs", "--type", "events"], 2, "docs"),
        (&["create", "docs", "--type", "documents", "--index-by", "x"], 2, "the field '_id'"),
        (&["create", "shut", "--type", "documents", "--index-by", "x"], 2, "the field 'id'"),
        (&["create", "others", "--type", "events", "--write", "02ab"], 2, "no id of an identity"),
        (&["create", "more", "--type", "keyvalue", "--index-by", "x"], 2, "documents alone"),
        (&["open", "keys", "--index-by", "x"], 2, "documents alone"),
        (&["open", "log", "--index-by", "_id"], 2, "documents alone"),
        (&["create", "/x", "--type", "events"], 2, "name of a database"),
        (&["put", "docs", "{a: 1}"], 2, "not valid JSON"),
        (&["put", "docs", "{\"name\": 1}"], 2, "_id"),
        (&["put", "docs", "k", "1"], 2, "_id"),
        (&["put", "log", "1"], 2, "events"),
        (&["add", "docs", "1"], 2, "documents"),
        (&["add", "others", "1"], 1, "writers were fixed"),
        (&["add", "log", "18446744073709551616"], 2, "an integer is not from"),
        (&["query", "docs", "city"], 2, "FIELD=VALUE"),
        (&["query", "docs", "city=Bern", "city=Basel"], 2, "given twice"),
        (&["get", "log", "1"], 2, "hash"),
        (&["grant", "log", SOMEBODY], 2, "fixed"),
        (&["grant", "docs", NODE], 2, "the id of a node"),
        (&["grant", "docs", "two words"], 2, "identity"),
        (&["open", "/orbitdb/zdpuNoAddress"], 2, "bombus db list"),
    ] {
        let refused = home.run(&[&["db"], arguments].concat()).await;
        let code_is_right = refused.code == Some(code) || (code == 2 && refused.code == Some(3));
        assert!(code_is_right, "{arguments:?}: {:?} {}", refused.code, refused.stderr);
        assert!(refused.stderr.contains(wanted) && refused.stdout.is_empty(), "{arguments:?}: {}", refused.stderr);
    }
    run(&home, &["close", "docs"], 0).await;
    let closed = run(&home, &["all", "docs"], 2).await;
    assert!(closed.stderr.contains("bombus db open"), "{}", closed.stderr);
    let listed = beside_tasks(&object(&home, &["list"]).await);
    let open = |name: &str| {
        let found = listed.as_array().unwrap().iter().find(|one| one["name"] == name);
        found.and_then(|one| one["open"].as_bool())
    };
    for name in ["docs", "keys", "shut"] {
        assert_eq!(open(name), Some(false), "what was refused opened nothing: {listed}");
    }
    let again = object(&home, &["create", "shut", "--type", "documents"]).await;
    assert_eq!(again["index_by"], "id", "it keeps its field");
    for (arguments, wanted) in [(["drop", "swarm-tasks"], "tasks"), (["close", "swarm-results"], "tasks")] {
        let refused = run(&home, &arguments, 2).await;
        assert!(refused.stderr.contains(wanted), "{arguments:?}: {}", refused.stderr);
    }
    let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    run(&home, &["add", "log", &nested(63)], 0).await;
    let deep = run(&home, &["add", "log", &nested(64)], 2).await;
    assert!(deep.stderr.contains("nested deeper"), "{}", deep.stderr);
    run(&home, &["open", "docs"], 0).await;
    run(&home, &["put", "docs", "{\"_id\": 7}"], 0).await;
    assert_eq!(object(&home, &["get", "docs", "7"]).await["value"], json!({ "_id": 7 }));
}

#[tokio::test]
async fn what_was_acknowledged_outlives_a_stop_and_a_kill() {
    let home = Home::new(&fake(""));
    let node = Node::start(&home).await;
    run(&home, &["create", "notes", "--type", "documents", "--index-by", "id"], 0).await;
    let puts = (0..40).map(|number| {
        let node = &node;
        async move {
            let (status, answer) = node.post("/db/notes/put", &json!({ "value": { "id": number.to_string() } })).await;
            assert_eq!(status, 200, "{answer}");
        }
    });
    futures::future::join_all(puts).await;
    let before = object(&home, &["info", "notes"]).await;
    node.crash().await;

    let node = Node::start(&home).await;
    let after = object(&home, &["info", "notes"]).await;
    for field in ["address", "entries", "rows", "heads", "identity", "index_by"] {
        assert_eq!(before[field], after[field], "{field} after a kill");
    }
    run(&home, &["put", "notes", "{\"id\": \"last\"}"], 0).await;
    run(&home, &["create", "shut", "--type", "events"], 0).await;
    run(&home, &["close", "shut"], 0).await;
    node.stop().await;

    let _node = Node::start(&home).await;
    assert_eq!(object(&home, &["info", "notes"]).await["rows"], 41, "and after a stop");
    let listed = object(&home, &["list"]).await;
    let state = |name: &str| {
        let found = listed["databases"].as_array().unwrap().iter().find(|one| one["name"] == name);
        found.map(|one| one["open"].clone())
    };
    assert_eq!((state("notes"), state("shut")), (Some(json!(true)), Some(json!(false))), "{listed}");
}

#[tokio::test]
async fn rows_are_exported_imported_and_dropped_with_all_their_space() {
    let home = Home::new(&fake(""));
    let node = Node::start(&home).await;
    run(&home, &["create", "from", "--type", "keyvalue"], 0).await;
    for number in 0..100 {
        let value = json!({ "key": format!("k{number}"), "value": [number, "text", null] });
        assert_eq!(node.post("/db/from/put", &value).await.0, 200);
    }
    let file = home.path("rows.ndjson");
    let file = file.to_str().unwrap();
    assert_eq!(object(&home, &["export", "from", file]).await["exported"], 100);
    let taken = run(&home, &["export", "from", file], 2).await;
    assert!(taken.stderr.contains("is there already"), "{}", taken.stderr);
    let piped = run(&home, &["export", "from"], 0).await.stdout;
    assert_eq!(piped, std::fs::read_to_string(file).unwrap(), "stdout has the same as the file");
    assert_eq!(run(&home, &["export", "from", "--json"], 0).await.stdout, piped, "which is JSON already");

    run(&home, &["create", "to", "--type", "keyvalue"], 0).await;
    assert_eq!(object(&home, &["import", "to", file]).await, json!({ "imported": 100 }));
    let rows = (lines(&home, &["all", "from"]).await, lines(&home, &["all", "to"]).await);
    assert_eq!(values(&rows.0), values(&rows.1), "in the same order");
    let more = home.run_with_stdin(&["db", "import", "to", "--json"], "{\"key\":\"k\",\"value\":1}\n").await;
    assert_eq!(serde_json::from_str::<Value>(&more.stdout).unwrap(), json!({ "imported": 1 }), "{}", more.stderr);
    let wrong = home.run_with_stdin(&["db", "import", "to"], "{\"key\":\"a\",\"value\":1}\n{\"key\":\"b\"}\n").await;
    assert!(wrong.code == Some(2) && wrong.stderr.contains("line 2"), "{}", wrong.stderr);
    run(&home, &["get", "to", "a"], 0).await;
    let none = run(&home, &["import", "to", "nowhere.ndjson"], 3).await;
    assert!(none.stderr.contains("nowhere.ndjson"), "{}", none.stderr);
    let folder = home.path("rows.ndjson").parent().unwrap().to_str().unwrap().to_owned();
    let no_file = run(&home, &["import", "to", &folder], 2).await;
    let wanted = format!("{folder} cannot be read");
    assert!(no_file.stderr.contains(&wanted) && !no_file.stderr.contains("does not answer"), "{}", no_file.stderr);

    let before = stored(&home);
    run(&home, &["drop", "from"], 0).await;
    assert!(stored(&home).len() < before.len(), "its files are gone: {before:?}");
    run(&home, &["info", "from"], 3).await;
    run(&home, &["create", "from", "--type", "events"], 0).await;
    assert_eq!(object(&home, &["info", "from"]).await["entries"], 0, "the name is free again");
    node.stop().await;
}
