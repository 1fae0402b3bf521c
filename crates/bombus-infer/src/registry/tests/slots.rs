//! How many requests run where, and what happens to those that are too many.

use tokio::time::Instant;

use super::*;

fn limited(players: &[Arc<Player>], max_concurrent: u32) -> Backends {
    let options = BackendOptions { max_concurrent: Some(max_concurrent), ..BackendOptions::default() };
    let limit = |named: &NamedBackend| NamedBackend { options: options.clone(), ..named.clone() };
    Backends::new(backends_of(players).all().iter().map(limit).collect())
}

fn running(backends: &Backends) -> Vec<u32> {
    backends.states().iter().map(|state| state.running).collect()
}

#[tokio::test]
async fn what_runs_is_counted_until_its_stream_ends_or_is_dropped() {
    let backends = backends_of(&[Player::always(Play::Say(1)), Player::always(Play::Say(1))]);
    let mut first = chat(&backends).await.unwrap();
    let second = chat(&backends).await.unwrap();
    assert_eq!((first.backend.as_str(), second.backend.as_str()), ("a", "b"), "load spreads");
    assert_eq!((second.reason.as_str(), running(&backends)), ("load", vec![1, 1]));
    while first.value.next().await.is_some() {}
    assert_eq!(running(&backends), [0, 1], "it has ended, though it is not dropped yet");
    drop(second);
    assert_eq!(running(&backends), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_before_or_after_the_first_token_frees_the_slot() {
    for play in [Play::Hang, Play::Stall] {
        let backends = limited(&[Player::always(play)], 1);
        for _ in 0..10 {
            let answer = timeout(Duration::from_secs(1), chat(&backends)).await;
            assert_eq!(running(&backends)[0], u32::from(answer.is_ok()));
            drop(answer);
            assert_eq!(running(&backends), [0]);
        }
        assert_eq!(state(&backends, "a").breaker, "closed", "clients that go away are no failures");
    }
}

#[tokio::test]
async fn a_full_backend_is_passed_over() {
    let backends = limited(&[Player::always(Play::Stall), Player::always(Play::Stall)], 2);
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(chat(&backends).await.unwrap());
    }
    assert_eq!(running(&backends), [2, 2]);
}

#[tokio::test(start_paused = true)]
async fn what_one_backend_refuses_waits_for_a_slot_of_another_one() {
    let refusal = BackendError::InvalidRequest { param: None, message: "no".into() };
    let backends = limited(&[Player::always(Play::Refuse(refusal.clone())), Player::always(Play::Stall)], 1);
    let first = chat(&backends).await.unwrap();
    assert_eq!((first.backend.as_str(), running(&backends)), ("b", vec![0, 1]));
    let waiting = chat(&backends);
    let freed = async {
        tokio::task::yield_now().await;
        assert_eq!(backends.states().iter().map(|state| state.waiting).collect::<Vec<_>>(), [0, 1]);
        drop(first);
    };
    let (second, ()) = tokio::join!(waiting, freed);
    let second = second.unwrap();
    assert_eq!((second.backend.as_str(), second.reason.as_str()), ("b", "after a"));

    let begun = Instant::now();
    assert_eq!(chat(&backends).await.err(), Some(refusal), "it says more than that all others stayed busy");
    assert_eq!(begun.elapsed(), Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn what_three_backends_refuse_does_not_wait_for_slots() {
    let refusal = BackendError::InvalidRequest { param: None, message: "no".into() };
    let refusing = || Player::always(Play::Refuse(refusal.clone()));
    let players = [refusing(), refusing(), Player::always(Play::Stall), refusing()];
    let backends = limited(&players, 1);
    let _running = chat(&backends).await.unwrap();
    assert_eq!(running(&backends), [0, 0, 1, 0]);
    let begun = Instant::now();
    assert_eq!((chat(&backends).await.err(), begun.elapsed()), (Some(refusal), Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn where_all_are_busy_the_first_free_slot_is_taken() {
    let backends = limited(&[Player::always(Play::Stall), Player::always(Play::Stall)], 1);
    let (_first, second) = (chat(&backends).await.unwrap(), chat(&backends).await.unwrap());
    let waiting = chat(&backends);
    let freed = async {
        tokio::task::yield_now().await;
        assert_eq!(backends.states().iter().map(|state| state.waiting).collect::<Vec<_>>(), [1, 1]);
        drop(second);
    };
    let (third, ()) = tokio::join!(waiting, freed);
    let third = third.unwrap();
    assert_eq!((third.backend.as_str(), third.reason.as_str()), ("b", "slot"));
    assert_eq!(backends.states().iter().map(|state| state.waiting).sum::<u32>(), 0);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_slot_without_end_or_in_a_queue_without_end() {
    let overloaded = Some(BackendError::Overloaded { retry_after: Duration::from_secs(1) });
    let backends = limited(&[Player::always(Play::Stall)], 1);
    let _running = chat(&backends).await.unwrap();
    let begun = Instant::now();
    assert_eq!(chat(&backends).await.err(), overloaded);
    assert_eq!(begun.elapsed(), Duration::from_secs(30));

    let errors = join_all((0..200).map(|_| async { (chat(&backends).await.err(), begun.elapsed().as_secs()) })).await;
    assert!(errors.iter().all(|(error, _)| *error == overloaded));
    assert_eq!(errors.iter().filter(|(_, waited_s)| *waited_s == 30).count(), 200 - 128, "these never waited");
    assert_eq!(state(&backends, "a").waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn speed_and_time_to_the_first_token_are_measured() {
    let backends = backends_of(&[Player::always(Play::Say(8))]);
    assert_eq!(state(&backends, "a").tokens_per_second, None);
    words(chat(&backends).await.unwrap()).await.unwrap();
    let state = state(&backends, "a");
    assert_eq!((state.tokens_per_second, state.first_token_ms), (Some(100.0), Some(0.0)));
    assert_eq!((state.ready, state.models, state.breaker), (true, 1, "closed"));
}
