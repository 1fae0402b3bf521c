//! The first of two backends goes up and down under load.

use bombus_testkit::upstream::{Script, Upstream};
use futures::stream;
use proptest::prelude::*;
use tokio::time::Instant;

use super::upstreams::{Dialect, Ollama, OpenAi, conversations, converse, known};
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

/// How a server that goes up and down is for a while.
const PHASES: u64 = 8;

/// Brings a server into a phase. In every second one it works.
async fn enter(phase: u64, server: &Upstream, dialect: Dialect, backends: &Backends) {
    let error = serde_json::json!({"error": {"message": "no"}});
    match phase % PHASES {
        1 => server.stop(),
        3 => server.on(dialect.chat(), Script::json(500, &error)),
        5 => server.on(dialect.chat(), Script::raw("SSH-2.0-OpenSSH_9.6\r\n")),
        7 => server.on(dialect.chat(), dialect.stream(&[]).then_cut()),
        _ => {
            server.on(dialect.chat(), dialect.answer());
            server.restart().await.unwrap();
            // The node looks at it every few seconds.
            backends.refresh("a").await;
        }
    }
}

#[tokio::test]
async fn a_server_that_goes_up_and_down_under_load_fails_no_request() {
    for dialect in [Ollama, OpenAi] {
        let (flapping, steady) = (dialect.server().await, dialect.server().await);
        flapping.on(dialect.chat(), dialect.answer());
        steady.on(dialect.chat(), dialect.answer());
        let pair = [("a", &flapping), ("b", &steady)];
        let backends = known(pair.map(|(name, server)| named(name, dialect.backend(server))).into()).await;
        let ended = AtomicU32::new(0);
        let answers = stream::iter(0..800).map(|_| async {
            let answer = match converse(&backends).await {
                Ok(routed) => words(routed).await,
                Err(error) => Err(error),
            };
            let ended = u64::from(ended.fetch_add(1, Ordering::SeqCst)) + 1;
            if ended.is_multiple_of(50) {
                enter(ended / 50, &flapping, dialect, &backends).await;
            }
            answer
        });
        let answers: Vec<_> = answers.buffer_unordered(32).collect().await;
        let failed: Vec<_> = answers.iter().filter(|answer| **answer != Ok(1)).collect();
        assert!(failed.is_empty(), "{dialect:?}: {failed:?}");
        let asked = [&flapping, &steady].map(|server| conversations(server, dialect));
        assert!(asked.iter().all(|count| *count > 20), "{dialect:?}: {asked:?}");
        // One that failed while it could be listed has to rest, unless it was seen away since.
        enter(1, &flapping, dialect, &backends).await;
        backends.refresh("a").await;
        enter(0, &flapping, dialect, &backends).await;
        assert_eq!(converse(&backends).await.unwrap().backend, "a", "{dialect:?}: it works again, and is preferred");
        assert!(backends.states().iter().all(|state| state.running == 0 && state.waiting == 0));
    }
}
