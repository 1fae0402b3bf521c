//! Parts of the swarm's service, which go on as long as it does.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Pause before the first new start.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause: it doubles with every failure.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A part that went on for so long begins with the shortest pause again.
const SETTLED_AFTER: Duration = Duration::from_secs(60);

/// Why a part ended although nobody stopped it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartEnded {
    /// The mesh does not take it.
    #[error(transparent)]
    Net(#[from] bombus_net::NetError),
    /// The mesh has stopped, or something that belongs to it.
    #[error("the mesh ended")]
    MeshEnded,
    /// It belongs to a swarm that this node has left.
    #[error("the node is in another swarm now")]
    OtherSwarm,
}

/// Runs a part again and again until `stop`: one that fails or panics is logged and started anew, after a pause that doubles with every
/// failure. `work` makes it anew for every start; it watches `stop` itself, so that it can end in order.
pub(crate) async fn keep_going<W, F>(name: &'static str, stop: CancellationToken, work: W)
where
    W: Fn() -> F,
    F: Future<Output = Result<(), PartEnded>>,
{
    let mut pause = PAUSE_MIN;
    loop {
        let begun = Instant::now();
        let ended = AssertUnwindSafe(work()).catch_unwind().await;
        if stop.is_cancelled() {
            return;
        }
        match ended {
            // That is how it follows a change of the swarm, and nothing failed.
            Ok(Err(PartEnded::OtherSwarm)) => {
                pause = PAUSE_MIN;
                continue;
            }
            Ok(Err(error)) => tracing::warn!(task = name, %error, "a task ended and is started again"),
            Ok(Ok(())) => tracing::warn!(task = name, "a task ended by itself and is started again"),
            Err(_) => tracing::error!(task = name, "a task panicked and is started again"),
        }
        if begun.elapsed() >= SETTLED_AFTER {
            pause = PAUSE_MIN;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_panics_or_fails_is_started_again_with_growing_pauses_until_the_stop() {
        let stop = CancellationToken::new();
        let starts = RefCell::new(Vec::new());
        let begun = Instant::now();
        keep_going("test", stop.clone(), || async {
            starts.borrow_mut().push(begun.elapsed());
            match starts.borrow().len() {
                1 => panic!("as the test wants"),
                2 => Err(PartEnded::MeshEnded),
                3 => Ok(()),
                _ => {
                    stop.cancel();
                    Ok(())
                }
            }
        })
        .await;
        let pauses: Vec<_> = starts.borrow().windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
        assert_eq!(pauses, [500, 1_000, 2_000]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_the_swarm_is_followed_at_once() {
        let stop = CancellationToken::new();
        let starts = RefCell::new(0);
        let begun = Instant::now();
        keep_going("test", stop.clone(), || async {
            *starts.borrow_mut() += 1;
            if *starts.borrow() == 3 {
                stop.cancel();
            }
            Err(PartEnded::OtherSwarm)
        })
        .await;
        assert_eq!((*starts.borrow(), begun.elapsed()), (3, Duration::ZERO));
    }
}
