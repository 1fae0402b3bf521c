//! Other nodes beside this node's own backends.

use bombus_core::chat::Answerer;
use bombus_core::identity::{NodeId, NodeKey};
use bombus_core::placement::Scope;
use tokio::sync::Semaphore;
use tokio::time::{Instant, advance};

use super::scribe::{End, Scribe, read};
use super::*;

/// What is known of a peer in a test.
struct Facts {
    node: NodeId,
    name: &'static str,
    now: Mutex<PeerNow>,
}

impl PeerFacts for Facts {
    fn node(&self) -> &NodeId {
        &self.node
    }

    fn node_name(&self) -> String {
        self.name.to_owned()
    }

    fn now(&self) -> PeerNow {
        *self.now.lock().unwrap()
    }
}

impl Facts {
    fn new(number: u8, name: &'static str) -> Arc<Self> {
        let key = NodeKey::from_secret(&[number; 32]);
        let now = PeerNow { reachable: true, ..PeerNow::default() };
        Arc::new(Self { node: key.node_id(), name, now: Mutex::new(now) })
    }

    fn change(&self, change: impl FnOnce(&mut PeerNow)) {
        change(&mut self.now.lock().unwrap());
    }
}

fn with_peers(own: Vec<NamedBackend>, peers: &[(&Arc<Facts>, Arc<dyn Backend>)]) -> Backends {
    let backends = Backends::new(own);
    set(&backends, peers);
    backends
}

fn set(backends: &Backends, peers: &[(&Arc<Facts>, Arc<dyn Backend>)]) {
    let named = peers.iter().map(|(facts, backend)| NamedBackend::of_peer((*facts).clone(), backend.clone()));
    backends.set_peers(named.collect());
}

fn within(scope: Scope) -> Need {
    text().within(scope)
}

/// Asks within a scope and returns the node that answered.
async fn node_of(backends: &Backends, scope: Scope) -> Result<Option<NodeId>, BackendError> {
    let routed = backends.route("m", &within(scope)).await?.chat(ask("m")).await?;
    let node = routed.node.clone();
    words(routed).await.map(|_| node)
}

#[tokio::test]
async fn what_this_node_lacks_a_peer_answers_and_the_own_node_wins_ties() {
    let facts = Facts::new(1, "peer");
    let backends = with_peers(Vec::new(), &[(&facts, Player::always(Play::Say(2)))]);
    assert_eq!(node_of(&backends, Scope::Anywhere).await, Ok(Some(facts.node.clone())));
    let backends =
        with_peers(vec![named("own", Player::always(Play::Say(2)))], &[(&facts, Player::always(Play::Say(2)))]);
    assert_eq!(node_of(&backends, Scope::Anywhere).await, Ok(None), "also where nobody has asked what it has");
}

#[tokio::test(start_paused = true)]
async fn an_own_backend_that_says_nothing_after_the_start_keeps_nobody_from_a_peer() {
    let facts = Facts::new(1, "peer");
    let silent = Arc::new(Player { gate: Some(Notify::new()), ..Player::new(|| Play::Say(2)) });
    let own = vec![NamedBackend::new("own", "openai", silent)];
    let backends = with_peers(own, &[(&facts, Player::always(Play::Say(2)))]);
    let begun = Instant::now();
    assert_eq!(node_of(&backends, Scope::Anywhere).await, Ok(Some(facts.node.clone())));
    assert!(begun.elapsed() <= Duration::from_millis(1_100), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_there_and_writes_nothing_more_is_left_after_the_time_that_is_set() {
    let (one, other) = (Facts::new(1, "one"), Facts::new(2, "other"));
    // What has the lower load is asked first.
    other.change(|now| now.running = 1);
    let stuck = Arc::new(Scribe { gap: Duration::from_millis(10), ..Scribe::new("one two three", [End::Stall(8)]) });
    let config = RouteConfig { stall_ms: 400, stall_factor: 1.0, ..RouteConfig::default() };
    let backends = Backends::configured(Vec::new(), config);
    set(&backends, &[(&one, stuck.clone()), (&other, Arc::new(Scribe::new("one two three", [])))]);
    let routed = backends.route("m", &text()).await.unwrap().chat(ask("m")).await.unwrap();
    assert_eq!(routed.node.as_ref(), Some(&one.node));
    let begun = Instant::now();
    let seen = read(routed.value).await;
    assert_eq!((seen.text.as_str(), seen.error.as_ref(), seen.continued.len()), ("one two three", None, 1));
    let took = begun.elapsed();
    assert!((400..=600).contains(&took.as_millis()), "{took:?}");
    assert_eq!(stuck.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_not_reached_just_now_goes_on_when_it_is_again() {
    let broken = || Scribe::new("one two three", [End::BreakOff(5)]);
    let cases = [
        // Its connection was lost a moment ago, too; or is there, and dead; or there is nobody but who broke off.
        (true, vec![], 2),
        (false, vec![End::Refuse, End::Refuse], 2),
        (false, vec![], 1),
    ];
    for (is_away, ends, peers) in cases {
        let (one, other) = (Facts::new(1, "one"), Facts::new(2, "other"));
        other.change(|now| now.running = 1);
        let (first, second) = (Arc::new(broken()), Arc::new(Scribe::new("one two three", ends)));
        let all: [(&Arc<Facts>, Arc<dyn Backend>); 2] = [(&one, first), (&other, second)];
        let backends = with_peers(Vec::new(), &all[..peers]);
        let mut stream = backends.route("m", &text()).await.unwrap().chat(ask("m")).await.unwrap().value;
        let first = stream.next().await.unwrap();
        one.change(|now| now.suspect = true);
        other.change(|now| now.reachable = !is_away);
        let back = async {
            sleep(Duration::from_secs(2)).await;
            other.change(|now| now.reachable = true);
            one.change(|now| now.suspect = peers > 1);
        };
        let (seen, ()) = tokio::join!(read(futures::stream::iter([first]).chain(stream).boxed()), back);
        let told = (seen.text.as_str(), seen.error.as_ref(), seen.continued.len());
        assert_eq!(told, ("one two three", None, 1), "away: {is_away}, peers: {peers}");
    }
}

#[tokio::test(start_paused = true)]
async fn peers_that_are_gone_or_do_not_come_back_are_not_waited_for() {
    for (goes, limit) in [(true, 2_000), (false, 11_500)] {
        let one = Facts::new(1, "one");
        let first = Arc::new(Scribe::new("one two three", [End::BreakOff(5)]));
        let backends = with_peers(Vec::new(), &[(&one, first)]);
        let mut stream = backends.route("m", &text()).await.unwrap().chat(ask("m")).await.unwrap().value;
        let first = stream.next().await.unwrap();
        one.change(|now| now.reachable = false);
        let begun = Instant::now();
        let gone = async {
            sleep(Duration::from_secs(1)).await;
            if goes {
                set(&backends, &[]);
            }
        };
        let (seen, ()) = tokio::join!(read(futures::stream::iter([first]).chain(stream).boxed()), gone);
        assert_eq!(seen.text, "one t");
        let error = seen.error.expect("nobody goes on");
        assert!(error.to_string().contains("broken"), "why it broke off is told: {error}");
        assert!(begun.elapsed() <= Duration::from_millis(limit), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_model_that_has_just_answered_is_known_to_be_in_memory() {
    let cold = Player::with_models(vec![text_model("m")]);
    let options =
        BackendOptions { aliases: [("alias".to_owned(), "m".to_owned())].into(), ..BackendOptions::default() };
    let backends = Backends::new(vec![NamedBackend { options, ..NamedBackend::new("own", "embedded", cold) }]);
    let warm = || backends.known().into_iter().map(|listed| listed.info.warm).collect::<Vec<_>>();
    backends.models().await;
    assert_eq!(warm(), [false, false]);
    let routed = backends.route("alias", &text()).await.unwrap().chat(ask("alias")).await.unwrap();
    assert_eq!(warm(), [true, true], "from its first token on, by both names");
    words(routed).await.unwrap();
}

#[tokio::test]
async fn a_scope_keeps_requests_where_they_are_to_be() {
    let (one, other) = (Facts::new(1, "one"), Facts::new(2, "other"));
    let player = || Player::always(Play::Say(1));
    let backends = with_peers(vec![named("own", player())], &[(&one, player()), (&other, player())]);
    for _ in 0..3 {
        assert_eq!(node_of(&backends, Scope::Local).await, Ok(None));
        assert!(node_of(&backends, Scope::Remote).await.unwrap().is_some());
        assert_eq!(node_of(&backends, Scope::Node(other.node.clone())).await, Ok(Some(other.node.clone())));
    }
    let stranger = Facts::new(3, "stranger");
    let error = node_of(&backends, Scope::Node(stranger.node.clone())).await.unwrap_err();
    assert!(error.to_string().contains("is not connected"), "{error}");

    let elsewhere = with_peers(Vec::new(), &[(&one, player())]);
    assert!(matches!(node_of(&elsewhere, Scope::Local).await, Err(BackendError::ModelNotFound { .. })));
}

#[tokio::test]
async fn a_backend_that_a_request_must_not_go_to_is_not_to_blame() {
    let away = Player::always(Play::Say(1));
    *away.models.lock().unwrap() = Err(unavailable());
    let one = Facts::new(1, "one");
    let backends = with_peers(vec![named("own", away)], &[(&one, Player::with_models(vec![text_model("other")]))]);
    for scope in [Scope::Remote, Scope::Node(one.node.clone())] {
        assert_eq!(node_of(&backends, scope).await, Err(BackendError::ModelNotFound { model: "m".into() }));
    }
    for scope in [Scope::Anywhere, Scope::Local] {
        assert_eq!(node_of(&backends, scope).await, Err(unavailable()));
    }
}

#[tokio::test]
async fn a_node_that_is_to_keep_its_requests_sends_none_away() {
    let facts = Facts::new(1, "one");
    let backends = Backends::configured(Vec::new(), RouteConfig { remote: false, ..RouteConfig::default() });
    set(&backends, &[(&facts, Player::always(Play::Say(1)))]);
    assert!(backends.models().await.is_empty());
    let error = node_of(&backends, Scope::Remote).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "model 'm' is at 'one' alone: '[route] remote = false' keeps requests from other nodes"
    );
}

#[tokio::test]
async fn peers_that_take_no_requests_get_none_and_what_they_have_is_not_listed() {
    type Change = fn(&mut PeerNow);
    let changes: [(Change, &str); 3] = [
        (|now| now.reachable = false, "there is no connection to this node"),
        (|now| now.draining = true, "this node takes no more requests, since it is about to stop"),
        (|now| now.paused = true, "this node's owner has paused it for others"),
    ];
    for (change, reason) in changes {
        let (facts, player) = (Facts::new(1, "one"), Player::always(Play::Say(1)));
        let backends = with_peers(Vec::new(), &[(&facts, player.clone())]);
        let listed = backends.models().await;
        assert_eq!((listed.len(), listed[0].node_name.as_deref()), (1, Some("one")));
        facts.change(change);
        let error = node_of(&backends, Scope::Anywhere).await.unwrap_err();
        assert_eq!(error.to_string(), format!("model 'm' is at 'one' alone: {reason}"));
        assert!(player.asked().is_empty() && backends.models().await.is_empty());
        assert!(!backends.states()[0].ready);
    }
}

#[tokio::test]
async fn the_list_is_the_union_with_this_node_first() {
    let facts = Facts::new(1, "one");
    let own = Player::with_models(vec![text_model("x"), text_model("y")]);
    let peer = Player::with_models(vec![text_model("y"), text_model("z")]);
    let backends = with_peers(vec![named("own", own)], &[(&facts, peer.clone())]);
    let listed = async || {
        let listed = backends.models().await;
        listed.iter().map(|one| (one.info.name.to_string(), one.node.is_some(), one.first)).collect::<Vec<_>>()
    };
    let of = |name: &str, there, first| (format!("{name}:latest"), there, first);
    let union = [of("x", false, true), of("y", false, true), of("y", true, false), of("z", true, true)];
    assert_eq!(listed().await, union);
    *peer.models.lock().unwrap() = Ok(Vec::new());
    backends.peers_changed();
    assert_eq!(listed().await, union[..2]);
}

#[tokio::test]
async fn a_peer_that_declines_is_passed_over_and_rests() {
    let (one, other) = (Facts::new(1, "one"), Facts::new(2, "the other; 2"));
    other.change(|now| now.latency_ms = Some(500.0));
    let declining = Player::always(Play::Refuse(BackendError::Overloaded { retry_after: Duration::from_secs(5) }));
    let backends = with_peers(Vec::new(), &[(&one, declining.clone()), (&other, Player::always(Play::Say(1)))]);
    let routed = chat(&backends).await.unwrap();
    assert_eq!((routed.node.as_ref(), routed.reason.as_str()), (Some(&other.node), "after one"));
    words(routed).await.unwrap();
    for _ in 0..5 {
        words(chat(&backends).await.unwrap()).await.unwrap();
    }
    assert_eq!(declining.asked().len(), 1);

    // A name that people chose has nothing in it that could break a header.
    let backends = with_peers(
        Vec::new(),
        &[(&other, Player::always(Play::Refuse(unavailable()))), (&one, Player::always(Play::Say(1)))],
    );
    one.change(|now| now.latency_ms = Some(9_000.0));
    assert_eq!(chat(&backends).await.unwrap().reason, "after the-other--2");
}

#[tokio::test]
async fn who_answers_at_a_peer_is_told_and_not_as_a_piece_of_the_answer() {
    let facts = Facts::new(1, "one");
    let by = Answerer { node: None, backend: "embedded".into(), model: "big:70b".into() };
    let peer = Arc::new(Scribe { preface: vec![ChatEvent::AnsweredBy(by)], ..Scribe::new("one", []) });
    let backends = with_peers(Vec::new(), &[(&facts, peer)]);
    let routed = chat(&backends).await.unwrap();
    let told = (routed.node.as_ref(), routed.backend.as_str(), routed.model.as_str());
    assert_eq!(told, (Some(&facts.node), "embedded", "big:70b"));
    assert_eq!(read(routed.value).await.text, "one");
}

#[tokio::test]
async fn a_peer_that_dies_is_followed_by_another_and_never_asked_again() {
    let (one, other) = (Facts::new(1, "one"), Facts::new(2, "other"));
    other.change(|now| now.latency_ms = Some(500.0));
    let dying = Arc::new(Scribe::new("one two three", [End::BreakOff(5)]));
    let next = Arc::new(Scribe::new("one two three", []));
    let backends = with_peers(Vec::new(), &[(&one, dying.clone()), (&other, next)]);
    let answer = read(chat(&backends).await.unwrap().value).await;
    assert_eq!((answer.text.as_str(), answer.continued[0].node.as_ref()), ("one two three", Some(&other.node)));

    let alone = Arc::new(Scribe::new("one two three", [End::BreakOff(5)]));
    let backends = with_peers(Vec::new(), &[(&one, alone.clone())]);
    let answer = read(chat(&backends).await.unwrap().value).await;
    assert_eq!((answer.text.as_str(), answer.error.is_some(), alone.asked().len()), ("one t", true, 1));
}

#[tokio::test]
async fn a_peer_that_comes_back_is_known_and_one_that_is_gone_is_forgotten() {
    let (one, other) = (Facts::new(1, "one"), Facts::new(2, "other"));
    let failing = || Player::always(Play::Refuse(unavailable()));
    let backends = with_peers(Vec::new(), &[(&one, failing())]);
    for _ in 0..3 {
        assert!(chat(&backends).await.is_err());
    }
    // Its backend is another object now, as after a new connection.
    set(&backends, &[(&other, failing()), (&one, failing())]);
    let breaker = |node: &NodeId| state(&backends, node.as_str()).breaker;
    assert_eq!((breaker(&one.node), breaker(&other.node)), ("open", "closed"));
    set(&backends, &[(&other, failing())]);
    assert_eq!(backends.states().len(), 1);
    set(&backends, &[(&one, failing()), (&one, failing())]);
    assert_eq!(backends.states().len(), 1, "nobody is there twice");
    assert_eq!(breaker(&one.node), "closed");
}

#[tokio::test]
async fn what_a_peer_told_of_this_nodes_requests_counts_neither_twice_nor_after_their_end() {
    let facts = Facts::new(1, "one");
    facts.change(|now| now.slots = Some(2));
    let backends = with_peers(Vec::new(), &[(&facts, Player::always(Play::Stall))]);
    let load = || {
        let ranking = backends.rank("m", &text()).now_or_never().unwrap().unwrap();
        (ranking[0].candidate.running, ranking[0].candidate.waiting)
    };
    assert_eq!(load(), (0, 0));
    let first = chat(&backends).await.unwrap();
    assert_eq!(load(), (1, 0), "it counts before the peer has told of it");
    facts.change(|now| (now.running, now.ours) = (1, 1));
    assert_eq!(load(), (1, 0), "and only once when it has");
    drop(first);
    assert_eq!(load(), (0, 0), "and no more when it has ended, though the peer has not told that");
    facts.change(|now| (now.running, now.waiting, now.ours) = (2, 3, 1));
    assert_eq!(load(), (2, 2), "those of others count as told");
}

/// A peer that runs so many requests at a time and would decline more.
struct Worker {
    slots: Semaphore,
    running: AtomicU32,
    most: AtomicU32,
    served: AtomicU32,
}

impl Worker {
    fn new(slots: usize) -> Arc<Self> {
        let (running, most, served) = Default::default();
        Arc::new(Self { slots: Semaphore::new(slots), running, most, served })
    }
}

#[async_trait]
impl Backend for Arc<Worker> {
    async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
        Ok(vec![text_model("m")])
    }

    async fn chat(&self, _: ChatRequest) -> Result<ChatStream, BackendError> {
        let worker = self.clone();
        if worker.slots.available_permits() == 0 {
            return Err(BackendError::Overloaded { retry_after: Duration::from_secs(1) });
        }
        Ok(async_stream::stream! {
            let _slot = worker.slots.acquire().await.unwrap();
            worker.most.fetch_max(worker.running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            yield Ok(word());
            sleep(Duration::from_millis(500)).await;
            worker.running.fetch_sub(1, Ordering::SeqCst);
            worker.served.fetch_add(1, Ordering::SeqCst);
            yield Ok(done(1));
        }
        .boxed())
    }

    async fn embed(&self, _: EmbedRequest) -> Result<EmbedResponse, BackendError> {
        Err(unavailable())
    }

    async fn health(&self) -> Health {
        Health::Ready
    }
}

#[tokio::test(start_paused = true)]
async fn two_hundred_requests_at_once_spread_by_capacity_and_none_starves() {
    let slots = [8_u32, 4, 4, 2];
    let facts: Vec<_> = (1..=4).map(|number| Facts::new(number, "peer")).collect();
    let workers: Vec<_> = slots.iter().map(|slots| Worker::new(*slots as usize)).collect();
    for (facts, slots) in facts.iter().zip(slots) {
        facts.change(|now| now.slots = Some(slots));
    }
    let peers: Vec<_> = facts
        .iter()
        .zip(&workers)
        .map(|(facts, worker)| (facts, Arc::new(worker.clone()) as Arc<dyn Backend>))
        .collect();
    let backends = with_peers(Vec::new(), &peers);
    let begun = Instant::now();
    let answers = join_all((0..200).map(|_| async { words(chat(&backends).await?).await })).await;
    assert!(answers.iter().all(|answer| *answer == Ok(1)), "{:?}", answers.iter().find(|answer| answer.is_err()));
    for (worker, slots) in workers.iter().zip(slots) {
        let (served, most) = (worker.served.load(Ordering::SeqCst), worker.most.load(Ordering::SeqCst));
        assert_eq!(most, slots, "no slot is idle and none is taken twice");
        let share = f64::from(served) / 200.0 * 18.0 / f64::from(slots);
        assert!((0.8..1.25).contains(&share), "{served} of 200 for {slots} of 18 slots");
    }
    // 200 requests of half a second in 18 slots need 12 rounds.
    assert_eq!(begun.elapsed().as_millis().div_ceil(500), 12);
    assert!(backends.states().iter().all(|state| state.running == 0 && state.waiting == 0));
}

#[tokio::test]
async fn many_at_once_spread_over_peers_without_limits_too() {
    let facts: Vec<_> = (1..=4).map(|number| Facts::new(number, "peer")).collect();
    let players: Vec<_> = facts.iter().map(|_| Player::always(Play::Stall)).collect();
    let peers: Vec<_> =
        facts.iter().zip(&players).map(|(facts, player)| (facts, player.clone() as Arc<dyn Backend>)).collect();
    let backends = with_peers(Vec::new(), &peers);
    // All routes are found before the first request begins.
    let routes = join_all((0..40).map(|_| async { backends.route("m", &text()).await.unwrap() })).await;
    let answers = join_all(routes.iter().map(|route| route.chat(ask("m")))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert!(players.iter().all(|player| player.asked().len() == 10));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_peer_learns_of_its_free_slot_at_once_or_soon() {
    let facts = Facts::new(1, "one");
    facts.change(|now| (now.slots, now.running) = (Some(1), 1));
    let backends = with_peers(Vec::new(), &[(&facts, Player::always(Play::Say(1)))]);
    for (tells, at_most) in [(true, 0), (false, 250)] {
        facts.change(|now| now.running = 1);
        let waiting = async {
            let routed = chat(&backends).await.unwrap();
            assert_eq!(routed.reason, "slot");
            words(routed).await.unwrap();
            Instant::now()
        };
        let freed = async {
            sleep(Duration::from_millis(1_100)).await;
            facts.change(|now| now.running = 0);
            if tells {
                backends.peer_told(&facts.node);
            }
            Instant::now()
        };
        let (answered, freed) = tokio::join!(waiting, freed);
        assert!((answered - freed).as_millis() <= at_most, "{:?}", answered - freed);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_later_does_not_get_ahead_of_those_that_wait() {
    let facts = Facts::new(1, "one");
    facts.change(|now| now.slots = Some(1));
    let backends = with_peers(Vec::new(), &[(&facts, Player::always(Play::Stall))]);
    let first = chat(&backends).await.unwrap();
    let order: Arc<Mutex<Vec<u32>>> = Arc::default();
    let mut clients = tokio::task::JoinSet::new();
    let mut come = |number: u32, after_ms: u64| {
        let (backends, order) = (backends.clone(), order.clone());
        clients.spawn(async move {
            sleep(Duration::from_millis(after_ms)).await;
            let _answer = chat(&backends).await.unwrap();
            order.lock().unwrap().push(number);
            sleep(Duration::from_millis(100)).await;
        });
    };
    come(1, 10);
    come(2, 20);
    // This one comes in the very moment in which the slot is free.
    come(3, 40);
    sleep(Duration::from_millis(40)).await;
    drop(first);
    clients.join_all().await;
    assert_eq!(*order.lock().unwrap(), [1, 2, 3]);
    advance(Duration::from_secs(1)).await;
    assert_eq!(backends.states()[0].waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn speeds_are_those_of_one_model_and_are_forgotten_in_time() {
    let facts = Facts::new(1, "one");
    let player = Player::with_models(vec![text_model("m"), text_model("other")]);
    let backends = with_peers(Vec::new(), &[(&facts, player)]);
    words(chat(&backends).await.unwrap()).await.unwrap();
    let speed = async |model: &str| backends.rank(model, &text()).await.unwrap()[0].candidate.tokens_per_second;
    assert_eq!((speed("m").await, speed("other").await), (Some(100.0), None));
    advance(Duration::from_secs(599)).await;
    assert_eq!(speed("m").await, Some(100.0));
    advance(Duration::from_secs(2)).await;
    assert_eq!(speed("m").await, None, "what was slow gets another chance");
}
