//! The first of two backends goes up and down under load.

use futures::stream;
use proptest::prelude::*;
use tokio::time::Instant;

use super::*;

/// A number that a seed and another number always give.
fn mix(seed: u64, number: u64) -> u64 {
    let mut value = seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Sends 2,000 requests, 32 at a time, and returns how many each backend got and how many of those of the first one failed.
async fn load(seed: u64) -> (usize, usize, usize) {
    let begun = Instant::now();
    let failures = Arc::new(AtomicU32::new(0));
    // Up or down for a fifth of a second at a time; down, it fails in one of the ways there are before a first token.
    let flapping = Arc::new(Player::new({
        let failures = failures.clone();
        move || {
            let dice = mix(seed, u64::try_from(begun.elapsed().as_millis()).unwrap() / 200);
            if dice.is_multiple_of(2) {
                return Play::Say(3);
            }
            failures.fetch_add(1, Ordering::SeqCst);
            match dice % 3 {
                0 => Play::Refuse(unavailable()),
                1 => Play::RefuseInStream(BackendError::Interrupted { reason: "closed".into() }),
                _ => Play::Refuse(BackendError::TimedOut { after: Duration::from_secs(1) }),
            }
        }
    }));
    let steady = Player::always(Play::Say(3));
    let backends = backends_of(&[flapping.clone(), steady.clone()]);
    let answers = stream::iter(0..2_000_u64).map(|number| {
        let backends = &backends;
        async move {
            sleep(Duration::from_millis(mix(seed, number) % 100)).await;
            let routed = chat(backends).await?;
            words(routed).await
        }
    });
    let answers: Vec<_> = answers.buffer_unordered(32).collect().await;
    assert!(answers.iter().all(|answer| *answer == Ok(3)), "seed {seed}: a request failed");
    assert!(backends.states().iter().all(|state| state.running == 0 && state.waiting == 0), "seed {seed}");
    (flapping.asked().len(), steady.asked().len(), failures.load(Ordering::SeqCst) as usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn no_request_fails_and_the_breaker_keeps_most_of_them_away_from_failures(seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let (flapping, steady, failures) = runtime.block_on(load(seed));
        prop_assert!(flapping > 0 && steady > 0);
        // Without a breaker about half of the 2,000 would meet a failure.
        prop_assert!(failures < 300, "{failures} of {flapping} requests met a failure");
    }
}
