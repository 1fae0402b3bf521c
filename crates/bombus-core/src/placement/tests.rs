use std::sync::Arc;

use proptest::prelude::*;

use super::*;
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

fn any_offer() -> impl Strategy<Value = Offer> {
    let capabilities = prop::sample::subsequence(
        vec![ModelCapability::Completion, ModelCapability::Tools, ModelCapability::Vision],
        0..=3,
    );
    let has =
        (capabilities, any::<bool>(), prop::option::of(1_u32..100_000)).prop_map(|(can, warm, context_tokens)| {
            let info = ModelInfo { context_tokens, ..(*model(&can, warm)).clone() };
            Offer::Has { info: Arc::new(info), alias_of: None }
        });
    prop_oneof![6 => has, 1 => Just(Offer::Missing), 1 => Just(Offer::Hidden), 1 => Just(Offer::Unknown("?".into()))]
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    let breaker = prop_oneof![
        4 => Just(BreakerState::Closed),
        1 => (0..2_000_u64).prop_map(|until_ms| BreakerState::Open { until_ms }),
        1 => (0..2_000_u64).prop_map(|until_ms| BreakerState::HalfOpen { until_ms }),
    ];
    let speed = prop_oneof![Just(None), (-1.0..1e300).prop_map(Some), (0.0..500.0).prop_map(Some)];
    (any_offer(), 0..4_u32, 0..50_u32, prop::option::of(1..40_u32), speed, breaker, any::<bool>()).prop_map(
        |(offer, preference, running, slots, tokens_per_second, breaker, held_back)| Candidate {
            offer,
            running,
            slots,
            tokens_per_second,
            breaker,
            now_ms: 1_000,
            held_back,
            ..candidate("x", preference)
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
    (capabilities, prop::option::of(1_u32..100_000)).prop_map(|(capabilities, context_tokens)| Need {
        capabilities,
        context_tokens,
        ..Need::default()
    })
}

fn can_answer(need: &Need, candidate: &Candidate) -> bool {
    let Offer::Has { info, .. } = &candidate.offer else { return false };
    let closed = match candidate.breaker {
        BreakerState::Closed => true,
        BreakerState::Open { until_ms } | BreakerState::HalfOpen { until_ms } => until_ms <= candidate.now_ms,
    };
    need.capabilities.iter().all(|capability| info.capabilities.contains(capability))
        && closed
        && candidate.slots.is_none_or(|slots| candidate.running < slots)
}

proptest! {
    #[test]
    fn the_order_does_not_depend_on_the_order_of_asking(
        need in any_need(),
        (candidates, shuffled) in any_candidates().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
    ) {
        prop_assert_eq!(rank(&need, candidates), rank(&need, shuffled));
    }

    #[test]
    fn those_that_can_answer_come_first_and_nobody_is_lost(need in any_need(), candidates in any_candidates()) {
        let able = candidates.iter().filter(|candidate| can_answer(&need, candidate)).count();
        let ranking = rank(&need, candidates.clone());
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
    fn a_lower_load_never_ranks_worse(need in any_need(), candidates in any_candidates(), which in any::<prop::sample::Index>()) {
        prop_assume!(!candidates.is_empty());
        let which = which.index(candidates.len());
        let place = |candidates: &[Candidate]| {
            let ranking = rank(&need, candidates.to_vec());
            ranking.iter().position(|ranked| ranked.candidate.backend == candidates[which].backend)
        };
        let mut relieved = candidates.clone();
        relieved[which].running /= 2;
        prop_assert!(place(&relieved) <= place(&candidates));
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
        let ranking = rank(&need, vec![with("a", low + gap), with("b", low)]);
        prop_assert_eq!(names(&ranking), ["b", "a"]);
    }
}
