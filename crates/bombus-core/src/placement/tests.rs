use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::identity::NodeKey;
use crate::model::ModelName;

fn model(capabilities: &[ModelCapability], warm: bool) -> Arc<ModelInfo> {
    let named = ModelInfo::named(ModelName::parse("m").unwrap());
    Arc::new(ModelInfo { capabilities: capabilities.to_vec(), warm, ..named })
}

fn candidate(backend: &str, preference: u32) -> Candidate {
    let offer = Offer::Has { info: model(&[ModelCapability::Completion], true), alias_of: None };
    Candidate { preference, ..Candidate::new(backend, offer) }
}

fn names(ranking: &[Ranked]) -> Vec<&str> {
    ranking.iter().map(|ranked| &*ranked.candidate.backend).collect()
}

fn text() -> Need {
    Need::of([ModelCapability::Completion])
}

#[test]
fn equals_are_ordered_by_preference() {
    let ranking = rank(&text(), vec![candidate("b", 1), candidate("a", 2), candidate("c", 0)]);
    assert_eq!(names(&ranking), ["c", "b", "a"]);
    assert_eq!(decisive(&ranking), "preference");
}

#[test]
fn a_warm_model_is_worth_more_than_an_idle_or_preferred_place() {
    let cold = Offer::Has { info: model(&[ModelCapability::Completion], false), alias_of: None };
    let preferred = Candidate { offer: cold, ..candidate("preferred", 0) };
    let busy = Candidate { running: 3, slots: Some(4), ..candidate("warm", 9) };
    let ranking = rank(&text(), vec![preferred, busy]);
    assert_eq!(names(&ranking), ["warm", "preferred"]);
    assert_eq!(decisive(&ranking), "warm");
}

#[test]
fn load_spreads_over_places_that_are_alike() {
    let first = Candidate { running: 1, ..candidate("first", 0) };
    let ranking = rank(&text(), vec![first, candidate("second", 1)]);
    assert_eq!(names(&ranking), ["second", "first"]);
    assert_eq!(decisive(&ranking), "load");
    assert_eq!(ranking[1].reasons(), ["in memory (+1000.0)", "1 running (+80.0)", "place 1 of preference (+0.0)"]);
}

#[test]
fn speed_decides_between_equals_alone() {
    let fast = Candidate { tokens_per_second: Some(90.0), ..candidate("fast", 1) };
    let slow = Candidate { tokens_per_second: Some(9.0), ..candidate("slow", 1) };
    let ranking = rank(&text(), vec![slow.clone(), fast.clone()]);
    assert_eq!((names(&ranking), decisive(&ranking)), (vec!["fast", "slow"], "speed"));
    let ranking = rank(&text(), vec![fast, Candidate { preference: 0, ..slow }]);
    assert_eq!(names(&ranking), ["slow", "fast"]);
}

#[test]
fn every_rejection_says_why() {
    let reason = |candidate: Candidate, need: &Need| rank(need, vec![candidate])[0].reasons().remove(0);
    let with = |offer| Candidate { offer, ..candidate("x", 0) };
    assert_eq!(reason(with(Offer::Missing), &text()), "it does not have this model");
    assert_eq!(reason(with(Offer::Hidden), &text()), "its setting 'models' leaves this model out");
    assert_eq!(reason(with(Offer::Unknown("no answer".into())), &text()), "no answer");
    let tools = Need::of([ModelCapability::Completion, ModelCapability::Tools]);
    assert_eq!(reason(candidate("x", 0), &tools), "the model does not support tools");
    let open = Candidate { breaker: BreakerState::Open { until_ms: 2_500 }, now_ms: 1_000, ..candidate("x", 0) };
    assert_eq!(reason(open, &text()), "it failed several times in a row; it is tried again in 1.5 s");
    let full = Candidate { running: 2, slots: Some(2), ..candidate("x", 0) };
    assert_eq!(reason(full, &text()), "it is busy: 2 of 2 requests run");
}

#[test]
fn a_breaker_that_may_be_probed_rejects_nothing() {
    let half_open =
        Candidate { breaker: BreakerState::HalfOpen { until_ms: 1_000 }, now_ms: 1_000, ..candidate("x", 0) };
    assert!(rank(&text(), vec![half_open])[0].score().is_some());
}

#[test]
fn a_context_that_is_too_small_is_taken_where_none_is_larger() {
    let with_context = |name, preference, tokens| {
        let info = ModelInfo { context_tokens: Some(tokens), ..(*model(&[ModelCapability::Completion], true)).clone() };
        Candidate { offer: Offer::Has { info: Arc::new(info), alias_of: None }, ..candidate(name, preference) }
    };
    let need = Need { context_tokens: Some(8_192), ..text() };
    let small = with_context("small", 0, 2_048);
    let ranking = rank(&need, vec![small.clone(), with_context("large", 1, 8_192)]);
    assert_eq!((names(&ranking), decisive(&ranking)), (vec!["large", "small"], "context"));
    assert!(rank(&need, vec![small])[0].score().is_some());
}

#[test]
fn who_asked_for_less_comes_last() {
    let held_back = Candidate { held_back: true, ..candidate("a", 0) };
    let cold = Offer::Has { info: model(&[ModelCapability::Completion], false), alias_of: None };
    let other = Candidate { offer: cold, running: 50, ..candidate("b", 7) };
    let ranking = rank(&text(), vec![held_back, other]);
    assert_eq!((names(&ranking), decisive(&ranking)), (vec!["b", "a"], "available"));
}

fn node(number: u8) -> NodeId {
    NodeKey::from_secret(&[number; 32]).node_id()
}

fn at(number: u8, candidate: Candidate) -> Candidate {
    Candidate { peer: Some(Peer::new(node(number), "peer")), ..candidate }
}

fn changed(candidate: Candidate, change: impl FnOnce(&mut Peer)) -> Candidate {
    let mut peer = candidate.peer.clone().unwrap();
    change(&mut peer);
    Candidate { peer: Some(peer), ..candidate }
}

#[test]
fn a_peer_is_rejected_for_what_it_says_of_itself_and_for_who_asked() {
    let reason = |candidate: Candidate, need: &Need| rank(need, vec![candidate])[0].reasons().remove(0);
    let peer = || at(1, candidate("x", 0));
    let say = |change: fn(&mut Peer)| reason(changed(peer(), change), &text());
    assert_eq!(say(|peer| peer.reachable = false), "there is no connection to this node");
    assert_eq!(say(|peer| peer.draining = true), "this node takes no more requests, since it is about to stop");
    assert_eq!(say(|peer| peer.paused = true), "this node's owner has paused it for others");
    assert_eq!(say(|peer| peer.barred = true), "'[route] remote = false' keeps requests from other nodes");
    for (scope, of_own, of_peer) in [
        (Scope::Anywhere, true, true),
        (Scope::Local, true, false),
        (Scope::Remote, false, true),
        (Scope::Node(node(1)), false, true),
        (Scope::Node(node(2)), false, false),
    ] {
        let need = text().within(scope);
        let accepts = |candidate: Candidate| rank(&need, vec![candidate])[0].score().is_some();
        assert_eq!((accepts(candidate("x", 0)), accepts(peer())), (of_own, of_peer), "{need:?}");
    }
    let need = Need { continuation: true, ..text() };
    assert_eq!(reason(peer(), &need), "its backend cannot go on with an answer that another one began");
}

#[test]
fn the_own_node_is_left_for_a_peer_that_is_better_by_something() {
    let own = || candidate("own", 0);
    let first = |own: Candidate, peer: Candidate| names(&rank(&text(), vec![peer, own]))[0].to_owned();
    assert_eq!(first(own(), at(1, candidate("peer", 0))), "own");
    let busy = || Candidate { running: 1, ..own() };
    assert_eq!(first(busy(), at(1, candidate("peer", 0))), "peer");
    let with_gpu = |mb| at(1, Candidate { gpu_memory_mb: mb, ..candidate("peer", 0) });
    assert_eq!(first(own(), with_gpu(24_576)), "peer");
    let measured = |speed, candidate| Candidate { tokens_per_second: Some(speed), ..candidate };
    assert_eq!(first(measured(5.0, own()), measured(90.0, with_gpu(0))), "peer");
    assert_eq!(first(measured(90.0, own()), measured(95.0, with_gpu(0))), "own");
    assert_eq!(
        first(measured(90.0, own()), with_gpu(24_576)),
        "own",
        "what is measured here beats what is thought of others"
    );
    let far = |ms, peer| changed(peer, |peer| peer.latency_ms = Some(ms));
    assert_eq!(first(measured(50.0, own()), far(1.0, measured(75.0, with_gpu(0)))), "peer");
    assert_eq!(first(measured(50.0, own()), far(300.0, measured(75.0, with_gpu(0)))), "own");
}

#[test]
fn what_is_beyond_this_network_is_asked_after_own_backends_and_peers() {
    let cloud = Candidate { cloud: true, tokens_per_second: Some(500.0), ..candidate("cloud", 0) };
    let cold = Offer::Has { info: model(&[ModelCapability::Completion], false), alias_of: None };
    let here = Candidate { offer: cold.clone(), running: 3, ..candidate("here", 1) };
    let there = changed(at(1, Candidate { offer: cold, ..candidate("there", 0) }), |peer| peer.latency_ms = Some(80.0));
    let ranking = rank(&text(), vec![cloud.clone(), there.clone(), here.clone()]);
    assert_eq!(names(&ranking)[2], "cloud", "it is faster, idle, preferred and need not load anything");
    let ranking = rank(&text(), vec![cloud.clone(), here]);
    assert_eq!((names(&ranking), decisive(&ranking)), (vec!["here", "cloud"], "local"));
    let gone = changed(there, |peer| peer.suspect = true);
    assert_eq!(names(&rank(&text(), vec![gone, cloud]))[0], "cloud");
}

#[test]
fn a_suspect_is_asked_where_nobody_else_is_left() {
    let suspect = changed(at(1, candidate("suspect", 0)), |peer| peer.suspect = true);
    let cold = Offer::Has { info: model(&[ModelCapability::Completion], false), alias_of: None };
    let worst = Candidate { offer: cold, running: 90, held_back: true, ..candidate("worst", 30) };
    let ranking = rank(&text(), vec![suspect.clone(), worst]);
    assert_eq!((names(&ranking), decisive(&ranking)), (vec!["worst", "suspect"], "alive"));
    assert!(rank(&text(), vec![suspect])[0].score().is_some());
}

#[test]
fn the_same_weights_go_on_but_nobody_waits_for_them_to_be_loaded() {
    let with = |name: &str, sha256: &str, warm| {
        let info = ModelInfo {
            sha256: Some(sha256.into()),
            continues: true,
            ..(*model(&[ModelCapability::Completion], warm)).clone()
        };
        let offer = Offer::Has { info: Arc::new(info), alias_of: None };
        Candidate { running: u32::from(name == "same") * 3, ..Candidate::new(name, offer) }
    };
    let need = Need { continuation: true, weights: Some("aa".into()), ..text() };
    let ranking = rank(&need, vec![with("other", "bb", true), with("same", "aa", true)]);
    assert_eq!((names(&ranking), decisive(&ranking)), (vec!["same", "other"], "weights"));
    assert_eq!(names(&rank(&need, vec![with("other", "bb", true), with("same", "aa", false)])), ["other", "same"]);
}

#[test]
fn where_models_are_named_others_do_not_answer_whatever_they_are_like() {
    let with = |backend: &str, name: &str, alias_of: Option<&str>| {
        let name = ModelName::parse(name).unwrap();
        let info = ModelInfo { name, ..(*model(&[ModelCapability::Completion], true)).clone() };
        Candidate::new(backend, Offer::Has { info: Arc::new(info), alias_of: alias_of.map(Into::into) })
    };
    let candidates = vec![with("like", "Q", None), with("alias", "best", Some("q")), with("own", "q:latest", None)];
    let need = text().only(Some(vec![ModelName::parse("q").unwrap()]));
    let ranking = rank(&need, candidates.clone());
    assert_eq!(names(&ranking), ["alias", "own", "like"]);
    assert_eq!(ranking[2].rejection(), Some(&Rejection::NotAllowed));
    assert!(rank(&text().only(None), candidates).iter().all(|ranked| ranked.score().is_some()));
}

#[test]
fn a_peer_says_in_words_what_speaks_for_it() {
    let peer = changed(at(1, candidate("peer", 0)), |peer| peer.latency_ms = Some(25.0));
    let peer = Candidate { running: 2, waiting: 2, slots: Some(4), gpu_memory_mb: 12_288, ..peer };
    let reasons = rank(&text(), vec![peer.clone()])[0].reasons();
    let expected = [
        "in memory (+1000.0)",
        "2 of 4 requests run (+66.7)",
        "2 requests wait (-16.7)",
        "not measured, 12.0 GB of GPU memory (+2.8)",
        "another node (-5.0)",
        "25.0 ms away (-4.0)",
    ];
    assert_eq!(reasons, expected);
    let fast = Candidate { tokens_per_second: Some(40.0), ..peer };
    let reasons = rank(&text(), vec![fast, candidate("own", 0)])[1].reasons();
    assert!(reasons.contains(&"4.0 times as fast as here (+40.0)".to_owned()), "{reasons:?}");
}

fn any_offer() -> impl Strategy<Value = Offer> {
    let capabilities = prop::sample::subsequence(
        vec![ModelCapability::Completion, ModelCapability::Tools, ModelCapability::Vision],
        0..=3,
    );
    let sha256 = prop::sample::select(vec![None, Some("aa".to_owned()), Some("bb".to_owned())]);
    let has = (capabilities, any::<(bool, bool)>(), prop::option::of(1_u32..100_000), sha256).prop_map(
        |(can, (warm, continues), context_tokens, sha256)| {
            let info = ModelInfo { context_tokens, continues, sha256, ..(*model(&can, warm)).clone() };
            Offer::Has { info: Arc::new(info), alias_of: None }
        },
    );
    prop_oneof![6 => has, 1 => Just(Offer::Missing), 1 => Just(Offer::Hidden), 1 => Just(Offer::Unknown("?".into()))]
}

/// Anything that a measurement may come to, and what it may not.
fn any_measured() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![
        2 => Just(None),
        1 => prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 0.0, 1e300]).prop_map(Some),
        1 => (-1.0..1e300).prop_map(Some),
        4 => (0.0..500.0).prop_map(Some),
    ]
}

fn any_peer() -> impl Strategy<Value = Option<Peer>> {
    let often = || prop::bool::weighted(0.1);
    let facts = (1..4_u8, (prop::bool::weighted(0.9), often(), often(), often(), often()), any_measured());
    let peer = facts.prop_map(|(number, (reachable, suspect, draining, paused, barred), latency_ms)| Peer {
        reachable,
        suspect,
        draining,
        paused,
        barred,
        latency_ms,
        ..Peer::new(node(number), "peer")
    });
    prop::option::of(peer)
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    let breaker = prop_oneof![
        4 => Just(BreakerState::Closed),
        1 => (0..2_000_u64).prop_map(|until_ms| BreakerState::Open { until_ms }),
        1 => (0..2_000_u64).prop_map(|until_ms| BreakerState::HalfOpen { until_ms }),
    ];
    let load = (0..50_u32, 0..20_u32, prop::option::of(0..40_u32));
    let sort = (prop::bool::weighted(0.2), prop::bool::weighted(0.1));
    let speed = (any_measured(), any_measured(), prop_oneof![Just(0), 0..200_000_u64, Just(u64::MAX)]);
    (any_offer(), any_peer(), 0..4_u32, load, speed, breaker, sort, 0..3_u64).prop_map(
        |(offer, peer, preference, (running, waiting, slots), speed, breaker, (held_back, cloud), lot)| Candidate {
            peer,
            lot,
            running,
            waiting,
            slots,
            tokens_per_second: speed.0,
            first_token_ms: speed.1,
            gpu_memory_mb: speed.2,
            breaker,
            now_ms: 1_000,
            held_back,
            cloud,
            preference,
            ..Candidate::new("x", offer)
        },
    )
}

fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
    prop::collection::vec(any_candidate(), 0..8).prop_map(|candidates| {
        let named = |(index, one): (usize, Candidate)| Candidate { backend: format!("b{index}").into(), ..one };
        candidates.into_iter().enumerate().map(named).collect()
    })
}

fn any_need() -> impl Strategy<Value = Need> {
    let capabilities = prop::sample::subsequence(vec![ModelCapability::Completion, ModelCapability::Tools], 0..=2);
    let scope = prop_oneof![
        4 => Just(Scope::Anywhere),
        1 => Just(Scope::Local),
        1 => Just(Scope::Remote),
        1 => (1..4_u8).prop_map(|number| Scope::Node(node(number))),
    ];
    let weights = prop::option::of(Just("aa".to_owned()));
    let context_tokens = prop::option::of(1_u32..100_000);
    (capabilities, context_tokens, scope, prop::bool::weighted(0.2), weights).prop_map(
        |(capabilities, context_tokens, scope, continuation, weights)| Need {
            capabilities,
            context_tokens,
            scope,
            continuation,
            weights,
            only: None,
        },
    )
}

fn any_weights() -> impl Strategy<Value = Weights> {
    let weight =
        prop_oneof![4 => 0.0..10_000.0, 1 => prop::sample::select(vec![f64::NAN, f64::INFINITY, -5.0, 0.0, 1e300])];
    prop::collection::vec(weight, 13).prop_map(|weights| Weights {
        warm: weights[0],
        idle: weights[1],
        preference_step: weights[2],
        speed: weights[3],
        first_token: weights[4],
        pace: weights[5],
        away: weights[6],
        latency: weights[7],
        same_weights: weights[8],
        context_short: weights[9],
        held_back: weights[10],
        suspect: weights[11],
        cloud: weights[12],
    })
}

fn can_answer(need: &Need, candidate: &Candidate) -> bool {
    let Offer::Has { info, .. } = &candidate.offer else { return false };
    let closed = match candidate.breaker {
        BreakerState::Closed => true,
        BreakerState::Open { until_ms } | BreakerState::HalfOpen { until_ms } => until_ms <= candidate.now_ms,
    };
    let in_scope = match &need.scope {
        Scope::Anywhere => true,
        Scope::Local => candidate.peer.is_none(),
        Scope::Remote => candidate.peer.is_some(),
        Scope::Node(node) => candidate.node() == Some(node),
    };
    let open =
        candidate.peer.as_ref().is_none_or(|peer| peer.reachable && !peer.draining && !peer.paused && !peer.barred);
    need.capabilities.iter().all(|capability| info.capabilities.contains(capability))
        && (info.continues || !need.continuation)
        && in_scope
        && open
        && closed
        && candidate.slots.is_none_or(|slots| candidate.running < slots)
}

proptest! {
    #[test]
    fn the_order_does_not_depend_on_the_order_of_asking(
        weights in any_weights(),
        need in any_need(),
        (candidates, shuffled) in any_candidates().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
    ) {
        // What is no number equals nothing, so names and words are compared.
        let shown = |ranking: Vec<Ranked>| -> Vec<_> {
            ranking.iter().map(|ranked| (ranked.candidate.backend.clone(), ranked.reasons())).collect()
        };
        prop_assert_eq!(shown(rank_by(&weights, &need, candidates)), shown(rank_by(&weights, &need, shuffled)));
    }

    #[test]
    fn those_that_can_answer_come_first_and_nobody_is_lost(
        weights in any_weights(),
        need in any_need(),
        candidates in any_candidates(),
    ) {
        let able = candidates.iter().filter(|candidate| can_answer(&need, candidate)).count();
        let ranking = rank_by(&weights, &need, candidates.clone());
        prop_assert_eq!(ranking.len(), candidates.len());
        for (index, ranked) in ranking.iter().enumerate() {
            prop_assert_eq!(ranked.score().is_some(), index < able);
            prop_assert_eq!(ranked.score().is_some(), can_answer(&need, &ranked.candidate));
            prop_assert!(!ranked.reasons().is_empty());
        }
        let scores: Vec<f64> = ranking.iter().filter_map(Ranked::score).collect();
        prop_assert!(scores.iter().all(|score| score.is_finite()));
        prop_assert!(scores.is_sorted_by(|a, b| a >= b));
    }

    #[test]
    fn a_lower_load_never_ranks_worse(
        weights in any_weights(),
        need in any_need(),
        candidates in any_candidates(),
        which in any::<prop::sample::Index>(),
        (running, waiting) in any::<(bool, bool)>(),
    ) {
        prop_assume!(!candidates.is_empty());
        let which = which.index(candidates.len());
        let place = |candidates: &[Candidate]| {
            let ranking = rank_by(&weights, &need, candidates.to_vec());
            ranking.iter().position(|ranked| ranked.candidate.backend == candidates[which].backend)
        };
        let mut relieved = candidates.clone();
        relieved[which].running /= if running { 2 } else { 1 };
        relieved[which].waiting /= if waiting { 2 } else { 1 };
        prop_assert!(place(&relieved) <= place(&candidates));
    }

    #[test]
    fn a_peer_never_comes_before_the_own_node_that_is_like_it(
        weights in any_weights(),
        need in any_need(),
        one in any_candidate(),
        number in 1..4_u8,
        lots in any::<(u64, u64)>(),
    ) {
        let own = Candidate { peer: None, preference: 0, lot: lots.0, backend: "z".into(), ..one };
        let peer = at(number, Candidate { lot: lots.1, backend: "a".into(), ..own.clone() });
        let ranking = rank_by(&weights, &need, vec![peer, own]);
        let accepted: Vec<_> = ranking.iter().filter(|ranked| ranked.score().is_some()).collect();
        if accepted.len() == 2 {
            prop_assert_eq!(&*accepted[0].candidate.backend, "z");
        }
    }

    #[test]
    fn a_suspect_comes_after_everybody_who_can_answer(need in any_need(), candidates in any_candidates()) {
        let ranking = rank(&need, candidates);
        let is_suspect = |ranked: &&Ranked| ranked.candidate.peer.as_ref().is_some_and(|peer| peer.suspect);
        let accepted: Vec<_> = ranking.iter().filter(|ranked| ranked.score().is_some()).collect();
        prop_assert!(accepted.iter().skip_while(|ranked| !is_suspect(ranked)).all(is_suspect));
    }

    #[test]
    fn whoever_is_faster_never_ranks_worse(
        need in any_need(),
        candidates in any_candidates(),
        which in any::<prop::sample::Index>(),
        (slow, more) in (0.0..500.0, 0.0..500.0),
    ) {
        prop_assume!(candidates.iter().any(|candidate| candidate.peer.is_some()));
        let peers: Vec<_> = (0..candidates.len()).filter(|index| candidates[*index].peer.is_some()).collect();
        let which = peers[which.index(peers.len())];
        let place = |speed| {
            let mut candidates = candidates.clone();
            candidates[which].tokens_per_second = Some(speed);
            let name = candidates[which].backend.clone();
            rank(&need, candidates).iter().position(|ranked| ranked.candidate.backend == name)
        };
        prop_assert!(place(slow + more) <= place(slow));
    }

    #[test]
    fn a_warm_model_never_ranks_worse_than_the_same_cold(need in any_need(), one in any_candidate(), preference in 0..3_u32) {
        let Offer::Has { info, .. } = &one.offer else { return Ok(()) };
        let with = |name: &str, warm| {
            let offer = Offer::Has { info: Arc::new(ModelInfo { warm, ..(**info).clone() }), alias_of: None };
            Candidate { backend: name.into(), offer, preference, ..one.clone() }
        };
        let ranking = rank(&need, vec![with("a", false), with("b", true)]);
        if ranking[0].score().is_some() {
            prop_assert_eq!(names(&ranking), ["b", "a"]);
        }
    }

    #[test]
    fn the_better_place_of_preference_wins_between_equals(need in any_need(), one in any_candidate(), low in 0..200_u32, gap in 1..200_u32) {
        let with = |name: &str, preference| Candidate { backend: name.into(), preference, ..one.clone() };
        prop_assume!(one.peer.is_none());
        let ranking = rank(&need, vec![with("a", low + gap), with("b", low)]);
        prop_assert_eq!(names(&ranking), ["b", "a"]);
    }
}
