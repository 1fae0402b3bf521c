//! What models there are, and how soon a change is seen.

use tokio::time::{Instant, advance};

use super::upstreams::known;
use super::*;
use crate::fake::{FakeBackend, FakeConfig};

fn hanging() -> Arc<Player> {
    Arc::new(Player { gate: Some(Notify::new()), ..Player::new(|| Play::Hang) })
}

fn two_that_hang_and_one_that_works() -> Backends {
    let fake = Arc::new(FakeBackend::new(FakeConfig::default()));
    Backends::new(vec![named("a", hanging()), named("b", hanging()), NamedBackend::new("c", "fake", fake)])
}

async fn names(backends: &Backends) -> Vec<String> {
    let listed = backends.models().await;
    listed.iter().map(|listed| format!("{} {}", listed.backend.name, listed.info.name)).collect()
}

#[tokio::test(start_paused = true)]
async fn backends_that_hang_are_left_out_of_the_list_after_one_wait() {
    let begun = Instant::now();
    let backends = two_that_hang_and_one_that_works();
    assert_eq!(names(&backends).await, ["c fake:latest"]);
    assert_eq!(begun.elapsed(), ASK_TIME_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_model_is_found_behind_backends_that_hang() {
    let begun = Instant::now();
    let backends = two_that_hang_and_one_that_works();
    assert_eq!(backends.find("fake").await.map(|found| found.backend.name.clone()), Ok("c".into()));
    assert_eq!(begun.elapsed(), FOUND_GRACE);
    let error = backends.find("other").await.err();
    assert!(matches!(error, Some(BackendError::Unavailable { reason }) if reason.contains("'a'")));
}

#[tokio::test]
async fn a_model_that_several_have_is_listed_for_each_and_marked_once() {
    let players =
        [vec![text_model("x"), text_model("y")], vec![text_model("y"), text_model("z")]].map(Player::with_models);
    let backends = backends_of(&players);
    assert_eq!(names(&backends).await, ["a x:latest", "a y:latest", "b y:latest", "b z:latest"]);
    let first: Vec<_> = backends.models().await.iter().map(|listed| listed.first).collect();
    assert_eq!(first, [true, true, false, true]);
}

#[tokio::test(start_paused = true)]
async fn a_route_to_a_known_model_asks_no_backend() {
    let player = Player::always(Play::Say(1));
    let backends = backends_of(std::slice::from_ref(&player));
    for _ in 0..100 {
        words(chat(&backends).await.unwrap()).await.unwrap();
        advance(Duration::from_secs(10)).await;
    }
    assert_eq!(player.lists.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_model_that_was_just_pulled_is_found_by_asking_for_it() {
    let player = Player::with_models(vec![text_model("m")]);
    let backends = backends_of(std::slice::from_ref(&player));
    assert!(backends.find("new").await.is_err());
    *player.models.lock().unwrap() = Ok(vec![text_model("m"), text_model("new")]);
    assert!(backends.find("new").await.is_err(), "names that nobody has are not looked for all the time");
    advance(MISS_INTERVAL).await;
    assert!(backends.find("new").await.is_ok());
    assert_eq!(player.lists.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_model_that_was_just_imported_here_is_seen_at_once() {
    let player = Player::with_models(vec![text_model("m")]);
    let backends = Backends::new(vec![NamedBackend::new("a", "embedded", player.clone())]);
    assert!(backends.find("new").await.is_err());
    *player.models.lock().unwrap() = Ok(vec![text_model("new")]);
    assert!(backends.route("new", &text()).await.is_ok());
    assert_eq!(names(&backends).await, ["a new:latest"]);
}

#[tokio::test]
async fn many_who_miss_a_model_ask_once() {
    let player = Arc::new(Player { gate: Some(Notify::new()), ..Player::new(|| Play::Say(1)) });
    let backends = backends_of(std::slice::from_ref(&player));
    let lookups = (0..50).map(|_| async { backends.find("m").await.is_ok() });
    let opened = async {
        while player.lists.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        player.gate.as_ref().unwrap().notify_one();
    };
    let (found, ()) = tokio::join!(join_all(lookups), opened);
    assert!(found.into_iter().all(|found| found));
    assert_eq!(player.lists.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_goes_is_dropped_and_one_that_comes_back_is_found() {
    let player = Player::always(Play::Say(1));
    let backends = backends_of(std::slice::from_ref(&player));
    let changed = async |models: Result<Vec<ModelInfo>, BackendError>| {
        *player.models.lock().unwrap() = models;
        let watched = timeout(WATCH_INTERVAL / 2, backends.watch());
        assert!(watched.await.is_err());
        (names(&backends).await.len(), state(&backends, "a").ready)
    };
    assert_eq!(changed(Ok(vec![text_model("m")])).await, (1, true));
    assert_eq!(changed(Err(unavailable())).await, (1, false), "one that is late once is not gone");
    assert_eq!(changed(Err(unavailable())).await, (0, false));
    assert_eq!(backends.route("m", &text()).await.err(), Some(unavailable()), "the model may well be there");
    assert_eq!(changed(Ok(vec![text_model("m")])).await, (1, true));
}

/// A backend that cannot be asked, for a reason that tells it from others.
fn away(reason: &str) -> Arc<Player> {
    let player = Player::always(Play::Say(1));
    *player.models.lock().unwrap() = Err(BackendError::Unavailable { reason: reason.to_owned() });
    player
}

/// How the search for a model ends, and the route to it alike.
async fn missed(backends: &Backends, model: &str) -> BackendError {
    let found = backends.find(model).await.err().unwrap();
    assert_eq!(backends.route(model, &text()).await.err().as_ref(), Some(&found));
    found
}

fn not_found(model: &str) -> BackendError {
    BackendError::ModelNotFound { model: model.to_owned() }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_stays_away_makes_no_unknown_model_unavailable() {
    let gone = || BackendError::Unavailable { reason: "first".into() };
    let pair = backends_of(&[away("first"), Player::with_models(vec![text_model("m")])]);
    let none = backends_of(&[away("first"), away("second")]);
    for backends in [&pair, &none] {
        assert_eq!(missed(backends, "new").await, gone(), "the model may well be there");
    }
    advance(TROUBLE_AGE_MAX).await;
    assert_eq!(missed(&pair, "new").await, not_found("new"));
    assert_eq!(missed(&none, "new").await, gone(), "nobody could be asked");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_stays_away_counts_for_what_its_settings_name() {
    let aliases: BTreeMap<_, _> = [("nick".to_owned(), "theirs".to_owned())].into();
    for (models, named_there, others) in
        [(vec!["mine".to_owned()], ["mine", "nick"], ["theirs", "new"]), (vec![], ["theirs", "nick"], ["mine", "new"])]
    {
        let options = BackendOptions { models, aliases: aliases.clone(), ..BackendOptions::default() };
        let first = NamedBackend { options, ..named("a", away("first")) };
        let backends = Backends::new(vec![first, named("b", Player::always(Play::Say(1)))]);
        assert!(backends.find("new").await.is_err());
        advance(TROUBLE_AGE_MAX).await;
        for model in named_there {
            for asked in [model.to_owned(), format!("library/{}", model.to_uppercase())] {
                let error = BackendError::Unavailable { reason: "first".into() };
                assert_eq!(missed(&backends, &asked).await, error, "{asked}");
            }
        }
        for model in others {
            assert_eq!(missed(&backends, model).await, not_found(model));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_stays_away_counts_for_the_models_that_it_was_given() {
    let given = Arc::new(Player { given: vec![text_model("mine").name], ..Player::new(|| Play::Say(1)) });
    *given.models.lock().unwrap() = Err(unavailable());
    let options =
        BackendOptions { aliases: [("nick".to_owned(), "mine".to_owned())].into(), ..BackendOptions::default() };
    let first = NamedBackend { options, ..named("a", given) };
    let backends = Backends::new(vec![first, named("b", Player::always(Play::Say(1)))]);
    assert!(backends.find("new").await.is_err());
    advance(TROUBLE_AGE_MAX).await;
    for model in ["mine", "nick"] {
        assert_eq!(missed(&backends, model).await, unavailable(), "{model}");
    }
    assert_eq!(missed(&backends, "new").await, not_found("new"));
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_stays_away_counts_for_what_it_had() {
    let going = Player::with_models(vec![text_model("x")]);
    let backends = backends_of(&[going.clone(), Player::always(Play::Say(1))]);
    backends.refresh("a").await;
    *going.models.lock().unwrap() = Err(unavailable());
    for _ in 0..3 {
        backends.refresh("a").await;
    }
    advance(TROUBLE_AGE_MAX).await;
    for model in ["x", "library/X"] {
        assert_eq!(missed(&backends, model).await, unavailable());
    }
    assert_eq!(missed(&backends, "new").await, not_found("new"));

    *going.models.lock().unwrap() = Ok(vec![text_model("y")]);
    backends.refresh("a").await;
    assert_eq!(missed(&backends, "x").await, not_found("x"), "it is back without it");
}

#[tokio::test]
async fn an_alias_is_a_name_like_others_and_stands_for_a_model_there() {
    let player = Player::with_models(vec![text_model("big:70b"), text_model("small")]);
    let aliases = [("best".to_owned(), "big:70b".to_owned()), ("gone".to_owned(), "nothing".to_owned())];
    let options = BackendOptions { aliases: aliases.into(), ..BackendOptions::default() };
    let backends = Backends::new(vec![NamedBackend { options, ..named("a", player.clone()) }]);
    assert_eq!(names(&backends).await, ["a best:latest", "a big:70b", "a small:latest"]);
    let found = backends.find("best").await.unwrap();
    assert_eq!((found.info.name.as_str(), found.name_there().as_str()), ("best:latest", "big:70b"));

    let routed = backends.route("best", &text()).await.unwrap().chat(ask("best")).await.unwrap();
    assert_eq!(routed.model.as_str(), "big:70b");
    assert_eq!(player.asked(), ["big:70b"], "the backend is asked by its own name");
}

#[tokio::test]
async fn a_model_is_found_by_the_names_that_ollama_takes_for_its_own() {
    for kind in ["openai", "embedded"] {
        let player = Player::with_models(vec![text_model("Org/Small:1B"), text_model("big")]);
        let options =
            BackendOptions { aliases: [("Best".to_owned(), "big".to_owned())].into(), ..BackendOptions::default() };
        for (asked, listed, there) in [
            ("org/small:1b", "Org/Small:1B", "Org/Small:1B"),
            ("registry.ollama.ai/org/small:1b", "Org/Small:1B", "Org/Small:1B"),
            ("library/BIG", "big:latest", "big:latest"),
            ("best", "Best:latest", "big"),
        ] {
            let backends = Backends::new(vec![NamedBackend {
                options: options.clone(),
                ..NamedBackend::new("a", kind, player.clone())
            }]);
            let found = backends.find(asked).await.unwrap();
            assert_eq!((found.info.name.as_str(), found.name_for(asked).as_str()), (listed, there), "{kind} {asked}");
            let ranking = backends.rank(asked, &text()).await.unwrap();
            assert_eq!(ranking[0].model().map(|info| info.name.as_str()), Some(listed));
            backends.route(asked, &text()).await.unwrap().chat(ask(asked)).await.unwrap();
            assert_eq!(player.asked().last().map(String::as_str), Some(there), "it is asked by its own name");
            assert!(backends.find("org/small").await.is_err(), "a tag is a part of the name");
        }
    }
}

#[tokio::test]
async fn a_name_as_it_is_written_comes_before_those_that_are_like_it() {
    let players = [vec![text_model("Q")], vec![text_model("q"), text_model("hidden")]].map(Player::with_models);
    let [upper, lower] = &players;
    let options = BackendOptions { models: vec!["q".into()], ..BackendOptions::default() };
    let second = NamedBackend { options, ..named("b", lower.clone()) };
    let backends = known(vec![named("a", upper.clone()), second]).await;
    for (asked, backend) in [("q", "b"), ("Q", "a"), ("library/q", "a"), ("q:latest", "b")] {
        assert_eq!(backends.find(asked).await.map(|found| found.backend.name), Ok(backend.into()), "{asked}");
        let routed = backends.route(asked, &text()).await.unwrap().chat(ask(asked)).await.unwrap();
        assert_eq!(routed.backend, backend, "{asked}");
    }
    assert_eq!(
        (upper.asked(), lower.asked()),
        (vec!["Q".into(), "Q:latest".into()], vec!["q".into(), "q:latest".into()])
    );
    assert!(backends.find("Hidden").await.is_err(), "what is left out is so by each of its names");
}

#[tokio::test]
async fn those_that_have_a_model_are_those_that_requests_for_it_may_go_to() {
    let [upper, lower] = [vec![text_model("Q")], vec![text_model("q")]].map(Player::with_models);
    let backends = known(vec![named("a", upper), named("b", lower)]).await;
    for (asked, having) in
        [("library/q", vec!["a Q:latest", "b q:latest"]), ("Q", vec!["a Q:latest"]), ("q", vec!["b q:latest"])]
    {
        let places = backends.having(asked).await.unwrap();
        let told: Vec<_> = places.iter().map(|place| format!("{} {}", place.backend.name, place.info.name)).collect();
        assert_eq!(told, having, "{asked}");
        let route = backends.route(asked, &text()).await.unwrap();
        assert_eq!(route.explain().iter().filter(|ranked| ranked.model().is_some()).count(), told.len(), "{asked}");
    }
    assert_eq!(backends.having("new").await.err(), Some(not_found("new")));
}

#[tokio::test(start_paused = true)]
async fn requests_by_other_names_of_a_model_share_its_breaker() {
    let player = Player::always(Play::Refuse(unavailable()));
    let backends = backends_of(std::slice::from_ref(&player));
    for asked in ["M", "library/m", "m:LATEST", "m"] {
        let error =
            async { backends.route(asked, &text()).await?.chat(ask(asked)).await.map(|_| ()) }.await.unwrap_err();
        let is_left_alone = error.to_string().contains("failed several times in a row");
        assert_eq!(is_left_alone, asked == "m", "{asked}: {error}");
    }
    assert_eq!(player.asked(), ["m:latest"; 3]);
}

#[tokio::test]
async fn models_that_are_left_out_are_neither_listed_nor_found() {
    let player = Player::with_models(vec![text_model("x"), text_model("y"), text_model("z")]);
    let aliases = [("other".to_owned(), "z".to_owned())];
    let options = BackendOptions { models: vec!["x".into()], aliases: aliases.into(), ..BackendOptions::default() };
    let backends = Backends::new(vec![NamedBackend { options, ..named("a", player) }]);
    assert_eq!(names(&backends).await, ["a other:latest", "a x:latest"]);
    assert!(
        matches!(backends.route("y", &text()).await.err(), Some(BackendError::ModelNotFound { model }) if model == "y")
    );
    let ranking = backends.rank("y", &text()).await.unwrap();
    assert_eq!(ranking[0].reasons(), ["its setting 'models' leaves this model out"]);
}

#[tokio::test]
async fn what_is_no_name_is_not_found() {
    let backends = backends_of(&[Player::always(Play::Say(1))]);
    for name in ["", "../x", "a b"] {
        assert!(matches!(backends.find(name).await.err(), Some(BackendError::ModelNotFound { .. })));
        assert!(matches!(backends.route(name, &text()).await.err(), Some(BackendError::ModelNotFound { .. })));
    }
}
