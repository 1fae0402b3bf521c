//! Who answers when a backend does not.

use tokio::time::advance;

use super::*;

fn context_exceeded(context_tokens: u32) -> BackendError {
    BackendError::ContextExceeded { prompt_tokens: 9_000, context_tokens }
}

fn invalid(message: &str) -> BackendError {
    BackendError::InvalidRequest { param: None, message: message.into() }
}

fn unsupported(message: &str) -> BackendError {
    BackendError::Unsupported { param: "tools", message: message.into() }
}

fn dead_end() -> BackendError {
    BackendError::DeadEnd { param: "tools", message: "no token is left".into() }
}

fn with_context(play: Play, tokens: u32) -> Arc<Player> {
    let player = Player::always(play);
    *player.models.lock().unwrap() = Ok(vec![ModelInfo { context_tokens: Some(tokens), ..text_model("m") }]);
    player
}

#[tokio::test]
async fn the_next_backend_answers_what_the_first_fails_at_before_the_first_token() {
    let retry_after = Duration::from_secs(1);
    for error in [
        unavailable(),
        BackendError::TimedOut { after: Duration::from_secs(1) },
        BackendError::Interrupted { reason: "gone".into() },
        BackendError::Rejected { reason: "the key is wrong".into() },
        BackendError::ModelNotFound { model: "m".into() },
        BackendError::Overloaded { retry_after },
        BackendError::OutOfMemory { message: "full".into() },
        BackendError::ModelUnusable { model: "m".into(), reason: "cut off".into() },
        invalid("no such option"),
        unsupported("no tools"),
        dead_end(),
    ] {
        for play in [Play::Refuse(error.clone()), Play::RefuseInStream(error.clone())] {
            let backends = backends_of(&[Player::always(play), Player::always(Play::Say(2))]);
            let routed = chat(&backends).await.unwrap();
            assert_eq!((routed.backend.as_str(), routed.reason.as_str()), ("b", "after a"), "{error}");
            assert_eq!(words(routed).await, Ok(2));
        }
    }
}

#[tokio::test]
async fn thoughts_that_only_the_first_backend_may_have_are_not_asked_of_the_next_one() {
    for play in [Play::Refuse(unavailable()), Play::RefuseInStream(unavailable())] {
        let first = Player::always(play);
        let capabilities = vec![ModelCapability::Completion, ModelCapability::Thinking];
        *first.models.lock().unwrap() = Ok(vec![ModelInfo { capabilities, ..text_model("m") }]);
        let backends = backends_of(&[first, Player::always(Play::SayAtOnce(2))]);
        let request = ChatRequest { think: Some(Think::On), ..ask("m") };
        let routed = backends.route("m", &text()).await.unwrap().chat(request).await.unwrap();
        assert_eq!(routed.backend, "b");
        assert_eq!(words(routed).await, Ok(2));
    }
}

#[tokio::test]
async fn a_model_that_breaks_down_takes_no_other_one_of_the_engine_away() {
    for (kind, is_answered) in [("embedded", true), ("openai", false)] {
        let is_down = Arc::new(AtomicU32::new(1));
        let player = Player::new({
            let is_down = is_down.clone();
            move || if is_down.load(Ordering::SeqCst) == 1 { Play::Refuse(unavailable()) } else { Play::Say(1) }
        });
        *player.models.lock().unwrap() = Ok(vec![text_model("m"), text_model("other")]);
        let backends = Backends::new(vec![NamedBackend::new("a", kind, Arc::new(player))]);
        for _ in 0..10 {
            assert!(chat(&backends).await.is_err());
        }
        is_down.store(0, Ordering::SeqCst);
        let answer = async { backends.route("other", &text()).await?.chat(ask("other")).await };
        assert_eq!(answer.await.is_ok(), is_answered, "{kind}");
    }
}

#[tokio::test]
async fn an_answer_that_has_begun_goes_to_nobody_else() {
    let next = Player::always(Play::Say(2));
    let backends = backends_of(&[Player::always(Play::BreakOff), next.clone()]);
    let routed = chat(&backends).await.unwrap();
    assert_eq!(routed.backend, "a");
    assert!(matches!(words(routed).await, Err(BackendError::Interrupted { .. })));
    assert!(next.asked().is_empty());
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_told_in_the_words_of_the_first_that_found_it() {
    let overloaded = || BackendError::Overloaded { retry_after: Duration::from_secs(1) };
    for (errors, told) in [
        (vec![invalid("first"), invalid("second")], invalid("first")),
        (vec![unsupported("first"), unsupported("second")], unsupported("first")),
        (vec![unavailable(), invalid("wrong")], invalid("wrong")),
        (vec![invalid("wrong"), overloaded(), unsupported("other")], invalid("wrong")),
        (vec![unsupported("not here"), unavailable()], unavailable()),
    ] {
        let players = errors.into_iter().map(|error| Player::always(Play::Refuse(error))).collect::<Vec<_>>();
        assert_eq!(chat(&backends_of(&players)).await.err(), Some(told));
        assert!(players.iter().all(|player| player.asked().len() == 1));
    }
}

#[tokio::test]
async fn a_request_at_which_three_backends_found_fault_bothers_no_others() {
    let refusing = || Player::always(Play::Refuse(invalid("no")));
    let last = Player::always(Play::Say(1));
    let backends = backends_of(&[refusing(), refusing(), refusing(), last.clone()]);
    assert_eq!(chat(&backends).await.err(), Some(invalid("no")));
    assert!(last.asked().is_empty());
}

#[tokio::test]
async fn where_all_have_too_much_to_do_the_shortest_wait_is_told() {
    let overloaded = |seconds| BackendError::Overloaded { retry_after: Duration::from_secs(seconds) };
    let players = [9, 4, 7].map(|seconds| Player::always(Play::Refuse(overloaded(seconds))));
    assert_eq!(chat(&backends_of(&players)).await.err(), Some(overloaded(4)));
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_tried_where_the_context_is_larger_alone() {
    let players = [
        with_context(Play::Refuse(context_exceeded(4_096)), 4_096),
        with_context(Play::Say(1), 4_096),
        Player::always(Play::Say(1)),
        with_context(Play::Say(1), 32_768),
    ];
    assert_eq!(chat(&backends_of(&players)).await.unwrap().backend, "d");
    assert!(players[1].asked().is_empty() && players[2].asked().is_empty());
    assert_eq!(chat(&backends_of(&players[..3])).await.err(), Some(context_exceeded(4_096)));
}

#[tokio::test]
async fn of_several_failures_the_one_that_says_most_is_told() {
    let rejected = BackendError::Rejected { reason: "the key is wrong".into() };
    let players = [rejected, unavailable(), BackendError::ModelNotFound { model: "m".into() }];
    let backends = backends_of(&players.map(|error| Player::always(Play::Refuse(error))));
    assert_eq!(chat(&backends).await.err(), Some(unavailable()));
}

#[tokio::test]
async fn a_backend_that_can_do_what_is_needed_is_preferred_to_one_that_cannot() {
    use ModelCapability::{Completion, Tools};
    let with_tools = ModelInfo { capabilities: vec![Completion, Tools], ..text_model("m") };
    let backends = backends_of(&[Player::always(Play::Say(1)), Player::with_models(vec![with_tools])]);
    let need = Need::of([Completion, Tools]);
    let best = |route: Route| route.best().0.name.clone();
    assert_eq!(backends.route("m", &need).await.map(best), Ok("b".into()));
    assert_eq!(backends.route("m", &text()).await.map(best), Ok("a".into()));
    let need = Need::of([Completion, ModelCapability::Vision]);
    let error = backends.route("m", &need).await.err();
    let message = "model 'm' does not see pictures".to_owned();
    assert_eq!(error, Some(BackendError::Unsupported { param: "messages", message }));
}

#[tokio::test(start_paused = true)]
async fn failures_open_the_breaker_and_refusals_do_not() {
    let refusals = [
        invalid("no"),
        unsupported("no"),
        dead_end(),
        context_exceeded(1),
        BackendError::Rejected { reason: "no".into() },
        BackendError::ModelNotFound { model: "m".into() },
        BackendError::Overloaded { retry_after: Duration::from_secs(1) },
    ];
    for (error, breaker, asked) in
        refusals.into_iter().map(|error| (error, "closed", 20)).chain([(unavailable(), "open", 3)])
    {
        let player = Player::always(Play::Refuse(error.clone()));
        let backends = backends_of(std::slice::from_ref(&player));
        for _ in 0..20 {
            assert!(chat(&backends).await.is_err());
        }
        assert_eq!((state(&backends, "a").breaker, player.asked().len()), (breaker, asked), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_says_so_and_lets_one_request_through_when_its_time_has_come() {
    let works = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let player = Arc::new(Player::new({
        let works = works.clone();
        move || if works.load(Ordering::SeqCst) { Play::Say(1) } else { Play::Refuse(unavailable()) }
    }));
    let backends = backends_of(std::slice::from_ref(&player));
    for _ in 0..3 {
        assert_eq!(chat(&backends).await.err(), Some(unavailable()));
    }
    let error = chat(&backends).await.err().unwrap().to_string();
    assert_eq!(error, "backend 'a' failed several times in a row and is tried again in 1 s: it is down");
    assert_eq!(player.asked().len(), 3);

    advance(Duration::from_millis(1_001)).await;
    assert_eq!(chat(&backends).await.err(), Some(unavailable()));
    assert_eq!(state(&backends, "a").retry_ms, Some(2_000));
    works.store(true, Ordering::SeqCst);
    advance(Duration::from_millis(2_001)).await;
    words(chat(&backends).await.unwrap()).await.unwrap();
    let state = state(&backends, "a");
    assert_eq!((state.breaker, state.error, state.ready), ("closed", None, true));
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_lists_its_models_and_fails_all_requests_rests_longer_and_longer() {
    let failing = Player::always(Play::Refuse(unavailable()));
    let backends = backends_of(&[failing.clone(), Player::always(Play::Say(1))]);
    let requests = async {
        for _ in 0..120 {
            assert_eq!(chat(&backends).await.unwrap().backend, "b");
            sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        () = backends.watch() => unreachable!("a watch does not end"),
        () = requests => {}
    }
    let asked = failing.asked().len();
    assert!((5..=10).contains(&asked), "within a minute it was asked {asked} times");
    assert!(failing.lists.load(Ordering::SeqCst) >= 12, "its list was there all the time");
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_client_goes_away_does_not_keep_the_breaker_half_open() {
    let plays = Mutex::new(vec![Play::Say(1), Play::Hang]);
    let player = Player::new(move || {
        let mut plays = plays.lock().unwrap();
        if plays.len() > 1 { plays.pop().unwrap() } else { plays[0].clone() }
    });
    let failing = Mutex::new(3);
    let play = player.play;
    let player = Arc::new(Player {
        play: Box::new(move || {
            let mut failing = failing.lock().unwrap();
            if *failing == 0 {
                return play();
            }
            *failing -= 1;
            Play::Refuse(unavailable())
        }),
        ..Player::new(|| Play::Hang)
    });
    let backends = backends_of(&[player]);
    for _ in 0..3 {
        assert!(chat(&backends).await.is_err());
    }
    advance(Duration::from_millis(1_001)).await;
    let gone = timeout(Duration::from_millis(100), chat(&backends));
    assert!(gone.await.is_err());
    words(chat(&backends).await.unwrap()).await.unwrap();
    assert_eq!(state(&backends, "a").breaker, "closed");
}

#[tokio::test(start_paused = true)]
async fn waits_that_were_given_up_are_timeouts() {
    for (give_up, breaker) in [(true, "open"), (false, "closed")] {
        let backends = backends_of(&[Player::always(Play::Hang)]);
        for _ in 0..3 {
            let route = backends.route("m", &text()).await.unwrap();
            let waiting = route.chat(ask("m"));
            let waited = async {
                tokio::pin!(waiting);
                assert!(timeout(Duration::from_secs(1), &mut waiting).await.is_err());
                if give_up {
                    let limit = Duration::from_secs(1);
                    assert_eq!(route.give_up(limit), BackendError::TimedOut { after: limit });
                }
            };
            waited.await;
        }
        assert_eq!(state(&backends, "a").breaker, breaker);
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_others_at_a_backend_is_no_timeout() {
    let backends = backends_of(&[Player::always(Play::Wait { words: 0, times: u32::MAX })]);
    for _ in 0..3 {
        let route = backends.route("m", &text()).await.unwrap();
        let waiting = route.chat(ask("m"));
        tokio::pin!(waiting);
        let limit = Duration::from_secs(5);
        assert!(timeout(limit, &mut waiting).await.is_err());
        assert!(matches!(route.give_up(limit), BackendError::Overloaded { .. }));
    }
    assert_eq!(state(&backends, "a").breaker, "closed");
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_others_of_which_nothing_more_is_heard_is_a_timeout() {
    for said in [0, 1] {
        let backends = backends_of(&[Player::always(Play::Wait { words: said, times: 2 })]);
        for _ in 0..3 {
            let route = backends.route("m", &text()).await.unwrap();
            let answer = async { words(route.chat(ask("m")).await?).await };
            tokio::pin!(answer);
            assert!(timeout(Duration::from_secs(3), &mut answer).await.is_err());
            assert!(route.waits());
            let limit = Duration::from_secs(10);
            assert!(timeout(limit, &mut answer).await.is_err());
            assert!(!route.waits());
            assert_eq!(route.give_up(limit), BackendError::TimedOut { after: limit });
        }
        assert_eq!(state(&backends, "a").breaker, "open", "after {said} words");
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_asks_for_less_is_asked_last_for_as_long_as_it_says() {
    let retry_after = Duration::from_secs(20);
    let first = Player::always(Play::Refuse(BackendError::Overloaded { retry_after }));
    let backends = backends_of(&[first.clone(), Player::always(Play::Say(1))]);
    for _ in 0..5 {
        assert_eq!(chat(&backends).await.unwrap().backend, "b");
    }
    assert_eq!(first.asked().len(), 1);
    advance(retry_after).await;
    chat(&backends).await.unwrap();
    assert_eq!(first.asked().len(), 2);
}

#[tokio::test]
async fn a_cut_prompt_is_told_before_the_first_token_and_binds_nobody() {
    let truncated = ChatEvent::Truncated { messages: 2, prompt_tokens: 100 };
    struct Cutting(ChatEvent, bool);
    #[async_trait]
    impl Backend for Cutting {
        async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
            Ok(vec![text_model("m")])
        }
        async fn chat(&self, _: ChatRequest) -> Result<ChatStream, BackendError> {
            let end = if self.1 { Ok(done(0)) } else { Err(unavailable()) };
            Ok(futures::stream::iter([Ok(self.0.clone()), end]).boxed())
        }
        async fn embed(&self, _: EmbedRequest) -> Result<EmbedResponse, BackendError> {
            Err(unavailable())
        }
        async fn health(&self) -> Health {
            Health::Ready
        }
    }
    let pair = [false, true].map(|works| Arc::new(Cutting(truncated.clone(), works)));
    let [a, b] = pair;
    let routed = chat(&Backends::new(vec![named("a", a), named("b", b)])).await.unwrap();
    assert_eq!(routed.backend, "b");
    let events: Vec<_> = routed.value.collect().await;
    assert_eq!(events, [Ok(truncated), Ok(done(0))]);
}

#[tokio::test]
async fn vectors_come_from_the_next_backend_too_and_are_cut_to_length() {
    let backends = backends_of(&[Player::always(Play::Refuse(unavailable())), Player::always(Play::Say(1))]);
    let route = backends.route("m", &Need::default()).await.unwrap();
    let inputs = vec![bombus_core::chat::EmbedInput::Text("x".into())];
    let request = EmbedRequest { dimensions: Some(2), ..EmbedRequest::new("m", inputs) };
    let routed = route.embed(request).await.unwrap();
    assert_eq!((routed.backend.as_str(), routed.value.vectors), ("b", vec![vec![0.6, 0.8]]));
    assert_eq!(state(&backends, "b").running, 0);
}

#[tokio::test(start_paused = true)]
async fn a_model_that_one_backend_cannot_load_is_loaded_by_the_next_and_the_breaker_learns_of_it() {
    let (first, second) = (Player::always(Play::Refuse(unavailable())), Player::always(Play::Say(1)));
    let backends = backends_of(&[first.clone(), second.clone()]);
    let load = async || backends.route("m", &text()).await?.load(LoadRequest::new("m")).await;
    for _ in 0..5 {
        assert_eq!(load().await.unwrap().backend, "b");
    }
    assert_eq!(state(&backends, "a").breaker, "open");
    assert!(first.asked().len() < 5, "a backend that failed several times in a row is left alone");
    assert_eq!((state(&backends, "a").running, state(&backends, "b").running), (0, 0));
    assert_eq!(second.asked().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn backends_that_load_by_themselves_are_not_taken_for_working_ones() {
    let loads = Arc::new(AtomicU32::new(0));
    let counted = loads.clone();
    let player = Arc::new(Player::new(move || match counted.fetch_add(1, Ordering::SeqCst) % 2 {
        0 => Play::Refuse(unavailable()),
        _ => Play::Say(1),
    }));
    let backends = backends_of(&[player]);
    for _ in 0..2 {
        assert_eq!(chat(&backends).await.err(), Some(unavailable()));
        let route = backends.route("m", &text()).await.unwrap();
        route.load(LoadRequest::new("m")).await.unwrap();
    }
    assert_eq!(chat(&backends).await.err(), Some(unavailable()));
    assert_eq!(state(&backends, "a").breaker, "open");
}
