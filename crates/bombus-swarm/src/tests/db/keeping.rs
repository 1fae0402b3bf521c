//! Which databases a node keeps: over restarts, by their names, until they are dropped.

use orbitdb::cid::Hash;
use orbitdb::manifest::Address;

use super::*;
use crate::db::DbError;

#[tokio::test]
async fn what_was_open_is_open_after_a_restart_and_goes_on_with_its_peers() {
    let a = Keeper::start(1, &[]).await;
    let b = Keeper::start(2, &[&a]).await;
    let at_b = b.create("shared").await;
    let options = OpenOptions::of(DatabaseType::Documents).index_by("name");
    let people = a.db.create("people", options).await.unwrap();
    people.put_document(json_value(&json!({ "name": "ada" }))).await.unwrap();
    let unused = a.db.create("unused", OpenOptions::of(DatabaseType::Events)).await.unwrap();
    let at_a = a.open(&at_b).await;
    put(&at_b, "1", "before").await;
    says(&at_a, &[("1", "before")]).await;
    a.db.close("unused").await.unwrap();
    drop((at_a, people, unused));
    let directory = a.stop().await;
    put(&at_b, "2", "meanwhile").await;

    let a = Keeper::start_with(1, &[&b], config(), directory).await;
    let at_a = a.db.database("shared").expect("it is open again");
    says(&at_a, &[("1", "before"), ("2", "meanwhile")]).await;
    put(&at_a, "3", "after").await;
    says(&at_b, &[("1", "before"), ("2", "meanwhile"), ("3", "after")]).await;
    let people = a.db.database("people").expect("it is open again");
    assert!(people.get("ada").is_some());
    people.put_document(json_value(&json!({ "name": "grace" }))).await.expect("the field is still known");
    assert!(a.db.database("unused").is_none(), "it was closed");
    assert_eq!(a.db.list().unwrap().len(), 3);
    a.db.open("unused").await.unwrap();
    assert!(a.db.database("unused").is_some());
    drop((at_a, people));
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn the_setting_that_lets_puts_be_lost_is_taken_back_at_the_next_start() {
    let durable = |keeper: &Keeper| {
        ["created", "opened", "own"].map(|name| keeper.db.database(name).unwrap().info().unwrap().durable)
    };
    let a = Keeper::start(1, &[]).await;
    a.create("opened").await;
    a.db.create("own", OpenOptions::of(DatabaseType::Events).relaxed(true)).await.unwrap();
    assert!(a.db.database("opened").unwrap().info().unwrap().durable);
    let directory = a.stop().await;

    let a = Keeper::start_with(1, &[], DbConfig { relaxed: true, ..config() }, directory).await;
    a.create("created").await;
    a.db.close("opened").await.unwrap();
    a.db.open("opened").await.unwrap();
    assert_eq!(durable(&a), [false; 3]);
    let directory = a.stop().await;

    let a = Keeper::start_with(1, &[], config(), directory).await;
    assert_eq!(durable(&a), [true, true, false], "a program wants the last one so");
    a.stop().await;
}

#[tokio::test]
async fn what_somebody_asked_for_who_went_away_is_done_to_its_end() {
    /// Begins something, and goes away.
    async fn begin<T: std::fmt::Debug>(work: impl Future<Output = Result<T, DbError>>) {
        tokio::select! {
            biased;
            done = work => panic!("it was done at once: {done:?}"),
            () = std::future::ready(()) => {}
        }
    }

    let a = Keeper::start(1, &[]).await;
    begin(a.db.create("left", documents())).await;
    until_it_shows(|| async {}, || a.db.database("left").is_some() && a.db.list().unwrap().len() == 1).await;
    begin(a.db.close("left")).await;
    until_it_shows(|| async {}, || a.db.database("left").is_none()).await;
    begin(a.db.open("left")).await;
    until_it_shows(|| async {}, || a.db.database("left").is_some()).await;
    begin(a.db.drop("left")).await;
    until_it_shows(|| async {}, || a.db.orbit().databases().unwrap().is_empty() && a.db.list().unwrap().is_empty())
        .await;
    a.stop().await;
}

#[tokio::test]
async fn a_database_that_was_dropped_is_gone_here_and_stays_elsewhere() {
    let a = Keeper::start(1, &[]).await;
    let b = Keeper::start(2, &[&a]).await;
    let options = OpenOptions::of(DatabaseType::Documents).access(Access::Capabilities(Vec::new()));
    let at_a = a.db.create("guarded", options).await.unwrap();
    let at_b = b.open(&at_a).await;
    put(&at_a, "1", "here").await;
    says(&at_b, &[("1", "here")]).await;
    let address = at_a.address().to_string();
    a.db.drop("guarded").await.unwrap();
    assert!(at_a.is_closed() && a.db.list().unwrap().is_empty());
    drop(at_a);
    assert!(a.db.orbit().databases().unwrap().is_empty(), "what guarded it is gone, too");
    assert!(matches!(a.db.drop("guarded").await, Err(DbError::NotFound(_))));
    says(&at_b, &[("1", "here")]).await;
    let at_a = a.db.open(&address).await.expect("the other one still has it");
    says(&at_a, &[("1", "here")]).await;
    drop((at_a, at_b));
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn what_could_not_be_dropped_can_be_dropped_again() {
    let a = Keeper::start(1, &[]).await;
    let options = OpenOptions::of(DatabaseType::Events).access(Access::Capabilities(Vec::new()));
    let address = a.db.create("left", options).await.unwrap().address();
    // A directory cannot be removed as a file is.
    let file = a.directory.path().join(format!("{}.redb", address.manifest()));
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    a.db.drop("left").await.unwrap_err();
    assert_eq!(a.db.list().unwrap().len(), 1, "it is still here");
    assert!(a.db.database("left").is_none());
    std::fs::remove_dir(&file).unwrap();
    a.db.drop("left").await.unwrap();
    assert!(a.db.list().unwrap().is_empty() && a.db.orbit().databases().unwrap().is_empty());
    a.stop().await;
}

#[tokio::test]
async fn names_mean_one_database() {
    let a = Keeper::start(1, &[]).await;
    let first = a.create("name").await;
    let again = a.create("name").await;
    assert_eq!(first.address(), again.address(), "the same name and options give the same database");
    let other = a.db.create("name", OpenOptions::of(DatabaseType::Events)).await;
    assert!(matches!(other, Err(DbError::NameTaken { address, .. }) if address == first.address()));
    assert_eq!(a.db.orbit().databases().unwrap().len(), 1, "nothing of the other one is left");
    assert!(matches!(a.db.open("nobody").await, Err(DbError::NotFound(_))));
    for name in ["", "/orbitdb/zdpu", "a\nb", ".", ".."] {
        let created = a.db.create(name, documents()).await;
        assert!(matches!(created, Err(DbError::Name(_))), "{name:?}");
    }
    drop((first, again));
    a.stop().await;
}

#[tokio::test]
async fn one_that_is_created_again_stays_open_beside_a_namesake() {
    let a = Keeper::start(1, &[]).await;
    let b = Keeper::start(2, &[&a]).await;
    let at_a = a.db.create("name", OpenOptions::of(DatabaseType::Events).access(Access::Everyone)).await.unwrap();
    let own = b.create("name").await;
    b.open(&at_a).await;
    let again = b.create("name").await;
    assert_eq!(again.address(), own.address());
    put(&own, "a", "still open").await;
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn what_nodes_keep_for_themselves_gets_no_namesake_from_a_peer() {
    let a = Keeper::start(1, &[]).await;
    let b = Keeper::start(2, &[&a]).await;
    let everyone = |r#type| OpenOptions::of(r#type).access(Access::Everyone);
    let other = a.db.create("swarm-tasks", everyone(DatabaseType::KeyValue)).await.unwrap();
    let opened = b.db.open(&other.address().to_string()).await;
    assert!(matches!(&opened, Err(DbError::Reserved(name)) if name == "swarm-tasks"), "{opened:?}");
    assert!(b.db.orbit().databases().unwrap().is_empty(), "nothing of it is left");
    let own = b.db.create("swarm-tasks", everyone(DatabaseType::Documents)).await.unwrap();
    assert_eq!(a.open(&own).await.address(), own.address(), "the one that all nodes have");
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn what_guards_a_database_stays_as_long_as_that() {
    let a = Keeper::start(1, &[]).await;
    let options = documents().access(Access::Capabilities(Vec::new()));
    let guarded = a.db.create("guarded", options).await.unwrap();
    let guard = guarded.guard().unwrap().address().to_string();
    drop(a.db.open(&guard).await.unwrap());
    let dropped = a.db.drop(&guard).await;
    assert!(matches!(&dropped, Err(DbError::Guards { name, .. }) if name == "guarded"), "{dropped:?}");
    a.db.close(&guard).await.unwrap();
    put(&guarded, "a", "still open").await;
    guarded.grant("write", "*").await.unwrap();
    drop(guarded);
    a.stop().await;
}

#[tokio::test]
async fn who_waits_for_peers_holds_up_nobody_who_needs_none() {
    let a = Keeper::start_with(1, &[], DbConfig { opening_max: 1, ..config() }, TempDir::new().unwrap()).await;
    let nobodys = Address::new(Hash::of(b"nobody has it")).to_string();
    let waits = tokio::spawn({
        let db = a.db.clone();
        async move { db.open(&nobodys).await }
    });
    until_it_shows(|| async {}, || !a.db.orbit().missing().borrow().is_empty()).await;
    let created = timeout(LIMIT / 2, a.create("here"));
    let first = futures::future::select(Box::pin(created), waits).await;
    assert!(matches!(first, futures::future::Either::Left((Ok(_), _))), "it waited for the other one");
    drop(first);
    a.stop().await;
}

#[tokio::test]
async fn there_is_an_end_to_how_many_are_open() {
    let config = DbConfig { databases_max: 2, ..config() };
    let a = Keeper::start_with(1, &[], config, TempDir::new().unwrap()).await;
    a.create("1").await;
    a.create("2").await;
    let third = a.db.create("3", documents()).await;
    assert!(matches!(third, Err(DbError::TooMany(2))), "{third:?}");
    a.db.close("1").await.unwrap();
    until_it_shows(|| async {}, || a.db.orbit().addresses().borrow().len() == 1).await;
    a.create("3").await;
    a.stop().await;
}

#[tokio::test]
async fn what_guards_a_database_is_counted_too() {
    let with_room_for = |databases_max| DbConfig { databases_max, ..config() };
    let a = Keeper::start_with(1, &[], with_room_for(3), TempDir::new().unwrap()).await;
    let guarded = || OpenOptions::of(DatabaseType::Documents).access(Access::Capabilities(Vec::new()));
    let first = a.db.create("first", guarded()).await.unwrap();
    let second = a.db.create("second", guarded()).await;
    assert!(matches!(second, Err(DbError::TooMany(2))), "{second:?}");
    assert_eq!(a.db.orbit().databases().unwrap().len(), 2, "nothing of it is stored");
    let b = Keeper::start_with(2, &[&a], with_room_for(1), TempDir::new().unwrap()).await;
    let opened = b.db.open(&first.address().to_string()).await;
    assert!(matches!(opened, Err(DbError::TooMany(_))), "{opened:?}");
    until_it_shows(|| async {}, || b.db.orbit().addresses().borrow().is_empty()).await;
    b.stop().await;
    a.stop().await;
}

/// Returns whether a node has a file of a database.
fn has_file(keeper: &Keeper, address: &Address) -> bool {
    let name = address.manifest().to_string();
    let mut files = std::fs::read_dir(keeper.db.directory()).unwrap();
    files.any(|file| file.unwrap().file_name().to_string_lossy().contains(&name))
}

#[tokio::test]
async fn nothing_is_left_of_a_database_that_is_not_opened_since_too_many_are_open() {
    let a = Keeper::start(1, &[]).await;
    let guarded = a.db.create("guarded", documents().access(Access::Capabilities(Vec::new()))).await.unwrap();
    let both = [guarded.address(), guarded.guard().unwrap().address()];
    assert!(both.iter().all(|address| has_file(&a, address)));
    let b = Keeper::start_with(2, &[&a], DbConfig { databases_max: 1, ..config() }, TempDir::new().unwrap()).await;
    let opened = b.db.open(&guarded.address().to_string()).await;
    assert!(matches!(opened, Err(DbError::TooMany(2))), "{opened:?}");
    assert_eq!((b.db.orbit().databases().unwrap(), b.db.orbit().addresses().borrow().len()), (vec![], 0));
    assert!(both.iter().all(|address| !has_file(&b, address)));
    b.create("another").await;
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn a_database_that_was_kept_before_stays_when_too_many_are_open() {
    let a = Keeper::start_with(1, &[], DbConfig { databases_max: 2, ..config() }, TempDir::new().unwrap()).await;
    let guarded = a.db.create("guarded", documents().access(Access::Capabilities(Vec::new()))).await.unwrap();
    put(&guarded, "a", "kept").await;
    drop(guarded);
    a.db.close("guarded").await.unwrap();
    let none_is_open = || a.db.orbit().addresses().borrow().is_empty();
    until_it_shows(|| async {}, none_is_open).await;
    a.create("another").await;
    let opened = a.db.open("guarded").await;
    assert!(matches!(opened, Err(DbError::TooMany(3))), "{opened:?}");
    a.db.close("another").await.unwrap();
    until_it_shows(|| async {}, none_is_open).await;
    let guarded = a.db.open("guarded").await.unwrap();
    says(&guarded, &[("a", "kept")]).await;
    drop(guarded);
    a.stop().await;
}

#[tokio::test]
async fn nothing_is_left_of_a_database_that_cannot_be_noted() {
    let a = Keeper::start(1, &[]).await;
    let guarded = || documents().access(Access::Capabilities(Vec::new()));
    // No file takes the place of a directory.
    let in_the_way = a.db.directory().join("databases.json");
    std::fs::create_dir(&in_the_way).unwrap();
    let created = a.db.create("guarded", guarded()).await;
    assert!(matches!(created, Err(DbError::Records { doing: "written", .. })), "{created:?}");
    assert_eq!((a.db.orbit().databases().unwrap(), a.db.orbit().addresses().borrow().len()), (vec![], 0));
    std::fs::remove_dir(&in_the_way).unwrap();
    let created = a.db.create("guarded", guarded()).await.unwrap();
    put(&created, "a", "kept").await;
    drop(created);
    a.stop().await;
}

#[tokio::test]
async fn those_that_are_opened_at_once_are_no_more_than_may_be() {
    let a = Keeper::start_with(1, &[], DbConfig { databases_max: 2, ..config() }, TempDir::new().unwrap()).await;
    let names = ["1", "2", "3", "4"];
    for name in names {
        a.create(name).await;
        a.db.close(name).await.unwrap();
        until_it_shows(|| async {}, || a.db.orbit().addresses().borrow().is_empty()).await;
    }
    let opened = futures::future::join_all(names.map(|name| a.db.open(name))).await;
    assert_eq!(opened.iter().filter(|opened| opened.is_ok()).count(), 2, "{opened:?}");
    assert!(opened.iter().all(|opened| matches!(opened, Ok(_) | Err(DbError::TooMany(_)))), "{opened:?}");
    drop(opened);
    a.stop().await;
}

#[tokio::test]
async fn a_database_that_nobody_has_is_not_waited_for_forever_and_a_stop_ends_the_wait() {
    let config = DbConfig { open_limit_ms: 300, ..config() };
    let a = Keeper::start_with(1, &[], config, TempDir::new().unwrap()).await;
    let b = Keeper::start(2, &[&a]).await;
    let nowhere = "/orbitdb/zdpuAwKJDKp1C2UFkZ18GELaKzyCxaH4A8jQSpLiRKEcnBDxq";
    assert!(matches!(a.db.open(nowhere).await, Err(DbError::NotReached { .. })));
    let waiting = tokio::spawn({
        let db = b.db.clone();
        async move { db.open(nowhere).await.map(drop) }
    });
    until_it_shows(|| async {}, || !b.db.orbit().missing().borrow().is_empty()).await;
    b.stop().await;
    assert!(matches!(timeout(LIMIT, waiting).await.unwrap().unwrap(), Err(DbError::Stopped)));
    a.stop().await;
}
